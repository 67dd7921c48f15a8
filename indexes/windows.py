"""A query's lists in one window of rows: summed, and the rows found that may be among the best; compiled.

Shapes: t terms of a query.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reperio.extras import compiled, load
from reperio.indexes.asked import Lists
from reperio.indexes.lists import WINDOW, Positions
from reperio.indexes.prefetch import prefetch

__all__ = [
    "DENSE",
    "GROUP",
    "RANGE",
    "Terms",
    "enter",
    "given",
    "least_sum",
    "leave_out",
    "list_above",
    "prime",
    "set_aside",
    "step",
    "sum_all",
    "sum_listing",
    "take_highest",
]

_LOOKUP = 8
"""How many times as long as all others together a list must be, to be looked up and not summed."""

DENSE = 12
"""A window with a posting for every 12 rows or more is scanned; else the rows touched are listed."""

_AHEAD = 256
"""Postings of a list that are asked for in advance."""

GROUP = 16
"""Rows of which the best is taken for a first threshold."""

_HALVINGS = 12
"""Of an interval, to come near the k-th of many values."""

RANGE = 65535
"""What a query's bounds sum to, in whole numbers of 16 bits: a window of sums stays in a core's nearest cache."""

_FRACTION = 16
"""Bits of a whole step behind the point."""

_BELOW_ONE = (1 << _FRACTION) - 1


class Terms(NamedTuple):
    """A query's lists while it goes through the windows; every array ``(t,)``."""

    lifts: NDArray[np.float64]  # what a code adds to a sum, and a little more where sums are rounded down
    number: Positions  # of the long list, else -1
    codes_from: Positions
    places_from: Positions
    sizes: Positions
    begin: Positions  # the window's postings, counted from the list's start
    end: Positions
    bound: NDArray[np.float64]
    looked_up: NDArray[np.bool_]


def step(lift: float, codes: NDArray[Any]) -> Any:
    """What each code of a list adds, not below ``lift``, for `given`: a whole number with a fraction, or a float."""
    return _compile_step(lift, codes)(lift, codes)


def given(by: Any, code: Any) -> Any:
    """What a code adds to a sum: rounded up, and so at least 1, where sums are whole."""
    return _compile_given(by, code)(by, code)


def _whole_step(lift: Any, codes: Any) -> Any:
    return np.int64(np.ceil(lift * (1 << _FRACTION)))


def _float_step(lift: Any, codes: Any) -> Any:
    return np.float32(lift)


def _rounded_up(by: Any, code: Any) -> Any:
    return (by * code + _BELOW_ONE) >> _FRACTION


def _product(by: Any, code: Any) -> Any:
    return by * code


def _compile_step(lift: Any, codes: Any) -> Callable[[Any, Any], Any]:
    return _whole_step if "uint8" in str(codes.dtype) else _float_step


def _compile_given(by: Any, code: Any) -> Callable[[Any, Any], Any]:
    return _rounded_up if "int64" in str(getattr(by, "dtype", by)) else _product


_overload = load("numba.extending", extra="fast").overload
_overload(step, strict=False)(_compile_step)
_overload(given, strict=False)(_compile_given)


@compiled
def enter(lists: Lists, terms: Terms, window: int) -> tuple[float, int]:
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
def set_aside(terms: Terms, size: int, threshold: float) -> tuple[float, int]:
    """Choose the lists to be looked up; gives the sum of their bounds and what is left to be summed."""
    rest = 0.0
    terms.looked_up[:] = False
    if threshold <= 0 or size < WINDOW // DENSE:
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
def sum_all(lists: Lists, terms: Terms, low: int, sums: NDArray[Any]) -> None:
    for i in range(len(terms.sizes)):
        if i + 1 < len(terms.sizes):
            _announce(lists, terms, i + 1)
        if terms.looked_up[i] or terms.begin[i] == terms.end[i]:
            continue
        by = step(terms.lifts[i], lists.codes)
        codes = lists.codes[terms.codes_from[i] + terms.begin[i] : terms.codes_from[i] + terms.end[i]]
        if terms.number[i] >= 0:
            places = lists.long_places[terms.places_from[i] + terms.begin[i] : terms.places_from[i] + terms.end[i]]
            for j in range(len(codes)):
                sums[places[j]] += given(by, codes[j])
        else:
            rows = lists.short_positions[terms.places_from[i] + terms.begin[i] : terms.places_from[i] + terms.end[i]]
            for j in range(len(codes)):
                sums[rows[j] - np.uint32(low)] += given(by, codes[j])


