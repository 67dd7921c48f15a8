"""BM25 over rows of term counts, exact at every moment."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from reperio.artifacts import new_folder, read_folder
from reperio.embeddings import Dense, Ids, IdSet, Sparse
from reperio.errors import ConfigurationError, CorruptArtifact, InvalidInput, NotFound, ShapeError
from reperio.indexes.postings import Positions, Segment
from reperio.indexes.rows import check_ids, check_k, check_pairs
from reperio.indexes.scoring import View
from reperio.indexes.weighting import Variant, Weighting
from reperio.protocols import Spec
from reperio.types import Neighbors

__all__ = ["BM25Index", "TermScore"]

_KIND = "bm25-index"
_MOST = 2**24
"""Highest weight: above it, float32 no longer tells whole numbers apart."""

_SMALLEST = 128
"""Segments up to this many rows are merged whenever a row is added."""


class TermScore(NamedTuple):
    """What one query term gives to a row's score.

    Attributes
    ----------
    term
        The term's column; ``BM25Encoder.terms`` tells its word.
    tf
        How often the row holds it.
    idf
        Its inverse document frequency, by the variant's formula.
    contribution
        Its part of the score; the parts sum to the score.
    """

    term: int
    tf: float
    idf: float
    contribution: float


class BM25Index:
    """Ranks rows of term counts by BM25.

    `search` returns rows that share a term with the query, and no others: a row without any of the words asked
    for is no match, so fewer than k may come back and the rest is padding. `score` gives such rows 0 (under
    ``"bm25+"``, as in rank_bm25, the weight of the absent terms).

    Rows are kept in sealed segments that are merged as they grow, so that adding costs O(log n) a row, one at a
    time or in bulk. The number of rows, document frequencies and average length are exact after any sequence of
    additions and removals: nothing is weighted before the query comes. Searching takes no lock and may go on in
    other threads while rows are added.

    Parameters
    ----------
    variant
        ``"lucene"``, ``"robertson"``, ``"atire"`` (equal to bm25s), ``"okapi"``, ``"bm25l"`` or ``"bm25+"``
        (equal to rank_bm25); formulas in `reperio.indexes.weighting`.
    k1
        How slowly repeated terms saturate; 0 counts presence only.
    b
        How much long rows are marked down, from 0 to 1.
    delta
        Lower bound of a term's weight in long rows: 0.5 for ``"bm25l"`` and 1 for ``"bm25+"`` if not given.
    epsilon
        For ``"okapi"``, 0.25 if not given: a term in more than half of the rows weighs this times the mean idf.

    Raises
    ------
    ConfigurationError
        Unknown variant; a parameter out of range, or one that the variant does not have.

    Notes
    -----
    Robertson and Zaragoza: The Probabilistic Relevance Framework: BM25 and Beyond. FnTIR 2009. Kamphuis,
    de Vries, Boytsov and Lin: Which BM25 Do You Mean? ECIR 2020. Lv and Zhai: Lower-bounding term frequency
    normalization. CIKM 2011. Segments merge by the logarithmic method of Bentley and Saxe (1980).
    """

    lossless = True
    returns_only_matches = True

    def __init__(
        self,
        variant: Variant = "lucene",
        *,
        k1: float = 1.2,
        b: float = 0.75,
        delta: float | None = None,
        epsilon: float | None = None,
    ) -> None:
        self.weighting = Weighting(variant, k1, b, delta, epsilon)
        self._view = View(self.weighting, (), None)
        self._writing = threading.Lock()

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty."""
        return {"type": "BM25Index", "variant": self.weighting.variant, **self.weighting.parameters}

    @property
    def lowest(self) -> float:
        """0; ``-inf`` for ``"okapi"`` while most terms are in over half of the rows, as only in tiny collections."""
        return -math.inf if self._view.mean_idf < 0 else 0.0

    def __len__(self) -> int:
        return self._view.rows

    @property
    def ids(self) -> IdSet:
        """Every row key held, ``(n,)``, sorted."""
        parts = [segment.ids[segment.alive] for segment in self._view.segments]
        return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *parts]))

    def add(self, ids: Ids, embeddings: Sparse, /) -> None:
        """Insert or replace rows of term counts.

        Raises
        ------
        InvalidInput
            A negative id, an id twice, a malformed row, NaN or a negative weight; nothing is added.
        """
        _check_rows(embeddings, self._view.dim, what="embeddings")
        ids = check_ids(ids, rows=len(embeddings))
        if not len(ids):
            return
        with self._writing:
            merging = [Segment.build(ids, embeddings)]
            kept, _ = _without(self._view.segments, ids)
            size = len(ids)
            while kept and kept[-1].live <= max(size, _SMALLEST):
                merging.append(kept.pop())
                size += merging[-1].live
            kept.append(Segment.merge(merging) if len(merging) > 1 else merging[0])
            self._view = View(self.weighting, tuple(kept), embeddings.dim)

    def remove(self, ids: Ids, /) -> int:
        """Take rows away; returns how many were there."""
        ids = np.unique(np.asarray(ids, dtype=np.int64))
        with self._writing:
            kept, found = _without(self._view.segments, ids)
            if found:
                self._view = View(self.weighting, tuple(kept), self._view.dim)
        return found

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
            raise ConfigurationError(f"BM25Index has no search option {sorted(options)[0]!r}.", "It has none.")
        check_k(k)
        view = self._view
        _check_rows(queries, view.dim, what="queries")
        chosen = None if allowed is None else _places(view, allowed)
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        for i in range(len(queries)):
            found, values = view.best(view.weigh(*queries.row(i)), k, chosen)
            ids[i, : len(found)], scores[i, : len(found)] = found, values
        return Neighbors(ids, scores)

    def score(self, queries: Sparse, ids: Ids, /) -> Dense:
        """Scores of the given rows, ``(q, m)`` for ids ``(q, m)``; ``-inf`` where an id is -1 or not held."""
        view = self._view
        _check_rows(queries, view.dim, what="queries")
        wanted = check_pairs(ids, queries=len(queries))
        out = np.empty(wanted.shape, dtype=np.float32)
        for i in range(len(queries)):
            out[i] = view.score(view.weigh(*queries.row(i)), wanted[i])
        return out

    def explain(self, query: Sparse, row: int, /) -> list[TermScore]:
        """What each term of the one query gives to the score of the row with this id, the largest part first.

        Terms that give nothing are left out; the parts sum to `score` (to 1e-6 of it).

        Raises
        ------
        NotFound
            If no row has this id.
        """
        view = self._view
        _check_rows(query, view.dim, what="query")
        if len(query) != 1:
            raise ShapeError(f"explain takes one query, not {len(query)}.", "Pass one row.")
        place = int(view.find(np.array([row]))[0])
        if place < 0:
            raise NotFound(f"The index holds no row {row}.", "Check the id.")
        asked = view.weigh(*query.row(0))
        tf, factors = view.frequencies(asked, place)
        columns = (asked.terms, tf, asked.idf, asked.weights * factors)
        terms = [TermScore(*parts) for parts in zip(*(c.tolist() for c in columns), strict=True)]
        return sorted((t for t in terms if t.tf or t.contribution), key=lambda t: -t.contribution)

    def save(self, path: Path, /) -> None:
        """Write a new folder: whole, checksummed and on disk when this returns, or absent."""
        view = self._view
        meta = {"spec": dict(self.spec), "segments": len(view.segments), "dim": view.dim}
        with new_folder(path, _KIND, meta) as folder:
            for number, segment in enumerate(view.segments):
                segment.save(folder, str(number))

    @classmethod
    def open(cls, path: Path, /) -> Self:
        """Read what `save` wrote; large arrays are mapped, not read into memory.

        Raises
        ------
        NotFound, NewerFormat, CorruptArtifact
        """
        meta = read_folder(path, _KIND)
        try:
            arguments: dict[str, Any] = dict(meta["spec"])
            del arguments["type"]
            index = cls(**arguments)
            segments = tuple(Segment.open(path, str(number)) for number in range(meta["segments"]))
            index._view = View(index.weighting, segments, meta["dim"])
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise CorruptArtifact(f"{path} is no BM25Index: {error}.", "Rebuild it.") from error
        return index


