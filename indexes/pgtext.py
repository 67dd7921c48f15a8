"""PostgreSQL's own full-text search.

Shapes: q queries, n rows, k results, m rows asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, Ids, IdSet
from reperio.errors import ConfigurationError, ShapeError
from reperio.indexes.pgvector_table import PostgresTable, among, neighbors, none
from reperio.indexes.rows import check_ids, check_pairs, check_search
from reperio.protocols import Spec
from reperio.types import Neighbors

__all__ = ["PostgresTextIndex"]

Texts: TypeAlias = NDArray[np.object_]
"""Strings, ``(n,)``."""

Match: TypeAlias = Literal["any", "all", "web"]
Rank: TypeAlias = Literal["ts_rank", "ts_rank_cd"]

# A lexeme is quoted as tsquery reads it, so that nothing in a query's text is an operator.
_QUERIES: dict[Match, str] = {
    "any": """(SELECT string_agg('''' || replace(replace(lexeme, E'\\\\', E'\\\\\\\\'), '''', '''''') || '''', ' | ')
        FROM unnest(to_tsvector({0}, t.v)))::tsquery""",
    "all": "plainto_tsquery({0}, t.v)",
    "web": "websearch_to_tsquery({0}, t.v)",
}


class PostgresTextIndex(PostgresTable):
    """Texts in PostgreSQL, searched by its full-text search: ``to_tsvector``, a GIN index, ``ts_rank``.

    The server cuts texts into words, stems them and ranks by how often the words asked for occur. Its ranks know
    nothing of how rare a word is, so they are **not BM25**, and order less well: nDCG@10 is 0.45 on cranfield and
    0.60 on scifact, where `BM25Index` has 0.51 and 0.68. It is for those who want one index for SQL and for
    Reperio, with nothing to replay. Every row that matches is ranked, so a common word costs time. Explanations
    have no terms.

    Rows are texts: use `reperio.encoders.verbatim.VerbatimEncoder` and ``Signal(…, stored=False)``.

    Parameters
    ----------
    url
        The database: see `reperio.postgres.Database`. None for an index of a collection that is in PostgreSQL.
    language
        A text-search configuration of the server: ``"english"``, ``"simple"``, ``"german"``, …
    match
        Rows that hold ``"any"`` of the words, ``"all"`` of them, or what a ``"web"`` query says:
        ``"exact phrase" -without or other``.
    rank
        ``"ts_rank"`` (frequencies) or ``"ts_rank_cd"`` (cover density: how close together the words stand), which
        does well where all words must be there, and badly for any of them: 0.33 and 0.37 on the same collections.
    normalization
        How length counts: a sum of the bits that PostgreSQL documents; 1 divides by 1 + log of the length.

    Raises
    ------
    ConfigurationError
        An unknown setting.
    MissingDependency
        If psycopg is not installed.

    Notes
    -----
    Clarke, Cormack and Tudhope: Relevance Ranking for One to Three Term Queries. 1999 (cover density). A search
    returns rows that match, and no others; `score` gives the rest 0.
    """

    _kind = "postgres-text-index"
    lossless = True
    exhaustive = True
    lowest = 0.0
    returns_only_matches = True

    def __init__(
        self,
        url: str | None = None,
        *,
        language: str = "english",
        match: Match = "any",
        rank: Rank = "ts_rank",
        normalization: int = 1,
    ) -> None:
        for name, value, known in (("match", match, get_args(Match)), ("rank", rank, get_args(Rank))):
            if value not in known:
                raise ConfigurationError(f"There is no {name} {value!r}.", f"Choose from: {', '.join(known)}.")
        if not 0 <= normalization < 64:
            raise ConfigurationError(f"normalization is {normalization}.", "Use a sum of 1, 2, 4, 8, 16 and 32.")
        self.language = language
        self.match: Match = match
        self.rank: Rank = rank
        self.normalization = normalization
        super().__init__(url)

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty; without the password of the URL."""
        return {
            "type": "PostgresTextIndex",
            "url": self.url,
            "language": self.language,
            "match": self.match,
            "rank": self.rank,
            "normalization": self.normalization,
        }

    # The table

    def _prepare(self, connection: Any) -> None:
        found = connection.execute("SELECT cfgname FROM pg_ts_config ORDER BY cfgname").fetchall()
        names = [name for (name,) in found]
        if self.language not in names:
            problem = f"{self._home().name} has no text-search configuration {self.language!r}."
            raise ConfigurationError(problem, f"It has: {', '.join(names)}.")

    def _column(self, dim: int) -> str:
        return "tsvector NOT NULL"

    def _finish(self, connection: Any) -> None:
        self._run(connection, "CREATE INDEX {2} ON {1} USING gin (value)")

    def check(self, embeddings: Any, /) -> None:
        """Refuse what is not a text, without asking the server.

        Raises
        ------
        ShapeError
        """
        _checked(embeddings, what="embeddings")

    def add(self, ids: Ids, embeddings: Texts, /) -> None:
        """Insert or replace rows.

        Raises
        ------
        ShapeError
            Not strings, or not one id for each.
        InvalidInput
            A negative id, or one that comes twice; a text that the server cannot hold.
        """
        texts = _checked(embeddings, what="embeddings")
        keys = check_ids(ids, rows=len(texts))
        if not len(keys):
            return
        with self._changing(0) as (connection, _):
            replaced = self._run(connection, "DELETE FROM {1} WHERE key = ANY(%s)", (keys,)).rowcount
            sql = (
                "INSERT INTO {1} SELECT r.key, to_tsvector(%(language)s::regconfig, r.text) "
                "FROM unnest(%(keys)s::bigint[], %(texts)s::text[]) AS r(key, text)"
            )
            self._run(connection, sql, {"language": self.language, "keys": keys, "texts": texts})
            self._changed(connection, len(keys) - replaced)

    # Searching

    def search(
        self, queries: Texts, k: int, /, *, allowed: IdSet | None = None, options: Mapping[str, int] | None = None
    ) -> Neighbors:
        """The k best rows for each query among those that match it and are ``allowed``.

        Raises
        ------
        InvalidInput
            If k is not positive.
        ShapeError
            If a query is not a string.
        ConfigurationError
            For any option: there are none.
        ServerUnavailable
        """
        if options:
            raise ConfigurationError(f"PostgresTextIndex has no search option {sorted(options)[0]!r}.", "It has none.")
        allowed = check_search(k, allowed, options)
        asked = _checked(queries, what="queries")
        keys = allowed
        with self._session() as connection:
            state = self._state(connection)
            if state is None or not state.rows or not asked or (keys is not None and not len(keys)):
                return none(len(asked), k)
            passing, values = among(keys, state.rows)
            sql = (
                f"SELECT q.n - 1, r.key, r.score FROM {self._asked()} CROSS JOIN LATERAL ("
                f"SELECT key, {self._score()} AS score FROM {{1}} WHERE value @@ q.query AND {passing} "
                "ORDER BY score DESC, key LIMIT %(k)s) AS r"
            )
            return neighbors(self._run(connection, sql, {**self._values(asked), "k": k, **values}), len(asked), k)

    def score(self, queries: Texts, ids: Ids, /) -> Dense:
        """Scores of the given rows, ``(q, m)`` for ids ``(q, m)``; ``-inf`` where an id is -1 or not held."""
        asked = _checked(queries, what="queries")
        pairs = check_pairs(ids, queries=len(asked))
        out: Dense = np.full(pairs.shape, -np.inf, dtype=np.float32)
        with self._session() as connection:
            places = np.flatnonzero(pairs.ravel() >= 0)
            if self._state(connection) is None or not len(places):
                return out
            sql = (
                f"SELECT p.n - 1, CASE WHEN value @@ q.query THEN {self._score()} ELSE 0 END FROM {self._asked()} "
                "JOIN unnest(%(asked)s::bigint[], %(keys)s::bigint[]) WITH ORDINALITY AS p(asked, key, n) "
                "ON p.asked = q.n JOIN {1} AS r ON r.key = p.key"
            )
            values = {"asked": places // pairs.shape[1] + 1, "keys": pairs.ravel()[places]}
            for place, score in self._run(connection, sql, {**self._values(asked), **values}):
                out.ravel()[places[place]] = score
        return out

    def _asked(self) -> str:
        query = _QUERIES[self.match].format("%(language)s::regconfig")
        texts = "unnest(%(queries)s::text[]) WITH ORDINALITY AS t(v, n)"
        return f"(SELECT t.n, {query} AS query FROM {texts} OFFSET 0) AS q"

    def _score(self) -> str:
        return f"{self.rank}(value, q.query, {self.normalization:d})"

    def _values(self, asked: list[str]) -> dict[str, Any]:
        return {"queries": asked, "language": self.language}


def _checked(texts: object, *, what: str) -> list[str]:
    """A list of strings without NUL, which PostgreSQL does not hold."""
    array = np.asarray(texts, dtype=np.object_)
    if isinstance(texts, str) or array.ndim != 1:
        raise ShapeError(f"{what} has shape {array.shape}, not (n,) strings.", "Encode with VerbatimEncoder.")
    out: list[str] = []
    for i, text in enumerate(array.tolist()):
        if not isinstance(text, str):
            raise ShapeError(f"{what}, row {i}, is a {type(text).__name__}.", "Encode with VerbatimEncoder.")
        out.append(text.replace("\0", " "))
    return out
