"""Texts that wait to be sent: checked, counted and cut as far as that can be done here."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio.encoders.remote_reading import RemoteReading, Tokenizer
from reperio.encoders.texts import check_texts
from reperio.errors import EmptyText, TruncationError

__all__ = ["UNKNOWN", "Job", "prepare", "too_long"]

UNKNOWN = -1
"""Tokens of a text that nobody has counted."""


@dataclass(slots=True)
class Job:
    """Texts on their way to a server.

    Attributes
    ----------
    pieces
        What is sent, prompts included: texts, or windows of texts.
    owners
        The text that each piece is of, ``(pieces,)``.
    counts
        Tokens of each text before any cut, or `UNKNOWN`.
    truncated
        Which texts were cut here.
    start
        Position of the first text in what the caller gave.
    fields
        What is sent beside the texts.
    tally
        What it took: requests, retries, tokens.
    """

    pieces: list[str]
    owners: NDArray[np.int64]
    counts: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    start: int
    fields: Mapping[str, Any]
    tally: Counter[str] = field(default_factory=Counter[str])

    @property
    def in_windows(self) -> bool:
        """Whether a text is sent in several pieces."""
        return len(self.owners) > len(self.counts)

    def where(self, low: int, high: int) -> str:
        """How the caller knows the texts of the pieces ``[low, high)``."""
        first, last = (self.start + int(self.owners[i]) for i in (low, high - 1))
        return f"texts[{first}]" if first == last else f"texts[{first}] to texts[{last}]"

    def tokens(self, low: int, high: int) -> int | None:
        """What the model will read of these pieces, where that is known."""
        counts = self.counts[low:high]
        if self.in_windows or self.truncated[low:high].any() or (counts == UNKNOWN).any():
            return None
        return int(counts.sum())


def prepare(
    texts: Sequence[object],
    prompt: str | Mapping[str, Any],
    *,
    reading: RemoteReading,
    tokenizer: Tokenizer | None,
    start: int,
) -> Job:
    """A job for the texts.

    Parameters
    ----------
    prompt
        Put before each text; or sent beside them.
    reading, tokenizer
        What becomes of long texts, and what counts them.
    start
        Position of the first text in what the caller gave.

    Raises
    ------
    EmptyText, InvalidInput
        For what is no text; names the position.
    TruncationError
        For a text that is too long, where that is refused.
    """
    checked = check_texts(texts, start=start)
    before = prompt if isinstance(prompt, str) else ""
    pieces = [before + text for text in checked]
    job = Job(
        pieces,
        owners=np.arange(len(checked)),
        counts=np.full(len(checked), UNKNOWN, dtype=np.int64),
        truncated=np.zeros(len(checked), dtype=np.bool_),
        start=start,
        fields={} if isinstance(prompt, str) else prompt,
    )
    if tokenizer is not None and checked:
        job.counts = tokenizer.counts(pieces)
        if not job.counts.all():
            position = int(job.counts.argmin())
            raise EmptyText(f"texts[{start + position}] is {checked[position][:40]!r}: it has no token.", "Drop it.")
        if (job.counts > (reading.max_tokens or np.inf)).any():
            _cut(job, checked, before, reading, tokenizer)
    return job


def _cut(job: Job, texts: Sequence[str], prompt: str, reading: RemoteReading, tokenizer: Tokenizer) -> None:
    """Make pieces that the model reads whole, by the policy that was chosen."""
    limit = reading.max_tokens or 0
    over = np.flatnonzero(job.counts > limit)
    if reading.on_truncation == "error":
        raise too_long(job.start + int(over[0]), int(job.counts[over[0]]), limit)
    if reading.on_truncation == "warn":
        warnings.warn(
            f"{len(over)} of {len(texts)} texts were cut to {limit} tokens; the longest has {job.counts.max()}. "
            "Use on_truncation='chunk' to lose nothing.",
            stacklevel=5,
        )
    parts = [[text] for text in texts]
    for i in over.tolist():
        if reading.on_truncation == "chunk":
            parts[i] = tokenizer.windows(texts[i], prompt)
        else:
            parts[i], job.truncated[i] = [tokenizer.cut(texts[i], prompt)], True
    job.owners = np.repeat(np.arange(len(texts)), [len(part) for part in parts])
    job.pieces = [prompt + piece for part in parts for piece in part]


def too_long(position: int, tokens: int, limit: int | None) -> TruncationError:
    """The error for a text that the model would not read whole."""
    problem = f"texts[{position}] has {tokens} tokens; the model reads {limit}."
    return TruncationError(problem, "Split it, or give reading a tokenizer, max_tokens and on_truncation='chunk'.")
