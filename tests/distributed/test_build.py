"""Shards that a cluster built find what one index finds; a server has each row once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from reperio.connectors import FileSource
from reperio.distributed import EncodedTexts, ShardedIndex, Workers, build, building, encode, load_into
from reperio.embeddings import Dense
from reperio.encoders import BM25Encoder, HashEncoder
from reperio.errors import ConfigurationError, CorruptArtifact, InvalidInput, NotFound, ShapeError
from reperio.indexes import BM25Index, FaissIndex, FlatIndex, InvertedIndex, MilvusIndex, PgvectorIndex, shards

TWO = Workers(2)
Texts = tuple[list[str], list[str]]


@pytest.fixture(scope="module")
def encoded(machines: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> EncodedTexts:
    out = tmp_path_factory.mktemp("encoded") / "dense"
    source = FileSource(f"{folder}/*.parquet", "text", key="id")
    encode(source, out, encoder=HashEncoder(64), rows=60, workers=TWO, progress=False)
    return EncodedTexts.open(out)


@pytest.fixture(scope="module")
def rows(encoded: EncodedTexts) -> Dense:
    return np.concatenate([np.asarray(block.embeddings) for block in encoded.blocks()])


def one(index: Any, rows: Any) -> Any:
    index.add(np.arange(len(rows)), rows)
    return index


@pytest.mark.parametrize("index", [FlatIndex(), FaissIndex("Flat", metric="ip")], ids=["numpy", "faiss"])
def test_shards_find_what_one_index_finds(encoded: EncodedTexts, rows: Dense, tmp_path: Path, index: Any) -> None:
    report = build(encoded, tmp_path / "out", index=index, shards=3, workers=TWO, progress=False)
    shards, whole = ShardedIndex.open(tmp_path / "out"), one(index, rows)
    assert (report.rows, report.shards, report.reused, report.learnt) == (len(rows), 3, 0, 0)
    assert report.bytes > rows.nbytes
    assert [len(shard) > 0 for shard in shards.shards] == [True] * 3
    queries, allowed = rows[::9], np.arange(5, len(rows), 4)
    for k, only in ((5, None), (5, allowed), (len(rows) + 3, None), (3, np.array([1]))):
        found, wanted = shards.search(queries, k, allowed=only), whole.search(queries, k, allowed=only)
        assert np.allclose(found.scores, wanted.scores, rtol=0, atol=1e-6)
        assert np.array_equal(found.ids, wanted.ids) or np.allclose(shards.score(queries, found.ids), wanted.scores)
    assert np.array_equal(shards.ids, np.arange(len(rows)))
    names = [name for block in encoded.blocks() for name in block.ids]
    assert shards.documents(found.ids[:, 0]) == [names[key] for key in found.ids[:, 0]]
    assert shards.lossless
    with pytest.raises(NotFound, match="no key -1"):
        shards.documents(np.array([-1]))
    with pytest.raises(InvalidInput, match="k is 0"):
        shards.search(queries, 0)


def test_every_shard_learns_from_one_sample_of_all_rows(encoded: EncodedTexts, rows: Dense, tmp_path: Path) -> None:
    lists = FaissIndex("IVF8,Flat", metric="ip", train_size=312)
    report = build(encoded, tmp_path / "out", index=lists, shards=2, workers=TWO, progress=False)
    assert report.learnt == 312
    shards = ShardedIndex.open(tmp_path / "out")
    exact = one(FlatIndex("ip"), rows).search(rows[:50], 5)
    found = shards.search(rows[:50], 5, options={"nprobe": 8})
    assert np.allclose(found.scores, exact.scores, rtol=0, atol=1e-5)
    narrow = [shard.search(rows[:50], 1, options={"nprobe": 1}) for shard in shards.shards]
    assert len(narrow) == 2
    disk = build(encoded, tmp_path / "disk", index=lists, memory_budget=8_000_000, workers=TWO, progress=False)
    assert disk.rows == len(rows)
    on_disk = ShardedIndex.open(tmp_path / "disk").search(rows[:50], 5, options={"nprobe": 8})
    assert np.allclose(on_disk.scores, exact.scores, rtol=0, atol=1e-5)
    assert list((tmp_path / "disk").rglob("*.ivf*"))


def test_sparse_shards_find_what_one_index_finds(
    machines: Any, source: FileSource, texts: Texts, tmp_path: Path
) -> None:
    encode(source, tmp_path / "encoded", encoder=BM25Encoder(), rows=150, workers=TWO, progress=False)
    build(tmp_path / "encoded", tmp_path / "out", index=InvertedIndex(precision="float32"), shards=2, progress=False)
    build(tmp_path / "encoded", tmp_path / "bm25", index=BM25Index(), progress=False)
    counts = BM25Encoder().encode_document(texts[1]).embeddings
    queries = BM25Encoder().encode_query(["parse json text", "smallest item of a heap"]).embeddings
    for name, index in (("out", InvertedIndex(precision="float32")), ("bm25", BM25Index())):
        found, wanted = ShardedIndex.open(tmp_path / name).search(queries, 9), one(index, counts).search(queries, 9)
        assert np.array_equal(found.ids, wanted.ids)
        assert np.allclose(found.scores, wanted.scores, rtol=1e-6)
    with pytest.raises(ConfigurationError, match="BM25 weighs a term by how many of all rows"):
        build(tmp_path / "encoded", tmp_path / "no", index=BM25Index(), shards=2)
    with pytest.raises(ShapeError, match="embeddings"):
        build(tmp_path / "encoded", tmp_path / "no", index=FlatIndex())


def test_what_cannot_be_built_is_refused_by_name(encoded: EncodedTexts, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(encoded, out, index=FlatIndex(), shards=2, workers=TWO, progress=False)
    with pytest.raises(ConfigurationError, match="begun with shards 2, not 1"):
        build(encoded, out, index=FlatIndex())
    with pytest.raises(ConfigurationError, match=r"begun with index .*cosine.*, not .*'ip'"):
        build(encoded, out, index=FlatIndex("ip"), shards=2)
    with pytest.raises(ConfigurationError, match="shards is 99, and there are"):
        build(encoded, out, index=FlatIndex(), shards=99)
    with pytest.raises(ConfigurationError, match="FlatIndex cannot be built within a memory_budget"):
        build(encoded, out, index=FlatIndex(), memory_budget=10**9)
    with pytest.raises(ConfigurationError, match="without options, recall"):
        build(encoded, out, index=FaissIndex("IVF8,Flat", options={"nprobe": 2}), memory_budget=10**9)
    with pytest.raises(ConfigurationError, match="MilvusIndex is on a server"):
        build(encoded, out, index=MilvusIndex(str(tmp_path / "rows.db")))
    with pytest.raises(ConfigurationError, match="HashEncoder is no index"):
        build(encoded, out, index={"type": "HashEncoder"})
    with pytest.raises(ConfigurationError, match="FlatIndex is not on a server"):
        load_into(encoded, tmp_path / "served", index=FlatIndex())
    with pytest.raises(NotFound):
        ShardedIndex.open(tmp_path / "nothing")
    (shard, other) = sorted(out.glob("shard-*"))
    names = shard / "ids.arrow"
    names.write_bytes(names.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptArtifact, match="altered"):
        ShardedIndex.open(out)
    other.rename(tmp_path / "elsewhere")
    with pytest.raises(NotFound, match="not whole"):
        ShardedIndex.open(out)


def on_disk(
    encoded: EncodedTexts, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[building._Job, Callable[[], Any]]:
    """One shard with lists on disk, filled a hundred rows at a time; and an attempt at it, as a process makes it."""
    monkeypatch.setattr(shards._Build, "_shard_rows", lambda *_: 100)
    lists = FaissIndex("IVF8,SQ8", metric="ip", train_size=312).spec
    job = building._planned(folder, encoded, lists, shards=1, budget=8_000_000)
    return job, lambda: building._Building(job)(pa.table({"number": [0]}))


def test_what_an_attempt_has_begun_is_kept_whatever_fails_and_done_again_where_it_is_damaged(
    encoded: EncodedTexts, rows: Dense, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, attempt = on_disk(encoded, tmp_path / "out", monkeypatch)

    def fail(*_: object) -> None:
        raise OSError("the disk is on fire")

    for step in ((shards._Build, "merge"), (building._Building, "_sample")):
        with monkeypatch.context() as patched:
            patched.setattr(*step, fail)
            with pytest.raises(OSError, match="on fire"):
                attempt()
    kept = job.folder / f"{job.names[0]}{building._BEGUN}"
    assert len(list(kept.glob("shard-*"))) == len(rows) // 100 + 1
    file = kept / "shard-00002" / "ids.npy"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.warns(UserWarning, match="done again from there: .*shard-00002"):
        attempt()
    assert sorted(path.name for path in job.folder.iterdir()) == sorted(["plan", *job.names])
    assert np.array_equal(ShardedIndex.open(job.folder).ids, np.arange(len(rows)))


def test_two_attempts_at_one_shard_do_not_disturb_each_other(
    encoded: EncodedTexts, rows: Dense, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray begins a second where it takes the first for lost, which may go on all the same."""
    job, attempt = on_disk(encoded, tmp_path / "out", monkeypatch)
    both, write, merge = threading.Barrier(2), shards._Build._write, shards._Build.merge

    def in_step(self: Any, *arguments: Any) -> Any:
        both.wait(60)
        return write(self, *arguments)

    def together(self: Any) -> Any:
        both.wait(60)
        return merge(self)

    monkeypatch.setattr(shards._Build, "_write", in_step)
    monkeypatch.setattr(shards._Build, "merge", together)
    with ThreadPoolExecutor(2) as pool:
        attempts = [pool.submit(attempt) for _ in range(2)]
        assert [done.result()["number"][0].as_py() for done in attempts] == [0, 0]
    assert sorted(path.name for path in job.folder.iterdir()) == sorted(["plan", *job.names])
    assert np.array_equal(ShardedIndex.open(job.folder).ids, np.arange(len(rows)))


