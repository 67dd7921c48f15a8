"""Binary codes: one bit for each dimension, compared by their Hamming distance.

Shapes: q queries, n rows, d dimensions, k results, b bytes of a code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from reperio.artifacts import disk_errors, new_folder
from reperio.embeddings import Dense, Ids, IdSet, check_dense
from reperio.errors import ConfigurationError, ShapeError, UnsupportedOperation
from reperio.indexes.binary_factory import BinaryFactory
from reperio.indexes.chosen import Chosen, KeyedRows
from reperio.indexes.flat import FlatIndex
from reperio.indexes.growing import check_options
from reperio.indexes.hamming import Codes, apart, encoded, nearest
from reperio.indexes.labelled import check_positive
from reperio.indexes.rows import (
    Positions,
    check_ids,
    check_pairs,
    check_removed,
    check_search,
    grown,
    merge,
    pad,
)
from reperio.indexes.stored import arguments, finite, read_array, reading, whole
from reperio.protocols import Spec
from reperio.types import Neighbors

__all__ = ["BinaryIndex", "Calibration"]

Calibration: TypeAlias = Literal["sign", "median"]
"""Where a dimension is cut in two: at zero, or at its median over a sample, which is kept."""

_KIND = "binary-index"
_FILE = "index.faissbinary"
_PER_CENTROID = 64
_LEAST = 4096
"""Training vectors for each centroid, and at the least."""

_CELLS = 1 << 26
"""Bytes gathered at a time."""


class BinaryIndex:
    """Search by one bit a dimension: 32 times smaller than the vectors, and coarse.

    A vector becomes the signs of its components, or on which side of their medians they lie; the score of two is
    1 - 2h/d for a Hamming distance h, the cosine of vectors of plus and minus ones. Codes are compared one with
    another, never with what they came from. Of the ten best of 30,000 passages (384 dimensions) ten results hold
    six and a hundred hold all but three in a hundred: search for some times k here, then score by the vectors.

    Parameters
    ----------
    factory
        ``"BFlat"``: every code is compared. ``"BHNSW32"``, ``"BIVF256"``: only those that a graph or lists lead to;
        their links or lists are kept beside the codes. A filter is met by comparing every code that passes.
    calibration
        ``"sign"``, or ``"median"`` where components are not centred: the medians are learnt from a sample, and until
        there is one, signs are compared.
    train_size
        Vectors to learn from; if not given 64 for each list, and at least 4096.
    seed
        Of the sample and of k-means.
    options
        Search options: ``nprobe`` (3√nlist, at least 16), ``efSearch`` (128, or twice k).

    Raises
    ------
    ConfigurationError
        Unknown factory, calibration or option; a number that is not positive; fewer vectors to learn from than lists.

    Notes
    -----
    Charikar: Similarity estimation techniques from rounding algorithms. STOC 2002. Of several rows tied at the k-th
    place, the first added are among the results.

    Examples
    --------
    >>> index = BinaryIndex()
    >>> index.add(np.array([7, 9]), np.array([[1, 2, -3, 4], [-1, 2, 3, 4]], dtype=np.float32))
    >>> index.search(np.array([[5, 1, -1, 1]], dtype=np.float32), 2).scores.tolist()
    [[1.0, 0.0]]
    """

    lossless = False
    lowest = -1.0

    def __init__(
        self,
        factory: str = "BFlat",
        *,
        calibration: Calibration = "sign",
        train_size: int | None = None,
        seed: int = 0,
        options: Mapping[str, int] | None = None,
    ) -> None:
        if calibration not in get_args(Calibration):
            raise ConfigurationError(f"There is no calibration {calibration!r}.", "Choose 'sign' or 'median'.")
        if train_size is not None:
            check_positive(train_size=train_size)
        self.factory, self.train_size, self.seed = factory, train_size, seed
        self.calibration: Calibration = calibration
        self._kind = BinaryFactory(factory, seed=seed)
        self._check(options or {})
        self.options = dict(options or {})
        if train_size is not None and train_size < (lists := self._kind.lists):
            problem = f"train_size is {train_size}, and {factory!r} learns {lists} lists."
            raise ConfigurationError(problem, f"Give {lists} or more, {39 * lists} to learn well.")
        self._rows = KeyedRows()
        self._codes: Codes = np.empty((0, 0), dtype=np.uint8)
        self._cuts: Dense | None = None  # None until learnt
        self._walk: Any = None
        self._waiting = FlatIndex("ip")
        self._dim: int | None = None

    def _check(self, options: Mapping[str, int]) -> None:
        check_options(f"BinaryIndex({self.factory!r})", options, self._kind.defaults(1))

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty."""
        return {
            "type": "BinaryIndex",
            "factory": self.factory,
            "calibration": self.calibration,
            "train_size": self.train_size,
            "seed": self.seed,
            "options": self.options or None,
        }

    def __len__(self) -> int:
        return len(self._rows) + len(self._waiting)

    @property
    def waiting(self) -> int:
        """Rows that are searched exactly, until there are enough to learn from."""
        return len(self._waiting)

    @property
    def ids(self) -> IdSet:
        """Every row key held, ``(n,)``, sorted."""
        return np.sort(np.concatenate([self._rows.ids[self._rows.alive], self._waiting.ids]))

    def _encoded(self, vectors: Dense) -> Codes:
        return encoded(vectors, self._cuts)

    # Training

    @property
    def training_size(self) -> int:
        """How many vectors `train` wants; 0 where nothing is to be learnt (any more)."""
        if self._learns_cuts or (self._kind.lists and self._walk is None):
            return self.train_size or max(_LEAST, _PER_CENTROID * self._kind.lists)
        return 0

    @property
    def _learns_cuts(self) -> bool:
        return self.calibration == "median" and self._cuts is None

    def train(self, sample: Dense, /) -> None:
        """Learn medians and lists from a random sample of what will be held, then take in the rows that wait.

        Raises
        ------
        UnsupportedOperation, ShapeError
            If there is nothing to be learnt, or it was already; fewer vectors than lists, or wrong ones.
        """
        vectors = check_dense(sample, what="sample", dim=self._dim)
        if not self.training_size:
            raise UnsupportedOperation(f"BinaryIndex({self.factory!r}) has nothing to learn.", "Add rows to it.")
        if len(vectors) < max(1, self._kind.lists):
            problem = f"The sample has {len(vectors)} vectors, {self.factory!r} learns {self._kind.lists} lists."
            raise ShapeError(problem, f"Give {self.training_size}.")
        self._learn(vectors, self._waiting)

    def _learn(self, sample: Dense, waiting: FlatIndex) -> None:
        """Learn medians and lists, and take in the rows that wait; if it fails, nothing is changed."""
        cuts = np.median(sample, axis=0).astype(np.float32) if self._learns_cuts else self._cuts
        known = encoded(sample, cuts)
        codes, rows = self._codes[: self._size].reshape(-1, known.shape[1]), self._rows
        if len(waiting):  # for medians, and while they are not known all rows wait
            codes, rows = encoded(waiting.vectors, cuts), KeyedRows(waiting.ids)
        walk, none = self._kind.filled(known, codes), FlatIndex("ip")
        self._cuts, self._codes, self._rows, self._walk, self._waiting = cuts, codes, rows, walk, none
        self._dim = sample.shape[1]

    @property
    def _size(self) -> int:
        return len(self._rows.ids)

    # Rows

    def add(self, ids: Ids, embeddings: Dense, /) -> None:
        """Insert or replace rows.

        Raises
        ------
        ShapeError, InvalidInput
            Other dimensions than before, NaN or infinity, not one id a row; a negative id, or one that comes twice.
        """
        vectors = check_dense(embeddings, what="embeddings", dim=self._dim)
        ids = check_ids(ids, rows=len(vectors))
        if not len(ids):
            return
        if self._learns_cuts:
            self._wait(ids, vectors)
            return
        codes = self._encoded(vectors)
        if self._kind.walks and self._walk is None and self._size + len(codes) >= self.training_size:
            codes = np.concatenate([self._codes[: self._size].reshape(-1, codes.shape[1]), codes])
            walk = self._kind.filled(self._drawn(codes), codes)
            self._rows.append(ids)
            self._codes, self._walk = codes, walk
        else:
            self._append(ids, codes)
        self._dim = vectors.shape[1]

    def _wait(self, ids: Ids, vectors: Dense) -> None:
        """Let rows wait, until there are enough to learn from."""
        if len(self._waiting) + len(ids) < self.training_size:
            self._waiting.add(ids, vectors)
        else:
            waiting = FlatIndex("ip")
            if len(self._waiting):
                waiting.add(self._waiting.ids, self._waiting.vectors)
            waiting.add(ids, vectors)
            if len(waiting) >= self.training_size:
                self._learn(self._drawn(waiting.vectors), waiting)
            else:
                self._waiting = waiting
        self._dim = vectors.shape[1]

    def _drawn(self, rows: Any) -> Any:
        """A random sample to learn from."""
        size = min(len(rows), self.training_size) or len(rows)
        return rows[np.sort(np.random.default_rng(self.seed).choice(len(rows), size, replace=False))]

    def _append(self, ids: Ids, codes: Codes) -> None:
        if self._walk is not None and int(self._walk.ntotal) != self._size:  # once they could not be told to be dead
            self._rows.bury(int(self._walk.ntotal))
        start, size = self._size, self._size + len(ids)
        held = grown(self._codes if start else np.empty((0, codes.shape[1]), dtype=np.uint8), size)
        held[start:size] = codes
        self._codes = held
        try:
            if self._walk is not None:
                self._walk.add(codes)
            self._rows.append(ids)
        except BaseException:
            if self._walk is not None:
                self._rows.bury(int(self._walk.ntotal))
            raise

    def remove(self, ids: Ids, /) -> int:
        """Take rows away; returns how many were there."""
        keys = check_removed(ids)
        gone = self._rows.held(keys)  # what can fail comes first
        waiting = self._waiting.remove(keys)
        self._rows.kill(gone)
        return len(gone) + waiting

    def compact(self) -> None:
        """Give back the positions of rows removed or replaced."""
        alive = np.flatnonzero(self._rows.alive)
        alive = alive[np.argsort(self._rows.ids[alive])]
        codes, rows = self._codes[alive], KeyedRows(self._rows.ids[alive])
        walk = None if self._walk is None else self._kind.refilled(self._walk, codes)
        self._codes, self._rows, self._walk = codes, rows, walk

    # Searching

    def search(
        self, queries: Dense, k: int, /, *, allowed: IdSet | None = None, options: Mapping[str, int] | None = None
    ) -> Neighbors:
        """The k best rows for each query, among ``allowed`` if given: always min(k, allowed held) of them.

        Raises
        ------
        InvalidInput, ShapeError, ConfigurationError
            k is not positive; queries of other dimensions, NaN or infinity; an option that the factory has not.
        """
        allowed = check_search(k, allowed, options)
        vectors = check_dense(queries, what="queries", dim=self._dim)
        self._check(options or {})
        settings = {**self._kind.defaults(k), **self.options, **(options or {})}
        return self._found(self._encoded(vectors), k, allowed, settings if allowed is None else None)

    def exact(self, queries: Dense, k: int, /, *, allowed: IdSet | None = None) -> Neighbors:
        """The twin of `search` that compares every code."""
        allowed = check_search(k, allowed)
        return self._found(self._encoded(check_dense(queries, what="queries", dim=self._dim)), k, allowed, None)

    def _found(self, codes: Codes, k: int, allowed: IdSet | None, settings: Mapping[str, int] | None) -> Neighbors:
        """By FAISS's graph or lists where there are settings for them, else by comparing every code that passes."""
        if len(self._waiting):
            return self._among_waiting(codes, k, allowed)
        chosen = self._rows.chosen(allowed)
        held = self._size if chosen is None else len(chosen)
        if self._walk is None or settings is None or 2 * held < self._size:
            found = self._compared(codes, k, None if chosen is None else chosen.positions)
        else:
            found = self._walked(codes, k, chosen, settings)
        ids = np.where(found.ids >= 0, self._rows.ids[found.ids], -1) if found.ids.size else found.ids
        found = merge([Neighbors(ids, found.scores)], k)
        return pad(found.ids, found.scores, k)

    def _among_waiting(self, codes: Codes, k: int, allowed: IdSet | None) -> Neighbors:
        ids, held = self._waiting.ids, self._encoded(self._waiting.vectors)
        kept = np.arange(len(ids)) if allowed is None else np.flatnonzero(np.isin(ids, allowed))
        found = self._nearest(codes, held[kept], k)
        return pad(ids[kept[found.ids]], found.scores, k)

    def _compared(self, codes: Codes, k: int, positions: Positions | None) -> Neighbors:
        """The best of all positions, or of those given."""
        held, step = self._codes[: self._size], max(1, _CELLS // max(1, codes.shape[1]))
        if positions is None:
            return self._nearest(codes, held, k)
        parts: list[Neighbors] = []
        for start in range(0, max(1, len(positions)), step):
            part = positions[start : start + step]
            near = self._nearest(codes, held[part], k)
            parts.append(Neighbors(part[near.ids], near.scores))
        return merge(parts, k)

    def _nearest(self, codes: Codes, held: Codes, k: int) -> Neighbors:
        places, distances = nearest(codes, held, k)
        return Neighbors(places, self._scores(distances))

    def _walked(self, codes: Codes, k: int, living: Chosen | None, options: Mapping[str, int]) -> Neighbors:
        """What FAISS's graph or lists lead to; where they lead to too few, every code is compared."""
        want = min(k, self._size if living is None else len(living))
        if not want or not len(codes):
            return self._compared(codes, k, None)
        fetch = want if living is None else min(self._size, 2 * want + 32)
        distances, ids = self._walk.search(codes, fetch, params=self._kind.settings(options))
        passing = ids >= 0 if living is None else (ids >= 0) & living.mask[ids]
        order = np.argsort(~passing, axis=1, kind="stable")[:, :want]
        ids, scores = np.take_along_axis(ids, order, axis=1), self._scores(np.take_along_axis(distances, order, axis=1))
        short = np.flatnonzero(passing.sum(axis=1) < want)
        if len(short):
            again = self._compared(codes[short], want, None if living is None else living.positions)
            ids[short], scores[short] = again.ids, again.scores
        return Neighbors(ids, scores)

    def _scores(self, distances: NDArray[Any]) -> Dense:
        """A cosine for each Hamming distance."""
        out: Dense = np.float32(1) - distances.astype(np.float32) * np.float32(2 / max(1, self._dim or 1))
        return out

    def score(self, queries: Dense, ids: Ids, /) -> Dense:
        """Scores of the given rows, ``(q, m)`` for ids ``(q, m)``; ``-inf`` where an id is -1 or not held."""
        vectors = check_dense(queries, what="queries", dim=self._dim)
        pairs = check_pairs(ids, queries=len(vectors))
        out = np.full(pairs.size, -np.inf, dtype=np.float32)
        waits = len(self._waiting) > 0
        keys = KeyedRows(self._waiting.ids) if waits else self._rows
        held = self._encoded(self._waiting.vectors) if waits else self._codes
        found = keys.find(pairs.ravel())
        here = np.flatnonzero(found >= 0)
        asked = self._encoded(vectors)[here // max(1, pairs.shape[1])]
        if len(here):
            out[here] = self._scores(apart(asked, held[found[here]]))
        return out.reshape(pairs.shape)

    # Disk

    def save(self, path: Path | str, /) -> None:
        """Write a new folder: whole, checksummed and on disk when this returns, or absent."""
        learnt = self._walk is not None
        with new_folder(path, _KIND, {"spec": dict(self.spec), "dim": self._dim, "learnt": learnt}) as folder:
            np.save(folder / "ids.npy", self._rows.ids, allow_pickle=False)
            np.save(folder / "alive.npy", self._rows.alive, allow_pickle=False)
            np.save(folder / "codes.npy", self._codes[: self._size], allow_pickle=False)
            if self._cuts is not None:
                np.save(folder / "cuts.npy", self._cuts, allow_pickle=False)
            self._waiting.save(folder / "waiting")
            if learnt:
                with disk_errors(folder):
                    (folder / _FILE).write_bytes(self._kind.to_bytes(self._walk))

    @classmethod
    def open(cls, path: Path | str, /, *, mmap: bool = False) -> Self:
        """Read what `save` wrote.

        Parameters
        ----------
        mmap
            Leave the codes on disk and map them into memory, until rows are added.

        Raises
        ------
        NotFound, NewerFormat, CorruptArtifact
        """
        with reading(cls, path, _KIND) as (folder, meta):
            index = cls(**arguments(meta))
            dim = index._dim = None if meta["dim"] is None else whole(meta, "dim", least=1)
            index._rows = KeyedRows.read(folder)
            shape = (index._size, -(-dim // 8) if dim is not None and index._size else None)
            index._codes = read_array(folder / "codes.npy", np.uint8, shape, mapped="c" if mmap else None)
            if dim is not None and dim % 8 and index._size and (index._codes[:, -1] & (0xFF >> dim % 8)).any():
                raise ValueError("a code has bits beyond its dimensions")
            if (folder / "cuts.npy").exists():
                cuts = index._cuts = read_array(folder / "cuts.npy", np.float32, (dim,))
                if not finite(cuts):
                    raise ValueError("a cut is not finite")
            index._waiting = FlatIndex.open_waiting(folder / "waiting", metric="ip", dim=dim, held=index._rows)
            if meta["learnt"]:
                index._walk = index._kind.from_bytes((folder / _FILE).read_bytes())
                if index._walk.ntotal != index._size or index._walk.d != 8 * -(-(dim or 0) // 8):
                    raise ValueError(f"FAISS's file holds {index._walk.ntotal} rows of {index._walk.d} bits")
        return index
