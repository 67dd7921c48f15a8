"""The graph made from queries: its lists, its links, its walks, and the index around it."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio import Collection, Document, Signal
from reperio.embeddings import Dense, Ids
from reperio.encoders import HashEncoder
from reperio.errors import ConfigurationError, CorruptArtifact, InvalidInput, ShapeError
from reperio.indexes import FlatIndex, QueryAwareIndex
from reperio.indexes.bipartite import extend, nearest_lists
from reperio.indexes.flat import Metric
from reperio.indexes.keygraph import KeyGraph
from reperio.testing.index import clustered

ROWS, TRAINING, ASKED = 8192, 2048, 100


def apart(rows: int, queries: int, *, seed: int = 0) -> tuple[Dense, Dense]:
    """Keys and queries about the same topics, on two sides of the origin: as those of attention lie."""
    rng = np.random.default_rng(seed)
    topics, away = rng.standard_normal((60, 32)), rng.standard_normal(32)
    away *= 6 / np.linalg.norm(away)

    def about(count: int) -> Dense:
        out: Dense = (topics[rng.integers(0, 60, count)] + rng.standard_normal((count, 32)) / 2).astype(np.float32)
        return out

    return (about(rows) + away).astype(np.float32), (about(queries) - away).astype(np.float32)


@pytest.fixture(scope="module")
def world() -> tuple[Dense, Dense, Dense]:
    """Keys, training queries, and queries to ask."""
    keys, queries = apart(ROWS, TRAINING + ASKED)
    return keys, queries[:TRAINING], queries[TRAINING:]


@pytest.fixture(scope="module")
def graph(world: tuple[Dense, Dense, Dense]) -> KeyGraph:
    return KeyGraph.of(world[0], world[1])


def filled(index: Any, vectors: Dense) -> Any:
    index.add(np.arange(len(vectors)), vectors)
    return index


def best(queries: Dense, keys: Dense, k: int, metric: Metric = "ip") -> Ids:
    return filled(FlatIndex(metric), keys).search(queries, k).ids


def recall(found: Ids, wanted: Ids) -> float:
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(wanted, found, strict=True)]))


# Lists


@given(
    keys=st.integers(0, 300),
    length=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 300), max_size=3),
    by_distance=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_lists_hold_the_best_keys_however_they_come(
    keys: int, length: int, cuts: list[int], by_distance: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # Whole numbers: products are exact, and there are ties.
    vectors, queries = (rng.integers(-9, 10, (count, 5)).astype(np.float32) for count in (keys, 7))
    lists = nearest_lists(len(queries), length)
    edges = [0, *sorted(min(cut, keys) for cut in cuts), keys]
    for first, last in pairwise(edges):
        extend(lists, queries, vectors[first:last], first=first, by_distance=by_distance)
    scores = queries @ vectors.T
    if by_distance:  # less what is the same for all keys
        scores = 2 * scores - (vectors**2).sum(axis=1)
    wanted = -np.sort(-scores, axis=1)[:, :length]
    held = wanted.shape[1]
    np.testing.assert_array_equal(-np.sort(-lists.scores, axis=1)[:, :held], wanted)
    assert ((lists.positions >= 0).sum(axis=1) == held).all()
    for query, row in enumerate(lists.positions):
        members = row[row >= 0]
        assert len(np.unique(members)) == len(members)
        np.testing.assert_array_equal(scores[query, members], lists.scores[query, row >= 0])


def test_lists_of_many_keys_are_those_of_an_exact_search(world: tuple[Dense, Dense, Dense]) -> None:
    keys, queries, _ = world
    lists = nearest_lists(300, 100)
    extend(lists, queries[:300], keys)
    assert recall(lists.positions, best(queries[:300], keys, 100)) > 0.9999


# Links


def test_links_are_to_other_keys_each_once(graph: KeyGraph) -> None:
    links = graph.graph.links
    assert links.shape == (ROWS, 32)
    for key in range(0, ROWS, 7):
        row = links[key][links[key] >= 0]
        assert len(np.unique(row)) == len(row) > 0
        assert key not in row
        assert (links[key, len(row) :] == -1).all()


def test_every_key_is_linked_to(graph: KeyGraph) -> None:
    links = graph.graph.links
    assert np.isin(np.arange(ROWS), links[links >= 0]).all()


def test_a_graph_that_grew_is_the_graph_of_all(graph: KeyGraph, world: tuple[Dense, Dense, Dense]) -> None:
    keys, queries, asked = world
    grown = KeyGraph.of(keys[:5000], queries[:1500]).grown(keys[5000:6000], queries[:0])
    grown = grown.grown(keys[6000:], queries[1500:])
    np.testing.assert_array_equal(grown.keys, keys)
    np.testing.assert_array_equal(np.sort(grown.lists.positions), np.sort(graph.lists.positions))
    assert (grown.graph.links == graph.graph.links).mean() > 0.99
    a, b = (each.walk(asked, 10, ef=64) for each in (grown, graph))
    assert recall(a.positions, b.positions) > 0.99


# Walks


def test_a_walk_finds_most_and_touches_little(graph: KeyGraph, world: tuple[Dense, Dense, Dense]) -> None:
    keys, _, asked = world
    wanted = best(asked, keys, 10)
    shares = []
    for ef, floor, most in ((32, 0.88, 0.035), (64, 0.93, 0.05), (256, 0.97, 0.15)):
        found = graph.walk(asked, 10, ef=ef)
        shares.append(recall(found.positions, wanted))
        assert shares[-1] > floor
        assert found.touched.mean() < most * ROWS
    assert shares == sorted(shares)


def test_a_walk_gives_true_scores_best_first(graph: KeyGraph, world: tuple[Dense, Dense, Dense]) -> None:
    keys, _, asked = world
    for mask in (None, np.arange(ROWS) % 3 == 0):
        found = graph.walk(asked, 20, ef=50, mask=mask)
        exact = np.einsum("qkd,qd->qk", keys[found.positions], asked)
        np.testing.assert_allclose(found.scores, exact, rtol=1e-5, atol=1e-4)
        assert (np.diff(found.scores, axis=1) <= 0).all()
        assert mask is None or mask[found.positions].all()
        assert (found.touched >= 20).all()


def test_a_walk_that_goes_everywhere_finds_all(graph: KeyGraph, world: tuple[Dense, Dense, Dense]) -> None:
    keys, _, asked = world
    found = graph.walk(asked[:10], 50, ef=ROWS)
    assert recall(found.positions, best(asked[:10], keys, 50)) > 0.999
    assert (found.touched <= ROWS).all()


def test_few_keys_give_few(world: tuple[Dense, Dense, Dense]) -> None:
    found = KeyGraph.of(world[0][:3], world[1][:5]).walk(world[2][:2], 5, ef=8)
    assert np.sort(found.positions, axis=1).tolist() == [[-1, -1, 0, 1, 2]] * 2
    assert np.isneginf(found.scores[:, 3:]).all()
    assert found.touched.tolist() == [3, 3]


def test_a_graph_refuses_what_compiled_code_would_read_past(graph: KeyGraph) -> None:
    keys = np.ones((4, 8), np.float32)
    for wrong in ((keys[:0], keys), (keys, keys[:0]), (keys, keys[:, :7]), (keys * np.nan, keys)):
        with pytest.raises(ShapeError):
            KeyGraph.of(*wrong)
    with pytest.raises(ShapeError, match="8 dimensions, expected 32"):
        graph.walk(keys, 3, ef=8)


# The index


def test_it_finds_what_an_untaught_graph_misses(world: tuple[Dense, Dense, Dense]) -> None:
    keys, queries, asked = world
    taught, untaught = QueryAwareIndex(batch=1000), QueryAwareIndex(batch=1000)
    taught.learn(queries)
    shares = [recall(filled(index, keys).search(asked, 10).ids, best(asked, keys, 10)) for index in (taught, untaught)]
    assert (taught.learned, untaught.learned) == ("queries", "rows")
    assert shares[0] > 0.97
    assert shares[1] < 0.8
    untaught.learn(queries)
    assert untaught.learned == "queries"
    assert recall(untaught.search(asked, 10).ids, best(asked, keys, 10)) > 0.97


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
def test_rows_stand_in_where_queries_are_like_them(metric: Metric) -> None:
    rows, queries = np.split(clustered(5050, 32), [5000])
    index = filled(QueryAwareIndex(metric, batch=1000), rows)
    assert index.learned == "rows"
    assert recall(index.search(queries, 10).ids, best(queries, rows, 10, metric)) > 0.9
    assert index.touched(queries, 10).mean() < 0.25 * len(rows)


def test_what_waits_is_found_at_once_and_linked_later(world: tuple[Dense, Dense, Dense]) -> None:
    keys, queries, asked = world
    index = QueryAwareIndex(batch=500)
    index.learn(queries)
    index.add(np.arange(400), keys[:400])
    assert (index.waiting, index.learned) == (400, None)
    np.testing.assert_array_equal(index.search(asked, 5).ids, best(asked, keys[:400], 5))
    index.add(np.arange(400, 4000), keys[400:4000])
    assert (index.waiting, index.learned) == (0, "queries")
    better = 3 * asked[:1]
    index.add(np.array([9000]), better)
    assert index.waiting == 1
    assert index.search(asked[:1], 1).ids.tolist() == [[9000]]
    index.add(np.arange(4000, 4900), keys[4000:4900])
    assert index.waiting == 901
    index.add(np.arange(4900, 5100), keys[4900:5100])
    assert index.waiting == 0
    assert index.search(asked[:1], 1).ids.tolist() == [[9000]]


def test_linking_by_hand_leaves_none_waiting(world: tuple[Dense, Dense, Dense]) -> None:
    keys, queries, asked = world
    index = QueryAwareIndex()
    index.link()
    assert index.learned is None
    index.learn(queries)
    filled(index, keys[:2000])
    index.link()
    assert index.touched(asked, 10, options={"ef": 32}).mean() < 0.3 * 2000


def test_rows_removed_or_replaced_are_walked_through_and_never_found(world: tuple[Dense, Dense, Dense]) -> None:
    keys, queries, asked = world
    index = QueryAwareIndex(batch=1000)
    index.learn(queries)
    filled(index, keys)
    gone = np.arange(0, ROWS, 3)
    assert index.remove(gone) == len(gone)
    index.add(np.array([1]), 5 * asked[:1])
    found = index.search(asked, 10).ids
    assert not np.isin(found, gone).any()
    assert found[0, 0] == 1
    left = FlatIndex("ip")
    left.add(index.ids, np.concatenate([5 * asked[:1], keys[index.ids[1:]]]))
    wanted = left.search(asked, 10).ids
    assert recall(found, wanted) > 0.9
    index.compact()
    assert index.waiting == 0
    assert recall(index.search(asked, 10).ids, wanted) > 0.9


def test_more_dead_rows_than_live_ones_are_given_back(world: tuple[Dense, Dense, Dense]) -> None:
    keys, queries, asked = world
    index = QueryAwareIndex(batch=500)
    index.learn(queries)
    filled(index, keys[:4000])
    index.remove(np.arange(3500))
    index.add(np.arange(5000, 6100), keys[5000:6100])
    assert (len(index), index.waiting, len(index._rows.ids)) == (1600, 0, 1600)
    np.testing.assert_array_equal(np.sort(index.search(asked, 1600).ids), np.tile(index.ids, (ASKED, 1)))
    index.remove(index.ids)
    index.link()
    assert len(index) == 0
    assert (index.search(asked, 3).ids == -1).all()


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9])
def test_a_filter_leaves_as_good_results_as_none(world: tuple[Dense, Dense, Dense], share: float) -> None:
    keys, queries, asked = world
    index = QueryAwareIndex(batch=1000)
    index.learn(queries)
    filled(index, keys)
    allowed = np.sort(np.random.default_rng(0).choice(ROWS, int(share * ROWS), replace=False))
    found = index.search(asked, 10, allowed=allowed)
    exact = filled(FlatIndex("ip"), keys).search(asked, 10, allowed=allowed)
    assert ((found.ids >= 0).sum(axis=1) == min(10, len(allowed))).all()
    assert np.isin(found.ids[found.ids >= 0], allowed).all()
    assert recall(found.ids, exact.ids) > 0.93
    assert (index.touched(asked, 10, allowed=allowed) <= max(len(allowed), 0.15 * ROWS)).all()


def test_keys_touched_are_counted(world: tuple[Dense, Dense, Dense]) -> None:
    keys, queries, asked = world
    index = QueryAwareIndex(batch=1000)
    index.learn(queries)
    filled(index, keys)
    counts = [index.touched(asked, 10, options={"ef": ef}).mean() for ef in (16, 64, 256)]
    assert 10 < counts[0] < counts[1] < counts[2] < 0.2 * ROWS
    assert (index.touched(asked, 5000) == ROWS).all(), "so many are looked at one by one"
    index.add(np.arange(ROWS, ROWS + 50), keys[:50])
    np.testing.assert_array_equal(index.touched(asked, 10, options={"ef": 16}).mean(), counts[0] + 50)


def test_few_queries_and_few_rows_are_enough_to_work() -> None:
    rows = clustered(300, 8)
    for count in (1, 5):
        index = QueryAwareIndex(batch=2, degree=4, options={"ef": 2})
        index.learn(rows[:count])
        filled(index, rows)
        found = index.search(rows[:20], 300)
        assert (np.sort(found.ids, axis=1) == np.arange(300)).all()
        assert (index.search(rows[:20], 1).ids >= 0).all()


# Bad input


def test_what_cannot_be_learnt_from_is_refused_and_nothing_is_changed() -> None:
    rows = clustered(50, 8)
    index = filled(QueryAwareIndex(batch=10), rows)
    before = index.search(rows, 5, options={"ef": 2})
    for wrong, error in (
        (np.zeros((3, 8), np.float32), InvalidInput),
        (np.empty((0, 8), np.float32), InvalidInput),
        (np.ones((3, 9), np.float32), ShapeError),
        (np.full((3, 8), np.nan, np.float32), ShapeError),
    ):
        with pytest.raises(error):
            index.learn(wrong)
    np.testing.assert_array_equal(index.search(rows, 5, options={"ef": 2}).ids, before.ids)
    assert index.learned == "rows"
    fresh = QueryAwareIndex()
    fresh.learn(rows)
    with pytest.raises(ShapeError, match="9 dimensions, expected 8"):
        fresh.add(np.arange(2), np.ones((2, 9), np.float32))


@pytest.mark.parametrize(
    "setting",
    [
        {"degree": 1},
        {"batch": 0},
        {"train_size": 0},
        {"options": {"ef": 0}},
        {"degree": "9"},
        {"train_size": 2.5},
        {"options": 5},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(setting)).replace("options", "ef")):
        QueryAwareIndex(**setting)


# Disk


def test_it_opens_mapped_and_the_files_stay_as_they_are(world: tuple[Dense, Dense, Dense], tmp_path: Path) -> None:
    keys, queries, asked = world
    index = QueryAwareIndex(batch=1000)
    index.learn(queries)
    filled(index, keys[:4000])
    index.remove(np.arange(100))
    index.add(np.arange(7000, 7100), keys[7000:7100])
    index.save(tmp_path / "saved")
    digests = {file: hashlib.sha256(file.read_bytes()).digest() for file in (tmp_path / "saved").iterdir()}
    for mmap in (False, True):
        opened = QueryAwareIndex.open(tmp_path / "saved", mmap=mmap)
        a, b = opened.search(asked, 10), index.search(asked, 10)
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.scores, b.scores)
        assert (opened.waiting, opened.learned) == (100, "queries")
        opened.add(np.arange(5000, 6500), keys[5000:6500])
        opened.remove(np.arange(200))
        assert opened.waiting == 0
        assert recall(opened.search(asked, 5).ids, opened.search(asked, 5, options={"ef": 5000}).ids) > 0.9
        opened.learn(queries[:500])
    assert digests == {file: hashlib.sha256(file.read_bytes()).digest() for file in (tmp_path / "saved").iterdir()}


def test_a_taught_index_without_rows_keeps_its_queries(world: tuple[Dense, Dense, Dense], tmp_path: Path) -> None:
    keys, queries, asked = world
    index = QueryAwareIndex(batch=1000)
    index.learn(queries)
    index.save(tmp_path / "saved")
    for mmap in (False, True):
        opened = filled(QueryAwareIndex.open(tmp_path / "saved", mmap=mmap), keys)
        assert opened.learned == "queries"
        assert recall(opened.search(asked, 10).ids, best(asked, keys, 10)) > 0.93


def test_files_of_two_states_are_noticed(world: tuple[Dense, Dense, Dense], tmp_path: Path) -> None:
    """Mapped, checksums are not read: what can be seen without them must be."""
    index = filled(QueryAwareIndex(batch=100), world[0][:200])
    index.save(tmp_path / "saved")
    (tmp_path / "saved" / "ids.npy").write_bytes((tmp_path / "saved" / "waiting.npy").read_bytes())
    with pytest.raises(CorruptArtifact):
        QueryAwareIndex.open(tmp_path / "saved", mmap=True)


def test_a_collection_uses_it_and_keeps_what_it_learnt(tmp_path: Path) -> None:
    encoder, texts = HashEncoder(64), [f"word{i} common{i % 7} shared" for i in range(400)]
    with Collection.open(tmp_path / "c", signals={"dense": Signal(encoder, FlatIndex())}) as collection:
        collection.upsert([Document(str(i), text) for i, text in enumerate(texts)])
        wanted = [ranking.ids[0] for ranking in collection.search(texts[:50], 3)]
        index = QueryAwareIndex("cosine", batch=100)
        index.learn(encoder.encode_query(texts[::2]).embeddings)
        collection.reindex("dense", index)
        collection.checkpoint()
    with Collection.open(tmp_path / "c") as collection:
        found = collection.search(texts[:50], 3, options={"dense": {"ef": 24}})
        assert np.mean([ranking.ids[0] == best for ranking, best in zip(found, wanted, strict=True)]) > 0.9
