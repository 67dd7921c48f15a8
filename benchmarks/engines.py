"""Graphs and codes side by side: recall, time, bytes, and what the wrapper adds to the bare engine.

Vectors are MiniLM's of real docstrings, and more that are made of them: each lies between one of those and one of its
ten nearest, so that neighbourhoods keep their shape. Questions are other docstrings, held out. The bare engine
searches the very graph of ours, with the same effort.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.measuring import in_turns, paired, spread, table
from reperio.connectors import PythonDocsSource
from reperio.encoders import DenseEncoder
from reperio.indexes import FaissIndex, FlatIndex, HnswlibIndex, QuantizedIndex, UsearchIndex
from reperio.types import Neighbors

TEXTS, CHARACTERS, QUERIES, K, EF = 4000, 160, 200, 10, 64
SIZES = (20_000, 100_000)
SHARES = (0.01, 0.1, 0.5)

MAKERS: dict[str, Callable[[], Any]] = {
    "FlatIndex": FlatIndex,
    "FaissIndex HNSW32": lambda: FaissIndex("HNSW32", options={"efSearch": EF}),
    "HnswlibIndex": lambda: HnswlibIndex(ef=EF),
    "UsearchIndex f32": lambda: UsearchIndex(expansion_search=EF),
    "UsearchIndex bf16": lambda: UsearchIndex(dtype="bf16", expansion_search=EF),
    "UsearchIndex i8": lambda: UsearchIndex(dtype="i8", expansion_search=EF),
    "QuantizedIndex float16": lambda: QuantizedIndex("float16"),
    "QuantizedIndex int8": lambda: QuantizedIndex("int8"),
    "QuantizedIndex int8, 192 dims": lambda: QuantizedIndex("int8", dims=192),
    "QuantizedIndex binary": lambda: QuantizedIndex("binary", oversample=8),
    "QuantizedIndex binary, full": lambda: QuantizedIndex("binary", rescore="full", oversample=8),
}

OPENED = """
import sys
from pathlib import Path
import faiss, hnswlib, numba, numpy as np, usearch.index
from reperio import indexes
kept = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1])
folder, kind, dim = Path(sys.argv[1]), getattr(indexes, sys.argv[2]), int(sys.argv[3])
warm = indexes.FlatIndex(); warm.add(np.arange(2), np.eye(2, dim)); warm.search(np.eye(1, dim), 1)
before = kept(); index = kind.open(folder); print(1024 * (kept() - before) / len(index))
"""


def run() -> dict[str, Any]:
    real = _real()
    return {f"{size} x {real.shape[1]}": _compared(size, real) for size in SIZES}


def _real() -> np.ndarray:
    texts = [document.text[:CHARACTERS] for document in islice(PythonDocsSource().documents(), TEXTS + QUERIES)]
    start = time.perf_counter()
    order = np.random.default_rng(0).permutation(len(texts))
    vectors = DenseEncoder().encode_document([texts[i] for i in order]).embeddings
    print(f"{len(texts)} docstrings encoded in {time.perf_counter() - start:.0f} s, {CHARACTERS} characters each")
    return vectors


def _more(real: np.ndarray, size: int) -> np.ndarray:
    """The real vectors, and between their neighbours as many as are wanted, of length one."""
    rng = np.random.default_rng(size)
    near = np.argsort(-(real @ real.T), axis=1)[:, 1:11]
    one = rng.integers(0, len(real), size - len(real))
    other = near[one, rng.integers(0, 10, len(one))]
    share = rng.uniform(0.2, 0.5, (len(one), 1)).astype(np.float32)
    made = (1 - share) * real[one] + share * real[other]
    made += rng.normal(0, 0.2 / np.sqrt(real.shape[1]), made.shape).astype(np.float32)
    return np.concatenate([real, made / np.linalg.norm(made, axis=1, keepdims=True)]).astype(np.float32)


def _compared(size: int, real: np.ndarray) -> dict[str, Any]:
    rows, queries = _more(real[QUERIES:], size), real[:QUERIES]
    indexes: dict[str, Any] = {}
    out: dict[str, Any] = {}
    for name, make in MAKERS.items():
        index, start, work = make(), time.perf_counter(), time.process_time()
        index.add(np.arange(size), rows)
        built = {"seconds": time.perf_counter() - start, "processor seconds": time.process_time() - work}
        indexes[name], out[name] = index, {"build": built, **_bytes(index)}
        if isinstance(index, QuantizedIndex) and index.report is not None:
            out[name]["reported recall"] = index.report.recall
    exact = indexes["FlatIndex"]
    wanted = exact.search(queries, K)
    for name, index in indexes.items():
        out[name]["recall"] = _recall(index.search(queries, K), wanted)
        out[name].update(_timed(index, queries))
        out[name]["filtered"] = _filtered(index, exact, queries, size)
    _show(size, out)
    return out


def _recall(found: Neighbors, wanted: Neighbors) -> float:
    return float(np.mean([np.isin(w[w >= 0], f).mean() for f, w in zip(found.ids, wanted.ids, strict=True)]))


def _bytes(index: Any) -> dict[str, float]:
    """A vector on the disk, and in memory that no file backs once a fresh process has opened it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        index.save(path)
        disk = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / len(index)
        arguments = [str(path), type(index).__name__, "384"]
        done = subprocess.run([sys.executable, "-c", OPENED, *arguments], capture_output=True, text=True, check=True)
    return {"bytes on disk": disk, "bytes in memory": float(done.stdout)}


