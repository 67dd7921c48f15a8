"""pgvector on a real server: exact where it says so, whole under filters, and tidy."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from reperio import Collection, Document, Field, Signal
from reperio.embeddings import Ids, Sparse
from reperio.encoders.given import GivenVectors
from reperio.encoders.hashing import HashEncoder
from reperio.errors import (
    ConfigurationError,
    CorruptArtifact,
    NotFound,
    ShapeError,
    StorageError,
    UnsupportedOperation,
)
from reperio.indexes.abandoned import wait
from reperio.indexes.faiss import FaissIndex
from reperio.indexes.flat import FlatIndex
from reperio.indexes.pgtext import PostgresTextIndex
from reperio.indexes.pgvector import PgvectorIndex
from reperio.indexes.pgvector_table import SCHEMA
from reperio.postgres import Database
from reperio.testing.index import clustered

ROWS = 3000


@pytest.fixture(scope="module", autouse=True)
def _emptied(server: str) -> Iterator[None]:
    yield
    gc.collect()
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"SET client_min_messages = error; DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


@pytest.fixture(scope="module")
def vectors() -> Any:
    return clustered(ROWS + 20, 24, seed=3)


@pytest.fixture(scope="module")
def keys() -> Ids:
    """With gaps, some of them wide."""
    return np.cumsum(np.random.default_rng(0).choice([1, 2, 40], ROWS))


@pytest.fixture(scope="module")
def exact(vectors: Any, keys: Ids) -> FlatIndex:
    index = FlatIndex()
    index.add(keys, vectors[:ROWS])
    return index


@pytest.fixture(scope="module", params=[None, "hnsw", "ivfflat"])
def index(request: pytest.FixtureRequest, server: str, vectors: Any, keys: Ids) -> PgvectorIndex:
    made = PgvectorIndex(server, index=request.param)
    made.add(keys, vectors[:ROWS])
    if request.param is not None:
        made.build()
    return made


def tables(server: str) -> set[str]:
    with psycopg.connect(server, autocommit=True) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (SCHEMA,)).fetchall()
    return {name for (name,) in found} - {"tables"}


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.99])
def test_a_filter_of_any_size_gives_the_best_of_what_passes(
    index: PgvectorIndex, exact: FlatIndex, vectors: Any, keys: Ids, share: float
) -> None:
    allowed = np.sort(np.random.default_rng(1).choice(keys, max(1, int(share * ROWS)), replace=False))
    for rows in (allowed, np.sort(np.append(allowed, [keys[-1] + 1, 2**40]))):  # few bits, and far too many
        found, wanted = (i.search(vectors[ROWS:], 10, allowed=rows) for i in (index, exact))
        assert ((found.ids >= 0).sum(axis=1) == min(10, len(allowed))).all()
        assert np.isin(found.ids[found.ids >= 0], allowed).all()
        hits = [np.isin(w[w >= 0], f).mean() for w, f in zip(wanted.ids, found.ids, strict=True)]
        assert np.mean(hits) >= (0.97 if index.column.index else 1.0)


def test_a_filter_that_shuts_out_the_neighbourhood_still_gives_k(index: PgvectorIndex, vectors: Any, keys: Ids) -> None:
    """What is near the query does not pass; an index that only looks around it would return nothing."""
    query = vectors[:1]
    far = np.sort(keys[np.argsort(vectors[:ROWS] @ query[0])[:1200]])
    found = index.search(query, 50, allowed=far)
    assert (found.ids >= 0).all()
    assert np.isin(found.ids, far).all()


def test_a_search_goes_as_deep_as_it_is_asked(index: PgvectorIndex, vectors: Any, keys: Ids) -> None:
    found = index.search(vectors[ROWS:], ROWS + 1)
    assert (np.sort(found.ids[:, :ROWS], axis=1) == keys).all()
    assert (found.ids[:, ROWS] == -1).all()


def test_looking_at_more_finds_more(server: str, vectors: Any, keys: Ids, exact: FlatIndex) -> None:
    made = PgvectorIndex(server, m=4, ef_construction=16)
    made.add(keys, vectors[:ROWS])
    made.build()
    wanted = exact.search(vectors[ROWS:], 10).ids
    recall = [
        np.mean([np.isin(w, f).mean() for w, f in zip(wanted, found.ids, strict=True)])
        for found in (made.search(vectors[ROWS:], 10, options={"ef_search": n}) for n in (10, 1000))
    ]
    assert recall[0] <= recall[1] <= 1
    assert recall[1] >= 0.97


def test_searches_go_on_while_the_index_is_built_again(server: str, vectors: Any, keys: Ids) -> None:
    made = PgvectorIndex(server, index="ivfflat", metric="l2")
    made.add(keys[:500], vectors[:500])
    made.build()
    made.add(keys[500:], vectors[500:ROWS])
    wanted = FlatIndex("l2")
    wanted.add(keys, vectors[:ROWS])
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(lambda: [made.build() for _ in range(3)])
        searched = 0
        while not building.done():
            assert (made.search(vectors[:5], 1, options={"probes": 100}).ids.ravel() == keys[:5]).all()
            searched += 1
        building.result()
    assert searched > 3
    found = made.search(vectors[ROWS:], 10, options={"probes": 100})
    np.testing.assert_array_equal(found.ids, wanted.search(vectors[ROWS:], 10).ids)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "dot"}, "no metric 'dot'"),
        ({"dtype": "int4"}, "no dtype 'int4'"),
        ({"dtype": "bit", "metric": "l2"}, "by angle"),
        ({"dtype": "sparse"}, "inner product"),
        ({"dtype": "sparse", "metric": "ip", "index": "ivfflat"}, "no index 'ivfflat' of sparse"),
        ({"index": "diskann"}, "'diskann'"),
        ({"m": 1}, "m is 1"),
        ({"m": 40, "ef_construction": 64}, "ef_construction is 64"),
        ({"index": "ivfflat", "lists": 0}, "lists is 0"),
        ({"options": {"probes": 3}}, "no option 'probes'"),
        ({"options": {"ef_search": 2000}}, "ef_search is 2000"),
        ({"url": "mysql://h/db"}, "no PostgreSQL URL"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(server: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PgvectorIndex(**{"url": server, **settings})


def test_values_that_the_column_does_not_hold_are_refused(server: str) -> None:
    one = np.arange(1)
    with pytest.raises(ShapeError, match="65504"):
        PgvectorIndex(server, metric="ip", dtype="float16").add(one, np.full((1, 3), 7e4, dtype=np.float32))
    with pytest.raises(ConfigurationError, match=r"4001 columns.*up to 4000"):
        PgvectorIndex(server, dtype="float16").add(one, np.ones((1, 4001), dtype=np.float32))
    with pytest.raises(ConfigurationError, match="16001 columns; pgvector keeps"):
        PgvectorIndex(server, index=None).add(one, np.ones((1, 16001), dtype=np.float32))
    row = Sparse(np.array([0, 1001]), np.arange(1001), np.ones(1001, dtype=np.float32), 2000)
    with pytest.raises(ConfigurationError, match="1001 weights; pgvector takes 1000"):
        PgvectorIndex(server, metric="ip", dtype="sparse").add(one, row)
    with pytest.raises(ShapeError, match="Use dtype='sparse'"):
        PgvectorIndex(server).add(one, row)  # any refusal leaves nothing on the server
    with pytest.raises(ConfigurationError, match="has no database"):
        PgvectorIndex().add(one, np.ones((1, 3), dtype=np.float32))


def test_wide_rows_are_kept_and_found(server: str) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 16000)).astype(np.float32)
    made = PgvectorIndex(server, metric="l2", index=None)
    made.add(np.arange(40), rows)
    found = made.search(rows[:3], 1)
    assert found.ids.ravel().tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.scores, 0, atol=1e-6)


def test_sparse_rows_score_their_inner_product(server: str) -> None:
    rng = np.random.default_rng(0)
    dense = (rng.random((300, 50)) * (rng.random((300, 50)) < 0.1)).astype(np.float32)
    rows, columns = np.nonzero(dense)
    matrix = Sparse(np.searchsorted(rows, np.arange(301)), columns * 10**7, dense[rows, columns], 10**9)
    made = PgvectorIndex(server, metric="ip", dtype="sparse")
    made.add(np.arange(300), matrix)
    made.build()
    products = dense @ dense.T
    np.testing.assert_allclose(made.score(matrix, np.tile(np.arange(300), (300, 1))), products, atol=1e-5)
    found = made.search(matrix, 300, options={"ef_search": 1000})
    for i, (ids, scores) in enumerate(zip(found.ids, found.scores, strict=True)):
        held = ids >= 0
        assert (products[i, ids[held]] > 0).all()
        np.testing.assert_allclose(scores[held], products[i, ids[held]], atol=1e-5)


def test_signs_are_compared_by_their_cosine(server: str) -> None:
    rows = clustered(50, 40)
    made = PgvectorIndex(server, dtype="bit", index=None)
    made.add(np.arange(50), rows)
    signs = np.where(rows > 0, 1.0, -1.0)
    np.testing.assert_allclose(made.score(rows, np.tile(np.arange(50), (50, 1))), signs @ signs.T / 40, atol=1e-6)


# What stays on the server


def test_an_index_that_was_not_saved_leaves_nothing(server: str, tmp_path: Path) -> None:
    made, kept = (PgvectorIndex(server, index=None) for _ in range(2))
    names = {index._name for index in (made, kept)}
    for index in (made, kept):
        index.add(np.arange(2), np.eye(2, dtype=np.float32))
    kept.save(tmp_path / "saved")
    assert names <= tables(server)
    kept_name = kept._name
    del made, kept, index
    gc.collect()
    wait(10)
    assert names & tables(server) == {kept_name}
    opened, other = (PgvectorIndex.open(tmp_path / "saved") for _ in range(2))
    assert opened.ids.tolist() == other.ids.tolist() == [0, 1]
    assert opened.size() > 0
    opened.drop()
    assert kept_name not in tables(server)
    assert len(opened) == 0
    with pytest.raises(NotFound, match="someone dropped it"):
        other.search(np.eye(2, dtype=np.float32), 1)


def test_garbage_collected_in_the_middle_of_a_search_does_not_disturb_it(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finalizer that asked the server itself ended the search that it interrupted, or waited for its own lock."""
    index, lost = PgvectorIndex(server), [PgvectorIndex(server, index=None) for _ in range(3)]
    vectors = clustered(400, 8)
    index.add(np.arange(400), vectors)
    index.build()
    for other in lost:
        other.add(np.arange(2), np.eye(2, dtype=np.float32))
    names = {other._name for other in lost}
    del other
    find, take = PgvectorIndex._find, Database._take

    def finding(self: PgvectorIndex, *arguments: Any, **named: Any) -> Any:
        if lost:
            lost.pop()
        return find(self, *arguments, **named)

    def taking(self: Database) -> Any:
        with self._lock:
            if lost:
                lost.pop()
        return take(self)

    monkeypatch.setattr("reperio.indexes.pgvector._REACH", 1)
    monkeypatch.setattr(PgvectorIndex, "_find", finding)
    assert (index.search(vectors[:2], 3, allowed=np.arange(399)).ids[:, 0] == [0, 1]).all()
    monkeypatch.setattr(Database, "_take", taking)
    assert (index.search(vectors[:2], 3).ids[:, 0] == [0, 1]).all()
    lost.clear()
    wait(10)
    assert not names & tables(server)


