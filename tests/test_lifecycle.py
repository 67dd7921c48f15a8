"""Another index, a compaction, a checkpoint: made beside the searches, which never wait for the long part."""

from __future__ import annotations

import errno
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from reperio import Collection, Document, Field, Signal, artifacts, lexical, memory, upkeep
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.given import GivenVectors
from reperio.encoders.hashing import HashEncoder
from reperio.errors import ConfigurationError, CorruptArtifact, InvalidInput, MissingDependency, NotFound, StorageError
from reperio.generations import Generations
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.faiss import FaissIndex
from reperio.indexes.flat import FlatIndex
from reperio.indexes.hnswlib import HnswlibIndex
from reperio.indexes.inverted import InvertedIndex
from reperio.indexes.pgvector import PgvectorIndex
from reperio.indexes.quantized import QuantizedIndex
from reperio.indexes.transformed import TransformedIndex
from reperio.indexes.transforms import Centre, NormCoordinate
from reperio.protocols import Index
from reperio.testing.faults import open_limit
from reperio.testing.index import clustered


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
            patched.setattr("reperio.following.Following._replay", fail)
            patched.setattr("reperio.derived.DerivedIndex.take", fail)
            with pytest.raises(OSError, match="the disk is on fire"):
                c.reindex("dense", FlatIndex("ip"))
        assert sorted(p.name for p in (tmp_path / "c/indexes/dense").iterdir()) == before
        assert c.search("note 3 on lists", 1, signals=["dense"]).ids == ["d3"]
        with pytest.raises(NotFound):
            c.rollback("dense")


def fail(*_: object) -> None:
    raise OSError("the disk is on fire")


def generations(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "indexes/dense").iterdir() if path.is_dir())


def test_what_cannot_be_cleaned_after_a_switch_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(20))
        c.checkpoint()
        c.reindex("dense", FlatIndex("ip"))  # the first one is kept to roll back to
        with monkeypatch.context() as patched:
            patched.setattr("reperio.generations.shutil.rmtree", fail)
            with pytest.warns(UserWarning, match="cannot be removed: the disk is on fire"):
                c.reindex("dense", FlatIndex("l2"))
            c.upsert([Document("w", "a walrus")])
            with pytest.warns(UserWarning, match="cannot be removed"):
                c.checkpoint()
        assert c.stats().signals["dense"]["index"]["metric"] == "l2"
        assert len(generations(tmp_path / "c")) == 4
        c.upsert([Document("v", "a vole")])
        c.checkpoint()
        assert len(generations(tmp_path / "c")) == 2
        assert c.verify().problems == ()


@pytest.mark.parametrize("step", ["checkpoint", "reindex"])
def test_a_generation_that_no_file_could_be_made_to_name_does_not_stay(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collection.open(tmp_path / "c", signals={"dense": signals()["dense"]}) as c:
        c.upsert(documents(20))
        c.checkpoint()
        steps: dict[str, Callable[[], object]] = {
            "checkpoint": c.checkpoint,
            "reindex": lambda: c.reindex("dense", FlatIndex("ip")),
        }
        before = generations(tmp_path / "c")
        for i in range(3):
            c.upsert([Document(f"w{i}", f"a walrus {i}")])
            with monkeypatch.context() as patched:
                patched.setattr(Generations, "use", fail)
                with pytest.raises(OSError, match="the disk is on fire"):
                    steps[step]()
            assert generations(tmp_path / "c") == before
        assert c.search("walrus 2", 1, signals=["dense"]).ids == ["w2"]
        c.checkpoint()
        assert len(generations(tmp_path / "c")) == 1
        assert c.verify().problems == ()


def test_a_generation_that_is_named_stays_though_the_disk_failed_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use = Generations.use

    def named_then_fail(self: Generations, current: Any) -> Any:
        use(self, current)
        fail()

    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(20))
        with monkeypatch.context() as patched:
            patched.setattr(Generations, "use", named_then_fail)
            with pytest.raises(OSError, match="the disk is on fire"):
                c.checkpoint()
    with Collection.open(tmp_path / "c", mode="r") as c:
        assert c.verify().problems == ()


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


