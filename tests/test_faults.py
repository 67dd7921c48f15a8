"""A disk that refuses, at any moment, costs no answer and no document.

What Python writes is refused call by call; what libraries write, by a limit on files and by a disk of a few pages. The
whole campaign, over every kind of index and every operation, is ``python -m benchmarks faults``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reperio.errors import DiskFull, MissingDependency, StorageError
from reperio.indexes import FaissIndex, FlatIndex
from reperio.indexes.shards import build_sharded
from reperio.protocols import Index, Spec, Trainable
from reperio.registry import build, resolve
from reperio.testing.faults import RefusingDisk, file_limit, leftovers, small_disk
from reperio.testing.kinds import KINDS, encoder, label
from reperio.testing.refusals import Subject, documents
from reperio.types import Neighbors

EVERY = [(signal, spec) for signal, specs in KINDS.items() for spec in specs]
ROWS = 120
CODES = cycle([errno.ENOSPC, errno.EIO])
"""A full disk stays full; a broken one breaks once."""


def filled(signal: str, spec: Spec) -> tuple[Index[Any], Callable[[Index[Any]], Neighbors]]:
    texts = [document.text for document in documents(0, ROWS)]
    try:
        index: Index[Any] = build(spec)
        rows = encoder(signal).encode_document(texts).embeddings
        if isinstance(index, Trainable) and index.training_size:
            index.train(rows)
        index.add(np.arange(ROWS), rows)
    except MissingDependency as error:
        pytest.skip(str(error))
    index.remove(np.arange(3))
    asked = encoder(signal).encode_query(texts[50:53]).embeddings
    return index, lambda one: one.search(asked, 5)


def refused(index: Index[Any], path: Path, disk: AbstractContextManager[Any]) -> StorageError | None:
    """What saving raises; nothing is left then."""
    try:
        with disk:
            index.save(path)
    except StorageError as error:
        assert list(path.parent.iterdir()) == []
        return error
    return None


@pytest.mark.parametrize(("signal", "spec"), EVERY, ids=[label(spec) for _, spec in EVERY])
def test_an_index_that_cannot_be_saved_says_so_and_goes_on(tmp_path: Path, signal: str, spec: Spec) -> None:
    index, ask = filled(signal, spec)
    before, path = ask(index), tmp_path / "saved" / "index"
    path.parent.mkdir()
    with RefusingDisk(path.parent) as disk:
        index.save(path)
    sizes = {file.stat().st_size for file in path.rglob("*") if file.is_file()}
    opened: Index[Any] = resolve(spec["type"]).open(path)
    assert ask(opened).ids.tolist() == before.ids.tolist()
    path.rename(tmp_path / "whole")
    for number, code in enumerate(islice(CODES, len(disk.calls))):
        refusing = RefusingDisk(path.parent, refuse=number, code=code)
        error = refused(index, path, refusing)
        if error is None:  # to make a folder that is there
            assert "mkdir" in str(refusing.refused)
            path.rename(tmp_path / f"whole-{number}")
        else:
            assert isinstance(error, DiskFull) == (code == errno.ENOSPC)
    # The last byte of each file is the one that a library forgets to look after.
    for limit in sorted({size - 1 for size in sizes} | {max(sizes) // 2}):
        if limit < max(sizes):
            assert isinstance(refused(index, path, file_limit(limit)), DiskFull), limit
    index.save(path)
    again: Index[Any] = resolve(spec["type"]).open(path)
    for one in (index, again):
        np.testing.assert_array_equal(ask(one).ids, before.ids)
        np.testing.assert_array_equal(ask(one).scores, ask(opened).scores if one is again else before.scores)


@pytest.mark.parametrize("operation", ["checkpoint", "reindex", "rollback", "compact", "migrate"])
def test_whatever_call_is_refused_a_collection_keeps_its_answers(tmp_path: Path, operation: str) -> None:
    subject = Subject(tmp_path, "dense", {"type": "FlatIndex"}, operation)
    counting = RefusingDisk(tmp_path)
    subject.undisturbed(counting)
    assert len(counting.calls) >= 5
    for number, code in enumerate(islice(CODES, len(counting.calls))):
        disk = RefusingDisk(tmp_path, refuse=number, code=code)
        raised, problems = subject.refused(disk)
        assert not problems, (disk.refused, raised)
        assert raised == ("DiskFull" if code == errno.ENOSPC else "StorageError") or "mkdir" in str(disk.refused)


@contextmanager
def left(leave: Callable[[int | None], None], free: int) -> Generator[None]:
    leave(free)
    try:
        yield
    finally:
        leave(None)


@pytest.mark.parametrize("operation", ["checkpoint", "compact", "upsert", "delete", "migrate"])
def test_whatever_no_longer_fits_a_collection_keeps_its_answers(tmp_path: Path, operation: str) -> None:
    """SQLite and FAISS write past Python: they are given a disk that is one step larger each time."""
    try:
        with small_disk(tmp_path / "disk", 16 << 20) as leave:
            subject = Subject(tmp_path / "disk", "dense", {"type": "FaissIndex", "factory": "IVF4,SQ8"}, operation)
            outcomes = list[str]()
            while not outcomes or outcomes[-1]:
                free = 24_576 * len(outcomes)
                raised, problems = subject.refused(left(leave, free))
                assert not problems, (free, raised)
                outcomes.append(raised)
    except PermissionError:
        pytest.skip("only root may mount a file system; the limit on files is tested beside it")
    assert set(outcomes[:-1]) == {"DiskFull"}


@pytest.mark.parametrize("operation", ["compact", "upsert"])
def test_whatever_file_may_not_grow_a_collection_keeps_its_answers(tmp_path: Path, operation: str) -> None:
    subject = Subject(tmp_path, "dense", {"type": "FlatIndex"}, operation)
    outcomes = list[str]()
    while not outcomes or outcomes[-1]:
        size = 40_000 * len(outcomes)
        raised, problems = subject.refused(file_limit(size))
        assert not problems, (size, raised)
        outcomes.append(raised)
    assert set(outcomes[:-1]) == {"DiskFull"}


def test_a_build_in_shards_goes_on_after_any_refusal(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blocks = [(np.arange(i, i + 500), rng.standard_normal((500, 8), dtype=np.float32)) for i in range(0, 3000, 500)]

    def built(path: Path) -> None:
        build_sharded(blocks, path, factory="IVF4,SQ8", memory_budget=620_000, sample=blocks[0][1])

    with RefusingDisk(tmp_path) as counting:
        built(tmp_path / "whole")
    wanted = FaissIndex.open(tmp_path / "whole").search(blocks[2][1][:20], 5)
    assert sum(call.startswith("rename") for call in counting.calls) > 4  # what was learnt, some shards, the whole
    for number, code in zip(range(0, len(counting.calls), 7), CODES, strict=False):
        path = tmp_path / f"built-{number}"
        with RefusingDisk(tmp_path, refuse=number, code=code) as disk, suppress(StorageError):
            built(path)
        if not path.exists():
            built(path)
        found = FaissIndex.open(path).search(blocks[2][1][:20], 5)
        np.testing.assert_array_equal(found.ids, wanted.ids, err_msg=str(disk.refused))
        assert leftovers(tmp_path) == []


def test_a_refusal_is_an_oserror_of_this_package(tmp_path: Path) -> None:
    index = FlatIndex()
    index.add(np.arange(3), np.eye(3, dtype=np.float32))
    with RefusingDisk(tmp_path, refuse=2) as disk, pytest.raises(DiskFull, match="Free some space") as raised:
        index.save(tmp_path / "index")
    assert isinstance(raised.value, OSError)
    assert disk.refused
