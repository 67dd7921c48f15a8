"""One index for every kind of sparse rows: learned weights, lexicon weights, term counts for BM25, or their sum."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self, get_args

import numpy as np

from reperio.artifacts import new_folder
from reperio.embeddings import Dense, Ids, IdSet, Sparse
from reperio.errors import ConfigurationError, NotFound, ShapeError
from reperio.indexes.postings import Precision, Segment, Settings
from reperio.indexes.rows import check_ids, check_pairs, check_removed, check_search
from reperio.indexes.scoring import View
from reperio.indexes.soundness import check_segment
from reperio.indexes.sparse_rows import check_sparse
from reperio.indexes.stored import arguments, once_each, reading, whole
from reperio.indexes.verified import forget, known
from reperio.indexes.weighting import ALL, Weighting
from reperio.protocols import Spec
from reperio.types import Neighbors

__all__ = ["InvertedIndex", "TermScore"]

_KIND = "inverted-index"
_SMALLEST = 128
"""Segments up to this many rows are merged whenever a row is added."""

_DRIFT = 0.05
"""A segment is made again when the rows' average length has changed so much since, as a share."""


class TermScore(NamedTuple):
    """What one query term gives to a row's score.

    Attributes
    ----------
    term
        The term's column; the encoder's ``terms`` tells its word.
    value
        What the row holds of it: how often it holds the term, or a weight.
    idf
        Its inverse document frequency, by the variant's formula; 1 where rows hold weights.
    contribution
        Its part of the score; the parts sum to the score.
    """

    term: int
    value: float
    idf: float
    contribution: float