def _places(view: View, allowed: IdSet) -> Positions:
    ids = np.asarray(allowed, dtype=np.int64)
    if (ids[1:] <= ids[:-1]).any():
        raise InvalidInput("allowed is not sorted with each id once.", "Pass np.unique(allowed).")
    return view.find_all(ids)


def _without(segments: Sequence[Segment], ids: Ids) -> tuple[list[Segment], int]:
    """The segments with these rows dead, mostly dead ones rewritten; and how many rows were there."""
    kept: list[Segment] = []
    removed = 0
    for segment in segments:
        positions = segment.find(ids)
        positions = positions[positions >= 0]
        removed += len(positions)
        rest = segment.without(positions) if len(positions) else segment
        if rest.live:
            kept.append(rest if 2 * rest.live > len(rest) else Segment.merge([rest]))
    return kept, removed


def _check_rows(rows: object, dim: int | None, *, what: str) -> None:
    if not isinstance(rows, Sparse):
        raise ShapeError(f"{what} is a {type(rows).__name__}, not Sparse.", "Encode with BM25Encoder.")
    if dim is not None and rows.dim != dim:
        raise ShapeError(f"{what} has {rows.dim} columns, the index {dim}.", "Use the same encoder for all.")
    size = len(rows.indices)
    if len(rows.weights) != size or not len(rows.indptr) or rows.indptr[0] != 0 or rows.indptr[-1] != size:
        raise ShapeError(f"{what} has {size} columns, {len(rows.weights)} weights.", "Mend indptr.")
    if (rows.indptr[1:] < rows.indptr[:-1]).any():
        raise ShapeError(f"{what}.indptr descends.", "Mend indptr.")
    if not size:
        return
    if not (rows.weights.min() >= 0 and rows.weights.max() <= _MOST):
        raise ShapeError(f"{what} holds NaN or a weight outside 0 to {_MOST}.", "BM25 counts terms: give counts.")
    if rows.indices.min() < 0 or rows.indices.max() >= rows.dim:
        raise ShapeError(f"{what} holds a column outside 0 to {rows.dim - 1}.", "Mend indices.")
    falls = np.flatnonzero(rows.indices[1:] <= rows.indices[:-1]) + 1
    if len(falls) and not np.isin(falls, rows.indptr).all():
        raise ShapeError(f"{what} holds a row whose columns do not ascend.", "Sort them and sum equal ones.")
