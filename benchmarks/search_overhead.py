"""`Collection.search` against the same FAISS index called bare: 100k × 384, batch of 1,000 and single queries.

Vectors are random and normalised: the time of an exact scan does not depend on their values.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.measuring import in_turns, paired, spread, table
from reperio import Collection, Document, Signal
from reperio.encoders import GivenVectors
from reperio.indexes import FaissIndex

N, FEW, DIM, QUERIES, K = 100_000, 2_000, 384, 1_000, 10


def run() -> dict[str, Any]:
    return {
        f"batch of {QUERIES}, {N} rows": _compare(N, QUERIES, repeats=9, calls=1),
        f"single, {N} rows": _compare(N, 1, repeats=21, calls=20),
        # So few rows that the scan leaves the processor's caches alone: what the call itself costs.
        f"single, {FEW} rows": _compare(FEW, 1, repeats=21, calls=200),
    }


def _compare(rows: int, count: int, *, repeats: int, calls: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((rows, DIM), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = rng.standard_normal((count, DIM), dtype=np.float32)
    bare = faiss.IndexFlatIP(DIM)
    bare.add(vectors)
    signals = {"dense": Signal(GivenVectors(DIM), FaissIndex("Flat", metric="ip"))}
    with tempfile.TemporaryDirectory() as folder, Collection.open(Path(folder) / "c", signals=signals) as collection:
        documents = [Document(str(i), f"document {i}", {"n": i}) for i in range(rows)]
        collection.upsert(documents, embeddings={"dense": vectors}, batch_size=4096)
        del documents
        texts = ["?"] * count

        def search() -> list[Any]:
            return collection.search(texts, K, embeddings={"dense": queries})

        _, wanted = bare.search(queries, K)
        assert [r.ids for r in search()] == [[str(i) for i in row] for row in wanted]
        ways = {
            "bare": lambda: bare.search(queries, K),
            "search": search,
            "search, every hit read": lambda: [r.ids for r in search()],
        }
        print(f"{count} queries, {rows} rows")
        return _report(in_turns(ways, repeats=repeats, calls=calls))


def _report(times: dict[str, list[float]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    rows = []
    for name, seconds in times.items():
        added = [s - b for s, b in zip(seconds, times["bare"], strict=True)]
        out[name] = {
            "milliseconds": {k: v * 1e3 for k, v in spread(seconds).items()},
            "ratio to bare": paired(seconds, times["bare"]),
            "added milliseconds": {k: v * 1e3 for k, v in spread(added).items()},
        }
        ratio = out[name]["ratio to bare"]
        rows.append(
            {
                "way": name,
                "ms": out[name]["milliseconds"]["median"],
                "ratio": ratio["median"],
                "ratio min..max": f"{ratio['min']:.3f}..{ratio['max']:.3f}",
                "added ms": out[name]["added milliseconds"]["median"],
            }
        )
    table(rows)
    return out
