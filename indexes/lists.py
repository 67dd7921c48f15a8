"""Making posting lists in numpy: for small segments, and where numba is not installed.

The same functions as in `reperio.indexes.inverting`, with the same results. Shapes: V slots, p postings, n rows,
L long lists with s postings, w windows.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reperio.indexes.weighting import Formula

__all__ = ["LEAST", "RANKS", "UP", "WINDOW", "Cut", "cut", "encode", "invert"]

Positions: TypeAlias = NDArray[np.int64]

WINDOW = 1 << 14
"""Rows of a window: their sums, 64 KB, stay in a core's own cache, and a place in it takes two bytes."""

RANKS = (10, 100, 1000)
"""The codes at these ranks of a long list are kept: a first bound of what the k-th best row scores."""

LEAST = np.finfo(np.float32).smallest_normal
"""Least scale: lower numbers are rounded by more than a bound is lifted."""

UP = 1 + 2**-20
"""Lifts a bound above what float32 rounds off."""


class Cut(NamedTuple):
    """Long lists, cut at windows; see `reperio.indexes.postings.Segment`."""

    places: NDArray[np.uint16]
    cuts: NDArray[np.uint32]
    peaks: NDArray[Any]
    ranked: NDArray[Any]


def invert(
    row_starts: Positions, row_slots: NDArray[np.int32], row_values: NDArray[Any], slots: int
) -> tuple[Positions, NDArray[np.uint32], NDArray[Any]]:
    """Where each slot's postings start, ``(V + 1,)``, and the postings' rows and values, rows ascending."""
    starts = np.zeros(slots + 1, dtype=np.int64)
    np.cumsum(np.bincount(row_slots, minlength=slots), out=starts[1:])
    # Slot above, place below, in one integer: sorting it is a stable argsort, several times as fast.
    origin = np.sort(row_slots.astype(np.int64) << 32 | np.arange(len(row_slots))) & 0xFFFFFFFF
    owner = np.repeat(np.arange(len(row_starts) - 1, dtype=np.uint32), np.diff(row_starts))
    return starts, owner[origin], row_values[origin]


def impact(values: NDArray[Any], relative: NDArray[np.float64], formula: Formula) -> NDArray[np.float64]:
    """What counts in rows of this relative length weigh, as a factor of their term's weight."""
    alpha, beta, gamma, power = formula
    counts = values.astype(np.float64)
    below: NDArray[np.float64] = gamma * relative
    below += counts
    above = alpha * counts
    if beta:
        above += beta * relative
    np.divide(above, below, out=above)
    return above * counts if power else above


def encode(
    starts: Positions,
    positions: NDArray[np.uint32],
    values: NDArray[Any],
    relative: NDArray[np.float64],
    linear: NDArray[np.bool_],
    formula: Formula,
    top: int,
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Impacts as codes from 1 to ``top``, in units of a scale for each slot, rounded up; in float32 if top is 0.

    Where a slot is ``linear``, its values are impacts.
    """
    sizes = np.diff(starts)
    impacts = values.astype(np.float64)
    counted = ~np.repeat(linear, sizes)
    if counted.any():
        impacts[counted] = impact(values[counted], relative[positions[counted]], formula)
    impacts *= UP
    if not top:
        return np.ones(len(sizes), dtype=np.float32), impacts.astype(np.float32)
    highest = np.maximum.reduceat(impacts, starts[:-1]) if len(sizes) else np.empty(0)
    scales = np.maximum((highest * (UP / top)).astype(np.float32), LEAST)
    codes = np.ceil(impacts / np.repeat(scales.astype(np.float64), sizes))
    return scales, np.clip(codes, 1, top).astype(np.uint8)


def cut(
    starts: Positions, positions: NDArray[np.uint32], codes: NDArray[Any], long_slots: Positions, windows: int
) -> Cut:
    """The lists of ``long_slots``, cut at windows of `WINDOW` rows."""
    sizes = np.diff(starts)[long_slots]
    places = np.empty(int(sizes.sum()), dtype=np.uint16)
    cuts = np.empty((len(long_slots), windows + 1), dtype=np.uint32)
    peaks = np.zeros((len(long_slots), windows), dtype=codes.dtype)
    ranked = np.zeros((len(long_slots), len(RANKS)), dtype=codes.dtype)
    edges = np.arange(windows + 1) * WINDOW
    done = 0
    for number, slot in enumerate(long_slots.tolist()):
        part = slice(int(starts[slot]), int(starts[slot + 1]))
        rows, values = positions[part], codes[part]
        places[done : done + len(rows)] = rows % WINDOW
        done += len(rows)
        cuts[number] = np.searchsorted(rows, edges)
        np.maximum.at(peaks[number], rows // WINDOW, values)
        best = np.sort(values)[::-1]
        for column, rank in enumerate(RANKS):
            ranked[number, column] = best[rank - 1] if rank <= len(best) else 0
    return Cut(places, cuts, peaks, ranked)
