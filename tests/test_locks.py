"""Readers share, a writer is alone."""

from __future__ import annotations

import threading
import time

from reperio.locks import SharedLock


def test_readers_overlap_and_a_writer_does_not() -> None:
    lock, inside, seen = SharedLock(), [0], []
    both = threading.Barrier(2, timeout=10)

    def read() -> None:
        with lock.shared():
            both.wait()  # passes only if two readers are inside together

    def write() -> None:
        for _ in range(50):
            with lock.alone():
                inside[0] += 1
                seen.append(inside[0])
                time.sleep(0)
                inside[0] -= 1

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write) for _ in range(3)]
    for thread in readers + writers:
        thread.start()
    for thread in readers + writers:
        thread.join(10)
        assert not thread.is_alive()
    assert seen == [1] * 150


def test_an_error_inside_releases_the_lock() -> None:
    lock = SharedLock()
    for hold in (lock.alone, lock.shared):
        try:
            with hold():
                raise KeyError
        except KeyError:
            pass
    with lock.alone():
        pass
