"""A collection of Milvus, through its client.

Shapes: q queries, n rows, d dimensions, k results.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from reperio.embeddings import Ids, Sparse
from reperio.errors import ConfigurationError, NotFound, ReperioError, ServerUnavailable, StorageError
from reperio.extras import load
from reperio.indexes.abandoned import wait
from reperio.indexes.tables import State
from reperio.types import Neighbors

__all__ = ["EMPTY", "TOKEN", "MilvusTable", "disconnect", "read_uri"]

TOKEN = "MILVUS_TOKEN"
"""Environment variable: ``user:password``, or an API key."""

EMPTY = 2**32 - 2
"""Column of a row that has none: Milvus takes no empty rows."""

_PROPERTY = "reperio"
"""Property of the collection that keeps its `State`."""

_QUERIES = 256
_SCORES = 1 << 20
"""Results in one answer."""

_LONGER = 20
"""How many times the time-out sealing and loading may take."""

_CONNECTING = 10.0
"""Seconds that a connection may take."""

_NO_COLLECTION, _NOT_LOADED, _UNREACHABLE = 100, 101, 2


def read_uri(uri: str) -> bool:
    """Whether ``uri`` names an embedded file; an error if it is none that Milvus knows, or holds a password."""
    parts = urlsplit(uri)
    if "@" in parts.netloc or "token" in parts.query or "password" in parts.query:
        problem = "The uri holds a user or a password."
        raise ConfigurationError(problem, f"Set the environment variable {TOKEN} to user:password instead.")
    if parts.scheme in ("http", "https", "tcp", "unix"):
        return False
    if uri.endswith(".db"):
        return True
    raise ConfigurationError(f"uri is {uri!r}.", "Give http://host:19530/database, or a file that ends with .db.")


class MilvusTable:
    """One collection, with a key ``id`` and a field ``vector``.

    Parameters
    ----------
    uri, name
        The server or embedded file, and the collection's name.
    vectors
        ``"float32"``, ``"float16"`` or ``"sparse"``.
    metric, index_type, params
        As Milvus knows them.
    timeout
        Seconds that an answer may take.
    """

    deepest = 16384
    listed = 10_000

    def __init__(
        self,
        uri: str,
        name: str,
        *,
        vectors: str,
        metric: str,
        index_type: str,
        params: Mapping[str, Any],
        timeout: float,
    ) -> None:
        self.address = f"{uri.rstrip('/')}/{name}"
        self._uri, self._name, self._timeout = uri, name, timeout
        self._vectors, self._metric = vectors, metric
        self._index = {"index_type": index_type, "metric_type": metric, "params": dict(params)}
        self._embedded = read_uri(uri)
        self.filters_well = not self._embedded or index_type in ("FLAT", "SPARSE_INVERTED_INDEX")

    # The table

    def state(self) -> State | None:
        if not self._do("has_collection"):
            return None
        found = self._do("describe_collection")
        text = found.get("properties", {}).get(_PROPERTY)
        fields: dict[str, Any] = {field["name"]: field for field in found["fields"]}
        if text is None or "vector" not in fields:
            return None
        state = State(**json.loads(text))
        kind = load("pymilvus", extra="milvus").DataType(fields["vector"]["type"]).name
        if kind != self._kind or (self._vectors != "sparse" and fields["vector"]["params"].get("dim") != state.dim):
            return None  # the name is the same, but not the rows
        return state

    @property
    def _kind(self) -> str:
        return {"float32": "FLOAT_VECTOR", "float16": "FLOAT16_VECTOR", "sparse": "SPARSE_FLOAT_VECTOR"}[self._vectors]

    def create(self, state: State, /) -> None:
        pymilvus = load("pymilvus", extra="milvus")
        schema = pymilvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", pymilvus.DataType.INT64, is_primary=True)
        dim = {} if self._vectors == "sparse" else {"dim": state.dim}
        schema.add_field("vector", pymilvus.DataType[self._kind], **dim)
        index = pymilvus.MilvusClient.prepare_index_params()
        index.add_index("vector", **self._index)
        self._do("create_collection", schema=schema, properties=_properties(state), consistency_level="Strong")
        self._do("create_index", index, sync=False)  # no row has come yet: there is nothing to wait for
        self._load()

    def mark(self, state: State, /) -> None:
        self._do("alter_collection_properties", _properties(state))

    def drop(self) -> None:
        self._do("drop_collection")

    def abandon(self) -> None:
        if _clients.connected(self._uri):
            with suppress(ReperioError):
                self.drop()

    def settle(self) -> None:
        if self._embedded:
            # Released, it builds no index behind our back that would be read half-written when it is loaded.
            self._do("release_collection")
        self._do("flush", longer=True)
        self._load()

    def _load(self) -> None:
        for attempt in range(5):
            try:
                self._do("load_collection", longer=True)
            except StorageError:
                # The embedded file's compaction may be writing the very index that it is asked to read.
                if not self._embedded or attempt == 4:
                    raise
                time.sleep(0.1 * 2**attempt)
            else:
                return

    # Rows

    def count(self, among: Ids | None = None, /) -> int:
        return int(self._query(among, ["count(*)"])[0]["count(*)"])

    def keys(self, among: Ids | None = None, /) -> Ids:
        if among is not None:
            return _keys(self._query(among, ["id"]))
        settings: dict[str, Any] = {"batch_size": self.deepest, "filter": "id >= 0", "output_fields": ["id"]}
        pages = list[Ids]()
        with _errors(self.address, self._timeout):
            rows = self._do("query_iterator", **settings, consistency_level="Strong")
            try:
                while page := rows.next():
                    pages.append(_keys(page))
            finally:
                rows.close()
        return np.concatenate([*pages, np.empty(0, dtype=np.int64)])

    def _query(self, among: Ids | None, fields: list[str]) -> list[dict[str, Any]]:
        settings: dict[str, Any] = {"consistency_level": "Strong", "strict_float32": True}  # arrays, not lists
        rows: list[dict[str, Any]] = self._do("query", **self._filter(among, None), output_fields=fields, **settings)
        return rows

    def _filter(self, only: Ids | None, but: Ids | None) -> dict[str, Any]:
        """An expression over keys. A server reads long lists beside it; the embedded file, written out, only."""
        parts, lists = list[str](), dict[str, list[int]]()
        for name, word, ids in (("only", "in", only), ("but", "not in", but)):
            if ids is not None:
                lists[name] = ids.tolist()
                parts.append(f"id {word} {lists[name]}" if self._embedded else f"id {word} {{{name}}}")
        expression = {"filter": " and ".join(parts)}
        return expression if self._embedded else {**expression, "filter_params": lists}

    def upsert(self, ids: Ids, embeddings: Any, /, *, fresh: bool) -> None:
        packed = zip(ids.tolist(), self._packed(embeddings), strict=True)
        self._do("insert" if fresh else "upsert", [{"id": key, "vector": row} for key, row in packed])

    def _packed(self, embeddings: Any) -> list[Any]:
        if not isinstance(embeddings, Sparse):
            return list(embeddings.astype(np.float16) if self._vectors == "float16" else embeddings)
        rows = (embeddings.row(i) for i in range(len(embeddings)))
        return [dict(zip(c.tolist(), w.tolist(), strict=True)) or {EMPTY: 1.0} for c, w in rows]

    def delete(self, ids: Ids, /) -> None:
        self._do("delete", ids=ids.tolist())

    def fetch(self, ids: Ids, /) -> tuple[Ids, Any]:
        found = self._query(ids, ["id", "vector"])
        if self._vectors == "sparse":
            return _keys(found), _sparse([row["vector"] for row in found])
        if self._vectors == "float16":
            rows = [np.frombuffer(b"".join(row["vector"]), dtype=np.float16) for row in found]
        else:
            rows = [row["vector"] for row in found]
        return _keys(found), np.array(rows, dtype=np.float32)

    def nearest(
        self, queries: Any, k: int, /, *, only: Ids | None, but: Ids | None, options: Mapping[str, int]
    ) -> Neighbors:
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        params = {
            name: max(value, 2 * k) if name in ("ef", "search_list") else value for name, value in options.items()
        }
        settings = {"metric_type": self._metric, "params": params}
        packed, step = self._packed(queries), max(1, min(_QUERIES, _SCORES // k))
        if self._embedded and self._metric == "L2":
            step = 8  # it holds the differences of all queries and rows at once
        for start in range(0, len(packed), step):
            found = self._do(
                "search",
                data=packed[start : start + step],
                anns_field="vector",
                limit=k,
                search_params=settings,
                output_fields=["id"],
                consistency_level="Strong",
                **self._filter(only, but),
            )
            for i, hits in enumerate(found, start):
                held = len(hits.ids)
                ids[i, :held], scores[i, :held] = hits.ids, hits.distances
        return Neighbors(ids, np.where(ids < 0, scores, 0 - scores) if self._metric == "L2" else scores)

    # The client

    def _do(self, method: str, /, *arguments: Any, longer: bool = False, **named: Any) -> Any:
        """Ask the client, for a limited time."""
        seconds = self._timeout * _LONGER if longer else self._timeout

        def ask() -> Any:
            client = _clients.get(self._uri, self._timeout)
            return getattr(client, method)(self._name, *arguments, timeout=seconds, **named)

        with _errors(self.address, seconds):
            try:
                return ask()
            except load("pymilvus", extra="milvus").MilvusException as error:
                if error.code != _NOT_LOADED:
                    raise
            self._load()  # after a restart, or because another thread is sealing
            return ask()


class _Clients:
    """One connection for each server and process: none outlives a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str, int], Any] = {}

    def get(self, uri: str, timeout: float) -> Any:
        token = os.environ.get(TOKEN, "")
        key = (uri, token, os.getpid())
        with self._lock:
            if key not in self._open:
                self._open[key] = _connect(uri, token, min(timeout, _CONNECTING))
            return self._open[key]

    def connected(self, uri: str) -> bool:
        return (uri, os.environ.get(TOKEN, ""), os.getpid()) in self._open

    def close(self, uri: str) -> None:
        with self._lock:
            for key in [key for key in self._open if key[0] == uri and key[2] == os.getpid()]:
                with suppress(Exception):  # the server may be gone already
                    self._open.pop(key).close()


