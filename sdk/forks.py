"""What a child process may not share with its parent: connections, and locks that another thread held at the fork."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """What is told in the child that there was a fork."""

    def after_fork(self) -> None: ...


_alive: WeakSet[Forkable] = WeakSet()


def follow(forkable: Forkable) -> None:
    """Have ``after_fork`` called in every child that is forked while the object lives."""
    _alive.add(forkable)


def _tell() -> None:
    for forkable in list(_alive):
        forkable.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell)
