"""The indexes of an open collection, brought to its store's commits and held there while they are searched."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from reperio.derived import SnapshotTooOld
from reperio.errors import StorageError
from reperio.locks import SharedLock
from reperio.protocols import Store
from reperio.signals import LiveSignal


class Following:
    """Searches share a lock; bringing the indexes forward takes it alone.

    Parameters
    ----------
    store
        The truth.
    signals
        Every one, by name.
    lock
        Guards what the indexes hold.
    """

    def __init__(self, store: Store, signals: Mapping[str, LiveSignal], lock: SharedLock) -> None:
        self._store = store
        self._signals = signals
        self._lock = lock

    @contextmanager
    def current(self, signals: Sequence[LiveSignal]) -> Generator[None]:
        """Hold the signals' indexes still, at one commit: the store's last, unless another follows at once."""
        with ExitStack() as held:
            while not self._hold(signals, held):
                held.close()
            yield

    def catch_up(self, signals: Sequence[LiveSignal]) -> None:
        """Bring the signals' indexes to the store's last commit, without holding them there."""
        while True:
            try:
                self._replay(signals)
            except SnapshotTooOld as error:
                self._renew(error)
            else:
                return

    def push(self) -> None:
        """Have servers take in what was committed: who reads there does not replay."""
        served = [signal for signal in self._signals.values() if signal.derived.served]
        if any(signal.derived.behind for signal in served):
            with self._lock.alone(), self._store.snapshot():
                for signal in served:
                    signal.derived.catch_up()

    def _hold(self, signals: Sequence[LiveSignal], held: ExitStack) -> bool:
        seq, least = None, 0
        if self._store.host is None:
            self._store.refresh()
            least = self._store.seq
        else:  # an index in the database shows what this thread's snapshot shows; the others are brought to the same
            seq = held.enter_context(self._store.snapshot())
        try:
            self._replay(signals)
        except SnapshotTooOld as error:
            held.close()
            self._renew(error)
            return False
        held.enter_context(self._lock.shared())
        # Another thread may have gone on, or switched to an index that is a little behind, since.
        found = {signal.derived.seq for signal in signals if signal.derived.follows}
        return len(found | ({seq} - {None})) <= 1 and min(found, default=least) >= least

    def _renew(self, error: SnapshotTooOld) -> None:
        self._store.refresh()
        if self._store.seq < error.seq:
            error.derived.distrust()

    def _replay(self, signals: Sequence[LiveSignal]) -> None:
        if any(signal.derived.behind for signal in signals):
            # All of them, so that one search never sees two states; the store's lock is taken inside, never around.
            with self._lock.alone(), self._store.snapshot():
                for signal in self._signals.values():
                    try:
                        signal.derived.catch_up()
                    except StorageError:  # of another one, which will say so when it is asked
                        if any(signal is asked for asked in signals):
                            raise
