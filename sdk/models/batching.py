"""How rows of unequal length are grouped for a model, and what happens when memory runs out.

>>> [batch.tolist() for batch in token_batches([3, 9, 4, 1], budget=9)]
[[1], [2, 0], [3]]
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import chain
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reperio.errors import ConfigurationError, OutOfMemory, ShapeError

__all__ = ["Rows", "is_out_of_memory", "run_halving", "token_batches"]

T = TypeVar("T", bound=Sized)

Rows: TypeAlias = NDArray[np.int64]
"""Positions of the rows of one batch."""

# How the allocators that raise a plain RuntimeError say it.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "HIP out of memory",
    "MPS backend out of memory",
    "XPU out of memory",
)


def token_batches(lengths: ArrayLike, budget: int) -> list[Rows]:
    """Batches of rows alike in length, longest first, each at most ``budget`` tokens with its padding.

    Parameters
    ----------
    lengths
        Tokens of each row, ``(n,)``.
    budget
        Most tokens in a batch: its rows times its longest row. A longer row is a batch of its own.

    Returns
    -------
    list of NDArray[int64]
        Every row once. Of rows of one length, the first comes first.

    Raises
    ------
    ConfigurationError
        If ``budget`` is not positive.
    """
    if budget <= 0:
        raise ConfigurationError(f"The budget of a batch is {budget} tokens.", "Use 1 or more.")
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    batches: list[Rows] = []
    start = 0
    while start < len(order):
        rows = max(1, budget // max(1, int(sizes[order[start]])))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def run_halving(batches: Iterable[Rows], run: Callable[[Rows], T]) -> Iterator[tuple[Rows, T]]:
    """Run every batch in order; where memory runs out, go on with batches half the size.

    The batch that failed and all that follow are cut in two; what was done before is kept.

    Parameters
    ----------
    batches
        Positions of the rows of each batch.
    run
        Gives one result for each row of a batch.

    Yields
    ------
    tuple
        A batch, or a part of one, and its results. Each row comes once, in the order given.

    Raises
    ------
    ShapeError
        If ``run`` gives another number of results than rows.
    OutOfMemory
        If a single row does not fit.
    Exception
        What ``run`` raises, if it is not a lack of memory.
    """
    pending = deque(batches)
    while pending:
        batch = pending[0]
        result = _try(batch, run)
        if result is None:
            pending = deque(chain.from_iterable(map(_halves, pending)))
            continue
        if len(result) != len(batch):
            raise ShapeError(f"{len(result)} results came back for {len(batch)} rows.", "Give one result for each row.")
        yield pending.popleft(), result


def _try(batch: Rows, run: Callable[[Rows], T]) -> T | None:
    # The error is dropped on return, and with it the frames that hold the failed batch's memory.
    try:
        return run(batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(batch) == 1:
            raise OutOfMemory(
                f"Not even one text fits into memory: {error}",
                "Read less of it (max_tokens, or on_truncation='chunk'), in half precision, or on another device.",
            ) from error
        return None


def _halves(batch: Rows) -> Sequence[Rows]:
    middle = (len(batch) + 1) // 2
    return [part for part in (batch[:middle], batch[middle:]) if len(part)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave up, on the host or on an accelerator; torch need not be loaded to tell."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _OUT_OF_MEMORY)
