"""Building in shards: equal to building at once, resumable, within its memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reperio.errors import (
    ConfigurationError,
    CorruptArtifact,
    InvalidInput,
    NewerFormat,
    ShapeError,
    StorageError,
    UnsupportedOperation,
)
from reperio.indexes import FaissIndex
from reperio.indexes.shards import build_sharded
from reperio.testing.index import clustered

ROWS, DIM = 12_000, 32
VECTORS = clustered(ROWS + 30, DIM)
KEYS = np.arange(ROWS) * 2
SAMPLE, QUERIES = VECTORS[:3000], VECTORS[ROWS:]
BUDGET = {"IVF32,Flat": 3_500_000, "IVF32,SQ8": 2_500_000, "PCA16,IVF32,PQ8x4np": 2_300_000, "IVF32,RaBitQ": 2_400_000}


def blocks(size: int = 700, rows: int = ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, rows, size):
        stop = min(start + size, rows)
        yield KEYS[start:stop], VECTORS[start:stop]


def built(path: Path, factory: str = "IVF32,SQ8", stream: Any = None, **arguments: Any) -> Any:
    arguments = {"memory_budget": BUDGET.get(factory, 2_500_000), "sample": SAMPLE, **arguments}
    return build_sharded(blocks() if stream is None else stream, path, factory=factory, **arguments)


def at_once(factory: str, metric: Any = "cosine") -> FaissIndex:
    index = FaissIndex(factory, metric=metric)
    index.train(SAMPLE)
    index.add(KEYS, VECTORS[:ROWS])
    return index


# Equal to one built at once


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("factory", BUDGET)
def test_it_finds_what_an_index_built_at_once_finds(factory: str, metric: str, tmp_path: Path) -> None:
    report = built(tmp_path / "index", factory, metric=metric)
    assert report.shards >= 3
    assert report.rows == ROWS
    assert report.reused == 0
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    index, wanted = FaissIndex.open(tmp_path / "index"), at_once(factory, metric)
    assert len(index) == ROWS
    for options in ({"nprobe": 3}, {"nprobe": 32}):
        for allowed in (None, KEYS[100:5000:3], KEYS[:5]):
            a, b = (each.search(QUERIES, 20, options=options, allowed=allowed) for each in (index, wanted))
            np.testing.assert_array_equal(a.ids, b.ids)
            np.testing.assert_array_equal(a.scores, b.scores)
    if "RaBitQ" not in factory:
        pairs = np.tile(KEYS[:50], (len(QUERIES), 1))
        np.testing.assert_array_equal(index.score(QUERIES, pairs), wanted.score(QUERIES, pairs))


def test_the_size_of_blocks_and_of_shards_makes_no_difference(tmp_path: Path) -> None:
    found = []
    for i, (size, budget) in enumerate([(700, 2_500_000), (13, 50_000_000), (ROWS, 2_400_000)]):
        built(tmp_path / str(i), stream=blocks(size), memory_budget=budget)
        found.append(FaissIndex.open(tmp_path / str(i)).search(QUERIES, 20))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].ids, other.ids)
        np.testing.assert_array_equal(found[0].scores, other.scores)


def test_a_key_that_comes_again_replaces_its_row(tmp_path: Path) -> None:
    stream = [*blocks(), (KEYS[:10], VECTORS[5000:5010])]
    assert built(tmp_path / "index", stream=stream).rows == ROWS + 10
    index = FaissIndex.open(tmp_path / "index")
    np.testing.assert_array_equal(index.ids, KEYS)
    found = index.search(VECTORS[5000:5001], 2, options={"nprobe": 32})
    assert set(found.ids[0]) == {KEYS[0], KEYS[5000]}


@pytest.mark.parametrize("budget", [2_500_000, 50_000_000])
def test_a_key_that_comes_again_in_the_same_shard_replaces_its_row(budget: int, tmp_path: Path) -> None:
    stream = [(KEYS[9:10], VECTORS[:1]), *blocks(), (KEYS[10:3010], VECTORS[5000:8000]), (KEYS[:10], VECTORS[40:50])]
    assert built(tmp_path / "index", "IVF32,Flat", stream=stream, memory_budget=budget).rows == ROWS + 3011
    index = FaissIndex.open(tmp_path / "index")
    np.testing.assert_array_equal(index.ids, KEYS)
    last = VECTORS[[*range(40, 50), *range(5000, 8000), *range(3010, ROWS)]]
    np.testing.assert_allclose(index.score(last, KEYS[:, None])[:, 0], 1, atol=1e-6)


@pytest.mark.parametrize("sample", [SAMPLE, None])
def test_blocks_may_come_in_the_same_arrays_each_time(sample: np.ndarray | None, tmp_path: Path) -> None:
    def refilled() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        ids, vectors = np.empty(500, np.int64), np.empty((500, DIM), np.float32)
        for part in range(0, ROWS, 500):
            ids[:], vectors[:] = KEYS[part : part + 500], VECTORS[part : part + 500]
            yield ids, vectors

    with pytest.raises(ConnectionError):
        built(tmp_path / "index", "IVF32,Flat", stream=stopped(12))
    assert built(tmp_path / "index", "IVF32,Flat", stream=refilled()).reused
    built(tmp_path / "fresh", "IVF32,Flat", stream=refilled(), sample=sample)
    for name in ("index", "fresh"):
        index = FaissIndex.open(tmp_path / name)
        np.testing.assert_allclose(index.score(VECTORS[:ROWS], KEYS[:, None])[:, 0], 1, atol=1e-6)


def test_shards_stay_until_the_index_has_been_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise CorruptArtifact("It cannot be opened.", "Rebuild it.")

    with monkeypatch.context() as patched:
        patched.setattr(FaissIndex, "open", refused)
        with pytest.raises(CorruptArtifact):
            built(tmp_path / "index")
    assert not (tmp_path / "index").exists()
    assert built(tmp_path / "index").reused >= 3
    assert len(FaissIndex.open(tmp_path / "index")) == ROWS


def test_a_sample_is_drawn_from_the_first_rows_if_none_is_given(tmp_path: Path) -> None:
    report = built(tmp_path / "index", sample=None, train_size=2000, memory_budget=4_000_000)
    index = FaissIndex.open(tmp_path / "index")
    assert report.rows == len(index) == ROWS
    own = index.search(VECTORS[:ROWS], 1, options={"nprobe": 32}).ids[:, 0]
    assert (own == KEYS).mean() > 0.99


# A FaissIndex like any other


def test_it_can_be_moved_changed_saved_and_opened_again(tmp_path: Path) -> None:
    built(tmp_path / "first")
    shutil.move(tmp_path / "first", tmp_path / "moved")
    index = FaissIndex.open(tmp_path / "moved")
    index.add(np.array([1, KEYS[7]]), QUERIES[:2])
    index.remove(KEYS[:5])
    assert index.search(QUERIES[:2], 1).ids[:, 0].tolist() == [1, KEYS[7]]
    index.save(tmp_path / "second")
    shutil.rmtree(tmp_path / "moved")
    for opened in (index, FaissIndex.open(tmp_path / "second")):
        np.testing.assert_array_equal(opened.ids, np.sort([1, *KEYS[5:]]))
        found, wanted = opened.search(QUERIES, 20), index.search(QUERIES, 20)
        np.testing.assert_array_equal(found.ids, wanted.ids)
    with pytest.raises(UnsupportedOperation, match=r"lists on disk.*build_sharded|does not keep the vectors"):
        index.compact()


def test_lists_on_disk_cannot_be_compacted_in_memory(tmp_path: Path) -> None:
    built(tmp_path / "index", "IVF32,Flat")
    index = FaissIndex.open(tmp_path / "index")
    with pytest.raises(UnsupportedOperation, match=r"lists on disk.*build_sharded"):
        index.compact()
    assert len(index) == ROWS


def test_nothing_is_printed_and_no_path_is_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    built(tmp_path / "index")
    FaissIndex.open(tmp_path / "index").save(tmp_path / "again")
    FaissIndex.open(tmp_path / "again")
    assert capfd.readouterr() == ("", "")
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes()


@pytest.mark.parametrize("name", ["index.faiss", "index.ivfdata", "ids.npy", "alive.npy"])
def test_an_altered_file_is_noticed(name: str, tmp_path: Path) -> None:
    built(tmp_path / "index")
    file = tmp_path / "index" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptArtifact):
        FaissIndex.open(tmp_path / "index")
    file.write_bytes(data[:-8])
    with pytest.raises(CorruptArtifact):
        FaissIndex.open(tmp_path / "index", verify=False)


# Stopped and taken up again


def stopped(after: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for i, block in enumerate(blocks()):
        if i == after:
            raise ConnectionError
        yield block


def test_a_build_that_was_stopped_goes_on_from_its_shards(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        built(tmp_path / "index", stream=stopped(12))
    work = tmp_path / "index.shards"
    kept = {path.name: path.stat().st_mtime_ns for path in work.rglob("index.faiss")}
    assert not (tmp_path / "index").exists()
    shards = sorted(path.name for path in work.iterdir())
    assert shards[-1] == "trained"
    assert len(shards) >= 3
    trained = (work / "trained" / "index.faiss").stat().st_mtime_ns
    report = built(tmp_path / "index", sample=None, memory_budget=3_000_000)  # nothing is learnt again
    assert report.reused == len(shards) - 1
    assert report.shards > report.reused
    assert report.rows == ROWS
    assert kept
    assert trained
    assert not work.exists()
    built(tmp_path / "whole")
    found, wanted = (FaissIndex.open(tmp_path / name).search(QUERIES, 20) for name in ("index", "whole"))
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_array_equal(found.scores, wanted.scores)


def test_a_build_killed_at_any_moment_goes_on(tmp_path: Path) -> None:
    script = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_shards
count, at = 0, int(sys.argv[1])
def killed(real):
    def fsync(*arguments):
        global count
        count += 1
        if count == at:
            os._exit(9)
        return real(*arguments)
    return fsync
os.fsync = killed(os.fsync)
test_shards.built(Path(sys.argv[2]))
"""
    ends = []
    for at in (1, 4, 9, 14, 20, 23):
        run = [sys.executable, "-c", script, str(at), str(tmp_path / "index")]
        ends.append(subprocess.run(run, check=False, capture_output=True).returncode)
        if (tmp_path / "index").exists():
            break
    assert 9 in ends
    if not (tmp_path / "index").exists():
        built(tmp_path / "index")
    index = FaissIndex.open(tmp_path / "index")
    np.testing.assert_array_equal(index.ids, KEYS)
    wanted = at_once("IVF32,SQ8").search(QUERIES, 20)
    np.testing.assert_array_equal(index.search(QUERIES, 20).ids, wanted.ids)