def test_an_index_that_cannot_be_opened_for_lack_of_files_is_not_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(20))
    built, add = [0], FlatIndex.add

    def counted(index: FlatIndex, ids: Any, rows: Any, /) -> None:
        built[0] += 1
        add(index, ids, rows)

    monkeypatch.setattr(FlatIndex, "add", counted)
    told = list[str]()
    with Collection.open(tmp_path / "c", mode="r") as c:
        while not told or told[-1]:
            with open_limit(len(told)):
                try:
                    found = c.search("note 3 on lists", 1, signals=["dense"])
                    told.append("")
                except StorageError as error:
                    told.append(str(error))
        assert found.ids == ["d3"]
    assert len(told) > 1
    assert all("Too many open files" in text for text in told[:-1])
    assert built == [0]


def test_an_index_that_cannot_be_opened_stops_no_search_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collection.open(tmp_path / "c", signals=dict(reversed(signals().items()))) as c:
        c.upsert(documents(20))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with Collection.open(tmp_path / "c") as c, monkeypatch.context() as patch:
        patch.setattr(FlatIndex, "open", refuse)
        assert c.search("note 12", 1, signals=["bm25"]).ids == ["d12"]
        with pytest.raises(StorageError, match="Too many open files"):
            c.search("note 12", 1, signals=["dense"])
        with pytest.raises(StorageError, match="Too many open files"):
            c.search("note 12", 1)
        patch.undo()
        assert c.search("note 12 on lists", 1, signals=["dense"]).ids == ["d12"]


def test_a_reader_that_could_not_read_which_index_is_current_reads_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c, Collection.open(tmp_path / "c", mode="r") as reader:
        c.upsert(documents(20))
        c.checkpoint()
        assert reader.search("note 12", 1, signals=["dense"]).ids == ["d12"]
        c.reindex("dense", FlatIndex("ip"))

        def refuse(_: Generations) -> None:
            raise StorageError("Too many open files.", "Close some.")

        with monkeypatch.context() as patch:
            patch.setattr(Generations, "current", refuse)
            with pytest.raises(StorageError, match="Too many"):
                reader.search("note 12", 1, signals=["dense"])
        assert reader.search("note 12", 1, signals=["dense"]).ids == ["d12"]
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


def churned(c: Collection) -> None:
    """A third of the rows are dead, in the index too."""
    c.upsert(documents(100), progress=False)
    c.search("files")
    c.delete([f"d{i}" for i in range(40)])
    c.search("files")


def wait_for(state: str, c: Collection) -> None:
    deadline = time.monotonic() + 30
    while c.stats().compaction != state:
        assert time.monotonic() < deadline, c.stats().compaction
        time.sleep(0.01)


def with_faiss() -> dict[str, Signal[Any]]:
    return {**signals(), "dense": Signal(HashEncoder(512), FaissIndex("HNSW16"))}


def test_dead_rows_are_compacted_in_the_background_and_no_result_goes_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "FEWEST_DEAD", 10)
    with Collection.open(tmp_path / "c", signals=with_faiss()) as c:
        c.upsert(documents(100), progress=False)
        before = c.search("note 3 on lists", 5)  # not looked into yet
        churned(c)
        stats = c.stats()
        assert (stats.signals["dense"]["dead"], stats.signals["dense"]["compact"]) == (40, True)
        c.checkpoint()
        wait_for("idle", c)
        after = c.stats()
        assert [signal["dead"] for signal in after.signals.values()] == [0, 0]
        assert after.replaced == 40  # what was deleted stays in the store until `compact`
        assert len(before.ids) == 5
        assert c.verify().problems == ()
        assert c.compact() == 40
    with Collection.open(tmp_path / "c", mode="r") as c:
        assert c.stats().signals["dense"]["dead"] == 0
        assert c.verify().problems == ()


def test_the_dead_are_counted_across_openings(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=with_faiss(), compact_at=None) as c:
        churned(c)
    with Collection.open(tmp_path / "c", mode="r") as c:
        found = c.stats()
        assert found.signals["dense"]["dead"] == 40
        assert (found.compaction, found.signals["dense"]["behind"]) == ("off", 0)


def test_what_fails_in_the_background_is_told_once_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "FEWEST_DEAD", 10)
    with Collection.open(tmp_path / "c", signals=with_faiss()) as c:
        churned(c)
        with monkeypatch.context() as patched:
            patched.setattr("reperio.derived.DerivedIndex.take", fail)
            c.delete(["d99"])
            wait_for("failed: the disk is on fire", c)
        assert c.search("note 50 on lists", 1, signals=["dense"]).ids == ["d50"]
        with pytest.raises(OSError, match="the disk is on fire"):
            c.checkpoint()
        c.checkpoint()
        wait_for("idle", c)
        assert c.stats().signals["dense"]["dead"] == 0
        assert c.verify().problems == ()


