"""Embeddings kept by the content of their texts, so that no text is encoded twice."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np

from reperio import forks, meter
from reperio.artifacts import disk_errors
from reperio.embeddings import Kind, from_bytes, to_bytes
from reperio.encoders.texts import check_texts, elsewhere
from reperio.errors import (
    ConfigurationError,
    CorruptArtifact,
    InvalidInput,
    NewerFormat,
    StorageError,
    UnsupportedOperation,
)
from reperio.protocols import Encoder, Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["CachedEncoder"]

E = TypeVar("E")

APPLICATION_ID = 0x52504543
FORMAT = 1
"""Version of the file; a reader refuses a higher one."""

SMALLEST = 1 << 20
"""Fewest bytes that a cache can be bounded by: an empty file and some rows."""

TOUCH = 60.0
"""Seconds after which a row that is used again is noted as used: reading alone writes no more often."""

_BATCH = 512
"""Texts that are encoded, and then kept, at a time: what a crash can lose."""

_SCHEMA = (
    """CREATE TABLE rows (
        key BLOB PRIMARY KEY, value BLOB NOT NULL, tokens INTEGER NOT NULL, cut INTEGER NOT NULL,
        seal BLOB NOT NULL, used REAL NOT NULL
    )""",
    "CREATE INDEX rows_used ON rows (used)",
    "PRAGMA application_id = 0x52504543",
    "PRAGMA user_version = 1",
)
_GET = "SELECT value, tokens, cut, seal, used FROM rows WHERE key = ?"
_SIZE = """SELECT page_size * (page_count - freelist_count)
           FROM pragma_page_size, pragma_page_count, pragma_freelist_count"""
_DROP = "DELETE FROM rows WHERE rowid IN (SELECT rowid FROM rows ORDER BY used, rowid LIMIT ?)"


class CachedEncoder(Generic[E]):
    """Keeps what an encoder gave in one SQLite file, by a hash of text, role and fingerprint.

    Several processes and threads may use one file. A process that is killed loses at most the batch that it was
    encoding. Each row is sealed: one that was altered is seen, dropped and encoded again. Another encoder, or the
    same with other weights, has another fingerprint, and so finds nothing of this one's. Where the file cannot be
    written or turns out to be damaged, a warning says so once, and texts are encoded without it.

    A text that was cut is told of as the encoder tells: with a warning where its ``on_truncation`` is ``"warn"``. Any
    other encoder is asked again, as it may refuse what one of the same fingerprint has cut and kept.

    Counts ``cache_hits``, ``cache_misses`` and ``cache_damaged`` with `reperio.meter`, in texts.

    Parameters
    ----------
    encoder
        Of any kind of embedding.
    path
        The file; made where there is none, and its folder too.
    max_bytes
        Most bytes of rows on disk. What was not used for longest goes first; SQLite's log beside the file may hold
        some megabytes more for a while.

    Raises
    ------
    ConfigurationError
        For an encoder of texts as they are, or a bound below 1 MiB.
    CorruptArtifact, NewerFormat, ReadOnly
        At the first use, if the file is another program's, a newer release's, or cannot be made.

    Examples
    --------
    >>> import tempfile
    >>> from reperio import meter
    >>> from reperio.encoders import HashEncoder
    >>> folder = tempfile.TemporaryDirectory()
    >>> encoder = CachedEncoder(HashEncoder(), f"{folder.name}/embeddings.db")
    >>> with meter.measure() as counts:
    ...     for text in ("merge", "sort", "merge"):
    ...         _ = encoder.encode_document([text])
    >>> counts["cache_hits"], counts["cache_misses"]
    (1, 2)
    >>> encoder.close()
    """

    def __init__(self, encoder: Encoder[E], path: str | Path, *, max_bytes: int = 4 << 30) -> None:
        if max_bytes < SMALLEST:
            raise ConfigurationError(f"max_bytes is {max_bytes}.", f"Use {SMALLEST} or more.")
        self.encoder = encoder
        self.path = Path(path)
        self.max_bytes = max_bytes
        self._lock = threading.RLock()
        self._rows: _Rows | None = None
        self._told = False
        forks.follow(self)

    def after_fork(self) -> None:
        """In a child: SQLite allows neither to use the parent's connection there nor to close it."""
        self._lock = threading.RLock()
        if self._rows is not None:
            _INHERITED.append(self._rows)
            self._rows = None

    @property
    def spec(self) -> Spec:
        """How to build this encoder again; the file by its whole path."""
        return {
            "type": "CachedEncoder",
            "encoder": dict(self.encoder.spec),
            "path": str(self.path.absolute()),
            "max_bytes": self.max_bytes,
        }

    @property
    def fingerprint(self) -> Fingerprint:
        """The inner encoder's: a row is the same whether it was kept or not."""
        return self.encoder.fingerprint

    @property
    def weights_below(self) -> int | None:
        """As the inner encoder says, where it does."""
        return getattr(self.encoder, "weights_below", None)

    @property
    def terms(self) -> Callable[[str], Any] | None:
        """As the inner encoder says, where it does."""
        return getattr(self.encoder, "terms", None)

    def encode_query(self, texts: Sequence[str], /) -> Encoded[E]:
        """The inner encoder's embeddings of queries, those that are kept from the file."""
        return self._encode(texts, "query", self.encoder.encode_query)

    def encode_document(self, texts: Sequence[str], /) -> Encoded[E]:
        """The inner encoder's embeddings of documents, those that are kept from the file; raises what it raises."""
        return self._encode(texts, "document", self.encoder.encode_document)

    def close(self) -> None:
        """Let go of the file; it is opened again at the next use. Safe to call twice."""
        with self._lock:
            if self._rows is not None:
                self._rows.close()
                self._rows = None

    def _encode(self, texts: Sequence[str], role: str, encode: Callable[[Sequence[str]], Encoded[E]]) -> Encoded[E]:
        checked = check_texts(texts)
        fingerprint = self.encoder.fingerprint
        if fingerprint.kind == "text":
            raise ConfigurationError("Texts as they are need no cache.", "Use the encoder itself.")
        start = f"{fingerprint.digest} {role} ".encode()
        keys = [hashlib.blake2b(start + text.encode(), digest_size=32).digest() for text in checked]
        found = self._told_of(keys, self._use(partial(_Rows.get, keys=keys)) or {})
        first: dict[bytes, int] = {}
        for position, key in enumerate(keys):
            if key not in found:
                first.setdefault(key, position)
        missing = list(first.items())
        for at in range(0, len(missing), _BATCH):
            some = missing[at : at + _BATCH]
            new = self._made(some, checked, encode)
            self._use(partial(_Rows.put, new=new, max_bytes=self.max_bytes))
            found |= new
        meter.count("cache_hits", sum(key not in first for key in keys))
        meter.count("cache_misses", len(first))
        rows = [found[key] for key in keys]
        return Encoded(
            cast("E", from_bytes([row[0] for row in rows], cast("Kind", fingerprint.kind), dim=fingerprint.dim)),
            np.array([row[1] for row in rows], dtype=np.int64),
            np.array([row[2] for row in rows], dtype=np.bool_),
        )

    def _told_of(self, keys: Sequence[bytes], found: dict[bytes, _Row]) -> dict[bytes, _Row]:
        """The rows that need no encoding: those of texts that were cut only where the encoder warns of them."""
        cut = {key: tokens for key, (_, tokens, cut) in found.items() if cut}
        if not cut:
            return found
        if not _warns(self.encoder):
            return {key: row for key, row in found.items() if key not in cut}
        count = sum(key in cut for key in keys)
        meter.count("truncated", count)
        warnings.warn(
            f"{count} of {len(keys)} texts were cut, and are kept so; the longest has {max(cut.values())} tokens. "
            "Use on_truncation='chunk' to lose nothing.",
            stacklevel=4,
        )
        return found

    def _made(
        self, some: Sequence[tuple[bytes, int]], texts: Sequence[str], encode: Callable[[Sequence[str]], Encoded[E]]
    ) -> dict[bytes, _Row]:
        places = [position for _, position in some]
        try:
            encoded = encode([texts[position] for position in places])
        except InvalidInput as error:
            raise elsewhere(error, places) from error
        blobs = to_bytes(cast("Any", encoded.embeddings))
        rows = zip(some, blobs, encoded.token_counts.tolist(), encoded.truncated.tolist(), strict=True)
        return {key: (blob, tokens, cut) for (key, _), blob, tokens, cut in rows}

    def _use(self, work: Callable[[_Rows], Any]) -> Any:
        """Work with the file; None where it fails, of which a warning tells once."""
        with self._lock:
            if self._rows is None:
                self._rows = _Rows(self.path)
            try:
                return work(self._rows)
            except (StorageError, InvalidInput) as error:
                if not self._told:
                    self._told = True
                    problem = error.problem.rstrip(".")
                    fix = "Encoding goes on without it; if it is damaged, delete it: it holds nothing else."
                    warnings.warn(f"The cache of embeddings fails: {problem}. {fix}", stacklevel=4)
                return None


