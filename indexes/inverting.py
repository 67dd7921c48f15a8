"""Making posting lists, compiled: as `reperio.indexes.lists`, in linear time and little memory.

Shapes: V slots, p postings, n rows, L long lists, w windows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio.extras import compiled
from reperio.indexes.lists import LEAST, RANKS, UP, WINDOW, Cut, Positions
from reperio.indexes.weighting import Formula

__all__ = ["cut", "encode", "factorise", "impact", "invert"]

_GOLDEN = 0x1E3779B97F4A7C15
"""Spreads columns over a table; Knuth: The Art of Computer Programming 3, 6.4."""


@compiled
def factorise(columns: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Distinct columns, ascending, and where each column stands among them; none is negative."""
    size = 1 << 16
    table, number = np.full(size, -1, np.int64), np.empty(size, np.int32)
    found = np.empty(size, np.int64)
    slots, count = np.empty(len(columns), np.int32), 0
    for i in range(len(columns)):
        column = columns[i]
        place = (column * _GOLDEN >> 20) & (size - 1)
        while table[place] != column and table[place] >= 0:
            place = (place + 1) & (size - 1)
        if table[place] < 0:
            table[place], number[place], found[count] = column, count, column
            count += 1
            if 2 * count > size:  # half full: twice as large
                size *= 2
                table, number = np.full(size, -1, np.int64), np.empty(size, np.int32)
                found = np.append(found, np.empty(size - len(found), np.int64))
                for j in range(count):
                    other = (found[j] * _GOLDEN >> 20) & (size - 1)
                    while table[other] >= 0:
                        other = (other + 1) & (size - 1)
                    table[other], number[other] = found[j], j
            slots[i] = count - 1
        else:
            slots[i] = number[place]
    order = np.argsort(found[:count])
    rank = np.empty(count, np.int32)
    for j in range(count):
        rank[order[j]] = j
    for i in range(len(columns)):
        slots[i] = rank[slots[i]]
    return found[:count][order], slots


@compiled
def invert(
    row_starts: Positions, row_slots: NDArray[np.int32], row_values: NDArray[Any], slots: int
) -> tuple[Positions, NDArray[np.uint32], NDArray[Any]]:
    """As in `reperio.indexes.lists`: a counting sort."""
    starts = np.zeros(slots + 1, np.int64)
    for slot in row_slots:
        starts[slot + 1] += 1
    for slot in range(slots):
        starts[slot + 1] += starts[slot]
    filled = starts[:-1].copy()
    positions = np.empty(len(row_slots), np.uint32)
    values = np.empty(len(row_slots), row_values.dtype)
    for row in range(len(row_starts) - 1):
        for place in range(row_starts[row], row_starts[row + 1]):
            slot = row_slots[place]
            positions[filled[slot]] = row
            values[filled[slot]] = row_values[place]
            filled[slot] += 1
    return starts, positions, values


@compiled
def impact(value: Any, relative: Any, linear: Any, formula: Formula) -> Any:
    if linear:
        return value
    out = (formula.alpha * value + formula.beta * relative) / (value + formula.gamma * relative)
    return out * value if formula.power else out


@compiled
def encode(
    starts: Positions,
    positions: NDArray[np.uint32],
    values: NDArray[Any],
    relative: NDArray[np.float64],
    linear: NDArray[np.bool_],
    formula: Formula,
    codes: NDArray[Any],
) -> NDArray[np.float32]:
    """Fill ``codes`` as `reperio.indexes.lists.encode` does, and give the scales."""
    top = 255 if codes.itemsize == 1 else 0
    scales = np.ones(len(starts) - 1, np.float32)
    for slot in range(len(starts) - 1):
        first, last = starts[slot], starts[slot + 1]
        if top:
            highest = 0.0
            for place in range(first, last):
                value = np.float64(values[place])
                highest = max(highest, impact(value, relative[positions[place]], linear[slot], formula))
            scales[slot] = max(np.float32(highest * UP * (UP / top)), LEAST)
        for place in range(first, last):
            value = np.float64(values[place])
            lifted = impact(value, relative[positions[place]], linear[slot], formula) * UP
            if top:
                codes[place] = max(1, min(top, int(np.ceil(lifted / np.float64(scales[slot])))))
            else:
                codes[place] = lifted
    return scales


@compiled
def cut(
    starts: Positions, positions: NDArray[np.uint32], codes: NDArray[Any], long_slots: Positions, windows: int
) -> Cut:
    """As in `reperio.indexes.lists`."""
    total = 0
    for slot in long_slots:
        total += starts[slot + 1] - starts[slot]
    places = np.empty(total, np.uint16)
    cuts = np.zeros((len(long_slots), windows + 1), np.uint32)
    peaks = np.zeros((len(long_slots), windows), codes.dtype)
    ranked = np.zeros((len(long_slots), len(RANKS)), codes.dtype)
    done = 0
    for number in range(len(long_slots)):
        first, last = starts[long_slots[number]], starts[long_slots[number] + 1]
        place = first
        for window in range(windows):
            cuts[number, window] = place - first
            while place < last and positions[place] < (window + 1) * WINDOW:
                places[done] = positions[place] - window * WINDOW
                peaks[number, window] = max(peaks[number, window], codes[place])
                done += 1
                place += 1
        cuts[number, windows] = last - first
        best = np.sort(codes[first:last])
        for column in range(len(RANKS)):
            if RANKS[column] <= len(best):
                ranked[number, column] = best[len(best) - RANKS[column]]
    return Cut(places, cuts, peaks, ranked)
