"""Opening a saved index: what is checked, when, and how often."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reperio import Collection, Document, Signal, artifacts
from reperio.encoders import HashEncoder
from reperio.errors import ConfigurationError, CorruptArtifact, NotFound
from reperio.indexes import BinaryIndex, FaissIndex
from reperio.indexes.layers import Layers
from reperio.indexes.verified import read_verified
from reperio.testing.index import clustered

ROWS = clustered(500, 16)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    index = FaissIndex("Flat")
    index.add(np.arange(500), ROWS)
    index.save(tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose checksums were read."""
    names: list[str] = []
    real = artifacts.sha256

    def noted(path: Path) -> str:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(artifacts, "sha256", noted)
    return names


def flip(file: Path, *, keep_times: bool = False) -> None:
    before, data = file.stat(), bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    if keep_times:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_mapped_folder_is_verified_once(saved: Path, read: list[str]) -> None:
    FaissIndex.open(saved, mmap=True)
    assert "index.faiss" in read
    read.clear()
    for _ in range(3):
        FaissIndex.open(saved, mmap=True)
    assert "index.faiss" not in read
    FaissIndex.open(saved)
    assert "index.faiss" in read


@pytest.mark.parametrize("keep_times", [False, True])
@pytest.mark.parametrize("name", ["index.faiss", "ids.npy", "alive.npy"])
def test_a_file_that_was_written_to_is_verified_again(name: str, keep_times: bool, saved: Path) -> None:
    FaissIndex.open(saved, mmap=True)
    flip(saved / name, keep_times=keep_times)  # the time of the change itself cannot be set
    with pytest.raises(CorruptArtifact, match=name):
        FaissIndex.open(saved, mmap=True)


def test_another_folder_of_the_same_name_is_verified_again(saved: Path, read: list[str]) -> None:
    FaissIndex.open(saved, mmap=True)
    saved.rename(saved.with_name("old"))
    index = FaissIndex("Flat")
    index.add(np.arange(500), ROWS[::-1])
    index.save(saved)
    read.clear()
    FaissIndex.open(saved, mmap=True)
    assert "index.faiss" in read


def test_without_verifying_sizes_are_checked_all_the_same(saved: Path, read: list[str]) -> None:
    FaissIndex.open(saved, mmap=True, verify=False)
    FaissIndex.open(saved, verify=False)
    assert "index.faiss" not in read
    flip(saved / "index.faiss")
    FaissIndex.open(saved, mmap=True, verify=False)
    data = (saved / "index.faiss").read_bytes()
    (saved / "index.faiss").write_bytes(data[:-1])
    with pytest.raises(CorruptArtifact, match="bytes long"):
        FaissIndex.open(saved, mmap=True, verify=False)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    for verify in (False, True):
        with pytest.raises(NotFound, match="manifest"):
            FaissIndex.open(tmp_path / "none", mmap=True, verify=verify)


def test_a_folder_found_bad_is_not_taken_for_verified(saved: Path) -> None:
    flip(saved / "index.faiss")
    for _ in range(2):
        with pytest.raises(CorruptArtifact):
            read_verified(saved, "faiss-index", once=True)


def test_keys_that_are_mapped_can_change(saved: Path) -> None:
    """The file under them does not."""
    before = (saved / "alive.npy").read_bytes()
    index = FaissIndex.open(saved, mmap=True)
    index.remove(np.arange(100))
    index.add(np.array([5, 900]), ROWS[[5, 6]])
    np.testing.assert_array_equal(index.ids, [5, *range(100, 500), 900])
    assert (saved / "alive.npy").read_bytes() == before
    np.testing.assert_array_equal(FaissIndex.open(saved, mmap=True).ids, np.arange(500))


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF16,SQ8", "PCA12,IVF16,Flat", "IVF16,PQ4x4fs,RFlat"])
def test_many_rows_bring_a_mapped_file_into_memory_and_are_taken_in(factory: str, tmp_path: Path) -> None:
    rows = clustered(2000, 16)
    index = FaissIndex(factory, train_size=500)
    index.add(np.arange(600), rows[:600])
    index.save(tmp_path / "index")
    mapped = FaissIndex.open(tmp_path / "index", mmap=True)
    shutil.rmtree(tmp_path / "index")
    for start in range(500, 2000, 500):  # the first hundred are there already
        mapped.add(np.arange(start, start + 500), rows[start : start + 500])
        index.add(np.arange(start, start + 500), rows[start : start + 500])
    assert len(mapped._held.tail) == 0
    np.testing.assert_array_equal(mapped.ids, np.arange(2000))
    found, wanted = mapped.search(rows[::40], 10), index.search(rows[::40], 10)
    assert np.mean([np.isin(w, f).mean() for w, f in zip(wanted.ids, found.ids, strict=True)]) > 0.99


SPECS: dict[str, Any] = {
    "Flat": lambda: FaissIndex("Flat"),
    "HNSW16": lambda: FaissIndex("HNSW16"),
    "IVF8,SQ8": lambda: FaissIndex("IVF8,SQ8", train_size=300),
    "BFlat": lambda: BinaryIndex(),  # is read into memory
}


@pytest.mark.parametrize("kind", SPECS)
def test_a_collection_leaves_its_checkpoint_on_disk_and_goes_on(kind: str, tmp_path: Path) -> None:
    def documents(first: int, last: int) -> list[Document]:
        return [Document(f"d{i}", f"passage {i} of {i % 7}") for i in range(first, last)]

    def mapped() -> bool:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return any(str(tmp_path) in line and "index.faiss" in line for line in lines)

    def ids(opened: Collection) -> list[tuple[str, ...]]:
        return [tuple(ranking.ids) for ranking in opened.search(["passage 5", "of 3"], 5)]

    with Collection.open(tmp_path / "c", signals={"dense": Signal(HashEncoder(32), SPECS[kind]())}) as first:
        first.upsert(documents(0, 600))
        first.checkpoint()
        before = ids(first)
    reader = Collection.open(tmp_path / "c", mode="r")
    assert ids(reader) == before
    assert mapped() == (kind != "BFlat")
    with Collection.open(tmp_path / "c") as writer:
        for first_id, last in ((600, 700), (700, 800), (800, 2000)):  # the last are too many to wait beside the file
            writer.upsert(documents(first_id, last))
            writer.delete([f"d{first_id}"])
            writer.checkpoint()
            assert ids(reader) == ids(writer)
    with Collection.open(tmp_path / "c") as again:
        assert ids(again) == ids(reader)
        assert not again.verify().problems
    reader.close()


def test_a_folder_whose_factory_is_refused_by_now_measures_as_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = clustered(300, 16) + np.float32(0.5)
    with monkeypatch.context() as before:
        before.setattr(Layers, "changed", lambda *_, **__: None)
        index = FaissIndex("PCA8,Flat", metric="ip", train_size=200)
        index.add(np.arange(300), rows)
        index.save(tmp_path / "old")
    with pytest.raises(ConfigurationError, match="takes the mean away"):
        FaissIndex("PCA8,Flat", metric="ip", train_size=200).add(np.arange(300), rows)
    opened = FaissIndex.open(tmp_path / "old")
    np.testing.assert_array_equal(opened.search(rows[:9], 5).ids, index.search(rows[:9], 5).ids)
    opened.add(np.array([300]), rows[:1])
    assert {0, 300} <= set(opened.search(rows[:1], 300).ids[0].tolist())
