"""Opening a saved index: what is checked, when, and how often."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from reperio import artifacts
from reperio.errors import CorruptArtifact, NotFound
from reperio.indexes import FaissIndex
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
