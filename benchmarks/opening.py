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
from benchmarks.lexical import generated
from benchmarks.measuring import spread, table
from reperio import Collection, Document, Signal
from reperio.embeddings import Dense, MultiVector
from reperio.encoders import GivenVectors
from reperio.indexes import BinaryIndex, BM25Index, FaissIndex, MultiVectorIndex
from reperio.indexes.verified import _SEEN

ROWS, TOKENS = 1_000_000, 32
CASES = {
    "Flat, 128 dimensions": ("Flat", 128),
    "IVF1024,SQ8, 128 dimensions": ("IVF1024,SQ8", 128),
    "IVF1024,PQ32x4fs,RFlat, 128 dimensions": ("IVF1024,PQ32x4fs,RFlat", 128),
    "HNSW16, 32 dimensions": ("HNSW16", 32),
    "BFlat, 128 dimensions": ("BFlat", 128),
    "BM25Index, 45 words a row": ("BM25", 0),
    "MultiVectorIndex, 32 vectors a row, 64 dimensions": ("MaxSim", 64),
}
"""A factory of FAISS's, or another index; a million vectors each, or rows of words."""

WAYS = {BinaryIndex: ["verified"], MultiVectorIndex: ["unverified", "verified"]}
"""How these can be opened; the others in all three ways."""


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
    index = _empty(factory)
    if factory == "BM25":
        corpus = generated(ROWS)
        for start in range(0, ROWS, 50_000):
            index.add(np.arange(start, start + 50_000), corpus.counts(start, start + 50_000))
        index.compact()
    else:
        rows = sheet(ROWS, dim)
        index.add(np.arange(ROWS // (TOKENS if factory == "MaxSim" else 1)), _shaped(factory, rows))
    index.save(path)


def _empty(factory: str) -> Any:
    if factory in ("BM25", "MaxSim"):
        return BM25Index() if factory == "BM25" else MultiVectorIndex()
    return BinaryIndex(factory) if factory.startswith("B") else FaissIndex(factory, train_size=65536)


def _shaped(factory: str, vectors: Dense) -> Any:
    if factory != "MaxSim":
        return vectors
    return MultiVector(vectors, np.arange(0, len(vectors) + 1, TOKENS))


def _query(factory: str, dim: int) -> Any:
    if factory == "BM25":
        return generated(1).counts(0, 1)
    return _shaped(factory, sheet(TOKENS if factory == "MaxSim" else 1, dim, seed=3))


def _opened(factory: str, dim: int, path: Path) -> dict[str, Any]:
    query, kind = _query(factory, dim), type(_empty(factory))
    times: dict[str, list[float]] = {way: [] for way in WAYS.get(kind, ["unverified", "verified before", "verified"])}
    first: list[float] = []
    resident: list[float] = []
    for _ in range(7):
        for way in times:
            if way == "verified":
                _SEEN.clear()
            before, start = _private(), time.perf_counter()
            index = _open(factory, path, way)
            times[way].append((time.perf_counter() - start) * 1e3)
            resident.append(_private() - before)
            start = time.perf_counter()
            index.search(query, 10)
            first.append((time.perf_counter() - start) * 1e3)
            del index
            gc.collect()
    ways = {way: spread(found) for way, found in times.items() if found}
    return {"milliseconds": ways, "first search": spread(first), "private MB": spread(resident), "bytes": _bytes(path)}


def _open(factory: str, path: Path, way: str) -> Any:
    kind, checked = type(_empty(factory)), way != "unverified"
    if kind is MultiVectorIndex:
        return MultiVectorIndex.open(path, mmap=not checked)
    if kind is BinaryIndex:
        return BinaryIndex.open(path, mmap=True)
    return (
        BM25Index.open(path, verify=checked) if kind is BM25Index else FaissIndex.open(path, mmap=True, verify=checked)
    )


def _private() -> float:
    """Megabytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def _line(measured: dict[str, Any]) -> dict[str, Any]:
    ways = {f"{way} ms": value["median"] for way, value in measured["milliseconds"].items()}
    rest = {"first search ms": measured["first search"]["median"], "private MB": measured["private MB"]["max"]}
    empty = {"unverified ms": "-", "verified before ms": "-"}
    return {**empty, **ways, **rest, "file MB": measured["bytes"] / 1e6}