def _warns(encoder: Encoder[Any]) -> bool:
    """Whether an encoder, or what it is made of, warns of a text that it cuts, and refuses none."""
    try:
        policies = set(_policies(encoder.spec))
    except UnsupportedOperation:  # a model in memory
        policies = {getattr(encoder, "on_truncation", None)}
    return "warn" in policies and policies <= {"warn", "chunk"}


def _policies(spec: object) -> Iterator[object]:
    if isinstance(spec, Mapping):
        for name, value in cast("Mapping[str, object]", spec).items():
            yield from (value,) if name == "on_truncation" else _policies(value)
    elif isinstance(spec, list):
        for part in cast("list[object]", spec):
            yield from _policies(part)


_Row = tuple[bytes, int, bool]

_INHERITED: list[object] = []
"""Connections of a parent process, which must not even be closed."""


class _Rows:
    """The file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")  # a crash of the machine may lose the last rows, never spoil one
        execute("PRAGMA journal_size_limit = 16777216")
        with self._writing():
            (application,) = execute("PRAGMA application_id").fetchone()
            (version,) = execute("PRAGMA user_version").fetchone()
            (tables,) = execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not tables:
                for statement in _SCHEMA:
                    execute(statement)
            elif application != APPLICATION_ID:
                raise CorruptArtifact(f"{self._path} is not a cache of embeddings.", "Choose another path.")
            elif version > FORMAT:
                problem = f"{self._path} has format {version}; this release reads up to {FORMAT}."
                raise NewerFormat(problem, "Upgrade reperio, or choose another path.")

    def get(self, keys: Sequence[bytes]) -> dict[bytes, _Row]:
        """What is kept under these keys, and sound."""
        found: dict[bytes, _Row] = {}
        damaged, old, now = list[bytes](), list[bytes](), time.time()
        with disk_errors(self._path):
            for key in dict.fromkeys(keys):
                row = self._connection.execute(_GET, (key,)).fetchone()
                if row is None:
                    continue
                value, tokens, cut, seal, used = row
                if seal != _seal(key, value, tokens, cut):
                    damaged.append(key)
                    continue
                found[key] = (value, tokens, bool(cut))
                if not now - TOUCH < used <= now:
                    old.append(key)
            if damaged or old:
                self._note(damaged, old, now)
        meter.count("cache_damaged", len(damaged))
        return found

    def _note(self, damaged: Sequence[bytes], old: Sequence[bytes], now: float) -> None:
        """Drop what is damaged, note what was used: a disk that allows neither is no reason to read nothing."""
        with suppress(sqlite3.OperationalError), self._writing():
            self._connection.executemany("DELETE FROM rows WHERE key = ?", [(key,) for key in damaged])
            self._connection.executemany("UPDATE rows SET used = ? WHERE key = ?", [(now, key) for key in old])

    def put(self, new: dict[bytes, _Row], max_bytes: int) -> None:
        """Keep rows, and drop as many as the bound asks."""
        now = time.time()
        rows = ((key, value, tokens, int(cut)) for key, (value, tokens, cut) in new.items())
        values = [(*row, _seal(*row), now) for row in rows]
        with disk_errors(self._path), self._writing():
            self._connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?)", values)
            self._shrink(max_bytes)

    def _shrink(self, max_bytes: int) -> None:
        while True:
            (used,) = self._connection.execute(_SIZE).fetchone()
            if used <= max_bytes:
                return
            (count,) = self._connection.execute("SELECT count(*) FROM rows").fetchone()
            most = max(1, int(count * (1 - 0.95 * max_bytes / used)))  # a little more than need be, so not each time
            self._connection.execute(_DROP, (most,))

    @contextmanager
    def _writing(self) -> Generator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        self._connection.close()


def _seal(key: bytes, value: object, tokens: object, cut: object) -> bytes:
    """What a row holds, in 16 bytes; damage may have changed even the types."""
    whole = value if isinstance(value, bytes) else repr(value).encode()
    return hashlib.blake2b(key + repr((type(value), tokens, cut)).encode() + whole, digest_size=16).digest()
