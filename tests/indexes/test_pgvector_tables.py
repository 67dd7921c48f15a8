"""The table of an index in PostgreSQL: made once, whoever makes it, and missed when it is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from reperio import Collection, Document, Signal
from reperio.encoders.hashing import HashEncoder
from reperio.encoders.verbatim import VerbatimEncoder
from reperio.errors import NotFound
from reperio.indexes.pgtext import PostgresTextIndex
from reperio.indexes.pgvector import PgvectorIndex
from reperio.indexes.pgvector_table import SCHEMA
from reperio.searcher import Searcher

DOCUMENTS = [Document(f"d{i}", f"walrus number {i}") for i in range(30)]

_MAKING = "SELECT pg_advisory_lock(hashtextextended('reperio tables', 0))"
_WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


@pytest.fixture
def admin(server: str) -> Iterator[Callable[[str], list[Any]]]:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("SET client_min_messages = error")

        def run(statement: str) -> list[Any]:
            cursor = connection.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

        yield run


@pytest.mark.parametrize("kind", [PgvectorIndex, PostgresTextIndex])
def test_threads_that_fill_an_empty_index_at_once_all_do(server: str, admin: Any, kind: type[Any]) -> None:
    index = kind(server)
    vectors = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    rows = vectors if kind is PgvectorIndex else np.array([f"walrus {i}" for i in range(200)], dtype=object)
    with psycopg.connect(server, autocommit=True) as other, ThreadPoolExecutor(4) as threads:
        other.execute(_MAKING)
        parts = [slice(start, start + 50) for start in range(0, 200, 50)]
        adding = [threads.submit(index.add, np.arange(200)[part], rows[part]) for part in parts]
        until = time.monotonic() + 30
        while admin(_WAITING) != [(4,)] and time.monotonic() < until:
            time.sleep(0.01)
        assert admin(_WAITING) == [(4,)]  # each of them has seen that there is no table
        other.execute("SELECT pg_advisory_unlock_all()")
        for added in adding:
            added.result(30)
    assert index.ids.tolist() == list(range(200))
    assert len(index) == 200
    index.drop()


def test_threads_that_make_the_schema_at_once_see_what_one_of_them_made(server: str, admin: Any) -> None:
    """A backend may answer from what it looked up before; one round in two lost an `add`."""
    rows = np.eye(8, dtype=np.float32)
    with ThreadPoolExecutor(4) as threads:
        for _ in range(8):
            admin(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
            index = PgvectorIndex(server, index=None)
            begin = threading.Barrier(4)

            def add(part: int, index: PgvectorIndex = index, begin: threading.Barrier = begin) -> None:
                begin.wait(30)
                index.add(np.arange(8) + 8 * part, rows)

            list(threads.map(add, range(4)))
            assert index.ids.tolist() == list(range(32))
            index.drop()


def _dropped(admin: Callable[[str], Any], name: str, how: str) -> None:
    if how == "schema":
        admin(f"DROP SCHEMA {SCHEMA} CASCADE")
        return
    admin(f"DROP TABLE {SCHEMA}.{name}")
    if how == "table and row":
        admin(f"DELETE FROM {SCHEMA}.tables WHERE name = '{name}'")


@pytest.mark.parametrize("how", ["table", "table and row", "schema"])
@pytest.mark.parametrize("kind", ["dense", "text"])
def test_a_table_dropped_by_hand_is_told_and_opening_the_collection_again_builds_it_anew(
    server: str, admin: Any, tmp_path: Path, kind: str, how: str
) -> None:
    signals: dict[str, Signal[Any]] = {
        "dense": Signal(HashEncoder(16), PgvectorIndex(server)),
        "text": Signal(VerbatimEncoder(), PostgresTextIndex(server, language="simple"), stored=False),
    }
    collection = Collection.open(tmp_path / "c", signals={kind: signals[kind]})
    collection.upsert(DOCUMENTS)
    collection.checkpoint()
    reader = Collection.open(tmp_path / "c", mode="r")
    assert len(reader.search("walrus", 50)) == 30
    _dropped(admin, collection._signals[kind].index._name, how)  # type: ignore[attr-defined]
    calls: list[Callable[[], object]] = [
        lambda: collection.search("walrus", 3),
        lambda: reader.search("walrus", 3),
        lambda: collection.upsert([Document("new", "a new walrus")]),
        lambda: collection.search("walrus", 3),
        collection.close,
    ]
    for call in calls:
        with pytest.raises(NotFound, match="Open the collection again"):
            call()
    with Collection.open(tmp_path / "c") as again:  # the right to write was given back
        assert len(again.search("walrus", 50)) == 31
        assert again.verify().problems == ()
        assert len(reader.search("walrus", 50)) == 31
        again._signals[kind].index.drop()  # type: ignore[attr-defined]
        again._release()
    reader.close()


def test_a_search_whose_index_is_replaced_under_it_is_made_again(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = Searcher._find
    with Collection.open(tmp_path / "c", signals={"dense": Signal(HashEncoder(16), PgvectorIndex(server))}) as writer:
        writer.upsert(DOCUMENTS)
        writer.checkpoint()
        reader = Collection.open(tmp_path / "c", mode="r")
        assert len(reader.search("walrus", 50)) == 30
        renewed = list[threading.Thread]()

        def find_late(self: Searcher, *arguments: Any) -> Any:
            if not renewed:
                renewed.append(threading.Thread(target=lambda: [writer.compact() for _ in range(2)]))
                renewed[0].start()
                renewed[0].join()
            return find(self, *arguments)

        monkeypatch.setattr(Searcher, "_find", find_late)
        assert len(reader.search("walrus", 50)) == 30
        reader.close()
        writer._signals["dense"].index.drop()  # type: ignore[attr-defined]
        writer._release()
