"""What a reader of the file sees of a writer that comes later, and what closing it leaves."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from reperio import Collection, Document, lexical
from reperio.errors import CorruptArtifact, ReadOnly
from reperio.stores.rows import Entry
from reperio.stores.sqlite import SQLiteStore
from reperio.stores.sqlite_file import SQLiteFile

NONE = np.empty(0, np.int64)


def entry(name: str) -> Entry:
    return Entry.of(Document(name, "some words"))


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What is opened for reading is, until this is undone, on media that cannot be written."""
    opened = SQLiteFile._open

    def read_only(self: SQLiteFile, uri: str) -> sqlite3.Connection:
        if uri.endswith("mode=ro"):
            raise sqlite3.OperationalError("unable to open database file")
        return opened(self, uri)

    monkeypatch.setattr(SQLiteFile, "_open", read_only)
    return monkeypatch


def test_a_reader_of_read_only_media_goes_on_when_a_writer_comes(tmp_path: Path, frozen: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "c"
    with Collection.open(folder, signals=lexical()) as writer:
        writer.upsert([Document("a", "alpha word")], progress=False)
    with Collection.open(folder, mode="r") as reader:
        assert reader._store._frozen is not None
        assert reader.search("word").ids == ["a"]
        frozen.undo()
        with Collection.open(folder) as writer:
            writer.upsert([Document("b", "beta word")], progress=False)
            assert reader.count() == 2
            assert reader.search("word").ids == ["a", "b"]
            writer.delete(["a"])
            assert reader.search("word").ids == ["b"]


def test_an_empty_log_hides_no_commit_that_is_written_to_it(tmp_path: Path, frozen: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.sqlite"
    with closing(SQLiteStore(path)) as store:
        store.commit([entry("a")], NONE)
    with closing(SQLiteStore(path)) as writer:
        log = path.with_name(path.name + "-wal")
        assert log.stat().st_size == 0
        with closing(SQLiteStore(path, mode="r")) as reader:
            assert reader._frozen is not None
            frozen.undo()
            assert not reader.refresh()
            writer.commit([entry("b")], NONE)
            assert log.stat().st_size > 0
            assert reader.refresh()
            assert (reader.seq, reader.count()) == (2, 2)


def test_media_that_cannot_be_read_again_yet_are_tried_again(tmp_path: Path, frozen: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.sqlite"
    with closing(SQLiteStore(path)) as store:
        store.commit([entry("a")], NONE)
    with closing(SQLiteStore(path, mode="r")) as reader, closing(SQLiteStore(path)) as writer:
        writer.commit([entry("b")], NONE)
        for _ in range(2):
            with pytest.raises(ReadOnly):
                reader.refresh()
        frozen.undo()
        assert reader.refresh()
        assert reader.count() == 2


def test_an_altered_sequence_number_is_told_each_time(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with closing(SQLiteStore(path)) as store, closing(SQLiteStore(path, mode="r")) as reader:
        store.commit([entry("a")], NONE)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("UPDATE meta SET value = '?' WHERE name = 'seq'")
        for _ in range(2):
            with pytest.raises(CorruptArtifact, match="its sequence numbers were altered"):
                reader.refresh()


def test_a_log_that_another_process_removes_meanwhile_does_not_keep_a_store_from_closing(tmp_path: Path) -> None:
    class Gone(type(tmp_path)):  # type: ignore[misc]  # the class of paths depends on the system
        def exists(self, **_: object) -> bool:
            return True

    store = SQLiteStore(tmp_path / "store.sqlite")
    store.commit([entry("a")], NONE)
    store._log = Gone(tmp_path / "removed-wal")
    assert store.size() == store.path.stat().st_size
    store.close()
    assert not (tmp_path / "acknowledged").exists()
