"""The best keys of each training query, found exactly and kept as keys come.

Shapes: t training queries, L length of a list, n keys, d dimensions.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense
from reperio.extras import compiled

__all__ = ["Links", "Lists", "extend", "nearest_lists", "sift"]

Links: TypeAlias = NDArray[np.int32]
"""Positions of keys; -1 where there is none."""

_QUERIES, _KEYS = 256, 4096
"""Multiplied at a time: 4 MB of scores, which stay in a core's own cache."""

_LANE = 32
"""Scores whose maximum is taken before any of them is looked at."""


class Lists(NamedTuple):
    """The best keys of each training query so far, as heaps with the worst on top.

    Attributes
    ----------
    positions
        ``(t, L)``, int32; -1 where fewer keys were seen.
    scores
        ``(t, L)``, float32; ``-inf`` there.
    """

    positions: Links
    scores: Dense

    def part(self, first: int, last: int) -> Lists:
        """The lists of some queries, to change in place."""
        return Lists(self.positions[first:last], self.scores[first:last])


def nearest_lists(count: int, length: int) -> Lists:
    """Empty lists for training queries."""
    return Lists(np.full((count, length), -1, np.int32), np.full((count, length), -np.inf, np.float32))


def extend(lists: Lists, queries: Dense, keys: Dense, *, first: int = 0, by_distance: bool = False) -> None:
    """Take keys at positions ``first``, ``first + 1``, ... into the lists of the queries, exactly.

    A matrix product for each block, and one look at its scores: most are passed over 32 at a time, for their maximum
    is below the worst on the list.
    """
    for start in range(0, len(keys), _KEYS):
        block = keys[start : start + _KEYS]
        turned = np.ascontiguousarray(block.T)
        squares = np.einsum("nd,nd->n", block, block) if by_distance else np.empty(0, np.float32)
        for asked in range(0, len(queries), _QUERIES):
            part = slice(asked, asked + _QUERIES)
            scores = queries[part] @ turned
            if by_distance:
                scores *= 2
                scores -= squares
            _offer(scores, first + start, lists.positions[part], lists.scores[part])


@compiled
def _offer(scores: Dense, first: int, positions: Links, kept: Dense) -> None:
    count = scores.shape[1]
    for query in range(len(scores)):
        row, heap, places = scores[query], kept[query], positions[query]
        worst = heap[0]
        for start in range(0, count, _LANE):
            stop = min(start + _LANE, count)
            if stop == start + _LANE:  # a loop of known length takes sixteen numbers at a time
                best = row[start]
                for i in range(_LANE):
                    best = max(best, row[start + i])
                if best <= worst:
                    continue
            for i in range(start, stop):
                if row[i] > worst:
                    heap[0], places[0] = row[i], first + i
                    sift(heap, places)
                    worst = heap[0]


@compiled
def sift(heap: Dense, places: Links) -> None:
    """Move the top of a heap down to its place."""
    size, at = len(heap), 0
    score, place = heap[0], places[0]
    while True:
        child = 2 * at + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if child >= size or score <= heap[child]:
            break
        heap[at], places[at] = heap[child], places[child]
        at = child
    heap[at], places[at] = score, place