def test_what_an_attempt_has_done_of_a_shard_on_disk_is_not_done_again(
    encoded: EncodedTexts, rows: Dense, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, attempt = on_disk(encoded, tmp_path / "out", monkeypatch)
    done, write = list[Path](), shards._Build._write

    def counted(self: Any, *arguments: Any) -> bool:
        if len(done) == 3:
            raise OSError("the disk is on fire")
        more = write(self, *arguments)
        done.extend(self.shards[-1:] if more else [])
        return more

    monkeypatch.setattr(shards._Build, "_write", counted)
    with pytest.raises(OSError, match="on fire"):
        attempt()
    (kept,) = (path for path in job.folder.iterdir() if path.name != "plan")
    # As a process leaves it that is killed: under the name of its attempt, until the job is run again.
    died = job.folder / f".{job.names[0]}.0123456789abcdef.tmp"
    died.mkdir()
    kept.rename(died / "index.shards")
    assert building._leavings(job) == 1
    done.clear()
    monkeypatch.setattr(shards._Build, "_write", write)
    reused, build_sharded = list[int](), shards.build_sharded

    def told(*arguments: Any, **settings: Any) -> Any:
        built = build_sharded(*arguments, **settings)
        reused.append(built.reused)
        return built

    monkeypatch.setattr(shards, "build_sharded", told)
    attempt()
    assert reused == [3]
    assert building._leavings(job) == 0
    assert sorted(path.name for path in job.folder.iterdir()) == sorted(["plan", *job.names])
    assert np.array_equal(ShardedIndex.open(job.folder).ids, np.arange(len(rows)))


def test_a_builder_that_is_killed_loses_nothing(encoded: EncodedTexts, rows: Dense, tmp_path: Path) -> None:
    import psutil

    out, killed, ended = tmp_path / "out", list[int](), threading.Event()

    def kill() -> None:
        while not ended.wait(0.01):
            for process in psutil.process_iter(["name", "cmdline"]):
                title = " ".join(process.info["cmdline"] or [process.info["name"] or ""])
                if "_Building" in title and list(out.glob(".shard-*.tmp")):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    report = build(encoded, out, index=FaissIndex("HNSW32"), shards=6, workers=TWO, progress=False)
    ended.set()
    killer.join()
    assert killed, "no builder was at work when it was looked for"
    assert report.rows == len(rows)
    assert np.array_equal(ShardedIndex.open(out).ids, np.arange(len(rows)))
    assert not list(out.glob(".*.tmp"))


def test_postgres_has_each_row_once_though_its_writers_are_killed(
    server: str, machines: Any, source: FileSource, encoded: EncodedTexts, rows: Dense, tmp_path: Path
) -> None:
    index = PgvectorIndex(server, index=None)
    (tmp_path / "life-0").touch()
    mortal = {"type": "MortalEncoder", "dim": 64, "word": "heap", "folder": str(tmp_path), "seconds": 0.0}
    report = encode(source, tmp_path / "out", encoder=mortal, into=index, rows=60, workers=TWO, progress=False)
    assert report.retries >= 1
    straight = PgvectorIndex.open(tmp_path / "out" / "index")
    assert np.array_equal(straight.ids, np.arange(len(rows)))
    found, wanted = straight.search(rows[:30], 5), one(FlatIndex(), rows).search(rows[:30], 5)
    assert np.allclose(found.scores, wanted.scores, atol=1e-5)
    texts = EncodedTexts.open(tmp_path / "out")
    assert texts.documents(found.ids[0]) == encoded.documents(found.ids[0])
    assert next(texts.batches(0, ["id"])).num_rows == 60
    straight.drop()
    # From what was kept, twice: the second time there is nothing to do.
    sent = load_into(encoded, tmp_path / "sent", index=PgvectorIndex(server, index=None), workers=TWO, progress=False)
    assert (sent.documents, sent.reused) == (len(rows), 0)
    again = load_into(encoded, tmp_path / "sent", index=PgvectorIndex(server, index=None), workers=TWO, progress=False)
    assert (again.documents, again.reused) == (len(rows), again.pieces)
    loaded = PgvectorIndex.open(tmp_path / "sent" / "index")
    assert np.array_equal(loaded.ids, np.arange(len(rows)))
    loaded.drop()


def test_a_milvus_file_has_each_row_once(encoded: EncodedTexts, rows: Dense, tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite")
    index = MilvusIndex(str(tmp_path / "rows.db"), index_type="FLAT")
    report = load_into(encoded, tmp_path / "sent", index=index, workers=TWO, progress=False)
    assert report.documents == len(rows)
    loaded = MilvusIndex.open(tmp_path / "sent" / "index")
    assert np.array_equal(loaded.ids, np.arange(len(rows)))
    assert np.allclose(loaded.search(rows[:9], 5).scores, one(FlatIndex(), rows).search(rows[:9], 5).scores, atol=1e-5)
    loaded.close()
