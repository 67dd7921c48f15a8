"""Sealed segments of a multi-vector index: rows, and the vectors of each or their codes.

A segment never changes. Rows are added as a new segment, taken away by a copy that marks them dead, and dropped
when segments are merged; so whoever searches keeps a consistent view without a lock.

Shapes: n rows, t vectors of all rows, d dimensions, C centroids, b bytes of a residual.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, Ids, IdSet, MultiVector
from reperio.indexes.maxsim import longest, parts
from reperio.indexes.residual import Codec, Codes, load_array
from reperio.indexes.rows import Positions
from reperio.indexes.stored import finite, offsets_of

__all__ = ["CodedSegment", "PlainSegment", "Segment"]


@dataclass(frozen=True, slots=True, eq=False)
class Segment(ABC):
    """Rows and where the vectors of each lie.

    Attributes
    ----------
    ids
        Row keys, ``(n,)``, ascending; a row's position is its place here.
    alive
        Which rows were not removed, ``(n,)``.
    offsets
        Where each row's vectors start, ``(n + 1,)``.
    """

    ids: IdSet
    alive: NDArray[np.bool_]
    offsets: NDArray[np.int64]

    per_vector: ClassVar[tuple[str, ...]]
    """The fields with one entry for each vector."""

    @classmethod
    @abstractmethod
    def seal(cls, ids: IdSet, offsets: NDArray[np.int64], columns: Sequence[NDArray[Any]]) -> Self:
        """A segment of live rows; ``columns`` in the order of `per_vector`."""

    @classmethod
    def sorted(cls, ids: Ids, offsets: NDArray[np.int64], columns: Sequence[NDArray[Any]]) -> Self:
        """A segment of rows in any order, each id once."""
        order = np.argsort(ids, kind="stable")
        if (order[1:] < order[:-1]).any():
            sizes = np.diff(offsets)[order]
            where = _spread(offsets[order], sizes)
            ids, offsets, columns = ids[order], _offsets(sizes), [column[where] for column in columns]
        return cls.seal(ids, offsets, columns)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def live(self) -> int:
        """How many rows were not removed."""
        return int(np.count_nonzero(self.alive))

    @property
    def columns(self) -> tuple[NDArray[Any], ...]:
        """The arrays with one entry for each vector."""
        return tuple(getattr(self, name) for name in self.per_vector)

    def find(self, ids: Ids) -> Positions:
        """Position of each id, -1 where it is not held or dead."""
        places = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        return np.where((self.ids[places] == ids) & self.alive[places], places, -1)

    def mask(self, allowed: IdSet | None) -> NDArray[np.bool_]:
        """Which rows may be returned, ``(n,)``."""
        if allowed is None:
            return self.alive
        out = np.zeros(len(self), dtype=np.bool_)
        found = self.find(allowed)
        out[found[found >= 0]] = True
        return out

    def without(self, positions: Positions) -> Self:
        """This segment with the rows at ``positions`` dead."""
        alive = self.alive.copy()
        alive[positions] = False
        return replace(self, alive=alive)

    def gather(
        self, positions: Positions, columns: Sequence[NDArray[Any]]
    ) -> tuple[NDArray[np.int64], list[NDArray[Any]]]:
        """Some rows alone, one after the other: their offsets, and their part of each column."""
        sizes = self.sizes(positions)
        where = _spread(self.offsets[positions], sizes)
        return _offsets(sizes), [column[where] for column in columns]

    def runs(self, positions: Positions, size: int) -> Iterator[Positions]:
        """Cut positions into runs of up to ``size`` vectors, and of one row at the least."""
        for start, stop in parts(_offsets(self.sizes(positions)), size):
            yield positions[start:stop]

    def sizes(self, positions: Positions) -> NDArray[np.int64]:
        """How many vectors each of these rows has."""
        out: NDArray[np.int64] = self.offsets[positions + 1] - self.offsets[positions]
        return out

    @classmethod
    def merge(cls, segments: Sequence[Self]) -> Self:
        """One segment of all live rows; no id is live in two."""
        alive = [np.flatnonzero(s.alive) for s in segments]
        ids = np.concatenate([s.ids[a] for s, a in zip(segments, alive, strict=True)])
        sizes = np.concatenate([s.sizes(a) for s, a in zip(segments, alive, strict=True)])
        order = np.argsort(ids, kind="stable")
        offsets = _offsets(sizes[order])
        starts = np.empty(len(ids), dtype=np.int64)
        starts[order] = offsets[:-1]
        columns = [np.empty((offsets[-1], *c.shape[1:]), dtype=c.dtype) for c in segments[0].columns]
        done = 0
        for segment, positions in zip(segments, alive, strict=True):
            part = slice(done, done + len(positions))
            there, here = _spread(starts[part], sizes[part]), _spread(segment.offsets[positions], sizes[part])
            for out, column in zip(columns, segment.columns, strict=True):
                out[there] = column[here]
            done += len(positions)
        return cls.seal(ids[order], offsets, columns)

    def _check_rows(self, vectors: int) -> None:
        """Raise ValueError unless keys, marks and offsets fit one another and this many vectors."""
        n = len(self.ids)
        _expect("ids", self.ids, np.int64, (n,))
        _expect("alive", self.alive, np.bool_, (n,))
        _expect("offsets", self.offsets, np.int64, (n + 1,))
        if not n or (self.ids[1:] <= self.ids[:-1]).any() or self.ids[0] < 0:
            raise ValueError("ids do not ascend from 0")
        if not offsets_of(self.offsets, vectors, filled=True):
            raise ValueError(f"offsets do not ascend from 0 to {vectors}")

    def save(self, folder: Path, name: str) -> None:
        """Write each array as ``{name}-{attribute}.npy``."""
        for field in fields(self):
            np.save(folder / f"{name}-{field.name}.npy", getattr(self, field.name), allow_pickle=False)

    @classmethod
    def open(cls, folder: Path, name: str) -> Self:
        """Read what `save` wrote; large arrays stay on disk and are mapped."""
        return cls(**{field.name: load_array(folder / f"{name}-{field.name}.npy") for field in fields(cls)})


@dataclass(frozen=True, slots=True, eq=False)
class PlainSegment(Segment):
    """Rows with their vectors.

    Attributes
    ----------
    vectors
        ``(t, d)``.
    bound
        Length of the longest of them, ``(1,)``.
    """

    vectors: Dense
    bound: NDArray[np.float32]

    per_vector = ("vectors",)

    @classmethod
    def seal(cls, ids: IdSet, offsets: NDArray[np.int64], columns: Sequence[NDArray[Any]]) -> Self:
        """A segment of live rows."""
        (vectors,) = columns
        bound = np.array([longest(vectors)], dtype=np.float32)
        return cls(ids, np.ones(len(ids), dtype=np.bool_), offsets, vectors, bound)

    def check(self, dim: int, *, deep: bool) -> None:
        """Raise ValueError unless the arrays fit one another; ``deep`` looks at every value."""
        self._check_rows(len(self.vectors))
        _expect("vectors", self.vectors, np.float32, (len(self.vectors), dim))
        _expect("bound", self.bound, np.float32, (1,))
        if not finite(self.bound) or (deep and not finite(self.vectors)):
            raise ValueError("vectors are not finite")

    @property
    def documents(self) -> MultiVector:
        """All rows, dead ones too."""
        return MultiVector(self.vectors, self.offsets)

    def pick(self, positions: Positions) -> MultiVector:
        """Some rows alone."""
        offsets, (vectors,) = self.gather(positions, [self.vectors])
        return MultiVector(vectors, offsets)


@dataclass(frozen=True, slots=True, eq=False)
class CodedSegment(Segment):
    """Rows with codes in place of their vectors, and which rows are near each centroid.

    Attributes
    ----------
    centroids, residuals
        See `reperio.indexes.residual.Codes`: ``(t,)`` and ``(t, b)``.
    lists
        Centroids that stand for a vector here, ascending, ``(c,)``.
    starts, members
        Positions of the rows near each of them, each row once, ascending: ``(c + 1,)``, ``(p,)``.
    """

    centroids: NDArray[np.int32]
    residuals: NDArray[np.uint8]
    lists: NDArray[np.int32]
    starts: NDArray[np.int64]
    members: NDArray[np.int32]

    per_vector = ("centroids", "residuals")

    @classmethod
    def seal(cls, ids: IdSet, offsets: NDArray[np.int64], columns: Sequence[NDArray[Any]]) -> Self:
        """A segment of live rows."""
        centroids, residuals = columns
        owners = np.repeat(np.arange(len(ids), dtype=np.int64), np.diff(offsets))
        # Centroid above, row below, in one integer: sorting it groups by both.
        pairs = np.sort(centroids.astype(np.int64) << 32 | owners)
        pairs = pairs[np.concatenate([[True], pairs[1:] != pairs[:-1]])] if len(pairs) else pairs
        lists, sizes = np.unique((pairs >> 32).astype(np.int32), return_counts=True)
        members = (pairs & 0xFFFFFFFF).astype(np.int32)
        alive = np.ones(len(ids), dtype=np.bool_)
        return cls(ids, alive, offsets, centroids, residuals, lists, _offsets(sizes), members)

    @classmethod
    def encode(cls, plain: PlainSegment, codec: Codec) -> Self:
        """The same rows, dead ones dropped, as codes."""
        if plain.live < len(plain):
            plain = PlainSegment.merge([plain])
        return cls.seal(plain.ids, plain.offsets, codec.encode(plain.vectors))

    def check(self, codec: Codec, *, deep: bool) -> None:
        """Raise ValueError unless the arrays fit one another and the codec; ``deep`` looks at every value."""
        size, count = len(self.centroids), len(codec.centroids)
        self._check_rows(size)
        _expect("centroids", self.centroids, np.int32, (size,))
        _expect("residuals", self.residuals, np.uint8, (size, codec.width))
        _expect("lists", self.lists, np.int32, (len(self.lists),))
        _expect("starts", self.starts, np.int64, (len(self.lists) + 1,))
        _expect("members", self.members, np.int32, (len(self.members),))
        if not offsets_of(self.starts, len(self.members)):
            raise ValueError(f"starts do not ascend from 0 to {len(self.members)}")
        limits = {"lists": (self.lists, count)}
        if deep:  # compiled code does not look where it reads
            limits |= {"centroids": (self.centroids, count), "members": (self.members, len(self))}
        for name, (values, limit) in limits.items():
            if len(values) and not 0 <= values.min() <= values.max() < limit:
                raise ValueError(f"{name} holds values outside 0 to {limit - 1}")

    def listed(self, probed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which rows have a vector near one of the centroids marked in ``probed``, ``(C,)``."""
        at = np.flatnonzero(probed[self.lists])
        out = np.zeros(len(self), dtype=np.bool_)
        out[self.members[_spread(self.starts[at], self.starts[at + 1] - self.starts[at])]] = True
        return out

    def decode(self, positions: Positions, codec: Codec) -> MultiVector:
        """Some rows alone, as their codes are read back."""
        offsets, (centroids, residuals) = self.gather(positions, [self.centroids, self.residuals])
        return MultiVector(codec.decode(Codes(centroids, residuals)), offsets)


def _expect(name: str, array: NDArray[Any], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")


def _spread(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Positions:
    """``[starts[i], starts[i] + sizes[i])`` for each i, one after the other."""
    ends = np.cumsum(sizes)
    out = np.arange(ends[-1] if len(ends) else 0, dtype=np.int64)
    out += np.repeat(starts - ends + sizes, sizes)
    return out


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    out = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=out[1:])
    return out
