"""Which rows are worth reading: those near a query's vectors, judged by the centroids of theirs alone.

Santhanam et al.: PLAID: An Efficient Engine for Late Interaction Retrieval. CIKM 2022.

Shapes: m vectors of the query, d dimensions, C centroids, n rows of a segment, r rows looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense
from reperio.extras import installed
from reperio.indexes.multivector_segments import CodedSegment
from reperio.indexes.rows import Positions

__all__ = ["Mask", "shortlist"]

Mask = NDArray[np.bool_]

_SCANNED = 4096
"""So few rows are all judged by their centroids: as quick as looking for those to be judged."""

_GATHERED = 1 << 10
"""Rows judged at a time without compiled code."""


def shortlist(
    query: Dense,
    segments: Sequence[CodedSegment],
    masks: Sequence[Mask],
    *,
    centroids: Dense,
    probes: int,
    count: int,
) -> list[Positions]:
    """The ``count`` best rows by their centroids, and those equal to the last: their positions in each segment.

    Parameters
    ----------
    query
        ``(m, d)``.
    segments, masks
        Where to look, and which rows may be returned, ``(n,)``.
    centroids
        ``(C, d)``.
    probes
        How many of the nearest centroids of each query vector to look near. A filter that keeps one row in ten looks
        near ten times as many; where fewer than ``count`` rows are found, every row is judged.
    """
    near = np.ascontiguousarray(centroids @ query.T)
    rows = _near(near, segments, masks, probes=probes, count=count)
    scores = [_interact(near, segment, some) for segment, some in zip(segments, rows, strict=True)]
    every = np.concatenate(scores)
    if len(every) <= count:
        return rows
    floor = np.partition(every, len(every) - count)[len(every) - count]
    return [some[score >= floor] for some, score in zip(rows, scores, strict=True)]


def _near(
    near: Dense, segments: Sequence[CodedSegment], masks: Sequence[Mask], *, probes: int, count: int
) -> list[Positions]:
    """Positions of the rows to be judged, in each segment."""
    held = sum(int(np.count_nonzero(mask)) for mask in masks)
    if held > max(count, _SCANNED):
        probes = math.ceil(probes * sum(map(len, segments)) / held)
        if probes < len(near):
            probed = _closest(near, probes)
            found = [np.flatnonzero(s.listed(probed) & mask) for s, mask in zip(segments, masks, strict=True)]
            if sum(map(len, found)) >= count:
                return found
    return [np.flatnonzero(mask) for mask in masks]


def _closest(near: Dense, count: int) -> Mask:
    """Which centroids are among the ``count`` nearest of any query vector, ``(C,)``."""
    if installed("numba"):
        from reperio.indexes.maxsim_compiled import closest

        return closest(near, count)
    out = np.zeros(len(near), dtype=np.bool_)
    out[np.argpartition(near, len(near) - count, axis=0)[len(near) - count :]] = True
    return out


def _interact(near: Dense, segment: CodedSegment, rows: Positions) -> NDArray[np.float32]:
    """MaxSim with each row, its centroids in place of its vectors, ``(r,)``."""
    if installed("numba"):
        from reperio.indexes.maxsim_compiled import interact

        return interact(near, segment.centroids, segment.offsets, rows)
    out = np.empty(len(rows), dtype=np.float32)
    for start, stop in pairwise([*range(0, len(rows), _GATHERED), len(rows)]):
        offsets, (nearest,) = segment.gather(rows[start:stop], [segment.centroids])
        out[start:stop] = np.maximum.reduceat(near[nearest], offsets[:-1], axis=0).sum(axis=1)
    return out