def test_closing_ends_a_compaction_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "FEWEST_DEAD", 10)
    monkeypatch.setattr("reperio.derived.CHUNK", 1)
    c = Collection.open(tmp_path / "c", signals=with_faiss())
    churned(c)
    embed, chunks, first = c._signals["bm25"].derived._embed, [0], threading.Event()  # type: ignore[union-attr]

    def slowly(rows: Any) -> Any:
        chunks[0] += 1
        first.set()
        time.sleep(0.05)
        return embed(rows)

    monkeypatch.setattr(c._signals["bm25"].derived, "_embed", slowly)
    c.delete(["d99"])
    assert first.wait(30)
    monkeypatch.setattr(c._signals["bm25"].derived, "_embed", embed)
    c.close()
    assert chunks[0] < 30  # of 59 rows
    with Collection.open(tmp_path / "c", mode="r") as c:
        assert c.verify().problems == ()
        assert c.count(Field("n") >= 0) == 59


@pytest.mark.parametrize(
    "index",
    [
        FlatIndex("cosine"),
        FaissIndex("IVF4,Flat", train_size=500),  # all its rows wait, in a folder of their own
        TransformedIndex(TransformedIndex(FlatIndex("l2"), [NormCoordinate()], train_size=20), [Centre()]),
        QuantizedIndex(),
    ],
    ids=["flat", "waiting", "inside", "quantized"],
)
def test_a_search_after_a_commit_waits_for_no_checkpoint_to_reach_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: Index[Any]
) -> None:
    with Collection.open(tmp_path / "c", signals={**signals(), "dense": Signal(HashEncoder(64), index)}) as c:
        c.upsert(documents(50))
        c.checkpoint()
        c.upsert([Document("early", "an early walrus")])
        syncing, go_on, sync, waits = threading.Event(), threading.Event(), artifacts.sync, set[str]()

        def held_back(path: Path) -> None:
            if threading.current_thread() is saving:
                if c._lock.held:
                    waits.add(path.name.split(".")[1] if path.is_file() else path.name)
                syncing.set()
                assert go_on.wait(60)
            sync(path)

        monkeypatch.setattr(artifacts, "sync", held_back)
        saving = threading.Thread(target=c.checkpoint)
        saving.start()
        assert syncing.wait(60)
        c.upsert([Document("late", "a late walrus")])
        c.delete(["d7"])
        found: list[str] = []
        try:
            bounded(lambda: found.extend(c.search("late walrus files", k=60).ids))
        finally:
            go_on.set()
            saving.join()
        assert waits == {"CURRENT", *c.signals}  # which a few lines name, and their folder
        assert {"early", "late"} <= set(found)
        assert "d7" not in found
        states = c.stats().signals
        assert {states[name]["behind"] for name in states} <= {0, 2}  # the second in turn was saved after the search
        assert states["bm25"]["behind"] == 2
        assert c.verify().ok
        with Collection.open(tmp_path / "c", mode="r") as reader:  # what was saved is of the commit that it names
            assert sorted(reader.search("late walrus files", k=60).ids) == sorted(found)
            assert reader.verify().ok
            assert reader._signals["bm25"].derived.replayed == 1


@pytest.mark.parametrize("share", [0, 1, -0.5, 20])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(ConfigurationError, match="Give a share between 0 and 1"):
        Collection.open(tmp_path / "c", signals=signals(), compact_at=share)


