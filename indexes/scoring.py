"""One moment of an inverted index, and how queries are scored against it.

Shapes: q queries, t terms of all queries, n rows in all segments, dead ones too, k results, m rows asked for.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, Ids, IdSet, Sparse
from reperio.indexes.lists import WINDOW
from reperio.indexes.postings import Positions, Segment, compile_from, offsets
from reperio.indexes.scratch import SCRATCH
from reperio.indexes.sparse_rows import MOST, check_sparse, plain
from reperio.indexes.weighed import Weighed
from reperio.indexes.weighting import ALL, Floats, Formula, Weighting
from reperio.types import Neighbors

if TYPE_CHECKING:
    from reperio.indexes.pruning import Lists

__all__ = ["View"]

_TO_EACH = 16
"""Queries that make another thread worth starting."""

_MOST_TERMS = 2047
"""Terms of a query beyond which rounding takes too much of a sum's 16 bits; such a query goes by term."""

_MOST_BITS = int(np.float32(MOST).view(np.uint32))

_MOST_MARKED = 1 << 16
"""Terms of a query from which a term's number does not fit the two bytes that mark it."""

_ROW_COST = 256
"""Scoring a row costs about what summing this many postings does."""


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
    def alive(self) -> NDArray[np.bool_]:
        """Which places hold a live row, ``(n,)``."""
        out: NDArray[np.bool_] = _joined([segment.alive for segment in self.segments]).astype(np.bool_, copy=False)
        return out

    @cached_property
    def all_alive(self) -> bool:
        """Whether no row was removed."""
        return bool(self.alive.all())

    @cached_property
    def average(self) -> float:
        """Average length of the live rows."""
        total = sum(float(s.lengths.sum(dtype=np.float64, where=s.alive)) for s in self.segments)
        return total / max(self.rows, 1)

    @cached_property
    def relative(self) -> Floats:
        """`Weighting.relative` of the row at each place, ``(n,)``."""
        return self.weighting.relative(_joined([s.lengths for s in self.segments]), self.average)

    @cached_property
    def mean_idf(self) -> float:
        """For okapi the mean idf of all counted terms, else 0."""
        if self.weighting.variant != "okapi" or not self.segments:
            return 0.0
        df = _joined([s.frequencies for s in self.segments])
        terms = _joined([s.terms for s in self.segments])
        df, terms = df[terms >= self.weighting.weights_below], terms[terms >= self.weighting.weights_below]
        if len(self.segments) > 1:
            _, slot = np.unique(terms, return_inverse=True)
            df = np.bincount(slot, weights=df).astype(np.int64)
        return self.weighting.mean_idf(df[df > 0], self.rows)

    @cached_property
    def postings(self) -> int:
        """How many pairs of a row and a term there are, dead rows' too."""
        return sum(len(segment.row_slots) for segment in self.segments)

    @cached_property
    def formula(self) -> Formula:
        """Of counts."""
        return self.weighting.formula

    @cached_property
    def compiles(self) -> bool:
        """Whether to use compiled code."""
        return compile_from(self.postings)

    @cached_property
    def code(self) -> Any:
        """The compiled code, imported once: to import it again costs a small index's search."""
        from reperio.indexes import pruning

        return pruning

    @cached_property
    def lists(self) -> list[Lists]:
        """The segments for compiled code."""
        names = self.code.Lists._fields
        return [self.code.Lists(*(getattr(segment, name) for name in names)) for segment in self.segments]

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

    def rows_at(self, places: Positions) -> Sparse:
        """What was added of the rows at these places."""
        sizes, columns = np.zeros(len(places), dtype=np.int64), list[NDArray[np.int64]]()
        values, order = list[NDArray[np.float32]](), list[Positions]()
        for base, segment in zip(self.bases, self.segments, strict=False):
            here = np.flatnonzero((places >= base) & (places < base + len(segment)))
            slots, held, counts = segment.rows(places[here] - base)
            sizes[here] = counts
            columns.append(segment.terms[slots])
            values.append(held.astype(np.float32))
            order.append(np.repeat(here, counts))
        # From the order of segments to the order asked for; a row's terms stay as they are.
        back = np.argsort(np.concatenate([np.empty(0, dtype=np.int64), *order]), kind="stable")
        joined = (
            np.concatenate([np.empty(0, dtype=np.int64), *columns]),
            np.concatenate([np.empty(0, np.float32), *values]),
        )
        return Sparse(offsets(sizes), joined[0][back], joined[1][back], self.dim or 0)

    def checked(self, queries: Sparse) -> Sparse:
        """Queries as `plain` gives them, well-formed; a few are looked at by compiled code, quicker than by numpy.

        Raises
        ------
        ShapeError
        """
        queries = plain(queries, what="queries")
        if self.compiles and queries.dim == self.dim:
            arrays = (queries.indptr, queries.indices, queries.weights)
            if self.code.sound(*arrays, queries.dim, _MOST_BITS):
                return queries
        return check_sparse(queries, what="queries", dim=self.dim)

    def weigh(self, queries: Sparse) -> Weighed:
        """Look up the queries' terms and weigh those that a row holds."""
        terms, weights, starts = queries.indices, queries.weights, queries.indptr
        df = np.zeros(len(terms), dtype=np.int64)
        slots = [self._look_up(segment, terms, df) for segment in self.segments]
        if np.count_nonzero(df) < len(df) or np.count_nonzero(weights) < len(weights):
            known = (df > 0) & (weights > 0)
            starts = np.concatenate([[0], np.cumsum(known)])[starts]
            terms, weights, df, slots = terms[known], weights[known], df[known], [s[known] for s in slots]
        linear = terms < self.weighting.weights_below
        if self.weighting.weights_below < ALL:
            idf = self.weighting.idf(df, self.rows, mean=self.mean_idf)
            if self.weighting.weights_below:
                idf[linear] = 1
        else:
            idf = np.ones(len(terms))
        weighed = weights * idf
        baseline = np.zeros(len(starts) - 1)
        if self.weighting.absent:
            totals = np.concatenate([[0.0], np.cumsum(np.where(linear, 0.0, weighed))])
            baseline = self.weighting.absent * np.diff(totals[starts])
        return Weighed(starts, terms, linear, idf, weighed, slots, baseline)

    def _look_up(self, segment: Segment, terms: NDArray[np.int64], df: NDArray[np.int64]) -> Positions:
        """The terms' slots in a segment; adds how many live rows there hold each."""
        if self.compiles:
            slots: Positions = np.empty(len(terms), dtype=np.int64)
            self.code.look_up(segment.terms, segment.frequencies, terms, slots, df)
            return slots
        slots = segment.slots(terms)
        df += np.where(slots >= 0, segment.frequencies[slots], 0) if len(segment.terms) else 0
        return slots

    # Searching

    def best(self, queries: Weighed, k: int, allowed: Positions | None) -> Neighbors:
        """The k best rows of each query that hold a term of it, of equal scores the lower id first.

        ``allowed`` are places of live rows to choose from.
        """
        threads = min(_cores(), len(queries) // _TO_EACH) if self.compiles and len(queries) >= 2 * _TO_EACH else 1
        if threads <= 1:
            return self._best(queries, k, allowed)
        _ = self.lists, self.relative  # made once, not by each thread
        edges = [len(queries) * i // threads for i in range(threads + 1)]
        parts = [queries.part(a, b) for a, b in pairwise(edges)]
        # Threads of this one call: a pool that outlives it would not survive a fork.
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(partial(self._best, k=k, allowed=allowed), parts))
        return Neighbors(np.concatenate([f.ids for f in found]), np.concatenate([f.scores for f in found]))

    def _best(self, queries: Weighed, k: int, allowed: Positions | None) -> Neighbors:
        usable = self.alive
        if allowed is None and self.compiles and self.code.fits(queries.starts, queries.weights, _MOST_TERMS):
            return self._by_list(queries, k, usable, everything=self.all_alive)
        sizes = np.diff(queries.starts)
        out = Neighbors(
            np.full((len(queries), k), -1, dtype=np.int64), np.full((len(queries), k), -np.inf, dtype=np.float32)
        )
        if allowed is not None:
            usable = np.zeros(len(self.ids), dtype=np.bool_)
            usable[allowed] = True
        few = np.zeros(len(queries), dtype=np.bool_)
        if allowed is not None:
            few = len(allowed) * _ROW_COST < self._touched(queries) + len(self.ids)
        asked = sizes > 0
        # A weight of zero, or below as okapi gives in tiny collections, bounds nothing.
        bad = np.concatenate([[0], np.cumsum(queries.weights <= 0)])[queries.starts]
        summed = asked & ~few & (np.diff(bad) == 0) & (sizes <= _MOST_TERMS) & self.compiles
        for i in np.flatnonzero(asked & ~summed).tolist():
            one = queries.part(i, i + 1)
            found = self._by_row(one, allowed) if few[i] and allowed is not None else self._by_term(one, k, usable)
            self._fill(out, i, found, k)
        if summed.any():
            everything = allowed is None and self.all_alive
            best = self._by_list(queries.only(summed), k, usable, everything=everything)
            out.ids[summed], out.scores[summed] = best.ids, best.scores
        return out

    def _touched(self, queries: Weighed) -> Positions:
        """How many postings each query's terms have, ``(q,)``."""
        postings = np.zeros(len(queries.terms) + 1, dtype=np.int64)
        for segment, slots in zip(self.segments, queries.slots, strict=True):
            if len(segment.terms):
                postings[1:] += np.where(slots >= 0, segment.frequencies[slots], 0)
        return np.diff(np.cumsum(postings)[queries.starts])

    def _fill(self, out: Neighbors, i: int, found: tuple[Positions, Floats], k: int) -> None:
        ids, scores = self.ids[found[0]], found[1].astype(np.float32)
        if len(ids) > k:
            kept = scores >= np.partition(scores, len(ids) - k)[len(ids) - k]
            ids, scores = ids[kept], scores[kept]
        order = np.lexsort((ids, -scores))[:k]
        out.ids[i, : len(order)], out.scores[i, : len(order)] = ids[order], scores[order]

    def _by_list(self, queries: Weighed, k: int, usable: NDArray[np.bool_], *, everything: bool) -> Neighbors:
        """Search with compiled code; weights are positive."""
        scores = np.empty((len(queries), k), dtype=np.float32)
        keys = np.empty((len(queries), k), dtype=np.int64)
        self.code.clear(scores, keys)
        for number, (base, segment) in enumerate(zip(self.bases, self.segments, strict=False)):
            rows = slice(base, base + len(segment))
            with SCRATCH as scratch:
                sums = scratch.zeros("sums", WINDOW, np.uint16 if segment.codes.dtype == np.uint8 else np.float32)
                numbers = scratch.zeros("numbers", WINDOW, np.uint16)
                self.code.search(
                    self.lists[number],
                    self.relative[rows],
                    self.formula,
                    self._asked(queries, number),
                    usable[rows],
                    (*segment.drift(self.average), everything),
                    (scores, keys),
                    (sums, numbers, scratch.zeros("terms", len(segment.terms), np.uint16)),
                )
        self.code.sort(scores, keys)
        return Neighbors(keys, scores)

    def _asked(self, queries: Weighed, number: int) -> Any:
        """The queries' terms in one segment, for compiled code."""
        slots, linear = queries.slots[number], queries.linear
        if len(queries.slots) == 1:  # of which the terms are those held
            return self.code.Asked(queries.starts, slots, queries.weights, linear, queries.baseline)
        held = slots >= 0
        starts = np.concatenate([[0], np.cumsum(held)])[queries.starts]
        return self.code.Asked(starts, slots[held], queries.weights[held], linear[held], queries.baseline)

    def _by_row(self, query: Weighed, places: Positions) -> tuple[Positions, Floats]:
        """Those of the rows that hold a term, and their scores."""
        if self.compiles and len(query.terms) < _MOST_MARKED and query.weights.min() > 0:
            scores = self._sums_compiled(query, places[None])[0]
            matching = scores > 0
        else:
            scores, matching = self._sums(query, places)
        return places[matching], scores[matching] + query.baseline[0]

    def _by_term(self, query: Weighed, k: int, usable: NDArray[np.bool_]) -> tuple[Positions, Floats]:
        """Rows that hold a term, the k best of them at least, and their scores."""
        bounds = np.zeros(len(self.ids))
        holds = np.zeros(len(self.ids), dtype=np.bool_)
        for base, segment, slots in zip(self.bases, self.segments, query.slots, strict=False):
            rise, _ = segment.drift(self.average)
            for slot, weight in zip(slots.tolist(), query.weights.tolist(), strict=True):
                if slot >= 0:
                    positions, impacts = segment.postings(slot)
                    bounds[base + positions] += weight * rise * impacts
                    holds[base + positions] = True
        found = np.flatnonzero(holds & usable)
        if len(found) > 4 * k and query.weights.min() > 0:
            lead = found[np.argpartition(bounds[found], len(found) - k)[len(found) - k :]]
            least = self._sums(query, lead)[0].min()
            found = found[bounds[found] >= least * (1 - 2**-20) - 2**-20 * abs(query.baseline[0])]
        return found, self._sums(query, found)[0] + query.baseline[0]

    # Scoring

    def score(self, queries: Weighed, ids: Ids) -> Dense:
        """Scores of these rows, ``(q, m)``; ``-inf`` where no live row has the id."""
        places = self.find(ids.ravel()).reshape(ids.shape)
        out = np.full(ids.shape, -np.inf, dtype=np.float32)
        if self.compiles and _longest(queries) < _MOST_MARKED:
            sums = self._sums_compiled(queries, places) + queries.baseline[:, None]
            out[places >= 0] = sums[places >= 0]
            return out
        for i, (row, held) in enumerate(zip(out, places, strict=True)):
            one = queries.part(i, i + 1)
            row[held >= 0] = self._sums(one, held[held >= 0])[0] + one.baseline[0]
        return out

    def _sums_compiled(self, queries: Weighed, places: Positions) -> Floats:
        """Scores of the rows at these places without baseline, ``(q, m)``; 0 where a row holds no term."""
        scores = np.zeros(places.shape)
        for number, (base, segment) in enumerate(zip(self.bases, self.segments, strict=False)):
            rows = slice(base, base + len(segment))
            held = (self.lists[number], self.relative[rows], self.formula)
            with SCRATCH as scratch:
                wanted = scratch.zeros("terms", len(segment.terms), np.uint16)
                self.code.score(*held, self._asked(queries, number), places - base, scores, wanted)
        return scores

    def _sums(self, query: Weighed, places: Positions) -> tuple[Floats, NDArray[np.bool_]]:
        """As `_sums_compiled` for one query, and which rows hold a term of it."""
        scores, matching = np.zeros(len(places)), np.zeros(len(places), dtype=np.bool_)
        for base, segment, slots in zip(self.bases, self.segments, query.slots, strict=False):
            here = np.flatnonzero((places >= base) & (places < base + len(segment)))
            held = np.flatnonzero(slots >= 0)
            if not len(here) or not len(held):
                continue
            row_slots, values, sizes = segment.rows(places[here] - base)
            term, known = _locate(slots[held], row_slots)
            owner, term = np.repeat(here, sizes)[known], held[term[known]]
            relative = self.relative[places[owner]]
            impacts = self.weighting.impacts(values[known], relative, query.terms[term])
            scores += np.bincount(owner, weights=impacts * query.weights[term], minlength=len(places))
            matching[owner] = True
        return scores, matching

    def impacts(self, query: Weighed, place: int) -> tuple[Floats, Floats]:
        """What the row at ``place`` holds of each term of the one query, and its factor of the term's weight."""
        number = int(np.searchsorted(self.bases, place, side="right")) - 1
        row_slots, row_values, _ = self.segments[number].rows(np.array([place - self.bases[number]]))
        where, known = _locate(row_slots, query.slots[number])
        values = np.zeros(len(query.terms))
        values[known] = row_values[where[known]]
        factors = np.where(query.terms < self.weighting.weights_below, 0.0, self.weighting.absent)
        present = np.flatnonzero(values)
        relative = np.full(len(present), self.relative[place])
        factors[present] += self.weighting.impacts(values[present], relative, query.terms[present])
        return values, factors


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _longest(queries: Weighed) -> int:
    """Terms of the longest query, or of all where they are few."""
    total = len(queries.terms)
    return total if total < _MOST_MARKED else int(np.diff(queries.starts).max(initial=0))


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
