"""What is Milvus's own: index types, the embedded file, and a server that does not do as it should."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from pymilvus.grpc_gen import common_pb2, milvus_pb2, milvus_pb2_grpc

from reperio.errors import ConfigurationError, NotFound, ServerUnavailable, ShapeError, StorageError
from reperio.indexes import FlatIndex, MilvusIndex
from reperio.indexes.milvus_table import TOKEN, MilvusTable
from reperio.testing.index import clustered

pytest.importorskip("milvus_lite")

N, DIM = 1500, 32
VECTORS = clustered(N + 10, DIM)
ROWS, QUERIES, KEYS = VECTORS[:N], VECTORS[N:], np.arange(N)
SECRET = "root:hunter2"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = str(tmp_path_factory.mktemp("milvus") / "rows.db")
    yield path
    MilvusIndex(path).close()


def recall(index: MilvusIndex, exact: FlatIndex, **named: Any) -> float:
    found, wanted = (one.search(QUERIES, 10, **named) for one in (index, exact))
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(wanted.ids, found.ids, strict=True)]))


# Index types


@pytest.mark.parametrize(
    ("index_type", "params", "lossless"),
    [
        ("IVF_FLAT", {"nlist": 16}, True),
        ("HNSW_SQ", {"M": 16}, False),
        ("IVF_SQ8", {"nlist": 16}, False),
        ("AUTOINDEX", {}, False),
    ],
)
def test_every_index_type_of_the_embedded_file_finds_and_filters(
    uri: str, index_type: str, params: dict[str, Any], lossless: bool
) -> None:
    index, exact = MilvusIndex(uri, index_type=index_type, params=params), FlatIndex()
    for one in (index, exact):
        one.add(KEYS, ROWS)
    index.settle()
    assert index.lossless == lossless
    assert recall(index, exact) >= 0.9
    for allowed in (KEYS[::100], KEYS[:200], KEYS[::2]):
        assert recall(index, exact, allowed=allowed) >= 0.9
    assert (index.search(QUERIES, N).ids >= 0).all()


def test_a_filter_that_leads_the_graph_astray_does_not(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows allowed are those farthest from the queries; unhelped, HNSW found two thirds of the best."""
    monkeypatch.setattr("reperio.indexes.tables.FEW", 20)
    index, exact = MilvusIndex(uri, params={"M": 8}), FlatIndex()
    for one in (index, exact):
        one.add(KEYS, ROWS)
    index.settle()
    far = np.sort(np.argsort(ROWS @ QUERIES.mean(axis=0))[: N // 4])
    assert recall(index, exact, allowed=far) >= 0.98
    assert recall(index, exact, allowed=np.sort(np.random.default_rng(0).choice(N, N // 4, replace=False))) >= 0.98


def test_more_candidates_find_no_less(uri: str) -> None:
    index, exact = MilvusIndex(uri, params={"M": 4, "efConstruction": 8}, options={"ef": 1}), FlatIndex()
    for one in (index, exact):
        one.add(KEYS, ROWS)
    index.settle()
    assert recall(index, exact) <= recall(index, exact, options=None) <= 1
    few, many = (index.search(QUERIES, 1, options={"ef": ef}) for ef in (1, 500))
    assert (many.scores >= few.scores).all()


def test_what_a_server_alone_has_is_refused_by_the_embedded_file(uri: str) -> None:
    for wrong in ({"index_type": "DISKANN"}, {"vectors": "float16"}):
        with pytest.raises(ConfigurationError, match="server"):
            MilvusIndex(uri, **wrong)
        MilvusIndex("http://localhost:19530", **wrong)
    for wrong in (
        {"index_type": "NOPE"},
        {"index_type": "FLAT", "options": {"ef": 3}},
        {"options": {"ef": 0}},
        {"vectors": "sparse", "index_type": "HNSW"},
        {"vectors": "sparse", "params": {"drop_ratio_build": 0.2}},
    ):
        with pytest.raises(ConfigurationError):
            MilvusIndex(uri, **wrong)
    with pytest.raises(ShapeError, match="32768"):
        MilvusIndex(uri).check(np.ones((1, 40_000), dtype=np.float32))


# The embedded file


def test_rows_added_in_bulk_are_sealed_before_they_are_searched(uri: str) -> None:
    """Unsealed, each search walks over all of them in Python: 30 to 60 times slower at 20k rows."""
    index = MilvusIndex(uri, index_type="FLAT")
    index.add(KEYS[:900], ROWS[:900])
    sealed = list[str]()
    with pytest.MonkeyPatch.context() as patch:
        bare = MilvusTable.settle

        def settle(self: MilvusTable) -> None:
            sealed.append(self.address)
            bare(self)

        patch.setattr(MilvusTable, "settle", settle)
        index.search(QUERIES, 3)
        assert not sealed
        index.add(KEYS[900:], ROWS[900:])
        index.search(QUERIES, 3)
        index.search(QUERIES, 3)
        assert sealed == [index.address]


def test_an_embedded_file_opens_again_after_it_was_closed(tmp_path: Path) -> None:
    path = str(tmp_path / "rows.db")
    index = MilvusIndex(path)
    index.add(KEYS, ROWS)
    index.save(tmp_path / "saved")
    wanted = index.search(QUERIES, 5)
    index.add(KEYS[:1] + N, QUERIES[:1])
    index.close()
    opened = MilvusIndex.open(tmp_path / "saved")
    assert len(opened) == N + 1
    opened.remove(KEYS[:1] + N)
    np.testing.assert_array_equal(opened.search(QUERIES, 5).ids, wanted.ids)
    opened.close()


def test_rows_acknowledged_by_the_embedded_file_survive_a_kill(tmp_path: Path) -> None:
    """And another process that wants the file meanwhile is told who is in the way."""
    script = """
import sys, time, numpy as np
from pathlib import Path
from reperio.indexes import MilvusIndex
index = MilvusIndex(sys.argv[1])
index.save(Path(sys.argv[2]))
index.add(np.arange(50), np.eye(50, 8, dtype=np.float32) + 1)
print("ready", flush=True)
time.sleep(60)
"""
    path, saved = str(tmp_path / "rows.db"), tmp_path / "saved"
    with subprocess.Popen([sys.executable, "-c", script, path, str(saved)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(ServerUnavailable, match="other process"):
            MilvusIndex.open(saved)
        child.send_signal(signal.SIGKILL)
    opened = MilvusIndex.open(saved)
    assert opened.ids.tolist() == list(range(50))
    assert opened.search(np.ones((1, 8)), 3).ids.tolist() != [[-1] * 3]
    opened.close()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        MilvusIndex(str(tmp_path / "nowhere" / "rows.db")).add(KEYS[:1], ROWS[:1])


# Servers that misbehave


@contextmanager
def serving(servicer: Any) -> Generator[str]:
    """A server of Milvus's protocol that does what it is told."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop(0)


class Refusing(milvus_pb2_grpc.MilvusServiceServicer):
    def Connect(self, request: Any, context: Any) -> None:  # noqa: N802
        context.abort(grpc.StatusCode.UNAUTHENTICATED, f"auth check failure, {SECRET} is wrong")


class Slow(milvus_pb2_grpc.MilvusServiceServicer):
    def Connect(self, request: Any, context: Any) -> Any:  # noqa: N802
        return milvus_pb2.ConnectResponse(status=common_pb2.Status(code=0))

    def GetVersion(self, request: Any, context: Any) -> Any:  # noqa: N802
        return milvus_pb2.GetVersionResponse(status=common_pb2.Status(code=0), version="2.6.0")

    def __getattribute__(self, name: str) -> Any:
        slow = name in ("DescribeCollection", "HasCollection", "CreateCollection")
        return _late if slow else super().__getattribute__(name)


def _late(_request: Any, _context: Any) -> Any:
    time.sleep(3)
    return common_pb2.Status()


def test_a_server_that_is_not_there_is_an_error_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, SECRET)
    start = time.monotonic()
    with socket.socket() as silent:  # it listens, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for port in (1, silent.getsockname()[1]):
            _fails(lambda port=port: MilvusIndex(f"http://127.0.0.1:{port}", timeout=0.5).add(KEYS[:1], ROWS[:1]), "")
    assert time.monotonic() - start < 10


def test_wrong_credentials_are_told_without_showing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, SECRET)
    with serving(Refusing()) as uri:
        _fails(lambda: MilvusIndex(uri, timeout=2).add(KEYS[:1], ROWS[:1]), TOKEN)


def test_a_server_that_takes_too_long_is_given_up() -> None:
    with serving(Slow()) as uri:
        _fails(lambda: MilvusIndex(uri, timeout=0.5).add(KEYS[:1], ROWS[:1]), "0.5 s")


def test_a_server_that_goes_away_is_an_error_and_its_return_is_enough(tmp_path: Path) -> None:
    path = str(tmp_path / "rows.db")
    index = MilvusIndex(path, timeout=2)
    index.add(KEYS[:50], ROWS[:50])
    from milvus_lite.server_manager import server_manager_instance

    server_manager_instance.release_server(path)
    _fails(lambda: index.search(QUERIES, 3), "")
    _fails(lambda: index.add(KEYS[:50], ROWS[:50]), "")
    index.close()
    assert index.search(ROWS[:1], 1).ids.tolist() == [[0]]
    index.close()


def test_no_address_holds_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, SECRET)
    for uri in (f"http://{SECRET}@host:1", "http://host:1?token=hunter2"):
        with pytest.raises(ConfigurationError) as error:
            MilvusIndex(uri)
        assert "hunter2" not in str(error.value)
    index = MilvusIndex("http://host:1")
    for text in (repr(index), index.address, str(dict(index.spec))):
        assert "hunter2" not in text


def test_what_milvus_refuses_is_told_in_its_words(uri: str) -> None:
    index = MilvusIndex(uri)
    with pytest.raises(StorageError, match="dim"):
        index._at(index._name).create(_state(index, 0))


def _state(index: MilvusIndex, dim: int) -> Any:
    from reperio.indexes.tables import State

    return State("token", index._layout, dim)


def _fails(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ServerUnavailable) as error:
        call()
    assert text in str(error.value)
    shown = f"{error.value} {error.value.__cause__} {error.value.fix}"
    assert "hunter2" not in shown
    assert "Traceback" not in shown


def test_a_process_that_was_forked_off_has_its_own_connection(uri: str) -> None:
    from reperio.indexes.milvus_table import _clients

    MilvusIndex(uri).add(KEYS[:1], ROWS[:1])
    assert {place[2] for place in _clients._open} == {os.getpid()}