def test_stats_name_the_writer_while_there_is_one(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c, Collection.open(tmp_path / "c", mode="r") as reader:
        assert reader.stats().writer == c.stats().writer == os.getpid()
        c.close()
        assert reader.stats().writer is None


def test_stats_tell_where_the_bytes_and_the_rows_of_an_index_are(tmp_path: Path) -> None:
    lists = FaissIndex("IVF4,Flat", train_size=150)
    with Collection.open(tmp_path / "c", signals={**signals(), "dense": Signal(HashEncoder(512), lists)}) as c:
        c.upsert(documents(100))
        found = c.stats().signals
        assert (found["dense"]["waiting"], found["dense"]["segments"]) == (100, None)
        assert (found["bm25"]["waiting"], found["bm25"]["segments"]) == (None, 1)
        c.upsert([Document(f"w{i}", f"a walrus {i}") for i in range(100)])
        c.search("walrus")
        assert c.stats().signals["dense"]["waiting"] == 0
        assert c.stats().signals["dense"]["generations"] == {}
        c.checkpoint()
        c.reindex("dense", FaissIndex("Flat"))
        for name, signal in c.stats().signals.items():
            folder = tmp_path / "c/indexes" / name
            assert sorted(signal["generations"]) == [p.name for p in sorted(folder.iterdir()) if p.is_dir()]
            for generation, size in signal["generations"].items():
                assert size == sum(file.stat().st_size for file in (folder / generation).rglob("*") if file.is_file())
            assert sum(signal["generations"].values()) <= signal["bytes"]
        assert len(c.stats().signals["dense"]["generations"]) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_stats_tell_what_of_an_index_is_mapped_and_in_memory(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals={"dense": Signal(HashEncoder(512), FaissIndex("Flat"))}) as c:
        c.upsert(documents(1000))
        assert c.stats().signals["dense"]["mapped"] == 0
    with Collection.open(tmp_path / "c", mode="r") as c:
        c.search("files")  # every row is compared
        stats = c.stats()
        dense = stats.signals["dense"]
        assert 4 * 512 * 1000 <= dense["mapped"] <= dense["bytes"] + (1 << 16)
        assert 4 * 512 * 1000 <= dense["resident"] <= dense["mapped"]
        assert stats.resident_bytes is not None
        assert dense["resident"] < stats.resident_bytes < 1 << 36


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_a_mapped_file_is_in_memory_as_far_as_it_was_read(tmp_path: Path) -> None:
    (tmp_path / "a name").mkdir()
    (tmp_path / "a name" / "pages").write_bytes(bytes(64 * mmap.PAGESIZE))
    with (tmp_path / "a name" / "pages").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        pages.madvise(mmap.MADV_RANDOM)  # no page is brought in but those that are asked for
        files = memory.mapped()
        assert files is not None
        assert memory.within(tmp_path / "a name", files) == (64 * mmap.PAGESIZE, 0)
        assert memory.within(tmp_path / "a", files) == (0, 0)
        (tmp_path / "a name" / "pages").unlink()
        assert pages[0] + pages[40 * mmap.PAGESIZE] == 0
        size, held = memory.within(tmp_path / "a name", memory.mapped() or {})
        assert size == 64 * mmap.PAGESIZE
        assert 0 < held <= size


def test_what_the_system_does_not_tell_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> Any:
        raise FileNotFoundError

    with Collection.open(tmp_path / "c", signals=lexical()) as c:
        c.upsert(documents(3))
        with monkeypatch.context() as patched:
            patched.setattr(memory.Path, "read_text", none)
            patched.setattr(memory.Path, "read_bytes", none)
            told = (memory.resident(), memory.mapped())
        assert told == (None, None)
        monkeypatch.setattr(memory, "mapped", lambda: None)
        monkeypatch.setattr(memory, "resident", lambda: None)
        stats = c.stats()
        assert (stats.resident_bytes, stats.signals["bm25"]["mapped"], stats.signals["bm25"]["resident"]) == (None,) * 3


def test_the_name_of_a_class_is_enough_to_reindex(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(9))
        before = c.search("walrus", 3).ids
        c.reindex("dense", "FlatIndex")
        assert c.stats().signals["dense"]["index"]["type"] == "FlatIndex"
        c.reindex("dense", {"type": "FaissIndex", "factory": "SQ8"})
        assert c.stats().signals["dense"]["index"]["factory"] == "SQ8"
        assert c.search("walrus", 3).ids == before


def test_what_cannot_be_made_leaves_no_folder(tmp_path: Path) -> None:
    """Sparse rows do not go into a dense index, which nobody can tell before some were encoded."""
    wrong: dict[str, Signal[Any]] = {"bm25": Signal(BM25Encoder(), FlatIndex("ip"), stored=False)}
    homeless: dict[str, Signal[Any]] = {"dense": Signal(HashEncoder(8), PgvectorIndex())}
    for signals_ in (wrong, homeless, {}, {"a b": signals()["dense"]}):
        with pytest.raises(InvalidInput):
            Collection.open(tmp_path / "c", signals=signals_)
        assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("signal", "index", "says"),
    [
        ("bm25", lambda: FlatIndex("ip"), r"for 'bm25', FlatIndex, cannot hold its sparse embeddings"),
        ("dense", BM25Index, r"for 'dense', BM25Index, cannot hold its dense embeddings"),
        ("dense", lambda: "IVF4,PQ7", r"cannot hold .*512 dimensions"),
        ("dense", lambda: learnt(64), r"cannot hold .*512 dimensions, expected 64"),
        (
            "bm25",
            lambda: "HNSW32",
            r"for 'bm25', FaissIndex, cannot hold its sparse embeddings: .*Sparse, not one dense",
        ),
        (
            "bm25",
            InvertedIndex,
            r"for 'bm25', InvertedIndex, does not weigh the counts that BM25Encoder gives in every column. Use BM",
        ),
        ("bm25", lambda: "SeismicIndex", r"for 'bm25', SeismicIndex, does not weigh the counts"),
        ("bm25", lambda: BM25Index(weights_below=9), r"does not weigh the counts"),
        ("dense", lambda: FlatIndex, r"for 'dense' is a type. Give an index"),
        ("dense", PgvectorIndex, r"for 'dense' is a PgvectorIndex without a url: .* Give its url"),
    ],
)
def test_an_index_of_another_kind_or_size_is_refused_before_there_is_a_document(
    tmp_path: Path, full: bool, signal: str, index: Callable[[], Any], says: str
) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(5) if full else [])
        with pytest.raises(ConfigurationError, match=says):
            c.reindex(signal, index())
        with pytest.raises(NotFound):
            c.rollback(signal)
        c.upsert([Document("w", "a walrus")], progress=False)
        assert c.search("walrus", 1, signals=[signal]).ids == ["w"]
    with Collection.open(tmp_path / "c", mode="r") as c:
        assert c.verify().problems == ()


