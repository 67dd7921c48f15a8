"""Which positions of an index a search may return.

Shapes: n positions, m of them chosen.
"""

from __future__ import annotations

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


class KeyedRows(Rows):
    """Row keys and their positions, and what a set of keys chooses.

    The last set is kept with what it chooses, until a row comes or goes: to compare two sets takes a fifth of the
    time that it takes to mark their rows.
    """

    _last: tuple[IdSet, Chosen] | None = None

    def append(self, ids: Ids) -> None:
        """Give the next positions to these keys, each once; where they stood before is dead."""
        self._forget()
        super().append(ids)

    def bury(self, size: int) -> None:
        """Make positions up to ``size`` dead that were filled, but never given to a key."""
        self._forget()
        super().bury(size)

    def remove(self, ids: Ids) -> int:
        """Mark the positions of these keys dead; returns how many were alive."""
        self._forget()
        return super().remove(ids)

    @property
    def asked(self) -> IdSet | None:
        """The last set asked for: `chosen` need not compare it, where it is given itself."""
        last = self._last
        return None if last is None else last[0]

    def chosen(self, allowed: IdSet | None) -> Chosen | None:
        """The positions of these keys that are alive; None where every position may be returned."""
        if allowed is None:
            return None if len(self) == len(self.ids) else self._living
        keys, last = np.asarray(allowed, dtype=np.int64), self._last
        if last is None or (last[0] is not keys and not np.array_equal(last[0], keys)):
            last = self._last = (keys.copy(), Chosen(self._positions(keys), len(self.ids)))
        return last[1]

    def _positions(self, keys: IdSet) -> Positions:
        if not self._is_run:
            found = self.find(keys)
            return found[found >= 0]
        first = int(self.ids[0])
        found = keys[np.searchsorted(keys, first) : np.searchsorted(keys, first + len(self.ids))] - first
        return found if len(self) == len(self.ids) else found[self.alive[found]]

    @cached_property
    def _living(self) -> Chosen:
        return Chosen(np.flatnonzero(self.alive), len(self.ids))

    @cached_property
    def _is_run(self) -> bool:
        """Whether keys follow each other without a gap, so that a key is its own position but for the first."""
        return bool(len(self.ids)) and bool((np.diff(self.ids) == 1).all())

    def _forget(self) -> None:
        self._last = None
        for name in ("_living", "_is_run"):
            self.__dict__.pop(name, None)
