"""A collection of Qdrant, through its client.

Shapes: q queries, n rows, d dimensions, k results.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from reperio.embeddings import Ids, Sparse
from reperio.errors import (
    ConfigurationError,
    NotFound,
    ReperioError,
    ServerUnavailable,
    StorageError,
    UnsupportedOperation,
)
from reperio.extras import load
from reperio.indexes.tables import State, split
from reperio.types import Neighbors

__all__ = ["API_KEY", "EMPTY", "MEMORY", "QdrantTable", "check_url", "disconnect"]

API_KEY = "QDRANT_API_KEY"
"""Environment variable."""

MEMORY = ":memory:"

EMPTY = 2**32 - 1
"""Column of a row that has none."""

_FIELD = "vector"
_PROPERTY = "reperio"
"""Metadata of the collection that keeps its `State`."""

_MESSAGE = 1 << 23
"""Bytes of JSON in one call; the server refuses 32 MB."""

_DIGITS = 22
"""Bytes of a number in JSON."""

_SCANNED = 10_000 << 10
"""Bytes of rows in a list of keys: so many the server compares one by one. Led by longer lists through its graph, it
found 0.42 of the best where they lay far from the query (100k x 96, half of the rows)."""

_PAGE = 10_000
_LONGER = 20
"""How many times the time-out `settle` waits."""


def check_url(url: str) -> None:
    """Refuse what is no address of a server, or holds a key."""
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query:
        problem = "The url holds a user, a password or a key."
        raise ConfigurationError(problem, f"Set the environment variable {API_KEY} instead.")
    if url != MEMORY and parts.scheme not in ("http", "https"):
        raise ConfigurationError(f"url is {url!r}.", f"Give http://host:6333, or {MEMORY!r}.")


class QdrantTable:
    """One collection, with one named vector.

    Parameters
    ----------
    url, name
        The server, and the collection's name.
    vectors
        ``"float32"``, ``"float16"`` or ``"sparse"``.
    distance, hnsw, quantization
        As Qdrant knows them.
    timeout
        Seconds that an answer may take.
    width
        Bytes of a row.
    """

    deepest = 1 << 16
    filters_well = True

    def __init__(
        self,
        url: str,
        name: str,
        *,
        vectors: str,
        distance: str,
        hnsw: Mapping[str, int],
        quantization: str | None,
        timeout: int,
        width: int,
    ) -> None:
        self.address = f"{url.rstrip('/')}/{name}"
        self._url, self._name, self._timeout = url, name, timeout
        self._vectors, self._distance = vectors, distance
        self._hnsw, self._quantization = hnsw, quantization
        self.listed = min(10_000, max(1000, _SCANNED // width))

    @property
    def _models(self) -> Any:
        return load("qdrant_client", extra="qdrant").models

    # The table

    def state(self) -> State | None:
        if not self._do("collection_exists"):
            return None
        config = self._do("get_collection").config
        metadata: dict[str, Any] = config.metadata or {}
        if _PROPERTY not in metadata:
            return None
        state = State(**metadata[_PROPERTY])
        fields: Any = config.params.sparse_vectors if self._vectors == "sparse" else config.params.vectors
        field = dict(fields or {}).get(_FIELD)
        fits = field is not None and (
            self._vectors == "sparse" or (field.size == state.dim and field.distance.value == self._distance)
        )
        return state if fits else None  # the name is the same, but not the rows

    def create(self, state: State, /) -> None:
        m, kept = self._models, {_PROPERTY: asdict(state)}
        if self._vectors == "sparse":
            sparse = {_FIELD: m.SparseVectorParams(index=m.SparseIndexParams(datatype=m.Datatype.FLOAT32))}
            self._do("create_collection", vectors_config={}, sparse_vectors_config=sparse, metadata=kept)
        else:
            field = m.VectorParams(
                size=state.dim,
                distance=m.Distance(self._distance),
                datatype=m.Datatype(self._vectors),
                hnsw_config=m.HnswConfigDiff(**self._hnsw) if self._hnsw else None,
                quantization_config=self._codes(),
            )
            self._do("create_collection", vectors_config={_FIELD: field}, metadata=kept)
        if self.state() is None:
            self.drop()
            problem = f"The server of {self.address} keeps no metadata with a collection."
            raise UnsupportedOperation(problem, "Use Qdrant 1.16 or later.")

    def _codes(self) -> Any:
        m = self._models
        if self._quantization == "scalar":
            return m.ScalarQuantization(scalar=m.ScalarQuantizationConfig(type=m.ScalarType.INT8))
        return m.BinaryQuantization(binary=m.BinaryQuantizationConfig()) if self._quantization else None

    def mark(self, state: State, /) -> None:
        self._do("update_collection", metadata={_PROPERTY: asdict(state)})

    def drop(self) -> None:
        self._do("delete_collection")

    def abandon(self) -> None:
        if _clients.connected(self._url, self._timeout):
            with suppress(ReperioError):
                self.drop()

    def settle(self) -> None:
        """Wait until the server has linked all rows into its graph; searches are right before, but slower."""
        end = time.monotonic() + self._timeout * _LONGER
        while self._do("get_collection").status.value in ("yellow", "grey") and time.monotonic() < end:
            time.sleep(0.2)

    # Rows

    def _among(self, only: Ids | None, but: Ids | None) -> Any:
        m = self._models
        must = None if only is None else [m.HasIdCondition(has_id=only.tolist())]
        must_not = None if but is None else [m.HasIdCondition(has_id=but.tolist())]
        return m.Filter(must=must, must_not=must_not) if must or must_not else None

    def count(self, among: Ids | None = None, /) -> int:
        return int(self._do("count", count_filter=self._among(among, None), exact=True).count)

    def keys(self, among: Ids | None = None, /) -> Ids:
        if among is not None:
            found = self._do("retrieve", ids=among.tolist(), with_payload=False, with_vectors=False)
            return np.array([point.id for point in found], dtype=np.int64)
        pages, at = list[int](), None
        while True:
            points, at = self._do("scroll", limit=_PAGE, offset=at, with_payload=False, with_vectors=False)
            pages += [point.id for point in points]
            if at is None:
                return np.array(pages, dtype=np.int64)

    def upsert(self, ids: Ids, embeddings: Any, /, *, fresh: bool) -> None:
        packed = self._packed(embeddings)
        values = 2 * len(embeddings.indices) if isinstance(embeddings, Sparse) else embeddings.size
        step = max(1, _MESSAGE * len(ids) // max(1, _DIGITS * values))
        for start in range(0, len(ids), step):
            part = slice(start, start + step)
            points = self._models.Batch(ids=ids[part].tolist(), vectors={_FIELD: packed[part]})
            self._do("upsert", points=points, wait=True)

    def _packed(self, embeddings: Any) -> list[Any]:
        if not isinstance(embeddings, Sparse):
            rows: list[Any] = embeddings.tolist()
            return rows
        pairs = (embeddings.row(i) for i in range(len(embeddings)))
        vector = self._models.SparseVector
        return [
            vector(indices=c.tolist(), values=w.tolist()) if len(c) else vector(indices=[EMPTY], values=[1.0])
            for c, w in pairs
        ]

    def delete(self, ids: Ids, /) -> None:
        self._do("delete", points_selector=self._models.PointIdsList(points=ids.tolist()), wait=True)

    def fetch(self, ids: Ids, /) -> tuple[Ids, Any]:
        found = list[Any]()
        for part in split(ids, 1000):
            found += self._do("retrieve", ids=part.tolist(), with_payload=False, with_vectors=[_FIELD])
        keys = np.array([point.id for point in found], dtype=np.int64)
        rows = [point.vector[_FIELD] for point in found]
        if self._vectors == "sparse":
            return keys, _sparse([dict(zip(row.indices, row.values, strict=True)) for row in rows])
        return keys, np.array(rows, dtype=np.float32)

    def nearest(
        self, queries: Any, k: int, /, *, only: Ids | None, but: Ids | None, options: Mapping[str, int]
    ) -> Neighbors:
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        m, among = self._models, self._among(only, but)
        params = {**options, "exact": bool(options.get("exact"))}
        settings = m.SearchParams(**params) if options and self._url != MEMORY else None  # memory is exact, and says so
        keys = sum(len(part) for part in (only, but) if part is not None)
        packed, step = self._packed(queries), max(1, _MESSAGE // (_DIGITS * (keys + 2 * k + 4096)))
        for start in range(0, len(packed), step):
            asked = [
                m.QueryRequest(query=query, using=_FIELD, limit=k, filter=among, params=settings, with_payload=False)
                for query in packed[start : start + step]
            ]
            for i, found in enumerate(self._do("query_batch_points", requests=asked), start):
                held = len(found.points)
                ids[i, :held] = [point.id for point in found.points]
                scores[i, :held] = [point.score for point in found.points]
        if self._distance == "Euclid":
            scores = np.where(ids < 0, scores, 0 - np.square(scores))
        return Neighbors(ids, scores)

    # The client

    def _do(self, method: str, /, **named: Any) -> Any:
        """Ask the client; its errors become ours, without its key."""
        try:
            return getattr(_clients.get(self._url, self._timeout), method)(self._name, **named)
        except ReperioError:
            raise
        except Exception as error:
            raise _told(error, self.address, self._timeout) from None


class _Clients:
    """One connection for each server and process: none outlives a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str, int, int], Any] = {}

    def get(self, url: str, timeout: int) -> Any:
        place = self._place(url, timeout)
        with self._lock:
            if place not in self._open:
                client = load("qdrant_client", extra="qdrant").QdrantClient
                settings = {"api_key": place[1] or None, "timeout": timeout, "check_compatibility": False}
                self._open[place] = client(MEMORY) if url == MEMORY else client(url=url, **settings)
            return self._open[place]

    @staticmethod
    def _place(url: str, timeout: int) -> tuple[str, str, int, int]:
        return (url, os.environ.get(API_KEY, ""), 0 if url == MEMORY else timeout, os.getpid())

    def connected(self, url: str, timeout: int) -> bool:
        return self._place(url, timeout) in self._open

    def close(self, url: str) -> None:
        with self._lock:
            for place in [place for place in self._open if place[0] == url != MEMORY and place[3] == os.getpid()]:
                with suppress(Exception):  # the server may be gone already
                    self._open.pop(place).close()


