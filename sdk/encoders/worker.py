"""An encoder in a process of its own, and what it is told and tells over two pipes: JSON and bytes, nothing else.

Run as ``python -m reperio.encoders.worker`` by `reperio.encoders.parallel`.
"""

from __future__ import annotations

import json
import os
import struct
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np

from reperio import errors, meter
from reperio.embeddings import from_bytes, kind_of, to_bytes
from reperio.errors import ReperioError
from reperio.protocols import Encoder
from reperio.registry import build
from reperio.types import Encoded

__all__ = ["Gone", "decoded", "receive", "refused", "send", "serve"]

_LENGTHS = struct.Struct("<QQ")


class Gone(Exception):
    """The other end of a pipe was closed."""


def send(pipe: BinaryIO, told: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """Write a message: lengths, JSON, bytes."""
    head = json.dumps({**told, "lengths": [len(blob) for blob in blobs]}).encode()
    body = b"".join(blobs)
    try:
        pipe.write(_LENGTHS.pack(len(head), len(body)) + head)
        pipe.write(body)
        pipe.flush()
    except (OSError, ValueError) as error:  # a broken pipe; one that this side has closed
        raise Gone from error


def receive(pipe: BinaryIO) -> tuple[dict[str, Any], list[bytes]]:
    """Read a message; raises `Gone` where the other end was closed first."""
    head, body = _LENGTHS.unpack(_exactly(pipe, _LENGTHS.size))
    told: dict[str, Any] = json.loads(_exactly(pipe, head))
    whole, start, blobs = _exactly(pipe, body), 0, list[bytes]()
    for length in told["lengths"]:
        blobs.append(whole[start : start + length])
        start += length
    return told, blobs


def _exactly(pipe: BinaryIO, length: int) -> bytes:
    try:
        found = pipe.read(length)
    except (OSError, ValueError) as error:
        raise Gone from error
    if len(found) < length:
        raise Gone
    return found


def serve(asked: BinaryIO, answers: BinaryIO) -> None:
    """Build the encoder that the first message asks for, then answer until the pipe is closed."""
    try:
        told, _ = receive(asked)
        try:
            encoder: Encoder[Any] = build(told["spec"])
            send(answers, {"fingerprint": asdict(encoder.fingerprint)})
        except Exception as error:
            return send(answers, _told(error))
        while True:
            told, texts = receive(asked)
            _answer(answers, encoder, told["role"], [text.decode() for text in texts])
    except Gone:
        return None


def _answer(answers: BinaryIO, encoder: Encoder[Any], role: str, texts: list[str]) -> None:
    encode = encoder.encode_query if role == "query" else encoder.encode_document
    with warnings.catch_warnings(record=True) as caught, meter.measure() as counts:
        warnings.simplefilter("always")
        try:
            encoded = encode(texts)
        except Exception as error:
            return send(answers, _told(error))
    embeddings = encoded.embeddings
    told = {
        "kind": kind_of(embeddings),
        "tokens": encoded.token_counts.tolist(),
        "cut": encoded.truncated.tolist(),
        "counts": dict(counts),
        "warnings": [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)],
    }
    return send(answers, told, to_bytes(embeddings))


def decoded(told: Mapping[str, Any], blobs: Sequence[bytes], *, dim: int) -> Encoded[Any]:
    """What `serve` answered."""
    embeddings = from_bytes(blobs, told["kind"], dim=dim)
    return Encoded(embeddings, np.array(told["tokens"], np.int64), np.array(told["cut"], np.bool_))


def _told(error: Exception) -> dict[str, Any]:
    lines = traceback.format_exception_only(error)
    return {
        "error": type(error).__name__,
        "problem": getattr(error, "problem", "".join(lines).strip()),
        "fix": getattr(error, "fix", ""),
    }


def refused(told: Mapping[str, Any], who: str) -> ReperioError:
    """The error that a worker told of, of its own class where it is one of this package's."""
    found = getattr(errors, told["error"], None)
    if not (isinstance(found, type) and issubclass(found, ReperioError)):
        return ReperioError(f"{who} failed: {told['problem']}.", "Try these texts in one process to see where.")
    if issubclass(found, errors.MissingDependency):  # it is made of other things than a problem and a fix
        return errors.ConfigurationError(f"{who}: {told['problem']}", told["fix"])
    return found(told["problem"], told["fix"])


def main() -> None:
    """Serve over standard input and output; whatever else writes to them is led to standard error."""
    with os.fdopen(os.dup(0), "rb") as asked, os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        serve(asked, answers)


if __name__ == "__main__":
    main()
