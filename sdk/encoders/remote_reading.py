"""What is known here of how a server reads texts: their tokens, and where a text that is too long is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from reperio import extras
from reperio.artifacts import sha256
from reperio.encoders.dense import OnTruncation
from reperio.errors import ConfigurationError, NotFound
from reperio.models.windows import Frame

__all__ = ["RemoteReading", "Tokenizer"]

_TEXTS_AT_ONCE = 256  # what `tokenizers` returns of a text weighs far more than the text


@dataclass(frozen=True, slots=True)
class RemoteReading:
    """How texts are counted before they are sent, and what becomes of one that is too long.

    Attributes
    ----------
    tokenizer
        Path of the model's ``tokenizer.json``. Where None, a TEI server is asked for the count of each text; of
        other servers it is not known, since they tell the sum of a request only.
    max_tokens
        Most tokens that the model reads of a text, prompt and special tokens counted. A TEI server tells it itself.
    on_truncation
        What happens to a longer text. ``"error"``: `TruncationError`. ``"warn"``: it is cut here, and a warning
        says how many were. ``"chunk"``: it is sent in overlapping windows, and the mean of their vectors is its
        vector (of sparse ones, the largest weight in each column). The last two need the tokenizer and
        ``max_tokens``.

    Raises
    ------
    ConfigurationError
        For a setting out of range, or one that lacks another.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where it is built from a specification

    tokenizer: str | None = None
    max_tokens: int | None = None
    on_truncation: OnTruncation = "error"

    def __post_init__(self) -> None:
        if self.on_truncation not in get_args(OnTruncation):
            known = ", ".join(get_args(OnTruncation))
            raise ConfigurationError(f"reading.on_truncation is {self.on_truncation!r}.", f"Use one of {known}.")
        if self.max_tokens is not None and (not isinstance(self.max_tokens, int) or self.max_tokens < 1):
            raise ConfigurationError(f"reading.max_tokens is {self.max_tokens!r}.", "Use 1 or more.")
        if self.max_tokens is not None and self.tokenizer is None:
            problem = f"reading.max_tokens is {self.max_tokens}, and there is no tokenizer to count with."
            raise ConfigurationError(problem, "Give reading.tokenizer, the path of the model's tokenizer.json.")
        if self.on_truncation != "error" and self.max_tokens is None:
            problem = f"reading.on_truncation is {self.on_truncation!r}, and where to cut is not known."
            raise ConfigurationError(problem, "Give reading.tokenizer and reading.max_tokens.")


class Tokenizer:
    """A ``tokenizer.json``: counts tokens, and cuts texts into pieces that a model reads whole.

    Parameters
    ----------
    path
        The file.
    limit
        Most tokens of a piece with its prompt and special tokens; no end where None.

    Raises
    ------
    NotFound
        If there is no such file.
    ConfigurationError
        If the file is something else.
    """

    def __init__(self, path: str, limit: int | None) -> None:
        if not Path(path).is_file():
            raise NotFound(f"There is no file {path}.", "Give the path of the model's tokenizer.json.")
        library = extras.load("tokenizers", extra="remote")
        try:
            self._tokenizer = library.Tokenizer.from_file(path)
        except Exception as error:  # the library raises this very class
            problem = f"{path} is no tokenizer: {error}."
            raise ConfigurationError(problem, "Give the model's tokenizer.json.") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.digest = f"files {sha256(Path(path))[:32]}"
        self._limit = limit

    def counts(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """How many tokens the model reads of each, special ones among them, ``(n,)``."""
        out = np.empty(len(texts), dtype=np.int64)
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            encodings = self._tokenizer.encode_batch_fast(texts[start : start + _TEXTS_AT_ONCE])
            out[start : start + len(encodings)] = [len(encoding.ids) for encoding in encodings]
        return out

    def cut(self, text: str, prompt: str) -> str:
        """The beginning of the text, as long as fits."""
        return self._pieces(text, prompt, whole=False)[0]

    def windows(self, text: str, prompt: str) -> list[str]:
        """Pieces of the text alike in length, each overlapping the one before, that hold all of it."""
        return self._pieces(text, prompt, whole=True)

    def _pieces(self, text: str, prompt: str, *, whole: bool) -> list[str]:
        """Cut by what the whole text's tokens say; a piece may have more by itself, so each is counted again."""
        encoding = self._tokenizer.encode(prompt + text)
        room = limit = self._limit or len(encoding.ids)
        while True:
            pieces = self._by_tokens(encoding, text, prompt, room)[: None if whole else 1]
            excess = int(self.counts([prompt + piece for piece in pieces]).max()) - limit
            if excess <= 0:
                return pieces
            room -= excess

    def _by_tokens(self, encoding: Any, text: str, prompt: str, room: int) -> list[str]:
        special = np.array(encoding.special_tokens_mask, dtype=np.bool_)
        before, after = (int(side.argmin()) for side in (special, special[::-1]))
        starts, ends = np.array(encoding.offsets, dtype=np.int64).T - len(prompt)
        head = int((ends[before : len(ends) - after] <= 0).sum())
        if room <= before + head + after:
            problem = f"reading.max_tokens leaves no room: {before + head + after} tokens are the prompt's and special."
            raise ConfigurationError(problem, "Raise max_tokens, or shorten the prompt.")
        frame = Frame(before, after, room)
        pieces: list[str] = []
        for window in frame.windows(np.arange(len(ends), dtype=np.int32), head):
            own = window[before + head : len(window) - after]
            first, last = own[0] == before + head, own[-1] == len(ends) - after - 1
            start, end = 0 if first else max(0, int(starts[own[0]])), len(text) if last else int(ends[own[-1]])
            pieces.append(text[start:end])
        return [piece for piece in pieces if piece and not piece.isspace()]
