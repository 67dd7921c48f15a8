"""What is done to a collection's indexes beside its searches: checkpoints, another index, compaction.

The long part of each, filling an index, bringing its files to the disk and settling the rows of one on a server, holds
no lock that a search waits for. A search waits while one index is put in the place of another, which is a file of a few
lines, synced and renamed. Where it has to replay a commit first, it waits as well while a checkpoint copies the index
in use to its files, which are in memory then: not while they are checksummed and synced. A server may let a commit wait
until it has settled the rows that it has: PostgreSQL does while it builds an index.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from reperio.derived import Beside
from reperio.errors import ConfigurationError, ReperioError
from reperio.locks import SharedLock
from reperio.protocols import Index, Store
from reperio.signals import LiveSignal

COMPACT_AT = 0.2
"""Share of an index that dead rows may take up before it is built anew in the background."""

FEWEST_DEAD = 1000
"""Fewer dead rows than this are left where they are."""


class _Stopped(Exception):
    """The collection is being closed."""


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
    compact_at
        See `COMPACT_AT`; never in the background where None.
    """

    def __init__(
        self,
        store: Store,
        signals: Sequence[LiveSignal],
        lock: SharedLock,
        catch_up: Callable[[Sequence[LiveSignal]], None],
        *,
        compact_at: float | None = COMPACT_AT,
    ) -> None:
        if compact_at is not None and not 0 < compact_at < 1:
            raise ConfigurationError(
                f"compact_at is {compact_at!r}.", "Give a share between 0 and 1, or None for never."
            )
        self._store = store
        self._signals = signals
        self._lock = lock
        self._catch_up = catch_up
        self._compact_at = compact_at
        self.renew()

    def renew(self) -> None:
        """Begin anew in the child of a fork."""
        # Taken in this order, and before the lock that searches share.
        self._turn = threading.RLock()  # what fills an index reads rows that a purge would take away
        self._saving = threading.RLock()  # one writes generations at a time
        self._starting = threading.Lock()
        self._stopping = threading.Event()
        self._background: threading.Thread | None = None
        self._failure: BaseException | None = None

    def checkpoint(self) -> None:
        """Write the indexes as they are after the last commit; says what went wrong in the background, once."""
        with self._saving:
            self._catch_up(self._signals)
            for signal in self._signals:
                signal.derived.checkpoint(self._lock.shared)
        failure, self._failure = self._failure, None
        if failure is not None:
            failure.add_note("This ended a compaction in the background; the indexes are as they were before it.")
            raise failure

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

    def _switch(self, signal: LiveSignal, beside: Any, check: Callable[[], None] = lambda: None) -> None:
        derived = signal.derived
        try:
            derived.advance(beside, check)
            with self._saving:
                derived.keep(beside)
                derived.advance(beside, check)  # what was committed while it was saved
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

    # In the background

    def advised(self, signal: LiveSignal) -> bool:
        """Whether dead rows take up so much of a signal's index that it should be built anew."""
        dead = signal.derived.dead
        return dead >= FEWEST_DEAD and dead > (self._compact_at or COMPACT_AT) * (dead + len(signal.index))

    @property
    def state(self) -> str:
        """Of compaction in the background: ``"off"``, ``"idle"``, ``"running"`` or ``"failed: …"``."""
        if self._failure is not None:
            return f"failed: {self._failure}"
        if self._background is not None and self._background.is_alive():
            return "running"
        return "off" if self._compact_at is None or not self._store.writable else "idle"

    def consider(self) -> None:
        """Begin to build anew, in a thread of its own, the indexes of which too much is dead."""
        if self._compact_at is None or self._failure is not None or not any(map(self._due, self._signals)):
            return
        with self._starting:
            if self._stopping.is_set() or (self._background is not None and self._background.is_alive()):
                return
            self._background = threading.Thread(target=self._compact_indexes, name="reperio-compact", daemon=True)
            self._background.start()

    def _due(self, signal: LiveSignal) -> bool:
        # What is on a server, or in the database, is kept in shape there.
        return signal.derived.loaded and not signal.derived.served and self.advised(signal)

    def _compact_indexes(self) -> None:
        """Rows only: what was replaced stays in the store, so that no result found before goes stale."""
        try:
            with self._turn:
                for signal in filter(self._due, self._signals):
                    beside = signal.derived.beside(None)
                    if isinstance(beside, Beside):
                        self._switch(signal, beside, self._check_stopping)
        except _Stopped:
            pass
        except BaseException as error:  # told by the next checkpoint
            self._failure = error

    def _check_stopping(self) -> None:
        if self._stopping.is_set():
            raise _Stopped

    def stop(self) -> None:
        """End what goes on in the background, at its next chunk, and begin nothing more."""
        with self._starting:
            self._stopping.set()
        if self._background is not None:
            self._background.join()
