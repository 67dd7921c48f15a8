"""One byte altered in an index of SQLite's: what it leads to is not taken for the truth."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reperio.errors import CorruptArtifact, StorageError
from reperio.stores import sqlite_indexes
from reperio.stores.rows import Entry
from reperio.stores.sqlite import SQLiteStore
from reperio.testing.flips import altered, offsets, structure
from reperio.types import Document

COMMITS = range(0, 13, 3)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("indexes") / "store.sqlite"
    with closing(SQLiteStore(path)) as store:
        for start in range(0, 48, 4):
            old = store.find([f"d{i}" for i in range(start // 2, start, 5)])
            entries = [Entry.of(Document(f"d{i}", f"text {i}")) for i in range(start, start + 4)]
            store.commit(entries, np.array(sorted(old.values()), np.int64))
    return path


def asked(path: Path) -> list[tuple[str, Any]]:
    """What each question is answered; one that is refused is left out."""
    found: list[tuple[str, Any]] = []
    try:
        with closing(SQLiteStore(path, mode="r")) as store:
            ids = [f"d{i}" for i in range(50)]
            questions = {
                **{f"removed since {seq}": lambda seq=seq: store.removed_since(seq).tolist() for seq in COMMITS},
                **{f"added since {seq}": lambda seq=seq: store.added_since(seq).tolist() for seq in COMMITS},
                **{f"live at {seq}": lambda seq=seq: store.matching(None, at=seq).tolist() for seq in COMMITS},
                **{f"find {name}": lambda name=name: store.find([name]) for name in ids},
                "count": store.count,
            }
            for name, question in questions.items():
                try:
                    found.append((name, question()))
                except StorageError:
                    continue
    except StorageError:
        pass
    return found


@pytest.mark.parametrize("index", ["live", "by_added", "by_removed", "documents"])
def test_no_answer_is_wrong_when_an_index_has_an_altered_byte(file: Path, index: str) -> None:
    sound, outcomes = dict(asked(file)), Counter[str]()
    with closing(sqlite3.connect(file)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (index,)).fetchone()
    places = [place for place in structure(file) if place // 8192 == page - 1]
    assert len(places) > 100
    for number, at in enumerate(offsets(len(places), 130, seed=1)):
        with altered(file, places[at], 1 << number % 8):
            found = asked(file)
        wrong = [f"{name}: {answer} not {sound[name]}" for name, answer in found if answer != sound[name]]
        assert not wrong, (places[at], number % 8, wrong)
        outcomes["right" if len(found) == len(sound) else "refused"] += 1
    assert outcomes["refused"] > 30


def test_a_purge_takes_no_live_document_away_that_an_altered_index_leads_to(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with closing(SQLiteStore(path)) as store:
        store.commit([Entry.of(Document(f"d{i}", f"text {i}")) for i in range(8)], np.empty(0, np.int64))
        store.commit([], np.array([5]))
    # An entry is how long the head is, of which type the columns are, the commit, and the row.
    place = path.read_bytes().index(bytes([3, 1, 1, 2, 5])) + 4
    with altered(path, place, 5 ^ 4), closing(SQLiteStore(path)) as store:
        with pytest.raises(CorruptArtifact):
            store.purge()
        assert store.held(np.array([4])).tolist() == [4]
    with closing(SQLiteStore(path)) as store:
        assert store.purge() == 1
        assert sorted(store.find([f"d{i}" for i in range(8)]).values()) == [1, 2, 3, 4, 6, 7, 8]


def test_of_its_own_commits_a_writer_reads_what_they_changed_and_of_others_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read, agree = tmp_path / "store.sqlite", list[str](), sqlite_indexes.agree

    def counted(run: Any) -> None:
        read.append("everything")
        agree(run)

    monkeypatch.setattr(sqlite_indexes, "agree", counted)
    none = np.empty(0, np.int64)
    with closing(SQLiteStore(path)) as store, closing(SQLiteStore(path, mode="r")) as reader:
        store.commit([Entry.of(Document(f"d{i}", f"text {i}")) for i in range(8)], none)
        assert store.matching(None).tolist() == reader.matching(None).tolist() == list(range(1, 9))
        assert len(read) == 2
        store.commit([], np.array([5]))
        flush(store)
        place = path.read_bytes().index(bytes([3, 1, 1, 2, 5])) + 4
        with altered(path, place, 5 ^ 4):
            with pytest.raises(CorruptArtifact, match="row 4 was removed"):
                store.matching(None)
            store._connection.execute("PRAGMA shrink_memory")
        assert store.matching(None).tolist() == [1, 2, 3, 4, 6, 7, 8]
        assert len(read) == 2
        assert reader.matching(None).tolist() == [1, 2, 3, 4, 6, 7, 8]
        assert len(read) == 3
        assert store.purge() == 1  # over a connection of its own, which reads everything as well
        assert store.matching(None).tolist() == [1, 2, 3, 4, 6, 7, 8]
        store.commit([Entry.of(Document("late", "a walrus"))], none)
        assert store.matching(None).tolist() == [1, 2, 3, 4, 6, 7, 8, 9]
        assert len(read) == 5


def flush(store: SQLiteStore) -> None:
    """Have what was committed read from the file again."""
    store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    store._connection.execute("PRAGMA shrink_memory")


def test_no_row_is_taken_for_absent_that_an_altered_page_leads_past(tmp_path: Path) -> None:
    path, rows = tmp_path / "store.sqlite", np.arange(1, 401)
    with closing(SQLiteStore(path)) as store:
        store.commit([Entry.of(Document(f"d{i}", f"text {i} " * 20)) for i in rows.tolist()], np.empty(0, np.int64))
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'documents'").fetchone()
    root = (page - 1) * 8192
    places = [place for place in structure(path) if root <= place < root + 8192]
    assert path.read_bytes()[root] == 5  # not the rows themselves, but which page has which
    outcomes = Counter[str]()
    for place, bit in product(places, (1, 4)):
        with altered(path, place, 1 << bit):
            try:
                with closing(SQLiteStore(path, mode="r")) as store:
                    assert store.held(np.arange(1, 410)).tolist() == rows.tolist()
                outcomes["right"] += 1
            except StorageError:
                outcomes["refused"] += 1
    assert outcomes["refused"] > 100
