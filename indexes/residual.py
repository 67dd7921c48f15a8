"""Residual codes: a vector as its nearest centroid, and what is left in a few bits for each dimension.

Santhanam et al.: ColBERTv2: Effective and Efficient Retrieval via Lightweight Late Interaction. NAACL 2022.

Shapes: t vectors, d dimensions, C centroids, L = 2 ** bits levels, b = ceil(d * bits / 8) bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense
from reperio.extras import installed
from reperio.indexes.flat import squared, unit
from reperio.indexes.stored import finite, read_array

__all__ = ["Codec", "Codes", "kmeans", "load_array"]

_MAPPED_FROM = 1 << 16
"""Smaller arrays are read, larger ones mapped: a map costs a page and a file descriptor."""

_BLOCK = 1 << 12
"""Vectors compared with all centroids at a time."""

_ROUNDS, _PLACINGS = 6, 32
"""How often the centres of clusters, and levels, are moved."""

_FITTED = 1 << 15
"""Vectors that the levels are placed by."""


class Codes(NamedTuple):
    """Encoded vectors.

    Attributes
    ----------
    centroids
        The nearest centroid of each, ``(t,)``.
    residuals
        The level of each dimension, lowest bits first, ``(t, b)``.
    """

    centroids: NDArray[np.int32]
    residuals: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Codec:
    """What was learnt, and the way there and back.

    Attributes
    ----------
    centroids
        ``(C, d)``.
    cuts
        Where one level ends and the next begins, ascending, ``(d, L - 1)``.
    levels
        What a residual is read back as, ``(d, L)``.
    bits
        2, 4 or 8.
    unit
        Whether vectors are of length one, and are scaled to it when they are read back.
    """

    centroids: Dense
    cuts: Dense
    levels: Dense
    bits: int
    unit: bool

    @classmethod
    def learn(cls, sample: Dense, centroids: int, *, bits: int, unit: bool, seed: int = 0) -> Self:
        """Cluster a sample, ``(t, d)``, and place the levels where what is left lies.

        ``unit`` clusters by angle. The levels of a dimension minimise its squared error (Lloyd 1957, Max 1960).
        """
        rng = np.random.default_rng(seed)
        centres = kmeans(sample, centroids, spherical=unit, rng=rng)
        fitted = sample[np.sort(rng.choice(len(sample), min(_FITTED, len(sample)), replace=False))]
        levels = _levels(fitted - centres[_nearest(fitted, centres)], 1 << bits)
        cuts = np.ascontiguousarray((levels[:, 1:] + levels[:, :-1]) / 2, dtype=np.float32)
        return cls(centres, cuts, levels, bits, unit)

    @property
    def width(self) -> int:
        """b."""
        dim: int = self.centroids.shape[1]
        return math.ceil(dim * self.bits / 8)

    def encode(self, vectors: Dense) -> Codes:
        """The codes of vectors, ``(t, d)``."""
        nearest = _nearest(vectors, self.centroids).astype(np.int32)
        if installed("numba"):
            from reperio.indexes.maxsim_compiled import encode

            return Codes(nearest, encode(vectors, nearest, self.centroids, self.cuts, self.bits))
        dim = vectors.shape[1]
        each = 8 // self.bits
        out = np.zeros((len(vectors), self.width), dtype=np.uint8)
        for j in range(dim):
            left: Dense = vectors[:, j] - self.centroids[nearest, j]
            level = np.searchsorted(self.cuts[j], left)
            out[:, j // each] |= (level << self.bits * (j % each)).astype(np.uint8)
        return Codes(nearest, out)

    def decode(self, codes: Codes) -> Dense:
        """The vectors that codes stand for, ``(t, d)``."""
        if installed("numba"):
            from reperio.indexes.maxsim_compiled import decode

            out = decode(codes.centroids, codes.residuals, self.centroids, self.levels, self.bits)
        else:
            out = self.centroids[codes.centroids]
            each, mask = 8 // self.bits, np.uint8((1 << self.bits) - 1)
            for j in range(out.shape[1]):
                level = codes.residuals[:, j // each] >> np.uint8(self.bits * (j % each)) & mask
                out[:, j] += self.levels[j, level]
        if self.unit:
            lengths = np.sqrt(squared(out))
            lengths[lengths == 0] = 1
            out /= lengths[:, None]
        return out

    def save(self, folder: Path) -> None:
        """Write what was learnt beside other files."""
        for name in ("centroids", "cuts", "levels"):
            np.save(folder / f"codec-{name}.npy", getattr(self, name), allow_pickle=False)

    @classmethod
    def open(cls, folder: Path, *, dim: int, bits: int, unit: bool) -> Self:
        """Read what `save` wrote; raises ValueError if it is for other dimensions or bits."""
        centroids, cuts, levels = (load_array(folder / f"codec-{name}.npy") for name in ("centroids", "cuts", "levels"))
        shapes = [(len(centroids), dim), (dim, (1 << bits) - 1), (dim, 1 << bits)]
        for array, shape in zip((centroids, cuts, levels), shapes, strict=True):
            if array.dtype != np.float32 or array.shape != shape or not array.size or not finite(array):
                raise ValueError(f"the codec holds {array.dtype} {array.shape}, not finite float32 {shape}")
        return cls(centroids, cuts, levels, bits, unit)


def load_array(path: Path) -> Any:
    """An array of a file that `numpy.save` wrote; a large one stays on disk and is mapped."""
    # Copy-on-write, so that compiled code sees one type of array, mapped or not; nothing is ever written.
    return read_array(path, mapped="c" if path.stat().st_size >= _MAPPED_FROM else None)


def kmeans(vectors: Dense, count: int, *, spherical: bool, rng: np.random.Generator) -> Dense:
    """Centres of ``count`` clusters, ``(count, d)``, each of length one if ``spherical``.

    A cluster that loses all its vectors starts again at the vector that is worst represented.
    """
    centres = vectors[np.sort(rng.choice(len(vectors), count, replace=False))]
    squares = np.einsum("td,td->t", vectors, vectors)
    for _ in range(_ROUNDS):
        nearest = _nearest(vectors, centres)
        sizes = np.bincount(nearest, minlength=count)
        held = np.flatnonzero(sizes)
        starts = (np.cumsum(sizes) - sizes)[held]
        sums = np.add.reduceat(vectors[np.argsort(nearest, kind="stable")], starts, axis=0)
        centres[held] = sums / sizes[held, None].astype(np.float32)
        if len(held) < count:
            distance = squares - 2 * np.einsum("td,td->t", vectors, centres[nearest])
            distance += np.einsum("cd,cd->c", centres, centres)[nearest]
            empty = np.flatnonzero(sizes == 0)
            centres[empty] = vectors[np.argsort(-distance, kind="stable")[: len(empty)]]
        if spherical:
            centres = unit(centres)
    return centres


def _nearest(vectors: Dense, centres: Dense) -> NDArray[np.int64]:
    """The nearest centre of each vector, ``(t,)``: the lower one of equals."""
    out = np.empty(len(vectors), dtype=np.int64)
    half = np.einsum("cd,cd->c", centres, centres) / 2
    for start in range(0, len(vectors), _BLOCK):
        closeness = vectors[start : start + _BLOCK] @ centres.T
        closeness -= half
        out[start : start + _BLOCK] = closeness.argmax(axis=1)
    return out


def _levels(left: Dense, count: int) -> Dense:
    """``count`` values for each dimension of residuals ``(t, d)``, ascending: ``(d, count)``."""
    out = np.empty((left.shape[1], count), dtype=np.float32)
    for levels, values in zip(out, np.sort(left, axis=0).T, strict=True):
        sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
        levels[:] = values[(2 * np.arange(count) + 1) * len(values) // (2 * count)]
        for _ in range(_PLACINGS):
            inner = np.searchsorted(values, (levels[1:] + levels[:-1]) / 2)
            ends = np.concatenate([[0], inner, [len(values)]])
            sizes = np.diff(ends)
            held = sizes > 0
            levels[held] = (np.diff(sums[ends])[held] / sizes[held]).astype(np.float32)
    return out
