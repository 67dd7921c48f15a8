"""Rows that an index gives and the store does not have: they are passed over, and told."""

from __future__ import annotations

import threading

import numpy as np

from reperio import meter
from reperio.embeddings import Ids, IdSet
from reperio.protocols import Store

__all__ = ["Strangers"]

_NONE: IdSet = np.empty(0, dtype=np.int64)


class Strangers:
    """Tells the rows that the store does not have from those that it has.

    A row that is there stays until a purge, so each is asked for once: to look at rows known already costs two
    passes over them in memory, where a byte is kept for every row.

    Parameters
    ----------
    store
        The truth.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.renew()

    def renew(self) -> None:
        """Forget what is known."""
        self._lock = threading.Lock()
        self._floor = -1
        self._known = np.ones(1, dtype=np.bool_)
        self._met: set[int] = set()

    @property
    def met(self) -> int:
        """How many were passed over since the last purge."""
        return len(self._met)

    def among(self, rows: Ids) -> IdSet:
        """Those of the rows that the store does not have, and counts them as ``strangers``; -1 stands for no row."""
        floor = self._store.floor
        if floor != self._floor:
            with self._lock:
                self._floor, self._known, self._met = floor, np.ones(1, dtype=np.bool_), set()
        known = self._known  # the last stands for -1
        if not rows.size or (rows.max() < len(known) - 1 and known[rows].all()):
            return _NONE
        asked: Ids = np.unique(rows[rows >= 0])
        within = asked[asked < len(known) - 1]
        unsure = np.concatenate([within[~known[within]], asked[len(within) :]])
        held = self._store.held(unsure)
        self._learn(held, floor)
        strange: IdSet = np.setdiff1d(unsure, held, assume_unique=True)
        if len(strange):
            self._met.update(strange.tolist())
            meter.count("strangers", len(strange))
        return strange

    def _learn(self, held: IdSet, floor: int) -> None:
        with self._lock:
            self._met.difference_update(held.tolist())  # another process may have been a commit ahead
            if floor != self._floor or not len(held):  # a purge came in between
                return
            if held[-1] >= len(self._known) - 1:  # only a row of the store makes it grow
                grown = np.zeros(max(int(held[-1]) + 2, 2 * len(self._known)), dtype=np.bool_)
                grown[: len(self._known) - 1] = self._known[:-1]
                grown[-1] = True
                self._known = grown
            self._known[held] = True
