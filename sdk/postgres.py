"""One PostgreSQL database: its connections, its transactions, its errors, and its password, which is never shown."""

from __future__ import annotations

import os
import re
import select
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlencode, urlsplit, urlunsplit

import numpy as np

from reperio.embeddings import Ids
from reperio.errors import (
    ConfigurationError,
    CorruptArtifact,
    DiskFull,
    InvalidInput,
    NotFound,
    ReadOnly,
    ReperioError,
    ServerUnavailable,
    StorageError,
)
from reperio.extras import load

__all__ = ["Database", "Packed", "is_url", "split_collection"]

IDLE = 8
"""Connections kept open for the next call."""

_SECRET = {"password", "sslpassword", "oauth_client_secret"}

_SETTINGS = {"connect_timeout": "10", "fallback_application_name": "reperio", "client_encoding": "utf8"}
"""Where the URL does not say otherwise."""

# Every table is named with its schema; the path is for pgvector's operators, which are where it was installed.
# A client that vanished is noticed within a minute, so that its writer lease and its locks do not outlive it.
_SESSION = """
SELECT set_config('search_path', coalesce((
           SELECT quote_ident(n.nspname) FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace
           WHERE e.extname = 'vector'), 'public'), false),
       set_config('tcp_keepalives_idle', '30', false), set_config('tcp_keepalives_interval', '10', false),
       set_config('tcp_keepalives_count', '3', false), set_config('client_connection_check_interval', '5s', false)
"""

_FIX = "Write, for example: postgresql://user@host:5432/database"

_AGAIN = "Try again when it is back: what was acknowledged is kept, and what was not is not there in part."

_KINDS: dict[str, tuple[type[ReperioError], str]] = {
    "53100": (DiskFull, "Free some space on the server and run it again: what was acknowledged before is intact."),
    "53300": (ServerUnavailable, "Close other connections, or raise max_connections."),
    "57014": (ServerUnavailable, "It was cancelled after its time-out: raise statement_timeout, or ask for less."),
    "55P03": (ServerUnavailable, "A lock was not free within lock_timeout: try again."),
    "25006": (ReadOnly, "Open it with mode='r', or connect to the primary server."),
    "42501": (ReadOnly, "Open it with mode='r', or have the right granted to this user."),
    "42P01": (CorruptArtifact, "A table was dropped by hand: restore it from a backup, or make it anew."),
    "3F000": (CorruptArtifact, "The schema was dropped by hand: restore it from a backup, or make it anew."),
    "42703": (CorruptArtifact, "A table was altered by hand: restore it from a backup, or make it anew."),
    "42804": (CorruptArtifact, "A column was retyped by hand: restore it from a backup, or make it anew."),
    "42883": (CorruptArtifact, "A column was retyped by hand: restore it from a backup, or make it anew."),
    "3D000": (NotFound, "Check the name of the database."),
    "40001": (StorageError, "Others changed the same rows; nothing was changed here: try again."),
    "40P01": (StorageError, "Others changed the same rows; nothing was changed here: try again."),
    "08": (ServerUnavailable, _AGAIN),
    "57P": (ServerUnavailable, _AGAIN),
    "22": (InvalidInput, "The server cannot hold this value."),
    "23": (StorageError, "Nothing was changed: try again."),
    "53": (StorageError, "The server is out of a resource: give it more, or ask for less."),
    "XX": (CorruptArtifact, "The server found its own files damaged: restore it from a backup."),
}
"""By SQLSTATE, or the class that it begins with."""


class Packed(bytes):
    """A parameter in PostgreSQL's own binary form, of the type that the statement says."""


def is_url(text: object) -> bool:
    """Whether this is the address of a PostgreSQL database, not a path."""
    return isinstance(text, str) and re.match(r"postgres(ql)?(\+psycopg)?://", text) is not None


def split_collection(url: str) -> tuple[str, str | None]:
    """A URL without its fragment, and the fragment, which names a collection."""
    address, _, name = url.partition("#")
    return address, unquote(name) or None


