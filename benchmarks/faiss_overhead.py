"""`FaissIndex.search` against the same FAISS index called bare: what keys, checks and the contract cost.

Flat holds 50k × 384; HNSW and IVF, whose searches are short, hold 20k × 64. Both sides search with equal settings.
Processor time of all cores beside the clock. About a minute on two cores.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from benchmarks.measuring import both, paired, spread, table
from reperio.indexes import FaissIndex
from reperio.testing.index import clustered

QUERIES, K = 500, 10
CASES = [("Flat", 50_000, 384), ("HNSW32", 20_000, 64), ("IVF128,Flat", 20_000, 64)]


def run() -> dict[str, Any]:
    out: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for factory, n, dim in CASES:
        bare, index, queries = _pair(factory, n, dim)
        for metric, searched in index.items():
            for count, calls in ((QUERIES, 1), (1, 30)):
                asked = [queries[i : i + count] for i in range(calls)]
                times, cores = both(
                    {
                        "bare": lambda bare=bare, asked=asked: [bare.search(part, K) for part in asked],
                        "FaissIndex": lambda searched=searched, asked=asked: [searched.search(p, K) for p in asked],
                    },
                    repeats=11,
                    per=calls,
                )
                name = f"{factory} {n} x {dim}, {metric}, batch of {count}"
                out[name] = _report(times, cores)
                rows.append(
                    {
                        "search": name,
                        "bare ms": out[name]["bare milliseconds"]["median"],
                        "ratio": out[name]["ratio to bare"]["median"],
                        "ratio min..max": "{min:.3f}..{max:.3f}".format(**out[name]["ratio to bare"]),
                        "of fastest": out[name]["ratio of the fastest"],
                        "cpu ratio": out[name]["ratio to bare, cpu"]["median"],
                        "added us": out[name]["added microseconds"]["median"],
                        "cpu added us": out[name]["added microseconds, cpu"]["median"],
                    }
                )
    table(rows)
    return out


def _pair(factory: str, n: int, dim: int) -> tuple[Any, dict[str, FaissIndex], np.ndarray]:
    """A bare index, ours by metric, and queries; all of unit vectors, so that product and cosine agree."""
    vectors = clustered(n + QUERIES, dim)
    rows, queries = vectors[:n], vectors[n:]
    options = {"HNSW32": {"efSearch": 64}, "IVF128,Flat": {"nprobe": 11}}.get(factory)
    ours = {metric: FaissIndex(factory, metric=metric, options=options) for metric in ("ip", "cosine")}
    for index in ours.values():
        index.add(np.arange(n), rows)
    bare = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    if not bare.is_trained:
        bare.train(rows)
    bare.add(rows)
    for name, value in (options or {}).items():
        faiss.ParameterSpace().set_index_parameter(bare, name, value)
    _, wanted = bare.search(queries[:50], K)
    share = np.mean([np.isin(a, b).mean() for a, b in zip(wanted, ours["ip"].search(queries[:50], K).ids, strict=True)])
    assert share > (0.999 if factory == "Flat" else 0.95), "the two do not search the same"
    return bare, ours, queries


def _report(times: dict[str, list[float]], cores: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "bare milliseconds": spread(times["bare"]),
        "ratio to bare": paired(times["FaissIndex"], times["bare"]),
        "ratio to bare, cpu": paired(cores["FaissIndex"], cores["bare"]),
        "ratio of the fastest": min(times["FaissIndex"]) / min(times["bare"]),
        "added microseconds": _added(times),
        "added microseconds, cpu": _added(cores),
    }


def _added(times: dict[str, list[float]]) -> dict[str, float]:
    return spread([(a - b) * 1e3 for a, b in zip(times["FaissIndex"], times["bare"], strict=True)])
