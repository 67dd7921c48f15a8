"""One search over a collection's signals, and the account of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast, overload

import numpy as np

from reperio import meter
from reperio.embeddings import Dense, Ids, IdSet, check_dense
from reperio.errors import ConfigurationError, EmptyText, InvalidInput, NotFound
from reperio.explain import Explanation, SignalScore, TermScore
from reperio.filters import Filter
from reperio.fusion import Convex, Fusion
from reperio.protocols import Store
from reperio.retrieval import MIN_DEPTH, OVERFETCH, Found, Options, Pool, alone, candidates, plan, pools
from reperio.signals import LiveSignal, replayed
from reperio.types import Document, Hit, Neighbors, Query, Ranking


@dataclass(frozen=True, slots=True)
class Request:
    """How to search: everything but the queries."""

    k: int = 10
    where: Filter | None = None
    signals: Sequence[str] | None = None
    fusion: Fusion | None = None
    options: Options | None = None


class StoredHits(Sequence[Hit]):
    """Hits whose documents are read from the store when first looked at; rows never change, so late is the same."""

    __slots__ = ("_fetch", "_found", "_hits")

    def __init__(self, found: Found, fetch: Callable[[Ids], list[Document]]) -> None:
        self._found = found
        self._fetch = fetch
        self._hits: tuple[Hit, ...] | None = None

    def _read(self) -> tuple[Hit, ...]:
        if self._hits is None:
            found = self._found
            names = list(found.signals)
            parts = zip(*(found.signals[name].tolist() for name in names), strict=True)
            documents = self._fetch(found.rows) if len(found.rows) else []
            self._hits = tuple(
                Hit(document, score, dict(zip(names, part, strict=True)))
                for document, score, part in zip(documents, found.scores.tolist(), parts, strict=True)
            )
        return self._hits

    def __len__(self) -> int:
        return len(self._found.rows)

    @overload
    def __getitem__(self, i: int) -> Hit: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Hit]: ...
    def __getitem__(self, i: int | slice) -> Hit | Sequence[Hit]:
        return self._read()[i]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._read() == tuple(cast("Sequence[object]", other))

    def __hash__(self) -> int:
        return hash(self._read())

    def __repr__(self) -> str:
        return repr(self._read())


class Searcher:
    """Searches the signals of one open collection.

    Parameters
    ----------
    store
        The truth.
    signals
        By name.
    current
        Gives the indexes, caught up with the store and held still.
    """

    def __init__(
        self,
        store: Store,
        signals: Mapping[str, LiveSignal],
        current: Callable[[Sequence[LiveSignal]], AbstractContextManager[None]],
    ) -> None:
        self._store = store
        self._signals = signals
        self._current = current

    def search(
        self, queries: Sequence[str | Query], request: Request, embeddings: Mapping[str, Dense]
    ) -> list[Ranking]:
        """One ranking for each query."""
        asked = [q if isinstance(q, Query) else Query(str(i), q) for i, q in enumerate(_checked_queries(queries))]
        used = self._used(request)
        if not asked:
            return []
        encoded = _encode(used, asked, embeddings)
        try:
            found = self._now(used, encoded, request)
        except NotFound:  # another process has compacted in between, or put another index in the place of one
            found = self._now(used, encoded, request)
        rankings = [Ranking(q, StoredHits(f, self._store.fetch)) for q, f in zip(asked, found, strict=True)]
        meter.count("hits", sum(map(len, rankings)))
        return rankings

    def _now(self, used: Sequence[LiveSignal], encoded: Mapping[str, Any], request: Request) -> list[Found]:
        with self._current(used):
            return self._find(used, encoded, request, self._allowed(used, request))

    def _allowed(self, used: Sequence[LiveSignal], request: Request) -> IdSet | None:
        """Rows that pass, of those that the indexes hold: the store may be a commit ahead of them."""
        return None if request.where is None else self._store.matching(request.where, at=replayed(used))

    def _find(
        self, used: Sequence[LiveSignal], encoded: Mapping[str, Any], request: Request, allowed: IdSet | None
    ) -> list[Found]:
        if len(used) == 1:
            return list(alone(used[0], _candidates(used[0], encoded, request, allowed, depth=request.k)))
        fusion = request.fusion or Convex()
        return [pool.best(fusion, request.k) for pool in self._pools(used, encoded, request, allowed)]

    def _pools(
        self,
        used: Sequence[LiveSignal],
        encoded: Mapping[str, Any],
        request: Request,
        allowed: IdSet | None,
        *,
        extra: Ids | None = None,
    ) -> list[Pool]:
        depth = max(MIN_DEPTH, OVERFETCH * request.k)
        found = {s.name: _candidates(s, encoded, request, allowed, depth=depth) for s in used}
        return pools(used, encoded, found, extra=extra)

    def _used(self, request: Request) -> list[LiveSignal]:
        if not isinstance(request.k, int | np.integer) or isinstance(request.k, bool) or request.k <= 0:
            raise InvalidInput(f"k is {request.k!r}.", "Use a whole number of 1 or more.")
        if request.where is not None and not isinstance(request.where, Filter):
            problem = f"where is a {type(request.where).__name__}."
            raise InvalidInput(problem, "Build it from Field, or read it with reperio.filters.parse.")
        if request.fusion is not None and not isinstance(request.fusion, Fusion):
            problem = f"fusion is {request.fusion!r}."
            raise InvalidInput(problem, "Give Convex() or ReciprocalRank() of reperio.fusion.")
        names = list(self._signals) if request.signals is None else list(request.signals)
        if isinstance(request.signals, str) or not names:
            raise InvalidInput(f"signals is {request.signals!r}.", "Give a list of at least one name.")
        weighted: Mapping[str, float] = getattr(request.fusion, "weights", {})
        for name in [*names, *(request.options or {}), *weighted]:
            if name not in self._signals:
                raise ConfigurationError(f"There is no signal {name!r}.", f"There are: {', '.join(self._signals)}.")
        return [self._signals[name] for name in dict.fromkeys(names)]

    def explain(
        self,
        query: str | Query,
        id: str,  # noqa: A002
        request: Request,
        embeddings: Mapping[str, Dense],
    ) -> Explanation:
        """Why the document stands where it stands for this query."""
        (asked,) = _checked_queries([query])
        text = asked.text if isinstance(asked, Query) else asked
        used = self._used(request)
        encoded = _encode(used, [Query("0", text)], embeddings)
        with self._current(used):
            with self._store.snapshot() as seq:
                row = self._store.find([id]).get(id)
            allowed = self._allowed(used, request)
            if row is None:
                raise NotFound(f"There is no document {id!r}.", "Check the id with `get`.")
            document = self._store.fetch(np.array([row], dtype=np.int64))[0]
            extra = np.array([row], dtype=np.int64)
            (pool,) = self._pools(used, encoded, request, allowed, extra=extra)
            passes = allowed is None or bool(np.isin(row, allowed))
            parts, score = self._parts(used, encoded, request, pool, (row, text), allowed)
            order = pool.best(request.fusion or Convex(), len(pool.rows)).rows if len(used) > 1 else None
        rank = parts[used[0].name].rank if order is None else int(np.flatnonzero(order == row)[0]) + 1
        return Explanation(
            query=text,
            document=document,
            score=score,
            rank=rank if passes and _found(parts, pool) else None,
            fusion=dict((request.fusion or Convex()).spec) if len(used) > 1 else None,
            filter=None if request.where is None else (str(request.where), passes),
            signals=parts,
            seq=seq,
        )

    def _parts(
        self,
        used: Sequence[LiveSignal],
        encoded: Mapping[str, Any],
        request: Request,
        pool: Pool,
        asked: tuple[int, str],
        allowed: IdSet | None,
    ) -> tuple[dict[str, SignalScore], float]:
        row, text = asked
        at = int(np.flatnonzero(pool.rows == row)[0])
        if len(used) > 1:
            added = (request.fusion or Convex()).contributions(pool.scores, lowest=pool.lowest)
        else:
            added = {used[0].name: pool.scores[used[0].name].astype(np.float64)}
        how = plan(used, allowed)
        depth = max(MIN_DEPTH, OVERFETCH * request.k)
        parts = {
            s.name: SignalScore(
                score=float(pool.scores[s.name][at]),
                rank=_rank(pool.scores[s.name], pool.rows, at),
                contribution=float(added[s.name][at]),
                plan=how[s.name],
                proposed=bool(np.isin(row, _candidates(s, encoded, request, allowed, depth=depth).ids)),
                terms=_terms(s, encoded[s.name], row, text),
            )
            for s in used
        }
        return parts, float(sum(part.contribution for part in parts.values()))


def _candidates(
    signal: LiveSignal, encoded: Mapping[str, Any], request: Request, allowed: IdSet | None, *, depth: int
) -> Neighbors:
    options = (request.options or {}).get(signal.name)
    depth = min(depth, max(1, len(signal.index)))
    return candidates(signal, encoded[signal.name], depth, allowed=allowed, options=options)


def _found(parts: Mapping[str, SignalScore], pool: Pool) -> bool:
    """Whether the document is a match at all: a search leaves out what no signal finds and none scores."""
    return any(part.proposed or part.score > pool.lowest[name] for name, part in parts.items())


def _rank(scores: Dense, rows: Ids, at: int) -> int:
    """Where a candidate stands, from 1; equal scores by lower row, as in a search."""
    return int(np.flatnonzero(np.lexsort((rows, -scores)) == at)[0]) + 1


def _terms(signal: LiveSignal, query: Any, row: int, text: str) -> tuple[TermScore, ...]:
    """Term by term, from a lexical index that can say so."""
    explain, words = getattr(signal.index, "explain", None), getattr(signal.encoder, "terms", None)
    if explain is None or words is None:
        return ()
    names: Mapping[int, str] = words(text)
    return tuple(TermScore(names.get(term, str(term)), *rest) for term, *rest in explain(query, row))


def _checked_queries(given: Iterable[str | Query]) -> Sequence[str | Query]:
    if not isinstance(cast("object", given), Iterable):
        raise InvalidInput(f"The queries are {given!r}.", "Give a string, a Query, or a list of these.")
    queries = list(given)
    for i, query in enumerate(queries):
        if not isinstance(query, str | Query):
            raise InvalidInput(f"Query {i} is a {type(query).__name__}.", "Give a string or a Query.")
    return queries


def _encode(used: Sequence[LiveSignal], asked: Sequence[Query], given: Mapping[str, Dense]) -> dict[str, Any]:
    unknown = given.keys() - {signal.name for signal in used}
    if unknown:
        names = ", ".join(signal.name for signal in used)
        raise InvalidInput(f"Vectors were given for {sorted(unknown)[0]!r}.", f"The signals searched are: {names}.")
    out: dict[str, Any] = {}
    for signal in used:
        if signal.name in given:
            what, dim = f"embeddings[{signal.name!r}]", signal.fingerprint.dim
            out[signal.name] = check_dense(given[signal.name], what=what, dim=dim, rows=len(asked))
            continue
        empty = next((i for i, query in enumerate(asked) if not query.text.strip()), None)
        if empty is not None:
            raise EmptyText(f"Query {empty} has no text.", "Ask something, or give its `embeddings`.")
        encoded = signal.encoder.encode_query([query.text for query in asked])
        out[signal.name] = encoded.embeddings
    return out
