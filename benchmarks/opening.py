"""Opening 1,000,000 saved vectors, mapped: milliseconds, resident memory, and the first search after it.

Three ways: without checksums, with checksums that this process has read before, and with all of them read.
Files are in the page cache; a first reading from a disk comes on top.
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
    return out


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
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    ways = {way: spread(found) for way, found in times.items() if found}
    return {"milliseconds": ways, "first search": spread(first), "private MB": spread(resident), "bytes": size}


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
