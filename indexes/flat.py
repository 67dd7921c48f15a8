"""Exact search in numpy: the reference that every other dense index is measured against.

Shapes: q queries, n rows, d dimensions, k results, m rows asked for, p pairs of a query and a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Self, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray

from reperio.artifacts import new_folder
from reperio.embeddings import Dense, Ids, IdSet, check_dense
from reperio.errors import ConfigurationError
from reperio.indexes.rows import (
    Positions,
    Rows,
    check_ids,
    check_pairs,
    check_removed,
    check_search,
    grown,
    merge,
    nothing,
    pad,
)
from reperio.indexes.stored import ascends, finite, read_array, reading, whole, within
from reperio.protocols import Spec
from reperio.types import Neighbors

__all__ = ["Block", "FlatIndex", "Metric", "check_metric", "nearest", "score_pairs", "unit"]

Metric: TypeAlias = Literal["cosine", "ip", "l2"]
"""Cosine similarity, inner product, or squared Euclidean distance, negated."""

_KIND = "flat-index"
_QUERIES = 256
_BLOCK = 1 << 16
"""Queries and rows multiplied at a time: 64 MB of scores."""

_SHORT = 1e-15
"""Length of a vector below which squares of its components leave float32, if only in part."""

_ROUNDING = np.finfo(np.float32).eps

_GROUP = 16
"""Scores of which only the highest is sorted among those of other groups."""

_VALUES = 1 << 24
"""Vector components gathered at a time: 64 MB."""


class Block(NamedTuple):
    """Some rows to search.

    Attributes
    ----------
    ids
        Row keys, ``(n,)``.
    vectors
        ``(n, d)``.
    squares
        Squared length of each vector, ``(n,)``.
    """

    ids: Ids
    vectors: Dense
    squares: NDArray[np.float32]


def check_metric(metric: str) -> Metric:
    """Return ``metric``, or refuse one that is not known."""
    if metric not in get_args(Metric):
        raise ConfigurationError(f"There is no metric {metric!r}.", f"Choose from: {', '.join(get_args(Metric))}.")
    return cast("Metric", metric)


def unit(vectors: Dense) -> Dense:
    """Each vector over its length; a zero vector stays zero."""
    lengths: NDArray[np.float32] = np.sqrt(squared(vectors))
    short = lengths < _SHORT
    if not np.count_nonzero(short):
        return vectors / lengths[:, None]
    peaks = np.abs(vectors[short]).max(axis=1, initial=0)
    out = vectors.copy()
    out[short] /= np.where(peaks > 0, peaks, np.float32(1))[:, None]
    lengths[short] = np.sqrt(squared(out[short]))
    out /= np.where(lengths > 0, lengths, np.float32(1))[:, None]
    return out


def squared(vectors: Dense) -> NDArray[np.float32]:
    """Squared length of each vector, ``(n,)``."""
    out: NDArray[np.float32] = np.einsum("nd,nd->n", vectors, vectors)
    return out


def score_pairs(
    queries: Dense, asked: Positions, fetch: Callable[[Positions], Dense], rows: Positions, *, metric: Metric
) -> NDArray[np.float32]:
    """Score of query ``asked[i]`` with row ``rows[i]``, ``(p,)``: it depends on nothing but the two vectors.

    ``fetch`` gives the vectors at positions; they are gathered a block at a time.
    """
    out = np.empty(len(rows), dtype=np.float32)
    step = max(1, _VALUES // max(1, queries.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        left, right = queries[asked[part]], fetch(rows[part])
        out[part] = 0 - squared(left - right) if metric == "l2" else np.einsum("pd,pd->p", left, right)
    return out


def nearest(queries: Dense, k: int, blocks: Iterable[Block], *, metric: Metric) -> Neighbors:
    """The k best rows of all blocks for each query, exactly: ties go to the lower id.

    For ``"cosine"`` all vectors are already of length one.

    Notes
    -----
    One matrix product finds every row within its rounding error of the k-th best; those are scored again, pair by
    pair. So a result does not depend on the batch, the block or the order of the rows.
    """
    best: Neighbors | None = None
    for block in blocks:
        parts = [
            _best(queries[start : start + _QUERIES], k, block, metric=metric)
            for start in range(0, len(queries), _QUERIES)
        ]
        if parts:
            found = parts[0]
            if len(parts) > 1:
                found = Neighbors(np.concatenate([p.ids for p in parts]), np.concatenate([p.scores for p in parts]))
            best = found if best is None else merge([best, found], k)
    return nothing(len(queries), k) if best is None else pad(best.ids, best.scores, k)


def _best(queries: Dense, k: int, block: Block, *, metric: Metric) -> Neighbors:
    asked, rows = _candidates(queries, k, block, metric=metric)
    ids, scores = block.ids[rows], score_pairs(queries, asked, block.vectors.__getitem__, rows, metric=metric)
    count = min(k, len(block.ids))
    if len(queries) == 1:
        order = np.lexsort((ids, -scores))[:count]
        return Neighbors(ids[order][None], scores[order][None])
    order = np.lexsort((ids, -scores, asked))
    asked, ids, scores = asked[order], ids[order], scores[order]
    rank = np.arange(len(asked)) - np.searchsorted(asked, np.arange(len(queries)))[asked]
    kept = rank < k
    out = nothing(len(queries), count)
    out.ids[asked[kept], rank[kept]] = ids[kept]
    out.scores[asked[kept], rank[kept]] = scores[kept]
    return out


def _candidates(queries: Dense, k: int, block: Block, *, metric: Metric) -> tuple[Positions, Positions]:
    """Pairs of query and row that hold the k best of each query, whatever the matrix product rounds."""
    count = len(block.ids)
    if count <= k:
        asked, rows = np.indices((len(queries), count)).reshape(2, -1)
        return asked, rows
    rough = queries @ block.vectors.T
    largest, lengths = float(np.sqrt(block.squares.max())), np.sqrt(squared(queries))
    bound = lengths * largest
    if metric == "l2":
        rough *= 2
        rough -= block.squares
        bound = (lengths + largest) ** 2
    slack = _ROUNDING * (queries.shape[1] + 2) * bound
    found = np.flatnonzero(rough >= (_floor(rough, k) - 2 * slack)[:, None])
    if len(queries) == 1:
        return np.zeros_like(found), found
    asked = found // count
    return asked, found - asked * count


def _floor(scores: Dense, k: int) -> NDArray[np.float32]:
    """No more than the k-th highest score of each query, and of many scores nearly that: k groups reach it."""
    count = scores.shape[1]
    groups = count // _GROUP
    if groups >= 4 * k:
        scores = scores[:, : groups * _GROUP].reshape(len(scores), _GROUP, groups).max(axis=1)
        count = groups
    out: NDArray[np.float32] = np.partition(scores, count - k, axis=1)[:, count - k]
    return out


class FlatIndex:
    """Exact search over vectors in memory, without FAISS.

    Parameters
    ----------
    metric
        ``"cosine"`` (vectors are scaled to length one when added and when asked for), ``"ip"`` (inner product), or
        ``"l2"``: the score is the squared Euclidean distance, negated.

    Raises
    ------
    ConfigurationError
        Unknown metric.

    Examples
    --------
    >>> index = FlatIndex()
    >>> index.add(np.array([7, 9]), np.array([[1, 0], [0, 1]], dtype=np.float32))
    >>> index.search(np.array([[3, 4]], dtype=np.float32), 2).ids.tolist()
    [[9, 7]]
    """

    lossless = True
    exhaustive = True

    def __init__(self, metric: Metric = "cosine") -> None:
        self.metric: Metric = check_metric(metric)
        self._dim: int | None = None
        self._at: dict[int, int] = {}
        self._ids: Ids = np.empty(0, dtype=np.int64)
        self._vectors: Dense = np.empty((0, 0), dtype=np.float32)
        self._squares: NDArray[np.float32] = np.empty(0, dtype=np.float32)

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty."""
        return {"type": "FlatIndex", "metric": self.metric}

    @property
    def lowest(self) -> float:
        """-1 for cosine, else ``-inf``."""
        return -1.0 if self.metric == "cosine" else -np.inf

    def __len__(self) -> int:
        return len(self._at)

    @property
    def ids(self) -> IdSet:
        """Every row key held, ``(n,)``, sorted."""
        return np.sort(self._ids[: len(self)])

    @property
    def vectors(self) -> Dense:
        """The vectors held, ``(n, d)``, in the order of `ids`; of length one for cosine."""
        return self._vectors[np.argsort(self._ids[: len(self)])]

    def add(self, ids: Ids, embeddings: Dense, /) -> None:
        """Insert or replace rows.

        Raises
        ------
        ShapeError
            Another number of dimensions than before, NaN or infinity, or not one id for each row.
        InvalidInput
            A negative id, or one that comes twice.
        """
        vectors = check_dense(embeddings, what="embeddings", dim=self._dim)
        ids = check_ids(ids, rows=len(vectors))
        if self.metric == "cosine":
            vectors = unit(vectors)
        held = self._find(ids)
        fresh = np.flatnonzero(held < 0)
        size = len(self)
        held[fresh] = size + np.arange(len(fresh))
        places = dict(zip(ids[fresh].tolist(), held[fresh].tolist(), strict=True))
        squares = squared(vectors)
        self._reserve(size + len(fresh), vectors.shape[1])
        self._at |= places
        # From here on nothing can fail for lack of memory.
        self._ids[held], self._vectors[held], self._squares[held] = ids, vectors, squares
        self._dim = vectors.shape[1]

    def _reserve(self, size: int, dim: int) -> None:
        if self._dim is None:
            self._vectors = self._vectors.reshape(0, dim)
        self._ids, self._vectors = grown(self._ids, size), grown(self._vectors, size)
        self._squares = grown(self._squares, size)

    def remove(self, ids: Ids, /) -> int:
        """Take rows away; returns how many were there."""
        keys = [key for key in dict.fromkeys(check_removed(ids).tolist()) if key in self._at]
        gone = np.sort(np.array([self._at[key] for key in keys], dtype=np.int64))
        size = len(self) - len(gone)
        # The last rows move into the holes, so that what is held stays in one piece.
        holes = gone[gone < size]
        movers = np.setdiff1d(np.arange(size, len(self)), gone)
        moved = [(array, array[movers]) for array in (self._ids, self._vectors, self._squares)]
        places = dict(zip(self._ids[movers].tolist(), holes.tolist(), strict=True))
        # From here on nothing can fail for lack of memory.
        for key in keys:
            del self._at[key]
        for array, rows in moved:
            array[holes] = rows
        self._at.update(places)
        return len(gone)

    def search(
        self, queries: Dense, k: int, /, *, allowed: IdSet | None = None, options: Mapping[str, int] | None = None
    ) -> Neighbors:
        """The k best rows for each query, among ``allowed`` if given: always min(k, allowed held) of them.

        Raises
        ------
        InvalidInput
            If k is not positive.
        ShapeError
            If the queries have other dimensions than the rows, or hold NaN or infinity.
        ConfigurationError
            For any option: there are none.
        """
        if options:
            raise ConfigurationError(f"FlatIndex has no search option {sorted(options)[0]!r}.", "It has none.")
        allowed = check_search(k, allowed, options)
        return nearest(self._asked(queries), k, self._blocks(allowed), metric=self.metric)

    def score(self, queries: Dense, ids: Ids, /) -> Dense:
        """Scores of the given rows, ``(q, m)`` for ids ``(q, m)``; ``-inf`` where an id is -1 or not held."""
        queries = self._asked(queries)
        rows = self._find(check_pairs(ids, queries=len(queries)).ravel())
        asked = np.repeat(np.arange(len(queries)), len(rows) // max(1, len(queries)))
        here = np.flatnonzero(rows >= 0)
        out = np.full(len(rows), -np.inf, dtype=np.float32)
        out[here] = score_pairs(queries, asked[here], self._vectors.__getitem__, rows[here], metric=self.metric)
        return out.reshape(np.shape(ids))

    def _asked(self, queries: Dense) -> Dense:
        out = check_dense(queries, what="queries", dim=self._dim)
        return unit(out) if self.metric == "cosine" else out

    def _find(self, ids: Ids) -> Positions:
        return np.fromiter((self._at.get(key, -1) for key in ids.tolist()), dtype=np.int64, count=len(ids))

    def _blocks(self, allowed: IdSet | None) -> Iterator[Block]:
        chosen = None if allowed is None else self._find(np.asarray(allowed, dtype=np.int64))
        if chosen is not None:
            chosen = chosen[chosen >= 0]
        size = len(self) if chosen is None else len(chosen)
        for start in range(0, size, _BLOCK):
            stop = min(start + _BLOCK, size)
            part = slice(start, stop) if chosen is None else chosen[start:stop]
            yield Block(self._ids[part], self._vectors[part], self._squares[part])

    def save(self, path: Path | str, /) -> None:
        """Write a new folder: whole, checksummed and on disk when this returns, or absent."""
        with new_folder(path, _KIND, {"spec": dict(self.spec), "metric": self.metric, "dim": self._dim}) as folder:
            np.save(folder / "ids.npy", self.ids, allow_pickle=False)
            np.save(folder / "vectors.npy", self.vectors, allow_pickle=False)

    @classmethod
    def open(cls, path: Path | str, /) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        NotFound, NewerFormat, CorruptArtifact
        """
        with reading(cls, path, _KIND) as (folder, meta):
            index = cls(meta["metric"])
            index._dim = None if meta["dim"] is None else whole(meta, "dim")
            index._ids = read_array(folder / "ids.npy", np.int64, (None,))
            index._vectors = read_array(folder / "vectors.npy", np.float32, (len(index._ids), index._dim or 0))
            if not ascends(index._ids) or not within(index._ids[:1], 0, np.inf) or not finite(index._vectors):
                raise ValueError("its keys do not ascend from 0, or its vectors are not finite")
        index._squares = squared(index._vectors)
        index._at = dict(zip(index._ids.tolist(), range(len(index._ids)), strict=True))
        return index

    @classmethod
    def open_waiting(cls, path: Path, *, metric: Metric, dim: int | None, held: Rows | None = None) -> Self:
        """Open what waits beside an index of other rows, those ``held``.

        Raises
        ------
        NotFound, NewerFormat, CorruptArtifact
            As `open`.
        ValueError
            If it measures something else, has other dimensions, or holds the same row.
        """
        index = cls.open(path)
        if index.metric != metric or (index._dim is not None and index._dim != dim):
            raise ValueError(f"what waits is {index.metric}, of {index._dim} dimensions, not {metric} of {dim}")
        if held is not None and len(index) and (held.find(index.ids) >= 0).any():
            raise ValueError("a row that waits is held as well")
        return index