def test_a_saved_index_is_compared_with_its_table(server: str, tmp_path: Path) -> None:
    made = PgvectorIndex(server, index=None)
    made.add(np.arange(4), np.eye(4, dtype=np.float32))
    made.save(tmp_path / "saved")
    made.remove(np.arange(1))  # what another client does later is no damage
    assert len(PgvectorIndex.open(tmp_path / "saved")) == 3
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DELETE FROM {SCHEMA}.{made._name} WHERE key = 3")  # type: ignore[arg-type]
        with pytest.raises(CorruptArtifact, match="not as it was left: 2 rows"):
            PgvectorIndex.open(tmp_path / "saved")
        connection.execute(f"UPDATE {SCHEMA}.tables SET generation = 0, rows = 2")  # type: ignore[arg-type]
        with pytest.raises(CorruptArtifact, match="not as it was left"):  # an old backup
            PgvectorIndex.open(tmp_path / "saved")
    made.drop()
    with pytest.raises(CorruptArtifact, match="not there any more"):
        PgvectorIndex.open(tmp_path / "saved")


def test_two_clients_may_fill_one_table(server: str, tmp_path: Path) -> None:
    one = PgvectorIndex(server, index=None)
    one.save(tmp_path / "saved")
    other = PgvectorIndex.open(tmp_path / "saved")
    assert len(other) == 0
    one.add(np.arange(3), np.eye(3, dtype=np.float32))
    other.add(np.arange(2, 5), np.ones((3, 3), dtype=np.float32))
    assert one.ids.tolist() == other.ids.tolist() == list(range(5))
    with pytest.raises(ShapeError, match="expected 3"):
        other.add(np.arange(9, 10), np.ones((1, 4), dtype=np.float32))
    assert len(one) == 5
    one.drop()


