"""The tables of a collection, and how a document becomes a row.

Rows are immutable: a changed document is a new row, and the old one keeps its text until `compact`. So a row
key names one version of one document for ever, which is what lets indexes replay and results be read late.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, TypeGuard, cast

from reperio.errors import EmptyText, InvalidInput
from reperio.filters import kind, plain
from reperio.types import Document, FieldSpan, Provenance, Value

FORMAT = 1
"""Version of the tables, kept in ``PRAGMA user_version``."""

APPLICATION_ID = 0x52455045  # "REPE"

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE signals (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, config TEXT NOT NULL);
CREATE TABLE documents (
    row INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice, also after compaction
    id TEXT NOT NULL,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL,
    provenance TEXT,
    text_hash BLOB NOT NULL,
    digest BLOB NOT NULL,
    added INTEGER NOT NULL,
    removed INTEGER
);
CREATE UNIQUE INDEX live ON documents (id) WHERE removed IS NULL;
CREATE INDEX by_text ON documents (text_hash);
CREATE INDEX by_added ON documents (added);
CREATE INDEX by_removed ON documents (removed) WHERE removed IS NOT NULL;
CREATE TABLE embeddings (
    key INTEGER PRIMARY KEY,  -- row * 64 + signal number: rows of one document lie together, in order of arrival
    value BLOB NOT NULL,
    tokens INTEGER,  -- NULL where the caller gave the vector
    truncated INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE fields (name TEXT NOT NULL, kind TEXT NOT NULL, PRIMARY KEY (name, kind)) WITHOUT ROWID;
"""

SIGNALS = 64
"""Most signals that a collection can have."""


def check(document: object, position: int) -> Document:
    """A document fit to be stored, or an error that names what is wrong with it.

    Raises
    ------
    InvalidInput, EmptyText
    """
    if not isinstance(document, Document):
        problem = f"Item {position} is a {type(document).__name__}, not a Document."
        raise InvalidInput(problem, "Wrap it: Document(id, text).")
    name, text = cast("object", document.id), cast("object", document.text)
    check_id(name, f"The id of document {position}")
    if not isinstance(text, str):
        raise InvalidInput(f"Document {name!r} has a text of type {type(text).__name__}.", "Use a string.")
    if not text.strip():
        raise EmptyText(f"Document {name!r} has no text.", "Leave it out, or give it a text.")
    return document


def check_id(name: object, what: str) -> None:
    """Refuse an id that is not a string, is empty, or holds what SQLite's JSON cannot."""
    if not isinstance(name, str):
        raise InvalidInput(f"{what}, {name!r}, is a {type(name).__name__}.", "Ids are strings: str(key).")
    if not name or not _storable(name):
        raise InvalidInput(f"{what} is {name!r}.", "Use a string that is not empty and holds no NUL.")


def _storable(text: str) -> bool:
    """Whether SQLite's JSON functions see the whole of it."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def text_hash(text: str) -> bytes:
    """16 bytes that stand for the text."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def digest(hashed_text: bytes, metadata: str, provenance: str | None) -> bytes:
    """16 bytes that change with anything that a document holds but its id."""
    parts = hashed_text + metadata.encode() + b"\0" + (provenance or "").encode()
    return hashlib.blake2b(parts, digest_size=16).digest()


def pack_metadata(document: Document) -> str:
    """Canonical JSON; dates become ISO 8601 text.

    Raises
    ------
    InvalidInput
        Naming the document, the key and the value that JSON cannot hold.
    """
    try:
        plainly = {key: _json(value, key) for key, value in document.metadata.items()}
        return json.dumps(plainly, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (InvalidInput, AttributeError) as error:
        raise InvalidInput(
            f"Document {document.id!r}: {error}", "Metadata holds what JSON holds, and dates."
        ) from error


def _json(value: Any, key: object) -> Any:
    if not isinstance(key, str):
        raise InvalidInput(f"the metadata key {key!r} is not a string.")
    if isinstance(value, date):
        return plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidInput(f"metadata {key!r} is {value}.")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidInput(f"metadata {key!r} is {value}, beyond 64 bits.")
    for part in (key, value):
        if isinstance(part, str) and not _storable(part):
            raise InvalidInput(f"metadata {key!r} holds a NUL or half a character.")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if _is_object(value):
        return {name: _json(part, name) for name, part in value.items()}
    if _is_list(value):
        return [_json(part, key) for part in value]
    raise InvalidInput(f"metadata {key!r} is a {type(value).__name__}.")


def _is_object(value: object) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(value, Mapping)


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, bytes | bytearray)


def pack_provenance(where: Provenance | None) -> str | None:
    """JSON, or None."""
    if where is None:
        return None
    fields = [[f.field, f.start, f.end, f.offset] for f in where.fields]
    return json.dumps([where.source, where.table, where.key, where.line, fields], separators=(",", ":"))


def unpack(row: tuple[str, str, str, str | None]) -> Document:
    """A document from its columns id, text, metadata, provenance."""
    name, text, metadata, provenance = row
    values: dict[str, Value] = json.loads(metadata)
    if provenance is None:
        return Document(name, text, values)
    source, table, key, line, fields = json.loads(provenance)
    return Document(name, text, values, Provenance(source, table, key, tuple(FieldSpan(*f) for f in fields), line))


def kinds(metadata: str) -> set[tuple[str, str]]:
    """Every field of packed metadata with the kind of its value; nulls say nothing."""
    found = ((name, kind(value)) for name, value in json.loads(metadata).items())
    return {(name, k) for name, k in found if k is not None}
