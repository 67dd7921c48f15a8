"""Scoring rows one by one from what was added, compiled.

Shapes: q queries, t terms of a query, m rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio.extras import compiled
from reperio.indexes.asked import Asked, Lists, first_at_least
from reperio.indexes.inverting import impact
from reperio.indexes.lists import Positions
from reperio.indexes.prefetch import prefetch
from reperio.indexes.weighting import Formula

__all__ = ["AHEAD", "LANE", "announce", "fetch", "mark", "score", "score_row", "unmark"]

LANE = 256
"""Places of a row that are looked at before those that matter are."""

AHEAD = 4
"""So many rows before it is scored a row is fetched."""

_LEAP = 64
"""A row with so many times as many terms as the query is searched by halves, others are gone through."""

_LINE = 64
"""Bytes in a line of a core's cache."""


@compiled
def mark(wanted: NDArray[np.uint16], slots: Positions) -> None:
    """Number the terms asked for, from 1."""
    for i in range(len(slots)):
        wanted[slots[i]] = i + 1


@compiled
def unmark(wanted: NDArray[np.uint16], slots: Positions) -> None:
    for slot in slots:
        wanted[slot] = 0


@compiled
def score_row(
    row_slots: NDArray[np.int32],
    row_values: NDArray[Any],
    asked: tuple[Positions, NDArray[np.float64], NDArray[np.bool_]],
    relative: Any,
    formula: Formula,
    wanted: NDArray[np.uint16],
    hits: Positions,
) -> float:
    """Score of one row without baseline; terms are added in ascending order."""
    slots, weights, linear = asked
    total, size = 0.0, len(row_slots)
    if len(slots) * _LEAP < size:
        place = 0
        for i in range(len(slots)):
            place = first_at_least(row_slots, place, size, slots[i])
            if place == size:
                break
            if row_slots[place] == slots[i]:
                total += weights[i] * impact(np.float64(row_values[place]), relative, linear[i], formula)
        return total
    for start in range(0, size, len(hits)):
        count = np.uint64(0)
        for place in range(start, min(size, start + len(hits))):  # without a branch: few of a row's terms are asked for
            hits[count] = place
            count += np.uint64(wanted[np.uint64(row_slots[np.uint64(place)])] > 0)
        for j in range(count):
            held = np.uint64(hits[np.uint64(j)])
            term = np.uint64(wanted[np.uint64(row_slots[held])]) - np.uint64(1)
            total += weights[term] * impact(np.float64(row_values[held]), relative, linear[term], formula)
    return total


@compiled
def announce(lists: Lists, relative: NDArray[np.float64], rows: Positions) -> None:
    """Have what tells where rows are brought, of all at once."""
    for row in rows:
        prefetch(lists.row_starts, row)
        prefetch(relative, row)


@compiled
def fetch(lists: Lists, row: Any) -> None:
    """Have a row brought."""
    first, last = lists.row_starts[row], lists.row_starts[row + 1]
    for place in range(first, last, _LINE // lists.row_slots.itemsize):
        prefetch(lists.row_slots, place)
    for place in range(first, last, _LINE // lists.row_values.itemsize):
        prefetch(lists.row_values, place)


@compiled
def score(
    lists: Lists,
    relative: NDArray[np.float64],
    formula: Formula,
    asked: Asked,
    rows: Positions,
    out: NDArray[np.float64],
    wanted: NDArray[np.uint16],
) -> None:
    """Fill in the scores of ``rows``, ``(q, m)``, 0 where a row holds no term; rows elsewhere are passed over.

    ``wanted`` is zeros, one for each slot at least.
    """
    hits = np.empty(LANE, np.int64)
    for i in range(len(asked.starts) - 1):
        first, last = asked.starts[i], asked.starts[i + 1]
        terms = (asked.slots[first:last], asked.weights[first:last], asked.linear[first:last])
        count, here = 0, np.empty(rows.shape[1], np.int64)
        for j in range(rows.shape[1]):
            here[count] = j
            count += int(0 <= rows[i, j] < len(lists.row_starts) - 1)
        held = rows[i][here[:count]]
        announce(lists, relative, held)
        mark(wanted, terms[0])
        for j in range(count):
            if j + AHEAD < count:
                fetch(lists, held[j + AHEAD])
            start, end = lists.row_starts[held[j]], lists.row_starts[held[j] + 1]
            row_slots, row_values = lists.row_slots[start:end], lists.row_values[start:end]
            value = score_row(row_slots, row_values, terms, relative[held[j]], formula, wanted, hits)
            out[i, here[j]] = value
        unmark(wanted, terms[0])
