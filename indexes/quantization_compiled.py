"""The inner loops of a scan over codes, compiled: import this only where numba is installed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reperio.extras import compiled

__all__ = ["differing_bits", "integer_products"]

_PART = 1 << 9
"""Codes compared with every query before the next are read: they stay in the cache."""


@compiled
def integer_products(codes: NDArray[np.int8], weights: NDArray[np.int16]) -> NDArray[np.int32]:
    """Inner products of weights, ``(q, d)``, and codes, ``(n, d)``: ``(q, n)``; every sum must fit 32 bits."""
    out = np.empty((len(weights), len(codes)), dtype=np.int32)
    for start in range(0, len(codes), _PART):
        for j in range(len(weights)):
            for i in range(start, min(start + _PART, len(codes))):
                total = np.int32(0)
                for t in range(codes.shape[1]):
                    total += np.int32(codes[i, t]) * np.int32(weights[j, t])
                out[j, i] = total
    return out


@compiled
def differing_bits(queries: NDArray[np.uint64], codes: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """See `reperio.indexes.quantization.hamming`. Bits are counted by twos, fours, eights, then added up."""
    twos, fours = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
    eights, bytes_ = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)
    out = np.empty((len(queries), len(codes)), dtype=np.uint16)
    for start in range(0, len(codes), _PART):
        for j in range(len(queries)):
            for i in range(start, min(start + _PART, len(codes))):
                total = np.uint64(0)
                for t in range(codes.shape[1]):
                    word = codes[i, t] ^ queries[j, t]
                    word -= (word >> np.uint64(1)) & twos
                    word = (word & fours) + ((word >> np.uint64(2)) & fours)
                    word = (word + (word >> np.uint64(4))) & eights
                    total += (word * bytes_) >> np.uint64(56)
                out[j, i] = total
    return out
