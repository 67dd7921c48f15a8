"""What is done to a collection's indexes beside its searches: checkpoints, another index, compaction.

The long part of each, filling an index and writing it to disk, holds no lock that a search waits for. A search
waits only while one index is put in the place of another, which is a rename.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from reperio.errors import ReperioError
from reperio.locks import SharedLock
from reperio.protocols import Index, Store
from reperio.signals import LiveSignal


class Upkeep:
    """The indexes of one open collection, as its writer keeps them.

    Parameters
    ----------
    store
        The truth.
    signals
        Every one.
    lock
        Searches share it.
    catch_up
        Brings signals to the store's last commit.
    """

    def __init__(
        self,
        store: Store,
        signals: Sequence[LiveSignal],
        lock: SharedLock,
        catch_up: Callable[[Sequence[LiveSignal]], None],
    ) -> None:
        self._store = store
        self._signals = signals
        self._lock = lock
        self._catch_up = catch_up
        self.renew()

    def renew(self) -> None:
        """Begin anew in the child of a fork."""
        # Taken in this order, and before the lock that searches share.
        self._turn = threading.RLock()  # what fills an index reads rows that a purge would take away
        self._saving = threading.RLock()  # one writes generations at a time

    def checkpoint(self) -> None:
        """Write the indexes as they are after the last commit."""
        with self._saving:
            self._catch_up(self._signals)
            with self._lock.shared():  # nothing is added meanwhile
                for signal in self._signals:
                    signal.derived.checkpoint()

    def reindex(self, signal: LiveSignal, index: Index[Any]) -> None:
        """Fill another, empty index, then switch to it."""
        with self._turn:
            if signal.derived.saved < 0:  # there must be something to roll back to
                self.checkpoint()
            self._switch(signal, signal.derived.beside(index))

    def rollback(self, signal: LiveSignal) -> None:
        """Bring the index before the last reindex up to date, then switch to it."""
        with self._turn:
            self._switch(signal, signal.derived.earlier())

    def compact(self) -> int:
        """Fill every index anew, switch, then take what no index needs any more off the disk."""
        with self._turn:
            for signal in self._signals:
                self._switch(signal, signal.derived.beside(None))
            return self._store.purge(min(signal.derived.saved for signal in self._signals))

    def _switch(self, signal: LiveSignal, beside: Any) -> None:
        derived = signal.derived
        try:
            derived.advance(beside)
            with self._saving:
                derived.keep(beside)
                derived.advance(beside)  # what was committed while it was saved
                with self._alone():
                    derived.take(beside)
                derived.tidy()
        except BaseException:
            with suppress(ReperioError):
                derived.discard(beside)
            raise

    @contextmanager
    def _alone(self) -> Generator[None]:
        # A switch that is a commit waits for the one under way, before it makes searches wait.
        with self._store.writing if self._store.host is not None else nullcontext(), self._lock.alone():
            yield
