"""A collection in PostgreSQL after a commit that was undone: nothing is kept of what was seen inside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from reperio import Collection, Document, Signal
from reperio.encoders.hashing import HashEncoder
from reperio.encoders.verbatim import VerbatimEncoder
from reperio.errors import ServerUnavailable, StaleResult, StorageError
from reperio.indexes.pgtext import PostgresTextIndex
from reperio.indexes.pgvector import PgvectorIndex

_NUMBERS = count()

DOCUMENTS = [Document(f"d{i}", f"walrus number {i}") for i in range(40)]


def signals(url: str | None = None) -> dict[str, Signal[Any]]:
    return {
        "dense": Signal(HashEncoder(16), PgvectorIndex(url)),
        "text": Signal(VerbatimEncoder(), PostgresTextIndex(url, language="simple"), stored=False),
    }


@pytest.fixture
def admin(server: str) -> Iterator[Any]:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("SET client_min_messages = error")
        yield connection


@pytest.fixture
def open_(server: str, admin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Opens one collection, which is replayed in chunks of ten rows."""
    monkeypatch.setattr("reperio.derived.CHUNK", 10)
    name, opened = f"undone{next(_NUMBERS)}", list[Collection]()

    def open_(**settings: Any) -> Collection:
        opened.append(Collection.open(f"{server}#{name}", cache=tmp_path / "cache", **settings))
        return opened[-1]

    yield open_
    for collection in opened:
        collection._release()
    admin.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")


def whole(collection: Collection, documents: int) -> None:
    for signal in ("dense", "text"):
        assert len(collection.search("walrus", 100, signals=[signal])) == documents
    assert collection.verify().problems == ()


@pytest.mark.parametrize("ended", [True, False], ids=["the session ends", "a text is refused"])
def test_a_first_commit_of_many_rows_that_failed_can_be_made_again(
    open_: Callable[..., Collection], admin: Any, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    collection, copy, copied = open_(signals=signals()), PgvectorIndex._copy, list[int]()

    def cut_short(self: PgvectorIndex, connection: Any, data: bytes) -> None:
        copied.append(len(data))
        if len(copied) == 3:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
        copy(self, connection, data)

    with monkeypatch.context() as patch:
        if ended:
            patch.setattr(PgvectorIndex, "_copy", cut_short)
        refused = [] if ended else [Document("long", " ".join(f"w{i:07d}" for i in range(120_000)))]
        with pytest.raises(ServerUnavailable if ended else StorageError):
            collection.upsert([*DOCUMENTS, *refused])
    assert collection.count() == 0
    assert len(collection.search("walrus", 9)) == 0
    assert collection.upsert(DOCUMENTS).added == 40
    assert collection.upsert(DOCUMENTS[:1]).unchanged == 1
    whole(collection, 40)
    collection.close()


def test_an_index_beside_the_collection_s_own_sees_what_it_was_given_whatever_the_collection_reads(
    open_: Callable[..., Collection], server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was given them while its thread read a snapshot, in which its new table was not."""
    collection = open_(signals=signals(server))
    collection.upsert(DOCUMENTS)
    whole(collection, 40)

    def away(*_: Any) -> None:
        raise ServerUnavailable("The server is away.", "Try again.")

    with monkeypatch.context() as patch:
        for kind in (PgvectorIndex, PostgresTextIndex):
            patch.setattr(kind, "add", away)
        with pytest.raises(ServerUnavailable):
            collection.upsert([Document("z", "zebra walrus")])
    for signal in ("dense", "text"):
        assert collection.search("zebra", 1, signals=[signal]).ids == ["z"]
    whole(collection, 41)
    for signal in ("dense", "text"):
        collection._signals[signal].index.drop()  # type: ignore[attr-defined]


@pytest.mark.parametrize("forgotten", [False, True], ids=["the table", "the table and its row"])
@pytest.mark.parametrize("signal", ["dense", "text"])
def test_a_table_dropped_by_hand_is_told_and_built_anew_when_the_collection_is_opened_again(
    open_: Callable[..., Collection], admin: Any, signal: str, forgotten: bool
) -> None:
    collection = open_(signals=signals())
    collection.upsert(DOCUMENTS)
    whole(collection, 40)
    index: Any = collection._signals[signal].index
    admin.execute(f"DROP TABLE {index._schema}.{index._name}")
    if forgotten:
        admin.execute(f"DELETE FROM {index._schema}.tables WHERE name = '{index._name}'")
    for call in (lambda: collection.search("walrus", 3), lambda: collection.upsert([Document("new", "walrus")])):
        with pytest.raises(StaleResult, match="open the collection for writing"):
            call()
    assert collection.count() == 40
    with suppress(StaleResult):  # of a dense index, which it has settled
        collection.close()
    again = open_()  # the right to write was given back
    whole(again, 40)
    again.upsert([Document("new", "a walrus")])
    whole(again, 41)
    again.close()
