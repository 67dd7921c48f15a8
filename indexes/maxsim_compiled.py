"""The inner loops of late interaction, compiled: import this only where numba is installed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense
from reperio.extras import compiled

__all__ = ["closest", "decode", "encode", "interact", "summed_maxima"]


@compiled
def summed_maxima(products: Dense, documents: NDArray[np.int64], queries: NDArray[np.int64]) -> Dense:
    """See `reperio.indexes.maxsim`."""
    width = products.shape[1]
    out = np.empty((len(queries) - 1, len(documents) - 1), dtype=np.float32)
    best = np.empty(width, dtype=np.float32)
    for i in range(len(documents) - 1):
        best[:] = products[documents[i]]
        for t in range(documents[i] + 1, documents[i + 1]):
            for j in range(width):
                best[j] = max(best[j], products[t, j])
        for q in range(len(queries) - 1):
            total = np.float32(0)
            for j in range(queries[q], queries[q + 1]):
                total += best[j]
            out[q, i] = total
    return out


@compiled
def encode(vectors: Dense, nearest: NDArray[np.int32], centroids: Dense, cuts: Dense, bits: int) -> NDArray[np.uint8]:
    """See `reperio.indexes.residual`: binary search for the level of each dimension."""
    each, dim = 8 // bits, vectors.shape[1]
    out = np.zeros((len(vectors), (dim + each - 1) // each), dtype=np.uint8)
    for t in range(len(vectors)):
        centre = nearest[t]
        for j in range(dim):
            left = vectors[t, j] - centroids[centre, j]
            level, step = 0, 1 << bits >> 1
            while step:
                if cuts[j, level + step - 1] < left:
                    level += step
                step >>= 1
            out[t, j // each] |= np.uint8(level << bits * (j % each))
    return out


@compiled
def decode(
    nearest: NDArray[np.int32], residuals: NDArray[np.uint8], centroids: Dense, levels: Dense, bits: int
) -> Dense:
    """See `reperio.indexes.residual`."""
    each, dim = 8 // bits, centroids.shape[1]
    mask = (1 << bits) - 1
    out = np.empty((len(nearest), dim), dtype=np.float32)
    for t in range(len(nearest)):
        centre = nearest[t]
        for b in range(residuals.shape[1]):
            code = residuals[t, b]
            for i in range(each):
                j = b * each + i
                if j < dim:
                    out[t, j] = centroids[centre, j] + levels[j, code >> bits * i & mask]
    return out


@compiled
def closest(near: Dense, count: int) -> NDArray[np.bool_]:
    """Which rows of ``near``, ``(C, m)``, are among the ``count`` highest of any column."""
    rows, width = near.shape
    best = np.full((width, count), -np.inf, dtype=np.float32)
    place = np.zeros((width, count), dtype=np.int64)
    for c in range(rows):
        for j in range(width):
            value = near[c, j]
            if value > best[j, 0]:  # the lowest kept stands first
                i = 0
                while i + 1 < count and best[j, i + 1] < value:
                    best[j, i], place[j, i] = best[j, i + 1], place[j, i + 1]
                    i += 1
                best[j, i], place[j, i] = value, c
    out = np.zeros(rows, dtype=np.bool_)
    for j in range(width):
        for i in range(count):
            out[place[j, i]] = True
    return out


@compiled
def interact(
    near: Dense, centroids: NDArray[np.int32], offsets: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """MaxSim of one query with documents, each vector stood for by its centroid."""
    width = near.shape[1]
    out = np.empty(len(rows), dtype=np.float32)
    best = np.empty(width, dtype=np.float32)
    for i in range(len(rows)):
        row = rows[i]
        best[:] = near[centroids[offsets[row]]]
        for t in range(offsets[row] + 1, offsets[row + 1]):
            centre = centroids[t]
            for j in range(width):
                best[j] = max(best[j], near[centre, j])
        total = np.float32(0)
        for j in range(width):
            total += best[j]
        out[i] = total
    return out
