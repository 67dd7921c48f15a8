"""One moment of a lexical index, and how a query is scored against it.

Shapes: n rows in all segments, dead ones too; t terms of a query; m rows asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, Ids, IdSet
from reperio.indexes.postings import Counts, Positions, Segment
from reperio.indexes.weighting import Floats, Weighting

__all__ = ["View", "WeighedQuery"]

_GROUP = 32
"""Rows of a group in `_contenders`."""


class WeighedQuery(NamedTuple):
    """The terms of a query that some row holds.

    Attributes
    ----------
    terms
        Columns, ``(t,)``, ascending.
    idf
        ``(t,)``.
    weights
        idf times the query's own weight, ``(t,)``.
    slots
        For each segment, which of the terms it holds and their slots there.
    baseline
        What a row without any of the terms scores.
    """

    terms: NDArray[np.int64]
    idf: Floats
    weights: Floats
    slots: list[tuple[Positions, Positions]]
    baseline: float


@dataclass(frozen=True, eq=False)
class View:
    """All rows at one moment; never changes.

    A row's place is its position in its segment, counted on from the segments before.
    """

    weighting: Weighting
    segments: tuple[Segment, ...]
    dim: int | None

    @cached_property
    def rows(self) -> int:
        """How many rows are live."""
        return sum(segment.live for segment in self.segments)

    @cached_property
    def bases(self) -> list[int]:
        """Place of each segment's first row, then n."""
        return [0, *accumulate(map(len, self.segments))]

    @cached_property
    def ids(self) -> Ids:
        """Row key at each place, ``(n,)``."""
        return _joined([segment.ids for segment in self.segments])

    @cached_property
    def dead(self) -> Positions:
        """Places of removed rows."""
        return np.flatnonzero(_joined([~segment.alive for segment in self.segments]))

    @cached_property
    def relative(self) -> Floats:
        """`Weighting.relative` of the row at each place, ``(n,)``."""
        total = sum(float(s.lengths.sum(dtype=np.float64, where=s.alive)) for s in self.segments)
        return self.weighting.relative(_joined([s.lengths for s in self.segments]), total / max(self.rows, 1))

    @cached_property
    def mean_idf(self) -> float:
        """For okapi the mean idf of all terms, else 0."""
        if self.weighting.variant != "okapi" or not self.segments:
            return 0.0
        df = _joined([s.frequencies for s in self.segments])
        if len(self.segments) > 1:
            _, slot = np.unique(_joined([s.terms for s in self.segments]), return_inverse=True)
            df = np.bincount(slot, weights=df).astype(np.int64)
        return self.weighting.mean_idf(df[df > 0], self.rows)

    def find(self, ids: Ids) -> Positions:
        """Place of each id, -1 where no live row has it."""
        places = np.full(len(ids), -1, dtype=np.int64)
        for base, segment in zip(self.bases, self.segments, strict=False):
            positions = segment.find(ids)
            places[positions >= 0] = positions[positions >= 0] + base
        return places

    def find_all(self, ids: IdSet) -> Positions:
        """Places of the live rows among sorted ids, ascending."""
        found: list[Positions] = []
        for base, segment in zip(self.bases, self.segments, strict=False):
            first, last = np.searchsorted(ids, [segment.ids[0], segment.ids[-1] + 1])
            positions = segment.find(ids[first:last])
            found.append(positions[positions >= 0] + base)
        return np.concatenate([np.empty(0, dtype=np.int64), *found])

    def weigh(self, terms: NDArray[np.int64], weights: NDArray[np.float32]) -> WeighedQuery:
        """Look up a query's terms and weigh those that a row holds."""
        slots = [segment.slots(terms) for segment in self.segments]
        df = np.zeros(len(terms), dtype=np.int64)
        for segment, (held, slot) in zip(self.segments, slots, strict=True):
            df[held] += segment.frequencies[slot]
        known = (df > 0) & (weights > 0)
        if not known.all():
            return self.weigh(terms[known], weights[known])
        idf = self.weighting.idf(df, self.rows, mean=self.mean_idf)
        weighed = idf * weights
        return WeighedQuery(terms, idf, weighed, slots, self.weighting.absent * float(weighed.sum()))

    def best(self, query: WeighedQuery, k: int, allowed: Positions | None) -> tuple[Ids, Dense]:
        """Ids and scores of the k best rows that hold a term of the query, best first; all of them if fewer.

        ``allowed`` are places of live rows to choose from. Where they are few, rows are scored one by one, else
        term by term, with the same result to the bit. Of equal scores the lower id is first.
        """
        if allowed is not None and self._few(query, allowed):
            found, scores = self._by_row(query, allowed)
        else:
            found, scores = self._by_term(query, k, allowed)
        ids, rounded = self.ids[found], (scores + query.baseline).astype(np.float32)
        if len(ids) > k:
            kept = rounded >= np.partition(rounded, len(ids) - k)[len(ids) - k]
            ids, rounded = ids[kept], rounded[kept]
        order = np.lexsort((ids, -rounded))[:k]
        return ids[order], rounded[order]

    def score(self, query: WeighedQuery, ids: Ids) -> Dense:
        """Scores of these rows, ``(m,)``; ``-inf`` where no live row has the id."""
        places = self.find(ids)
        out = np.full(len(ids), -np.inf, dtype=np.float32)
        out[places >= 0] = self._sums(query, places[places >= 0])[0] + query.baseline
        return out

    def frequencies(self, query: WeighedQuery, place: int) -> tuple[Floats, Floats]:
        """Frequency of each query term in the row at ``place``, and what it counts as a factor of its weight."""
        number = int(np.searchsorted(self.bases, place, side="right")) - 1
        row_slots, row_counts, _ = self.segments[number].rows(np.array([place - self.bases[number]]))
        held, slots = query.slots[number]
        where, known = _locate(row_slots, slots)
        tf = np.zeros(len(query.terms))
        tf[held[known]] = row_counts[where[known]]
        present = np.flatnonzero(tf)
        factors = np.full(len(tf), self.weighting.absent)
        factors[present] += self.weighting.saturate(tf[present], np.full(len(present), self.relative[place]))
        return tf, factors

    def _few(self, query: WeighedQuery, allowed: Positions) -> bool:
        """Whether scoring these rows one by one touches less than scoring all by the query's terms."""
        postings = sum(len(segment.row_slots) for segment in self.segments)
        touched = sum(
            int(segment.frequencies[slots].sum())
            for segment, (_, slots) in zip(self.segments, query.slots, strict=True)
        )
        return len(allowed) * postings < (touched + len(self.ids) / 8) * len(self.ids)

    def _by_row(self, query: WeighedQuery, places: Positions) -> tuple[Positions, Floats]:
        scores, matching = self._sums(query, places)
        return places[matching], scores[matching]

    def _sums(self, query: WeighedQuery, places: Positions) -> tuple[Floats, NDArray[np.bool_]]:
        """Scores of the rows at these places without baseline, and which of them hold a term of the query."""
        scores, matching = np.zeros(len(places)), np.zeros(len(places), dtype=np.bool_)
        for base, segment, (held, slots) in zip(self.bases, self.segments, query.slots, strict=False):
            here = np.flatnonzero((places >= base) & (places < base + len(segment)))
            if len(here):
                row_slots, counts, sizes = segment.rows(places[here] - base)
                term, known = _locate(slots, row_slots)
                owner = np.repeat(here, sizes)[known]
                values = self.weighting.saturate(counts[known], self.relative[places[owner]])
                values *= query.weights[held[term[known]]]
                scores += _sum(values, owner, len(places))
                matching[owner] = True
        return scores, matching

    def _by_term(self, query: WeighedQuery, k: int, allowed: Positions | None) -> tuple[Positions, Floats]:
        """Rows that hold a term, the k best of them at least: places, ascending, and scores without baseline."""
        if not len(query.terms):
            return np.empty(0, dtype=np.int64), np.empty(0)
        places, counts, weights = self._postings(query)
        values = self.weighting.saturate(counts, self.relative[places])
        values *= weights
        scores = _sum(values, places, len(self.ids))
        # Where a term weighs nothing, a score of 0 is no sign that a row lacks it.
        telling = bool(query.weights.min() > 0)
        marks = scores if telling else np.bincount(places, minlength=len(self.ids))
        if allowed is not None:
            found = allowed[marks[allowed] > 0]
        else:
            marks[self.dead] = 0
            found = _contenders(scores, k, query.baseline) if telling else np.flatnonzero(marks)
        return found, scores[found]

    def _postings(self, query: WeighedQuery) -> tuple[NDArray[np.signedinteger[Any]], Counts, Floats]:
        """Place, frequency and the term's weight of every posting of the query's terms."""
        positions: list[NDArray[np.int32]] = []
        counts: list[Counts] = []
        sizes, weights, totals = list[Positions](), list[Floats](), list[int]()
        for segment, (held, slots) in zip(self.segments, query.slots, strict=True):
            begins, ends = segment.starts[slots], segment.starts[slots + 1]
            for first, last in zip(begins.tolist(), ends.tolist(), strict=True):
                positions.append(segment.positions[first:last])
                counts.append(segment.counts[first:last])
            sizes.append(ends - begins)
            weights.append(query.weights[held])
            totals.append(int(sizes[-1].sum()))
        places: NDArray[np.signedinteger[Any]] = np.concatenate(positions)
        if len(self.segments) > 1:
            places = places + np.repeat(self.bases[:-1], totals)
        return places, np.concatenate(counts), np.repeat(_joined(weights), _joined(sizes))