# The index of a collection in a folder


@pytest.fixture
def signals(server: str) -> Callable[[], dict[str, Signal[Any]]]:
    return lambda: {"dense": Signal(HashEncoder(32), PgvectorIndex(server, index=None))}


def documents(n: int) -> list[Document]:
    return [Document(f"d{i}", f"note {i} on lists and files", {"n": i}) for i in range(n)]


def test_a_collection_in_a_folder_may_have_its_index_on_a_server(
    server: str, signals: Callable[[], dict[str, Signal[Any]]], tmp_path: Path
) -> None:
    before = tables(server)
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(50))
        with Collection.open(tmp_path / "c", mode="r") as reader:
            assert len(reader.search("note", 60)) == 50
            c.upsert([Document("new", "a walrus", {"n": -1})])
            assert reader.search("walrus", 1).ids == ["new"]
            assert reader.search("walrus", 5, where=Field("n") < 0).ids == ["new"]
            c.delete(["new"])
            assert "new" not in reader.search("walrus", 60).ids
        assert len(tables(server)) == len(before) + 1
        assert c.verify().problems == ()
        assert c.stats().index_bytes > 0
        c.reindex("dense", FaissIndex())
        assert c.search("note 7", 1).ids == ["d7"]
        c.rollback("dense")
        c.compact()
        assert c.verify().problems == ()
        assert len(tables(server) - before) == 1
        c._release()  # as if killed
    with Collection.open(tmp_path / "c") as c:
        assert c.verify().problems == ()
        c.reindex("dense", FaissIndex())
        c.reindex("dense", FaissIndex("HNSW16"))
        assert tables(server) == before  # what cannot be rolled back to is gone


