"""Approximate search of learned-sparse rows: Seismic in sealed segments, exact for everything else.

Shapes: q queries, n rows of a segment, V columns in use, k results.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from reperio.artifacts import new_folder
from reperio.embeddings import Dense, Ids, IdSet, Sparse, take
from reperio.errors import ConfigurationError, StorageError
from reperio.extras import load
from reperio.indexes.inverted import InvertedIndex, TermScore
from reperio.indexes.labelled import check_positive
from reperio.indexes.postings import Precision
from reperio.indexes.quiet import quiet
from reperio.indexes.rows import check_removed, check_search, merge, pad
from reperio.indexes.sparse_rows import drop_zeros
from reperio.indexes.stored import arguments, ascends, once_each, read_array, reading, whole
from reperio.indexes.weighting import ALL
from reperio.protocols import Spec
from reperio.types import Neighbors

__all__ = ["SeismicIndex"]

_KIND = "seismic-index"
_NARROW = 1 << 16
"""Columns that a component of 16 bits can name; with more, Seismic needs its wider kind."""

_TOLD = re.compile(
    rb"\n?Building the index\.\.\.|Configuration \{.*|Distributing and pruning postings: .*|Number of posting lists: .*"
    rb"|Avg posting list length: .*|Building summaries: .*|Saving \.\.\. .*"
)
"""What Seismic prints while it builds and saves."""


@dataclass(frozen=True, slots=True, eq=False)
class _Sealed:
    """Rows that Seismic holds.

    Attributes
    ----------
    keys
        Row keys, ``(n,)``, ascending.
    alive
        Which were not removed or replaced since, ``(n,)``.
    columns
        Columns in use, ``(V,)``, ascending; a component is a place here.
    engine
        Seismic's own index; its document ids are places in ``keys``.
    """

    keys: IdSet
    alive: NDArray[np.bool_]
    columns: NDArray[np.int64]
    engine: Any

    def search(self, queries: Sparse, k: int, *, cut: int, heap_factor: float) -> Neighbors:
        """The k best live rows of each query, as Seismic sees them, in any order; scores are its own."""
        dead = len(self.keys) - int(np.count_nonzero(self.alive))
        asked = min(len(self.keys), k + dead * k // max(1, len(self.keys)) + (8 if dead else 0))
        while True:
            ids, scores = self._ask(queries, asked, cut=cut, heap_factor=heap_factor)
            held = ids >= 0
            if not dead:
                return Neighbors(np.where(held, self.keys[ids], -1), scores)
            held &= self.alive[ids]
            if asked == len(self.keys) or ((held.sum(axis=1) >= k) | (ids[:, -1] < 0)).all():
                break
            asked = min(len(self.keys), 4 * asked)
        ids = np.where(held, self.keys[ids], -1)
        return merge([Neighbors(ids, np.where(held, scores, -np.inf).astype(np.float32))], k)

    def _ask(self, queries: Sparse, k: int, *, cut: int, heap_factor: float) -> tuple[Ids, Dense]:
        string = load("seismic", extra="seismic").get_seismic_string()
        places = np.minimum(np.searchsorted(self.columns, queries.indices), len(self.columns) - 1)
        known = self.columns[places] == queries.indices
        names, weights = places.astype(string), queries.weights
        parts = [slice(int(a), int(b)) for a, b in zip(queries.indptr[:-1], queries.indptr[1:], strict=True)]
        components = [names[part][known[part]] for part in parts]
        values = [weights[part][known[part]] for part in parts]
        numbers = np.arange(len(queries)).astype(string)
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        found = self.engine.batch_search(numbers, components, values, k, cut, heap_factor)
        for hits in found:
            if hits:
                row = int(hits[0][0])
                _, own, found_here = zip(*hits, strict=True)
                ids[row, : len(hits)], scores[row, : len(hits)] = np.array(found_here, dtype=np.int64), np.array(own)
        return ids, scores


@dataclass(slots=True, eq=False)
class _Moment:
    """What Seismic holds at one moment, and once a search has asked, the keys of the rows that it does not hold."""

    segments: tuple[_Sealed, ...] = ()
    waiting: IdSet | None = None

    @property
    def rows(self) -> int:
        """How many Seismic answers for."""
        return sum(int(np.count_nonzero(segment.alive)) for segment in self.segments)


class SeismicIndex:
    """Finds nearly the best sparse rows by inner product, several times as fast as exactly.

    Rows are held by an exact `InvertedIndex`. Whenever ``seal_at`` rows have gathered, Seismic takes them in as a
    sealed segment, which is slow, and is asked for them from then on; the others, and every search with a filter,
    are answered exactly. Scores are exact: what Seismic proposes is scored from the rows. `exact` is the twin to
    measure recall against.

    Parameters
    ----------
    seal_at
        Rows of a segment.
    n_postings, centroid_fraction, summary_energy
        Of Seismic's lists, when a segment is made: rows kept a term, clusters a list as a share of its rows, and the
        share of a cluster's weight that its summary keeps.
    query_cut
        How many of a query's heaviest terms choose the lists to look into.
    heap_factor
        A cluster is looked into if its summary's score times this is above the k-th best; lower is more exact.
    precision
        Of the exact index.

    Raises
    ------
    ConfigurationError
        A parameter out of range.

    Notes
    -----
    Bruch, Nardini, Rulli and Venturini: Efficient inverted indexes for approximate retrieval over learned sparse
    representations. SIGIR 2024. Needs ``pip install 'reperio[seismic]'``.
    """

    lossless = True
    returns_only_matches = True
    weights_below = ALL
    lowest = 0.0

    def __init__(
        self,
        *,
        seal_at: int = 50_000,
        n_postings: int = 3500,
        centroid_fraction: float = 0.1,
        summary_energy: float = 0.4,
        query_cut: int = 10,
        heap_factor: float = 0.7,
        precision: Precision = "uint8",
    ) -> None:
        check_positive(seal_at=seal_at, n_postings=n_postings, query_cut=query_cut)
        fractions = {
            "centroid_fraction": centroid_fraction,
            "summary_energy": summary_energy,
            "heap_factor": heap_factor,
        }
        for name, share in fractions.items():
            if not isinstance(cast("object", share), Real) or not 0 < share <= 1:
                raise ConfigurationError(f"{name} is {share!r}.", "Give a number above 0, and up to 1.")
        self.seal_at, self.n_postings, self.query_cut = seal_at, n_postings, query_cut
        self.centroid_fraction, self.summary_energy, self.heap_factor = centroid_fraction, summary_energy, heap_factor
        self.exact = InvertedIndex(precision=precision)
        self._now = _Moment()
        self._changing = threading.Lock()

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty."""
        names = ("seal_at", "n_postings", "centroid_fraction", "summary_energy", "query_cut", "heap_factor")
        settings = {name: getattr(self, name) for name in names}
        return {"type": "SeismicIndex", **settings, "precision": self.exact.precision}

    def __len__(self) -> int:
        return len(self.exact)

    @property
    def ids(self) -> IdSet:
        """Every row key held, ``(n,)``, sorted."""
        return self.exact.ids

    @property
    def sealed(self) -> int:
        """How many rows Seismic answers for."""
        return self._now.rows

    @property
    def segments(self) -> int:
        """How many Seismic answers for; the rest is searched exactly."""
        return len(self._now.segments)

    @property
    def waiting(self) -> int:
        """Rows that no segment of Seismic's holds yet."""
        return len(self) - self.sealed

    def _unsealed(self, now: _Moment) -> IdSet:
        """Keys of the rows that wait: found once, until the index changes."""
        if now.waiting is None:
            taken = [s.keys[s.alive] for s in now.segments]
            now.waiting = np.setdiff1d(self.exact.ids, np.concatenate(taken)) if taken else self.exact.ids
        return now.waiting

    def add(self, ids: Ids, embeddings: Sparse, /) -> None:
        """Insert or replace rows; seals a segment when enough have gathered. If that fails, nothing is added.

        Raises
        ------
        InvalidInput
            As `InvertedIndex.add`.
        StorageError
            If there is no room on disk for what Seismic prints.
        """
        with self._changing, self._restored(), self.exact.all_or_nothing():
            self.exact.add(ids, embeddings)
            left = _Moment(self._without(np.asarray(ids, dtype=np.int64)))
            if len(self.exact) - left.rows >= self.seal_at:
                left = _Moment((*left.segments, *self._made(self._unsealed(left))))
            self._now = left

    def remove(self, ids: Ids, /) -> int:
        """Take rows away; returns how many were there."""
        gone = check_removed(ids)
        with self._changing, self._restored():
            left = self._without(gone)
            self._now = _Moment(left)  # first: what Seismic still proposes must have a score
            removed = self.exact.remove(gone)
            self._now = _Moment(left)
            return removed

    @contextmanager
    def _restored(self) -> Generator[None]:
        """Have the segments as they were, if what is done inside fails."""
        before = self._now
        try:
            yield
        except BaseException:
            self._now = before
            raise

    def _without(self, ids: Ids) -> tuple[_Sealed, ...]:
        left: list[_Sealed] = []
        for sealed in self._now.segments:
            gone = np.isin(sealed.keys, ids) & sealed.alive
            rest = replace(sealed, alive=sealed.alive & ~gone) if gone.any() else sealed
            # A segment that is mostly dead is let go: its rows are searched exactly until the next is sealed.
            if 2 * np.count_nonzero(rest.alive) > len(rest.keys):
                left.append(rest)
        return tuple(left)

    def seal(self) -> None:
        """Let Seismic take in every row, in one new segment.

        Raises
        ------
        StorageError
            If there is no room on disk for what Seismic prints; the segments are as they were.
        """
        with self._changing:
            self._now = _Moment(self._made(self.exact.ids))

    def _made(self, keys: IdSet) -> tuple[_Sealed, ...]:
        """A segment of these rows, or none if none of them holds a term."""
        if not len(keys):
            return ()
        seismic = load("seismic", extra="seismic")
        rows = self.exact.rows(keys)
        held = np.diff(rows.indptr) > 0  # Seismic cannot hold a row without terms, and no query finds one
        keys, rows = keys[held], take(rows, np.flatnonzero(held))
        if not len(keys):
            return ()
        columns, components = np.unique(rows.indices, return_inverse=True)
        wide = len(columns) > _NARROW
        names = [str(i) for i in range(len(keys))]
        dataset = (seismic.SeismicDatasetLV if wide else seismic.SeismicDataset)()
        dataset.add_documents_by_id(names, components.astype(np.int64), rows.weights, rows.indptr)
        with quiet(_TOLD):
            engine = (seismic.SeismicIndexLV if wide else seismic.SeismicIndex).build_from_dataset(
                dataset,
                n_postings=self.n_postings,
                centroid_fraction=self.centroid_fraction,
                summary_energy=self.summary_energy,
            )
        return (_Sealed(keys, np.ones(len(keys), dtype=np.bool_), columns, engine),)

    def search(
        self, queries: Sparse, k: int, /, *, allowed: IdSet | None = None, options: Mapping[str, int] | None = None
    ) -> Neighbors:
        """Nearly the k best rows for each query; with ``allowed``, exactly those.

        Parameters
        ----------
        options
            ``query_cut``.

        Raises
        ------
        InvalidInput
            If k is not positive or a query is malformed.
        ConfigurationError
            For another option.
        """
        unknown = sorted(set(options or {}) - {"query_cut"})
        if unknown:
            raise ConfigurationError(f"SeismicIndex has no search option {unknown[0]!r}.", "It has: query_cut.")
        allowed = check_search(k, allowed, options)
        cut = (options or {}).get("query_cut", self.query_cut)
        if cut < 1:
            raise ConfigurationError(f"The search option query_cut is {cut}.", "Give 1 or more.")
        now = self._now  # taken once: another thread may change it
        if allowed is not None or not now.segments:
            return self.exact.search(queries, k, allowed=allowed)
        queries = drop_zeros(self.exact.checked(queries))  # Seismic takes a term of no weight for a match
        parts = [s.search(queries, k, cut=cut, heap_factor=self.heap_factor) for s in now.segments]
        if len(waiting := self._unsealed(now)):
            parts.append(self.exact.search(queries, k, allowed=waiting))
        best = merge(parts, k) if len(parts) > 1 else parts[0]
        found = Neighbors(best.ids, self.exact.score(queries, best.ids))
        best = merge([found], k)
        return pad(best.ids, best.scores, k)

    def score(self, queries: Sparse, ids: Ids, /) -> Dense:
        """Scores of the given rows, ``(q, m)`` for ids ``(q, m)``; ``-inf`` where an id is -1 or not held."""
        return self.exact.score(queries, ids)

    def explain(self, query: Sparse, row: int, /) -> list[TermScore]:
        """As `InvertedIndex.explain`."""
        return self.exact.explain(query, row)

    def save(self, path: Path | str, /) -> None:
        """Write a new folder: whole, checksummed and on disk when this returns, or absent."""
        with new_folder(path, _KIND, {"spec": dict(self.spec), "segments": len(self._now.segments)}) as folder:
            self.exact.save(folder / "exact")
            for number, sealed in enumerate(self._now.segments):
                for name in ("keys", "alive", "columns"):
                    np.save(folder / f"{number}-{name}.npy", getattr(sealed, name), allow_pickle=False)
                _write(sealed, folder, number)

    @classmethod
    def open(cls, path: Path | str, /, *, verify: bool = True) -> Self:
        """Read what `save` wrote.

        Parameters
        ----------
        verify
            As for `InvertedIndex.open`.

        Raises
        ------
        NotFound, NewerFormat, CorruptArtifact
        """
        with reading(cls, path, _KIND, verify=verify, once=True) as (folder, meta):
            index = cls(**arguments(meta))
            index.exact = InvertedIndex.open(folder / "exact", verify=verify)
            index._now = _Moment(tuple(_open(folder, number) for number in range(whole(meta, "segments"))))
            living = [sealed.keys[sealed.alive] for sealed in index._now.segments]
            once_each(living)
            if not all(np.isin(keys, index.exact.ids).all() for keys in living):
                raise ValueError("Seismic holds a row that the exact index does not")
        return index


