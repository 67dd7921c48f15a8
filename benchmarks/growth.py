"""Times and bytes at 10,000, 100,000 and 1,000,000 rows, and the exponent that fits them.

Each kind and size runs in a process of its own, whose peak memory is read from the operating system; what the data
themselves take there is told beside it. Vectors are those of `benchmarks.filtered`, term counts follow Zipf's law
(`benchmarks.lexical`), passages of several vectors are 20 times fewer, of 16 vectors each. A collection holds texts
of five words of Zipf's law and given vectors: its building is `upsert` and `checkpoint`, its search both signals'.
Searches are of one query at a time; they and openings are the medians of five rounds, with processor time beside
them, a build is made once. An exponent is the slope of the straight line, by least squares, through the logarithms.
About 12 minutes on two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import both, spread, table

SIZES = (10_000, 100_000, 1_000_000)
QUERIES, K, DIM, TOKENS, FEWER = 50, 10, 32, 16, 20
KINDS = ("BM25", "Flat", "HNSW", "IVF-PQ refined", "usearch bf16", "MaxSim", "MaxSim, 4 bits", "collection")
FITTED = ("build seconds", "build cpu seconds", "bytes", "peak MB", "open ms", "search ms", "search cpu ms")


def run() -> dict[str, Any]:
    out: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    for kind in KINDS:
        sizes = [size // FEWER if "MaxSim" in kind else size for size in SIZES]
        found = [_child(kind, size) for size in sizes]
        exponents = {name: _exponent(sizes, [_median(one[name]) for one in found]) for name in FITTED}
        out[kind] = {**{str(size): one for size, one in zip(sizes, found, strict=True)}, "exponents": exponents}
        for size, one in zip(sizes, found, strict=True):
            lines.append({"kind": kind, "rows": size, **{name: _median(value) for name, value in one.items()}})
        lines.append({"kind": "", "rows": "exponent", **exponents})
    table(lines)
    return out


def _median(value: Any) -> float:
    return float(value["median"] if isinstance(value, dict) else value)


def _exponent(sizes: list[int], values: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def _child(kind: str, size: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.growth", kind, str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(f"{kind}, {size}: {done.stdout.strip()}", flush=True)
    return json.loads(done.stdout.splitlines()[-1])


# In the child


def _memory(name: str) -> float:
    """Megabytes of this process: ``VmHWM`` at most so far, ``VmRSS`` now."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1e3


def _measure(kind: str, size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return (_collection if kind == "collection" else _index)(kind, size, Path(folder) / "kept")


def _index(kind: str, size: int, path: Path) -> dict[str, Any]:
    from reperio.embeddings import take

    index, rows, queries = _made(kind, size)
    start, work = time.perf_counter(), time.process_time()
    data = _memory("VmRSS")
    index.add(np.arange(size), rows)
    built = {"build seconds": time.perf_counter() - start, "build cpu seconds": time.process_time() - work}
    peak = _memory("VmHWM")
    index.save(path)
    singles = [take(queries, np.array([i])) for i in range(QUERIES)]
    how = {"mmap": True} if kind in ("Flat", "HNSW", "IVF-PQ refined") else {}
    return {**built, "peak MB": peak, "data MB": data} | _kept(
        path,
        lambda: type(index).open(path, **how),
        lambda: [index.search(query, K) for query in singles],
    )


def _kept(path: Path, opening: Callable[[], Any], search: Callable[[], object]) -> dict[str, Any]:
    """Bytes on disk, milliseconds to search, and to open: where checksums are read once, after they were."""
    walls, cores = both({"open": opening}, repeats=5)
    times, work = both({"search": search}, repeats=5, per=QUERIES)
    return {
        "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        "open ms": spread(walls["open"]),
        "open cpu ms": spread(cores["open"]),
        "search ms": spread(times["search"]),
        "search cpu ms": spread(work["search"]),
    }


def _made(kind: str, size: int) -> tuple[Any, Any, Any]:
    """An empty index, rows and queries."""
    from benchmarks.filtered import sheet
    from reperio.embeddings import MultiVector
    from reperio.indexes import BM25Index, FaissIndex, MultiVectorIndex, UsearchIndex

    if kind == "BM25":
        from benchmarks.lexical import _asked, generated

        corpus = generated(size)
        return (
            BM25Index(),
            corpus.counts(0, size),
            _asked(corpus.queries(QUERIES, 3, 8, skipped=100), corpus.vocabulary),
        )
    if "MaxSim" in kind:
        flat = sheet((size + QUERIES) * TOKENS, DIM)
        parts = [MultiVector(part, np.arange(0, len(part) + 1, TOKENS)) for part in np.split(flat, [size * TOKENS])]
        return MultiVectorIndex() if kind == "MaxSim" else MultiVectorIndex("residual", train_size=500), *parts
    makers: dict[str, Callable[[], Any]] = {
        "Flat": FaissIndex,
        "HNSW": lambda: FaissIndex("HNSW16", options={"efSearch": 64}),
        "IVF-PQ refined": lambda: FaissIndex.preset("ivf", rows=size, dim=DIM),
        "usearch bf16": lambda: UsearchIndex(dtype="bf16", expansion_add=40, expansion_search=64),
    }
    return makers[kind](), *np.split(sheet(size + QUERIES, DIM), [size])


def _collection(kind: str, size: int, path: Path) -> dict[str, Any]:
    from benchmarks.filtered import sheet
    from reperio import Collection, Document, Signal, lexical
    from reperio.encoders import GivenVectors
    from reperio.indexes import FaissIndex

    rng, vectors = np.random.default_rng(0), sheet(size + QUERIES, DIM)
    words = np.array([f"w{i}" for i in range(50_000)])
    weights = 1 / np.arange(1, len(words) + 1) ** 1.07
    drawn = np.searchsorted(np.cumsum(weights / weights.sum()), rng.random((size, 5)))
    signals = {**lexical(), "dense": Signal(GivenVectors(DIM), FaissIndex.preset("ivf", rows=size, dim=DIM))}
    data, start, work = _memory("VmRSS"), time.perf_counter(), time.process_time()
    with Collection.open(path, signals=signals) as collection:
        for first, last in pairwise([*range(0, size, 4096), size]):
            texts = (" ".join(line) for line in words[np.minimum(drawn[first:last], len(words) - 1)])
            documents = [Document(f"d{first + i}", text) for i, text in enumerate(texts)]
            collection.upsert(documents, embeddings={"dense": vectors[first:last]}, progress=False)
        collection.checkpoint()
    built = {"build seconds": time.perf_counter() - start, "build cpu seconds": time.process_time() - work}
    peak = _memory("VmHWM")
    asked = [(" ".join(words[rng.integers(100, 5000, 3)]), vectors[size + i]) for i in range(QUERIES)]

    def opening() -> None:
        with Collection.open(path, mode="r") as opened:
            _ask(opened, asked[:1])

    with Collection.open(path, mode="r") as reader:
        return {**built, "peak MB": peak, "data MB": data} | _kept(path, opening, lambda: _ask(reader, asked))


def _ask(collection: Any, asked: list[tuple[str, Any]]) -> None:
    for text, vector in asked:
        collection.search([text], K, embeddings={"dense": vector[None]})


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.stdout.write(json.dumps(_measure(sys.argv[1], int(sys.argv[2]))))
