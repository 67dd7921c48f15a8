"""A graph index for queries that are not like the rows: it is made from what such queries find.

Shapes: q queries, n rows, d dimensions, k results, m rows asked for, t training queries.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from reperio.artifacts import new_folder
from reperio.embeddings import Dense, Ids, IdSet, check_dense
from reperio.errors import ConfigurationError, InvalidInput
from reperio.indexes.flat import Block, Metric, check_metric, nearest, score_pairs, squared, unit
from reperio.indexes.keygraph import KeyGraph
from reperio.indexes.labelled import check_positive
from reperio.indexes.rows import (
    Positions,
    Rows,
    check_ids,
    check_pairs,
    check_removed,
    check_search,
    grown,
    merge,
)
from reperio.indexes.stored import arguments, finite, read_array, reading, whole
from reperio.protocols import Spec
from reperio.types import Neighbors

__all__ = ["QueryAwareIndex"]

_KIND = "query-aware-index"
_SHARE = 4
"""Rows for each training query; and the part of the rows that may wait until they are linked."""

_LEAST, _MOST = 1 << 10, 1 << 16
"""Training queries, where there are as many."""

_BLOCK = 1 << 14
"""Rows gathered at a time."""

_VISITED = 16
"""Rows that are looked at one by one in the time that a walk takes for one of its ``ef`` candidates."""


class QueryAwareIndex:
    """A graph over rows, linked where training queries find them together.

    Graphs such as HNSW link rows that are near each other, and lose their way with queries that are far from all
    rows: those of a model's attention, or texts that ask for images. This one is made from such queries (`learn`).
    Without them a sample of the rows stands in, right for queries that are like the rows; `learned` tells which.

    New rows wait, and are searched exactly, until there are ``batch`` of them, and a quarter of those linked; then
    all are linked, as they would have been at once. A row removed or replaced is walked through, never found, until
    `compact`, or until more than half are such. Where that is quicker, or a walk sees too few rows, a search looks at
    each that is allowed.

    Parameters
    ----------
    metric
        ``"ip"`` (inner product), ``"cosine"`` (vectors are scaled to length one when added and when asked for), or
        ``"l2"``: the score is the squared Euclidean distance, negated.
    degree
        Links of a row.
    batch
        The fewest rows that are linked.
    train_size
        Training queries to use; if not given one for four rows, from 1024 to 65536, if so many were given.
    seed
        Of the samples.
    options
        Search options in place of the defaults: ``ef``, the candidates that a walk goes on from (128, or k and
        half as many). With a filter that keeps one row in ten it counts tenfold.

    Raises
    ------
    ConfigurationError
        Unknown metric or option; a number out of range.

    Notes
    -----
    Chen et al.: RoarGraph: a projected bipartite graph for efficient cross-modal approximate nearest neighbor search.
    VLDB 2024. Liu et al.: RetrievalAttention. 2024. How it is made: `reperio.indexes.graph`. Adding while another
    thread searches needs a lock.

    Examples
    --------
    >>> index = QueryAwareIndex()
    >>> index.learn(np.array([[-1, -2], [-2, -1]], dtype=np.float32))
    >>> index.add(np.array([7, 9]), np.array([[1, 5], [5, 1]], dtype=np.float32))
    >>> index.search(np.array([[-1, -1.5]], dtype=np.float32), 2).ids.tolist()
    [[9, 7]]
    """

    lossless = True

    def __init__(
        self,
        metric: Metric = "ip",
        *,
        degree: int = 32,
        batch: int = 4096,
        train_size: int | None = None,
        seed: int = 0,
        options: Mapping[str, int] | None = None,
    ) -> None:
        check_positive(2, degree=degree, batch=batch)
        if train_size is not None:
            check_positive(2, train_size=train_size)
        self.metric: Metric = check_metric(metric)
        self._measured: Metric = "l2" if metric == "l2" else "ip"
        self.degree, self.batch, self.train_size, self.seed = degree, batch, train_size, seed
        _check_options(options or {})
        self.options = dict(options or {})
        self._dim: int | None = None
        self._rows = Rows()
        self._linked: KeyGraph | None = None  # at positions from 0
        self._tail: Dense = np.empty((0, 0), dtype=np.float32)  # at the positions after
        self._given: Dense | None = None

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty and untaught."""
        return {
            "type": "QueryAwareIndex",
            "metric": self.metric,
            "degree": self.degree,
            "batch": self.batch,
            "train_size": self.train_size,
            "seed": self.seed,
            "options": self.options or None,
        }

    @property
    def lowest(self) -> float:
        """-1 for cosine, else ``-inf``."""
        return -1.0 if self.metric == "cosine" else -np.inf

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def ids(self) -> IdSet:
        """Every row key held, ``(n,)``, sorted."""
        return np.sort(self._rows.ids[self._rows.alive])

    @property
    def waiting(self) -> int:
        """Rows that are not linked yet."""
        return int(np.count_nonzero(self._rows.alive[self._first :]))

    @property
    def learned(self) -> Literal["queries", "rows"] | None:
        """What the links were made from; None where there are none."""
        made_from: Literal["queries", "rows"] = "rows" if self._given is None else "queries"
        return made_from if self._linked is not None else None

    @property
    def _first(self) -> int:
        """The position of the first row that waits."""
        return 0 if self._linked is None else len(self._linked.keys)

    # Learning

    def learn(self, queries: Dense, /) -> None:
        """Make links from queries like those that will be asked, from now on; rows held are linked again.

        One for four rows is enough, ``(t, d)``: from a service's log, or a model's own over the same text.

        Raises
        ------
        ShapeError
            Other dimensions than the rows, NaN or infinity.
        InvalidInput
            If none is longer than zero.
        """
        vectors = check_dense(queries, what="queries", dim=self._dim)
        vectors = vectors if self.metric == "l2" else unit(vectors[vectors.any(axis=1)])
        if not len(vectors):
            raise InvalidInput("There are no training queries.", "Give some that are not zero.")
        given = np.random.default_rng(self.seed).permutation(vectors)[: self.train_size or _MOST]
        if self._linked is not None:
            self._linked = self._made(self._linked.keys, given)
        self._given, self._dim = given, vectors.shape[1]

    def _made(self, keys: Dense, given: Dense | None) -> KeyGraph:
        return KeyGraph.of(keys, self._questions(0, given), degree=self.degree, by_distance=self.metric == "l2")

    def _questions(self, used: int, given: Dense | None) -> Dense:
        """Training queries that the rows there are should have beside those used, ``(t, d)``.

        For products of one length, which does not change what they find: so a row can tell which finds it best.
        """
        size = self.train_size or min(max(len(self) // _SHARE, _LEAST), _MOST)
        if given is not None:
            return given[used : max(size, used)]
        alive = np.flatnonzero(self._rows.alive)
        size = min(max(size - used, 0), len(alive))
        chosen = np.random.default_rng((self.seed, used)).choice(alive, size, replace=False)
        rows = self._fetch(np.sort(chosen))
        return rows if self.metric == "l2" else unit(rows)

    def link(self) -> None:
        """Link every row that waits; if it fails, they go on waiting."""
        with self._restored():
            self._link()

    def _link(self) -> None:
        if 2 * len(self) < len(self._rows.ids):
            self._gather()
        if not len(self._waiting):
            return
        if self._linked is None:
            self._linked = self._made(self._waiting.copy(), self._given)
        else:
            more = self._questions(len(self._linked.queries), self._given)
            self._linked = self._linked.grown(self._waiting, more)
        self._tail = self._tail[:0]

    def compact(self) -> None:
        """Give back the places of rows removed or replaced, and link the others from the beginning."""
        linked = self._linked is not None
        with self._restored():
            self._gather()
            if linked:
                self._link()

    @contextmanager
    def _restored(self) -> Generator[None]:
        """Have the rows and their links as they were, if what is done inside fails."""
        rows = Rows(self._rows.ids.copy(), self._rows.alive.copy())
        before = self._tail, rows, self._linked
        try:
            yield
        except BaseException:
            self._tail, self._rows, self._linked = before
            raise

    def _gather(self) -> None:
        """Only rows that are alive, in the order of their keys, waiting."""
        ids = self.ids
        self._tail, self._rows, self._linked = self._fetch(self._rows.find(ids)), Rows(ids), None

    # Rows

    def add(self, ids: Ids, embeddings: Dense, /) -> None:
        """Insert or replace rows.

        Raises
        ------
        ShapeError
            Another number of dimensions than before, NaN or infinity, or not one id for each row.
        InvalidInput
            A negative id, or one that comes twice.
        """
        vectors = self._checked(embeddings, what="embeddings")
        ids = check_ids(ids, rows=len(vectors))
        if not len(ids):
            return
        start = len(self._waiting)
        coming = np.count_nonzero(self._rows.find(ids) < self._first)  # the others take the place of some that wait
        enough = self.waiting + coming >= max(self.batch, self._first // _SHARE)
        with self._restored() if enough else nullcontext():
            self._tail = grown(self._tail.reshape(-1, vectors.shape[1]), start + len(ids))
            self._tail[start : start + len(ids)] = vectors
            self._rows.append(ids)
            if enough:
                self._link()
        self._dim = vectors.shape[1]

    @property
    def _waiting(self) -> Dense:
        return self._tail[: len(self._rows.ids) - self._first]

    def remove(self, ids: Ids, /) -> int:
        """Take rows away; returns how many were there."""
        return self._rows.remove(check_removed(ids))

    def _fetch(self, positions: Positions) -> Dense:
        """The vectors at positions, ``(m, d)``."""
        if self._linked is None:
            return self._tail[positions]
        if not len(self._waiting):
            return self._linked.keys[positions]
        out = np.empty((len(positions), self._tail.shape[1]), dtype=np.float32)
        inside = positions < self._first
        out[inside] = self._linked.keys[positions[inside]]
        out[~inside] = self._tail[positions[~inside] - self._first]
        return out

    # Searching

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
            For another option.
        """
        return self._search(queries, k, allowed, options)[0]

    def touched(
        self, queries: Dense, k: int, /, *, allowed: IdSet | None = None, options: Mapping[str, int] | None = None
    ) -> Ids:
        """How many rows such a search compares with each query, ``(q,)``, those that wait among them."""
        return self._search(queries, k, allowed, options)[1]

    def _search(
        self, queries: Dense, k: int, allowed: IdSet | None, options: Mapping[str, int] | None
    ) -> tuple[Neighbors, Ids]:
        allowed = check_search(k, allowed, options)
        vectors = self._checked(queries)
        _check_options(options or {})
        mask, linked = self._rows.mask(allowed), self._first
        held = linked if mask is None else int(np.count_nonzero(mask[:linked]))
        ef = {"ef": max(128, k * 3 // 2), **self.options, **(options or {})}["ef"]
        ef = math.ceil(max(ef, k) * linked / max(held, 1))
        if self._linked is None or held <= _VISITED * ef:  # else more than k are held
            return self._scan(vectors, k, 0, mask)
        walked = self._linked.walk(vectors, k, ef=ef, mask=None if mask is None else mask[:linked])
        parts, touched = [self._scored(vectors, walked.positions)], walked.touched
        if len(self._waiting):
            beside, more = self._scan(vectors, k, linked, mask)
            parts.append(beside)
            touched += more
        found = merge(parts, k)
        short = np.flatnonzero(walked.positions[:, -1] < 0)
        if len(short):
            again, more = self._scan(vectors[short], k, 0, mask)
            found.ids[short], found.scores[short] = again.ids, again.scores
            touched[short] += more
        return found, touched

    def _checked(self, vectors: Dense, *, what: str = "queries") -> Dense:
        """Vectors as they are compared."""
        out = check_dense(vectors, what=what, dim=self._dim)
        return unit(out) if self.metric == "cosine" else out

    def _scan(self, queries: Dense, k: int, first: int, mask: NDArray[np.bool_] | None) -> tuple[Neighbors, Ids]:
        """The k best of every position from ``first`` on that the mask keeps, exactly, and how many these are."""
        positions = np.arange(first, len(self._rows.ids)) if mask is None else first + np.flatnonzero(mask[first:])
        found = nearest(queries, k, self._blocks(positions), metric=self._measured)
        return found, np.full(len(queries), len(positions), dtype=np.int64)

    def _blocks(self, positions: Positions) -> Iterator[Block]:
        for start in range(0, len(positions), _BLOCK):
            part = positions[start : start + _BLOCK]
            vectors = self._fetch(part)
            yield Block(self._rows.ids[part], vectors, squared(vectors))

    def _scored(self, queries: Dense, positions: Positions) -> Neighbors:
        """Keys and exact scores at positions, ``(q, m)``; ``-1`` and ``-inf`` where there is none."""
        ids = np.full(positions.shape, -1, dtype=np.int64)
        scores = np.full(positions.shape, -np.inf, dtype=np.float32)
        asked, at = np.nonzero(positions >= 0)
        rows = positions[asked, at]
        ids[asked, at] = self._rows.ids[rows]
        scores[asked, at] = score_pairs(queries, asked, self._fetch, rows, metric=self._measured)
        return Neighbors(ids, scores)

    def score(self, queries: Dense, ids: Ids, /) -> Dense:
        """Scores of the given rows, ``(q, m)`` for ids ``(q, m)``; ``-inf`` where an id is -1 or not held."""
        vectors = self._checked(queries)
        pairs = check_pairs(ids, queries=len(vectors))
        return self._scored(vectors, self._rows.find(pairs.ravel()).reshape(pairs.shape)).scores

    # Disk

    def save(self, path: Path | str, /) -> None:
        """Write a new folder: whole, checksummed and on disk when this returns, or absent."""
        meta = {"spec": dict(self.spec), "dim": self._dim}
        arrays = {"ids": self._rows.ids, "alive": self._rows.alive, "waiting": self._waiting, "given": self._given}
        with new_folder(path, _KIND, meta) as folder:
            for name, array in arrays.items():
                if array is not None:
                    np.save(folder / f"{name}.npy", array, allow_pickle=False)
            if self._linked is not None:
                self._linked.write(folder)

    @classmethod
    def open(cls, path: Path | str, /, *, mmap: bool = False) -> Self:
        """Read what `save` wrote.

        Parameters
        ----------
        mmap
            Leave keys, links and lists on disk and map them into memory: opening takes no time and little room, and
            the checksums are not read. They are copied when rows are linked next.

        Raises
        ------
        NotFound, NewerFormat, CorruptArtifact
        """
        with reading(cls, path, _KIND, verify=not mmap) as (folder, meta):
            index = cls(**arguments(meta))
            dim = index._dim = None if meta["dim"] is None else whole(meta, "dim", least=1)
            index._rows = Rows.read(folder)
            wide = dim if len(index._rows.ids) else None  # what was taught before the first row tells d
            index._tail = read_array(folder / "waiting.npy", np.float32, (None, wide))
            sound = finite(index._tail)
            if (folder / "given.npy").exists():
                given = read_array(folder / "given.npy", np.float32, (None, dim), mapped="r" if mmap else None)
                index._given, sound = given, sound and (mmap or finite(given))
            if (folder / "links.npy").exists():
                by_distance = index.metric == "l2"
                index._linked = KeyGraph.read(folder, dim=whole(meta, "dim"), by_distance=by_distance, mapped=mmap)
            if not sound or index._first + len(index._tail) != len(index._rows.ids):
                raise ValueError(f"it has {len(index._rows.ids)} keys for other rows, or rows that are not finite")
        return index


def _check_options(options: Mapping[str, int]) -> None:
    if not isinstance(cast("object", options), Mapping):
        raise ConfigurationError(f"options is {options!r}.", "Give a mapping: {'ef': 128}.")
    for name, value in options.items():
        if name != "ef" or not isinstance(cast("object", value), int) or value < 1:
            problem = f"QueryAwareIndex has no search option {name}={value!r}."
            raise ConfigurationError(problem, "It has ef, a positive whole number.")
