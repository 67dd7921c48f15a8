"""What compiled code is asked: lists of a segment, and queries that are sound and looked up in it.

Shapes: q queries, t terms of all queries, n rows, V slots, p postings, L long lists, w windows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Ids
from reperio.extras import compiled
from reperio.indexes.lists import Positions

__all__ = ["Asked", "Lists", "first_at_least", "fits", "look_up", "sound"]


class Lists(NamedTuple):
    """What compiled code needs of a segment; see `reperio.indexes.postings.Segment`."""

    ids: Ids
    alive: NDArray[np.bool_]
    scales: NDArray[np.float32]
    starts: Positions
    codes: NDArray[Any]
    long_before: NDArray[np.int32]
    short_positions: NDArray[np.uint32]
    long_starts: Positions
    long_places: NDArray[np.uint16]
    cuts: NDArray[np.uint32]
    peaks: NDArray[Any]
    ranked: NDArray[Any]
    row_starts: Positions
    row_slots: NDArray[np.int32]
    row_values: NDArray[Any]
    values: NDArray[Any]


class Asked(NamedTuple):
    """Queries, as terms of one segment.

    Attributes
    ----------
    starts
        Where each query's terms begin, ``(q + 1,)``.
    slots
        Ascending in a query, ``(t,)``.
    weights
        What impacts are multiplied with, ``(t,)``, positive.
    linear
        Whether the term's values are impacts, ``(t,)``.
    baseline
        What a row without any of the terms scores, ``(q,)``.
    """

    starts: Positions
    slots: Positions
    weights: NDArray[np.float64]
    linear: NDArray[np.bool_]
    baseline: NDArray[np.float64]


@compiled
def first_at_least(values: NDArray[Any], low: int, high: int, wanted: int) -> int:
    while low < high:
        middle = (low + high) >> 1
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def sound(starts: Positions, columns: NDArray[np.int64], weights: NDArray[np.float32], dim: int, most: int) -> bool:
    """Whether rows have columns that ascend from 0 to ``dim`` - 1, and weights from 0 to that of the bits ``most``.

    A weight's bits are looked at, for code compiled like this knows no NaN; they do not let -0 pass.
    """
    size, bits = len(columns), weights.view(np.uint32)
    if not len(starts) or len(weights) != size or starts[0] != 0 or starts[-1] != size:
        return False
    for row in range(len(starts) - 1):
        if starts[row] > starts[row + 1] or starts[row + 1] > size:
            return False
        before = -1
        for i in range(starts[row], starts[row + 1]):
            if columns[i] <= before or columns[i] >= dim or bits[i] > most:
                return False
            before = columns[i]
    return True


@compiled
def look_up(
    terms: NDArray[np.int64], frequencies: NDArray[np.int64], asked: NDArray[np.int64], slots: Positions, df: Positions
) -> None:
    """Fill in the slot of each term asked for, -1 where there is none, and add its frequency to ``df``."""
    for i in range(len(asked)):
        place = first_at_least(terms, 0, len(terms), asked[i])
        slots[i] = place if place < len(terms) and terms[place] == asked[i] else -1
        df[i] += frequencies[place] if slots[i] >= 0 else 0


@compiled
def fits(starts: Positions, weights: NDArray[np.float64], most: int) -> bool:
    """Whether `search` takes these queries: positive weights, no more than ``most`` terms each."""
    for i in range(len(starts) - 1):
        if starts[i + 1] - starts[i] > most:
            return False
    return bool((weights > 0).all())
