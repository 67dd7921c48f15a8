"""Indexing with given vectors: documents per second, memory, size on disk.

Texts are 60-word passages of the Python sources on this machine, vectors are random. Each size runs in a
process of its own, whose peak memory is read from the operating system.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measuring import table

SIZES = [25_000, 50_000, 100_000]
REPEATS = 5
DIM = 384
PART = 4_096
"""Documents given at a time: with the vectors of as many, the bound on memory of an upsert."""


def run() -> dict[str, Any]:
    out = {str(n): [_child(n) for _ in range(REPEATS)] for n in SIZES}
    rows = []
    for n, runs in out.items():
        best = sorted(runs, key=lambda r: r["upsert seconds"])[len(runs) // 2]
        rates = [int(n) / r["upsert seconds"] for r in runs]
        rows.append(
            {
                "documents": int(n),
                "upsert docs/s": int(n) / best["upsert seconds"],
                "docs/s min..max": f"{min(rates):.0f}..{max(rates):.0f}",
                "index docs/s": int(n) / best["index seconds"],
                "peak MB, upsert": best["upsert peak MB"],
                "peak MB, index": best["index peak MB"],
                "store bytes/doc": best["store bytes"] / int(n),
                "index bytes/doc": best["index bytes"] / int(n),
                "text bytes/doc": best["text bytes"] / int(n),
            }
        )
    table(rows)
    return {"runs": out, "table": rows}


def _child(n: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.ingest", str(n)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def passages() -> Iterator[str]:
    """60 words each, without end."""
    import sysconfig

    folders = [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib")]
    while True:
        for folder in folders:
            for file in sorted(folder.rglob("*.py")):
                words = file.read_text(encoding="utf-8", errors="replace").split()
                for i in range(0, len(words) - 60, 60):
                    yield " ".join(words[i : i + 60])


def _peak() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


def _measure(n: int) -> dict[str, float]:
    import numpy as np

    from reperio import Collection, Document, Signal, lexical
    from reperio.encoders import GivenVectors
    from reperio.indexes import FaissIndex

    rng, texts, text_bytes, spent = np.random.default_rng(0), passages(), 0, 0.0
    signals = {**lexical(), "dense": Signal(GivenVectors(DIM), FaissIndex("Flat"))}
    with tempfile.TemporaryDirectory() as folder, Collection.open(Path(folder) / "c", signals=signals) as collection:
        for start in range(0, n, PART):
            count = min(PART, n - start)
            part = [Document(f"doc-{start + i}", next(texts), {"part": start}) for i in range(count)]
            text_bytes += sum(len(d.text.encode()) for d in part)
            vectors = rng.standard_normal((count, DIM), dtype=np.float32)
            begin = time.perf_counter()
            collection.upsert(part, embeddings={"dense": vectors}, progress=False)
            spent += time.perf_counter() - begin
        peak = _peak()
        begin = time.perf_counter()
        collection.checkpoint()
        indexed = time.perf_counter() - begin
        stats = collection.stats()
        return {
            "upsert seconds": spent,
            "upsert peak MB": peak,
            "index seconds": indexed,
            "index peak MB": _peak(),
            "store bytes": stats.store_bytes,
            "index bytes": stats.index_bytes,
            "text bytes": text_bytes,
        }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure(int(sys.argv[1]))))
