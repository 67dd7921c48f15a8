"""A schema of a PostgreSQL database: documents, metadata, embeddings and their sequence numbers, for many clients."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import numpy as np

from reperio import filters, forks
from reperio.embeddings import Ids, IdSet
from reperio.errors import CorruptArtifact, InvalidInput, NewerFormat, NotFound, ReadOnly, StorageError
from reperio.extras import load
from reperio.filters import Filter
from reperio.postgres import Database
from reperio.stores import postgres_schema as schema
from reperio.stores.postgres_host import PostgresHost
from reperio.stores.postgres_lease import WriterLease
from reperio.stores.postgres_where import compile_filter
from reperio.stores.rows import Entry, Known, Mode, Vector, altered, check_floor, check_id, kinds, present, unpack
from reperio.types import Document

_SNAPSHOT = "ISOLATION LEVEL REPEATABLE READ READ ONLY"

_CHUNK = 4096
"""Rows read at a time where all are read."""


class PostgresStore:
    """A `Store` in PostgreSQL, which many clients read and one at a time writes.

    Every table is in one schema of the database, which is named for the collection. A commit is one transaction;
    who reads sees all of it or nothing. The right to write is an advisory lock of the writer's session: the server
    gives it back when the session ends, however it ends. Safe to use from several threads; after a fork, the child
    may read.

    Parameters
    ----------
    url
        See `reperio.postgres.Database`. The server is PostgreSQL 14 or later; a pooler in front of it must keep a
        session together.
    collection
        Its name.
    mode
        ``"rw"`` makes the collection if it is absent; ``"r"`` never writes.

    Raises
    ------
    NotFound
        In mode ``"r"``, if there is no such collection.
    WriterBusy
        In mode ``"rw"``, if another session writes it.
    ServerUnavailable
        If the server cannot be reached.
    NewerFormat, CorruptArtifact, ReadOnly, ConfigurationError
    """

    def __init__(self, url: str, *, collection: str, mode: Mode = "rw") -> None:
        self.collection = schema.check_name(collection)
        self.database = Database.at(url)
        self.location = self.at(collection)
        self.writable = mode == "rw"
        self.writing = threading.RLock()
        self.host = PostgresHost(self)
        self._sql = load("psycopg.sql", extra="pgvector")
        self._lock = threading.Lock()
        self._inside = threading.local()
        self._matching: OrderedDict[tuple[int, str], IdSet] = OrderedDict()
        self._seen = (0, 0, 0)
        self._mine = 0
        self._closed = False
        self._lease = WriterLease(self.database, collection, self.location) if self.writable else None
        try:
            self._open()
            self.refresh()
            self._mine = self._seen[0]
        except BaseException:
            self.close()
            raise
        forks.follow(self)

    def after_fork(self) -> None:
        """In a child: it reads over connections of its own; the right to write stays its parent's."""
        self.writing, self._lock, self._inside = threading.RLock(), threading.Lock(), threading.local()
        self.writable = False

    def _open(self) -> None:
        sql = "SELECT tablename FROM pg_tables WHERE schemaname = %s"
        tables = {name for (name,) in self.read(sql, (self.collection,))}
        if tables and "reperio" not in tables:
            raise CorruptArtifact(f"{self.location} is a schema, not a collection.", "Choose another name.")
        if not tables:
            if not self.writable:
                raise NotFound(f"There is no collection {self.location}.", "Open it with mode='rw' to create it.")
            with self.transaction() as connection:
                schema.create(connection, self.collection)
        (version,) = self.read("SELECT format FROM {}.reperio")[0]
        if version > schema.FORMAT:
            problem = f"{self.location} has format {version}; this release reads up to {schema.FORMAT}."
            raise NewerFormat(problem, "Upgrade reperio.")

    def close(self) -> None:
        """Give back the right to write. Safe to call twice."""
        self._closed = True
        if self._lease is not None:
            self._lease.release()

    def at(self, collection: str) -> str:
        """Where a collection of this name is."""
        return f"{self.database.name}#{quote(collection)}"

    def rename(self, collection: str) -> None:
        """Give the collection another name, for everyone at once; whoever has it open opens it again."""
        rename = self._sql.SQL("ALTER SCHEMA {} RENAME TO {}")
        with self.transaction() as connection:
            connection.execute(rename.format(*map(self._sql.Identifier, (self.collection, collection))))

    # Transactions

    def run(self, connection: Any, statement: str, parameters: Any = None) -> Any:
        """Execute, with the schema's name where ``{}`` stands."""
        query = self._sql.SQL(statement).format(self._sql.Identifier(self.collection))
        return connection.execute(query, parameters, binary=True)

    def read(self, statement: str, parameters: Any = None) -> list[Any]:
        self._check_open()
        with self.database.session() as connection:
            found: list[Any] = self.run(connection, statement, parameters).fetchall()
            return found

    def _column(self, statement: str, parameters: Any = None) -> Ids:
        """Row keys in one piece: a million of them are no objects."""
        packed = f"SELECT string_agg(int8send(row), ''::bytea ORDER BY row) FROM ({statement}) AS found"
        return np.frombuffer(self.read(packed, parameters)[0][0] or b"", dtype=">i8").astype(np.int64)

    def _check_open(self) -> None:
        if self._closed:
            fix = "Open the collection again; read a ranking's hits before it is closed."
            raise StorageError(f"{self.location} is closed.", fix)

    @contextmanager
    def transaction(self) -> Generator[Any]:
        """Everything inside is committed or undone; inside another of this thread, it is a part of that one."""
        with self._leased() as lease, self.database.transaction(connection=lease.connection) as connection:
            yield connection

    @contextmanager
    def _leased(self) -> Generator[WriterLease]:
        self._check_open()
        if self._lease is None:
            raise ReadOnly(f"{self.location} is open for reading.", "Open it with mode='rw'.")
        with self.writing:
            yield self._lease

    @contextmanager
    def snapshot(self) -> Generator[int]:
        """Everything that this thread reads inside is of one commit; gives its sequence number."""
        self._check_open()
        held = getattr(self._inside, "seen", None)
        if held is not None:
            yield held[0]
            return
        with self.database.transaction(_SNAPSHOT) as connection:
            self._inside.seen = self._look(connection)
            try:
                yield self._inside.seen[0]
            finally:
                self._inside.seen = None

    def refresh(self) -> bool:
        """See what others have committed; True if there was anything."""
        self._check_open()
        before = self._seen
        with self.database.session() as connection:
            return self._look(connection) != before

    def _look(self, connection: Any) -> tuple[int, int, int]:
        seq, floor, turn, self.uuid = self.run(connection, "SELECT seq, floor, turn, uuid FROM {}.reperio").fetchone()
        self._seen = (seq, floor, turn)
        return self._seen

    def _last(self) -> tuple[int, int, int]:
        """Of the snapshot that this thread is in, else of the last look."""
        return getattr(self._inside, "seen", None) or self._seen

    @property
    def seq(self) -> int:
        """Sequence number of the last commit seen, or of the snapshot that this thread is in."""
        return self._last()[0]

    @property
    def floor(self) -> int:
        """What came before it cannot be replayed: `purge` took it away."""
        return self._last()[1]

    @property
    def turn(self) -> int:
        """Goes up whenever a signal takes another index."""
        return self._last()[2]

    # Signals

    def signals(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """Number and configuration of each signal, by name, in the order in which they were declared."""
        rows = self.read("SELECT number, name, config FROM {}.signals ORDER BY number")
        return {name: (number, json.loads(config)) for number, name, config in rows}

    def declare(self, signals: Mapping[str, Mapping[str, Any]], /) -> None:
        """Write the signals' configurations, once, when the collection is made."""
        with self.transaction() as connection:
            for number, (name, config) in enumerate(signals.items()):
                values = (number, name, json.dumps(config))
                self.run(connection, "INSERT INTO {}.signals VALUES (%s, %s, %s, 1, NULL, 1)", values)
                spec = (number, json.dumps(dict(config["index"])))
                self.run(connection, "INSERT INTO {}.indexes VALUES (%s, 1, %s)", spec)

    # Reading

    def count(self) -> int:
        """Live documents."""
        return int(self.read("SELECT count(*) FROM {}.documents WHERE removed IS NULL")[0][0])

    def dead(self) -> int:
        """Versions that were replaced or deleted and not yet compacted away."""
        return int(self.read("SELECT count(*) FROM {}.documents WHERE removed IS NOT NULL")[0][0])

    def fetch(self, rows: Ids, /) -> list[Document]:
        """Documents by row key, in this order.

        Raises
        ------
        StaleResult
            If compaction has taken one of them away.
        """
        sql = "SELECT row, id, text, metadata, provenance FROM {}.documents WHERE row = ANY(%s)"
        found = {row[0]: row[1:] for row in self.read(sql, (rows,))}
        return [unpack(found[row]) for row in present(rows, found)]

    def held(self, rows: Ids, /) -> IdSet:
        """Those of the rows that are here, live or not, sorted."""
        return self._column("SELECT row FROM {}.documents WHERE row = ANY(%s)", (rows,))

    def texts(self, rows: Ids, /) -> list[str]:
        """Texts by row key, in this order."""
        found = dict(self.read("SELECT row, text FROM {}.documents WHERE row = ANY(%s)", (rows,)))
        return [found[row] for row in present(rows, found)]

    def find(self, ids: Sequence[str], /) -> dict[str, int]:
        """Row keys of live documents by id; absent ids are left out."""
        return {name: known.row for name, known in self.known(ids).items()}

    def known(self, ids: Sequence[str], /) -> dict[str, Known]:
        """What is held of each live document; absent ids are left out."""
        for name in ids:
            check_id(name, "The id")
        sql = "SELECT id, row, text_hash, digest FROM {}.documents WHERE id_hash = ANY(%s) AND removed IS NULL"
        found = self.read(sql, ([schema.id_hash(name) for name in ids],))
        return {name: Known(row, hashed, digest) for name, row, hashed, digest in found}

    def matching(self, condition: Filter | None, /, *, at: int | None = None) -> IdSet:
        """Row keys of live documents that pass, sorted; of the commit ``at`` where given.

        Raises
        ------
        FilterError
            On a field that no document has, or a value of a type that the field never had.
        StaleResult
            If a purge has come after ``at``.
        """
        with self.snapshot() as seq:
            asked = seq if at is None else min(at, seq)
            check_floor(asked, self.floor)
            live, then = "removed IS NULL", dict[str, Any]()
            if asked < seq:
                live, then = "added <= %(at)s AND (removed IS NULL OR removed > %(at)s)", {"at": asked}
            if condition is None:
                return self._column(f"SELECT row FROM {{}}.documents WHERE {live}", then)
            filters.check(condition, self.fields())
            key = (asked, str(filters.to_json(condition)))
            with self._lock:
                if key in self._matching:
                    return self._matching[key]
            test, values = compile_filter(condition)
            test = test.replace("{", "{{").replace("}", "}}")
            rows = self._column(f"SELECT row FROM {{}}.documents WHERE {live} AND {test}", {**then, **values})
        with self._lock:
            self._matching[key] = rows
            while len(self._matching) > 32:
                self._matching.popitem(last=False)
        return rows

    def fields(self) -> dict[str, set[str]]:
        """Every metadata field that a document has had, and the kinds of its values."""
        out: dict[str, set[str]] = {}
        for name, kind in self.read("SELECT name, kind FROM {}.fields"):
            out.setdefault(name, set()).add(kind)
        return out

    def vectors(self, signal: int, rows: Ids, /) -> dict[int, Vector]:
        """Stored embeddings of a signal by row key, to the byte; rows without one are left out."""
        sql = "SELECT row, value, tokens, truncated FROM {}.embeddings WHERE signal = %s AND row = ANY(%s)"
        return {row: Vector(*rest) for row, *rest in self.read(sql, (signal, rows))}

    def reusable(self, signal: int, hashes: Iterable[bytes], /) -> dict[bytes, Vector]:
        """Embeddings that the encoder made before for the same texts, also of documents deleted since."""
        # One row for each text, however many documents share it.
        sql = (
            "SELECT h, e.value, e.tokens, e.truncated FROM unnest(%s::bytea[]) AS h CROSS JOIN LATERAL ("
            "SELECT e.* FROM {0}.documents AS d JOIN {0}.embeddings AS e ON e.row = d.row AND e.signal = %s "
            "WHERE d.text_hash = h AND e.tokens IS NOT NULL LIMIT 1) AS e"
        )
        return {hashed: Vector(*rest) for hashed, *rest in self.read(sql, (list(hashes), signal))}

    def truncated(self, signal: int) -> int:
        """Live documents whose text was cut for this signal."""
        sql = (
            "SELECT count(*) FROM {0}.documents AS d JOIN {0}.embeddings AS e ON e.row = d.row AND e.signal = %s "
            "WHERE d.removed IS NULL AND e.truncated"
        )
        return int(self.read(sql, (signal,))[0][0])

    # Replay

    def added_since(self, seq: int, /) -> Ids:
        """Live rows committed after ``seq``, in order."""
        return self._column("SELECT row FROM {}.documents WHERE added > %s AND removed IS NULL", (seq,))

    def removed_since(self, seq: int, /) -> Ids:
        """Rows removed after ``seq``, also those added after it: a replay cut short may have taken them in."""
        return self._column("SELECT row FROM {}.documents WHERE removed > %s", (seq,))

    # Writing

    def check(self, entry: Entry, /) -> None:
        """Refuse a text with a NUL, which PostgreSQL does not hold.

        Raises
        ------
        InvalidInput
        """
        at = entry.document.text.find("\0")
        if at >= 0:
            problem = f"The text of document {entry.document.id!r} holds a NUL at position {at}."
            raise InvalidInput(problem, "PostgreSQL keeps none: replace it.")

    def commit(self, entries: Sequence[Entry], removed: Ids) -> int:
        """Add new versions and remove old ones in one transaction; returns its sequence number.

        When this returns, the server has the change on its disk.

        Raises
        ------
        StorageError
            If another writer has committed since this one looked: it had lost its session, and with it the lease.
        """
        with self.transaction() as connection:
            found = self.run(
                connection,
                "UPDATE {}.reperio SET seq = seq + 1, last = last + %s WHERE seq = %s RETURNING seq, last, floor, turn",
                (len(entries), self._mine),
            ).fetchone()
            if found is None:
                self._mine = self._look(connection)[0]
                problem = f"{self.location} has moved on while this writer had lost its session."
                raise StorageError(problem, "Nothing was changed: run it again.")
            seq, last, floor, turn = found
            self._write(connection, entries, removed, first=last + 1 - len(entries), seq=seq)
            self._inside.seen = (seq, floor, turn)  # what followers read is as of this commit
            try:
                self.host.follow()
            finally:
                self._inside.seen = None
        self._seen, self._mine = (seq, floor, turn), seq
        return int(seq)

    def _write(self, connection: Any, entries: Sequence[Entry], removed: Ids, *, first: int, seq: int) -> None:
        if len(removed):
            sql = "UPDATE {}.documents SET removed = %s WHERE row = ANY(%s) AND removed IS NULL"
            self.run(connection, sql, (seq, removed))
        if entries:
            schema.copy(connection, self.collection, entries, first=first, seq=seq)
            sql = "INSERT INTO {}.fields SELECT * FROM unnest(%s::text[], %s::text[]) ON CONFLICT DO NOTHING"
            pairs = sorted(kinds(entries))
            self.run(connection, sql, ([name for name, _ in pairs], [kind for _, kind in pairs]))

    def purge(self, until: int | None = None, /) -> int:
        """Drop the versions that were replaced or deleted by the commit ``until``, by any where None.

        An index older than this cannot be replayed, which `floor` records. The server keeps the room for what comes.
        Reading goes on meanwhile.

        Returns
        -------
        int
            How many were dropped.
        """
        with self.transaction() as connection:
            sql = "UPDATE {}.reperio SET floor = greatest(floor, least(seq, %s)) RETURNING seq, floor, turn"
            seen = self.run(connection, sql, (self.seq if until is None else until,)).fetchone()
            dead = "SELECT row FROM {0}.documents WHERE removed <= %s"
            self.run(connection, f"DELETE FROM {{0}}.embeddings WHERE row IN ({dead})", (seen[1],))
            removed = self.run(connection, "DELETE FROM {}.documents WHERE removed <= %s", (seen[1],)).rowcount
        self._seen = seen
        with self._leased() as lease, self.database.session(lease.connection) as connection:
            self.run(connection, "VACUUM (ANALYZE) {0}.documents, {0}.embeddings")
        return int(removed)

    def problems(self) -> Iterator[str]:
        """Documents that are not as they were written, and embeddings of none."""
        live = self.matching(None)
        sql = (
            "SELECT id, text, metadata, provenance, text_hash, digest FROM {}.documents "
            "WHERE row = ANY(%s) ORDER BY row"
        )
        for start in range(0, len(live), _CHUNK):
            for *row, hashed, digest in self.read(sql, (live[start : start + _CHUNK],)):
                found = altered(row, hashed, digest)
                if found is not None:
                    yield f"{self.location}: {found}"
        known = "SELECT FROM {0}.documents AS d WHERE d.row = e.row"
        (orphans,) = self.read(f"SELECT count(*) FROM {{0}}.embeddings AS e WHERE NOT EXISTS ({known})")[0]
        if orphans:
            yield f"{self.location}: {orphans} embeddings belong to no document"

    def size(self) -> int:
        """Bytes on the server's disk, of documents and embeddings."""
        sql = "SELECT coalesce(sum(pg_total_relation_size(format('%%I.%%I', %s::text, t)::regclass)), 0)::bigint "
        tables = ["documents", "embeddings", "fields", "reperio", "signals", "indexes"]
        return int(self.read(f"{sql} FROM unnest(%s::text[]) AS t", (self.collection, tables))[0][0])
