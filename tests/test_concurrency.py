"""Several threads and timelines: what is acknowledged is found, what is gone is not."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reperio import Collection, Document, Field, Signal
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.given import GivenVectors
from reperio.encoders.hashing import HashEncoder
from reperio.errors import InvalidInput, ReadOnly, WriterBusy
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.faiss import FaissIndex
from reperio.indexes.flat import FlatIndex
from reperio.testing import versions


def signals() -> dict[str, Signal[Any]]:
    return {
        "bm25": Signal(BM25Encoder(), BM25Index(), stored=False),
        "dense": Signal(HashEncoder(32), FlatIndex("cosine")),
    }


def documents(n: int) -> list[Document]:
    return [Document(f"d{i}", f"note {i} on lists and files", {"n": i}) for i in range(n)]


@pytest.mark.parametrize("step", ["checkpoint", "reindex", "compact"])
def test_a_commit_during_a_replay_is_not_lost(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(50))
        add, late = FlatIndex.add, [True]
        committing = threading.Thread(target=c.upsert, args=([Document("late", "a walrus")],))

        def add_and_commit(self: FlatIndex, ids: Any, embeddings: Any, /) -> None:
            add(self, ids, embeddings)
            if late.pop() if late else False:
                committing.start()
                committing.join(0.3)  # a checkpoint makes it wait, the others do not

        monkeypatch.setattr(FlatIndex, "add", add_and_commit)
        work: dict[str, Callable[[], object]] = {
            "checkpoint": c.checkpoint,
            "reindex": lambda: c.reindex("dense", FlatIndex("ip")),
            "compact": c.compact,
        }
        work[step]()
        committing.join(30)
        assert late == []
        assert c.search("walrus", 1).ids == ["late"]
        assert c.verify().problems == ()
    with Collection.open(tmp_path / "c", mode="r") as c:
        assert c.search("walrus", 1, signals=["dense"]).ids == ["late"]
        assert c.verify().problems == ()


def test_a_replay_cut_short_leaves_no_ghosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reperio.derived.CHUNK", 10)
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(30))
        add, calls = FlatIndex.add, [0]

        def stop_at_the_second(self: FlatIndex, ids: Any, embeddings: Any, /) -> None:
            calls[0] += 1
            if calls[0] == 2:
                raise KeyboardInterrupt
            add(self, ids, embeddings)

        monkeypatch.setattr(FlatIndex, "add", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            c.search("note 3")
        c.delete(["d3"])
        assert "d3" not in c.search("note 3", 30).ids
        assert c.verify().problems == ()


def test_threads_that_write_lose_nothing(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        errors: list[BaseException] = []

        def write(part: Sequence[Document]) -> None:
            try:
                for document in part:
                    c.upsert([document, Document("shared", f"shared, last by {document.id}")], progress=False)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=write, args=(documents(40)[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert errors == []
        assert c.seq == 40
        assert c.count() == 41
        assert c.verify().problems == ()


def test_filtered_searches_beside_a_writer_have_finite_scores(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(200))
        stop = threading.Event()

        def write() -> None:
            i = 1000
            while not stop.is_set():
                c.upsert([Document(f"d{i}", f"note {i} on lists", {"n": i})], progress=False)
                i += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(60):
                found = c.search("note on lists", 20, where=Field("n") >= 0)
                assert np.isfinite(found.scores).all()
        finally:
            stop.set()
            writer.join(60)


def test_no_reader_ever_sees_half_a_commit(tmp_path: Path) -> None:
    """Threads of the writer, another process, and a child forked with an open collection, beside every change."""
    path, seconds = tmp_path / "c", 2.0
    with Collection.open(path, signals=versions.signals()) as c:
        versions.commit(c, 0)
        reader = Collection.open(path, mode="r")
        assert versions.read(reader, lambda: True).problems == ()
        forked = in_child(lambda: versions.read(reader, versions.until(time.monotonic() + seconds)).problems == ())
        command = [sys.executable, "-m", "reperio.testing.versions", str(path), str(seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
            stop, seen = versions.until(time.monotonic() + seconds), list[versions.Look]()
            threads = [threading.Thread(target=lambda: seen.append(versions.read(c, stop))) for _ in range(2)]
            for thread in threads:
                thread.start()
            written = versions.write(c, stop)
            for thread in threads:
                thread.join(60)
            said, _ = other.communicate(timeout=60)
        assert (other.returncode, forked()) == (0, 0), said
        reader.close()
        assert [look.problems for look in seen] == [(), ()]
        assert all(look.looks > look.stale for look in seen)
        assert written > 1
        assert c.verify().problems == ()


def in_child(work: Callable[[], bool], *, within: int = 60) -> Callable[[], int]:
    """Fork and run; call the result for the exit status: 0 if it was true, 14 if it hung."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a handler in Python waits for what hangs
            signal.alarm(within)
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("factory", ["Flat", "HNSW16"])
def test_a_child_searches_what_its_parent_had_open(tmp_path: Path, factory: str) -> None:
    """FAISS's threads stay in the parent, SQLite's connection must: either would hang the child or harm the parent."""
    parts = {**signals(), "dense": Signal(HashEncoder(32), FaissIndex(factory))}
    with Collection.open(tmp_path / "c", signals=parts) as c:
        c.upsert(documents(500))
        queries = [f"note {i} on lists" for i in range(64)]
        wanted = [ranking.ids for ranking in c.search(queries, 5)]
        child = in_child(lambda: [r.ids for r in c.search(queries, 5)] == wanted and c.get("d3") is not None)
        assert child() == 0
        assert [ranking.ids for ranking in c.search(queries, 5)] == wanted
        c.upsert([Document("late", "a walrus")])
        assert c.verify().problems == ()


