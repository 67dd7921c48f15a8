"""Whether two collections of the same documents find the same, asked with a sample of their own embeddings.

Shapes: q queries, n documents, k results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, Ids, from_bytes
from reperio.indexes.flat import FlatIndex
from reperio.indexes.multivector import MultiVectorIndex
from reperio.protocols import Index, Store
from reperio.registry import build
from reperio.retrieval import candidates
from reperio.signals import LiveSignal, metric_of
from reperio.types import Neighbors

QUERIES = 32
"""Documents that are asked for."""

DEPTH = 10
"""Hits that are compared."""

WORDS = 8
"""Words of a document's text that make a query, where no embeddings are stored."""

TOLERANCE = 1e-4
"""Scores that differ by less, relative to the larger of 1 and the score, are a tie: summed in another order."""

Names: TypeAlias = NDArray[np.object_]
"""Document ids, ``(q, k)``; None where fewer than k were found."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one signal of two collections agrees.

    Attributes
    ----------
    queries
        How many were asked, for `DEPTH` hits each.
    reference
        What both are measured by: ``"exact scan"`` of the stored embeddings, or ``"source"``, its index.
    exact
        Whether the target's index compares every row, and so must find all of the best.
    source, target
        Share of the best hits that each finds, ties aside; None where it could not be asked.
    problem
        What is wrong, if anything.
    """

    queries: int
    reference: str
    exact: bool
    source: float | None
    target: float | None
    problem: str | None = None


class Sample:
    """Queries for one signal of the source, and the best documents for them as they go by.

    Parameters
    ----------
    signal
        The source's.
    rows, texts
        Documents to ask for: their stored embeddings are the queries, or the first words of their texts.
    silent
        Why its index cannot be asked, if it cannot.
    """

    def __init__(self, signal: LiveSignal, rows: Ids, texts: Sequence[str], *, silent: str | None) -> None:
        self.signal = signal
        self._silent = silent
        self.queries: Any = (
            signal.embed(rows)
            if signal.stored
            else signal.encoder.encode_query([" ".join(text.split()[:WORDS]) for text in texts]).embeddings
        )
        # Asked at once: a table of a database that was read in a snapshot stays as long as that lasts.
        self._asked = ask(signal, self.queries) if silent is None else None
        self._size = len(rows)
        self._scans = signal.stored and signal.kind in ("dense", "multi-vector")
        self._metric = metric_of(build(signal.derived.spec)) or "ip"
        self._best = Neighbors(np.empty((self._size, 0), np.int64), np.empty((self._size, 0), np.float32))

    def see(self, rows: Ids, values: Sequence[bytes]) -> None:
        """Take embeddings into the exact scan, as they are stored."""
        if not self._scans or not len(rows):
            return
        found = self._exact(rows, values).search(self.queries, DEPTH)
        ids = np.concatenate([self._best.ids, found.ids], axis=1)
        scores = np.concatenate([self._best.scores, found.scores], axis=1)
        order = np.lexsort((ids, -scores), axis=1)[:, :DEPTH]
        self._best = Neighbors(np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1))

    def _exact(self, rows: Ids, values: Sequence[bytes]) -> Index[Any]:
        metric: Any = self._metric
        multiple = self.signal.kind == "multi-vector"
        index: Any = MultiVectorIndex(metric=metric) if multiple else FlatIndex(metric)
        index.add(rows, from_bytes(values, self.signal.kind, dim=self.signal.fingerprint.dim))
        made: Index[Any] = index
        return made

    def judge(self, store: Store, found: Names, scores: Dense, index: Index[Any], *, least: float) -> Agreement:
        """Compare what the target found with what is best.

        Parameters
        ----------
        store
            The source's.
        found, scores
            Of the target, ``(q, k)``.
        index
            The target's.
        least
            Share of the best hits that it must find, if the source does.
        """
        asked = self._asked
        if not self._scans and asked is None:
            return Agreement(self._size, "source", False, None, None, f"the source cannot be asked: {self._silent}")
        best = self._best if self._scans else asked
        assert best is not None
        rows = _rows(store, found)
        truth = self._truth(store, rows)
        source = None if asked is None else _recall(best, asked.ids, self._truth(store, asked.ids))
        target = _recall(best, rows, truth)
        exact = _exhaustive(index) and (self._scans or _exhaustive(self.signal.index))
        least = 1.0 if exact else min(least, 1.0 if source is None else source)
        problem = _wrong(found, rows, scores, truth) if index.lossless else None
        if problem is None and target < least:
            why = "compares every row" if exact else f"must find {least:.1%}"
            problem = f"{index.spec['type']} {why}, and finds {target:.1%} of the best {DEPTH}"
        reference = "exact scan" if self._scans else "source"
        return Agreement(self._size, reference, exact, source, target, problem)

    def _truth(self, store: Store, rows: Ids) -> Dense:
        """Exact scores of rows of the source, ``(q, m)``; ``-inf`` where there is none."""
        if not self._scans:
            return self.signal.score(self.queries, rows)
        held = np.unique(rows[rows >= 0])
        vectors = store.vectors(self.signal.number, held)
        return self._exact(held, [vectors[row].value for row in held.tolist()]).score(self.queries, rows)


def ask(signal: LiveSignal, queries: Any) -> Neighbors:
    """The best `DEPTH` rows of a signal, with exact scores."""
    return candidates(signal, queries, DEPTH)


def named(store: Store, rows: Ids) -> Names:
    """Ids of documents by row key, ``(q, k)``."""
    held = np.unique(rows[rows >= 0])
    ids = {row: document.id for row, document in zip(held.tolist(), store.fetch(held), strict=True)}
    out = np.full(rows.shape, None, dtype=object)
    for at, row in np.ndenumerate(rows):
        out[at] = ids.get(int(row))
    return out


def _exhaustive(index: Index[Any]) -> bool:
    return bool(getattr(index, "exhaustive", False))


def _rows(store: Store, names: Names) -> Ids:
    """Row keys of documents by id; -1 where there is none."""
    rows = store.find(sorted({name for name in names.ravel() if name is not None}))
    return np.array([rows.get(name, -1) for name in names.ravel()], dtype=np.int64).reshape(names.shape)


def _tolerance(scores: Dense) -> Dense:
    return np.float32(TOLERANCE) * np.maximum(1, np.abs(scores))


def _recall(best: Neighbors, rows: Ids, truth: Dense) -> float:
    """Share of the best that were found; of those that tie with the last of the best, any will do."""
    hit = wanted = 0
    for ids, scores, found, true in zip(best.ids, best.scores, rows, truth, strict=True):
        held = ids >= 0
        if not held.any():
            continue
        last = scores[held].min()
        slack = _tolerance(last)
        needed = ids[held & (scores > last + slack)]
        ties = int(((found >= 0) & ~np.isin(found, needed) & (true >= last - slack)).sum())
        wanted += int(held.sum())
        hit += int(np.isin(needed, found).sum()) + min(ties, int(held.sum()) - len(needed))
    return hit / wanted if wanted else 1.0


def _wrong(names: Names, rows: Ids, scores: Dense, truth: Dense) -> str | None:
    """The first hit whose score is not that of its document: rows under the wrong ids show here."""
    held = rows >= 0
    off = np.zeros(rows.shape, dtype=np.bool_)
    off[held] = ~(np.abs(scores[held] - truth[held]) <= _tolerance(truth[held]))
    if not off.any():
        return None
    at = tuple(np.argwhere(off)[0])
    return f"the target scores document {names[at]!r} {scores[at]:.6g}, by its source it is {truth[at]:.6g}"
