"""The tables of a collection in PostgreSQL: one schema of the database, named for the collection."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any
from uuid import uuid4

from reperio.errors import ConfigurationError
from reperio.extras import load
from reperio.stores.rows import Entry

FORMAT = 1
"""Version of the tables, kept in ``reperio.format``."""

TABLES = """
CREATE TABLE reperio (  -- one row; its presence says what the schema is
    format int NOT NULL,
    uuid text NOT NULL,
    seq bigint NOT NULL,  -- of the last commit
    floor bigint NOT NULL,
    last bigint NOT NULL,  -- highest row key given; never used twice, also after compaction
    turn bigint NOT NULL  -- goes up whenever a signal takes another index
);
CREATE TABLE signals (
    number smallint PRIMARY KEY, name text NOT NULL UNIQUE, config text NOT NULL,
    current int NOT NULL, previous int, started int NOT NULL  -- generations of its index, the highest number given
);
CREATE TABLE indexes (
    signal smallint NOT NULL, number int NOT NULL, spec text NOT NULL, seq bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (signal, number)
);
CREATE TABLE documents (
    row bigint PRIMARY KEY,
    id text NOT NULL,
    text text NOT NULL,
    metadata text NOT NULL,  -- as it was given, to the byte
    fields jsonb NOT NULL,  -- for filters: numbers as exact decimals
    provenance text,
    id_hash bytea NOT NULL,  -- an index takes no more than 2704 bytes of a value
    text_hash bytea NOT NULL,
    digest bytea NOT NULL,
    added bigint NOT NULL,
    removed bigint
);
CREATE UNIQUE INDEX live ON documents (id_hash) WHERE removed IS NULL;
CREATE INDEX by_text ON documents (text_hash);
CREATE INDEX by_added ON documents (added);
CREATE INDEX by_removed ON documents (removed) WHERE removed IS NOT NULL;
CREATE TABLE embeddings (
    row bigint NOT NULL,
    signal smallint NOT NULL,
    value bytea NOT NULL,
    tokens int,  -- NULL where the caller gave the vector
    truncated boolean NOT NULL,
    PRIMARY KEY (row, signal)
);
ALTER TABLE embeddings ALTER COLUMN value SET STORAGE EXTERNAL;  -- floats do not compress
CREATE TABLE fields (name text NOT NULL, kind text NOT NULL, PRIMARY KEY (name, kind));
"""

DOCUMENT = ("int8", "text", "text", "text", "bytea", "text", "bytea", "bytea", "bytea", "int8")
DOCUMENT_COLUMNS = "(row, id, text, metadata, fields, provenance, id_hash, text_hash, digest, added)"
"""What a new version is copied in as, and the types; ``fields`` is packed already."""

EMBEDDING = ("int8", "int2", "bytea", "int4", "bool")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")


def check_name(name: object) -> str:
    """A name that a collection may have in a database.

    Raises
    ------
    ConfigurationError
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.startswith("pg_") or name == "public":
        fix = "Use up to 63 letters, digits, '_' and '-', a letter first; not 'public', not 'pg_…'."
        raise ConfigurationError(f"A collection in PostgreSQL cannot be named {name!r}.", fix)
    return name


def create(connection: Any, name: str) -> None:
    """Make the schema and its tables, empty."""
    sql = load("psycopg.sql", extra="pgvector")
    for statement in ("CREATE SCHEMA IF NOT EXISTS {}", "SET LOCAL search_path = {}"):
        connection.execute(sql.SQL(statement).format(sql.Identifier(name)))
    for statement in filter(str.strip, TABLES.split(";\n")):
        connection.execute(statement)
    connection.execute("INSERT INTO reperio VALUES (%s, %s, 0, 0, 0, 0)", (FORMAT, uuid4().hex))


def copy(connection: Any, name: str, entries: Sequence[Entry], *, first: int, seq: int) -> None:
    """Insert new versions, numbered from ``first``, and their embeddings."""
    sql = load("psycopg.sql", extra="pgvector")
    for table, types, rows in (
        (f"documents {DOCUMENT_COLUMNS}", DOCUMENT, document_rows(entries, first, seq)),
        ("embeddings", EMBEDDING, embedding_rows(entries, first)),
    ):
        statement = sql.SQL(f"COPY {{}}.{table} FROM STDIN (FORMAT BINARY)").format(sql.Identifier(name))
        with connection.cursor() as cursor, cursor.copy(statement) as out:
            out.set_types(types)
            for row in rows:
                out.write_row(row)


def id_hash(name: str) -> bytes:
    """16 bytes that stand for a document's id."""
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def document_rows(entries: Iterable[Entry], first: int, seq: int) -> Iterator[Sequence[Any]]:
    """Rows of ``documents``, numbered from ``first``."""
    for row, e in enumerate(entries, first):
        document = e.document
        fields = b"\x01" + exact_json(e.metadata).encode()  # binary jsonb, version 1
        head = (row, document.id, document.text, e.metadata, fields, e.provenance)
        yield (*head, id_hash(document.id), e.text_hash, e.digest, seq)


def embedding_rows(entries: Iterable[Entry], first: int) -> Iterator[Sequence[Any]]:
    """Rows of ``embeddings``."""
    for row, e in enumerate(entries, first):
        for signal, vector in e.vectors.items():
            yield row, signal, vector.value, vector.tokens, vector.truncated


def exact_json(text: str) -> str:
    """The same JSON with every float as the exact decimal it stands for, so that ``numeric`` compares as Python does.

    >>> exact_json('{"x":0.1,"n":3}')
    '{"x":0.1000000000000000055511151231257827021181583404541015625,"n":3}'
    """
    if "." not in text and "e" not in text:  # no float can be there
        return text
    exact: dict[str, str] = {}

    def kept(number: str) -> str:
        # A name that no other string of the text can be, to be put in place of the quoted one.
        name = f"\0{len(exact)}"
        exact[json.dumps(name)] = format(Decimal(float(number)), "f")
        return name

    packed = json.dumps(json.loads(text, parse_float=kept), separators=(",", ":"))
    return re.sub(r'"\\u0000\d+"', lambda found: exact[found[0]], packed) if exact else text