_clients = _Clients()


def _connect(uri: str, token: str, timeout: float) -> Any:
    pymilvus = load("pymilvus", extra="milvus")
    if read_uri(uri):
        load("milvus_lite", extra="milvus")
        if not Path(uri).parent.is_dir():
            raise NotFound(f"There is no folder for the embedded file {uri}.", "Make it, or check the path.")
    return pymilvus.MilvusClient(uri, token=token, timeout=timeout)


def disconnect(uri: str) -> None:
    """Close the connection, and stop the embedded server."""
    wait(_CONNECTING)
    _clients.close(uri)
    if read_uri(uri):
        load("milvus_lite.server_manager", extra="milvus").server_manager_instance.release_server(uri)


@contextmanager
def _errors(address: str, seconds: float) -> Generator[None]:
    """Turn the client's errors into ours, without its token."""
    try:
        yield
    except ReperioError:
        raise
    except Exception as error:
        raise _told(error, address, seconds) from None


def _told(error: Exception, address: str, seconds: float) -> ReperioError:
    cause = error.__cause__ if isinstance(error.__cause__, load("grpc", extra="milvus").RpcError) else error
    code: Any = getattr(cause, "code", None)  # a number, one of gRPC's, or a method that gives one
    code = code() if callable(code) else code
    name, text = getattr(code, "name", ""), str(getattr(error, "message", None) or error)
    token = os.environ.get(TOKEN)
    if token:
        text = text.replace(token, "***")
    lower = text.lower()
    if code == _NO_COLLECTION:
        return NotFound(f"{address} is gone: someone dropped it.", "Open the collection again: it is built anew.")
    if name in ("UNAUTHENTICATED", "PERMISSION_DENIED") or "auth check" in lower or "permission" in lower:
        return ServerUnavailable(f"{address}: the server refused the user.", f"Set {TOKEN} to user:password.")
    if name == "DEADLINE_EXCEEDED" or "deadline" in lower or "timeout" in lower:
        return ServerUnavailable(f"{address} gave no answer in {seconds:g} s.", "Try again, or raise timeout.")
    if "open local milvus failed" in lower:
        problem = f"The embedded file of {address} cannot be opened."
        return ServerUnavailable(problem, "Close it in the other process that has it open, or use a server.")
    if code == _UNREACHABLE or name == "UNAVAILABLE":
        return ServerUnavailable(f"{address} cannot be reached.", "Start the server, check the uri, and try again.")
    return StorageError(f"{address}: Milvus refused: {text}.", "Nothing was lost: mend the cause and try again.")


def _properties(state: State) -> dict[str, str]:
    return {_PROPERTY: json.dumps(asdict(state))}


def _keys(rows: list[dict[str, Any]]) -> Ids:
    return np.array([row["id"] for row in rows], dtype=np.int64)


def _sparse(rows: list[dict[int, float]]) -> Sparse:
    pairs = [sorted((c, w) for c, w in row.items() if c != EMPTY) for row in rows]
    indptr = np.cumsum([0, *map(len, pairs)], dtype=np.int64)
    columns = np.array([c for row in pairs for c, _ in row], dtype=np.int64)
    return Sparse(indptr, columns, np.array([w for row in pairs for _, w in row], dtype=np.float32), EMPTY)
