"""A real PostgreSQL: secrets, lost sessions, wrong versions, damage."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from reperio import Collection, Document, Signal
from reperio.encoders.hashing import HashEncoder
from reperio.errors import (
    ConfigurationError,
    CorruptArtifact,
    InvalidInput,
    NewerFormat,
    NotFound,
    ReadOnly,
    ServerUnavailable,
    StorageError,
    UnsupportedOperation,
    WriterBusy,
)
from reperio.indexes.pgvector import PgvectorIndex
from reperio.postgres import Database
from reperio.stores.postgres import PostgresStore
from reperio.testing.store import commit, some


def pgvector() -> dict[str, Signal[Any]]:
    return {"dense": Signal(HashEncoder(32), PgvectorIndex(index=None))}


def test_a_password_is_used_and_never_shown(
    guarded: tuple[str, str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, admin: Any
) -> None:
    admin("CREATE EXTENSION IF NOT EXISTS vector")
    given = {"dense": Signal(HashEncoder(16), PgvectorIndex(guarded[1], index=None))}
    with Collection.open(guarded[1], collection=name, cache=tmp_path / "c", signals=given) as c:
        c.upsert([Document("a", "a walrus")])
        assert c.search("walrus", 1).ids == ["a"]
        shown = [repr(c), c.location, repr(c.stats()), json.dumps(c.retriever().spec), repr(Database.at(guarded[1]))]
        c.checkpoint()
        shown += [path.read_text(errors="replace") for path in (tmp_path / "c").rglob("*") if path.is_file()]
        shown += [repr(c._store.signals()), json.dumps(dict(given["dense"].index.spec))]
        with pytest.raises(WriterBusy) as caught:
            Collection.open(guarded[1], collection=name)
        shown.append("".join(traceback.format_exception(caught.value)))
        given["dense"].index.drop()
    assert not [text for text in shown if "s3cr" in text]
    with pytest.raises(ServerUnavailable, match="Check user and password"):
        Collection.open(guarded[0], collection=name, mode="r")
    monkeypatch.setenv("PGPASSWORD", "s3cr/t p@ss")
    with Collection.open(guarded[0], collection=name, mode="r", cache=tmp_path / "c") as c:
        assert c.count() == 1


def test_a_wrong_password_is_refused_and_not_shown(guarded: tuple[str, str], name: str) -> None:
    wrong = guarded[1].replace("s3cr", "wr0ng")
    for url in (wrong, guarded[0] + "&password=wr0ng"):
        with pytest.raises(ServerUnavailable, match=r"authentication failed.*Check user and password") as caught:
            PostgresStore(url, collection=name)
        assert "wr0ng" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("url", ["postgresql://u:s3cret@[::1/db", "postgresql://u:s3cret@h/db?nosuch=s3cret"])
def test_an_address_that_cannot_be_read_is_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read") as caught:
        PostgresStore(url, collection="c")
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_a_server_that_is_not_there_is_told(name: str) -> None:
    url = "postgresql://u:{}@127.0.0.1:1/db".format("s3cret")
    with pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1.*Try again") as caught:
        Collection.open(url, collection=name)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ServerUnavailable):
        PgvectorIndex("postgresql://u@127.0.0.1:1/db").add(np.arange(1), np.ones((1, 3), dtype=np.float32))


def test_a_database_that_is_not_there_is_told(server: str, name: str) -> None:
    with pytest.raises(NotFound, match="name of the database"):
        PostgresStore(server.replace("/postgres?", "/nosuch?"), collection=name)


def test_a_session_that_was_ended_while_idle_is_opened_anew(server: str, name: str, end_sessions: Any) -> None:
    with Collection.open(server, collection=name, signals=pgvector()) as c:
        c.upsert([Document("a", "a walrus")])
        end_sessions()
        assert c.search("walrus", 1).ids == ["a"]
        end_sessions()
        assert c.upsert([Document("b", "a seal")]).added == 1
        with pytest.raises(WriterBusy):  # the right to write was taken again with it
            PostgresStore(server, collection=name)


def test_a_session_that_ends_in_the_middle_costs_no_more_than_its_commit(
    server: str, name: str, end_sessions: Any
) -> None:
    class Ending(HashEncoder):
        ended = 0

        def encode_document(self, texts: Any, /) -> Any:
            if self.ended < 1 and "walrus 5" in texts:
                self.ended += 1
                end_sessions()
            return super().encode_document(texts)

    documents = [Document(f"d{i}", f"walrus {i}") for i in range(10)]
    with Collection.open(
        server, collection=name, signals={"dense": Signal(Ending(32), PgvectorIndex(index=None))}
    ) as c:
        c.upsert(documents, batch_size=2)  # between two commits: nothing is lost
        assert c.count() == 10
        for inside in (c._store.transaction, c._store.snapshot):
            with pytest.raises(ServerUnavailable, match="Try again"), inside():  # noqa: PT012
                end_sessions()
                c._store.count()
        assert c.upsert(documents).unchanged == 10
        assert c.verify().ok


def test_a_writer_that_lost_its_session_does_not_overwrite_another(server: str, name: str, end_sessions: Any) -> None:
    first = PostgresStore(server, collection=name)
    commit(first, some(3))
    end_sessions()
    second = PostgresStore(server, collection=name)
    with pytest.raises(WriterBusy):
        commit(first, some(2, start=3))
    commit(second, some(1, start=9))
    second.close()
    with pytest.raises(StorageError, match=r"moved on.*run it again"):
        commit(first, some(2, start=3))
    assert commit(first, some(2, start=3)) == 3
    assert first.count() == 6
    first.close()


def test_a_statement_that_takes_too_long_is_cancelled_and_told(server: str, name: str) -> None:
    store = PostgresStore(f"{server}&options=-cstatement_timeout%3D60", collection=name)
    with pytest.raises(ServerUnavailable, match="statement_timeout"), store.transaction() as connection:
        connection.execute("SELECT pg_sleep(5)")
    assert store.count() == 0
    store.close()


def test_a_user_who_may_not_write_is_told(server: str, name: str, admin: Any) -> None:
    PostgresStore(server, collection=name).close()
    admin("DROP ROLE IF EXISTS onlooker")
    admin("CREATE ROLE onlooker LOGIN")
    admin(f"GRANT USAGE ON SCHEMA {name} TO onlooker")
    admin(f"GRANT SELECT ON ALL TABLES IN SCHEMA {name} TO onlooker")
    url = server.replace("postgres:@", "onlooker@")
    reader = PostgresStore(url, collection=name, mode="r")
    assert reader.count() == 0
    writer = PostgresStore(url, collection=name)
    with pytest.raises(ReadOnly, match="mode='r'"):
        commit(writer, some(1))
    reader.close(), writer.close()
    with pytest.raises(ReadOnly, match="right granted"):
        PostgresStore(url, collection=f"{name}_new")
    admin("DROP OWNED BY onlooker")
    admin("DROP ROLE onlooker")


def test_another_schema_and_a_newer_format_are_refused(server: str, name: str, admin: Any) -> None:
    admin(f"CREATE SCHEMA {name}")
    admin(f"CREATE TABLE {name}.orders (n int)")
    for mode in ("r", "rw"):
        with pytest.raises(CorruptArtifact, match="not a collection"):
            PostgresStore(server, collection=name, mode=mode)  # type: ignore[arg-type]
    assert admin(f"SELECT count(*) FROM {name}.orders") == [(0,)]
    admin(f"CREATE TABLE {name}.reperio (n int)")
    with pytest.raises(CorruptArtifact, match="altered by hand"):
        PostgresStore(server, collection=name)
    other = f"{name}_newer"
    PostgresStore(server, collection=other).close()
    admin(f"UPDATE {other}.reperio SET format = 2")
    with pytest.raises(NewerFormat, match="Upgrade reperio"):
        PostgresStore(server, collection=other)
    admin(f"UPDATE {other}.reperio SET format = 1")
    admin(f"DROP TABLE {other}.embeddings")
    store = PostgresStore(server, collection=other)
    with pytest.raises(CorruptArtifact, match="dropped by hand"):
        commit(store, some(1))
    store.close()


def test_the_extension_is_made_where_it_may_be(bare: str) -> None:
    index = PgvectorIndex(bare)
    held = Database.at(bare)
    with held.session() as before:  # a connection from before there was an extension
        assert before.execute("SELECT count(*) FROM pg_extension WHERE extname = 'vector'").fetchone() == (0,)
    index.add(np.arange(3), np.eye(3, dtype=np.float32))
    assert index.search(np.eye(3, dtype=np.float32), 1).ids.ravel().tolist() == [0, 1, 2]
    held.close()
    del index


def test_an_old_extension_is_refused(bare: str) -> None:
    with psycopg.connect(bare, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
    index = PgvectorIndex(bare)
    with pytest.raises(UnsupportedOperation, match=r"pgvector 0\.7\.4.*ALTER EXTENSION vector UPDATE"):
        index.add(np.arange(3), np.eye(3, dtype=np.float32))
    assert len(index) == 0
    Database.at(bare).close()


def test_a_user_who_may_not_create_the_extension_is_told(guarded: tuple[str, str], bare: str) -> None:
    index = PgvectorIndex(guarded[1].replace("/postgres?", f"/{bare.split('/')[3].split('?')[0]}?"))
    with pytest.raises(UnsupportedOperation, match="administrator run: CREATE EXTENSION vector"):
        index.add(np.arange(3), np.eye(3, dtype=np.float32))


def test_an_extension_in_a_schema_of_its_own_is_found(bare: str, tmp_path: Path) -> None:
    with psycopg.connect(bare, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions")
    with Collection.open(bare, collection="c", cache=tmp_path, signals=pgvector()) as c:
        c.upsert([Document("a", "a walrus")])
        assert c.search("walrus", 1).ids == ["a"]
    Database.at(bare).close()


def test_an_encoding_that_cannot_hold_every_text_is_refused(server: str, admin: Any, name: str) -> None:
    admin(f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(ConfigurationError, match=r"LATIN1.*UTF8"):
        PostgresStore(server.replace("/postgres?", f"/{name}?"), collection="c")
    admin(f"DROP DATABASE {name}")


def test_what_was_altered_by_hand_is_found(server: str, name: str, admin: Any) -> None:
    given = {"dense": Signal(HashEncoder(32), PgvectorIndex(index=None))}
    with Collection.open(server, collection=name, signals=given) as c:
        c.upsert([Document(f"d{i}", f"text {i}") for i in range(6)])
        assert c.verify().ok
        admin(f"UPDATE {name}.documents SET text = 'forged' WHERE id = 'd1'")
        admin(f"UPDATE {name}.embeddings SET value = '\\x00' WHERE row = 3")
        admin(f"DELETE FROM {name}.index_0_1 WHERE key = 4")
        admin(f"INSERT INTO {name}.index_0_1 SELECT 99, value FROM {name}.index_0_1 WHERE key = 5")
        admin(f"INSERT INTO {name}.embeddings VALUES (98, 0, '', 1, false)")
        found = "\n".join(c.verify().problems)
        for problem in (
            "'d1' was altered",
            "not 128 bytes",
            "lacks 1 documents, row 4",
            "still holds 1 documents, row 99",
        ):
            assert problem in found
        assert "1 embeddings belong to no document" in found
        admin(f"DELETE FROM {name}.embeddings WHERE row = 98")
        c.upsert([Document("d1", "text 1 again"), Document("d2", "text 2 again")])
        c.compact()  # builds the index anew from the truth
        assert c.verify().problems == ()


def test_a_text_that_postgresql_does_not_hold_is_refused_before_anything_is_stored(server: str, name: str) -> None:
    with Collection.open(server, collection=name, signals=pgvector()) as c:
        with pytest.raises(InvalidInput, match=r"'b'.*NUL at position 3"):
            c.upsert([Document("a", "fine"), Document("b", "not\0fine")], batch_size=1)
        assert c.count() == 0
        with pytest.raises(InvalidInput, match="'b'"):
            c.upsert(iter([Document("a", "fine"), Document("b", "not\0fine")]), batch_size=1)
        assert c.count() == 1


@pytest.mark.parametrize(
    ("suffix", "settings", "message"),
    [
        ("", {}, "names no collection"),
        ("#a", {"collection": "b"}, "Give the name once"),
        ("#public", {}, "cannot be named 'public'"),
        ("#pg_x", {}, "pg_x"),
        ('#a"; DROP SCHEMA public', {}, "letters, digits"),
        ("", {"collection": "x" * 64}, "63"),
        ("#c", {"mode": "a"}, "mode is 'a'"),
    ],
)
def test_a_name_that_cannot_be_is_refused(server: str, suffix: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Collection.open(server + suffix, **settings)


def test_a_folder_has_no_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="postgresql://"):
        Collection.open(tmp_path / "c", collection="name")
