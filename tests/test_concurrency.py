"""Several threads and timelines: what is acknowledged is found, what is gone is not."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reperio import Collection, Document, Field, Signal
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.given import GivenVectors
from reperio.encoders.hashing import HashEncoder
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.flat import FlatIndex


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
