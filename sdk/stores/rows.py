"""How a document becomes a row, in every store.

Rows are immutable: a changed document is a new row, and the old one keeps its text until `compact`. So a row
key names one version of one document for ever, which is what lets indexes replay and results be read late.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, TypeAlias, TypeGuard, cast

from reperio.embeddings import Ids
from reperio.errors import EmptyText, InvalidInput, StaleResult
from reperio.filters import kind, plain
from reperio.types import Document, FieldSpan, Provenance, Value

Mode: TypeAlias = Literal["r", "rw"]
"""To read, or to read and write."""

SIGNALS = 64
"""Most signals that a collection can have."""


@dataclass(frozen=True, slots=True)
class Vector:
    """One stored embedding: its bytes, the tokens of its text (None where given by the caller), and if cut."""

    value: bytes
    tokens: int | None = None
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """What the store holds of a live document."""

    row: int
    text_hash: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A new version of a document, ready to be committed."""

    document: Document
    metadata: str
    provenance: str | None
    text_hash: bytes
    digest: bytes
    vectors: dict[int, Vector] = field(default_factory=dict[int, Vector])

    @classmethod
    def of(cls, document: Document) -> Entry:
        """Pack a document; raises `InvalidInput` naming what cannot be stored."""
        metadata, provenance = pack_metadata(document), pack_provenance(document.provenance)
        try:
            hashed = text_hash(document.text)
            document.id.encode()
        except UnicodeEncodeError as error:
            problem = f"Document {document.id!r} holds half a character at position {error.start}: {error.reason}."
            raise InvalidInput(problem, "Decode the source with errors='replace'.") from error
        return cls(document, metadata, provenance, hashed, digest(document.id, hashed, metadata, provenance))


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


def digest(name: str, hashed_text: bytes, metadata: str, provenance: str | None) -> bytes:
    """16 bytes that change with anything that a document holds."""
    parts = hashed_text + name.encode() + b"\0" + metadata.encode() + b"\0" + (provenance or "").encode()
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


def kinds(entries: Iterable[Entry]) -> set[tuple[str, str]]:
    """Every metadata field with the kinds of its values; nulls say nothing."""
    distinct = {entry.metadata for entry in entries}
    found = ((name, kind(value)) for metadata in distinct for name, value in json.loads(metadata).items())
    return {(name, k) for name, k in found if k is not None}


def present(rows: Ids, found: Mapping[int, object]) -> list[int]:
    """The rows, if all were found.

    Raises
    ------
    StaleResult
        If compaction has taken one of them away.
    """
    wanted: list[int] = rows.tolist()
    gone = next((row for row in wanted if row not in found), None)
    if gone is not None:
        problem = f"Row {gone} was deleted and compacted away after this result was found."
        raise StaleResult(problem, "Search again.")
    return wanted


def check_floor(seq: int, floor: int) -> None:
    """Refuse to look at a commit of which a purge has taken rows away.

    Raises
    ------
    StaleResult
    """
    if seq < floor:
        problem = f"Commit {seq} cannot be looked at any more: what came before {floor} was compacted away."
        raise StaleResult(problem, "Search again.")


def altered(row: Sequence[Any], hashed: bytes, wanted: bytes) -> str | None:
    """What is wrong with a document read back, if anything: its columns id, text, metadata, provenance."""
    name, text, metadata, provenance = row
    told = provenance is None or (isinstance(provenance, str) and provenance)  # what else is false, digests as none
    if told and text_hash(text) == hashed and digest(name, hashed, metadata, provenance) == wanted:
        return None
    return f"document {name!r} was altered: its digest differs"
