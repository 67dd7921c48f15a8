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

N, DIM, QUERIES, K = 100_000, 384, 1_000, 10


def run() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((N, DIM), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = rng.standard_normal((QUERIES, DIM), dtype=np.float32)
    bare = faiss.IndexFlatIP(DIM)
    bare.add(vectors)
    signals = {"dense": Signal(GivenVectors(DIM), FaissIndex("Flat", metric="ip"))}
    with tempfile.TemporaryDirectory() as folder, Collection.open(Path(folder) / "c", signals=signals) as collection:
        documents = [Document(str(i), f"document {i}", {"n": i}) for i in range(N)]
        collection.upsert(documents, embeddings={"dense": vectors}, batch_size=4096)
        del documents
        texts = ["?"] * QUERIES

        def search(count: int) -> list[Any]:
            return collection.search(texts[:count], K, embeddings={"dense": queries[:count]})

        found = search(50)
        _, wanted = bare.search(queries[:50], K)
        assert [r.ids for r in found] == [[str(i) for i in row] for row in wanted]
        batch = in_turns(
            {
                "bare": lambda: bare.search(queries, K),
                "search": lambda: search(QUERIES),
                "search, every hit read": lambda: [r.ids for r in search(QUERIES)],
            },
            repeats=9,
        )
        single = in_turns(
            {
                "bare": lambda: bare.search(queries[:1], K),
                "search": lambda: search(1),
                "search, every hit read": lambda: search(1)[0].ids,
            },
            repeats=21,
            calls=20,
        )
    return {"batch of 1000": _report(batch), "single": _report(single)}


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
