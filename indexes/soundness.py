"""Whether the arrays of a segment that was read can be those of one: compiled code does not look where it reads.

Shapes: see `reperio.indexes.postings.Segment`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from reperio.indexes.lists import RANKS, WINDOW
from reperio.indexes.postings import Precision, Segment
from reperio.indexes.stored import ascends, offsets_of, within

__all__ = ["check_segment"]

_MOST = 2.0**24
"""Highest value of a row."""


def check_segment(segment: Segment, dim: int, precision: Precision) -> None:
    """Raise ValueError unless every array has the shape and the values that a segment of so many columns can have.

    Takes linear time, about that of the checksums.
    """
    _check_shapes(segment, precision)
    _check_rows(segment, dim)
    _check_lists(segment)
    _check_long(segment)


def _check_shapes(segment: Segment, precision: Precision) -> None:
    n, terms, postings = len(segment.ids), len(segment.terms), len(segment.codes)
    many, places = len(segment.cuts), len(segment.long_places)
    windows = max(1, -(-n // WINDOW))
    codes: Any = np.dtype(precision)
    values: Any = segment.row_values.dtype
    wanted: dict[str, tuple[Any, tuple[int, ...]]] = {
        "ids": (np.int64, (n,)),
        "lengths": (np.float32, (n,)),
        "alive": (np.bool_, (n,)),
        "average": (np.float64, (1,)),
        "terms": (np.int64, (terms,)),
        "frequencies": (np.int64, (terms,)),
        "scales": (np.float32, (terms,)),
        "starts": (np.int64, (terms + 1,)),
        "codes": (codes, (postings,)),
        "long_before": (np.int32, (terms + 1,)),
        "short_positions": (np.uint32, (postings - places,)),
        "long_starts": (np.int64, (many + 1,)),
        "long_places": (np.uint16, (places,)),
        "cuts": (np.uint32, (many, windows + 1)),
        "peaks": (codes, (many, windows)),
        "ranked": (codes, (many, len(RANKS))),
        "row_starts": (np.int64, (n + 1,)),
        "row_slots": (np.int32, (postings,)),
        "row_values": (values, (postings,)),
    }
    for name, (dtype, shape) in wanted.items():
        array = getattr(segment, name)
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")
    if not n or values not in (np.uint8, np.float32):
        raise ValueError(f"there are {n} rows, of {values}")


def _check_rows(segment: Segment, dim: int) -> None:
    sound = {
        "ids": within(segment.ids[:1], 0, np.inf) and ascends(segment.ids),
        "lengths": within(segment.lengths, 0, np.inf),
        "average": within(segment.average, 0, np.inf),
        "terms": within(segment.terms[:1], 0, np.inf) and within(segment.terms[-1:], 0, dim) and ascends(segment.terms),
        "row_starts": offsets_of(segment.row_starts, len(segment.row_slots)),
        "row_slots": within(segment.row_slots, 0, len(segment.terms)),
        "row_values": within(segment.row_values, 0, np.float64(_MOST + 1)),
    }
    _refuse(sound)
    _refuse({"row_slots": ascends(segment.row_slots, segment.row_starts)})


def _check_lists(segment: Segment) -> None:
    sizes = np.diff(segment.starts)
    before = segment.long_before
    is_long = np.diff(before)
    sound = {
        "starts": offsets_of(segment.starts, len(segment.codes)),
        "scales": within(segment.scales, 0, np.inf),
        "frequencies": bool(((segment.frequencies >= 0) & (segment.frequencies <= sizes)).all()),
        "codes": within(segment.codes, 0, np.inf),
        "long_before": before[0] == 0 and before[-1] == len(segment.cuts) and within(is_long, 0, 2),
        "long_starts": offsets_of(segment.long_starts, len(segment.long_places)),
        "short_positions": within(segment.short_positions, 0, len(segment)),
    }
    _refuse(sound)
    chosen = is_long == 1
    short = np.concatenate([[0], np.cumsum(np.where(chosen, 0, sizes))])
    sound = {
        "long_starts": np.array_equal(np.diff(segment.long_starts), sizes[chosen]),
        "short_positions": ascends(segment.short_positions, short),
    }
    _refuse(sound)


def _check_long(segment: Segment) -> None:
    """Each long list is cut where its windows begin, and its places lie in them."""
    cuts = segment.cuts.astype(np.int64)
    sizes = np.diff(segment.long_starts)
    last = len(segment) - (cuts.shape[1] - 2) * WINDOW
    whole = bool((cuts[:, 0] == 0).all() and (cuts[:, -1] == sizes).all() and (cuts[:, 1:] >= cuts[:, :-1]).all())
    _refuse({"cuts": whole, "peaks": within(segment.peaks, 0, np.inf), "ranked": within(segment.ranked, 0, np.inf)})
    windows = np.sort((segment.long_starts[:-1, None] + cuts[:, :-1]).ravel())
    sound = within(segment.long_places, 0, WINDOW) and ascends(segment.long_places, windows)
    for start, cut, size in zip(segment.long_starts[:-1].tolist(), cuts[:, -2].tolist(), sizes.tolist(), strict=True):
        sound = sound and within(segment.long_places[start + cut : start + size], 0, last)
    _refuse({"long_places": sound})


def _refuse(sound: dict[str, Any]) -> None:
    for name, well in sound.items():
        if not well:
            raise ValueError(f"{name} holds what it cannot")
