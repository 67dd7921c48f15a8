"""The k best of each query in a heap, compiled: the lowest score in front, of equal ones that with the highest key.

Shapes: q queries, k results.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Ids
from reperio.extras import compiled

__all__ = ["add", "clear", "fill", "push", "raise_least", "sort"]

_EMPTY = 2**63 - 1

_LAST = 2**32 - 1
"""Highest row."""


@compiled
def push(scores: NDArray[np.float32], keys: Ids, score: np.float32, key: Any) -> None:
    """Replace the worst of a heap, the lowest score with the highest key, if this one is better."""
    if score > scores[0] or (score == scores[0] and key <= keys[0]):
        sink(scores, keys, score, key)


@compiled
def sink(scores: NDArray[np.float32], keys: Ids, score: np.float32, key: Any) -> None:
    """Replace the front of a heap."""
    size, i = len(scores), 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        right = child + 1
        if right < size and (
            scores[right] < scores[child] or (scores[right] == scores[child] and keys[right] > keys[child])
        ):
            child = right
        if scores[child] > score or (scores[child] == score and keys[child] < key):
            break
        scores[i], keys[i] = scores[child], keys[child]
        i = child
    scores[i], keys[i] = score, key


@compiled
def fill(scores: NDArray[np.float32], keys: Ids, values: NDArray[np.float32], rows: NDArray[Any], ids: Ids) -> None:
    """Make an empty heap one of the best of these rows, none below 0, in order: the worst in front."""
    bits, packed = values.view(np.uint32), np.empty(len(values), np.int64)
    for i in range(len(values)):  # of equal ones the lower row, and so the lower id, is the better
        packed[i] = np.int64(bits[i]) << 32 | (_LAST - np.int64(rows[i]))
    packed.sort()
    count, k = len(packed), len(scores)
    ordered = (packed >> 32).astype(np.uint32).view(np.float32)
    for i in range(min(count, k)):
        best = count - 1 - i
        scores[k - 1 - i], keys[k - 1 - i] = ordered[best], ids[_LAST - (packed[best] & _LAST)]


@compiled
def add(scores: NDArray[np.float32], keys: Ids, values: NDArray[np.float32], rows: NDArray[Any], ids: Ids) -> None:
    """Push all these rows."""
    if scores[-1] == -np.inf:
        fill(scores, keys, values, rows, ids)
        return
    for i in range(len(values)):
        push(scores, keys, values[i], ids[rows[i]])


@compiled
def raise_least(lowest: NDArray[np.float64], value: float) -> None:
    """Replace the least of a heap."""
    size, i = len(lowest), 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and lowest[child + 1] < lowest[child]:
            child += 1
        if lowest[child] >= value:
            break
        lowest[i] = lowest[child]
        i = child
    lowest[i] = value


@compiled
def clear(scores: NDArray[np.float32], keys: Ids) -> None:
    """Make heaps, ``(q, k)``, of nothing."""
    scores[:] = -np.inf
    keys[:] = _EMPTY


@compiled
def sort(scores: NDArray[np.float32], keys: Ids) -> None:
    """Bring heaps, ``(q, k)``, into order, the best first; places left empty get the key -1."""
    k = scores.shape[1]
    for query in range(len(scores)):
        some, theirs = scores[query], keys[query]
        if not _descend(some, theirs):
            for size in range(k - 1, -1, -1):
                score, key = some[size], theirs[size]
                some[size], theirs[size] = some[0], theirs[0]
                if size:
                    sink(some[:size], theirs[:size], score, key)
        for i in range(k):
            if some[i] == -np.inf:
                theirs[i] = -1


@compiled
def _descend(scores: NDArray[np.float32], keys: Ids) -> bool:
    """Turn round what stands in order from the worst to the best; else False, and nothing is done."""
    k, ordered = len(scores), True
    for i in range(1, k):
        tie = scores[i - 1] == scores[i] and keys[i - 1] >= keys[i]
        ordered &= scores[i - 1] < scores[i] or tie
    if ordered:
        for i in range(k // 2):
            scores[i], scores[k - 1 - i] = scores[k - 1 - i], scores[i]
            keys[i], keys[k - 1 - i] = keys[k - 1 - i], keys[i]
    return ordered
