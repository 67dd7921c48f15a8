"""Another index, a compaction, a checkpoint: made beside the searches, which never wait for the long part."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from reperio import Collection, Document, Signal
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.hashing import HashEncoder
from reperio.errors import NotFound
from reperio.generations import Generations
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.flat import FlatIndex


def signals() -> dict[str, Signal[Any]]:
    return {
        "bm25": Signal(BM25Encoder(), BM25Index(), stored=False),
        "dense": Signal(HashEncoder(512), FlatIndex("cosine")),
    }


def documents(n: int, *, of: str = "lists") -> list[Document]:
    return [Document(f"d{i}", f"note {i} on {of} and files", {"n": i}) for i in range(n)]


def bounded(work: Callable[[], object]) -> None:
    """Run in a thread of its own: a search that waits for what the test holds back fails the test, not the run."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits"


@pytest.mark.parametrize("step", ["reindex", "compact", "rollback"])
def test_searches_and_commits_go_on_while_an_index_is_filled(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(50))
        if step == "rollback":
            c.reindex("dense", FlatIndex("ip"))
            c.upsert(documents(5, of="walruses"))
        c.search("files")
        filling, go_on, add = threading.Event(), threading.Event(), FlatIndex.add

        def held_back(self: FlatIndex, ids: Any, embeddings: Any, /) -> None:
            if threading.current_thread() is upkeep:
                filling.set()
                assert go_on.wait(60)
            add(self, ids, embeddings)

        monkeypatch.setattr(FlatIndex, "add", held_back)
        steps: dict[str, Callable[[], object]] = {
            "reindex": lambda: c.reindex("dense", FlatIndex("ip")),
            "compact": c.compact,
            "rollback": lambda: c.rollback("dense"),
        }
        upkeep = threading.Thread(target=steps[step])
        upkeep.start()
        try:
            assert filling.wait(60)
            found: list[str] = []
            bounded(lambda: c.upsert([Document("late", "a tractor")], progress=False))
            bounded(lambda: found.extend(c.search("tractor", 1).ids))
            bounded(c.checkpoint)
            assert found == ["late"]
        finally:
            go_on.set()
            upkeep.join(60)
        assert c.search("tractor", 1, signals=["dense"]).ids == ["late"]
        assert c.verify().problems == ()
    with Collection.open(tmp_path / "c", mode="r") as c:
        assert c.search("tractor", 1, signals=["dense"]).ids == ["late"]
        assert c.verify().problems == ()


def test_an_index_that_cannot_be_filled_leaves_the_old_one_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(20))
        c.checkpoint()
        before = sorted(p.name for p in (tmp_path / "c/indexes/dense").iterdir())
        with monkeypatch.context() as patched:
            patched.setattr(Collection, "_replay", fail)
            patched.setattr("reperio.derived.DerivedIndex.take", fail)
            with pytest.raises(OSError, match="the disk is on fire"):
                c.reindex("dense", FlatIndex("ip"))
        assert sorted(p.name for p in (tmp_path / "c/indexes/dense").iterdir()) == before
        assert c.search("note 3 on lists", 1, signals=["dense"]).ids == ["d3"]
        with pytest.raises(NotFound):
            c.rollback("dense")


def fail(*_: object) -> None:
    raise OSError("the disk is on fire")


def test_a_reader_does_not_read_a_later_checkpoint_of_the_index_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, open_ = [0], FlatIndex.open.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Self], path: Path, /, **options: Any) -> Any:
        opened[0] += 1
        return open_(cls, path, **options)

    monkeypatch.setattr(FlatIndex, "open", classmethod(counted))
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(20))
        c.checkpoint()
        with Collection.open(tmp_path / "c", mode="r") as reader:
            assert reader.search("note 3 on lists", 1).ids == ["d3"]
            assert opened == [1]
            for i in range(3):
                c.upsert([Document(f"w{i}", f"walrus {i}")])
                c.checkpoint()
                assert reader.search(f"walrus {i}", 1, signals=["dense"]).ids == [f"w{i}"]
            assert opened == [1]
            c.reindex("dense", FlatIndex("ip"))
            assert reader.search("walrus 2", 1, signals=["dense"]).ids == ["w2"]
            assert opened == [2]
            assert reader.stats().signals["dense"]["index"]["metric"] == "ip"


def test_a_reader_whose_snapshot_is_older_than_a_checkpoint_takes_another_and_rebuilds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c, Collection.open(tmp_path / "c", mode="r") as reader:
        c.upsert(documents(20))
        c.checkpoint()
        read, add, late, added = Generations.current, FlatIndex.add, [True], list[int]()

        def just_after_a_checkpoint(self: Generations) -> Any:
            if late.pop() if late else False:  # the reader has its snapshot
                c.upsert([Document("w", "a walrus")])
                c.checkpoint()
            return read(self)

        def counted(self: FlatIndex, ids: Any, embeddings: Any, /) -> None:
            added.append(len(ids))
            add(self, ids, embeddings)

        monkeypatch.setattr(Generations, "current", just_after_a_checkpoint)
        monkeypatch.setattr(FlatIndex, "add", counted)
        assert reader.search("walrus", 1, signals=["dense"]).ids == ["w"]
        assert late == []
        assert added == [1]  # the writer's one document