def _contenders(scores: Floats, k: int, baseline: float) -> Positions:
    """Where the positive scores are that may be among the k best.

    The rows are cut into groups of 32. The k best groups hold k rows no worse than the k-th best group's best
    row: a bound, found without sorting the rows. It is lowered by what rounding to float32 may make equal.
    """
    groups = len(scores) // _GROUP
    if groups <= 2 * k:
        return np.flatnonzero(scores > 0)
    tops = scores[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
    bound = np.partition(tops, groups - k)[groups - k]
    bound -= (bound + baseline) * 2**-22
    return np.flatnonzero(scores >= bound) if bound > 0 else np.flatnonzero(scores > 0)


def _sum(values: Floats, places: NDArray[np.signedinteger[Any]], size: int) -> Floats:
    """Sum of the values at each place, ``(size,)``, added in the order they come."""
    return np.bincount(places, weights=values, minlength=size).astype(np.float64, copy=False)


def _locate(
    ascending: NDArray[np.signedinteger[Any]], wanted: NDArray[np.signedinteger[Any]]
) -> tuple[Positions, NDArray[np.bool_]]:
    """Where each wanted number stands in ``ascending``, and whether it does."""
    if not len(ascending):
        return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=np.bool_)
    place = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return place, ascending[place] == wanted


def _joined(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    """One after the other, not copied where there is one."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays or [np.empty(0, dtype=np.int64)])