class Database:
    """Connections to one database, opened when used, one to a thread at a time, kept for the next call.

    Use `Database.at`, so that whoever works with one database in a process shares its connections.

    Parameters
    ----------
    url
        ``postgresql://user:password@host:port/database?setting=value``, as libpq reads it. What it leaves out comes
        from the environment (``PGPASSWORD``) and from ``~/.pgpass``.

    Attributes
    ----------
    name
        The URL without its secrets.

    Raises
    ------
    ConfigurationError
        If the URL cannot be read.
    MissingDependency
        If psycopg is not installed.
    """

    _shared: ClassVar[weakref.WeakValueDictionary[str, Database]] = weakref.WeakValueDictionary()

    def __init__(self, url: str) -> None:
        self._psycopg = load("psycopg", extra="pgvector")
        self._dumpers = _dumpers(self._psycopg)
        self._start(url)
        self._idle: list[Any] = []
        self._local = threading.local()
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._inherited: list[Any] = []
        self._closing = weakref.finalize(self, _close_all, self._idle, os.getpid())

    def _start(self, url: str) -> None:
        self.name, self._secrets = _public(url)
        try:
            self._given: dict[str, Any] = self._psycopg.conninfo.conninfo_to_dict(_plain(url))
        except self._psycopg.Error:  # neither the text nor the error is shown: either may hold the password
            raise ConfigurationError("The PostgreSQL URL cannot be read.", _FIX) from None

    @classmethod
    def at(cls, url: str) -> Database:
        """The database at this address: the same object for the same address while anyone holds it.

        A password given once in a process is used for the same address from then on.
        """
        name, secrets = _public(url)
        found = cls._shared.get(name)
        if found is None:
            found = cls._shared.setdefault(name, cls(url))
        elif secrets:
            found._start(url)
        return found

    def __repr__(self) -> str:
        return f"Database({self.name!r})"

    # Connections

    def connect(self) -> Any:
        """A new connection, in autocommit; the caller closes it."""
        with self.errors():
            settings = {name: value for name, value in _SETTINGS.items() if name not in self._given}
            connection = self._psycopg.connect(**self._given, **settings, autocommit=True, prepare_threshold=None)
            for kind, dumper in self._dumpers.items():
                connection.adapters.register_dumper(kind, dumper)
            self._prepare(connection)
            return connection

    def _prepare(self, connection: Any) -> None:
        encoding, version = connection.info.parameter_status("server_encoding"), connection.info.server_version
        if encoding != "UTF8" or version < 140000:
            connection.close()
            problem = f"{self.name} is PostgreSQL {version // 10000} in {encoding}."
            raise ConfigurationError(problem, "Use PostgreSQL 14 or later and a database with encoding UTF8.")
        connection.execute(_SESSION)

    def close(self) -> None:
        """Close the idle connections; others are opened when they are needed."""
        with self._lock:
            _close_all(self._idle, self._pid)

    @contextmanager
    def session(self, connection: Any = None) -> Generator[Any]:
        """A connection that is this thread's alone while the block lasts.

        It is ``connection`` where given; else the one that this thread holds already, an idle one, or a new one.
        """
        self._after_fork()
        held = getattr(self._local, "connection", None)
        if connection is None and held is None:
            with self._another() as other, self.session(other) as used:
                yield used
            return
        used = held if connection is None else connection
        self._local.connection = used
        try:
            with self.errors():
                yield used
        finally:
            self._local.connection = held

    @contextmanager
    def transaction(self, mode: str = "READ WRITE", *, connection: Any = None) -> Generator[Any]:
        """Everything inside is committed or undone.

        Inside another of this thread, it is a part of that one; but a change while a snapshot is read is its own.
        """
        reading = getattr(self._local, "reading", False)
        if connection is None and reading and "WRITE" in mode:
            with self._another() as other, self.transaction(mode, connection=other) as used:
                yield used
            return
        with self.session(connection) as used:
            if used.info.transaction_status != self._psycopg.pq.TransactionStatus.IDLE:
                yield used
                return
            used.execute(f"BEGIN {mode}")
            self._local.reading = "WRITE" not in mode
            try:
                yield used
                used.execute("COMMIT")
            except BaseException:
                with suppress(self._psycopg.Error):
                    used.execute("ROLLBACK")
                raise
            finally:
                self._local.reading = reading

    @contextmanager
    def _another(self) -> Generator[Any]:
        """A connection beside the one that this thread has."""
        connection = self._take()
        try:
            yield connection
        finally:
            self._give_back(connection)

    @contextmanager
    def apart(self) -> Generator[None]:
        """Inside, this thread takes no part in its transaction: it reads what is committed, and commits."""
        self._after_fork()
        held, reading = getattr(self._local, "connection", None), getattr(self._local, "reading", False)
        self._local.connection, self._local.reading = None, False
        try:
            yield
        finally:
            self._local.connection, self._local.reading = held, reading

    @property
    def changing(self) -> bool:
        """Whether this thread is in a transaction whose changes it sees, and which may yet be undone."""
        held = getattr(self._local, "connection", None)
        if held is None or getattr(self._local, "reading", False):
            return False
        return bool(held.info.transaction_status != self._psycopg.pq.TransactionStatus.IDLE)

    @contextmanager
    def trial(self) -> Generator[Any]:
        """A transaction, or a part of the one that this thread is in, that is undone: its settings end with it.

        Statements are sent together until a result is fetched: over a network, waiting costs more than they do.
        """
        with self.session() as used:
            inside = used.info.transaction_status != self._psycopg.pq.TransactionStatus.IDLE
            with used.pipeline():
                used.execute("SAVEPOINT trial" if inside else "BEGIN READ ONLY")
                try:
                    yield used
                finally:
                    with suppress(self._psycopg.Error):
                        used.execute("ROLLBACK TO SAVEPOINT trial" if inside else "ROLLBACK")

    def alive(self, connection: Any) -> bool:
        """Whether a connection is still there: a server that ended it has said so."""
        try:
            while not connection.closed and select.select([connection.fileno()], [], [], 0)[0]:
                connection.pgconn.consume_input()
        except (self._psycopg.Error, OSError):
            return False
        return not connection.closed

    def _take(self) -> Any:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self.connect()
            if self.alive(connection):
                return connection
            connection.close()

    def _give_back(self, connection: Any) -> None:
        idle = self._psycopg.pq.TransactionStatus.IDLE
        with self._lock:
            if connection.info.transaction_status == idle and len(self._idle) < IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def _after_fork(self) -> None:
        """A child process leaves its parent's connections alone: closing them would end the parent's sessions."""
        if self._pid != os.getpid():
            self._inherited += self._idle
            self._idle.clear()
            self._local, self._lock, self._pid = threading.local(), threading.Lock(), os.getpid()

    # Errors

    @contextmanager
    def errors(self) -> Generator[None]:
        """Turn the driver's errors into ours: what, where, the fix, and no secret."""
        try:
            yield
        except self._psycopg.Error as error:
            raise self._told(error) from (error if self._clean(f"{error}") == f"{error}" else None)

    def _told(self, error: Any) -> ReperioError:
        said = error.diag.message_primary or " ".join(str(error).split()) or type(error).__name__
        problem = f"{self.name}: {self._clean(said).rstrip('.')}."
        state = error.sqlstate
        if state is None and isinstance(error, self._psycopg.OperationalError):
            refused = re.search("authentication failed|no password|role .* does not exist", said)
            if "does not exist" in said and not refused:
                return NotFound(problem, "Check the name of the database.")
            return ServerUnavailable(problem, "Check user and password." if refused else _AGAIN)
        if state is None and isinstance(error, self._psycopg.DataError):
            return InvalidInput(problem, "The server cannot hold this value.")
        kind, fix = _KINDS.get(state or "", _KINDS.get((state or "")[:3], _KINDS.get((state or "")[:2], (None, ""))))
        if kind is None:
            return StorageError(problem, f"The server refused the statement (SQLSTATE {state}); nothing was changed.")
        return kind(problem, fix)

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _close_all(connections: list[Any], pid: int) -> None:
    while connections and pid == os.getpid():
        connections.pop().close()


