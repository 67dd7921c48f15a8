"""FAISS: any factory string, with row keys, upsert, delete and filters on all of them.

Shapes: q queries, n rows, d dimensions, k results, m rows asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from reperio.artifacts import new_folder, read_folder
from reperio.embeddings import Dense, Ids, IdSet, check_dense
from reperio.errors import ConfigurationError, CorruptArtifact, ShapeError, UnsupportedOperation
from reperio.extras import load
from reperio.indexes.factory import FactoryIndex
from reperio.indexes.flat import FlatIndex, Metric, check_metric, unit
from reperio.indexes.layers import OPTIONS
from reperio.indexes.rows import Rows, check_ids, check_k, check_pairs, merge
from reperio.protocols import Spec
from reperio.types import Neighbors

__all__ = ["FaissIndex"]

_KIND = "faiss-index"
_FILE = "index.faiss"
_CHUNK = 1 << 16
"""Rows scaled and appended at a time: what adding takes beside the index."""

_TYPICAL = 3840
"""Dimensions that nearly every factory fits, to ask what it is like before the first row tells."""

_UNKNOWN = 1 << 14
"""Training size of a factory that does not fit them: what 256 centroids take."""


class FaissIndex:
    """Search through any index that FAISS can build, never less than exact before it is trained.

    Rows wait in an exact index until there are enough of them to train on; then FAISS takes them in. Any factory
    can replace and remove rows: their old positions are dead and left out of every search, until `compact`.
    A search returns min(k, rows allowed) rows, however few lists it was to probe: where FAISS stops short, it is
    asked again to look further, and at last every row is looked at. Searches may run in many threads at once, as
    long as none changes the index.

    Parameters
    ----------
    factory
        Any string for ``faiss.index_factory``: ``"Flat"``, ``"HNSW32"``, ``"IVF1024,SQ8"``, ``"OPQ16,IVF256,PQ16"``,
        ``"IVF4096,PQ32x4fs,RFlat"``. It is tried on the first rows, before any is taken.
    metric
        ``"cosine"`` (vectors are scaled to length one when added and when asked for), ``"ip"`` (inner product), or
        ``"l2"``: the score is the squared Euclidean distance, negated.
    train_size
        How many vectors to train on; if not given 64 for each centroid, and at least 4096.
    seed
        Of the sample to train on and of k-means.
    options
        Search options in place of the defaults: ``nprobe``, the lists that an IVF index looks into (√nlist, at
        least 8); ``efSearch``, the candidates that HNSW keeps (64, or twice k); ``k_factor``, how many times k
        rows a refined index scores again (8). With a filter that keeps one row in ten, ``nprobe`` and
        ``efSearch`` count tenfold.

    Raises
    ------
    ConfigurationError
        Unknown metric or option; a number that is not positive.

    Notes
    -----
    Douze et al.: The Faiss library. 2024. Ties go to the lower id within the k rows returned; which of several
    rows tied at the k-th place is among them, FAISS decides. Adding while another thread searches needs a lock.

    Examples
    --------
    >>> index = FaissIndex("HNSW16", metric="l2", options={"efSearch": 128})
    >>> index.add(np.array([7, 9]), np.array([[1, 0], [0, 1]], dtype=np.float32))
    >>> index.search(np.array([[1, 0]], dtype=np.float32), 2).scores.tolist()
    [[0.0, -2.0]]
    """

    def __init__(
        self,
        factory: str = "Flat",
        *,
        metric: Metric = "cosine",
        train_size: int | None = None,
        seed: int = 0,
        options: Mapping[str, int] | None = None,
    ) -> None:
        if train_size is not None and train_size < 1:
            raise ConfigurationError(f"train_size is {train_size}.", "Give a positive number, or None.")
        self.metric: Metric = check_metric(metric)
        self.factory, self.train_size, self.seed = factory, train_size, seed
        self.options = dict(options or {})
        self._check_options(self.options, OPTIONS.values())
        self._main: FactoryIndex | None = None
        self._rows = Rows()
        self._tail = FlatIndex(self.metric)
        self._mapped = False

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty."""
        return {
            "type": "FaissIndex",
            "factory": self.factory,
            "metric": self.metric,
            "train_size": self.train_size,
            "seed": self.seed,
            "options": self.options or None,
        }

    @property
    def lossless(self) -> bool:
        """Whether scores are exact: not after quantisation or projection, unless refined by the vectors themselves."""
        kind = self._typical()
        return kind is not None and kind.lossless

    @property
    def lowest(self) -> float:
        """-1 for cosine, else ``-inf``."""
        return -1.0 if self.metric == "cosine" else -np.inf

    def __len__(self) -> int:
        return len(self._rows) + len(self._tail)

    @property
    def ids(self) -> IdSet:
        """Every row key held, ``(n,)``, sorted."""
        return np.sort(np.concatenate([self._rows.ids[self._rows.alive], self._tail.ids]))

    @property
    def dim(self) -> int | None:
        """d; None before the first row."""
        return None if self._main is None else self._main.dim

    def _typical(self) -> FactoryIndex | None:
        """The index, or before the first row one like it; None for a factory that fits few dimensions."""
        if self._main is not None:
            return self._main
        try:
            return FactoryIndex(self.factory, self.metric, _TYPICAL)
        except ConfigurationError:
            return None

    def _built(self, dim: int) -> FactoryIndex:
        main = FactoryIndex(self.factory, self.metric, dim, seed=self.seed)
        self._check_options(self.options, main.defaults(1))
        if self.train_size is not None and self.train_size < main.centroids:
            problem = f"train_size is {self.train_size}, and {self.factory!r} learns {main.centroids} centroids."
            raise ConfigurationError(problem, f"Give {main.centroids} or more, {39 * main.centroids} to learn well.")
        if main.trained:
            main.check()
        return main

    def _check_options(self, options: Mapping[str, int], known: Collection[str]) -> None:
        for name, value in options.items():
            if name not in known:
                fix = f"It has: {', '.join(known)}." if known else "It has none."
                raise ConfigurationError(f"FaissIndex({self.factory!r}) has no search option {name!r}.", fix)
            if not isinstance(cast("object", value), int) or value < 1:
                raise ConfigurationError(f"The search option {name} is {value!r}.", "Give a positive whole number.")

    # Training

    @property
    def training_size(self) -> int:
        """How many vectors `train` wants; 0 where nothing is to be learnt (any more)."""
        kind = self._typical()
        if kind is not None and kind.trained:
            return 0
        return self.train_size or (_UNKNOWN if kind is None else kind.training_size)

    def train(self, sample: Dense, /) -> None:
        """Learn from a random sample of what will be held, then take in the rows that wait.

        Raises
        ------
        UnsupportedOperation
            If there is nothing to be learnt, or it was already.
        ShapeError
            Too few vectors, or wrong ones.
        ConfigurationError
            If FAISS cannot build or train this factory.
        """
        vectors = check_dense(sample, what="sample", dim=self.dim)
        main = self._built(vectors.shape[1])
        if main.trained or (self._main is not None and self._main.trained):
            raise UnsupportedOperation(f"FaissIndex({self.factory!r}) has nothing to learn.", "Add rows to it.")
        if len(vectors) < main.centroids:
            problem = f"The sample has {len(vectors)} vectors, {self.factory!r} learns {main.centroids} centroids."
            raise ShapeError(problem, f"Give {self.training_size}.")
        main.train(self._scaled(vectors))
        self._main = main
        self._absorb(main)

    def _absorb(self, main: FactoryIndex) -> None:
        if len(self._tail):
            self._append(main, [self._tail.vectors])
            self._rows.append(self._tail.ids)
            self._tail = FlatIndex(self.metric)

    def _sample(self, main: FactoryIndex, vectors: Dense) -> Dense | None:
        """What to train on, once what waits and what comes are enough."""
        waiting, size = len(self._tail), self.train_size or main.training_size
        if waiting + len(vectors) < size:
            return None
        chosen = np.random.default_rng(self.seed).choice(waiting + len(vectors), size, replace=False)
        new = vectors[chosen[chosen >= waiting] - waiting]
        return np.concatenate([self._tail.vectors[chosen[chosen < waiting]], new]) if waiting else new

    # Rows

    def add(self, ids: Ids, embeddings: Dense, /) -> None:
        """Insert or replace rows.

        Raises
        ------
        ShapeError
            Another number of dimensions than before, NaN or infinity, or not one id for each row.
        InvalidInput
            A negative id, or one that comes twice.
        ConfigurationError
            If FAISS cannot build or train this factory for these dimensions.
        """
        vectors = check_dense(embeddings, what="embeddings", dim=self.dim)
        ids = check_ids(ids, rows=len(vectors))
        if not len(ids):
            return
        main = self._main or self._built(vectors.shape[1])
        if not main.trained and (sample := self._sample(main, vectors)) is not None:
            self.train(sample)
            main = self._main or main
        if self._mapped or not main.trained:
            self._tail.add(ids, vectors)
            self._rows.remove(ids)
        else:
            self._append(main, (self._scaled(vectors[i : i + _CHUNK]) for i in range(0, len(vectors), _CHUNK)))
            self._rows.append(ids)
            self._tail.remove(ids)
        self._main = main

    def _append(self, main: FactoryIndex, parts: Iterable[Dense]) -> None:
        """Fill positions that no row has yet; if it fails they stay dead."""
        try:
            for part in parts:
                main.append(part)
        except BaseException:
            self._rows.bury(main.total)
            raise

    def remove(self, ids: Ids, /) -> int:
        """Take rows away; returns how many were there."""
        gone = np.unique(np.asarray(ids, dtype=np.int64))
        return self._rows.remove(gone) + self._tail.remove(gone)

    def compact(self) -> None:
        """Give back the positions of rows removed or replaced, and take in rows added to a mapped index.

        Raises
        ------
        UnsupportedOperation
            If the vectors cannot be had back exactly from the index.
        """
        main = self._main
        if main is None or not main.trained:
            return
        if not main.lossless:
            problem = f"FaissIndex({self.factory!r}) does not keep the vectors themselves."
            raise UnsupportedOperation(problem, "Build it again from where they are kept.")
        fresh, alive = main.emptied(), np.flatnonzero(self._rows.alive)
        alive = alive[np.argsort(self._rows.ids[alive])]
        for start in range(0, len(alive), _CHUNK):
            fresh.append(main.decode(alive[start : start + _CHUNK]))
        self._main, self._rows, self._mapped = fresh, Rows(self._rows.ids[alive]), False
        self._absorb(fresh)

    # Searching

    def search(
        self, queries: Dense, k: int, /, *, allowed: IdSet | None = None, options: Mapping[str, int] | None = None
    ) -> Neighbors:
        """The k best rows for each query, among ``allowed`` if given: always min(k, allowed held) of them.

        Parameters
        ----------
        options
            ``nprobe``, ``efSearch``, ``k_factor``: those that the factory has.

        Raises
        ------
        InvalidInput
            If k is not positive.
        ShapeError
            If the queries have other dimensions than the rows, or hold NaN or infinity.
        ConfigurationError
            For an option that the factory does not have.
        """
        check_k(k)
        vectors = check_dense(queries, what="queries", dim=self.dim)
        main = self._main
        if options:
            kind = self._typical()
            self._check_options(options, OPTIONS.values() if kind is None else kind.defaults(k))
        if main is None or not main.trained:
            return self._tail.search(vectors, k, allowed=allowed)
        settings = {**main.defaults(k), **self.options, **(options or {})}
        found = self._keyed(main.search(self._scaled(vectors), k, self._rows.mask(allowed), settings))
        return merge([found, self._tail.search(vectors, k, allowed=allowed)], k) if len(self._tail) else found

    def _keyed(self, found: Neighbors) -> Neighbors:
        """Row keys for positions, equal scores in the order of their keys."""
        ids = self._rows.ids[found.ids] if len(self._rows.ids) else found.ids
        if ids.size and found.ids.min() < 0:
            ids[found.ids < 0] = -1
        found = Neighbors(ids, found.scores)
        ordered = (found.scores[:, 1:] < found.scores[:, :-1]).all()
        return found if ordered else merge([found], ids.shape[1])

    def score(self, queries: Dense, ids: Ids, /) -> Dense:
        """Scores of the given rows, ``(q, m)`` for ids ``(q, m)``; ``-inf`` where an id is -1 or not held.

        Exact where `lossless`; else of the vectors as the index keeps them.

        Raises
        ------
        UnsupportedOperation
            For RaBitQ that is not refined.
        """
        vectors = check_dense(queries, what="queries", dim=self.dim)
        pairs = check_pairs(ids, queries=len(vectors))
        out = self._tail.score(vectors, pairs)
        if self._main is not None and self._main.trained:
            positions = self._rows.find(pairs.ravel())
            here = np.flatnonzero(positions >= 0)
            asked = here // max(1, pairs.shape[1])
            out.ravel()[here] = self._main.score(self._scaled(vectors), asked, positions[here])
        return out

    def _scaled(self, vectors: Dense) -> Dense:
        return unit(vectors) if self.metric == "cosine" else vectors

    # Disk

    def save(self, path: Path, /) -> None:
        """Write a new folder: whole, checksummed and on disk when this returns, or absent."""
        version = load("faiss", extra="faiss").__version__
        with new_folder(path, _KIND, {"spec": dict(self.spec), "dim": self.dim, "faiss": version}) as folder:
            np.save(folder / "ids.npy", self._rows.ids, allow_pickle=False)
            np.save(folder / "alive.npy", self._rows.alive, allow_pickle=False)
            self._tail.save(folder / "waiting")
            if self._main is not None and self._main.trained:
                self._main.write(folder / _FILE)

    @classmethod
    def open(cls, path: Path, /, *, mmap: bool = False) -> Self:
        """Read what `save` wrote.

        Parameters
        ----------
        mmap
            Leave FAISS's file on disk and map it into memory: opening takes no time and no room, and the checksums
            are not read. What is added then waits in memory, searched exactly, until `compact`.

        Raises
        ------
        NotFound, NewerFormat, CorruptArtifact
        UnsupportedOperation
            If this release of FAISS cannot map.
        """
        meta = read_folder(path, _KIND, checksums=not mmap)
        try:
            arguments: dict[str, Any] = dict(meta["spec"])
            del arguments["type"]
            index = cls(**arguments)
            index._rows = Rows(*(np.load(path / name, allow_pickle=False) for name in ("ids.npy", "alive.npy")))
            index._tail = FlatIndex.open(path / "waiting")
            if meta["dim"] is not None:
                index._main = index._built(meta["dim"])
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise CorruptArtifact(f"{path} is no FaissIndex: {error}.", "Rebuild it.") from error
        if index._main is not None and (path / _FILE).exists():
            index._main.read(path / _FILE, mapped=mmap)
            index._mapped = mmap
        if index._main is not None and index._main.total != len(index._rows.ids):
            raise CorruptArtifact(f"{path} has {len(index._rows.ids)} keys for other rows.", "Rebuild it.")
        return index
