"""A real PostgreSQL: filters, secrets, lost sessions, wrong versions, and kill -9."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio import Collection, Document, Field, Signal
from reperio.encoders.hashing import HashEncoder
from reperio.errors import (
    ConfigurationError,
    CorruptArtifact,
    FilterError,
    InvalidInput,
    NewerFormat,
    NotFound,
    ReadOnly,
    ServerUnavailable,
    StorageError,
    UnsupportedOperation,
    WriterBusy,
)
from reperio.filters import Filter, check
from reperio.indexes.flat import FlatIndex
from reperio.indexes.pgvector import PgvectorIndex
from reperio.postgres import Database
from reperio.stores.postgres import PostgresStore
from reperio.stores.postgres_schema import exact_json
from reperio.stores.rows import Entry
from reperio.stores.sqlite import SQLiteStore
from reperio.testing.store import commit, some

_NUMBERS = count()

NONE = np.empty(0, dtype=np.int64)


@pytest.fixture
def name() -> str:
    return f"s{next(_NUMBERS)}"


@pytest.fixture
def admin(server: str) -> Iterator[Callable[..., list[Any]]]:
    """Runs statements as a superuser, on a connection of its own."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("SET client_min_messages = error")

        def run(statement: str, *values: object) -> list[Any]:
            cursor = connection.execute(statement, values or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

        yield run


def end_sessions(admin: Callable[..., list[Any]]) -> None:
    """As an administrator, a fail-over or a restart does."""
    admin("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'reperio'")


# Filters

NAMES = ["year", "lang", "tags", 'we"ird.$[0] %s {key}']
scalars = st.one_of(
    st.integers(-3, 3),
    st.sampled_from(
        [2**53 + 1, 2**62, 2**62 + 1, -(2**63), 2.0**53, 2.0**62, 0.1, 0.5, -1.25, 2.0, -0.0, 1e300, 5e-324]
    ),
    st.sampled_from(["", "a", "ab", "B", "é", "z", "中", "🎈", "3", "true", "%", "'", '"', "\\", "a\nb", "{}"]),
    st.booleans(),
)
values = st.recursive(
    st.one_of(st.none(), scalars),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("xy"), inner, max_size=2)),
    max_leaves=4,
)
metadata = st.dictionaries(st.sampled_from(NAMES), values, max_size=4)
fields = st.sampled_from(NAMES).map(Field)
leaves = st.one_of(
    *(st.builds(compare, fields, scalars) for compare in (lambda f, v: f == v, lambda f, v: f != v)),
    *(st.builds(compare, fields, scalars) for compare in (lambda f, v: f < v, lambda f, v: f <= v)),
    *(st.builds(compare, fields, scalars) for compare in (lambda f, v: f > v, lambda f, v: f >= v)),
    st.builds(lambda f, v: f.in_(v), fields, st.lists(scalars, max_size=4)),
    st.builds(lambda f, v: f.contains(v), fields, scalars),
    st.builds(lambda f: f.exists(), fields),
)
conditions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        inner.map(lambda a: ~a),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def stores(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """One in a file, one on the server."""
    both = [
        SQLiteStore(tmp_path_factory.mktemp("filters") / "store.sqlite"),
        PostgresStore(f"{server}&options=-csynchronous_commit%3Doff", collection="filters"),
    ]
    yield both
    for store in both:
        store.close()


@given(rows=st.lists(metadata, min_size=1, max_size=6), condition=conditions)
@settings(max_examples=200, deadline=None)
def test_a_filter_passes_the_same_documents_in_every_store(
    stores: list[Any], rows: list[dict[str, Any]], condition: Filter
) -> None:
    documents = [Document(str(i), "text", row) for i, row in enumerate(rows)]
    wanted = {d.id for d in documents if condition.matches(d.metadata)}
    for store in stores:
        store.commit([Entry.of(d) for d in documents], store.matching(None))
        try:
            check(condition, store.fields())
        except FilterError:
            with pytest.raises(FilterError):
                store.matching(condition)
            continue
        live = store.matching(None)
        assert [d.metadata for d in store.fetch(live)] == [d.metadata for d in documents]
        assert {d.id for d in store.fetch(store.matching(condition))} == wanted, type(store).__name__


@given(st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**63 - 1)))
def test_a_number_is_kept_as_the_decimal_that_it_is(number: float) -> None:
    from fractions import Fraction

    packed = exact_json(json.dumps({"x": [number, "1.5e3", "\\"], "1.5": {"y": -0.5}}))
    found = json.loads(packed, parse_float=Fraction, parse_int=Fraction)
    assert found["x"][0] == Fraction(number)
    assert found["x"][1:] == ["1.5e3", "\\"]
    assert found["1.5"]["y"] == Fraction(-1, 2)


