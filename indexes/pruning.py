"""Searching posting lists, compiled.

A search goes through the rows a window at a time. In a window each of the query's lists has a bound, its highest
code; a window whose bounds do not sum to more than the k-th best score so far is passed over. In the others, codes
are summed, in whole numbers so that the order does not matter. A sum bounds the row's score from above and, as it
counts the terms too, from below; rows that may be among the k best are kept, and scored exactly in the end. A list
that is much longer than all others together, and whose bound alone cannot make a row one of the best, is not
summed: its code is looked up for the rows that the others leave.

Turtle and Flood: Query evaluation: strategies and optimizations. IPM 1995 (MaxScore). Ding and Suel: Faster top-k
document retrieval using block-max indexes. SIGIR 2011. Grand et al.: From MaxScore to Block-Max WAND: the story of
how Lucene significantly improved query evaluation performance. ECIR 2020.

Shapes: q queries, t terms of all queries, k results, n rows, V slots, p postings, L long lists, w windows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Ids
from reperio.extras import compiled
from reperio.indexes.inverting import impact
from reperio.indexes.lists import RANKS, WINDOW, Positions
from reperio.indexes.weighting import Formula

__all__ = ["Asked", "Lists", "clear", "fits", "look_up", "score", "search", "sort", "sound"]

_LOOKUP = 8
"""How many times as long as all others together a list must be, to be looked up and not summed."""

_DENSE = 12
"""A window with a posting for every 12 rows or more is scanned; else the rows touched are listed."""

_LEAP = 64
"""A row with so many times as many terms as the query is searched by halves, others are gone through."""

_RANGE = 2**30
"""What the sum of a query's bounds is scaled to, in whole numbers."""

_ROOM = 1024
"""Candidates kept before those that fell behind are taken out."""

_DOWN = 1 - 2**-20
_LANE = 256
_STEP = 16
"""Rows of which the best is taken for a first threshold."""

_HALVINGS = 12
"""Of an interval, to come near the k-th of many values."""

_LINE = 16
"""Slots in a line of a core's cache."""

_FETCHED = 16
"""Rows fetched at a time."""

_AT_ONCE = 4
"""So many times k rows, at most, are all scored and then sorted."""

_EMPTY = 2**63 - 1


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


# Queries


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
        place = _first_at_least(terms, 0, len(terms), asked[i])
        slots[i] = place if place < len(terms) and terms[place] == asked[i] else -1
        df[i] += frequencies[place] if slots[i] >= 0 else 0


@compiled
def fits(starts: Positions, weights: NDArray[np.float64], most: int) -> bool:
    """Whether `search` takes these queries: positive weights, no more than ``most`` terms each."""
    for i in range(len(starts) - 1):
        if starts[i + 1] - starts[i] > most:
            return False
    for weight in weights:
        if weight <= 0:
            return False
    return True


# Scoring rows


@compiled
def _first_at_least(values: NDArray[Any], low: int, high: int, wanted: int) -> int:
    while low < high:
        middle = (low + high) >> 1
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _number(wanted: NDArray[np.uint16], slots: Positions) -> None:
    """Number the terms asked for, from 1."""
    for i in range(len(slots)):
        wanted[slots[i]] = i + 1


@compiled
def _forget(wanted: NDArray[np.uint16], slots: Positions) -> None:
    for slot in slots:
        wanted[slot] = 0


