"""What indexes on a server promise, whichever the server: the embedded Milvus, and Qdrant in memory."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reperio import Collection, Document, Field, Signal
from reperio.embeddings import Ids, Sparse
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.hashing import HashEncoder
from reperio.errors import ConfigurationError, CorruptArtifact, NotFound, ServerUnavailable, ShapeError
from reperio.indexes import BM25Index, FlatIndex, MilvusIndex, QdrantIndex
from reperio.indexes.abandoned import wait
from reperio.indexes.milvus_table import MilvusTable
from reperio.indexes.qdrant_table import QdrantTable
from reperio.indexes.served import ServedIndex
from reperio.protocols import Served, Spec
from reperio.registry import build
from reperio.testing.index import clustered
from reperio.types import Encoded, Fingerprint, Neighbors

pytest.importorskip("milvus_lite")
pytest.importorskip("qdrant_client")

Make: TypeAlias = Callable[..., ServedIndex]

N, DIM = 300, 16
VECTORS = clustered(N + 8, DIM)
ROWS, QUERIES = VECTORS[:N], VECTORS[N:]
KEYS = np.arange(N) * 3


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = str(tmp_path_factory.mktemp("milvus") / "rows.db")
    yield path
    MilvusIndex(path).close()


@pytest.fixture(scope="module", params=["milvus", "qdrant"])
def make(request: pytest.FixtureRequest, uri: str) -> Make:
    """An exact index of either kind."""

    def milvus(**arguments: Any) -> ServedIndex:
        exact = {} if arguments.get("vectors") == "sparse" else {"index_type": "FLAT"}
        return MilvusIndex(uri, **{**exact, **arguments})

    def qdrant(**arguments: Any) -> ServedIndex:
        return QdrantIndex(":memory:", **arguments)

    return milvus if request.param == "milvus" else qdrant


@pytest.fixture(scope="module")
def filled(make: Make) -> ServedIndex:
    """Nobody changes it."""
    index = make(metric="l2")
    index.add(KEYS, ROWS)
    return index


@pytest.fixture(scope="module")
def exact() -> FlatIndex:
    index = FlatIndex("l2")
    index.add(KEYS, ROWS)
    return index


def same(found: Neighbors, wanted: Neighbors) -> None:
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)


def table(index: ServedIndex) -> Any:
    return index._table


# Searching


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_filter_and_k_give_what_an_exact_scan_gives(
    filled: ServedIndex, exact: FlatIndex, data: st.DataObject
) -> None:
    """Lists of keys in parts, deeper searches and pages: the limits are set so low that all of them come to pass."""
    deepest = data.draw(st.sampled_from([7, 64, 16384]))
    k = data.draw(st.integers(1, min(N + 10, 4 * deepest)))
    size = data.draw(st.integers(0, N))
    order = np.argsort(exact.score(QUERIES[:1], KEYS[None])[0]) if data.draw(st.booleans()) else None
    chosen = np.random.default_rng(size).permutation(N)[:size] if order is None else order[:size]
    allowed = data.draw(st.sampled_from([None, np.sort(KEYS[chosen])]))
    with pytest.MonkeyPatch.context() as patch:
        for kind in (MilvusTable, QdrantTable):
            patch.setattr(kind, "deepest", deepest)
        patch.setattr(MilvusTable, "listed", 50)
        same(filled.search(QUERIES[:2], k, allowed=allowed), exact.search(QUERIES[:2], k, allowed=allowed))


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_scores_are_those_of_the_exact_index(make: Make, metric: Any) -> None:
    """Vectors of any length, and one of length zero."""
    rows = ROWS[:40] * np.linspace(0, 3, 40, dtype=np.float32)[:, None]
    index, exact = make(metric=metric), FlatIndex(metric)
    for one in (index, exact):
        one.add(KEYS[:40], rows)
    same(index.search(QUERIES, 40), exact.search(QUERIES, 40))
    pairs = np.tile(KEYS[:41], (len(QUERIES), 1))
    np.testing.assert_array_equal(index.score(QUERIES, pairs), exact.score(QUERIES, pairs))


def test_what_a_server_leaves_out_is_found_all_the_same(
    make: Make, exact: FlatIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that stops short costs a look at every row, never a result."""
    index = make(metric="l2")
    index.add(KEYS, ROWS)
    kind = type(table(index))
    bare = kind.nearest

    def short(self: Any, queries: Any, k: int, /, **named: Any) -> Neighbors:
        found = bare(self, queries, k, **named)
        found.ids[:, 3:], found.scores[:, 3:] = -1, -np.inf
        return found

    monkeypatch.setattr(kind, "nearest", short)
    same(index.search(QUERIES, 12), exact.search(QUERIES, 12))
    allowed = KEYS[::7]
    same(index.search(QUERIES, 12, allowed=allowed), exact.search(QUERIES, 12, allowed=allowed))