def test_text_that_cannot_be_stored_is_no_filter(server: str, name: str) -> None:
    store = PostgresStore(server, collection=name)
    commit(store, some(3))
    for bad in ("a\0b", "\ud800"):
        with pytest.raises(FilterError, match="half a character"):
            store.matching(Field("name") == bad)
    long = Field("n") == 0
    for i in range(1, 1500):
        long = long | (Field("n") == i)
    assert len(store.matching(long)) == len(store.matching(Field("n").in_(range(5000)))) == 3
    store.close()


def test_a_text_that_postgresql_does_not_hold_is_refused_before_anything_is_stored(server: str, name: str) -> None:
    with Collection.open(server, collection=name, signals=pgvector()) as c:
        with pytest.raises(InvalidInput, match=r"'b'.*NUL at position 3"):
            c.upsert([Document("a", "fine"), Document("b", "not\0fine")], batch_size=1)
        assert c.count() == 0
        with pytest.raises(InvalidInput, match="'b'"):
            c.upsert(iter([Document("a", "fine"), Document("b", "not\0fine")]), batch_size=1)
        assert c.count() == 1


# Secrets


@pytest.fixture
def guarded(server: str, admin: Callable[..., list[Any]]) -> Iterator[tuple[str, str]]:
    """The address of a role that must give its password, without it and with it."""
    (folder,) = admin("SHOW data_directory")[0]
    rules = Path(folder) / "pg_hba.conf"
    before = rules.read_text()
    admin("CREATE ROLE guarded LOGIN PASSWORD 's3cr/t p@ss'")
    admin("GRANT CREATE ON DATABASE postgres TO guarded")
    rules.write_text("local all guarded scram-sha-256\n" + before)
    admin("SELECT pg_reload_conf()")
    host = server.split("host=")[1]
    yield (
        f"postgresql:///postgres?host={host}&user=guarded",
        f"postgresql://guarded:s3cr%2Ft%20p%40ss@/postgres?host={host}",
    )
    rules.write_text(before)
    admin("SELECT pg_reload_conf()")
    admin("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'guarded'")
    admin("DROP OWNED BY guarded CASCADE")
    admin("DROP ROLE guarded")


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


# A server that is not there, or not as it should be


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


def test_a_session_that_was_ended_while_idle_is_opened_anew(server: str, name: str, admin: Any) -> None:
    with Collection.open(server, collection=name, signals=pgvector()) as c:
        c.upsert([Document("a", "a walrus")])
        end_sessions(admin)
        assert c.search("walrus", 1).ids == ["a"]
        end_sessions(admin)
        assert c.upsert([Document("b", "a seal")]).added == 1
        with pytest.raises(WriterBusy):  # the right to write was taken again with it
            PostgresStore(server, collection=name)


def pgvector() -> dict[str, Signal[Any]]:
    return {"dense": Signal(HashEncoder(32), PgvectorIndex(index=None))}


def test_a_session_that_ends_in_the_middle_costs_no_more_than_its_commit(server: str, name: str, admin: Any) -> None:
    class Ending(HashEncoder):
        ended = 0

        def encode_document(self, texts: Any, /) -> Any:
            if self.ended < 1 and "walrus 5" in texts:
                self.ended += 1
                end_sessions(admin)
            return super().encode_document(texts)

    documents = [Document(f"d{i}", f"walrus {i}") for i in range(10)]
    with Collection.open(
        server, collection=name, signals={"dense": Signal(Ending(32), PgvectorIndex(index=None))}
    ) as c:
        c.upsert(documents, batch_size=2)  # between two commits: nothing is lost
        assert c.count() == 10
        for inside in (c._store.transaction, c._store.snapshot):
            with pytest.raises(ServerUnavailable, match="Try again"), inside():  # noqa: PT012
                end_sessions(admin)
                c._store.count()
        assert c.upsert(documents).unchanged == 10
        assert c.verify().ok


