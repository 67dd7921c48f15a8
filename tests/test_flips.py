"""One byte altered anywhere is noticed before a wrong answer is given.

A sample; ``python -m benchmarks faults`` alters bytes by the thousand.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tests.golden.make import EVERY, answers
from tests.test_golden import unpacked

from reperio.collection import Collection
from reperio.errors import CorruptArtifact, StorageError
from reperio.registry import resolve
from reperio.testing.flips import Altered, altered, made, offsets, structure
from reperio.testing.kinds import KINDS


@pytest.mark.parametrize("name", EVERY)
def test_an_index_with_an_altered_byte_is_not_opened(tmp_path: Path, name: str) -> None:
    signal, spec = EVERY[name]
    folder, kind = unpacked(name, tmp_path), resolve(spec["type"])
    sound, outcomes = answers(kind.open(folder), signal), Counter[str]()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        for number, offset in enumerate(offsets(file.stat().st_size, 4)):
            with altered(file, offset, 1 << number % 8):
                try:
                    opened = kind.open(folder)
                except StorageError:
                    outcomes["refused"] += 1
                    continue
                outcomes["as it was"] += 1  # space between two values of a manifest
                assert file.suffix == ".json"
                assert answers(opened, signal) == sound
    assert outcomes["refused"] > 4 * outcomes["as it was"]


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    made(tmp_path / "closed", "dense", KINDS["dense"][0])
    return tmp_path / "closed"


def test_an_altered_checkpoint_is_made_anew(closed: Path) -> None:
    subject = Altered.of(closed)
    for file in sorted(path for path in (closed / "indexes").rglob("*") if path.is_file()):
        for number, offset in enumerate(offsets(file.stat().st_size, 40 if file.suffix in ("", ".json") else 8)):
            with altered(file, offset, 1 << number % 8):
                assert subject.outcome() == "right", (file.name, offset)


def test_an_altered_database_gives_no_wrong_document(closed: Path) -> None:
    subject, outcomes = Altered.of(closed), Counter[str]()
    file = closed / "store.sqlite"
    for number, offset in enumerate(offsets(file.stat().st_size, 150)):
        with altered(file, offset, 1 << number % 8):
            outcomes[subject.outcome()] += 1
    assert set(outcomes) == {"right", "detected"}


def test_altered_pages_give_no_wrong_document(closed: Path) -> None:
    """Where it says what is a row, and of which type each column is, as opposed to what a row holds."""
    subject, outcomes = Altered.of(closed), Counter[str]()
    file = closed / "store.sqlite"
    places = structure(file)
    for number, place in enumerate(offsets(len(places), 250)):
        with altered(file, places[place], 1 << number % 8):
            outcomes[subject.outcome()] += 1
    assert set(outcomes) == {"right", "detected"}


@pytest.mark.parametrize("name", ["id20", "id50", "id3"])
def test_a_removal_that_is_altered_hides_no_document_and_brings_none_back(closed: Path, name: str) -> None:
    subject, file = Altered.of(closed), closed / "store.sqlite"
    outcomes = [subject.outcome()]
    # The types of a row's columns come before them, that of `removed` last.
    place = file.read_bytes().index(f"{name}text {name[2:]}".encode()) - 1
    for bit in range(8):
        with altered(file, place, 1 << bit):
            outcomes.append(subject.outcome())
    assert set(outcomes) <= {"right", "detected"}
    assert outcomes.count("detected") > 2


def test_a_log_that_a_killed_writer_left_is_not_cut_short_in_silence(tmp_path: Path) -> None:
    """SQLite takes what follows a damaged byte for a commit that was not finished: it was, and that is noted."""
    folder = tmp_path / "killed"
    made(folder, "dense", KINDS["dense"][0], log=True)
    subject, file = Altered.of(folder), folder / "store.sqlite-wal"
    outcomes = Counter[str]()
    for number, offset in enumerate([*range(0, 56, 3), *offsets(file.stat().st_size, 80)]):
        with altered(file, offset, 1 << number % 8):
            outcomes[subject.outcome()] += 1
    assert set(outcomes) <= {"right", "detected"}
    assert outcomes["detected"] > 80
    data = bytearray(file.read_bytes())
    data[5000] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptArtifact, match=r"commit \d+ was acknowledged\. Restore a backup; or remove"):
        Collection.open(folder, mode="r")
    with pytest.raises(CorruptArtifact, match="acknowledged"):  # and nothing is made in its place
        Collection.open(folder)


def test_the_note_of_the_last_commit_is_gone_when_a_collection_is_closed(closed: Path) -> None:
    assert not (closed / "acknowledged").exists()
    with Collection.open(closed) as collection:
        assert (closed / "acknowledged").read_bytes().split()[0] == b"%020d" % collection.seq
        collection.delete(["id9"])
        assert (closed / "acknowledged").read_bytes().split()[0] == b"%020d" % collection.seq
        (closed / "acknowledged").write_bytes(b"99999999999999999999 00000000\n")  # altered: it says nothing
        with Collection.open(closed, mode="r") as reader:
            assert reader.count() == collection.count()
    assert not (closed / "acknowledged").exists()
