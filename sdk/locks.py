"""Many readers or one writer, within a process."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager


class SharedLock:
    """Threads that search share it; a thread that changes an index has it alone. Not reentrant."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin anew in the child of a fork, where those who held it are not."""
        self._changed = threading.Condition()
        self._readers = 0
        self._writing = False
        self._waiting = 0

    @property
    def held(self) -> bool:
        """Whether anyone is inside."""
        return self._writing or self._readers > 0

    @contextmanager
    def shared(self) -> Generator[None]:
        """Hold beside other readers; a waiting writer goes first, so that readers cannot starve it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._writing and not self._waiting)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Generator[None]:
        """Hold with no other reader or writer."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._writing and not self._readers)
            finally:
                self._waiting -= 1
            self._writing = True
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
