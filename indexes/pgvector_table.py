"""A table of PostgreSQL that holds the rows of an index: made when first filled, counted, changed by one at a time."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self
from uuid import uuid4

import numpy as np

from reperio.artifacts import new_folder
from reperio.embeddings import Ids, IdSet
from reperio.errors import (
    ConfigurationError,
    CorruptArtifact,
    NotFound,
    ReperioError,
    StaleResult,
    UnsupportedOperation,
)
from reperio.extras import load
from reperio.indexes.abandoned import drop_when_gone
from reperio.indexes.rows import check_removed, pad
from reperio.indexes.stored import arguments, reading
from reperio.postgres import Database
from reperio.protocols import Spec
from reperio.types import Neighbors

__all__ = ["SCHEMA", "PostgresTable", "State", "among", "neighbors", "none"]

SCHEMA = "reperio_indexes"
"""Where the tables are of indexes that are not in their collection's database."""

_FILE = "table.json"

_CATALOG = """
CREATE TABLE IF NOT EXISTS {}.tables (
    name text PRIMARY KEY, dim bigint NOT NULL, rows bigint NOT NULL, generation bigint NOT NULL, built bigint NOT NULL
)
"""


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a table.

    Attributes
    ----------
    dim
        d or V; 0 where rows have none.
    rows
        How many it holds.
    generation
        Goes up with every change.
    built
        How many it held when its index was built; 0 where there is none.
    """

    dim: int
    rows: int = 0
    generation: int = 0
    built: int = 0


class PostgresTable(ABC):
    """What every index in PostgreSQL has in common: where its rows are.

    Parameters
    ----------
    url
        The database; None for an index that moves into its collection's.
    """

    _kind: ClassVar[str]

    def __init__(self, url: str | None) -> None:
        self._database = None if url is None else Database.at(url)
        self._schema = SCHEMA
        self._name = f"index_{uuid4().hex}"
        self._made = False  # whether the table was seen, and no rollback can take it away again
        self._kept = False

    @property
    @abstractmethod
    def spec(self) -> Spec:
        """How to build this index again, empty; without the password of the URL."""

    @property
    def url(self) -> str | None:
        """The database, without the password; None for that of the collection."""
        return None if self._database is None or self._schema != SCHEMA else self._database.name

    @property
    def address(self) -> str:
        """Where the rows are, without a secret; empty while that is not known."""
        return "" if self._database is None else f"{self._database.name}#{self._schema}.{self._name}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def move_in(self, database: Any, schema: str, table: str, /) -> None:
        """Keep the rows in this table of a collection's database, which may be there already."""
        self._database, self._schema, self._name, self._kept = database, schema, table, True

    # The table

    @abstractmethod
    def _column(self, dim: int) -> str:
        """Type of the column ``value``."""

    def _prepare(self, connection: Any) -> None:
        """What must be in the database before the first table."""
        return  # nothing, where an index says no more

    def _finish(self, connection: Any) -> None:
        """What must be in the table before the first row."""
        return  # nothing, where an index says no more

    def _home(self) -> Database:
        if self._database is None:
            problem = f"This {type(self).__name__} has no database."
            raise ConfigurationError(problem, "Give its url, or use it in a collection that is in PostgreSQL.")
        return self._database

    @contextmanager
    def _there(self) -> Generator[Database]:
        """The database; of its collection's transactions it is a part if it lives there, and of no others."""
        home = self._home()
        with ExitStack() as inside:
            if self.url is not None:
                inside.enter_context(home.apart())
            try:
                yield home
            except CorruptArtifact as error:
                if getattr(error.__cause__, "sqlstate", None) not in ("42P01", "3F000"):
                    raise
                raise self._gone() from error

    def _gone(self) -> NotFound:
        if self.url is None:
            fix = "Search again. If it is still so, open the collection for writing: that builds the index anew."
            return StaleResult(f"The table {self.address} was dropped, or its index replaced.", fix)
        fix = "Open the collection again: it builds the index anew from its store."
        return NotFound(f"{self.address} is gone: someone dropped it.", fix)

    @contextmanager
    def _session(self) -> Generator[Any]:
        with self._there() as database, database.session() as connection:
            yield connection

    def _named(self, statement: str) -> Any:
        """With the schema for ``{0}``, the table for ``{1}``, its index for ``{2}``, the one to come for ``{3}``."""
        sql = load("psycopg.sql", extra="pgvector")
        indexes = (sql.Identifier(f"{self._name}_{suffix}") for suffix in ("value", "next"))
        return sql.SQL(statement).format(
            sql.Identifier(self._schema), sql.Identifier(self._schema, self._name), *indexes
        )

    def _run(self, connection: Any, statement: str, parameters: Any = None) -> Any:
        return connection.execute(self._named(statement), parameters, binary=True)

    def _state(self, connection: Any, *, lock: bool = False) -> State | None:
        """What the table holds; None before there is one."""
        if not self._made and not self._catalogued(connection):
            return None
        sql = (
            "SELECT dim, rows, generation, built FROM {0}.tables "
            "WHERE name = %s AND to_regclass(format('%%I.%%I', %s::text, name)) IS NOT NULL"
        )
        names = (self._name, self._schema)
        found = self._run(connection, f"{sql} FOR UPDATE" if lock else sql, names).fetchone()
        if found is None and self._made:
            raise self._gone()
        self._learn(made=found is not None)
        return None if found is None else State(*found)

    def _catalogued(self, connection: Any) -> bool:
        # Not to_regclass, which may answer what it answered before another made it, in the same transaction.
        sql = (
            "SELECT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
            "WHERE n.nspname = %s AND c.relname = 'tables')"
        )
        return bool(self._run(connection, sql, (self._schema,)).fetchone()[0])

    def _learn(self, *, made: bool) -> None:
        # What a transaction has made itself is gone again where it is undone.
        if made and not self._home().changing:
            self._made = True

    @contextmanager
    def _changing(self, dim: int | None = None) -> Generator[tuple[Any, State | None]]:
        """A transaction in which nobody else changes the table; it is made first where ``dim`` is given."""
        made = False
        with self._there() as database:
            with database.transaction() as connection:
                state = self._state(connection, lock=True)
                if state is None and dim is not None:
                    # Two who make the schema at once would fail, one of them, in spite of IF NOT EXISTS.
                    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('reperio tables', 0))")
                    state = self._state(connection, lock=True)  # another may have made it meanwhile
                    made = state is None
                    state = state or self._make(connection, dim)
                yield connection, state
            self._learn(made=state is not None)
        if made and not self._kept:
            drop = partial(_drop, self._home(), self._schema, self._name)
            self._dropping = drop_when_gone(self, drop, at_exit=True)

    def _make(self, connection: Any, dim: int) -> State:
        self._prepare(connection)
        self._run(connection, "CREATE SCHEMA IF NOT EXISTS {0}")
        self._run(connection, _CATALOG)
        self._run(connection, f"CREATE TABLE {{1}} (key bigint PRIMARY KEY, value {self._column(dim)})")
        self._finish(connection)
        # There is a row already where the table was dropped by hand.
        sql = "INSERT INTO {0}.tables VALUES (%s, %s, 0, 0, 0) ON CONFLICT (name) DO UPDATE SET dim = excluded.dim, "
        self._run(connection, f"{sql} rows = 0, generation = 0, built = 0", (self._name, dim))
        return State(dim)

    def _changed(self, connection: Any, rows: int, *, built: int | None = None) -> None:
        sql = (
            "UPDATE {0}.tables SET rows = rows + %s, generation = generation + 1, built = coalesce(%s, built) "
            "WHERE name = %s"
        )
        self._run(connection, sql, (rows, built, self._name))

    # Rows

    def __len__(self) -> int:
        state = self._look()
        return 0 if state is None else state.rows

    def _look(self) -> State | None:
        if self._database is None:
            return None
        with self._session() as connection:
            return self._state(connection)

    @property
    def ids(self) -> IdSet:
        """Every row key held, ``(n,)``, sorted."""
        if self._look() is None:
            return np.empty(0, dtype=np.int64)
        with self._session() as connection:
            sql = "SELECT string_agg(int8send(key), ''::bytea ORDER BY key) FROM {1}"
            (packed,) = self._run(connection, sql).fetchone()
        return np.frombuffer(packed or b"", dtype=">i8").astype(np.int64)

    def remove(self, ids: Ids, /) -> int:
        """Take rows away; returns how many were there."""
        gone = check_removed(ids)
        if self._database is None or not len(gone):
            return 0
        with self._changing() as (connection, state):
            if state is None:
                return 0
            removed = int(self._run(connection, "DELETE FROM {1} WHERE key = ANY(%s)", (gone,)).rowcount)
            self._changed(connection, -removed)
        return removed

    # Where it is

    def settle(self) -> None:
        """Make what was added quick to search."""
        return  # nothing, where an index says no more

    def size(self) -> int:
        """Bytes on the server's disk."""
        if self._look() is None:
            return 0
        with self._session() as connection:
            sql = "SELECT pg_total_relation_size(format('%%I.%%I', %s::text, %s::text)::regclass)"
            return int(self._run(connection, sql, (self._schema, self._name)).fetchone()[0])

    def drop(self) -> None:
        """Take the rows off the server for good."""
        with self._there() as database, database.transaction() as connection:
            if self._catalogued(connection):
                self._run(connection, "DELETE FROM {0}.tables WHERE name = %s", (self._name,))
                # Who still reads it is waited for, but not for ever: dropping can be tried again.
                connection.execute("SELECT set_config('lock_timeout', '10s', true)")
                self._run(connection, "DROP TABLE IF EXISTS {1}")
        self._made = False

    def save(self, path: Path | str, /) -> None:
        """Write a new folder that names the table, which from then on stays on the server until `drop`.

        Raises
        ------
        UnsupportedOperation
            If it lives in its collection's database, where nothing has to be saved.
        """
        if self.url is None:
            problem = f"This {type(self).__name__} lives in the database of its collection."
            raise UnsupportedOperation(problem, "It is saved with every commit: there is nothing to do.")
        state = self._look()
        table = {"table": self._name, "state": None if state is None else asdict(state)}
        with new_folder(path, self._kind, {"spec": dict(self.spec)}) as folder:
            (folder / _FILE).write_text(json.dumps(table), encoding="utf-8")
        self._keep()

    def _keep(self) -> None:
        self._kept = True
        dropping = getattr(self, "_dropping", None)
        if dropping is not None:
            dropping.detach()

    @classmethod
    def open(cls, path: Path | str, /) -> Self:
        """Find what `save` named, as it is now: others may have changed it since.

        Raises
        ------
        NotFound, NewerFormat
        CorruptArtifact
            If the folder was altered; if the table is not there, or holds less than when it was saved.
        ServerUnavailable
        """
        with reading(cls, path, cls._kind) as (folder, meta):
            index = cls(**arguments(meta))
            saved = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            index._name, before = saved["table"], saved["state"] and State(**saved["state"])
        index._kept = True
        if before is not None:
            index._verify(before)
        return index

    def _verify(self, saved: State) -> None:
        """Compare with what was saved."""
        with self._session() as connection:
            self._prepare(connection)
            found = self._state(connection)
            if found is None:
                raise CorruptArtifact(f"The table {self.address} is not there any more.", "Rebuild the index.")
            (rows,) = self._run(connection, "SELECT count(*) FROM {1}").fetchone()
        if found.dim != saved.dim or found.generation < saved.generation or rows != found.rows:
            problem = f"The table {self.address} is not as it was left: {rows} rows, {found} after {saved}."
            raise CorruptArtifact(problem, "Rebuild the index.")


