"""On a GPU: FAISS through `FaissIndex` beside the same index bare and on the processor; how fast texts become vectors.

1,000,000 × 128 generated vectors. Needs `faiss-gpu` in place of `faiss-cpu`; not part of ``make bench``.
Times are of the clock: the processor waits for the GPU. The kept figures were made with `faiss-gpu` 1.15.1 on a
machine without a hub or room for weights: MiniLM's were random there, which changes no time.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from benchmarks.ingest import passages
from benchmarks.measuring import in_turns, paired, spread, table
from reperio.encoders import DenseEncoder
from reperio.indexes import FaissIndex
from reperio.testing.index import clustered

DEVICE, ROWS, DIM, QUERIES, K, NPROBE = "cuda", 1_000_000, 128, 1_000, 10, 32
FACTORIES = ["Flat", "IVF4096,Flat", "IVF4096,SQ8", "IVF4096,PQ32"]
TRAIN, TEXTS = 40 * 4096, 20_000


def run() -> dict[str, Any]:
    vectors = clustered(ROWS + QUERIES, DIM)
    out: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        **{factory: _searches(factory, vectors[:ROWS], vectors[ROWS:]) for factory in FACTORIES},
    }
    rows = [
        {"search": f"{factory}, {name}", "bare ms": m["bare"]["median"], "ms": m["FaissIndex"]["median"]}
        | {"ratio": m["FaissIndex / bare"]["median"], "processor / GPU": m["processor / GPU"]["median"]}
        for factory in FACTORIES
        for name, m in out[factory]["milliseconds"].items()
    ]
    table(rows)
    out["encode"] = _encode()
    print(out["encode"])
    return out


def _searches(factory: str, rows: np.ndarray, queries: np.ndarray) -> dict[str, Any]:
    options = {"nprobe": NPROBE} if "IVF" in factory else None
    seconds, built = {}, {}
    for device in (DEVICE, "cpu"):
        start = time.perf_counter()
        built[device] = FaissIndex(factory, metric="ip", options=options, device=device, train_size=TRAIN)
        built[device].add(np.arange(len(rows)), rows)
        seconds[device] = time.perf_counter() - start
    bare = _bare(factory, rows)
    ours = built[DEVICE]
    with tempfile.TemporaryDirectory() as folder:  # the same centroids on both sides: what is left is the arithmetic
        ours.save(Path(folder) / "index")
        twin = FaissIndex.open(Path(folder) / "index", device="cpu")
    found, wanted = ours.search(queries, K).ids, twin.exact(queries, K).ids
    return {
        "build seconds": seconds,
        # Of the best by the codes that are kept: what the lists looked into leave out.
        "found on the GPU": _shared(found, wanted),
        "found on the processor": _shared(twin.search(queries, K).ids, wanted),
        "milliseconds": {f"batch of {count}": _times(bare, ours, twin, queries[:count]) for count in (QUERIES, 100, 1)},
    }


def _bare(factory: str, rows: np.ndarray) -> Any:
    index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    if DEVICE == "cuda":
        index = faiss.index_cpu_to_gpu(_resources(), 0, index)
    if not index.is_trained:
        index.train(rows[np.random.default_rng(0).choice(len(rows), TRAIN, replace=False)])
        index.nprobe = NPROBE
    index.add(rows)
    return index


def _resources() -> Any:
    """Made once, and kept: an index on a GPU does not keep it alive."""
    if not _KEPT:
        _KEPT.append(faiss.StandardGpuResources())
    return _KEPT[0]


_KEPT: list[Any] = []


def _times(bare: Any, ours: FaissIndex, twin: FaissIndex, queries: np.ndarray) -> dict[str, Any]:
    calls = 1 if len(queries) > 1 else 20
    ways = {"bare": lambda: bare.search(queries, K), "FaissIndex": lambda: ours.search(queries, K)}
    times = in_turns(ways, repeats=15, calls=calls)
    slow = in_turns({"processor": lambda: twin.search(queries, K)}, repeats=3)["processor"]
    out: dict[str, Any] = {name: _milliseconds(seconds) for name, seconds in times.items()}
    out["processor"] = _milliseconds(slow)
    out["FaissIndex / bare"] = paired(times["FaissIndex"], times["bare"])
    middle = out["FaissIndex"]["median"] / 1e3
    out["processor / GPU"] = spread([s / middle for s in slow])
    return out


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    return {name: value * 1e3 for name, value in spread(seconds).items()}


def _shared(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean([np.isin(w, f).mean() for w, f in zip(wanted, found, strict=True)]))


def _encode() -> dict[str, Any]:
    """Passages of 60 words by MiniLM, tokenising and all."""
    source = passages()
    texts = [next(source) for _ in range(TEXTS)]
    encoder = DenseEncoder(device=DEVICE, batch_tokens=65_536)
    encoder.encode_document(texts[:1000])
    seconds, tokens = [], 0
    for _ in range(5):
        start = time.perf_counter()
        tokens = int(encoder.encode_document(texts).token_counts.sum())
        seconds.append(time.perf_counter() - start)
    return {
        "texts": TEXTS,
        "tokens": tokens,
        "texts a second": spread([TEXTS / s for s in seconds]),
        "tokens a second": spread([tokens / s for s in seconds]),
    }
