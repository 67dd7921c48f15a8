"""What is Qdrant's own: its settings, the calls that reach a server, and a server that does not do as it should."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from reperio.embeddings import Sparse, take
from reperio.errors import (
    ConfigurationError,
    NotFound,
    ServerUnavailable,
    ShapeError,
    StorageError,
    UnsupportedOperation,
)
from reperio.indexes import QdrantIndex
from reperio.indexes.qdrant_table import API_KEY, QdrantTable
from reperio.testing.index import clustered

pytestmark = [
    pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact"),
]

ROWS, KEYS = clustered(50, 8), np.arange(50)
SECRET = "hunter2"


class Answers(BaseHTTPRequestHandler):
    """Answers every request alike, and keeps what was asked."""

    status = 200
    body: Any = None
    wait = 0.0
    asked: list[tuple[str, str, Any]]

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        sent = json.loads(self.rfile.read(length) or b"null")
        self.asked.append((self.command, self.path, sent))
        time.sleep(self.wait)
        data = json.dumps(self.body(self.command, self.path) if callable(self.body) else self.body).encode()
        with suppress(BrokenPipeError):  # who asked may have given up
            self.send_response(self.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002


@contextmanager
def serving(kind: type[Answers] = Answers, **behaviour: Any) -> Generator[tuple[str, list[tuple[str, str, Any]]]]:
    asked: list[tuple[str, str, Any]] = []
    static = {name: staticmethod(value) if callable(value) else value for name, value in behaviour.items()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (kind,), {**static, "asked": asked}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    yield url, asked
    QdrantIndex(url).close()
    server.shutdown()
    server.server_close()
    thread.join()


def fails(call: Callable[[], object], text: str, kind: type[Exception] = ServerUnavailable) -> None:
    with pytest.raises(kind) as error:
        call()
    assert text in str(error.value)
    assert SECRET not in f"{error.value} {error.value.__cause__}"


def add(url: str, timeout: int = 1) -> Callable[[], None]:
    return lambda: QdrantIndex(url, timeout=timeout).add(KEYS, ROWS)


def test_a_server_that_is_not_there_is_an_error_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY, SECRET)
    start = time.monotonic()
    fails(add("http://127.0.0.1:1"), "cannot be reached")
    with socket.socket() as silent:  # it listens, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        fails(add(f"http://127.0.0.1:{silent.getsockname()[1]}"), "1 s")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (401, API_KEY, ServerUnavailable),
        (403, API_KEY, ServerUnavailable),
        (404, "gone", NotFound),
        (429, "429", ServerUnavailable),
        (500, "500", ServerUnavailable),
        (400, "refused", StorageError),
    ],
)
def test_what_a_server_answers_is_told_without_the_key(
    monkeypatch: pytest.MonkeyPatch, status: int, text: str, kind: type[Exception]
) -> None:
    monkeypatch.setenv(API_KEY, SECRET)
    with serving(status=status, body={"status": {"error": f"not with the key {SECRET}"}}) as (url, _):
        fails(add(url), text, kind)


def test_a_server_that_takes_too_long_is_given_up() -> None:
    with serving(body={}, wait=2.5) as (url, _):
        fails(add(url), "1 s")


def test_an_answer_that_is_no_answer_is_an_error() -> None:
    with serving(body=["what", "is", "this"]) as (url, _):
        fails(add(url), "no answer of Qdrant's", StorageError)


def test_a_server_too_old_to_keep_metadata_is_refused() -> None:
    with serving(body=_old_server) as (url, asked):
        fails(add(url, timeout=5), "1.16", UnsupportedOperation)
        assert asked[-1][0] == "DELETE"


def _old_server(command: str, path: str) -> Any:
    """A Qdrant of before version 1.16, as far as it is asked."""
    if command in ("PUT", "DELETE"):
        result: Any = True
    elif path.endswith("/exists"):
        result = {"exists": True}
    else:
        params = {"vectors": {"vector": {"size": 8, "distance": "Dot"}}}
        rest = {
            "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
            "optimizer_config": {
                "deleted_threshold": 0.2,
                "vacuum_min_vector_number": 1000,
                "default_segment_number": 0,
                "flush_interval_sec": 5,
            },
        }
        config = {"params": params, **rest}
        result = {"status": "green", "optimizer_status": "ok", "segments_count": 1, "config": config}
        result["payload_schema"] = {}
    return {"result": result, "status": "ok", "time": 0.0}


class Engine(Answers):
    """The client's memory mode behind HTTP: what a server would be asked, it is asked."""

    def _answer(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"null")
        path = self.path.partition("?")[0]
        self.asked.append((self.command, path, sent))
        _, _, name, *rest = path.split("/")
        found = self._found(name, "/".join([self.command, *rest]), sent or {})
        plain = found.model_dump(mode="json") if hasattr(found, "model_dump") else found
        data = json.dumps({"result": plain, "status": "ok", "time": 0.0}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815

    def _found(self, name: str, call: str, sent: Any) -> Any:
        memory: QdrantClient = type(self).memory  # type: ignore[attr-defined]
        if call == "GET/exists":
            return {"exists": memory.collection_exists(name)}
        if call == "GET":
            return memory.get_collection(name)
        if call == "PUT":
            kept = models.CreateCollection(**sent)
            settings = {"sparse_vectors_config": kept.sparse_vectors, "metadata": kept.metadata}
            return memory.create_collection(name, vectors_config=kept.vectors or {}, **settings)
        if call == "PATCH":
            return memory.update_collection(name, metadata=sent["metadata"])
        if call == "DELETE":
            return memory.delete_collection(name)
        if call == "PUT/points":
            return memory.upsert(name, models.PointsBatch(**sent).batch)
        if call == "POST/points/delete":
            return memory.delete(name, models.PointIdsList(**sent))
        if call == "POST/points/count":
            return memory.count(name, count_filter=models.CountRequest(**sent).filter)
        if call == "POST/points":
            wanted = models.PointRequest(**sent)
            points = memory.retrieve(name, wanted.ids, with_payload=False, with_vectors=wanted.with_vector or False)
            return [point.model_dump(mode="json") for point in points]
        if call == "POST/points/scroll":
            page = models.ScrollRequest(**sent)
            points, after = memory.scroll(name, limit=page.limit or 10, offset=page.offset, with_payload=False)
            return {"points": [point.model_dump(mode="json") for point in points], "next_page_offset": after}
        assert call == "POST/points/query/batch"
        results = memory.query_batch_points(name, models.QueryRequestBatch(**sent).searches)
        return [result.model_dump(mode="json") for result in results]


def test_every_call_passes_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very requests that a server gets, read as its own models read them: each field is known, of its type."""
    monkeypatch.setattr("reperio.indexes.qdrant_table._PAGE", 20)
    for vectors, rows in (("float32", ROWS), ("sparse", Sparse(KEYS, KEYS[:-1], ROWS[:49, 0] ** 2, 60))):
        keys = KEYS[: len(rows)]
        with serving(kind=Engine, memory=QdrantClient(":memory:")) as (url, asked):
            index, exact = QdrantIndex(url, vectors=vectors), QdrantIndex(":memory:", vectors=vectors)
            for one in (index, exact):
                one.add(keys, rows)
                assert one.remove(keys[::5]) == 10
            index.save(tmp_path / vectors)
            index.add(keys[:1], take(rows, keys[:1]))
            exact.add(keys[:1], take(rows, keys[:1]))
            opened = QdrantIndex.open(tmp_path / vectors)
            np.testing.assert_array_equal(opened.ids, exact.ids)
            for allowed in (None, keys[:3], keys[3:]):
                found, wanted = (one.search(rows, 4, allowed=allowed) for one in (opened, exact))
                np.testing.assert_array_equal(found.ids, wanted.ids)
                np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
            pairs = np.tile(keys, (len(rows), 1))
            np.testing.assert_allclose(opened.score(rows, pairs), exact.score(rows, pairs), atol=1e-6)
            opened.drop()
            assert asked[-1][0] == "DELETE"


def test_a_server_gets_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph, the type and the quantisation, which memory mode does not show."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(QdrantTable, "_do", lambda self, method, /, **named: asked.update({method: named}))
    monkeypatch.setattr(QdrantTable, "state", lambda self: object() if "create_collection" in asked else None)
    index = QdrantIndex("http://host:1", vectors="float16", metric="l2", hnsw={"m": 8}, quantization="scalar")
    index.add(KEYS, ROWS)
    field = asked["create_collection"]["vectors_config"]["vector"]
    assert (field.size, field.distance, field.datatype) == (8, models.Distance.EUCLID, models.Datatype.FLOAT16)
    assert field.hnsw_config.m == 8
    assert field.quantization_config.scalar.type == models.ScalarType.INT8
    assert asked["upsert"]["wait"] is True
    assert not index.lossless
    assert QdrantIndex("http://host:1").lossless


def test_a_search_of_a_server_passes_its_options_and_filter_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def answer(self: QdrantTable, method: str, /, **named: Any) -> Any:
        asked.append((method, named))
        return [SimpleNamespace(points=[]) for _ in named["requests"]]

    monkeypatch.setattr(QdrantTable, "_do", answer)
    table = QdrantIndex("http://host:1", options={"hnsw_ef": 50})._at("t")
    table.nearest(ROWS[:2], 3, only=KEYS[:4], but=None, options={"hnsw_ef": 50, "exact": 1})
    ((method, named),) = asked
    assert method == "query_batch_points"
    request = named["requests"][0]
    assert (request.limit, request.params.hnsw_ef, request.params.exact) == (3, 50, True)
    assert request.filter.must[0].has_id == [0, 1, 2, 3]


def test_a_long_batch_is_sent_in_parts_that_a_server_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    bare = QdrantTable._do

    def count(self: QdrantTable, method: str, /, **named: Any) -> Any:
        if method == "upsert":
            sizes.append(len(named["points"].ids))
        return bare(self, method, **named)

    monkeypatch.setattr(QdrantTable, "_do", count)
    monkeypatch.setattr("reperio.indexes.qdrant_table._MESSAGE", 20 * 8 * 22)
    index = QdrantIndex(":memory:")
    index.add(KEYS, ROWS)
    assert sizes == [20, 20, 10]
    assert index.search(ROWS, 1).ids[:, 0].tolist() == KEYS.tolist()


def test_settling_waits_for_the_graph_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(["yellow", "yellow", "green"])
    bare = QdrantTable._do

    def busy(self: QdrantTable, method: str, /, **named: Any) -> Any:
        found = bare(self, method, **named)
        if method == "get_collection":
            found.status = models.CollectionStatus(next(states))
        return found

    index = QdrantIndex(":memory:")
    index.add(KEYS, ROWS)
    monkeypatch.setattr(QdrantTable, "_do", busy)
    index.settle()
    assert next(states, None) is None


def test_no_address_holds_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY, SECRET)
    for url in (f"http://me:{SECRET}@host:1", f"http://host:1?api_key={SECRET}", "host:6333", "rows.db"):
        with pytest.raises(ConfigurationError) as error:
            QdrantIndex(url)
        assert SECRET not in str(error.value)
    index = QdrantIndex("http://host:1")
    for text in (repr(index), index.address, str(dict(index.spec))):
        assert SECRET not in text


def test_settings_that_qdrant_does_not_have_are_refused() -> None:
    for wrong in (
        {"quantization": "product"},
        {"options": {"hnsw_ef": -1}},
        {"vectors": "sparse", "quantization": "binary"},
        {"vectors": "sparse", "options": {"hnsw_ef": 5}},
    ):
        with pytest.raises(ConfigurationError):
            QdrantIndex(":memory:", **wrong)
    with pytest.raises(ShapeError, match="65536"):
        QdrantIndex(":memory:").check(np.ones((1, 70_000), dtype=np.float32))


def test_the_last_column_that_fits_is_found() -> None:
    last = 2**32 - 2
    index = QdrantIndex(":memory:", vectors="sparse")
    rows = Sparse(np.array([0, 1]), np.array([last]), np.array([2], dtype=np.float32), last + 1)
    index.add(np.array([5]), rows)
    assert index.search(rows, 1).scores.tolist() == [[4.0]]
    with pytest.raises(ShapeError):
        QdrantIndex(":memory:", vectors="sparse").check(Sparse(rows.indptr, rows.indices, rows.weights, last + 2))


def test_closing_keeps_what_is_in_memory(tmp_path: Path) -> None:
    index = QdrantIndex(":memory:")
    index.add(KEYS, ROWS)
    index.save(tmp_path / "saved")
    index.close()
    assert len(QdrantIndex.open(tmp_path / "saved")) == len(KEYS)
