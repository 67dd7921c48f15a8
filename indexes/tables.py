"""Rows on a server, and how a search of them is brought to always give min(k, rows allowed) rows.

Shapes: q queries, n rows, d dimensions, k results, m keys that may be returned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from reperio.embeddings import Dense, Ids, IdSet, Sparse, take
from reperio.indexes.flat import Block, Metric, nearest, score_pairs, squared
from reperio.indexes.rows import merge, pad
from reperio.indexes.sparse_rows import products
from reperio.types import Neighbors

__all__ = ["State", "Table", "TableSearch", "fetched", "split"]

SHARE = 0.1
"""A filter that passes this share of the rows is answered by asking for more and dropping some. A list of keys costs
1.4 µs for each in Qdrant's engine (100k x 96: 14 ms at a tenth of the rows, where 216 results take 0.6), 7 µs in
Milvus's embedded file."""

FEW = 1000
"""So many rows are sooner fetched and compared than found by walking past all others."""

BYTES = 1 << 24
"""Of rows sent or fetched in one call; servers refuse messages of 64 MB."""


@dataclass(frozen=True, slots=True)
class State:
    """What a table says of itself.

    Attributes
    ----------
    token
        Given when it was made: another table of the same name has another.
    layout
        How its rows are kept and searched.
    dim
        d, or V for sparse rows.
    saves
        How often an index over it was saved. Fewer than a saved index knows of, and it is an old backup.
    rows
        How many it held when it was saved last; None once they have changed.
    """

    token: str
    layout: Mapping[str, Any]
    dim: int
    saves: int = 0
    rows: int | None = None


class Table(Protocol):
    """Rows of one kind on a server under one name: what Milvus and Qdrant call a collection.

    Every method raises `ServerUnavailable` if the server does not answer and `NotFound` if the table is not there.
    """

    @property
    def address(self) -> str:
        """Server and name, without a secret."""
        ...

    @property
    def deepest(self) -> int:
        """The most results that one search may ask for."""
        ...

    @property
    def listed(self) -> int:
        """The most keys that one call may name."""
        ...

    @property
    def filters_well(self) -> bool:
        """Whether a search among some keys finds as many of the best as one among all."""
        ...

    def state(self) -> State | None:
        """What `create` or `mark` kept last; None if there is no such table, or it is not of our making."""
        ...

    def create(self, state: State, /) -> None: ...

    def mark(self, state: State, /) -> None:
        """Keep another state with the table."""
        ...

    def drop(self) -> None: ...

    def abandon(self) -> None:
        """Drop it if it can be reached over the connection that there is; never an error."""
        ...

    def settle(self) -> None:
        """Make what was added quick to search."""
        ...

    def count(self, among: Ids | None = None, /) -> int: ...

    def keys(self, among: Ids | None = None, /) -> Ids:
        """Those held, in any order."""
        ...

    def upsert(self, ids: Ids, embeddings: Any, /, *, fresh: bool) -> None:
        """Insert or replace; ``fresh`` promises that none of the keys was ever there."""
        ...

    def delete(self, ids: Ids, /) -> None: ...

    def fetch(self, ids: Ids, /) -> tuple[Ids, Any]:
        """The keys that are held, in any order, and their rows."""
        ...

    def nearest(
        self, queries: Any, k: int, /, *, only: Ids | None, but: Ids | None, options: Mapping[str, int]
    ) -> Neighbors:
        """The best rows that the server finds, ``(q, k)``, padded."""
        ...


