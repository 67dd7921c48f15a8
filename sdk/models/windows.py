"""Rows of token ids, cut to what a model reads, or laid out in windows so that nothing is lost.

>>> frame = Frame(before=1, after=1, limit=6)
>>> row = np.array([101, 1, 2, 3, 4, 5, 6, 7, 102])
>>> frame.cut(row).tolist()
[101, 1, 2, 3, 4, 102]
>>> [window.tolist() for window in frame.windows(row)]
[[101, 1, 2, 3, 4, 102], [101, 4, 5, 6, 7, 102]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from reperio.errors import ConfigurationError

__all__ = ["OVERLAP", "Frame", "Tokens", "padded"]

Tokens: TypeAlias = NDArray[np.int32]
"""Token ids of one text as the model reads them, special tokens among them, ``(t,)``."""

OVERLAP = 1 / 8
"""Least part of a window that the one before it holds too."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What must stay when a row is cut.

    Attributes
    ----------
    before, after
        Special tokens in front of the text and behind it.
    limit
        Most tokens that the model reads, special tokens counted; None where there is no end.
    from_left
        Whether a cut drops the beginning of a text in place of its end.
    """

    before: int = 0
    after: int = 0
    limit: int | None = None
    from_left: bool = False

    def cut(self, row: Tokens) -> Tokens:
        """The row with the end of its text (or its beginning) left out, so that it fits."""
        if self.limit is None or len(row) <= self.limit:
            return row
        room = self.limit - self.before - self.after
        start = len(row) - self.after - room if self.from_left else self.before
        return self._part(row, self.before, start, start + room)

    def windows(self, row: Tokens, prompt: int = 0) -> list[Tokens]:
        """The row as windows of one length, evenly spaced, that hold all of its tokens.

        Each has the special tokens around it and the first ``prompt`` tokens of the text before it.

        Raises
        ------
        ConfigurationError
            If the prompt leaves no room.
        """
        if self.limit is None or len(row) <= self.limit:
            return [row]
        head = self.before + prompt
        room = self.limit - head - self.after
        if room < 1:
            raise ConfigurationError(
                f"A prompt of {prompt} tokens leaves no room in windows of {self.limit}.", "Raise max_tokens."
            )
        own = len(row) - head - self.after
        overlap = int(room * OVERLAP)
        count = -(-(own - overlap) // (room - overlap))
        starts = head + np.arange(count) * (own - room) // (count - 1)
        return [self._part(row, head, int(start), int(start) + room) for start in starts]

    def prompt_in(self, row: Tokens, prompt: Tokens) -> int:
        """How many tokens of a row, after the special ones, are the prompt's (its last may melt into the text)."""
        width = min(len(prompt), len(row) - self.before - self.after)
        same = row[self.before : self.before + width] == prompt[:width]
        return int(np.logical_and.accumulate(same).sum())

    def _part(self, row: Tokens, head: int, start: int, stop: int) -> Tokens:
        return np.concatenate([row[:head], row[start:stop], row[len(row) - self.after :]])


def padded(rows: Sequence[Tokens], *, pad: int, left: bool = False) -> dict[str, NDArray[np.int64]]:
    """``input_ids`` and ``attention_mask`` of rows, ``(n, longest)``."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    width = int(lengths.max())
    places = np.broadcast_to(np.arange(width, dtype=np.int64), (len(rows), width))
    mask: NDArray[np.bool_] = places >= width - lengths[:, None] if left else places < lengths[:, None]
    ids = np.full(mask.shape, pad, dtype=np.int64)
    ids[mask] = np.concatenate(rows)
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
