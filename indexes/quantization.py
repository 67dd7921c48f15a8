"""Compact codes for vectors: half precision, bytes, signs.

Shapes: q queries, n rows, d dimensions, m pairs of a query and a row, w words of 64 signs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense
from reperio.errors import InvalidInput
from reperio.extras import installed
from reperio.indexes.flat import Metric, score_pairs, squared
from reperio.indexes.rows import Positions
from reperio.indexes.stored import finite, read_array

__all__ = [
    "CODECS",
    "BinaryCodec",
    "Codec",
    "Codes",
    "Float16Codec",
    "Int8Codec",
    "Quantization",
    "check_fit",
    "hamming",
]

Quantization: TypeAlias = Literal["float16", "int8", "binary"]
"""What each dimension is kept in: 2 bytes, 1 byte, 1 bit."""

Codes: TypeAlias = NDArray[Any]
"""A row for each vector, of the dtype and width that its codec chooses."""

Floats: TypeAlias = NDArray[np.float32]

_PART = 1 << 11
"""Rows decoded at a time: 3 MB at 384 dimensions, so that they are still in the cache when they are multiplied."""

_EPS = float(np.finfo(np.float32).eps)
_LARGEST_HALF = 65504
_RANGES = "ranges.npy"

_ONES = np.array([value.bit_count() for value in range(1 << 16)], dtype=np.uint8)


class Codec(ABC):
    """How vectors become codes, each by itself: a code never depends on the rows beside it.

    Parameters
    ----------
    dim
        d.
    """

    decodes: ClassVar[bool] = True
    """Whether it compares queries in full precision with decoded rows; if not, codes with codes."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    @classmethod
    def fit(cls, sample: Dense) -> Self:
        """Learn what is to be learnt from vectors, ``(n, d)``."""
        return cls(sample.shape[1])

    @property
    def learnt(self) -> dict[str, Floats]:
        """Arrays to keep, by the names of their files."""
        return {}

    @classmethod
    def read(cls, folder: Path, dim: int) -> Self:
        """A codec that has learnt what is in a folder; ``dim`` is d."""
        return cls(dim)

    def takes(self, codes: Codes) -> bool:
        """Whether arrays of the right shape and dtype are codes."""
        return True

    @abstractmethod
    def encode(self, vectors: Dense) -> Codes:
        """Codes of vectors, ``(n, d)``."""

    @abstractmethod
    def decode(self, codes: Codes) -> Dense:
        """The vectors that codes stand for, ``(n, d)``."""

    @abstractmethod
    def products(self, queries: Dense, codes: Codes) -> tuple[Dense, Floats]:
        """Inner products of queries and codes, ``(q, n)``, each off by ``(q,)`` at the most."""

    def score(
        self, queries: Dense, asked: Positions, codes: Codes, rows: Positions, *, metric: Metric
    ) -> NDArray[np.float32]:
        """Score of query ``asked[i]`` with ``codes[rows[i]]``, ``(m,)``: it depends on nothing else."""
        return score_pairs(queries, asked, lambda part: self.decode(codes[part]), rows, metric=metric)


class Float16Codec(Codec):
    """IEEE half precision, rounded to the nearest."""

    def takes(self, codes: Codes) -> bool:
        """Whether they are finite."""
        bits = np.ascontiguousarray(codes).view(np.uint16)
        parts = range(0, len(bits), _PART)
        return not any(((bits[at : at + _PART] & 0x7C00) == 0x7C00).any() for at in parts)

    def encode(self, vectors: Dense) -> Codes:
        """``(n, d)``, float16."""
        return vectors.astype(np.float16)

    def decode(self, codes: Codes) -> Dense:
        """``(n, d)``, the same numbers."""
        # The bits moved to where single precision has them: numpy's own conversion takes five times as long.
        bits = codes.view(np.int16).astype(np.int32)
        bits <<= 13
        bits &= np.int32(-0x80000000 + 0x0FFFE000)
        out: Dense = bits.view(np.float32)
        out *= np.float32(2.0**112)
        return out

    def products(self, queries: Dense, codes: Codes) -> tuple[Dense, Floats]:
        """With the rows decoded, a part at a time."""
        out, largest = np.empty((len(queries), len(codes)), dtype=np.float32), 0.0
        for start in range(0, len(codes), _PART):
            rows = self.decode(codes[start : start + _PART])
            out[:, start : start + _PART] = queries @ rows.T
            largest = max(largest, float(squared(rows).max()))
        return out, _lengths(queries) * np.float32(_EPS * (self.dim + 2) * np.sqrt(largest))