def none(queries: int, k: int) -> Neighbors:
    """Nothing found."""
    return pad(np.empty((queries, 0), dtype=np.int64), np.empty((queries, 0), dtype=np.float32), k)


def among(keys: IdSet | None, rows: int) -> tuple[str, dict[str, Any]]:
    """A condition on ``key``: few keys as an array, which the primary key answers; many as one bit each.

    PostgreSQL reads an array of 50,000 anew for each statement, in 15 ms; of a bit string it reads the bits it needs.
    """
    if keys is None:
        return "true", {}
    low, high = int(keys[0]), int(keys[-1])
    span = high - low + 1
    if len(keys) * 10 <= rows or span > 8 * 12 * len(keys):
        return "key = ANY(%(keys)s)", {"keys": keys}
    bits = np.zeros(span, dtype=np.bool_)
    bits[keys - low] = True
    packed = np.packbits(bits, bitorder="little").tobytes()
    # CASE, since a bit that is not there is an error and AND promises no order.
    test = "CASE WHEN key BETWEEN %(low)s AND %(high)s THEN get_bit(%(bits)s::bytea, key - %(low)s) = 1 ELSE false END"
    return test, {"low": low, "high": high, "bits": packed}


def neighbors(found: Iterable[Any], queries: int, k: int) -> Neighbors:
    """Rows of a query's number, a key and a score, as they stand in a result."""
    rows = list(found)
    out = none(queries, k)
    asked, keys = (np.fromiter((row[i] for row in rows), dtype=np.int64, count=len(rows)) for i in (0, 1))
    scores = np.fromiter((row[2] for row in rows), dtype=np.float32, count=len(rows))
    order = np.lexsort((keys, -scores, asked))
    asked, keys, scores = asked[order], keys[order], scores[order]
    rank = np.arange(len(asked)) - np.searchsorted(asked, np.arange(queries))[asked]
    out.ids[asked, rank], out.scores[asked, rank] = keys, scores
    return out


def _drop(database: Database, schema: str, name: str) -> None:
    """An index that was never saved leaves nothing on the server."""
    sql = load("psycopg.sql", extra="pgvector")
    with suppress(ReperioError), database.transaction() as connection:
        table = sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(schema, name))
        row = sql.SQL("DELETE FROM {}.tables WHERE name = %s").format(sql.Identifier(schema))
        connection.execute("SELECT set_config('lock_timeout', '10s', true)")
        connection.execute(table)
        connection.execute(row, (name,))