class InvertedIndex:
    """Ranks sparse rows by inner product with the query, exactly.

    `search` returns rows that share a term with the query, and no others: a row without any of the terms asked
    for is no match, so fewer than k may come back and the rest is padding.

    Posting lists keep an upper bound of each impact in a byte; the rows that these bounds leave are scored from
    what was added, so results are exact. With numba (``pip install 'reperio[fast]'``) larger indexes are searched by
    compiled code that passes over rows which cannot be among the best, a batch in several threads.

    Rows are kept in sealed segments that are merged as they grow, so that adding costs O(log n) a row, one at a
    time or in bulk. Searching takes no lock and may go on in other threads while rows are added.

    Parameters
    ----------
    precision
        Of the posting lists: ``"uint8"``, or ``"float32"`` for four bytes a posting and fewer rows to score again.

    Raises
    ------
    ConfigurationError
        Unknown precision.

    Notes
    -----
    Turtle and Flood: Query evaluation: strategies and optimizations. IPM 1995. Ding and Suel: Faster top-k
    document retrieval using block-max indexes. SIGIR 2011. Segments merge by the logarithmic method of Bentley and
    Saxe (1980).

    Examples
    --------
    >>> weights = np.array([0.5, 2, 1], dtype=np.float32)
    >>> index = InvertedIndex()
    >>> index.add(np.array([7, 9]), Sparse(np.array([0, 2, 3]), np.array([1, 4, 4]), weights, 8))
    >>> query = Sparse(np.array([0, 1]), np.array([4]), np.array([3], dtype=np.float32), 8)
    >>> index.search(query, 2).scores.tolist()
    [[6.0, 3.0]]
    """

    lossless = True
    exhaustive = True
    returns_only_matches = True

    def __init__(self, *, precision: Precision = "uint8") -> None:
        self._begin(Weighting("lucene", 1.2, 0.75, weights_below=ALL), precision)

    def _begin(self, weighting: Weighting, precision: Precision) -> None:
        if precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise ConfigurationError(f"There is no precision {precision!r}.", f"Use one of {known}.")
        self.weighting = weighting
        self.precision: Precision = precision
        self._view = View(weighting, (), None)
        self._writing = threading.Lock()

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty."""
        return {"type": "InvertedIndex", "precision": self.precision}

    @property
    def weights_below(self) -> int:
        """Columns from here on hold counts, which BM25 weighs; beyond all of them where none does."""
        return self.weighting.weights_below

    @property
    def lowest(self) -> float:
        """0: weights are not negative."""
        return 0.0

    @property
    def segments(self) -> int:
        """How many there are: a search looks into each."""
        return len(self._view.segments)

    def __len__(self) -> int:
        return self._view.rows

    @property
    def ids(self) -> IdSet:
        """Every row key held, ``(n,)``, sorted."""
        parts = [segment.ids[segment.alive] for segment in self._view.segments]
        return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *parts]))

    def add(self, ids: Ids, embeddings: Sparse, /) -> None:
        """Insert or replace rows.

        Raises
        ------
        InvalidInput
            A negative id, an id twice, a malformed row, NaN or a negative weight; nothing is added.
        """
        embeddings = check_sparse(embeddings, what="embeddings", dim=self._view.dim)
        ids = check_ids(ids, rows=len(embeddings))
        if not len(ids):
            return
        with self._writing:
            merging = [Segment.build(ids, embeddings, self._settings([]))]
            kept, _ = self._without(ids)
            size = len(ids)
            while kept and kept[-1].live <= max(size, _SMALLEST):
                merging.append(kept.pop())
                size += merging[-1].live
            if len(merging) > 1:
                merging = [Segment.merge(merging, self._settings([*kept, *merging]))]
            self._view = self._current([*kept, *merging], embeddings.dim)

    def remove(self, ids: Ids, /) -> int:
        """Take rows away; returns how many were there."""
        ids = check_removed(ids)
        with self._writing:
            kept, found = self._without(ids)
            if found:
                self._view = self._current(kept, self._view.dim)
        return found

    @contextmanager
    def all_or_nothing(self) -> Generator[None]:
        """Have the rows as they were before, if what is done inside fails; no other thread may change them."""
        before = self._view
        try:
            yield
        except BaseException:
            with self._writing:
                self._view = before
            raise

    def compact(self) -> None:
        """Put all rows into one segment, without those that were removed."""
        with self._writing:
            segments = self._view.segments
            if len(segments) > 1 or any(s.live < len(s) for s in segments):
                merged = [Segment.merge(segments, self._settings(segments))]
                self._view = View(self.weighting, tuple(merged), self._view.dim)

    def _settings(self, segments: Sequence[Segment]) -> Settings:
        average = View(self.weighting, tuple(segments), None).average
        return Settings(self.weighting, average, self.precision)

    def _without(self, ids: Ids) -> tuple[list[Segment], int]:
        """The segments with these rows dead, and how many rows were there."""
        kept: list[Segment] = []
        removed = 0
        for segment in self._view.segments:
            positions = segment.find(ids)
            positions = positions[positions >= 0]
            removed += len(positions)
            rest = segment.without(positions) if len(positions) else segment
            if rest.live:
                kept.append(rest)
        return kept, removed

    def _current(self, segments: Sequence[Segment], dim: int | None) -> View:
        """A view of these, mostly dead ones and those whose bounds have become loose made again."""
        settings = self._settings(segments)
        counted = self.weighting.weights_below < ALL
        kept = [
            Segment.merge([s], settings)
            if 2 * s.live <= len(s)
            or (counted and max(s.drift(settings.average)[0], 1 / s.drift(settings.average)[1]) > 1 + _DRIFT)
            else s
            for s in segments
        ]
        return View(self.weighting, tuple(kept), dim)

    def search(
        self, queries: Sparse, k: int, /, *, allowed: IdSet | None = None, options: Mapping[str, int] | None = None
    ) -> Neighbors:
        """The k best rows for each query among those that share a term with it and are ``allowed``.

        A query's weights multiply its terms: a word asked for twice counts twice.

        Raises
        ------
        InvalidInput
            If k is not positive or a query is malformed.
        ConfigurationError
            For any option: there are none.
        """
        if options:
            name = type(self).__name__
            raise ConfigurationError(f"{name} has no search option {sorted(options)[0]!r}.", "It has none.")
        allowed = check_search(k, allowed, options)
        view = self._view
        queries = view.checked(queries)
        return view.best(view.weigh(queries), k, None if allowed is None else view.find_all(allowed))

    def checked(self, queries: Sparse) -> Sparse:
        """Queries as arrays of the right kind; refuse those that are malformed, or of other columns.

        Raises
        ------
        ShapeError
        """
        return self._view.checked(queries)

    def rows(self, ids: Ids) -> Sparse:
        """What was added under these keys, in this order.

        Raises
        ------
        NotFound
            If one of them is not held.
        """
        view = self._view
        places = view.find(np.asarray(ids, dtype=np.int64))
        if (places < 0).any():
            raise NotFound(f"The index holds no row {np.asarray(ids)[places < 0][0]}.", "Check the id.")
        return view.rows_at(places)

    def score(self, queries: Sparse, ids: Ids, /) -> Dense:
        """Scores of the given rows, ``(q, m)`` for ids ``(q, m)``; ``-inf`` where an id is -1 or not held."""
        view = self._view
        queries = view.checked(queries)
        return view.score(view.weigh(queries), check_pairs(ids, queries=len(queries)))

    def explain(self, query: Sparse, row: int, /) -> list[TermScore]:
        """What each term of the one query gives to the score of the row with this id, the largest part first.

        Terms that give nothing are left out; the parts sum to `score` (to 1e-6 of it).

        Raises
        ------
        NotFound
            If no row has this id.
        """
        view = self._view
        query = check_sparse(query, what="query", dim=view.dim)
        if len(query) != 1:
            raise ShapeError(f"explain takes one query, not {len(query)}.", "Pass one row.")
        place = int(view.find(np.array([row]))[0])
        if place < 0:
            raise NotFound(f"The index holds no row {row}.", "Check the id.")
        asked = view.weigh(query)
        values, factors = view.impacts(asked, place)
        columns = (asked.terms, values, asked.idf, asked.weights * factors)
        terms = [TermScore(*parts) for parts in zip(*(c.tolist() for c in columns), strict=True)]
        return sorted((t for t in terms if t.value or t.contribution), key=lambda t: -t.contribution)

    def save(self, path: Path | str, /) -> None:
        """Write a new folder: whole, checksummed and on disk when this returns, or absent."""
        view = self._view
        meta = {"spec": dict(self.spec), "segments": len(view.segments), "dim": view.dim}
        with new_folder(path, _KIND, meta) as folder:
            for number, segment in enumerate(view.segments):
                segment.save(folder, str(number))

    @classmethod
    def open(cls, path: Path | str, /, *, verify: bool = True) -> Self:
        """Read what `save` wrote; large arrays are mapped, not read into memory.

        Parameters
        ----------
        verify
            Whether to read the checksums; sizes are checked always. A folder is read once a process, and again when
            a file has changed: see `reperio.indexes.verified.read_verified`.

        Raises
        ------
        NotFound, NewerFormat, CorruptArtifact
        """
        fresh = verify and not known(Path(path))
        with reading(cls, path, _KIND, verify=verify, once=True) as (folder, meta):
            index = cls(**arguments(meta))
            dim = None if meta["dim"] is None else whole(meta, "dim")
            try:
                segments = tuple(Segment.open(folder, str(number)) for number in range(whole(meta, "segments")))
                if fresh:  # once, as the checksums
                    for segment in segments:
                        check_segment(segment, dim or 0, index.precision)
                    once_each([segment.ids[segment.alive] for segment in segments])
            except BaseException:
                if fresh:
                    forget(folder)
                raise
            index._view = View(index.weighting, segments, dim)
        return index