_clients = _Clients()


def disconnect(url: str) -> None:
    """Close the connection; what is in memory stays."""
    _clients.close(url)


def _told(error: Exception, address: str, seconds: float) -> ReperioError:
    status = getattr(error, "status_code", None)
    source = getattr(error, "source", error)
    text = str(source)
    key = os.environ.get(API_KEY)
    if key:
        text = text.replace(key, "***")
    if status == 404 or (isinstance(error, ValueError) and "not found" in text):
        return NotFound(f"{address} is gone: someone dropped it.", "Open the collection again: it is built anew.")
    if status in (401, 403):
        return ServerUnavailable(f"{address}: the server refused the key.", f"Set {API_KEY} to one that may write.")
    if status == 408 or "Timeout" in type(source).__name__:
        return ServerUnavailable(f"{address} gave no answer in {seconds:g} s.", "Try again, or raise timeout.")
    if status == 429 or (status is not None and status >= 500):
        return ServerUnavailable(f"{address}: the server answered {status}: {text}", "Try again when it is well.")
    if status is None and type(source).__module__.startswith("httpx"):
        problem = f"{address} cannot be reached: {type(source).__name__}."
        return ServerUnavailable(problem, "Start the server, check the url, and try again.")
    if source is not error:
        return StorageError(f"{address} gave no answer of Qdrant's: {text}", "Check the url and the server's version.")
    return StorageError(f"{address}: Qdrant refused: {text}", "Nothing was lost: mend the cause and try again.")


def _sparse(rows: list[dict[int, float]]) -> Sparse:
    pairs = [sorted((c, w) for c, w in row.items() if c != EMPTY) for row in rows]
    indptr = np.cumsum([0, *map(len, pairs)], dtype=np.int64)
    columns = np.array([c for row in pairs for c, _ in row], dtype=np.int64)
    return Sparse(indptr, columns, np.array([w for row in pairs for _, w in row], dtype=np.float32), EMPTY)