@compiled
def _announce(lists: Lists, terms: Terms, i: int) -> None:
    """Have the beginning of a list's postings brought, which no pattern foretells; then the machine sees one."""
    first, last = terms.begin[i], min(terms.end[i], terms.begin[i] + _AHEAD)
    for j in range(first, last, 64):
        prefetch(lists.codes, terms.codes_from[i] + j)
    if terms.number[i] >= 0:
        for j in range(first, last, 32):
            prefetch(lists.long_places, terms.places_from[i] + j)
    else:
        for j in range(first, last, 16):
            prefetch(lists.short_positions, terms.places_from[i] + j)


@compiled
def sum_listing(lists: Lists, terms: Terms, low: int, sums: NDArray[Any], touched: NDArray[np.uint16]) -> int:
    """As `sum_all`, and list the places touched."""
    count = 0
    for i in range(len(terms.sizes)):
        if terms.looked_up[i]:
            continue
        by, is_long = step(terms.lifts[i], lists.codes), terms.number[i] >= 0
        for j in range(terms.begin[i], terms.end[i]):
            place = (
                np.uint64(lists.long_places[terms.places_from[i] + j])
                if is_long
                else np.uint64(lists.short_positions[terms.places_from[i] + j] - np.uint32(low))
            )
            if sums[place] == 0:
                touched[count] = place
                count += 1
            sums[place] += given(by, lists.codes[terms.codes_from[i] + j])
    return count


@compiled
def least_sum(need: float, sums: NDArray[Any]) -> Any:
    """What sums of rows that need so much are above."""
    return sums.dtype.type(min(max(need, 0.0), RANGE))


@compiled
def take_highest(sums: NDArray[Any], highest: NDArray[Any]) -> None:
    """The highest sums of groups of 16 rows; those of a group are far apart, so that many maxima are taken at once."""
    groups = len(highest)
    for i in range(groups):
        highest[np.uint64(i)] = sums[np.uint64(i)]
    for start in range(groups, len(sums), groups):
        for i in range(groups):
            other, most = sums[np.uint64(start + i)], highest[np.uint64(i)]
            highest[np.uint64(i)] = other if other > most else most


@compiled
def prime(highest: NDArray[Any], k: int, scale: tuple[float, float], reached: NDArray[np.float64]) -> float:
    """About what the k-th highest group reaches, and not more; 0 if there are fewer."""
    slack, loose = scale
    most = 0.0
    for i in range(len(highest)):
        reached[np.uint64(i)] = highest[np.uint64(i)] - loose
        most = max(most, reached[np.uint64(i)])
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
    for j in range(GROUP):  # without a branch or a running maximum: many at a time
        above |= values[np.uint64(start + j)] > least
    return above > 0


@compiled
def list_above(sums: NDArray[Any], highest: NDArray[Any], least: Any, touched: NDArray[np.uint16]) -> int:
    count = np.uint64(0)
    for first in range(0, len(highest), GROUP):
        if not _any_above(highest, first, least):
            continue
        for group in range(first, first + GROUP):
            if highest[group] > least:
                for place in range(group, len(sums), len(highest)):
                    touched[count] = place
                    count += np.uint64(sums[np.uint64(place)] > least)
    return int(count)


@compiled
def leave_out(sums: NDArray[Any], usable: NDArray[np.bool_]) -> None:
    for place in range(len(usable)):
        sums[place] = sums[place] if usable[place] else 0
