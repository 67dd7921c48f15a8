"""Bits packed into bytes, and their Hamming distance.

Shapes: q queries, n codes of b bytes, k results, p pairs.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense
from reperio.extras import load
from reperio.indexes.rows import Positions

__all__ = ["Codes", "apart", "encoded", "nearest"]

Codes: TypeAlias = NDArray[np.uint8]
"""Codes, ``(n, b)``: the first bit of a row is the highest of its first byte; the last byte is filled with zeros."""

Distances: TypeAlias = NDArray[np.int64]

_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1).astype(np.int64)
"""Bits that are set in each byte."""


def encoded(vectors: Dense, cuts: Dense | None) -> Codes:
    """A bit for each component: whether it is above its cut, or above zero."""
    return np.packbits(vectors > (0 if cuts is None else cuts), axis=1)


def apart(left: Codes, right: Codes) -> Distances:
    """Distance of ``left[i]`` from ``right[i]``, ``(p,)``."""
    out: Distances = _ONES[left ^ right].sum(axis=1)
    return out


def nearest(queries: Codes, held: Codes, k: int) -> tuple[Positions, Distances]:
    """Places and distances of the nearest codes, ``(q, min(k, n))``; of several tied for the last place, the first."""
    faiss, k = load("faiss", extra="faiss"), min(k, len(held))
    if not k or not len(queries):
        return np.empty((len(queries), k), dtype=np.int64), np.empty((len(queries), k), dtype=np.int64)
    # It counts codes by distance in the order in which they stand, so ties are settled by place.
    distances, places = faiss.knn_hamming(queries, np.ascontiguousarray(held), k, variant="mc")
    return places, distances.astype(np.int64)
