"""Searching posting lists, compiled.

A search goes through the rows a window at a time. In a window each of the query's lists has a bound, its highest
code; a window whose bounds do not sum to more than the k-th best score so far is passed over. In the others, codes
are summed, in whole numbers so that the order does not matter. A sum bounds the row's score from above and, but
for what is rounded, from below; rows that may be among the k best are kept, and scored exactly in the end. A list that
is much longer than all others together, and whose bound alone cannot make a row one of the best, is not
summed: its code is looked up for the rows that the others leave.

Turtle and Flood: Query evaluation: strategies and optimizations. IPM 1995 (MaxScore). Ding and Suel: Faster top-k
document retrieval using block-max indexes. SIGIR 2011. Grand et al.: From MaxScore to Block-Max WAND: the story of
how Lucene significantly improved query evaluation performance. ECIR 2020.

Shapes: q queries, t terms of all queries, k results, n rows, V slots, p postings, L long lists, w windows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Ids
from reperio.extras import compiled
from reperio.indexes.asked import Asked, Lists, first_at_least, fits, look_up, sound
from reperio.indexes.heaps import add, clear, fill, push, raise_least, sort
from reperio.indexes.lists import RANKS, WINDOW, Positions
from reperio.indexes.rowwise import AHEAD, LANE, announce, fetch, mark, score, score_row, unmark
from reperio.indexes.termwise import pays, score_all
from reperio.indexes.weighting import Formula
from reperio.indexes.windows import (
    DENSE,
    GROUP,
    RANGE,
    Terms,
    enter,
    least_sum,
    leave_out,
    list_above,
    prime,
    set_aside,
    sum_all,
    sum_listing,
    take_highest,
)

__all__ = ["Asked", "Lists", "clear", "fits", "look_up", "score", "search", "sort", "sound"]

_ROOM = 1024
"""Candidates kept before those that fell behind are taken out."""

_DOWN = 1 - 2**-20

_TIE = 2**-20
"""Of a baseline: rows so near each other may score alike once it is added."""


@compiled
def _prepare(lists: Lists, asked: Asked, first: int, last: int, rise: float) -> tuple[Terms, float, float]:
    """The query's lists, the unit of bounds, and how far a sum may be above the impacts, rounded as they are."""
    size = last - first
    number, codes_from = np.full(size, -1, np.int64), np.empty(size, np.int64)
    places_from, sizes = np.empty(size, np.int64), np.empty(size, np.int64)
    most = 0.0
    for i in range(size):
        slot = asked.slots[first + i]
        before = np.int64(lists.long_before[slot])
        codes_from[i], sizes[i] = lists.starts[slot], lists.starts[slot + 1] - lists.starts[slot]
        if lists.long_before[slot + 1] > before:
            number[i], places_from[i] = before, lists.long_starts[before]
        else:
            places_from[i] = lists.starts[slot] - lists.long_starts[before]
        most += asked.weights[first + i] * lists.scales[slot] * rise * 255
    whole = lists.codes.itemsize == 1
    unit = (RANGE - 2 * size) / most if whole and most > 0 else 1.0
    lifts, loose = np.empty(size), 0.0
    for i in range(size):
        weight = asked.weights[first + i] * lists.scales[asked.slots[first + i]] * rise * unit
        lifts[i] = weight if whole else weight * (1 + (size + 2) * 2.0**-23)
        loose += lifts[i] + 2 if whole else 0.0
    begin, end = np.zeros(size, np.int64), np.zeros(size, np.int64)
    bound, looked_up = np.zeros(size), np.zeros(size, np.bool_)
    return Terms(lifts, number, codes_from, places_from, sizes, begin, end, bound, looked_up), unit, loose


@compiled
def _floor(lists: Lists, asked: Asked, terms: Terms, first: int, fall: float, k: int) -> float:
    """What the k-th best row scores at least: the k-th best of one term alone."""
    best = 0.0
    rounded = 1 if lists.codes.itemsize == 1 else 0
    heap, keys = np.empty(k, np.float32), np.empty(k, np.int64)
    for i in range(len(terms.sizes)):
        if terms.sizes[i] < k:
            continue
        code = np.float64(0)
        if terms.number[i] >= 0:
            for column in range(len(RANKS) - 1, -1, -1):
                if k <= RANKS[column]:
                    code = np.float64(lists.ranked[terms.number[i], column])
        else:
            clear(heap, keys)
            for place in range(terms.codes_from[i], terms.codes_from[i] + terms.sizes[i]):
                push(heap, keys, np.float32(lists.codes[place]), 0)
            code = np.float64(heap[0])
        scale = np.float64(lists.scales[asked.slots[first + i]])
        best = max(best, asked.weights[first + i] * fall * _DOWN * scale * (code - rounded))
    return best