def split(ids: Ids, size: int) -> list[Ids]:
    """Keys in parts of ``size``."""
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def fetched(table: Table, ids: Ids, *, width: int) -> Iterator[tuple[Ids, Any]]:
    """Rows by key, those that are held, as many at a time as one message takes; ``width`` is bytes a row."""
    for part in split(ids, min(table.listed, max(1, BYTES // width))):
        keys, rows = table.fetch(part)
        if len(keys):
            yield keys, rows


@dataclass(frozen=True, slots=True)
class TableSearch:
    """Searches of one table with the same settings.

    Attributes
    ----------
    table
        Where.
    about
        How many rows it holds, roughly: only the plan depends on it.
    options, widest
        Search options, and those that look furthest (none where a search is exact).
    metric
        Between rows as the table keeps them; None for sparse rows, of which a search gives those that share a
        column with the query, all of them.
    width
        Bytes of a row, roughly.
    """

    table: Table
    about: int
    options: Mapping[str, int]
    widest: Mapping[str, int]
    metric: Metric | None
    width: int

    def best(self, queries: Any, k: int, only: IdSet | None) -> Neighbors:
        """The k best of ``only``, ``(q, k)``: past what the server gives at once, it is asked again for others."""
        deepest = self.table.deepest
        if k <= deepest:
            return self._complete(queries, k, only)
        rows = [self._paged(take(queries, np.array([i])), k, only) for i in range(len(queries))]
        return Neighbors(np.concatenate([row.ids for row in rows]), np.concatenate([row.scores for row in rows]))

    def _paged(self, query: Any, k: int, only: IdSet | None) -> Neighbors:
        deepest = self.table.deepest
        pages = [self._complete(query, deepest, only)]
        while (pages[-1].ids >= 0).all() and len(pages) * deepest < k:
            seen = np.sort(np.concatenate([page.ids[0] for page in pages]))
            if only is None:
                pages.append(self._ask(query, deepest, None, self.options, but=seen))
            else:
                pages.append(self._complete(query, deepest, np.setdiff1d(only, seen)))
        found = merge([*pages, _room(1, k)], k)
        self._fill(query, found, only)
        return found

    def _complete(self, queries: Any, k: int, only: IdSet | None) -> Neighbors:
        found = self._among(queries, k, only)
        self._fill(queries, found, only)
        return found

    def _fill(self, queries: Any, found: Neighbors, only: IdSet | None) -> None:
        """Where an approximate search stops short, look further, and at last at every row."""
        if self.metric is None or (found.ids[:, -1] >= 0).all():
            return
        k, held = found.ids.shape[1], self._held(only)
        for scan in (False, True) if self.widest else (True,):
            short = np.flatnonzero((found.ids >= 0).sum(axis=1) < min(k, held))
            if not len(short):
                return
            asked = take(queries, short)
            if scan:
                better = nearest(asked, k, self._blocks(only), metric=self.metric)
            elif k <= self.table.deepest:
                better = self._by_keys(asked, k, only, {**self.options, **self.widest})
            else:
                continue
            found.ids[short], found.scores[short] = better.ids, better.scores

    def _held(self, only: IdSet | None) -> int:
        if only is None:
            return self.table.count()
        return sum(self.table.count(part) for part in split(only, self.table.listed))

    def _blocks(self, only: IdSet | None) -> Iterator[Block]:
        for keys, vectors in fetched(self.table, self.table.keys() if only is None else only, width=self.width):
            yield Block(keys, vectors, squared(vectors))

    def _among(self, queries: Any, k: int, only: IdSet | None) -> Neighbors:
        """By a list of keys, or, where most rows pass, by asking for more and dropping some.

        A graph that knows nothing of filters is led astray by rows that it may not return: of few rows each is
        compared, else more are asked for; where those that pass lie far from the query, it is to look everywhere.
        """
        well = self.metric is None or self.table.filters_well
        if only is not None and len(only) <= FEW and not well:
            return nearest(queries, k, self._blocks(only), metric=self.metric or "ip")
        share = 1.0 if only is None else min(1.0, len(only) / max(1, self.about))
        if only is None or (share < SHARE and well):
            return self._by_keys(queries, k, only, self.options)
        more = self._ask(queries, min(self.table.deepest, int(2 * k / share) + 16), None, self.options)
        passing = np.isin(more.ids, only)
        enough = passing.sum(axis=1) >= k
        if self.metric is None:  # it gave all that match
            enough |= more.ids[:, -1] < 0
        scores = np.where(passing, more.scores, np.float32(-np.inf))
        found = merge([Neighbors(np.where(passing, more.ids, -1), scores), _room(len(more.ids), k)], k)
        rest = np.flatnonzero(~enough)
        if len(rest):
            options = self.options if well else {**self.options, **self.widest}
            listed = self._by_keys(take(queries, rest), k, only, options)
            found.ids[rest], found.scores[rest] = listed.ids, listed.scores
        return found

    def _by_keys(self, queries: Any, k: int, only: IdSet | None, options: Mapping[str, int]) -> Neighbors:
        parts = [None] if only is None else split(only, self.table.listed)
        return merge([*(self._ask(queries, k, part, options) for part in parts), _room(len(queries), k)], k)

    def _ask(
        self, queries: Any, k: int, only: Ids | None, options: Mapping[str, int], *, but: Ids | None = None
    ) -> Neighbors:
        """One search of the server, equal scores in the order of their keys."""
        if isinstance(queries, Sparse) and not (filled := np.diff(queries.indptr) > 0).all():
            out, rest = _room(len(queries), k), np.flatnonzero(filled)  # a query without a column matches nothing
            if len(rest):
                found = self._ask(take(queries, rest), k, only, options, but=but)
                out.ids[rest], out.scores[rest] = found.ids, found.scores
            return out
        return merge([self.table.nearest(queries, k, only=only, but=but, options=options)], k)

    def score(self, queries: Any, pairs: Ids) -> Dense:
        """Scores of rows ``(q, m)`` as the table keeps them; ``-inf`` where it does not."""
        out = np.full(pairs.shape, -np.inf, dtype=np.float32)
        for keys, rows in fetched(self.table, np.unique(pairs[pairs >= 0]), width=self.width):
            order = np.argsort(keys)
            keys, rows = keys[order], take(rows, order)
            at = np.minimum(np.searchsorted(keys, pairs), len(keys) - 1)
            query, slot = np.nonzero(keys[at] == pairs)
            places = at[query, slot]
            if self.metric is None:
                out[query, slot] = products(queries, query, rows, places)
            else:
                out[query, slot] = score_pairs(queries, query, rows.__getitem__, places, metric=self.metric)
        return out


def _room(queries: int, k: int) -> Neighbors:
    return pad(np.empty((queries, 0), dtype=np.int64), np.empty((queries, 0), dtype=np.float32), k)
