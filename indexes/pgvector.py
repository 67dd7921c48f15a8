"""pgvector: vectors in a table of PostgreSQL, searched there.

Shapes: q queries, n rows, d dimensions, V vocabulary, k results, m rows asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from reperio.embeddings import Dense, Embeddings, Ids, IdSet, Sparse, take
from reperio.errors import ConfigurationError, ReadOnly, UnsupportedOperation
from reperio.indexes.flat import Metric
from reperio.indexes.pgvector_columns import BYTES, DType, column, copied, width
from reperio.indexes.pgvector_table import PostgresTable, State, among, neighbors, none
from reperio.indexes.rows import check_ids, check_pairs, check_search
from reperio.indexes.weighting import ALL
from reperio.postgres import Packed
from reperio.protocols import Spec
from reperio.types import Neighbors

__all__ = ["PgvectorIndex"]

BUILT_FROM = 10_000
"""Rows from which `PgvectorIndex.settle` builds the approximate index; a scan of fewer takes milliseconds."""

GROWN = 4
"""Times as many rows as when its lists were learnt, and an IVFFlat index is built again."""

_OPTIONS = {"hnsw": ("ef_search",), "ivfflat": ("probes",), None: ()}

_REACH = 200
"""Of 100,000 clustered rows, 64 lost all ten results of 3 queries in 100, 200 of none, for a fifth more time."""

_CHUNK, _QUERIES = 1 << 14, 256
"""Rows sent to the server at a time; queries in one statement."""

_MEMORY = 1 << 20
"""Kilobytes that a build may ask for, if the server's own setting is lower."""