def _plain(url: str) -> str:
    scheme, _, rest = url.partition("#")[0].partition("://")
    return f"{scheme.removesuffix('+psycopg')}://{rest}"


def _public(url: str) -> tuple[str, list[str]]:
    """The URL without its secrets, and the secrets in every form in which a message could show them."""
    if not is_url(url):
        raise ConfigurationError("The address is no PostgreSQL URL.", _FIX)
    try:
        parts = urlsplit(_plain(url))
        settings = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        raise ConfigurationError("The PostgreSQL URL cannot be read.", _FIX) from None
    login, at, host = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    shown = urlencode([(name, value) for name, value in settings if name not in _SECRET], safe="/", quote_via=quote)
    secrets = [unquote(password), *(value for name, value in settings if name in _SECRET)]
    forms = {form for s in secrets if s for form in (s, quote(s), quote_plus(s), quote(s, safe=""))}
    netloc = f"{user}{at}{host}" if user else host
    # An empty host must keep its slashes, or the address is no URL any more.
    name = urlunsplit(("", netloc, parts.path or "/", shown, "")).removeprefix("//")
    return f"postgresql://{name}", sorted(forms, key=len, reverse=True)


def _dumpers(psycopg: Any) -> dict[type[Any], Any]:
    """Row keys as a binary ``bigint[]``, made by numpy, since there may be a million; what is packed, as it is."""
    binary, int8 = psycopg.pq.Format.BINARY, psycopg.adapters.types["int8"]

    class IdsDumper(psycopg.adapt.Dumper):  # type: ignore[misc]
        format, oid = binary, int8.array_oid

        def dump(self, obj: Ids) -> bytes:
            out = np.empty(len(obj), dtype=[("length", ">i4"), ("value", ">i8")])
            out["length"], out["value"] = 8, obj
            return np.array([1, 0, int8.oid, len(obj), 1], dtype=">i4").tobytes() + out.tobytes()

    class PackedDumper(psycopg.adapt.Dumper):  # type: ignore[misc]
        format, oid = binary, 0

        def dump(self, obj: Packed) -> bytes:
            return bytes(obj)

    return {np.ndarray: IdsDumper, Packed: PackedDumper}
