"""Encoding under an event loop, which stays free meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

from reperio.encoders.texts import check_texts, elsewhere
from reperio.errors import ConfigurationError, InvalidInput
from reperio.protocols import Encoder
from reperio.types import Encoded

__all__ = ["aencode_document", "aencode_query"]

E = TypeVar("E")

BATCH = 256
"""Texts between two points at which a task can be cancelled."""


async def aencode_query(encoder: Encoder[E], texts: Sequence[str], /, *, batch_size: int = BATCH) -> Encoded[E]:
    """Embeddings of queries; see `aencode_document`."""
    return await _encode(encoder, "query", texts, batch_size)


async def aencode_document(encoder: Encoder[E], texts: Sequence[str], /, *, batch_size: int = BATCH) -> Encoded[E]:
    """Embeddings of documents, without blocking the event loop.

    An encoder with an ``aencode_document`` of its own is awaited; any other works in a thread, a batch at a time.
    A task that is cancelled stops after the batch that is under way. What the encoder counts is counted by the
    caller's `reperio.meter`.

    Parameters
    ----------
    encoder
        Any.
    texts
        What is encoded.
    batch_size
        Texts in one batch.

    Raises
    ------
    ConfigurationError
        If ``batch_size`` is not positive.
    InvalidInput
        What the encoder refuses; a text that no encoder takes is refused before the first batch.

    Examples
    --------
    >>> from reperio.encoders import HashEncoder
    >>> asyncio.run(aencode_document(HashEncoder(), ["merge", "sort"])).embeddings.shape
    (2, 256)
    """
    return await _encode(encoder, "document", texts, batch_size)


async def _encode(encoder: Encoder[E], role: str, texts: Sequence[str], size: int) -> Encoded[E]:
    if size < 1:
        raise ConfigurationError(f"batch_size is {size}.", "Use 1 or more.")
    own: Callable[[Sequence[str]], Awaitable[Encoded[E]]] | None = getattr(encoder, f"aencode_{role}", None)
    if own is not None:
        return await own(texts)
    checked = check_texts(texts)
    encode = encoder.encode_query if role == "query" else encoder.encode_document
    if len(checked) <= size:
        return await asyncio.to_thread(encode, checked)
    starts = range(0, len(checked), size)
    parts: list[Encoded[Any]] = [await asyncio.to_thread(_batch, encode, checked, start, size) for start in starts]
    known = encoder.fingerprint
    return cast("Encoded[E]", Encoded.joined(parts, known.kind, dim=known.dim))


def _batch(encode: Callable[[Sequence[str]], Encoded[E]], texts: Sequence[str], start: int, size: int) -> Encoded[E]:
    try:
        return encode(texts[start : start + size])
    except InvalidInput as error:
        raise elsewhere(error, range(start, start + size)) from error
