"""kill -9 at any moment leaves what was acknowledged, on a server too."""

from __future__ import annotations

import ast
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from reperio import Collection, Signal
from reperio.encoders.hashing import HashEncoder
from reperio.indexes.flat import FlatIndex
from reperio.stores.postgres import PostgresStore
from reperio.testing.store import some

WORKER = """
import random, sys, time
from reperio import Collection, Document, Signal
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.hashing import HashEncoder
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.faiss import FaissIndex
from reperio.indexes.pgvector import PgvectorIndex

address, cache, seed = sys.argv[1:]
choose = random.Random(int(seed))
signals = {"bm25": Signal(BM25Encoder(), BM25Index(), stored=False), "dense": Signal(HashEncoder(16), PgvectorIndex())}
c = Collection.open(address, cache=cache, signals=signals if seed == "0" else None)
version = time.time_ns()
while True:
    version += 1
    step = choose.choices(["upsert", "delete", "reindex", "rollback", "compact", "checkpoint"], [12, 2, 2, 1, 1, 1])[0]
    names = choose.sample(range(60), choose.randint(1, 30))
    changes = {str(n): version if step == "upsert" else None for n in names} if step in ("upsert", "delete") else {}
    print("begin", step, repr(changes), flush=True)
    if step == "upsert":
        documents = [Document(n, f"text {n} of {v}", {"version": v}) for n, v in changes.items()]
        c.upsert(documents, batch_size=8, progress=False)
    elif step == "delete":
        c.delete(list(changes))
    elif step == "reindex":
        c.reindex("dense", choose.choice([PgvectorIndex(index=None), PgvectorIndex(dtype="float16"), FaissIndex()]))
    elif step == "rollback":
        try:
            c.rollback("dense")
        except LookupError:
            pass
    else:
        getattr(c, step)()
    print("done", step, repr(changes), flush=True)
"""


def test_a_killed_writer_loses_nothing_it_had_acknowledged(server: str, name: str, tmp_path: Path) -> None:
    address, clock = f"{server}#{name}", random.Random(1)
    allowed: dict[str, set[Any]] = {str(n): {None} for n in range(60)}
    for trial, aim in enumerate(["upsert", "delete", "reindex", "compact", "checkpoint"]):
        command = [sys.executable, "-c", WORKER, address, str(tmp_path / "cache"), str(trial)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            lines = [worker.stdout.readline()]
            while not lines[-1].startswith(f"begin {aim} "):
                lines.append(worker.stdout.readline())
                assert lines[-1], "the worker ended by itself"
            time.sleep(clock.uniform(0.0, 0.05))
            worker.send_signal(signal.SIGKILL)
            lines += worker.stdout.readlines()
        assert worker.returncode == -signal.SIGKILL
        for line in lines:
            state, _, changes = line.rstrip("\n").split(" ", 2)
            for key, version in ast.literal_eval(changes).items():
                allowed[key] = {version} if state == "done" else allowed[key] | {version}
        with Collection.open(address, cache=tmp_path / "cache") as c:
            found: dict[str, Any] = {d.id: d.metadata["version"] for d in c.documents()}
            assert all(found.get(key) in versions for key, versions in allowed.items())
            assert c.verify().problems == ()
            assert len(c.search("text", 60, signals=["dense"])) == len(found)


def test_a_writer_waits_for_the_end_of_one_that_was_killed(server: str, name: str) -> None:
    store = PostgresStore(server, collection=name)
    threading.Timer(0.2, store.close).start()
    PostgresStore(server, collection=name).close()


def test_flat_vectors_of_a_server_are_those_of_a_file(server: str, name: str, tmp_path: Path) -> None:
    found = []
    for place, settings_ in ((server, {"collection": name, "cache": tmp_path / "cache"}), (tmp_path / "c", {})):
        given = {"dense": Signal(HashEncoder(32), FlatIndex())}
        with Collection.open(place, signals=given, **settings_) as c:  # type: ignore[arg-type]
            c.upsert(some(50))
            found.append([(r.ids, r.scores.tolist()) for r in c.search(["text 7", "plain"], 9)])
    assert found[0] == found[1]
