"""Tables on a server that nobody names any more are dropped by a thread of their own.

Garbage is collected in the middle of anything: inside another statement of the same connection, or with a lock held
that dropping needs. So a finalizer only puts its work into a queue, which may be done at any moment.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

__all__ = ["drop_when_gone", "wait"]

_AT_EXIT = 10.0
"""Seconds that the end of the process waits for what is being dropped."""


class _Reaper:
    """The thread of this process, started with the first table that it may have to drop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self.queue: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def start(self) -> None:
        with self._lock:
            if self._pid != os.getpid():  # a thread does not live on in a process that is forked off
                if not self._pid:
                    weakref.finalize(self, wait, _AT_EXIT)  # finalizers end in reverse: this one after all tables
                self._pid, self.queue = os.getpid(), SimpleQueue()
                threading.Thread(target=_run, args=(self.queue,), name="reperio-abandoned", daemon=True).start()

    @property
    def started(self) -> bool:
        return self._pid == os.getpid()


_reaper = _Reaper()


def _run(queue: SimpleQueue[Callable[[], None]]) -> None:
    while True:
        with suppress(Exception):  # what cannot be dropped stays on the server; nobody is there to be told
            queue.get()()


def drop_when_gone(owner: object, drop: Callable[[], None], *, at_exit: bool) -> weakref.finalize[..., Any]:
    """Have ``drop`` called, by another thread, once ``owner`` is garbage; ``detach`` the result to have it kept.

    Parameters
    ----------
    at_exit
        Whether the end of the process counts.
    """
    _reaper.start()
    finalizer = weakref.finalize(owner, partial(_reaper.queue.put, drop))
    finalizer.atexit = at_exit
    return finalizer


def wait(timeout: float | None = None) -> None:
    """Until all that was garbage is dropped; not when called by a drop itself."""
    if _reaper.started and threading.current_thread().name != "reperio-abandoned":
        done = threading.Event()
        _reaper.queue.put(done.set)
        done.wait(timeout)