class Int8Codec(Codec):
    """A byte for each dimension: in which of 256 equal steps between a lowest and a highest value it lies.

    Parameters
    ----------
    ranges
        Lowest and highest value of each dimension, ``(2, d)``. What lies beyond is clipped.

    Notes
    -----
    The codes are those of ``sentence_transformers.quantize_embeddings(..., "int8", ranges=ranges)``. They decode to
    the middle of their step, not to its lower end, which halves the largest error.
    """

    def __init__(self, ranges: Dense) -> None:
        super().__init__(ranges.shape[1])
        self.ranges = ranges
        widths = ranges[1] - ranges[0]
        steps = widths / np.float32(255)
        self._steps: Floats = np.where(steps == 0, np.float32(1), steps)
        # A dimension that was always the same decodes to that.
        self._middles: Floats = ranges[0] + np.where(steps == 0, np.float32(0), steps / np.float32(2))

    @classmethod
    def fit(cls, sample: Dense) -> Self:
        """Learn the ranges from vectors, ``(n, d)``."""
        return cls(np.stack([sample.min(axis=0), sample.max(axis=0)]))

    @property
    def learnt(self) -> dict[str, Floats]:
        """The ranges."""
        return {_RANGES: self.ranges}

    @classmethod
    def read(cls, folder: Path, dim: int) -> Self:
        """With the ranges that are in a folder."""
        ranges = read_array(folder / _RANGES, np.float32, (2, dim))
        if not finite(ranges) or (ranges[0] > ranges[1]).any():
            raise ValueError(f"{_RANGES} is no lowest and highest value of each dimension")
        return cls(ranges)

    def clipped(self, vectors: Dense) -> int:
        """How many numbers of these vectors lie beyond the ranges."""
        return int(np.count_nonzero((vectors < self.ranges[0]) | (vectors > self.ranges[1])))

    def encode(self, vectors: Dense) -> Codes:
        """``(n, d)``, int8."""
        levels: Floats = np.clip(np.floor((vectors - self.ranges[0]) / self._steps), 0, 255)
        return (levels - np.float32(128)).astype(np.int8)

    def decode(self, codes: Codes) -> Dense:
        """``(n, d)``, the middle of each step."""
        out = codes.astype(np.float32)
        out += np.float32(128)
        out *= self._steps
        out += self._middles
        return out

    def products(self, queries: Dense, codes: Codes) -> tuple[Dense, Floats]:
        """With the steps folded into the queries, so that codes are multiplied as they are."""
        weights = queries * self._steps
        fixed = queries.astype(np.float64) @ (self._middles.astype(np.float64) + 128.0 * self._steps)
        largest = float(np.sqrt(np.sum((np.float64(255) * self._steps) ** 2)) + np.sqrt(np.sum(self._middles**2)))
        slack = _lengths(queries) * np.float32(_EPS * (self.dim + 4) * largest)
        if installed("numba"):
            from reperio.indexes.quantization_compiled import integer_products

            # Sums of d products with codes of at most 128 must fit 32 bits.
            highest = min(32767, (1 << 31) // (128 * self.dim) - 1)
            scale = np.abs(weights).max(axis=1, initial=0) / np.float32(highest)
            scale[scale == 0] = 1
            whole = integer_products(codes, np.rint(weights / scale[:, None]).astype(np.int16))
            out = whole.astype(np.float32) * scale[:, None]
            slack += scale * np.float32(0.51 * 128 * self.dim)
        else:
            out = np.empty((len(queries), len(codes)), dtype=np.float32)
            for start in range(0, len(codes), _PART):
                out[:, start : start + _PART] = weights @ codes[start : start + _PART].astype(np.float32).T
        out += fixed.astype(np.float32)[:, None]
        return out, slack


class BinaryCodec(Codec):
    """One bit for each dimension: whether it is above 0. Codes are compared by the bits in which they differ.

    The bits are those of ``numpy.packbits``, filled up with zeros to whole words of 64.
    """

    decodes = False

    def takes(self, codes: Codes) -> bool:
        """Whether the bits that fill up the last word are zeros."""
        rest = np.ascontiguousarray(codes).view(np.uint8)[:, self.dim // 8 :]
        unused = np.packbits(np.arange(8 * int(rest.shape[1])) >= self.dim % 8)
        return not (rest & unused).any()

    def encode(self, vectors: Dense) -> Codes:
        """``(n, w)``, uint64."""
        bits = np.packbits(vectors > 0, axis=1)
        out = np.zeros((len(vectors), -(-self.dim // 64) * 8), dtype=np.uint8)
        out[:, : bits.shape[1]] = bits
        return out.view(np.uint64)

    def decode(self, codes: Codes) -> Dense:
        """``(n, d)``, the signs at length one."""
        signs = np.unpackbits(codes.view(np.uint8), axis=1, count=self.dim).astype(np.float32)
        signs *= np.float32(2 / np.sqrt(self.dim))
        signs -= np.float32(1 / np.sqrt(self.dim))
        return signs

    def products(self, queries: Dense, codes: Codes) -> tuple[Dense, Floats]:
        """Cosines between the signs of the queries and of the rows: 1 - 2 h / d for h bits that differ."""
        return self._cosines(hamming(self.encode(queries), codes)), np.zeros(len(queries), dtype=np.float32)

    def score(
        self, queries: Dense, asked: Positions, codes: Codes, rows: Positions, *, metric: Metric
    ) -> NDArray[np.float32]:
        """Cosines between the signs, ``(m,)``; the metric is always cosine."""
        return self._cosines(_ones(np.bitwise_xor(self.encode(queries)[asked], codes[rows])))

    def _cosines(self, distances: NDArray[np.uint16]) -> Dense:
        out = distances.astype(np.float32)
        out *= np.float32(-2 / self.dim)
        out += np.float32(1)
        return out


CODECS: dict[str, type[Codec]] = {"float16": Float16Codec, "int8": Int8Codec, "binary": BinaryCodec}
"""What makes the codes of each `Quantization`."""


def check_fit(vectors: Dense, dtype: Quantization, *, what: str) -> None:
    """Refuse vectors that hold a number beyond those of float16."""
    beyond = (np.abs(vectors) > _LARGEST_HALF).any(axis=1) if dtype == "float16" else np.zeros(0, dtype=np.bool_)
    if beyond.any():
        problem = f"{what}, row {np.argmax(beyond)}, holds a number beyond {_LARGEST_HALF}: float16 does not."
        raise InvalidInput(problem, "Scale the vectors, or choose int8.")


def hamming(queries: Codes, codes: Codes) -> NDArray[np.uint16]:
    """How many bits of queries, ``(q, w)`` uint64, and codes, ``(n, w)`` uint64, differ: ``(q, n)``."""
    if installed("numba"):
        from reperio.indexes.quantization_compiled import differing_bits

        return differing_bits(queries, codes)
    out = np.empty((len(queries), len(codes)), dtype=np.uint16)
    for query, row in zip(queries, out, strict=True):
        row[:] = _ones(np.bitwise_xor(codes, query))
    return out


def _ones(words: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """Bits set in each row, ``(n,)``."""
    if hasattr(np, "bitwise_count"):  # numpy 2
        counts: NDArray[np.uint8] = np.bitwise_count(words)
    else:
        counts = _ONES[words.view(np.uint16)]
    out: NDArray[np.uint16] = counts.sum(axis=1, dtype=np.uint16)
    return out


def _lengths(vectors: Dense) -> Floats:
    out: Floats = np.sqrt(squared(vectors))
    return out
