"""Search among 1 %, 10 % and 50 % of 100,000 × 128 rows: recall and time, against no filter and an exact scan.

Graphs and lists are tuned to recall 0.99 without a filter, by 1,000 other queries; usearch and hnswlib keep 128
candidates. The exact scan is FAISS's own over the rows that pass, given their ids with each search, as every index
is (``exact scan``), or with its selector made before (``ready scan``). A filter is asked for again and again.
Vectors are generated around 500 centres on a curved sheet of 24 dimensions: harder than those of texts to search
by lists, easier by a graph. Times are of one query alone, and of one in a batch of 200; processor time of all cores
beside them. About 4 minutes on two cores, most of it to build the graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import faiss
import numpy as np

from benchmarks.measuring import both, paired, spread, table
from reperio.embeddings import Dense
from reperio.indexes import FaissIndex, HnswlibIndex, UsearchIndex
from reperio.indexes.autotune import autotune

ROWS, DIM, QUERIES, K = 100_000, 128, 200, 10
MAKERS: dict[str, Callable[[], Any]] = {
    "Flat": FaissIndex,
    "HNSW32": lambda: FaissIndex("HNSW32"),
    "IVF512,Flat": lambda: FaissIndex("IVF512,Flat"),
    "IVF512,PQ32x4fs,RFlat": lambda: FaissIndex("IVF512,PQ32x4fs,RFlat"),
    "usearch": lambda: UsearchIndex(expansion_search=128),
    "usearch bf16": lambda: UsearchIndex(dtype="bf16", expansion_search=128),
    "hnswlib": lambda: HnswlibIndex(ef=128),
}
RECALL = 0.99
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
    for name, make in MAKERS.items():
        index = make()
        index.add(np.arange(ROWS), rows)
        if isinstance(index, FaissIndex) and index.widest:
            autotune(index, tuning, recall=RECALL)
        for count in (1, QUERIES):
            for share in SHARES:
                measured = _compare(index, bare, queries, share=share, count=count)
                out[f"{name}, {share:.0%}, batch of {count}"] = measured
                lines.append({"index": name, "passing": f"{share:.0%}", "batch": count, **_line(measured)})
    table(lines)
    return out


def _compare(index: Any, bare: Any, queries: Dense, *, share: float, count: int) -> dict[str, Any]:
    allowed = np.sort(np.random.default_rng(1).choice(ROWS, int(share * ROWS), replace=False))
    ready = faiss.SearchParameters(sel=faiss.IDSelectorArray(allowed))
    parts = [queries[i : i + count] for i in range(0, QUERIES, count)]
    wanted = bare.search(queries, K, params=ready)[1]
    found = np.concatenate([index.search(part, K, allowed=allowed).ids for part in parts])
    free = np.concatenate([index.search(part, K).ids for part in parts])

    def scan(part: Dense) -> object:
        return bare.search(part, K, params=faiss.SearchParameters(sel=faiss.IDSelectorArray(allowed)))

    ways: dict[str, Callable[[], object]] = {
        "unfiltered": lambda: [index.search(part, K) for part in parts],
        "filtered": lambda: [index.search(part, K, allowed=allowed) for part in parts],
        "exact scan": lambda: [scan(part) for part in parts],
        "ready scan": lambda: [bare.search(part, K, params=ready) for part in parts],
    }
    wall, cpu = both(ways, repeats=5, per=QUERIES)
    return {
        "recall": _recall(found, wanted),
        "recall unfiltered": _recall(free, bare.search(queries, K)[1]),
        "milliseconds": {name: spread(times) for name, times in wall.items()},
        "cpu milliseconds": {name: spread(times) for name, times in cpu.items()},
        "of bound": _of_bound(wall),
        "of bound, cpu": _of_bound(cpu),
    }


def _recall(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean([np.isin(w, f).mean() for w, f in zip(wanted, found, strict=True)]))


def _of_bound(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Filtered search as a share of what it may take: twice no filter, or the scan, whichever is lower; by round."""
    bound = [min(2 * free, scan) for free, scan in zip(times["unfiltered"], times["exact scan"], strict=True)]
    return paired(times["filtered"], bound)


def _line(measured: Mapping[str, Any]) -> dict[str, Any]:
    wall, cpu = measured["milliseconds"], measured["cpu milliseconds"]
    return {
        "recall": measured["recall"],
        "unfiltered": measured["recall unfiltered"],
        **{f"{name} ms": wall[name]["median"] for name in wall},
        "cpu ms": " ".join(f"{cpu[name]['median']:.3g}" for name in cpu),
        "of bound": measured["of bound"]["median"],
        "cpu of bound": measured["of bound, cpu"]["median"],
    }