def test_a_writer_that_lost_its_session_does_not_overwrite_another(server: str, name: str, admin: Any) -> None:
    first = PostgresStore(server, collection=name)
    commit(first, some(3))
    end_sessions(admin)
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


@pytest.fixture
def bare(server: str, admin: Callable[..., list[Any]]) -> Iterator[str]:
    """The address of a database without pgvector."""
    name = f"bare{next(_NUMBERS)}"
    admin(f"CREATE DATABASE {name}")
    yield server.replace("/postgres?", f"/{name}?")
    admin("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", name)
    admin(f"DROP DATABASE {name}")


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


# Damage


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


# kill -9

WORKER = """
import random, sys, time
from reperio import Collection, Document, Signal
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.hashing import HashEncoder
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.faiss import FaissIndex
from reperio.indexes.pgvector import PgvectorIndex

address, cache, seed = sys.argv[1:]
choose = random.Random(int(seed))
signals = {"bm25": Signal(BM25Encoder(), BM25Index(), stored=False), "dense": Signal(HashEncoder(16), PgvectorIndex())}
c = Collection.open(address, cache=cache, signals=signals if seed == "0" else None)
version = time.time_ns()
while True:
    version += 1
    step = choose.choices(["upsert", "delete", "reindex", "rollback", "compact", "checkpoint"], [12, 2, 2, 1, 1, 1])[0]
    names = choose.sample(range(60), choose.randint(1, 30))
    changes = {str(n): version if step == "upsert" else None for n in names} if step in ("upsert", "delete") else {}
    print("begin", step, repr(changes), flush=True)
    if step == "upsert":
        documents = [Document(n, f"text {n} of {v}", {"version": v}) for n, v in changes.items()]
        c.upsert(documents, batch_size=8, progress=False)
    elif step == "delete":
        c.delete(list(changes))
    elif step == "reindex":
        c.reindex("dense", choose.choice([PgvectorIndex(index=None), PgvectorIndex(dtype="float16"), FaissIndex()]))
    elif step == "rollback":
        try:
            c.rollback("dense")
        except LookupError:
            pass
    else:
        getattr(c, step)()
    print("done", step, repr(changes), flush=True)
"""


def test_a_killed_writer_loses_nothing_it_had_acknowledged(server: str, name: str, tmp_path: Path) -> None:
    import ast

    address, clock = f"{server}#{name}", random.Random(1)
    allowed: dict[str, set[Any]] = {str(n): {None} for n in range(60)}
    during = set()
    for trial in range(8):
        command = [sys.executable, "-c", WORKER, address, str(tmp_path / "cache"), str(trial)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            lines = [worker.stdout.readline()]
            time.sleep(clock.uniform(0.0, 0.5))
            worker.send_signal(signal.SIGKILL)
            lines += worker.stdout.readlines()
        assert worker.returncode == -signal.SIGKILL
        for line in lines:
            state, _, changes = line.rstrip("\n").split(" ", 2)
            for key, version in ast.literal_eval(changes).items():
                allowed[key] = {version} if state == "done" else allowed[key] | {version}
        during.add(lines[-1].split()[1])
        with Collection.open(address, cache=tmp_path / "cache") as c:
            found: dict[str, Any] = {d.id: d.metadata["version"] for d in c.documents()}
            assert all(found.get(key) in versions for key, versions in allowed.items())
            assert c.verify().problems == ()
            assert len(c.search("text", 60, signals=["dense"])) == len(found)
    assert len(during) > 1


def test_a_writer_waits_for_the_end_of_one_that_was_killed(server: str, name: str) -> None:
    store = PostgresStore(server, collection=name)
    threading.Timer(0.2, store.close).start()
    PostgresStore(server, collection=name).close()


# Another kind of store


def test_flat_vectors_of_a_server_are_those_of_a_file(server: str, name: str, tmp_path: Path) -> None:
    found = []
    for place, settings_ in ((server, {"collection": name, "cache": tmp_path / "cache"}), (tmp_path / "c", {})):
        given = {"dense": Signal(HashEncoder(32), FlatIndex())}
        with Collection.open(place, signals=given, **settings_) as c:  # type: ignore[arg-type]
            c.upsert(some(50))
            found.append([(r.ids, r.scores.tolist()) for r in c.search(["text 7", "plain"], 9)])
    assert found[0] == found[1]