def test_sparse_rows_without_a_column_are_held_and_never_found(make: Make) -> None:
    """Servers refuse empty rows; a text may have no term that is indexed."""
    rows = Sparse(np.array([0, 2, 2, 3, 4]), np.array([1, 5, 5, 9]), np.array([1, 2, 4, 0], dtype=np.float32), 30522)
    index = make(vectors="sparse")
    index.add(np.arange(4), rows)
    assert index.ids.tolist() == [0, 1, 2, 3]
    queries = Sparse(np.array([0, 1, 1]), np.array([5]), np.array([0.5], dtype=np.float32), 30522)
    found = index.search(queries, 3)
    assert found.ids.tolist() == [[2, 0, -1], [-1, -1, -1]]
    assert index.score(queries, np.tile(np.arange(5), (2, 1))).tolist() == [
        [1.0, 0.0, 2.0, 0.0, -np.inf],
        [0.0, 0.0, 0.0, 0.0, -np.inf],
    ]


def test_hashed_terms_are_refused_by_both(make: Make) -> None:
    """63 bits do not fit into 32, and folding them would make two words one in silence."""
    rows = BM25Encoder().encode_document(["merge sorted lists"]).embeddings
    index = make(vectors="sparse")
    for call in (lambda: index.check(rows), lambda: index.add(np.array([1]), rows)):
        with pytest.raises(ShapeError, match="BM25Index"):
            call()


def test_an_unknown_setting_is_refused_before_any_server_is_asked(make: Make) -> None:
    for wrong in (
        {"metric": "dot"},
        {"vectors": "int8"},
        {"prefix": "a-b"},
        {"timeout": 0},
        {"options": {"efSearch": 9}},
    ):
        with pytest.raises(ConfigurationError):
            make(**wrong)
    with pytest.raises(ConfigurationError):
        make(vectors="sparse", metric="l2")


# Life on the server


def test_what_was_never_saved_is_dropped_with_the_index(make: Make) -> None:
    index = make()
    index.add(KEYS, ROWS)
    left = table(index)
    assert left.state() is not None
    del index
    gc.collect()
    wait(10)
    assert left.state() is None


def test_what_was_saved_outlives_the_index(make: Make, tmp_path: Path) -> None:
    index = make()
    index.add(KEYS, ROWS)
    index.save(tmp_path / "saved")
    kind, address = type(index), index.address
    del index
    gc.collect()
    opened = kind.open(tmp_path / "saved")
    assert len(opened) == N
    assert opened.address == address
    opened.drop()
    with pytest.raises(NotFound):
        kind.open(tmp_path / "saved")
    assert len(opened) == 0
    opened.add(KEYS[:5], ROWS[:5])
    assert opened.address != address


def test_a_saved_index_that_went_on_opens_as_it_is_now(make: Make, tmp_path: Path) -> None:
    """Killed before the next save: the collection replays, so what is there already must do no harm."""
    index = make()
    index.add(KEYS[:100], ROWS[:100])
    index.save(tmp_path / "saved")
    index.add(KEYS[100:], ROWS[100:])
    index.remove(KEYS[:10])
    opened = type(index).open(tmp_path / "saved")
    np.testing.assert_array_equal(opened.ids, KEYS[10:])
    opened.remove(KEYS[:10])
    opened.add(KEYS[100:], ROWS[100:])
    np.testing.assert_array_equal(opened.ids, KEYS[10:])


def test_a_table_is_named_before_it_is_there(make: Make, tmp_path: Path) -> None:
    """So that a crash while it is filled for the first time leaves no table that nobody knows of."""
    index = make()
    index.save(tmp_path / "saved")
    before = type(index).open(tmp_path / "saved")
    assert len(before) == 0
    index.add(KEYS, ROWS)
    assert before.search(ROWS[:1], 1).ids.tolist() == [[0]]
    after = type(index).open(tmp_path / "saved")
    assert len(after) == N
    with pytest.raises(ShapeError):
        after.add(KEYS[:1], np.ones((1, DIM + 1)))


def test_rows_lost_since_the_save_are_noticed(make: Make, tmp_path: Path) -> None:
    index = make()
    index.add(KEYS, ROWS)
    index.save(tmp_path / "saved")
    table(index).delete(KEYS[:3])
    with pytest.raises(CorruptArtifact, match=f"{N - 3} rows"):
        type(index).open(tmp_path / "saved")


def test_an_old_backup_of_the_server_is_noticed(make: Make, tmp_path: Path) -> None:
    index = make()
    index.add(KEYS, ROWS)
    index.save(tmp_path / "first")
    backup = table(index).state()
    index.save(tmp_path / "second")
    table(index).mark(backup)
    type(index).open(tmp_path / "first")
    with pytest.raises(CorruptArtifact, match="put back"):
        type(index).open(tmp_path / "second")


