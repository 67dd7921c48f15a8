"""The file of a collection in SQLite: opened, followed, changed in transactions, released."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import numpy as np

from reperio import forks
from reperio.artifacts import disk_errors
from reperio.embeddings import Ids
from reperio.errors import CorruptArtifact, NewerFormat, NotFound, ReadOnly
from reperio.stores import schema
from reperio.stores.acknowledged import Acknowledged
from reperio.stores.rows import Mode
from reperio.stores.sqlite_indexes import Altered

_INHERITED: list[object] = []
"""Connections of a parent process, which must not even be closed."""


class SQLiteFile:
    """A database file in WAL mode, fsynced at every commit.

    Parameters
    ----------
    path
        The file.
    mode
        ``"rw"`` creates it if it is absent; ``"r"`` never writes.

    Notes
    -----
    One connection, one lock: safe to use from several threads. Writers in other processes are seen at the next
    `refresh`. After a fork, the child reads over a connection of its own; the right to write stays its parent's.
    """

    def __init__(self, path: Path, *, mode: Mode = "rw") -> None:
        self.path = path
        self.location = str(path.parent.absolute())
        self.writable = mode == "rw"
        self._frozen: tuple[object, ...] | None = None
        self._lock = threading.RLock()
        self.writing = threading.RLock()
        if not self.writable and not path.is_file():
            raise NotFound(f"There is no collection at {path.parent}.", "Open it with mode='rw' to create it.")
        self._forked = False
        self._log = path.with_name(path.name + "-wal")
        self._acknowledged = Acknowledged(path.with_name("acknowledged"))
        acknowledged = self._acknowledged.read()  # before the database: a writer may be at work
        with self._errors():
            self._connected: sqlite3.Connection | None = self._connect()
            self._seen = self.seq = self.floor = -1
            try:
                self._prepare(acknowledged)
                self.refresh()
                self._check_whole(acknowledged)
                if self.writable:
                    self._acknowledged.write(self.seq)
            except BaseException:
                self._connection.close()
                raise
        forks.follow(self)

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._connected is None:
            self._connected = self._connect()
        return self._connected

    def after_fork(self) -> None:
        """In a child: SQLite allows neither to use the parent's connection there nor to close it."""
        _INHERITED.append(self._connected)
        self._lock, self.writing = threading.RLock(), threading.RLock()
        self._forked, self.writable = self._forked or self.writable, False
        self._connected, self._seen = None, -1
        self._acknowledged = Acknowledged(self._acknowledged.path)  # the parent's to remove

    def _check_whole(self, acknowledged: int) -> None:
        if acknowledged > self.seq:
            problem = f"{self.path} ends with commit {self.seq}, and commit {acknowledged} was acknowledged."
            fix = f"Restore a backup; or remove {self._acknowledged.path} to go on with what is left."
            raise CorruptArtifact(problem, fix)

    def _connect(self) -> sqlite3.Connection:
        target = quote(str(self.path.absolute()))
        suffix = "rwc" if self.writable else "ro"
        try:
            return self._open(f"file:{target}?mode={suffix}")
        except sqlite3.OperationalError:
            # A finished collection on read-only media has no WAL, and SQLite may not make one: nothing can change.
            if self.writable or self._logged():
                raise
            self._frozen = self._stamp()
            return self._open(f"file:{target}?mode=ro&immutable=1")

    def _stamp(self) -> tuple[object, ...]:
        """What changes when a writer comes to a database that was opened as if it never would."""
        found = self.path.stat()
        return (found.st_ino, found.st_mtime_ns, found.st_size, self._logged())

    def _logged(self) -> int:
        """Bytes of the log, which another process may be about to remove."""
        try:
            return self._log.stat().st_size
        except FileNotFoundError:
            return 0

    def _thaw(self) -> None:
        """Follow a writer that has come to what was opened as if nothing could change."""
        if self._frozen is None or self._frozen == self._stamp():
            return
        past, frozen, self._frozen = self._connection, self._frozen, None
        try:
            self._connected, self._seen = self._connect(), -1
        except BaseException:  # to be tried again
            self._frozen = frozen
            raise
        past.close()

    def _open(self, uri: str) -> sqlite3.Connection:
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=30)
        try:
            connection.execute("PRAGMA cache_size = -32768")
            connection.create_function("from_hex", 1, bytes.fromhex, deterministic=True)
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, acknowledged: int) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        if version > schema.FORMAT and application == schema.APPLICATION_ID:
            problem = f"{self.path} has format {version}; this release reads up to {schema.FORMAT}."
            raise NewerFormat(problem, "Upgrade reperio.")
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application != schema.APPLICATION_ID:
            raise CorruptArtifact(f"{self.path} is not a collection.", "Check the path.")
        if not tables:
            self._check_whole(acknowledged)
        if not self.writable:
            if not tables:
                raise NotFound(f"There is no collection at {self.path.parent}.", "Open it with mode='rw' to create it.")
            return
        if not tables:
            self._create()
        self._connection.execute("PRAGMA synchronous = FULL")

    def _create(self) -> None:
        self._connection.execute("PRAGMA page_size = 8192")
        self._connection.execute("PRAGMA journal_mode = WAL")
        with self.transaction():
            for statement in filter(str.strip, schema.TABLES.split(";\n")):
                self._connection.execute(statement)
            rows = [("seq", "0"), ("floor", "0"), ("uuid", uuid4().hex)]
            self._connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
            self._connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID:d}")
            self._connection.execute(f"PRAGMA user_version = {schema.FORMAT:d}")

    def close(self) -> None:
        """Release the file. Safe to call twice."""
        with self._lock:
            if self._connected is None:  # a child that has not read: closed all the same
                self._connected = sqlite3.connect(":memory:")
            self._connected.close()
            self._acknowledged.close(needed=self._logged() > 0)

    def _check_writable(self) -> None:
        if self._forked:
            raise ReadOnly(f"{self.path.parent} was opened for writing before a fork.", "Open it again in the child.")
        if not self.writable:
            raise ReadOnly(f"{self.path.parent} is open for reading.", "Open it with mode='rw'.")

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Everything inside is committed, fsynced, or undone."""
        self._check_writable()
        with self._lock, disk_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def snapshot(self) -> Generator[int]:
        """Everything read inside is of one commit; gives its sequence number."""
        with self._lock, disk_errors(self.path):
            nested = self._connection.in_transaction
            if not nested:
                self._thaw()  # before: a transaction is of one connection
                self._connection.execute("BEGIN")
            try:
                self.refresh()
                yield self.seq
            finally:
                if not nested:
                    self._connection.execute("COMMIT")

    def refresh(self) -> bool:
        """See what other processes have committed; True if there was anything."""
        with self._lock, self._errors():
            if not self._connection.in_transaction:
                self._thaw()
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
            if version == self._seen:
                return False
            found = dict(
                self._connection.execute("SELECT name, value FROM meta WHERE name IN ('seq', 'floor', 'uuid')")
            )
            try:
                self.seq, self.floor, self.uuid = int(found["seq"]), int(found["floor"]), found["uuid"]
            except (KeyError, TypeError, ValueError):
                self._vouch(f"its sequence numbers were altered: {found}")
            self._seen = version
            return True

    def _read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with self._lock, self._errors():
            return self._connection.execute(sql, parameters).fetchall()

    def _column(self, sql: str, parameters: Sequence[Any] = ()) -> Ids:
        return np.fromiter((row for (row,) in self._read(sql, parameters)), dtype=np.int64)

    def _vouch(self, problem: str | None) -> None:
        if problem is not None:
            raise CorruptArtifact(f"{self.path}: {problem}.", "Restore it from a backup; `reperio verify` lists all.")

    @contextmanager
    def _errors(self) -> Generator[None]:
        with disk_errors(self.path):
            try:
                yield
            except UnicodeDecodeError as error:  # SQLite's own message has a name in it that was altered
                self._vouch(f"it is not a readable database: {error.reason}")

    @contextmanager
    def _vouched(self) -> Generator[None]:
        try:
            yield
        except Altered as error:
            self._vouch(str(error))
        except TypeError as error:  # SQLite has a type for each value, which may be altered as well
            self._vouch(f"a value is of another type: {error}")

    def size(self) -> int:
        """Bytes on disk, the write-ahead log included."""
        return self.path.stat().st_size + self._logged()
