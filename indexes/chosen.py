"""Which positions of an index a search may return.

Shapes: n positions, m of them chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Ids, IdSet
from reperio.indexes.rows import Positions, Rows

__all__ = ["KEPT", "Chosen", "KeyedRows"]

KEPT = 1 << 22
"""Components of the vectors of a filter that are kept for its next search: 16 MB."""


class Chosen:
    """The positions that a search may return.

    Parameters
    ----------
    positions
        Each once, ``(m,)``.
    total
        n.
    """

    def __init__(self, positions: Positions, total: int) -> None:
        self.positions, self.total = positions, total
        self.made: dict[Any, Any] = {}
        """What searches have made of them, to be used again while the same set is asked for."""

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Whether each position is among them, ``(n,)``."""
        out = np.zeros(self.total, dtype=np.bool_)
        out[self.positions] = True
        return out

    @cached_property
    def bits(self) -> NDArray[np.uint8]:
        """The mask, eight positions a byte."""
        return np.packbits(self.mask, bitorder="little")


@dataclass(slots=True)
class _Known:
    """What searches have found out about the rows, as long as none comes or goes."""

    last: tuple[IdSet, Chosen] | None = None
    living: Chosen | None = None
    run: bool | None = None


class KeyedRows(Rows):
    """Row keys and their positions, and what a set of keys chooses.

    The last set is kept with what it chooses, until a row comes or goes: to compare two sets takes a fifth of the
    time that it takes to mark their rows.
    """

    def __init__(self, ids: Ids | None = None, alive: NDArray[np.bool_] | None = None) -> None:
        super().__init__(ids, alive)
        self._known = _Known()

    def append(self, ids: Ids) -> None:
        """Give the next positions to these keys, each once; where they stood before is dead."""
        try:
            super().append(ids)
        finally:
            self._known = _Known()

    def bury(self, size: int) -> None:
        """Make positions up to ``size`` dead that were filled, but never given to a key."""
        try:
            super().bury(size)
        finally:
            self._known = _Known()

    def kill(self, positions: Positions) -> None:
        """Mark positions dead, each once and alive until now: this takes no memory, so it does not fail."""
        try:
            super().kill(positions)
        finally:
            self._known = _Known()

    @property
    def asked(self) -> IdSet | None:
        """The last set asked for: `chosen` need not compare it, where it is given itself."""
        last = self._known.last
        return None if last is None else last[0]

    def chosen(self, allowed: IdSet | None) -> Chosen | None:
        """The positions of these keys that are alive; None where every position may be returned."""
        known = self._known  # what was found out before a change is not kept for what comes after it
        if allowed is None:
            if len(self) == len(self.ids):
                return None
            if known.living is None:  # one that is empty is falsy
                known.living = Chosen(np.flatnonzero(self.alive), len(self.ids))
            return known.living
        keys, last = np.asarray(allowed, dtype=np.int64), known.last
        if last is None or (last[0] is not keys and not np.array_equal(last[0], keys)):
            last = known.last = (keys.copy(), Chosen(self._positions(keys, known), len(self.ids)))
        return last[1]

    def _positions(self, keys: IdSet, known: _Known) -> Positions:
        if known.run is None:
            # Keys follow each other without a gap: a key is its own position but for the first.
            known.run = bool(len(self.ids)) and bool((np.diff(self.ids) == 1).all())
        if not known.run:
            found = self.find(keys)
            return found[found >= 0]
        first = int(self.ids[0])
        found = keys[np.searchsorted(keys, first) : np.searchsorted(keys, first + len(self.ids))] - first
        return found if len(self) == len(self.ids) else found[self.alive[found]]