class PgvectorIndex(PostgresTable):
    """Dense or sparse vectors in PostgreSQL, searched by pgvector 0.8 or later.

    Exact until `settle` or `build` makes the approximate index, which later changes keep up to date. A search
    returns min(k, rows allowed) rows: the server scans on until it has them (iterative scan), and where it stops
    short, or few rows are allowed, it scans those exactly. Changes are transactions; what others changed is found
    by the next search. The table stays on the server until `drop`.

    Parameters
    ----------
    url
        The database: see `reperio.postgres.Database`. None for an index of a collection that is in PostgreSQL
        itself: its rows are in the collection's own schema, and a commit changes both or neither.
    metric
        ``"cosine"`` (vectors are scaled to length one), ``"ip"`` or ``"l2"`` (squared distance, negated). Sparse
        rows need ``"ip"``.
    dtype
        ``"float32"`` (pgvector's ``vector``), ``"float16"`` (``halfvec``), ``"bit"`` (the sign of each value: the
        score is the cosine of the signs) or ``"sparse"`` (``sparsevec``, for `Sparse` rows of up to 10⁹ columns).
    index
        ``"hnsw"``, ``"ivfflat"``, or None for an exact scan.
    m, ef_construction
        Of HNSW: links of a row, and candidates looked at to choose them.
    lists
        Of IVFFlat; √n when it is built, if not given.
    options
        Search options in place of the defaults: ``ef_search``, the candidates that HNSW keeps (200, or twice k);
        ``probes``, the lists that IVFFlat looks into (√lists, at least 8).

    Raises
    ------
    ConfigurationError
        An unknown setting, or settings that do not go together.
    MissingDependency
        If psycopg is not installed.

    Notes
    -----
    Malkov and Yashunin: Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small
    World graphs. 2016. Ties go to the lower id within the k rows returned. Sparse rows without a term of the query
    are no match.

    Examples
    --------
    >>> PgvectorIndex("postgresql://me:secret@db.example/shop", dtype="float16").spec["url"]
    'postgresql://me@db.example/shop'
    """

    _kind = "pgvector-index"

    def __init__(
        self,
        url: str | None = None,
        *,
        metric: Metric = "cosine",
        dtype: DType = "float32",
        index: Literal["hnsw", "ivfflat"] | None = "hnsw",
        m: int = 16,
        ef_construction: int = 64,
        lists: int | None = None,
        options: Mapping[str, int] | None = None,
    ) -> None:
        self.column = column(dtype, metric, index)
        self.m = _within("m", m, 2, 100)
        self.ef_construction = _within("ef_construction", ef_construction, 2 * m, 1000)
        self.lists = None if lists is None else _within("lists", lists, 1, 32768)
        self.options = self._checked(options)
        self._oid = 0
        super().__init__(url)

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty; without the password of the URL."""
        return {
            "type": "PgvectorIndex",
            "url": self.url,
            "metric": self.column.metric,
            "dtype": self.column.dtype,
            "index": self.column.index,
            "m": self.m,
            "ef_construction": self.ef_construction,
            "lists": self.lists,
            "options": self.options or None,
        }

    weights_below = ALL

    @property
    def lossless(self) -> bool:
        """Whether scores are exact for the vectors that were added: not for ``float16`` and ``bit``."""
        return self.column.dtype in ("float32", "sparse")

    @property
    def exhaustive(self) -> bool:
        """Whether a search compares every row."""
        return self.column.index is None

    @property
    def lowest(self) -> float:
        """-1 for cosine, 0 for sparse rows, else ``-inf``."""
        return 0.0 if self.column.dtype == "sparse" else -1.0 if self.column.metric == "cosine" else -math.inf

    @property
    def returns_only_matches(self) -> bool:
        """Whether rows are left out that share no term with the query."""
        return self.column.dtype == "sparse"

    def _checked(self, options: Mapping[str, int] | None) -> dict[str, int]:
        known = _OPTIONS[self.column.index]
        for name, value in (options or {}).items():
            if name not in known:
                fix = f"It has: {', '.join(known)}." if known else "It has none."
                raise ConfigurationError(f"A PgvectorIndex with {self.column.index} has no option {name!r}.", fix)
            _within(name, value, 1, 1000 if name == "ef_search" else 32768)
        return dict(options or {})

    # The table

    def _prepare(self, connection: Any) -> None:
        """Make the extension, or say that it cannot be made, or is too old."""
        version = "SELECT extversion FROM pg_extension WHERE extname = 'vector'"
        found = connection.execute(version).fetchone()
        if found is None:
            there = "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
            if connection.execute(there).fetchone() is None:
                raise UnsupportedOperation(f"{self._home().name} has no pgvector.", "Install it on the server.")
            try:
                with self._home().errors():
                    connection.execute("CREATE EXTENSION vector SCHEMA public")
            except ReadOnly as error:
                problem = f"{self._home().name} has no pgvector yet, and this user may not create it."
                raise UnsupportedOperation(problem, "Have an administrator run: CREATE EXTENSION vector") from error
            found = connection.execute(version).fetchone()
        if tuple(int(part) for part in re.findall(r"\d+", found[0])[:2]) < (0, 8):
            problem = f"{self._home().name} has pgvector {found[0]}; 0.8 or later is needed for filtered searches."
            raise UnsupportedOperation(problem, "Install it, then run: ALTER EXTENSION vector UPDATE")

    def _column(self, dim: int) -> str:
        # Kept with its row where two rows fit a page: a scan then reads one table, not two.
        inline = dim * BYTES[self.column.dtype] <= 4000
        return f"{self.column.type}({dim:d}) STORAGE {'PLAIN' if inline else 'EXTERNAL'} NOT NULL"

    def check(self, embeddings: Any, /) -> None:
        """Refuse embeddings that it cannot hold, without asking the server.

        Raises
        ------
        ShapeError, ConfigurationError
        """
        self.column.check(embeddings, what="embeddings", dim=None)

    def add(self, ids: Ids, embeddings: Dense | Sparse, /) -> None:
        """Insert or replace rows.

        Raises
        ------
        ShapeError
            Another kind or other dimensions than before; NaN, infinity, or values that the dtype does not hold; not
            one id for each row.
        InvalidInput
            A negative id, or one that comes twice.
        ConfigurationError
            More dimensions than pgvector holds or indexes.
        UnsupportedOperation
            If the server has no pgvector, or an old one.
        """
        state = self._look()
        dim = None if state is None else state.dim
        rows = self.column.check(embeddings, what="embeddings", dim=dim)
        keys = check_ids(ids, rows=len(rows))
        if not len(keys):
            return
        with self._changing(width(rows)) as (connection, held):
            if held is not None and held.dim != width(rows):  # made by another since it was looked at
                self.column.check(embeddings, what="embeddings", dim=held.dim)
            replaced = self._run(connection, "DELETE FROM {1} WHERE key = ANY(%s)", (keys,)).rowcount
            packed = self.column.pack(rows)
            for part in (slice(start, start + _CHUNK) for start in range(0, len(keys), _CHUNK)):
                self._copy(connection, copied(keys[part].tolist(), packed[part]))
            self._changed(connection, len(keys) - replaced)

    def _copy(self, connection: Any, data: bytes) -> None:
        with connection.cursor() as cursor, cursor.copy(self._named("COPY {1} FROM STDIN (FORMAT BINARY)")) as copy:
            copy.write(data)

    # The index

    def settle(self) -> None:
        """Build the approximate index where there is none yet and the rows are many; learn lists again that are old."""
        state = self._look()
        if state is None or self.column.index is None or state.rows < BUILT_FROM:
            return
        if not state.built or (self.column.index == "ivfflat" and state.rows >= GROWN * state.built):
            self.build()

    def build(self) -> None:
        """Build the approximate index, or build it again, over what is held now. Searches go on, changes wait.

        The server takes its ``maintenance_work_mem``, or up to 1 GB if that is less than the graph needs.

        Raises
        ------
        UnsupportedOperation
            If there is to be none.
        """
        if self.column.index is None:
            raise UnsupportedOperation("This PgvectorIndex scans exactly.", "Give index='hnsw' or index='ivfflat'.")
        with self._changing() as (connection, state):
            if state is None or not state.rows:
                return
            if self.column.index == "hnsw":
                settings = f"m = {self.m:d}, ef_construction = {self.ef_construction:d}"
            else:
                settings = f"lists = {self.lists or round(math.sqrt(state.rows)):d}"
            row = state.dim * BYTES[self.column.dtype] if self.column.dtype != "sparse" else 8 * 1000
            wanted = int(min(_MEMORY, 1.3 * state.rows * (row + 16 * self.m + 100) / 1024))
            memory = (
                "SELECT set_config(name, greatest(%s, setting::int)::text, true) FROM pg_settings "
                "WHERE name = 'maintenance_work_mem'"
            )
            connection.execute(memory, (wanted,))
            using = f"USING {self.column.index} (value {self.column.operators}) WITH ({settings})"
            self._run(connection, f"CREATE INDEX {{3}} ON {{1}} {using}")
            self._run(connection, "ANALYZE {1}")
            self._run(connection, "DROP INDEX IF EXISTS {0}.{2}")  # from here on searches wait, for a moment
            self._run(connection, "ALTER INDEX {0}.{3} RENAME TO {2}")
            self._changed(connection, 0, built=state.rows)

    # Searching

    def search(
        self,
        queries: Dense | Sparse,
        k: int,
        /,
        *,
        allowed: IdSet | None = None,
        options: Mapping[str, int] | None = None,
    ) -> Neighbors:
        """The k best rows for each query, among ``allowed`` if given: always min(k, allowed held) of them.

        Parameters
        ----------
        options
            ``ef_search`` for HNSW, ``probes`` for IVFFlat.

        Raises
        ------
        InvalidInput
            If k is not positive.
        ShapeError
            If the queries have other dimensions than the rows, or hold NaN or infinity.
        ConfigurationError
            For an option that this index does not have.
        ServerUnavailable
        """
        allowed = check_search(k, allowed, options)
        settings = {**self.options, **self._checked(options)}
        with self._session() as connection:
            state = self._state(connection)
            asked = self.column.check(queries, what="queries", dim=None if state is None else state.dim)
            keys = allowed
            if state is None or not state.rows or not len(asked) or (keys is not None and not len(keys)):
                return none(len(asked), k)
            reach = settings.get("ef_search", min(1000, max(_REACH, 2 * k)))
            if not state.built or (keys is not None and len(keys) ** 2 <= reach * state.rows):
                return self._find(connection, asked, k, state, keys, exact=True)
            with self._home().trial():
                self._tune(connection, state, reach=reach, probes=settings.get("probes"))
                found = self._find(connection, asked, k, state, keys, exact=False)
            wanted = min(k, state.rows if keys is None else len(keys))
            short = np.flatnonzero((found.ids >= 0).sum(axis=1) < wanted)
            if len(short) and not self.returns_only_matches:
                rest = self._find(connection, take(asked, short), k, state, keys, exact=True)
                found.ids[short], found.scores[short] = rest.ids, rest.scores
            return found

    def _tune(self, connection: Any, state: State, *, reach: int, probes: int | None) -> None:
        """Settings of this search: the index is used, and scanned until there are k rows."""
        lists = self.lists or round(math.sqrt(state.built))
        settings = {
            "enable_seqscan": "off",
            "enable_sort": "off",
            "hnsw.ef_search": str(reach),
            "hnsw.iterative_scan": "strict_order",
            "hnsw.max_scan_tuples": str(min(state.rows, 2**31 - 1)),
            "hnsw.scan_mem_multiplier": "32",
            "ivfflat.probes": str(min(lists, probes or max(8, round(math.sqrt(lists))))),
            "ivfflat.iterative_scan": "relaxed_order",
        }
        calls = ", ".join(["set_config(%s, %s, true)"] * len(settings))
        connection.execute(f"SELECT {calls}", [part for pair in settings.items() for part in pair])

    def _find(
        self, connection: Any, asked: Embeddings, k: int, state: State, keys: IdSet | None, *, exact: bool
    ) -> Neighbors:
        """The k best rows in one statement for a batch of queries."""
        passing, values = among(keys, state.rows)
        # Ordered by the bare operator, the index answers; with anything added to it, every row is looked at.
        order = f"(value {self.column.distance} q.v) + 0, key" if exact else f"value {self.column.distance} q.v"
        sql = (
            f"SELECT q.n - 1, r.key, r.score FROM {self._queries(state.dim)} AS q(v, n) CROSS JOIN LATERAL ("
            f"SELECT key, {self.column.score(state.dim)} AS score FROM {{1}} WHERE {passing} "
            f"ORDER BY {order} LIMIT %(k)s) AS r"
        )
        parts = [
            self._run(connection, sql, {"queries": self._packed(connection, part), "k": k, **values}).fetchall()
            for part in _batches(asked)
        ]
        out = [neighbors(rows, len(part), k) for rows, part in zip(parts, _batches(asked), strict=True)]
        found = Neighbors(np.concatenate([n.ids for n in out]), np.concatenate([n.scores for n in out]))
        if self.returns_only_matches:
            empty = found.scores <= 0
            found.ids[empty], found.scores[empty] = -1, -np.inf
        return found

    def _queries(self, dim: int) -> str:
        return f"unnest(%(queries)s::{self.column.type}({dim:d})[]) WITH ORDINALITY"

    def _packed(self, connection: Any, queries: Embeddings) -> Packed:
        if not self._oid:
            (self._oid,) = connection.execute("SELECT %s::regtype::oid::bigint", (self.column.type,)).fetchone()
        return Packed(self.column.pack_array(queries, self._oid))

    def score(self, queries: Dense | Sparse, ids: Ids, /) -> Dense:
        """Scores of the given rows, ``(q, m)`` for ids ``(q, m)``; ``-inf`` where an id is -1 or not held.

        Of the vectors as the table keeps them.
        """
        with self._session() as connection:
            state = self._state(connection)
            asked = self.column.check(queries, what="queries", dim=None if state is None else state.dim)
            pairs = check_pairs(ids, queries=len(asked))
            out: Dense = np.full(pairs.shape, -np.inf, dtype=np.float32)
            if state is None or not (pairs >= 0).any():
                return out
            sql = (
                f"SELECT p.n - 1, {self.column.score(state.dim)} FROM {self._queries(state.dim)} AS q(v, n) "
                "JOIN unnest(%(asked)s::bigint[], %(keys)s::bigint[]) WITH ORDINALITY AS p(asked, key, n) "
                "ON p.asked = q.n JOIN {1} AS t ON t.key = p.key"
            )
            places = np.flatnonzero(pairs.ravel() >= 0)
            values = {
                "queries": self._packed(connection, asked),
                "asked": places // pairs.shape[1] + 1,
                "keys": pairs.ravel()[places],
            }
            for place, score in self._run(connection, sql, values):
                out.ravel()[places[place]] = score
        return out


def _within(name: str, value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigurationError(f"{name} is {value!r}.", f"Give a whole number from {least} to {most}.")
    return value


def _batches(queries: Embeddings) -> Iterator[Embeddings]:
    for start in range(0, len(queries), _QUERIES):
        yield take(queries, np.arange(start, min(start + _QUERIES, len(queries))))