@compiled
def _look_up(lists: Lists, terms: Terms, row: Any, low: int, bound: float, rest: float, threshold: float) -> float:
    """The row's bound with the lists set aside; -1 once it cannot pass."""
    for i in range(len(terms.sizes)):
        if not terms.looked_up[i]:
            continue
        rest -= terms.bound[i]
        first, last = terms.places_from[i] + terms.begin[i], terms.places_from[i] + terms.end[i]
        if terms.number[i] >= 0:
            place = first_at_least(lists.long_places, first, last, row - low)
            found = place < last and lists.long_places[place] == row - low
        else:
            place = first_at_least(lists.short_positions, first, last, row)
            found = place < last and lists.short_positions[place] == row
        if found:
            bound += terms.lifts[i] * lists.codes[place - terms.places_from[i] + terms.codes_from[i]]
        if bound + rest <= threshold:
            return -1.0
    return bound


@compiled
def _keep_above(rows: Positions, bounds: NDArray[np.float64], count: int, threshold: float) -> int:
    kept = 0
    for i in range(count):
        if bounds[i] > threshold:
            rows[kept], bounds[kept] = rows[i], bounds[i]
            kept += 1
    return kept


@compiled
def _candidates(
    lists: Lists,
    terms: Terms,
    usable: NDArray[np.bool_],
    all_usable: bool,
    scale: tuple[float, float],
    lowest: NDArray[np.float64],
    threshold: float,
    sums: NDArray[Any],
) -> tuple[Positions, NDArray[np.float64], int]:
    """Rows whose bound is above the k-th best score, with their bounds, and how many they are.

    ``scale`` is how far impacts may be below their bounds, as a factor and, by rounding, as a difference; ``lowest``
    a heap of scores that k rows reach.
    """
    slack, loose = scale
    touched, k = np.empty(WINDOW, np.uint16), len(lowest)
    highest, room = np.empty(WINDOW // GROUP, sums.dtype), np.empty(WINDOW // GROUP)
    primed = lowest[0] > 0
    rows, bounds, kept = np.empty(_ROOM, np.int64), np.empty(_ROOM), 0
    windows = (len(usable) + WINDOW - 1) // WINDOW
    for window in range(windows):
        total, size = enter(lists, terms, window)
        if total <= threshold:
            continue
        low = window * WINDOW
        rest, size = set_aside(terms, size, threshold)
        scanned = size * DENSE >= WINDOW
        # In the last window the k-th best is nearly known from its groups, and of no more use.
        last = scanned and window == windows - 1 and k <= len(highest)
        if scanned:
            sum_all(lists, terms, low, sums)
            take_highest(sums, highest)
            if not primed:
                primed = True
                if not all_usable:
                    leave_out(sums, usable[low : low + WINDOW])
                    take_highest(sums, highest)
                reached = prime(highest, k, scale, room)
                threshold = max(threshold, reached)
            count = list_above(sums, highest, least_sum(threshold - rest, sums), touched)
        else:
            count = sum_listing(lists, terms, low, sums, touched)
        for j in range(count):
            place = touched[j]
            value = sums[place]
            if not scanned:
                sums[place] = 0
            bound = float(value)
            row = low + np.int64(place)
            if bound + rest <= threshold or not usable[row]:
                continue
            if rest > 0:
                bound = _look_up(lists, terms, row, low, bound, rest, threshold)
                if bound <= threshold:
                    continue
            if kept == len(rows):
                kept = _keep_above(rows, bounds, kept, threshold)
                if 2 * kept > len(rows):
                    rows, bounds = np.append(rows, rows), np.append(bounds, bounds)
            rows[kept], bounds[kept] = row, bound
            kept += 1
            reached = (bound - loose) * slack
            if reached > lowest[0] and not last:
                raise_least(lowest, reached)
                threshold = max(threshold, float(lowest[0]))
        if scanned:
            sums[:] = 0
    return rows, bounds, _keep_above(rows, bounds, kept, threshold)


@compiled
def _score_rows(
    lists: Lists,
    relative: NDArray[np.float64],
    formula: Formula,
    asked: tuple[Positions, NDArray[np.float64], NDArray[np.bool_]],
    found: tuple[Positions, NDArray[np.float64]],
    measure: tuple[float, float],
    best: tuple[NDArray[np.float32], Ids],
    wanted: NDArray[np.uint16],
) -> None:
    """Put rows into the heap, those with the highest bounds first, until no other can be among the best.

    ``measure`` is the baseline, and how many of the bounds' units a score has.
    """
    (rows, bounds), (base, unit), (scores, keys) = found, measure, best
    order, hits = np.argsort(-bounds), np.empty(LANE, np.int64)
    rows, bounds = rows[order], bounds[order]
    first = min(len(rows), len(scores)) if scores[-1] == -np.inf else 0  # of an empty heap, which is made of them
    values = np.empty(first, np.float32)
    mark(wanted, asked[0])
    announce(lists, relative, rows)
    for i in range(len(rows)):
        if i + AHEAD < len(rows):
            fetch(lists, rows[i + AHEAD])
        if i >= first and bounds[i] <= (np.float64(scores[0]) * _DOWN - base) * unit:
            break
        start, end = lists.row_starts[rows[i]], lists.row_starts[rows[i] + 1]
        row_slots, row_values = lists.row_slots[start:end], lists.row_values[start:end]
        value = base + score_row(row_slots, row_values, asked, relative[rows[i]], formula, wanted, hits)
        if i >= first:
            push(scores, keys, np.float32(value), lists.ids[rows[i]])
            continue
        values[i] = value
        if i + 1 == first:
            fill(scores, keys, values, rows[:first], lists.ids)
    unmark(wanted, asked[0])


@compiled
def search(
    lists: Lists,
    relative: NDArray[np.float64],
    formula: Formula,
    asked: Asked,
    usable: NDArray[np.bool_],
    drift: tuple[float, float, bool],
    best: tuple[NDArray[np.float32], Ids],
    scratch: tuple[NDArray[Any], NDArray[np.uint16], NDArray[np.uint16]],
) -> None:
    """Put the best usable rows of each query into its heap.

    Parameters
    ----------
    drift
        By how much impacts may have risen and fallen since they were encoded, as factors, and whether every row
        is usable.
    best
        Scores with baseline and keys, ``(q, k)`` each; a heap a row, the worst in front.
    scratch
        Zeros: ``(WINDOW,)`` of uint16 for codes in bytes, else float32; ``(WINDOW,)``; and one for each slot at least.
    """
    sums, numbers, wanted = scratch
    rise, fall, all_usable = drift
    k = best[0].shape[1]
    lowest = np.empty(k)
    for query in range(len(asked.starts) - 1):
        first, last = asked.starts[query], asked.starts[query + 1]
        if first == last:
            continue
        held = (asked.slots[first:last], asked.weights[first:last], asked.linear[first:last])
        scores, keys, base = best[0][query], best[1][query], asked.baseline[query]
        terms, unit, loose = _prepare(lists, asked, first, last, rise)
        for i in range(k):
            lowest[i] = (np.float64(scores[i]) * _DOWN - base) * unit
        threshold = max(0.0, float(lowest[0]))
        loose += base * unit * _TIE
        if all_usable:
            threshold = max(threshold, float(_floor(lists, asked, terms, first, fall, k) * unit) - base * unit * _TIE)
        slack = fall / rise * _DOWN
        if lists.codes.itemsize > 1:  # sums of float32 are rounded
            slack *= max(0.0, 1 - (last - first + 2) * 2.0**-22)
        scale = (slack, loose)
        rows, bounds, count = _candidates(lists, terms, usable, all_usable, scale, lowest, threshold, sums)
        if pays(lists, terms, count):
            totals = score_all(lists, relative, formula, held, terms, rows[:count], numbers)
            add(scores, keys, (totals + base).astype(np.float32), rows[:count], lists.ids)
            continue
        drop = (np.float64(base), unit)
        _score_rows(lists, relative, formula, held, (rows[:count], bounds[:count]), drop, (scores, keys), wanted)
