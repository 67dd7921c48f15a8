"""Memory that compiled code works in, made once for each thread."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCRATCH"]


class _Scratch(threading.local):
    """Zeros that compiled code works in and leaves as zeros: to make them anew would cost more than a query.

    To be entered while they are used; if what is done inside fails, all are forgotten, for they may have been left as
    they were in the middle of a search.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, type[np.generic]], NDArray[Any]] = {}

    def zeros(self, name: str, size: int, dtype: type[np.generic]) -> NDArray[Any]:
        """This thread's zeros of this name, ``(size,)`` or more."""
        held = self._held.get((name, dtype))
        if held is None or len(held) < size:
            held = self._held[name, dtype] = np.zeros(size, dtype)
        return held

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is not None:
            self._held.clear()


SCRATCH = _Scratch()
"""Of the thread that asks."""
