"""A collection in PostgreSQL does what one in a folder does, for many clients at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import psycopg
import pytest
from rich.console import Console

from reperio import Collection, Document, Field, Pipeline, Signal
from reperio.cli.inspecting import stats_view
from reperio.compression import PassageCompressor
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.given import GivenVectors
from reperio.encoders.hashing import HashEncoder
from reperio.encoders.verbatim import VerbatimEncoder
from reperio.errors import ConfigurationError, FingerprintMismatch, NotFound, ReadOnly, StaleResult, WriterBusy
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.faiss import FaissIndex
from reperio.indexes.flat import FlatIndex
from reperio.indexes.pgtext import PostgresTextIndex
from reperio.indexes.pgvector import PgvectorIndex

Where: TypeAlias = Literal["here", "there"]
Open: TypeAlias = Callable[..., Collection]

TOPICS = ["merge sorted lists", "parse json text", "open a socket", "compress a file", "match a pattern"]
_NUMBERS = count()


def documents(n: int = 60) -> list[Document]:
    return [
        Document(
            f"d{i}", f"{TOPICS[i % 5]} quickly, note {i}", {"n": i, "topic": TOPICS[i % 5].split(), "even": i % 2 == 0}
        )
        for i in range(n)
    ]


def signals(where: Where = "there", **settings: Any) -> dict[str, Signal[Any]]:
    """A hybrid whose dense index is in the database, or with each client."""
    index = PgvectorIndex(**settings) if where == "there" else FaissIndex()
    return {"bm25": Signal(BM25Encoder(), BM25Index(), stored=False), "dense": Signal(HashEncoder(64), index)}


@pytest.fixture
def name() -> str:
    return f"c{next(_NUMBERS)}"


@pytest.fixture
def open_(server: str, name: str, tmp_path: Path) -> Iterator[Open]:
    """Opens one collection, for one of several clients, each with a cache of its own."""
    opened: list[Collection] = []

    def open_(mode: Literal["r", "rw"] = "rw", client: str = "one", **settings: Any) -> Collection:
        collection = Collection.open(f"{server}#{name}", mode=mode, cache=tmp_path / client, **settings)
        opened.append(collection)
        return collection

    yield open_
    for collection in opened:
        collection._release()
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"SET client_min_messages = error; DROP SCHEMA IF EXISTS {name} CASCADE")  # type: ignore[arg-type]


@pytest.fixture
def admin(server: str) -> Iterator[Callable[..., list[Any]]]:
    """Runs statements as a superuser, on a connection of its own."""
    with psycopg.connect(server, autocommit=True) as connection:

        def run(statement: str, *values: object) -> list[Any]:
            cursor = connection.execute(statement, values or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

        yield run


@pytest.mark.parametrize("where", ["here", "there"])
def test_every_search_is_that_of_a_collection_in_a_folder(open_: Open, tmp_path: Path, where: Where) -> None:
    there = open_(signals=signals(where))
    with Collection.open(tmp_path / "folder", signals=signals("here")) as here:
        for c in (here, there):
            c.upsert(documents(300), batch_size=70)
            c.upsert([Document("d7", "an entirely new text"), Document("d8", documents()[8].text, {"n": -8})])
            c.delete([f"d{i}" for i in range(100, 120)])
        asked = [*TOPICS, "note 7 quickly"]
        for k, condition in [(5, None), (300, None), (7, Field("n") < 40), (9, Field("topic").contains("json"))]:
            for names in (["bm25"], ["dense"], None):
                found = [c.search(asked, k, where=condition, signals=names) for c in (here, there)]
                for a, b in zip(*found, strict=True):
                    np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
                    apart = np.abs(np.diff(a.scores)).min(initial=1.0) > 1e-4
                    assert not apart or a.ids == b.ids
        whys = [c.explain("merge sorted lists", "d60", k=300) for c in (here, there)]
        assert whys[0].score == pytest.approx(whys[1].score, abs=1e-5)
        assert [d.id for d in here.documents()] == [d.id for d in there.documents()]
        assert here.count(Field("even") == True) == there.count(Field("even") == True)  # noqa: E712
        assert there.verify().problems == ()
        assert there.compact() == here.compact() == 22
        assert there.search("an entirely new text", 1).ids == ["d7"]
        assert there.verify().problems == ()


def test_reopening_encodes_nothing_and_reads_the_same(open_: Open) -> None:
    with open_(signals=signals()) as first:
        assert first.upsert(documents()).encoded == {"dense": 60}
        wanted = [r.ids for r in first.search(TOPICS, 9)]
    for mode, client in (("r", "one"), ("r", "two"), ("rw", "two")):
        with open_(mode, client) as again:
            assert [r.ids for r in again.search(TOPICS, 9)] == wanted
    with open_(signals=signals()) as again:
        report = again.upsert([*documents(), Document("same", documents()[0].text)])
        assert (report.unchanged, report.added, report.encoded) == (60, 1, {})


def test_stats_say_of_an_index_in_the_database_that_every_commit_saves_it(open_: Open) -> None:
    with open_(signals=signals()) as c:
        c.upsert(documents(10))
        c.search("note")
        console = Console(width=200)
        with console.capture() as shown:
            console.print(stats_view(c.stats()))
        assert "dense: saved by every commit" in shown.get()
        assert "bm25: nothing saved" in shown.get()


@pytest.mark.parametrize("housed", [True, False], ids=["with the documents", "on a server of its own"])
def test_a_search_after_a_commit_waits_for_no_server_that_settles_its_rows(
    open_: Open, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, housed: bool
) -> None:
    parts = signals() if housed else signals(url=server)
    c = open_(signals=parts) if housed else Collection.open(tmp_path / "c", signals=parts)
    with c:
        c.upsert(documents(10))
        settling, go_on, settle = threading.Event(), threading.Event(), PgvectorIndex.settle

        def held_back(self: PgvectorIndex) -> None:
            settling.set()
            assert go_on.wait(60)
            settle(self)

        monkeypatch.setattr(PgvectorIndex, "settle", held_back)
        saving = threading.Thread(target=c.checkpoint)
        saving.start()
        found: list[str] = []
        try:
            assert settling.wait(60)

            def go_on_meanwhile() -> None:
                c.upsert([Document("late", "a walrus")], progress=False)
                found.extend(c.search("walrus", 1).ids)

            looking = threading.Thread(target=go_on_meanwhile, daemon=True)
            looking.start()
            looking.join(20)
            assert found == ["late"]
        finally:
            go_on.set()
            saving.join()
        c.checkpoint()
        assert c.verify().problems == ()
    if not housed:
        with Collection.open(tmp_path / "c", mode="r") as c:
            assert c.search("walrus", 1).ids == ["late"]
            assert c.verify().problems == ()


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_reader_sees_each_commit_at_the_next_search(open_: Open, where: Where) -> None:
    writer = open_(signals=signals(where))
    writer.upsert(documents(10))
    reader = open_("r", "two")
    assert reader.count() == 10
    writer.upsert([Document("new", "a walrus")])
    held = reader.search("walrus", 1)
    assert held.ids == reader.search("walrus", 1, signals=["dense"]).ids == ["new"]
    writer.delete(["new"])
    assert held[0].document.text == "a walrus"  # the version that was found, though it is deleted since
    assert "walrus" not in reader.search("walrus", 1)[0].document.text
    late = reader.search("note 3", 1, signals=["dense"])
    assert len(late) == 1
    writer.delete([d.id for d in documents(5)])
    writer.compact()
    with pytest.raises(StaleResult, match="Search again"):
        list(late)
    assert len(reader.search("note quickly", 10, signals=["dense"])) == 5
    for change in (lambda: reader.upsert([]), lambda: reader.delete(["d1"]), reader.compact, reader.checkpoint):
        with pytest.raises(ReadOnly, match="mode='rw'"):
            change()


@pytest.mark.parametrize(
    "fresh", [FaissIndex("HNSW16"), PgvectorIndex(index=None, dtype="float16")], ids=["local", "on the server"]
)
def test_a_reindex_is_everyones_and_can_be_rolled_back(open_: Open, name: str, admin: Any, fresh: Any) -> None:
    writer = open_(signals=signals())
    writer.upsert(documents(200))
    wanted = [r.ids for r in writer.search(TOPICS, 5)]
    reader = open_("r", "two")

    def kinds() -> list[str]:
        return [c.stats().signals["dense"]["index"]["type"] for c in (writer, reader)]

    assert kinds() == ["PgvectorIndex"] * 2
    writer.reindex("dense", fresh)
    assert kinds() == [type(fresh).__name__] * 2
    assert [r.ids for r in reader.search(TOPICS, 5)] == [r.ids for r in writer.search(TOPICS, 5)] == wanted
    writer.upsert([Document("new", "a walrus")])
    writer.rollback("dense")
    assert kinds() == ["PgvectorIndex"] * 2
    for c in (writer, reader):
        assert c.search("walrus", 1, signals=["dense"]).ids == ["new"]
    writer.delete(["new"])
    writer.rollback("dense")
    assert kinds() == [type(fresh).__name__] * 2
    for c in (writer, reader):
        assert c.count() == 200
        assert "new" not in c.search("walrus", 200, signals=["dense"]).ids
        assert c.verify().problems == ()
    writer.compact()
    writer.rollback("dense")  # what was out of use while the store was compacted is filled anew
    assert writer.search("merge sorted lists", 200, signals=["dense"]).scores.shape == (200,)
    assert writer.verify().problems == ()
    tables = admin(
        "SELECT count(*) FROM pg_tables WHERE schemaname = %s AND tablename LIKE 'index~_%%' ESCAPE '~'", name
    )
    assert tables[0][0] <= 2
    with pytest.raises(NotFound, match="roll back"):
        writer.rollback("bm25")


def test_the_approximate_index_is_built_at_a_checkpoint(open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reperio.indexes.pgvector.BUILT_FROM", 100)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((1500, 32)).astype(np.float32)
    given = {"dense": Signal(GivenVectors(32), PgvectorIndex(dtype="float16"))}
    flat = FlatIndex()
    flat.add(np.arange(1500), vectors)
    with open_(signals=given) as c:
        c.upsert([Document(str(i), f"t{i}", {"n": i}) for i in range(1500)], embeddings={"dense": vectors})
        scanned = c.search(["?"] * 20, 10, embeddings={"dense": vectors[:20]})
        c.checkpoint()
        state = c._signals["dense"].index._look()
        assert state.built == state.rows == 1500
        walked = c.search(["?"] * 20, 10, embeddings={"dense": vectors[:20]})
        wanted = flat.search(vectors[:20], 10)
        for a, b, ids, scores in zip(scanned, walked, wanted.ids, wanted.scores, strict=True):
            assert [int(name) for name in a.ids] == ids.tolist()
            assert len(set(a.ids) & set(b.ids)) >= 9
            np.testing.assert_allclose(a.scores, scores, atol=1e-5)  # exact, though the index keeps half of each value
        for condition, matches in [(Field("n") < 30, 30), (Field("n") >= 700, 800), (Field("n") == 3, 1)]:
            for found in c.search(["?"] * 3, 900, where=condition, embeddings={"dense": vectors[:3]}):
                assert len(found) == matches
                assert all(condition.matches(hit.document.metadata) for hit in found)
        assert c.verify().ok


def test_full_text_search_is_a_lexical_signal(open_: Open) -> None:
    text = {"text": Signal(VerbatimEncoder(), PostgresTextIndex(language="english"), stored=False)}
    with pytest.raises(ConfigurationError, match="stored=False"):
        open_(signals={"text": Signal(VerbatimEncoder(), PostgresTextIndex())})
    with open_(signals=text | signals()) as c:
        c.upsert([*documents(20), Document("w", "Walruses were merging on the ice: O'Brien & co | (!) \\ 'x'")])
        assert c.search("a walrus merges", 1, signals=["text"]).ids == ["w"]
        assert c.search("O'Brien & | ! \\ ('x", 1, signals=["text"]).ids == ["w"]
        assert len(c.search("quickly", 30, signals=["text"])) == 20
        assert len(c.search("the of", 30, signals=["text"])) == 0
        assert c.search("merge", 30, where=Field("n") == 5, signals=["text"]).ids == ["d5"]
        hit = c.search("merge walrus", 1)[0]
        why = c.explain("merge walrus", hit.document.id)
        assert why.signals["text"].terms == ()
        assert why.signals["text"].score == pytest.approx(hit.signals["text"])
        c.delete(["w"])
        assert c.search("walrus", 3, signals=["text"]).ids == []
        assert c.verify().ok
    with open_("r") as c:
        assert c.search("parsing json", 1, signals=["text"])[0].document.text.startswith("parse json")


def test_embeddings_of_other_kinds_than_the_index_are_refused_before_anything_is_stored(open_: Open) -> None:
    with pytest.raises(ConfigurationError, match=r"PgvectorIndex, does not weigh the counts.*BM25Index"):
        open_(signals={"bm25": Signal(BM25Encoder(), PgvectorIndex(metric="ip", dtype="sparse", index=None))})
    with pytest.raises(ConfigurationError, match=r"hnsw index of up to 2000 of float32.*float16"):
        open_(signals={"dense": Signal(HashEncoder(2048), PgvectorIndex())})
    with open_(signals={"dense": Signal(HashEncoder(2048), PgvectorIndex(dtype="float16"))}) as c:
        c.upsert(documents(5))
        assert c.search(TOPICS[0], 1).ids == ["d0"]


def test_another_encoder_or_index_is_refused(open_: Open) -> None:
    open_(signals=signals()).close()
    with pytest.raises(FingerprintMismatch, match=r"'dense'.*dim: 32 != 64"):
        open_(signals={**signals(), "dense": Signal(HashEncoder(32), PgvectorIndex())})
    with pytest.raises(ConfigurationError, match="reindex"):
        open_(signals=signals("here"))
    open_(signals=signals()).close()  # the refusals kept no lease


def test_one_writes_at_a_time(open_: Open, name: str) -> None:
    writer = open_(signals=signals())
    with pytest.raises(WriterBusy, match=rf"{name} is being written by session \d+ from this host"):
        open_(client="two")
    assert open_("r", "two").count() == 0
    writer.close()
    writer.close()
    open_(client="two").upsert(documents(3))


def test_a_local_index_is_cached_and_only_that(open_: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replayed: list[int] = []
    add = FaissIndex.add

    def counted(self: FaissIndex, ids: Any, embeddings: Any, /) -> None:
        replayed.append(len(ids))
        add(self, ids, embeddings)

    monkeypatch.setattr(FaissIndex, "add", counted)
    with open_(signals=signals("here")) as c:
        c.upsert(documents(100))
    for client, rows in (("one", 0), ("two", 100), ("two", 0)):  # a reader keeps what it had to do
        replayed.clear()
        with open_("r", client) as c:
            assert len(c.search("merge", 100, signals=["dense"])) == 100
        assert sum(replayed) == rows
    (cache,) = (tmp_path / "one").iterdir()
    current = next(cache.rglob("CURRENT"))
    current.write_text("{")
    with open_("r") as c:
        assert len(c.search("merge", 100, signals=["dense"])) == 100
    for path in cache.rglob("*.faiss"):
        path.write_bytes(path.read_bytes()[:-1])
    with open_() as c:
        assert len(c.search("merge", 100, signals=["dense"])) == 100


def test_two_processes_may_share_a_cache(open_: Open) -> None:
    with open_(signals=signals("here")) as writer:
        writer.upsert(documents(30))
        readers = [open_("r"), open_("r")]
        for step in range(3):
            writer.upsert([Document(f"new{step}", f"walrus number {step}")])
            writer.checkpoint()
            for reader in readers:
                assert len(reader.search("walrus", 40, signals=["dense"])) == 31 + step
        for reader in readers:
            reader.close()
        assert writer.verify().problems == ()


def test_threads_search_while_another_writes(open_: Open) -> None:
    writer = open_(signals=signals())
    writer.upsert(documents(100))
    reader = open_("r", "two")
    stop, errors = threading.Event(), list[BaseException]()

    def read(c: Collection) -> None:
        try:
            while not stop.is_set():
                for ranking in c.search(TOPICS, 5, where=Field("n") >= 0):
                    assert len(ranking) == 5
                    with suppress(StaleResult):  # read after a compaction took a hit away
                        assert np.isfinite(ranking.scores).all()
                        assert all(np.isfinite(list(hit.signals.values())).all() for hit in ranking)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(c,)) for c in (writer, writer, reader, reader)]
    for thread in threads:
        thread.start()
    for i in range(12):
        writer.upsert([Document(f"x{i}", f"parse json text {i}", {"n": 1000 + i})])
        writer.delete([f"d{i}"])
        if i == 5:
            writer.reindex("dense", PgvectorIndex(index=None))
        if i in (3, 8):
            writer.compact()  # drops the table that others are searching
    stop.set()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert writer.verify().ok


def test_a_commit_changes_documents_and_index_at_once(open_: Open) -> None:
    """Every commit gives each document a new version; no search ever finds two, or fewer than there are."""
    writer = open_(signals={"dense": Signal(HashEncoder(16), PgvectorIndex())})
    reader = open_("r", "two")
    stop, errors = threading.Event(), list[BaseException]()

    def read() -> None:
        try:
            while not stop.is_set():
                with reader._store.snapshot() as seq:
                    found = reader.search("walrus", 40)
                    assert {hit.document.metadata["version"] for hit in found} == ({seq} if seq else set())
                    assert len(found) == (20 if seq else 0)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for version in range(1, 15):
        writer.upsert([Document(f"d{i}", f"walrus {i} {version}", {"version": version}) for i in range(20)])
    stop.set()
    for thread in threads:
        thread.join(60)
    assert errors == []


def test_a_collection_is_a_stage_that_can_be_saved(open_: Open, tmp_path: Path) -> None:
    with open_(signals=signals()) as c:
        c.upsert(documents())
        pipeline = c.retriever(5, where=Field("even") == True) >> PassageCompressor(30)  # noqa: E712
        wanted = pipeline([TOPICS[1]])
        pipeline.save(tmp_path / "p.yaml")
    loaded = Pipeline.load(tmp_path / "p.yaml")
    assert loaded([TOPICS[1]]) == wanted


def test_a_forked_child_reads_beside_its_parent(open_: Open) -> None:
    with open_(signals=signals()) as c:
        c.upsert(documents(20))
        wanted = c.search(TOPICS, 5)
        ids = [r.ids for r in wanted]
        child = os.fork()
        if not child:
            code = 1
            try:
                same = [r.ids for r in c.search(TOPICS, 5)] == ids
                try:
                    c.upsert([Document("child", "x")])
                except ReadOnly:
                    code = 0 if same else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [r.ids for r in c.search(TOPICS, 5)] == ids
        c.upsert([Document("parent", "y")])
        assert c.count() == 21