def test_a_library_that_an_index_lacks_is_named_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hnswlib", None)
    with Collection.open(tmp_path / "c", signals=signals()) as c, pytest.raises(MissingDependency, match="hnswlib"):
        c.reindex("dense", HnswlibIndex())


def test_vectors_that_the_caller_brings_are_checked_without_an_encoder(tmp_path: Path) -> None:
    given: dict[str, Signal[Any]] = {"dense": Signal(GivenVectors(8), FlatIndex())}
    with Collection.open(tmp_path / "c", signals=given) as c:
        with pytest.raises(ConfigurationError, match="cannot hold its dense embeddings"):
            c.reindex("dense", BM25Index())
        c.reindex("dense", "HNSW8")


def learnt(dim: int) -> FaissIndex:
    """Trained, and empty."""
    index = FaissIndex("IVF2,Flat", train_size=99)
    index.train(clustered(99, dim))
    return index


def test_an_index_of_ids_that_leads_to_another_document_is_noticed(tmp_path: Path) -> None:
    """One byte of SQLite's own index, altered: neither read nor deleted is what was not asked for."""
    folder = tmp_path / "c"
    with Collection.open(folder, signals=lexical()) as collection:
        collection.upsert([Document("pad", "some words"), Document("doc-aaaa", "text of a"), Document("doc-bbbb", "b")])
    file = folder / "store.sqlite"
    sound = file.read_bytes()
    content = bytearray(sound)
    # An entry of the index is the id and its row number, side by side.
    place = content.index(b"doc-aaaa\x02")
    content[place + len(b"doc-aaaa")] = 3
    file.write_bytes(content)
    with Collection.open(folder) as collection:
        with pytest.raises(CorruptArtifact):
            collection.get("doc-aaaa")
        with pytest.raises(CorruptArtifact):
            collection.delete(["doc-aaaa"])
        with pytest.raises(CorruptArtifact):
            collection.count()
    file.write_bytes(sound)
    with Collection.open(folder) as collection:
        assert collection.count() == 3


def test_a_switch_between_replaying_and_searching_takes_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a search has seen of commits, the index that is switched to has to have, too."""
    with Collection.open(tmp_path / "c", signals=lexical()) as collection:
        collection.upsert([Document("a", "alpha word"), Document("b", "beta word")], progress=False)
        assert collection.search("word").ids == ["a", "b"]
        waiting, go = threading.Event(), threading.Event()
        alone, replay = collection._upkeep._alone, collection._following._replay

        @contextmanager
        def late() -> Iterator[None]:
            waiting.set()
            assert go.wait(20)
            with alone():
                yield

        monkeypatch.setattr(collection._upkeep, "_alone", late)
        switch = threading.Thread(target=collection.reindex, args=("bm25", BM25Index()))
        switch.start()
        assert waiting.wait(20)
        collection.upsert([Document("n", "gamma word")], progress=False)
        collection.delete(["a"])

        def replay_then_switch(signals: Any) -> None:
            replay(signals)
            if not go.is_set():
                go.set()
                switch.join()

        monkeypatch.setattr(collection._following, "_replay", replay_then_switch)
        assert collection.search("word").ids == ["b", "n"]