def _write(sealed: _Sealed, folder: Path, number: int) -> None:
    """Let Seismic write its file, and read it back: it does not tell when the last bytes do not fit."""
    try:
        with quiet(_TOLD):
            sealed.engine.save(str(folder / str(number)))
        _engine(folder, number, len(sealed.columns))
    except StorageError:
        raise
    except OSError as error:
        told = re.search(r"code: (\d+)", str(error))
        code = int(told[1]) if told else error.errno or errno.ENOSPC
        raise OSError(code, os.strerror(code), str(folder)) from error


def _engine(path: Path, number: int, columns: int) -> Any:
    seismic = load("seismic", extra="seismic")
    (file,) = path.glob(f"{number}.*seismic")
    return (seismic.SeismicIndexLV if columns > _NARROW else seismic.SeismicIndex).load(str(file))


def _open(path: Path, number: int) -> _Sealed:
    keys = read_array(path / f"{number}-keys.npy", np.int64, (None,))
    alive = read_array(path / f"{number}-alive.npy", np.bool_, (len(keys),))
    columns = read_array(path / f"{number}-columns.npy", np.int64, (None,))
    if not len(columns) or not ascends(keys) or not ascends(columns):
        raise ValueError(f"the keys or columns of segment {number} do not ascend")
    return _Sealed(keys, alive, columns, _engine(path, number, len(columns)))