def test_rows_that_the_store_does_not_have_are_evicted(
    server: str, signals: Callable[[], dict[str, Signal[Any]]], tmp_path: Path
) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(5))
    shutil.copytree(tmp_path / "c", tmp_path / "backup")
    with Collection.open(tmp_path / "c") as c:
        c.upsert([Document("w", "a walrus"), Document("v", "a vole")])
        c._release()  # as if killed: no checkpoint says how far the server is
    shutil.rmtree(tmp_path / "c")
    shutil.copytree(tmp_path / "backup", tmp_path / "c")
    with Collection.open(tmp_path / "c") as c:
        assert sorted(c.search("walrus", 9).ids) == [f"d{i}" for i in range(5)]
        c.upsert([Document("t", "a tractor")])
        assert c.search("tractor", 1).ids == ["t"]
        assert c.verify().problems == ()


def test_a_reader_needs_a_writer_to_have_been_there(
    signals: Callable[[], dict[str, Signal[Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collection.open(tmp_path / "c", signals=signals()) as c:
        c.upsert(documents(3))
    shutil.rmtree(tmp_path / "c" / "indexes")
    with Collection.open(tmp_path / "c", mode="r") as c, pytest.raises(StorageError, match="for writing once"):
        c.search("note")


def test_a_lossy_index_on_a_server_proposes_and_exact_scores_decide(server: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((400, 64)).astype(np.float32)
    given = {"dense": Signal(GivenVectors(64), PgvectorIndex(server, dtype="bit", index=None))}
    with Collection.open(tmp_path / "c", signals=given) as c:
        c.upsert([Document(str(i), f"t{i}") for i in range(400)], embeddings={"dense": vectors})
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        for hit in c.search(["?"], 5, embeddings={"dense": vectors[7:8]})[0]:
            assert hit.score == pytest.approx(float(unit[7] @ unit[int(hit.document.id)]), abs=1e-5)
        c.reindex("dense", FaissIndex())


# Text


@pytest.mark.parametrize(
    ("settings", "query", "wanted"),
    [
        ({}, "walrus ice", [1, 2, 3]),
        ({"match": "all"}, "walruses on ice", [1]),
        ({"match": "web"}, '"ice floe" or walrus -sea', [1, 3]),
        ({"match": "web"}, "ice", [1, 3]),
        ({"language": "simple"}, "walruses", [1]),
        ({"rank": "ts_rank_cd", "normalization": 0}, "walrus", [1, 2]),
    ],
)
def test_text_is_matched_as_postgresql_does(
    server: str, settings: dict[str, Any], query: str, wanted: list[int]
) -> None:
    made = PostgresTextIndex(server, **settings)
    texts = np.array(["Walruses on the ice", "A walrus in the sea", "An ice floe", "Nothing of it"], dtype=object)
    made.add(np.arange(1, 5), texts)
    found = made.search(np.array([query], dtype=object), 9)
    assert sorted(found.ids[found.ids >= 0].tolist()) == wanted
    assert (found.scores[found.ids >= 0] > 0).all()


def test_a_language_that_the_server_does_not_know_is_named(server: str) -> None:
    with pytest.raises(ConfigurationError, match=r"'klingon'.*english"):
        PostgresTextIndex(server, language="klingon").add(np.arange(1), np.array(["x"], dtype=object))
    for settings in ({"match": "none"}, {"rank": "bm25"}, {"normalization": 64}):
        with pytest.raises(ConfigurationError):
            PostgresTextIndex(server, **settings)  # type: ignore[arg-type]


def test_an_index_of_a_collections_database_is_not_saved_by_hand() -> None:
    with pytest.raises(UnsupportedOperation, match="nothing to do"):
        PgvectorIndex().save(Path("nowhere"))