def test_shards_of_other_settings_or_rows_are_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        built(tmp_path / "index", stream=stopped(12))
    with pytest.raises(ConfigurationError, match=r"begun with seed 0, not 5"):
        built(tmp_path / "index", seed=5)
    with pytest.raises(ConfigurationError, match=r"begun with factory 'IVF32,SQ8', not 'IVF32,Flat'"):
        built(tmp_path / "index", "IVF32,Flat", memory_budget=2_500_000)
    with pytest.raises(ConfigurationError, match=r"shard-00000 holds other rows"):
        built(tmp_path / "index", stream=((ids + 1, vectors) for ids, vectors in blocks()))
    with pytest.raises(ConfigurationError, match=r"shard-00000 holds other rows"):
        built(tmp_path / "index", stream=blocks(rows=100))
    assert built(tmp_path / "index").rows == ROWS


@pytest.mark.parametrize("name", ["shard-00001/index.faiss", "shard-00001/manifest.json", "trained/index.faiss"])
def test_what_was_begun_and_is_damaged_is_done_again_with_all_that_came_after_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConnectionError):
        built(tmp_path / "index", stream=stopped(12), memory_budget=2_350_000)
    before = len(list((tmp_path / "index.shards").glob("shard-*")))
    assert before > 2
    file = tmp_path / "index.shards" / name
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with pytest.warns(UserWarning, match=f"is damaged, and done again from there: .*{file.parent.name}"):
        report = built(tmp_path / "index", memory_budget=2_350_000)
    assert report.reused == (0 if file.parent.name == "trained" else 1)
    assert report.shards >= before
    assert not (tmp_path / "index.shards").exists()
    np.testing.assert_array_equal(
        FaissIndex.open(tmp_path / "index").search(QUERIES, 20).ids, at_once("IVF32,SQ8").search(QUERIES, 20).ids
    )


