"""One SQLite file: documents, metadata, embeddings and their sequence numbers. The truth of a collection."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import numpy as np

from reperio import filters
from reperio.artifacts import disk_errors, sealed, unsealed
from reperio.embeddings import Ids, IdSet
from reperio.errors import StorageError
from reperio.filters import Filter
from reperio.stores import sqlite_indexes
from reperio.stores.rows import (
    SIGNALS,
    Entry,
    Known,
    Mode,
    Vector,
    altered,
    check_floor,
    check_id,
    kinds,
    present,
    text_hash,
    unpack,
)
from reperio.stores.sqlite_file import SQLiteFile
from reperio.stores.where import compile_filter
from reperio.types import Document

_32 = 0xFFFFFFFF
_HELD = "id, text, metadata, provenance, text_hash, digest, seal, added"
_VECTOR = "e.key, e.value, e.tokens, e.truncated, e.seal"
_IN_ROWS = "row IN (SELECT value FROM json_each(?))"


class SQLiteStore(SQLiteFile):
    """A `Store` in one file.

    Parameters
    ----------
    path
        The database file.
    mode
        ``"rw"`` creates the file if it is absent; ``"r"`` never writes.

    Notes
    -----
    Safe to use from several threads. Writers in other processes are seen at the next `refresh`.
    """

    host = None

    def __init__(self, path: Path, *, mode: Mode = "rw") -> None:
        self._matching: OrderedDict[tuple[int, str], IdSet] = OrderedDict()
        self._agreed, self._complete = (-1, -1), False
        super().__init__(path, mode=mode)

    # Signals

    def signals(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """Number and configuration of each signal, by name, in the order in which they were declared."""
        out: dict[str, tuple[int, dict[str, Any]]] = {}
        for number, name, config in self._read("SELECT number, name, config FROM signals ORDER BY number"):
            told: dict[str, Any] = {}
            try:
                told = unsealed(config)
                whole = (told["number"], told["name"]) == (number, name)
            except (ValueError, KeyError, TypeError):
                whole = False
            self._vouch(None if whole else f"the configuration of signal {number} was altered")
            out[name] = (number, told["config"])
        return out

    def declare(self, signals: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the signals' configurations, once, when the collection is made."""
        rows = [
            (number, name, sealed({"number": number, "name": name, "config": dict(config)}))
            for number, (name, config) in enumerate(signals.items())
        ]
        with self.transaction():
            self._connection.executemany("INSERT INTO signals VALUES (?, ?, ?)", rows)

    # Reading

    def count(self) -> int:
        """Live documents."""
        self._check_entries()
        return int(self._read("SELECT count(*) FROM documents INDEXED BY live WHERE removed IS NULL")[0][0])

    def dead(self) -> int:
        """Versions that were replaced or deleted and not yet compacted away."""
        return int(self._read("SELECT count(*) FROM documents WHERE removed IS NOT NULL")[0][0])

    def fetch(self, rows: Ids, /) -> list[Document]:
        """Documents by row key, in this order.

        Raises
        ------
        StaleResult
            If compaction has taken one of them away.
        CorruptArtifact
            If one is not what was written.
        """
        sql = f"SELECT row, {_HELD} FROM documents WHERE {_IN_ROWS}"
        found = {row[0]: row[1:] for row in self._read(sql, (_array(rows),))}
        for row, held in found.items():
            self._vouch(_wrong(row, held))
        return [unpack(found[row][:4]) for row in present(rows, found)]

    def held(self, rows: Ids, /) -> IdSet:
        """Those of the rows that are here, live or not, sorted."""
        with self.snapshot() as seq:
            found = self._column(f"SELECT row FROM documents WHERE {_IN_ROWS} ORDER BY row", (_array(rows),))
            absent = np.setdiff1d(rows, found)
            if len(absent):
                self._check_removals(seq)
                with self._vouched():
                    sqlite_indexes.check_absent_rows(self._read, _array(absent))
            return found

    def texts(self, rows: Ids, /) -> list[str]:
        """Texts by row key, in this order."""
        found = dict(self._texts(rows))
        return [found[row] for row in present(rows, found)]

    def _texts(self, rows: Ids) -> Iterator[tuple[int, str]]:
        sql = f"SELECT row, id, text, text_hash FROM documents WHERE {_IN_ROWS}"
        for row, name, text, hashed in self._read(sql, (_array(rows),)):
            whole = isinstance(text, str) and text_hash(text) == hashed
            self._vouch(None if whole else f"the text of document {name!r} was altered")
            yield row, text

    def names(self, rows: Ids, /) -> list[str]:
        """Document ids by row key, in this order."""
        found = dict(self._read(f"SELECT row, id FROM documents WHERE {_IN_ROWS}", (_array(rows),)))
        return [found[row] for row in rows.tolist()]

    def find(self, ids: Sequence[str], /) -> dict[str, int]:
        """Row keys of live documents by id; absent ids are left out."""
        return {name: known.row for name, known in self.known(ids).items()}

    def known(self, ids: Sequence[str], /) -> dict[str, Known]:
        """What is held of each live document; absent ids are left out."""
        for name in ids:
            check_id(name, "The id")
        sql = (
            "SELECT x.id, d.id, d.row, d.text_hash, d.digest FROM documents AS x "
            "LEFT JOIN documents AS d NOT INDEXED ON d.row = x.row "
            "WHERE x.id IN (SELECT value FROM json_each(?)) AND x.removed IS NULL"
        )
        out: dict[str, Known] = {}
        wanted = set(ids)
        for name, own, row, hashed, digest in self._read(sql, (json.dumps(ids),)):
            # SQLite's own index led there.
            self._vouch(None if own == name in wanted else f"the index of ids leads from {name!r} to {own!r}")
            out[name] = Known(row, hashed, digest)
        absent = [name for name in ids if name not in out]
        if absent:
            self._check_entries()
            with self._vouched():
                sqlite_indexes.check_absent_ids(self._read, json.dumps(absent))
        return out

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
            test, values = "1", list[Any]()
            if condition is not None:
                filters.check(condition, self.fields())
                test, values = compile_filter(condition)
            key = (asked, str(None if condition is None else filters.to_json(condition)))
            if condition is not None and key in self._matching:
                return self._matching[key]
            self._check_removals(seq)
            if asked == seq:
                rows = self._column(f"SELECT row FROM documents WHERE removed IS NULL AND {test} ORDER BY row", values)
            else:
                then = "added <= ? AND (removed IS NULL OR removed > ?)"
                sql = f"SELECT row FROM documents WHERE {then} AND {test} ORDER BY row"
                rows = self._column(sql, [asked, asked, *values])
            if condition is not None:
                self._matching[key] = rows
                while len(self._matching) > 32:
                    self._matching.popitem(last=False)
            return rows

    def _check_entries(self) -> None:
        """A page may hold fewer entries than it did, none of them altered; once, as it reads every index."""
        if not self._complete:
            with self.snapshot(), self._vouched():
                sqlite_indexes.complete(self._read)
            self._complete = True

    def _check_removals(self, seq: int) -> None:
        """Which documents are live has no seal of its own; once for each commit, as it reads the table.

        What this connection alone has committed since is read by itself.
        """
        before, seen = self._agreed
        if before == seq:
            return
        with self._vouched():
            if self.writable and seen == self._seen:
                sqlite_indexes.added_since(self._read, before)
                sqlite_indexes.removed_since(self._read, before)
            else:
                sqlite_indexes.agree(self._read)
        self._agreed = (seq, self._seen)

    def fields(self) -> dict[str, set[str]]:
        """Every metadata field that a document has had, and the kinds of its values."""
        out: dict[str, set[str]] = {}
        for name, kind in self._read("SELECT name, kind FROM fields"):
            told = isinstance(name, str) and isinstance(kind, str)
            self._vouch(None if told else f"a field was altered: {name!r}, {kind!r}")
            out.setdefault(name, set()).add(kind)
        return out

    def vectors(self, signal: int, rows: Ids, /) -> dict[int, Vector]:
        """Stored embeddings of a signal by row key; rows without one are left out."""
        keys = rows * SIGNALS + signal
        sql = f"SELECT {_VECTOR} FROM embeddings AS e WHERE key IN (SELECT value FROM json_each(?))"
        return {row[0] // SIGNALS: self._vector(*row) for row in self._read(sql, (_array(keys),))}

    def _vector(self, key: int, value: bytes, tokens: int | None, cut: int, seal: int) -> Vector:
        whole = isinstance(cast("object", value), bytes) and crc32(value, key & _32) == seal
        self._vouch(None if whole else f"an embedding of row {key // SIGNALS} was altered")
        return Vector(value, tokens, bool(cut))

    def reusable(self, signal: int, hashes: Iterable[bytes], /) -> dict[bytes, Vector]:
        """Embeddings that the encoder made before for the same texts, also of documents deleted since."""
        # One row for each text, however many documents share it.
        sql = (
            f"SELECT from_hex(h.value), {_VECTOR} FROM json_each(?2) AS h "
            "JOIN embeddings AS e ON e.key = (SELECT y.key FROM documents AS x "
            "JOIN embeddings AS y ON y.key = x.row * 64 + ?1 "
            "WHERE x.text_hash = from_hex(h.value) AND y.tokens IS NOT NULL LIMIT 1) "
            # SQLite's own index led there: the row itself has the last word.
            "JOIN documents AS d NOT INDEXED ON d.row = (e.key - ?1) / 64 AND d.text_hash = from_hex(h.value)"
        )
        found = self._read(sql, (signal, json.dumps([h.hex() for h in hashes])))
        return {hashed: self._vector(*row) for hashed, *row in found}

    def truncated(self, signal: int) -> int:
        """Live documents whose text was cut for this signal."""
        sql = (
            "SELECT count(*) FROM documents AS d JOIN embeddings AS e ON e.key = d.row * 64 + ? "
            "WHERE d.removed IS NULL AND e.truncated"
        )
        return int(self._read(sql, (signal,))[0][0])

    # Replay

    def added_since(self, seq: int, /) -> Ids:
        """Live rows committed after ``seq``, in order."""
        with self._vouched():
            return np.array(sqlite_indexes.added_since(self._read, seq), dtype=np.int64)

    def removed_since(self, seq: int, /) -> Ids:
        """Rows removed after ``seq``, also those added after it: a replay cut short may have taken them in."""
        self._check_entries()
        with self._vouched():
            return np.sort(np.array(sqlite_indexes.removed_since(self._read, seq), dtype=np.int64))

    # Writing

    def check(self, entry: Entry, /) -> None:
        """A file holds whatever `Entry.of` has packed."""

    def commit(self, entries: Sequence[Entry], removed: Ids) -> int:
        """Add new versions and remove old ones in one transaction; returns its sequence number.

        When this returns, the change is on disk.
        """
        with self._lock:  # no reader in between: rows and their number are seen together
            self.seq = self._write(entries, removed)
            self._acknowledged.write(self.seq)
            return self.seq

    def _write(self, entries: Sequence[Entry], removed: Ids) -> int:
        with self.transaction():
            (before,) = self._connection.execute("SELECT value FROM meta WHERE name = 'seq'").fetchone()
            seq = int(before) + 1
            (last,) = self._connection.execute(
                "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'documents'), 0)"
            ).fetchone()
            if len(removed):
                sql = f"UPDATE documents SET removed = ? WHERE {_IN_ROWS} AND removed IS NULL"
                self._connection.execute(sql, (seq, _array(removed)))
            rows = range(last + 1, last + 1 + len(entries))
            self._connection.executemany(
                "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                (
                    (
                        *(row, e.document.id, e.document.text, e.metadata, e.provenance, e.text_hash, e.digest),
                        *(_seal(row, seq, e.digest), seq),
                    )
                    for row, e in zip(rows, entries, strict=True)
                ),
            )
            self._connection.executemany(
                "INSERT INTO embeddings VALUES (?, ?, ?, ?, ?)",
                (
                    (key := row * SIGNALS + signal, v.value, v.tokens, int(v.truncated), crc32(v.value, key & _32))
                    for row, e in zip(rows, entries, strict=True)
                    for signal, v in e.vectors.items()
                ),
            )
            self._connection.executemany("INSERT OR IGNORE INTO fields VALUES (?, ?)", kinds(entries))
            self._connection.execute("UPDATE meta SET value = ? WHERE name = 'seq'", (str(seq),))
        return seq

    def purge(self, until: int | None = None, /) -> int:
        """Drop the versions that were replaced or deleted by the commit ``until``, by any where None.

        An index older than this cannot be replayed, which `floor` records. Reading goes on meanwhile: it is done
        over a connection of its own.

        Returns
        -------
        int
            How many were dropped.
        """
        self._check_writable()
        with self.writing, disk_errors(self.path), closing(self._connect()) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            seq = max(self.floor, self.seq if until is None else min(until, self.seq))
            connection.execute("BEGIN IMMEDIATE")
            with self._vouched():  # what is dropped, and an index made anew from a table that was altered, is for good
                sqlite_indexes.agree(lambda sql, values: connection.execute(sql, values).fetchall())
            sql = "SELECT row FROM documents WHERE removed <= ?"
            dead: Ids = np.fromiter((row for (row,) in connection.execute(sql, (seq,))), dtype=np.int64)
            low, high = dead * SIGNALS, dead * SIGNALS + SIGNALS - 1
            spans = zip(low.tolist(), high.tolist(), strict=True)
            connection.executemany("DELETE FROM embeddings WHERE key BETWEEN ? AND ?", spans)
            connection.execute("DELETE FROM documents WHERE removed <= ?", (seq,))
            connection.execute("UPDATE meta SET value = ? WHERE name = 'floor'", (str(seq),))
            connection.execute("COMMIT")
            connection.execute("VACUUM")
            connection.execute("PRAGMA busy_timeout = 1000")  # who reads an old snapshot still keeps the log
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.refresh()
        return len(dead)

    def problems(self) -> list[str]:
        """What SQLite's own integrity check finds; empty when sound."""
        rows = self._read("PRAGMA integrity_check")
        return [*(f"{self.path.name}: {text}" for (text,) in rows if text != "ok"), *self._altered()]

    def _altered(self) -> Iterator[str]:
        """Documents whose text, metadata or provenance is not what was written."""
        sql = f"SELECT row, {_HELD} FROM documents WHERE {_IN_ROWS}"
        try:
            live = self.matching(None)
            for start in range(0, len(live), 1024):
                for row, *held in self._read(sql, (_array(live[start : start + 1024]),)):
                    found = _wrong(row, held)
                    if found is not None:
                        yield f"{self.path.name}: {found}"
        except StorageError as error:
            yield error.problem


def _array(values: Ids) -> str:
    return json.dumps(values.tolist())


def _seal(row: int, seq: int, digest: bytes) -> int:
    return crc32(digest, crc32(f"{row} {seq}".encode()))


def _wrong(row: int, held: Sequence[Any]) -> str | None:
    """What is wrong with a document read back, if anything."""
    *columns, hashed, digest, seal, added = held
    try:
        if seal != _seal(row, added, digest):
            return f"row {row} was altered: its checksum differs"
        return altered(columns, hashed, digest)
    except (AttributeError, TypeError):  # SQLite has a type for each value, which may be altered as well
        return f"row {row} was altered: a column is of another type"