@compiled
def _score_row(
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
            place = _first_at_least(row_slots, place, size, slots[i])
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
            place = np.uint64(hits[np.uint64(j)])
            term = np.uint64(wanted[np.uint64(row_slots[place])]) - np.uint64(1)
            total += weights[term] * impact(np.float64(row_values[place]), relative, linear[term], formula)
    return total


@compiled
def _fetch(lists: Lists, rows: Positions) -> int:
    """Touch these rows, so that memory brings them all at once and not one after the other."""
    seen = 0
    for row in rows:
        for place in range(lists.row_starts[row], lists.row_starts[row + 1], _LINE):
            seen += lists.row_slots[place] + np.int64(lists.row_values[place])
    return seen


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
    hits = np.empty(_LANE, np.int64)
    for i in range(len(asked.starts) - 1):
        first, last = asked.starts[i], asked.starts[i + 1]
        terms = (asked.slots[first:last], asked.weights[first:last], asked.linear[first:last])
        _number(wanted, terms[0])
        for j in range(rows.shape[1]):
            row = rows[i, j]
            if 0 <= row < len(lists.row_starts) - 1:
                start, end = lists.row_starts[row], lists.row_starts[row + 1]
                row_slots, row_values = lists.row_slots[start:end], lists.row_values[start:end]
                out[i, j] = _score_row(row_slots, row_values, terms, relative[row], formula, wanted, hits)
        _forget(wanted, terms[0])


# Searching


class _Terms(NamedTuple):
    """A query's lists while it goes through the windows; every array ``(t,)``."""

    steps: NDArray[Any]  # what a code adds to a sum
    lifts: NDArray[np.float64]  # the same, in the unit of bounds
    number: Positions  # of the long list, else -1
    codes_from: Positions
    places_from: Positions
    sizes: Positions
    begin: Positions  # the window's postings, counted from the list's start
    end: Positions
    bound: NDArray[np.float64]
    looked_up: NDArray[np.bool_]


@compiled
def _prepare(
    lists: Lists, asked: Asked, first: int, last: int, rise: float, sums: NDArray[Any]
) -> tuple[_Terms, float, int]:
    """The query's lists, the unit of bounds, and in how many low bits of a sum terms are counted."""
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
    whole, bits = lists.codes.itemsize == 1, 0
    while whole and 1 << bits <= size:
        bits += 1
    unit = _RANGE / (most * (1 << bits)) if whole and most > 0 else 1.0
    steps, lifts = np.empty(size, sums.dtype), np.empty(size)
    for i in range(size):
        weight = asked.weights[first + i] * lists.scales[asked.slots[first + i]] * rise * unit
        lifts[i] = np.ceil(weight) if whole else weight * (1 + (size + 2) * 2.0**-23)
        steps[i] = lifts[i] * (1 << bits)
    begin, end = np.zeros(size, np.int64), np.zeros(size, np.int64)
    bound, looked_up = np.zeros(size), np.zeros(size, np.bool_)
    return _Terms(steps, lifts, number, codes_from, places_from, sizes, begin, end, bound, looked_up), unit, bits


@compiled
def _push(scores: NDArray[np.float32], keys: Ids, score: np.float32, key: Any) -> None:
    """Replace the worst of a heap, the lowest score with the highest key, if this one is better."""
    if score > scores[0] or (score == scores[0] and key <= keys[0]):
        _sink(scores, keys, score, key)


@compiled
def _sink(scores: NDArray[np.float32], keys: Ids, score: np.float32, key: Any) -> None:
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
def _fill(scores: NDArray[np.float32], keys: Ids, values: NDArray[np.float32], rows: Positions, ids: Ids) -> None:
    """Make an empty heap one of the best of these rows, in order: the worst in front."""
    order = np.argsort(values)
    for i in range(1, len(order)):  # of equal ones the lower row, and so the lower id, is the better
        one, j = order[i], i
        while j > 0 and values[order[j - 1]] == values[one] and rows[order[j - 1]] < rows[one]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = one
    count, k = len(order), len(scores)
    for i in range(min(count, k)):
        scores[k - 1 - i], keys[k - 1 - i] = values[order[count - 1 - i]], ids[rows[order[count - 1 - i]]]


@compiled
def _floor(lists: Lists, asked: Asked, terms: _Terms, first: int, fall: float, k: int) -> float:
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
            heap[:] = -1
            keys[:] = _EMPTY
            for place in range(terms.codes_from[i], terms.codes_from[i] + terms.sizes[i]):
                _push(heap, keys, np.float32(lists.codes[place]), 0)
            code = np.float64(heap[0])
        scale = np.float64(lists.scales[asked.slots[first + i]])
        best = max(best, asked.weights[first + i] * fall * _DOWN * scale * (code - rounded))
    return best


@compiled
def _enter(lists: Lists, terms: _Terms, window: int) -> tuple[float, int]:
    """Find each list's postings in the window; gives the sum of their bounds and how many they are."""
    total, size = 0.0, 0
    for i in range(len(terms.sizes)):
        number = terms.number[i]
        if number >= 0:
            terms.begin[i], terms.end[i] = lists.cuts[number, window], lists.cuts[number, window + 1]
            code = float(lists.peaks[number, window])
        else:
            place, last = terms.end[i], terms.sizes[i]
            terms.begin[i] = place
            code = 0.0
            while place < last and lists.short_positions[terms.places_from[i] + place] < (window + 1) * WINDOW:
                code = max(code, float(lists.codes[terms.codes_from[i] + place]))
                place += 1
            terms.end[i] = place
        terms.bound[i] = code * terms.lifts[i]
        total += terms.bound[i]
        size += terms.end[i] - terms.begin[i]
    return total, size


@compiled
def _set_aside(terms: _Terms, size: int, threshold: float) -> tuple[float, int]:
    """Choose the lists to be looked up; gives the sum of their bounds and what is left to be summed."""
    rest = 0.0
    terms.looked_up[:] = False
    if threshold <= 0 or size < WINDOW // _DENSE:
        return rest, size
    while True:
        longest, most = -1, 0
        for i in range(len(terms.sizes)):
            here = terms.end[i] - terms.begin[i]
            fits = not terms.looked_up[i] and rest + terms.bound[i] <= threshold
            if fits and here > most and here > _LOOKUP * (size - here):
                longest, most = i, here
        if longest < 0:
            return rest, size
        terms.looked_up[longest] = True
        rest += terms.bound[longest]
        size -= most


@compiled
def _sum_all(lists: Lists, terms: _Terms, low: int, sums: NDArray[Any]) -> None:
    one = sums.dtype.type(lists.codes.itemsize == 1)
    for i in range(len(terms.sizes)):
        if terms.looked_up[i] or terms.begin[i] == terms.end[i]:
            continue
        step = terms.steps[i]
        codes = lists.codes[terms.codes_from[i] + terms.begin[i] : terms.codes_from[i] + terms.end[i]]
        if terms.number[i] >= 0:
            places = lists.long_places[terms.places_from[i] + terms.begin[i] : terms.places_from[i] + terms.end[i]]
            for j in range(len(codes)):
                sums[places[j]] += step * codes[j] + one
        else:
            rows = lists.short_positions[terms.places_from[i] + terms.begin[i] : terms.places_from[i] + terms.end[i]]
            for j in range(len(codes)):
                sums[rows[j] - np.uint32(low)] += step * codes[j] + one


@compiled
def _sum_listing(lists: Lists, terms: _Terms, low: int, sums: NDArray[Any], touched: NDArray[np.uint16]) -> int:
    """As `_sum_all`, and list the places touched."""
    one = sums.dtype.type(lists.codes.itemsize == 1)
    count = 0
    for i in range(len(terms.sizes)):
        if terms.looked_up[i]:
            continue
        step, is_long = terms.steps[i], terms.number[i] >= 0
        for j in range(terms.begin[i], terms.end[i]):
            place = (
                np.uint64(lists.long_places[terms.places_from[i] + j])
                if is_long
                else np.uint64(lists.short_positions[terms.places_from[i] + j] - np.uint32(low))
            )
            if sums[place] == 0:
                touched[count] = place
                count += 1
            sums[place] += step * lists.codes[terms.codes_from[i] + j] + one
    return count


@compiled
def _least_sum(need: float, bits: int, sums: NDArray[Any]) -> Any:
    return sums.dtype.type(max(need, 0.0) * (1 << bits))


@compiled
def _take_highest(sums: NDArray[Any], highest: NDArray[Any]) -> None:
    """The highest sums of groups of 16 rows; those of a group are far apart, so that many maxima are taken at once."""
    groups = len(highest)
    for i in range(groups):
        highest[np.uint64(i)] = sums[np.uint64(i)]
    for start in range(groups, len(sums), groups):
        for i in range(groups):
            other, most = sums[np.uint64(start + i)], highest[np.uint64(i)]
            highest[np.uint64(i)] = other if other > most else most


@compiled
def _prime(highest: NDArray[Any], k: int, scale: tuple[int, float, float], reached: NDArray[np.float64]) -> float:
    """About what the k-th highest group reaches, and not more; 0 if there are fewer."""
    bits, slack, coarsest = scale
    most = 0.0
    for i in range(len(highest)):
        value = np.int64(highest[i])
        reached[i] = float(value >> bits) - (value & ((1 << bits) - 1)) * coarsest if coarsest > 0 else highest[i]
        most = max(most, reached[i])
    low, high = 0.0, most
    for _ in range(_HALVINGS):
        middle, count = 0.5 * (low + high), 0
        for i in range(len(reached)):
            count += reached[np.uint64(i)] >= middle
        if count >= k:
            low = middle
        else:
            high = middle
    return low * slack


@compiled
def _any_above(values: NDArray[Any], start: int, least: Any) -> bool:
    above = 0
    for j in range(_STEP):  # without a branch or a running maximum: many at a time
        above |= values[np.uint64(start + j)] > least
    return above > 0


@compiled
def _list_above(sums: NDArray[Any], highest: NDArray[Any], least: Any, touched: NDArray[np.uint16]) -> int:
    count = np.uint64(0)
    for first in range(0, len(highest), _STEP):
        if not _any_above(highest, first, least):
            continue
        for group in range(first, first + _STEP):
            if highest[group] > least:
                for place in range(group, len(sums), len(highest)):
                    touched[count] = place
                    count += np.uint64(sums[np.uint64(place)] > least)
    return np.int64(count)


@compiled
def _leave_out(sums: NDArray[Any], usable: NDArray[np.bool_]) -> None:
    for place in range(len(usable)):
        sums[place] = sums[place] if usable[place] else 0


@compiled
def _look_up(
    lists: Lists, terms: _Terms, row: Any, low: int, bound: float, rest: float, threshold: float
) -> tuple[float, int]:
    """The row's bound with the lists set aside, and in how many of them it is; -1 once it cannot pass."""
    more = 0
    for i in range(len(terms.sizes)):
        if not terms.looked_up[i]:
            continue
        rest -= terms.bound[i]
        first, last = terms.places_from[i] + terms.begin[i], terms.places_from[i] + terms.end[i]
        if terms.number[i] >= 0:
            place = _first_at_least(lists.long_places, first, last, row - low)
            found = place < last and lists.long_places[place] == row - low
        else:
            place = _first_at_least(lists.short_positions, first, last, row)
            found = place < last and lists.short_positions[place] == row
        if found:
            bound += terms.lifts[i] * lists.codes[place - terms.places_from[i] + terms.codes_from[i]]
            more += 1
        if bound + rest <= threshold:
            return -1.0, 0
    return bound, more


@compiled
def _raise(lowest: NDArray[np.float64], value: float) -> None:
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
    terms: _Terms,
    usable: NDArray[np.bool_],
    all_usable: bool,
    scale: tuple[int, float],
    lowest: NDArray[np.float64],
    threshold: float,
    sums: NDArray[Any],
) -> tuple[Positions, NDArray[np.float64], int]:
    """Rows whose bound is above the k-th best score, with their bounds, and how many they are.

    ``scale`` is the bits that count terms, and how far impacts may be below their bounds for other reasons than
    rounding; ``lowest`` a heap of scores that k rows reach.
    """
    bits, slack = scale
    touched, k = np.empty(WINDOW, np.uint16), len(lowest)
    highest, room = np.empty(WINDOW // _STEP, sums.dtype), np.empty(WINDOW // _STEP)
    primed = lowest[0] > 0
    rows, bounds, kept = np.empty(_ROOM, np.int64), np.empty(_ROOM), 0
    whole, coarsest = lists.codes.itemsize == 1, terms.lifts.max() + 255
    for window in range((len(usable) + WINDOW - 1) // WINDOW):
        total, size = _enter(lists, terms, window)
        if total <= threshold:
            continue
        low = window * WINDOW
        rest, size = _set_aside(terms, size, threshold)
        scanned = size * _DENSE >= WINDOW
        if scanned:
            _sum_all(lists, terms, low, sums)
            _take_highest(sums, highest)
            if not primed:
                primed = True
                if not all_usable:
                    _leave_out(sums, usable[low : low + WINDOW])
                    _take_highest(sums, highest)
                reached = _prime(highest, k, (bits, slack, coarsest if whole else 0.0), room)
                threshold = max(threshold, reached)
            count = _list_above(sums, highest, _least_sum(threshold - rest, bits, sums), touched)
        else:
            count = _sum_listing(lists, terms, low, sums, touched)
        for j in range(count):
            place = touched[j]
            value = sums[place]
            if not scanned:
                sums[place] = 0
            bound = float(np.int64(value) >> bits) if whole else float(value)
            row = low + np.int64(place)
            if bound + rest <= threshold or not usable[row]:
                continue
            held = np.int64(value) & ((1 << bits) - 1)
            if rest > 0:
                bound, more = _look_up(lists, terms, row, low, bound, rest, threshold)
                if bound <= threshold:
                    continue
                held += more
            if kept == len(rows):
                kept = _keep_above(rows, bounds, kept, threshold)
                if 2 * kept > len(rows):
                    rows, bounds = np.append(rows, rows), np.append(bounds, bounds)
            rows[kept], bounds[kept] = row, bound
            kept += 1
            reached = ((bound - held * coarsest) if whole else bound) * slack
            if reached > lowest[0]:
                _raise(lowest, reached)
                threshold = max(threshold, float(lowest[0]))
        if scanned:
            sums[:] = 0
    return rows, bounds, _keep_above(rows, bounds, kept, threshold)


@compiled
def search(
    lists: Lists,
    relative: NDArray[np.float64],
    formula: Formula,
    asked: Asked,
    usable: NDArray[np.bool_],
    drift: tuple[float, float, bool],
    best: tuple[NDArray[np.float32], Ids],
    scratch: tuple[NDArray[Any], NDArray[np.uint16]],
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
        Zeros: ``(WINDOW,)`` of int32 for codes in bytes, else float32; and one for each slot at least.
    """
    sums, wanted = scratch
    rise, fall, all_usable = drift
    k = best[0].shape[1]
    lowest, hits = np.empty(k), np.empty(_LANE, np.int64)
    for query in range(len(asked.starts) - 1):
        first, last = asked.starts[query], asked.starts[query + 1]
        if first == last:
            continue
        held = (asked.slots[first:last], asked.weights[first:last], asked.linear[first:last])
        scores, keys, base = best[0][query], best[1][query], asked.baseline[query]
        terms, unit, bits = _prepare(lists, asked, first, last, rise, sums)
        for i in range(k):
            lowest[i] = (np.float64(scores[i]) * _DOWN - base) * unit
        threshold = max(0.0, float(lowest[0]))
        if all_usable:
            threshold = max(threshold, float(_floor(lists, asked, terms, first, fall, k) * unit))
        slack = fall / rise * _DOWN
        if lists.codes.itemsize > 1:  # sums of float32 are rounded
            slack *= max(0.0, 1 - (last - first + 2) * 2.0**-22)
        scale = (bits, slack)
        rows, bounds, count = _candidates(lists, terms, usable, all_usable, scale, lowest, threshold, sums)
        _number(wanted, held[0])
        at_once = scores[k - 1] == -np.inf and count <= _AT_ONCE * k  # nothing there: a heap is made of all
        values = np.empty(count if at_once else 0, np.float32)
        for i in range(count):
            if i % _FETCHED == 0:
                hits[0] = _fetch(lists, rows[i : min(count, i + _FETCHED)])
            row = rows[i]
            if not at_once and bounds[i] <= (np.float64(scores[0]) * _DOWN - base) * unit:
                continue
            start, end = lists.row_starts[row], lists.row_starts[row + 1]
            row_slots, row_values = lists.row_slots[start:end], lists.row_values[start:end]
            value = _score_row(row_slots, row_values, held, relative[row], formula, wanted, hits)
            if at_once:
                values[i] = np.float32(value + base)
            else:
                _push(scores, keys, np.float32(value + base), lists.ids[row])
        if at_once:
            _fill(scores, keys, values, rows, lists.ids)
        _forget(wanted, held[0])


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
                    _sink(some[:size], theirs[:size], score, key)
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