def _bare(index: Any) -> Callable[[np.ndarray], object] | None:
    """The same search, asked of the engine itself."""
    if isinstance(index, FaissIndex):
        with tempfile.TemporaryDirectory() as folder:
            index.save(Path(folder) / "index")
            core: Any = faiss.read_index(str(Path(folder) / "index" / "index.faiss"))
        core.hnsw.efSearch = EF
        return lambda asked: core.search(asked, K)
    if isinstance(index, HnswlibIndex):
        engine: Any = index._engine
        return lambda asked: engine._graph.knn_query(asked, EF)
    if isinstance(index, UsearchIndex) and index.dtype != "i8":
        engine = index._engine
        return lambda asked: engine.graph.search(asked, EF, threads=1 if len(asked) < 8 else 0)
    return None


def _timed(index: Any, queries: np.ndarray) -> dict[str, Any]:
    """Milliseconds a query, in a batch and alone; and of the bare engine in turns with it."""
    out: dict[str, Any] = {}
    some = [queries[i : i + 1] for i in range(0, QUERIES, 4)]
    asked, bare = {"batch": [queries], "single": some}, _bare(index)
    for how, parts in asked.items():
        ways: dict[str, Callable[[], object]] = {"ours": lambda parts=parts: [index.search(part, K) for part in parts]}
        if bare is not None:
            ways["bare"] = lambda parts=parts, bare=bare: [bare(part) for part in parts]
        count = sum(map(len, parts))
        times = {way: [1e3 * s / count for s in seconds] for way, seconds in in_turns(ways, repeats=7).items()}
        out[how] = {f"{way} milliseconds": spread(values) for way, values in times.items()}
        out[how] |= {f"{way} processor milliseconds": 1e3 * _processor(work) / count for way, work in ways.items()}
        if bare is not None:
            out[how]["ratio to bare"] = paired(times["ours"], times["bare"])
    return out


def _processor(work: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of processor time, the fewest of several: other programs hardly disturb it."""
    found: list[float] = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def _filtered(index: Any, exact: FlatIndex, queries: np.ndarray, size: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    some = queries[:50]
    for share in SHARES:
        allowed = np.sort(np.random.default_rng(1).choice(size, int(share * size), replace=False))
        wanted = exact.search(some, K, allowed=allowed)

        def one_by_one(allowed: np.ndarray = allowed) -> None:
            for i in range(len(some)):
                index.search(some[i : i + 1], K, allowed=allowed)

        (times,) = in_turns({"one": one_by_one}, repeats=3).values()
        recall = _recall(index.search(some, K, allowed=allowed), wanted)
        out[f"{share:.0%}"] = {"recall": recall, "milliseconds": spread([1e3 * s / len(some) for s in times])}
    return out


def _show(size: int, out: dict[str, Any]) -> None:
    print(f"\n{size} rows, {QUERIES} queries, k = {K}, {EF} candidates. Milliseconds a query, median; cpu: processor")
    print("milliseconds, fewest, ours and the bare engine's. Filters by share that passes: milliseconds alone, recall")
    lines: list[dict[str, Any]] = []
    for name, one in out.items():
        line: dict[str, Any] = {"index": name, "recall": one["recall"]}
        for how in ("batch", "single"):
            line[f"{how} ms"] = one[how]["ours milliseconds"]["median"]
            line[f"{how} cpu"] = one[how]["ours processor milliseconds"]
            line[f"{how} bare cpu"] = one[how].get("bare processor milliseconds", "")
        for share, found in one["filtered"].items():
            line[share] = "{:.3g} {:.3f}".format(found["milliseconds"]["median"], found["recall"])
        line |= {"memory B": round(one["bytes in memory"]), "disk B": round(one["bytes on disk"])}
        line["build s"] = one["build"]["seconds"]
        lines.append(line)
    table(lines)
    told = {name: one["reported recall"] for name, one in out.items() if "reported recall" in one}
    print("recall that was reported at build:", ", ".join(f"{name} {value:.3f}" for name, value in told.items()))