def test_what_a_newer_release_has_begun_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        built(tmp_path / "index", stream=stopped(12))
    manifest = tmp_path / "index.shards" / "shard-00001" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(NewerFormat):
        built(tmp_path / "index")
    assert manifest.exists()


# Memory, and bad input


def test_less_memory_makes_more_shards(tmp_path: Path) -> None:
    shards = [built(tmp_path / str(m), memory_budget=m).shards for m in (2_400_000, 2_700_000, 30_000_000)]
    assert shards[0] > shards[1] > shards[2] == 1


@pytest.mark.parametrize("budget", [200_000, 2_200_000])
def test_too_little_memory_is_named_with_what_it_takes(budget: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"memory_budget is {budget}.* takes \d+ bytes or more"):
        built(tmp_path / "index", "IVF512,SQ8", memory_budget=budget)


@pytest.mark.parametrize("budget", [3e6, "3GB", None, 0])
def test_a_budget_that_is_no_number_of_bytes_is_named(budget: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"memory_budget is {budget!r}\..*whole number of bytes"):
        built(str(tmp_path / "index"), memory_budget=budget)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("train_size", -5), ("seed", "1"), ("metric", "dot"), ("factory", 5)])
def test_a_setting_that_cannot_be_is_named_before_any_work(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"{name}.*{value}"):
        built(tmp_path / "index", **{name: value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF32,SQ8,RFlat", "IVF32,PQ8x4fs", "SQ8"])
def test_an_index_that_cannot_be_merged_is_refused(factory: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"'{factory}' cannot be merged on disk.*IVF4096,SQ8"):
        built(tmp_path / "index", factory)


def test_wrong_blocks_are_named_and_what_was_done_stays(tmp_path: Path) -> None:
    wrong = [*blocks(), (KEYS[:5], VECTORS[:5, :7])]
    with pytest.raises(ShapeError, match="blocks has 7 dimensions"):
        built(tmp_path / "index", stream=wrong)
    with pytest.raises(ShapeError, match="5 ids for 6"):
        built(tmp_path / "index", stream=[*blocks(), (KEYS[:5], VECTORS[:6])])
    assert built(tmp_path / "index").reused >= 2
    with pytest.raises(StorageError, match="exists"):
        built(tmp_path / "index")
    with pytest.raises(ConfigurationError, match=r"learn from 3000 vectors takes 1536000 bytes or more"):
        built(tmp_path / "little", memory_budget=1_500_000)
    for stream in ([], [(KEYS[:0], VECTORS[:0])]):
        with pytest.raises(InvalidInput, match="no rows"):
            built(tmp_path / "none", stream=iter(stream), sample=None)
    with pytest.raises(ConfigurationError, match=r"20 vectors to learn 32 lists"):
        built(tmp_path / "other", sample=SAMPLE[:20])
