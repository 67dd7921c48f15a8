"""Indexes on a server: rows taken a second and time of a search, beside `FaissIndex`; what sealing and a filter cost.

Figures of the embedded Milvus file and of the Qdrant client's memory mode, both Python in this very process: a server
is quicker. They tell what the calls around it cost, and in which order to make them.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import in_turns, spread, table
from reperio.embeddings import Dense, IdSet
from reperio.indexes import FaissIndex, MilvusIndex, QdrantIndex
from reperio.indexes.milvus_table import MilvusTable
from reperio.protocols import Index
from reperio.testing.index import clustered

N, DIM, CHUNK, BATCH, K = 20_000, 384, 4096, 100, 10
SHARES = (0.01, 0.1, 0.5)


def run() -> dict[str, Any]:
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="Local mode is not recommended")
    vectors = clustered(N + BATCH, DIM)
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder) / "rows.db")
        indexes: dict[str, Index[Dense]] = {
            "FaissIndex Flat": FaissIndex("Flat"),
            "FaissIndex HNSW32": FaissIndex("HNSW32"),
            "Milvus file FLAT": MilvusIndex(uri, index_type="FLAT"),
            "Milvus file HNSW": MilvusIndex(uri, index_type="HNSW", params={"M": 16, "efConstruction": 200}),
            "Qdrant memory": QdrantIndex(":memory:"),
        }
        taken = {name: _fill(index, vectors[:N]) for name, index in indexes.items()}
        sealing = {name: _seal(index, vectors[N:]) for name, index in indexes.items() if isinstance(index, MilvusIndex)}
        searches = _searches(indexes, vectors[N:])
        MilvusIndex(uri).close()
    rows = [{"index": name, "rows/s": taken[name], **searches[name]} for name in indexes]
    table(rows)
    print()
    table([{"sealing": name, **steps} for name, steps in sealing.items()])
    return {"rows x dimensions": f"{N} x {DIM}", "indexes": rows, "sealing": sealing}


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
        found = index.search(queries, K).ids
        out[name]["recall"] = float(np.mean([np.isin(a, b).mean() for a, b in zip(wanted, found, strict=True)]))
    _time(out, indexes, "one ms", queries[:1], None, 1)
    _time(out, indexes, "batch ms/q", queries, None, len(queries))
    for share in SHARES:
        allowed = np.sort(np.random.default_rng(0).choice(N, int(N * share), replace=False))
        _time(out, indexes, f"one, {share:.0%} ms", queries[:1], allowed, 1)
    return out


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
        if allowed is None or "Qdrant" not in name  # its memory mode tests each key of a list for every row
    }
    for name, times in in_turns(ways, repeats=5).items():
        out[name][what] = spread(times)["median"] * 1e3 / each
