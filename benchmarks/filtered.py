"""Search among 1 %, 10 % and 50 % of 100,000 × 128 rows: recall and time, against no filter and an exact scan.

HNSW and IVF are tuned to recall 0.99 without a filter, by 1,000 other queries. The exact scan is FAISS's own over
the rows that pass.
Vectors are generated around 500 centres on a curved sheet of 24 dimensions: harder than those of texts to search
by lists, easier by a graph. Times are of one query alone, and of one in a batch of 200; CPU time beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import faiss
import numpy as np

from benchmarks.measuring import in_turns, spread, table
from reperio.embeddings import Dense
from reperio.indexes import FaissIndex
from reperio.indexes.autotune import autotune

ROWS, DIM, QUERIES, K = 100_000, 128, 200, 10
FACTORIES = {"Flat": None, "HNSW32": 0.99, "IVF512,Flat": 0.99}
SHARES = (0.01, 0.1, 0.5)


def sheet(rows: int, dim: int, *, seed: int = 0) -> Dense:
    """Unit vectors of low intrinsic dimension around many centres, as those of texts are."""
    rng = np.random.default_rng(seed)
    ways = rng.standard_normal((24, dim)) / np.sqrt(24)
    centres = rng.standard_normal((500, 24))
    places = centres[rng.integers(0, 500, rows)] + 0.6 * rng.standard_normal((rows, 24))
    out = np.tanh(places @ ways) + 0.15 * rng.standard_normal((rows, dim))
    return np.ascontiguousarray(out / np.linalg.norm(out, axis=1, keepdims=True), dtype=np.float32)


def run() -> dict[str, Any]:
    vectors = sheet(ROWS + 1000 + QUERIES, DIM)
    rows, tuning, queries = vectors[:ROWS], vectors[ROWS:-QUERIES], vectors[-QUERIES:]
    bare = faiss.IndexFlatIP(DIM)
    bare.add(rows)
    out: dict[str, Any] = {}
    lines: list[Mapping[str, Any]] = []
    for factory, recall in FACTORIES.items():
        index = FaissIndex(factory)
        index.add(np.arange(ROWS), rows)
        if recall is not None:
            autotune(index, tuning, recall=recall)
        for count in (1, QUERIES):
            for share in SHARES:
                measured = _compare(index, bare, queries, share=share, count=count)
                out[f"{factory}, {share:.0%}, batch of {count}"] = measured
                lines.append({"index": factory, "passing": f"{share:.0%}", "batch": count, **_line(measured)})
    table(lines)
    return out


def _compare(index: FaissIndex, bare: Any, queries: Dense, *, share: float, count: int) -> dict[str, Any]:
    allowed = np.sort(np.random.default_rng(1).choice(ROWS, int(share * ROWS), replace=False))
    selector = faiss.SearchParameters(sel=faiss.IDSelectorArray(allowed))
    parts = [queries[i : i + count] for i in range(0, QUERIES, count)]
    wanted = bare.search(queries, K, params=selector)[1]
    found = np.concatenate([index.search(part, K, allowed=allowed).ids for part in parts])
    free = np.concatenate([index.search(part, K).ids for part in parts])
    ways = {
        "unfiltered": lambda: [index.search(part, K) for part in parts],
        "filtered": lambda: [index.search(part, K, allowed=allowed) for part in parts],
        "exact scan": lambda: [bare.search(part, K, params=selector) for part in parts],
    }
    wall = in_turns(ways, repeats=5)
    return {
        "recall": _recall(found, wanted),
        "recall unfiltered": _recall(free, bare.search(queries, K)[1]),
        "milliseconds": {name: spread([s / QUERIES * 1e3 for s in times]) for name, times in wall.items()},
        "cpu milliseconds": {name: _cpu(work) / QUERIES * 1e3 for name, work in ways.items()},
    }


def _recall(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean([np.isin(w, f).mean() for w, f in zip(wanted, found, strict=True)]))


def _cpu(work: Callable[[], object]) -> float:
    times: list[float] = []
    for _ in range(5):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return sorted(times)[2]


def _line(measured: Mapping[str, Any]) -> dict[str, Any]:
    wall, cpu = measured["milliseconds"], measured["cpu milliseconds"]
    bound = min(2 * wall["unfiltered"]["median"], wall["exact scan"]["median"])
    return {
        "recall": measured["recall"],
        "unfiltered": measured["recall unfiltered"],
        **{f"{name} ms": wall[name]["median"] for name in wall},
        "cpu ms": " ".join(f"{cpu[name]:.3g}" for name in cpu),
        "of bound": wall["filtered"]["median"] / bound,
    }