def test_a_child_may_not_write_and_takes_nothing_from_its_parent(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(5))

        def try_to_write() -> bool:
            for change in (lambda: c.upsert(documents(1)), lambda: c.delete(["d0"]), c.checkpoint, c.compact):
                with pytest.raises(ReadOnly, match=r"before a fork.*Open it again in the child"):
                    change()
            c.close()  # neither the lease nor the write-ahead log goes with it
            return True

        assert in_child(try_to_write)() == 0
        with pytest.raises(WriterBusy):
            Collection.open(tmp_path / "c")
        c.upsert([Document("late", "a walrus")])
    with Collection.open(tmp_path / "c") as c:
        assert c.search("walrus", 1).ids == ["late"]


def test_a_child_forked_in_the_middle_of_a_change_reads_the_index_again(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(30))
        c.search("files")
        child: list[Callable[[], int]] = []

        def fork_inside(self: FlatIndex, ids: Any, embeddings: Any, /) -> None:
            patched.undo()
            child.append(in_child(lambda: c.search("walrus", 1, signals=["dense"]).ids == ["late"] and c.verify().ok))
            add(self, ids, embeddings)

        c.upsert([Document("late", "a walrus")])
        add = FlatIndex.add
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(FlatIndex, "add", fork_inside)
            c.search("walrus")  # the lock is held, the index half-way, and the store inside a snapshot
        assert child[0]() == 0


def test_a_collection_is_not_sent_to_another_process_but_opened_there(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(5))
        with pytest.raises(InvalidInput, match="Open it there"):
            pickle.dumps(c)


def test_an_index_ahead_of_a_restored_store_is_not_used(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(5))
    shutil.copy(tmp_path / "c" / "store.sqlite", tmp_path / "backup.sqlite")
    with Collection.open(tmp_path / "c") as c:
        c.upsert([Document("w", "a walrus")])
    shutil.copy(tmp_path / "backup.sqlite", tmp_path / "c" / "store.sqlite")
    c = Collection.open(tmp_path / "c")
    c.upsert([Document("t", "a tractor")])
    c._release()  # as if killed: nothing is checkpointed
    with Collection.open(tmp_path / "c", mode="r") as c:
        assert c.search("tractor", 1, signals=["bm25"]).ids == ["t"]
        assert c.search("walrus", 1, signals=["bm25"]).ids == []
        assert c.verify().problems == ()


def test_a_damaged_current_keeps_the_kind_of_index(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(5))
        c.reindex("dense", FlatIndex("ip"))
    (tmp_path / "c" / "indexes" / "dense" / "CURRENT").write_text("{")
    with Collection.open(tmp_path / "c") as c:
        assert c.stats().signals["dense"]["index"]["metric"] == "ip"


def test_new_metadata_keeps_a_given_vector(tmp_path: Path) -> None:
    given = {"dense": Signal(GivenVectors(4), FlatIndex("ip"))}
    with Collection.open(tmp_path / "c", signals=given) as c:
        eye = np.eye(4, dtype=np.float32)
        c.upsert([Document("a", "x", {"n": 1})], embeddings={"dense": eye[:1]})
        assert c.upsert([Document("a", "x", {"n": 2})]).updated == 1
        assert c.search(["?"], 1, where=Field("n") == 2, embeddings={"dense": eye[:1]})[0].scores.tolist() == [1.0]
        assert c.explain("?", "a", embeddings={"dense": eye[:1]}).score == 1.0


def test_explain_agrees_with_a_search_of_the_same_depth(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(600))
        for place, hit in enumerate(c.search("note 7 on files", 60)):
            if place % 6 == 0:
                why = c.explain("note 7 on files", hit.document.id, k=60)
                assert why.rank == place + 1
                assert why.score == pytest.approx(hit.score, abs=1e-5)


def test_long_filters_are_no_problem(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(10))
        assert c.count(Field("n").in_([*range(5, 5000), "x"][:-1])) == 5
        chain = Field("n") == 0
        for i in range(1, 1500):
            chain = chain | (Field("n") == i)
        assert c.count(chain) == 10
