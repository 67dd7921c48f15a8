"""Opening 1,000,000 saved vectors, mapped: milliseconds, resident memory, and the first search after it.

Three ways: without checksums, with checksums that this process has read before, and with all of them read.
Files are in the page cache; a first reading from a disk comes on top. A collection of as many documents of one word
and given vectors is opened for reading, with a search of its vectors to load the index: the first time in a process,
which reads checksums and compiles nothing, and again. About 4 minutes on two cores, most of it to build the graph.
"""

from __future__ import annotations

import gc
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.filtered import sheet
from benchmarks.measuring import spread, table
from reperio import Collection, Document, Signal
from reperio.encoders import GivenVectors
from reperio.indexes import BinaryIndex, FaissIndex
from reperio.indexes.verified import _SEEN

ROWS = 1_000_000
CASES = {
    "Flat, 128 dimensions": ("Flat", 128),
    "IVF1024,SQ8, 128 dimensions": ("IVF1024,SQ8", 128),
    "IVF1024,PQ32x4fs,RFlat, 128 dimensions": ("IVF1024,PQ32x4fs,RFlat", 128),
    "HNSW16, 32 dimensions": ("HNSW16", 32),
    "BFlat, 128 dimensions": ("BFlat", 128),
}


def run() -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, (factory, dim) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "index"
            _save(factory, dim, path)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:  # whose memory nothing has stretched
                out[name] = fresh.submit(_opened, factory, dim, path).result()
    table([{"index": name, **_line(measured)} for name, measured in out.items()])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "collection"
        _fill(path)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            out["collection"] = fresh.submit(_collection, path).result()
    table([{"collection of": ROWS, **{name: _middle(value) for name, value in out["collection"].items()}}])
    return out


def _fill(path: Path) -> None:
    signals = {"dense": Signal(GivenVectors(64), FaissIndex("IVF1024,SQ8", train_size=65536))}
    with Collection.open(path, signals=signals) as collection:
        rows = sheet(ROWS, 64)
        for start in range(0, ROWS, 50_000):
            documents = [Document(f"d{i}", "word") for i in range(start, start + 50_000)]
            collection.upsert(documents, embeddings={"dense": rows[start : start + 50_000]}, progress=False)
        collection.checkpoint()


def _collection(path: Path) -> dict[str, Any]:
    """Milliseconds until the first answer, and megabytes that no file backs."""
    asked, found = {"dense": sheet(1, 64, seed=3)}, list[float]()
    before = _private()
    for _ in range(7):
        start = time.perf_counter()
        with Collection.open(path, mode="r") as opened:
            opened.search(["word"], 10, embeddings=asked)
            found.append((time.perf_counter() - start) * 1e3)
            private = _private() - before
    return {"first time ms": found[0], "milliseconds": spread(found[1:]), "private MB": private, "bytes": _bytes(path)}


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _middle(value: Any) -> float:
    return float(value["median"] if isinstance(value, dict) else value)


def _save(factory: str, dim: int, path: Path) -> None:
    rows = sheet(ROWS, dim)
    index: Any = BinaryIndex(factory) if factory.startswith("B") else FaissIndex(factory, train_size=65536)
    index.add(np.arange(ROWS), rows)
    index.save(path)


def _opened(factory: str, dim: int, path: Path) -> dict[str, Any]:
    binary = factory.startswith("B")
    query = sheet(1, dim, seed=3)
    times: dict[str, list[float]] = {"unverified": [], "verified before": [], "verified": []}
    first: list[float] = []
    resident: list[float] = []
    for _ in range(7):
        for way in times if not binary else ["verified"]:
            if way == "verified":
                _SEEN.clear()
            before, start = _private(), time.perf_counter()
            index: Any = BinaryIndex.open(path, mmap=True) if binary else _open(path, way)
            times[way].append((time.perf_counter() - start) * 1e3)
            resident.append(_private() - before)
            start = time.perf_counter()
            index.search(query, 10)
            first.append((time.perf_counter() - start) * 1e3)
            del index
            gc.collect()
    ways = {way: spread(found) for way, found in times.items() if found}
    return {"milliseconds": ways, "first search": spread(first), "private MB": spread(resident), "bytes": _bytes(path)}


def _open(path: Path, way: str) -> FaissIndex:
    return FaissIndex.open(path, mmap=True, verify=way != "unverified")


def _private() -> float:
    """Megabytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def _line(measured: dict[str, Any]) -> dict[str, Any]:
    ways = {f"{way} ms": value["median"] for way, value in measured["milliseconds"].items()}
    rest = {"first search ms": measured["first search"]["median"], "private MB": measured["private MB"]["max"]}
    empty = {"unverified ms": "-", "verified before ms": "-"}
    return {**empty, **ways, **rest, "file MB": measured["bytes"] / 1e6}