def test_another_table_of_the_same_name_is_noticed(make: Make, tmp_path: Path) -> None:
    index = make()
    index.add(KEYS, ROWS)
    index.save(tmp_path / "saved")
    place = table(index)
    state = place.state()
    place.drop()
    for wrong, error in (
        ({"token": "0" * 32}, NotFound),
        ({"layout": {**state.layout, "metric": "l2"}}, CorruptArtifact),
    ):
        place.create(type(state)(**{**{name: getattr(state, name) for name in state.__slots__}, **wrong}))
        with pytest.raises(error):
            type(index).open(tmp_path / "saved")
        place.drop()


def test_a_table_dropped_by_someone_else_is_an_error_that_says_so(make: Make) -> None:
    index = make()
    index.add(KEYS, ROWS)
    table(index).drop()
    calls: list[Callable[[], object]] = [
        lambda: index.search(QUERIES, 3),
        lambda: index.score(QUERIES[:1], KEYS[None, :3]),
        lambda: index.add(KEYS[:2], ROWS[:2]),
        lambda: index.remove(KEYS[:2]),
        lambda: len(index),
        lambda: index.ids,
    ]
    for call in calls:
        with pytest.raises(NotFound, match="gone"):
            call()


def test_a_server_that_goes_away_half_way_loses_nothing_that_is_added_again(
    make: Make, exact: FlatIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make(metric="l2")
    index.add(KEYS[:10], ROWS[:10])
    kind, asked = type(table(index)), list[int]()
    bare = kind.upsert

    def failing(self: Any, ids: Ids, embeddings: Any, /, *, fresh: bool) -> None:
        asked.append(len(ids))
        if len(asked) == 2:
            raise ServerUnavailable("It went away.", "Try again.")
        bare(self, ids, embeddings, fresh=fresh)

    monkeypatch.setattr("reperio.indexes.served.BYTES", 4 * DIM * 64)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "upsert", failing)
        with pytest.raises(ServerUnavailable):
            index.add(KEYS[10:], ROWS[10:])
    assert 10 < len(index) < N
    index.add(KEYS[10:], ROWS[10:])
    assert len(index) == N
    same(index.search(QUERIES, 10), exact.search(QUERIES, 10))


def test_it_says_where_it_is_and_how_large(make: Make) -> None:
    index = make()
    assert isinstance(index, Served)
    assert index.size() == 0
    index.add(KEYS, ROWS)
    index.settle()
    assert index.size() == N * DIM * 4
    assert index.address in repr(index)
    assert index.address.rsplit("/", 1)[1].startswith("reperio_")


# A collection over it


class Terms:
    """Term counts over a small vocabulary, as weights: a learned-sparse encoder without the learning."""

    fingerprint = Fingerprint.make("sparse", "terms", 5000)
    spec: ClassVar[Spec] = {"type": "BM25Encoder"}

    def _encode(self, texts: Any) -> Encoded[Sparse]:
        rows = BM25Encoder().encode_document(texts).embeddings
        columns = rows.indices % 5000
        parts = [np.unique(columns[a:b]) for a, b in zip(rows.indptr, rows.indptr[1:], strict=False)]
        indptr = np.cumsum([0, *map(len, parts)])
        indices = np.concatenate(parts)
        weights = (1 + indices % 7 / 10).astype(np.float32)
        return Encoded(Sparse(indptr, indices, weights, 5000), np.diff(indptr), np.zeros(len(texts), dtype=np.bool_))

    encode_query = encode_document = _encode


TOPICS = ["merge sorted lists", "parse json text", "open a socket", "compress a file", "match a pattern"]
DOCUMENTS = [
    Document(f"d{i}", f"{TOPICS[i % 5]} quickly, note {i} of {i % 13}", {"n": i, "even": i % 2 == 0}) for i in range(60)
]
ASKED = ["merge two lists", "a json note 7", "socket 12"]


def hybrid(dense: Any, sparse: Any | None = None) -> dict[str, Signal[Any]]:
    signals: dict[str, Signal[Any]] = {
        "bm25": Signal(BM25Encoder(), BM25Index(), stored=False),
        "dense": Signal(HashEncoder(64), dense),
    }
    return signals if sparse is None else {**signals, "sparse": Signal(Terms(), sparse)}


def hits(collection: Collection, **named: Any) -> list[list[tuple[str, float]]]:
    return [[(h.document.id, round(h.score, 4)) for h in ranking] for ranking in collection.search(ASKED, 10, **named)]


def test_a_hybrid_collection_ranks_as_a_local_one(make: Make, tmp_path: Path) -> None:
    """BM25 here, dense and sparse rows on the server, fused: filtered, changed, reopened."""
    from reperio.indexes.inverted import InvertedIndex

    here = Collection.open(tmp_path / "here", signals=hybrid(FlatIndex(), InvertedIndex()))
    signals = hybrid(make(), make(vectors="sparse"))
    there = Collection.open(tmp_path / "there", signals=signals)
    where = (Field("n") > 4) & (Field("even") == True)  # noqa: E712
    for one in (here, there):
        one.upsert(DOCUMENTS)
    assert hits(there) == hits(here)
    assert hits(there, where=where) == hits(here, where=where)
    for one in (here, there):
        one.delete([f"d{i}" for i in range(0, 20, 3)])
        one.upsert([Document("d1", "merge two lists at once", {"n": 1, "even": False})])
    assert hits(there) == hits(here)
    assert there.verify().ok
    there.close()
    with Collection.open(tmp_path / "there", mode="r", signals=signals) as again:
        assert hits(again) == hits(here)
        assert hits(again, where=where, signals=["dense"]) == hits(here, where=where, signals=["dense"])
    here.close()


def test_a_collection_whose_table_was_dropped_is_built_anew(make: Make, tmp_path: Path) -> None:
    signals = {"dense": Signal(HashEncoder(64), make())}
    with Collection.open(tmp_path / "c", signals=signals) as collection:
        collection.upsert(DOCUMENTS)
        wanted = hits(collection)
    (saved,) = (tmp_path / "c" / "indexes" / "dense").glob("*/index/table.json")
    name = json.loads(saved.read_text())["name"]
    make()._at(name).drop()
    with Collection.open(tmp_path / "c", signals=signals) as collection:
        assert hits(collection) == wanted
        assert collection.verify().ok


def test_a_table_that_no_checkpoint_could_be_made_to_name_is_not_used(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is on fire")

    prefix = f"unnamed{abs(hash(str(tmp_path))) % 10**9}"
    with Collection.open(tmp_path / "c", signals={"dense": Signal(HashEncoder(64), make(prefix=prefix))}) as collection:
        with monkeypatch.context() as patched:
            patched.setattr("reperio.generations.Generations.use", fail)
            with pytest.raises(OSError, match="the disk is on fire"):
                collection.upsert(DOCUMENTS)
        collection.upsert([Document("late", "a walrus")])
        assert (tmp_path / "c" / "indexes" / "dense" / "CURRENT").exists()  # before there are rows
        assert collection.search("walrus", 1).ids == ["late"]
        assert collection.verify().ok
        assert len(names(make(), prefix)) == 1


def test_reindex_and_compact_leave_no_table_behind(make: Make, tmp_path: Path) -> None:
    """Two tables at most: the one in use, and the one to roll back to."""
    prefix = f"kept{abs(hash(str(tmp_path))) % 10**9}"
    signals = {"dense": Signal(HashEncoder(64), make(prefix=prefix))}
    with Collection.open(tmp_path / "c", signals=signals) as collection:
        collection.upsert(DOCUMENTS)
        wanted = hits(collection)
        collection.checkpoint()
        for metric in ("ip", "cosine"):
            collection.reindex("dense", make(prefix=prefix, metric=metric))
            assert hits(collection) == wanted
        collection.rollback("dense")
        assert hits(collection) == wanted
        collection.compact()
        assert hits(collection) == wanted
        assert len(names(make(), prefix)) <= 2


def names(index: ServedIndex, prefix: str) -> list[str]:
    place = table(index)
    if isinstance(place, MilvusTable):
        from reperio.indexes.milvus_table import _clients

        return [n for n in _clients.get(place._uri, 10).list_collections() if n.startswith(prefix)]
    from reperio.indexes.qdrant_table import _clients as clients

    return [c.name for c in clients.get(place._url, 10).get_collections().collections if c.name.startswith(prefix)]


def test_a_specification_builds_the_same_index_without_a_server() -> None:
    for index in (
        MilvusIndex("http://nowhere.invalid:1", index_type="DISKANN"),
        QdrantIndex("http://nowhere.invalid:1"),
    ):
        again = build(json.loads(json.dumps(dict(index.spec))))
        assert dict(again.spec) == dict(index.spec)
        assert again.search(np.ones((2, 4)), 3).ids.tolist() == [[-1] * 3] * 2


def test_the_folder_holds_no_rows(make: Make, tmp_path: Path) -> None:
    index = make()
    index.add(KEYS, ROWS)
    index.save(tmp_path / "saved")
    assert sum(file.stat().st_size for file in (tmp_path / "saved").iterdir()) < 2000
    shutil.rmtree(tmp_path / "saved")
