"""Transforms of vectors, and what is the same after them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio import Collection, Document, Signal
from reperio.embeddings import Dense
from reperio.encoders import HashEncoder
from reperio.errors import ConfigurationError, ShapeError, UnsupportedOperation
from reperio.indexes import BM25Index, FaissIndex, FlatIndex, TransformedIndex, UsearchIndex
from reperio.indexes.flat import Metric
from reperio.indexes.transforms import Centre, Normalise, NormCoordinate, Transform, Truncate
from reperio.registry import build
from reperio.testing.index import clustered

EXACT: dict[str, tuple[Metric, Metric, list[Transform]]] = {
    "centre": ("ip", "ip", [Centre()]),
    "centre, distance": ("l2", "l2", [Centre()]),
    "norm": ("ip", "l2", [NormCoordinate()]),
    "norm, cosine behind": ("ip", "cosine", [NormCoordinate()]),
    "centre and norm": ("ip", "l2", [Centre(), NormCoordinate()]),
    "normalise": ("cosine", "ip", [Normalise()]),
    "normalise, distance": ("cosine", "l2", [Normalise()]),
    "all three": ("cosine", "l2", [Normalise(), Centre(), NormCoordinate()]),
}
"""The metric outside, the one behind, and the transforms between them, which lose nothing."""


def filled(index: Any, vectors: Dense) -> Any:
    index.add(np.arange(len(vectors)), vectors)
    return index


def tolerance(queries: Dense, rows: Dense) -> float:
    """What float32 may round off: so many units of the last place of the longest product."""
    longest = [float(np.linalg.norm(part, axis=1).max()) for part in (queries, rows)]
    return float(np.finfo(np.float32).eps) * 4 * (rows.shape[1] + 4) * (longest[0] + longest[1]) * (1 + max(longest))


# The same as an exact search


@pytest.mark.parametrize("name", EXACT)
@given(
    rows=st.integers(2, 60),
    dim=st.integers(1, 12),
    k=st.integers(1, 20),
    shift=st.sampled_from([0.0, 3.0, -40.0]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None)
def test_it_ranks_and_scores_as_an_exact_index_without(
    name: str, rows: int, dim: int, k: int, shift: float, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors = (scale * (rng.standard_normal((rows, dim)) + shift)).astype(np.float32)
    queries = (rng.standard_normal((5, dim)) - shift).astype(np.float32)
    queries[0] = 0
    outside, behind, transforms = EXACT[name]
    index = filled(TransformedIndex(FlatIndex(behind), transforms, train_size=max(1, rows // 2)), vectors)
    exact = filled(FlatIndex(outside), vectors)
    found, wanted = index.search(queries, k), exact.search(queries, k)
    near = tolerance(queries, vectors) if outside != "cosine" else 1e-5
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=0, atol=near)
    # The ids are the same, but for rows whose exact scores the tolerance does not tell apart.
    again = exact.score(queries, found.ids)
    np.testing.assert_allclose(again, wanted.scores, rtol=0, atol=2 * near)


@given(
    rows=st.integers(1, 80),
    dim=st.integers(1, 24),
    spread=st.sampled_from([0.0, 0.5, 1.5]),
    behind=st.sampled_from(["l2", "cosine"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_the_nearest_with_a_norm_coordinate_are_the_best_inner_products(
    rows: int, dim: int, spread: float, behind: Metric, seed: int
) -> None:
    """Lengths that differ a hundredfold, against products that numpy makes in double precision."""
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(0, spread, (rows, 1))
    vectors = (rng.standard_normal((rows, dim)) * lengths).astype(np.float32)
    queries = rng.standard_normal((4, dim)).astype(np.float32)
    products = queries.astype(np.float64) @ vectors.astype(np.float64).T
    wanted = np.argsort(-products, axis=1, kind="stable")
    best = np.take_along_axis(products, wanted, axis=1)
    longest = np.linalg.norm(vectors, axis=1).max() * np.linalg.norm(queries, axis=1, keepdims=True)
    near = 4e-7 * (dim + 4) * longest

    # By the law itself: of any two rows, the one with the larger product is the nearer.
    transform = NormCoordinate().learn(vectors)
    moved = transform.rows(vectors).astype(np.float64)
    asked = transform.queries(queries, inner=behind).astype(np.float64)
    distances = ((asked[:, None] - moved[None]) ** 2).sum(axis=2)
    told = np.take_along_axis(distances, wanted, axis=1)
    apart = -np.diff(best, axis=1) > near
    assert (np.diff(told, axis=1)[apart] > 0).all()

    # And by a search: each row in its place, but for neighbours that float32 does not tell apart.
    index = filled(TransformedIndex(FlatIndex(behind), [transform], train_size=rows), vectors)
    assert index.waiting == 0
    found = index.search(queries, rows)
    assert (np.abs(found.scores - best) < near).all()
    end = np.ones((4, 1), np.bool_)
    sure = np.hstack([end, apart]) & np.hstack([apart, end])
    assert sure.mean() > 0.5
    np.testing.assert_array_equal(found.ids[sure], wanted[sure])


@pytest.mark.parametrize("name", EXACT)
def test_the_ids_are_those_of_an_exact_search(name: str) -> None:
    outside, behind, transforms = EXACT[name]
    vectors = clustered(3000, 24) + np.float32(0.3)
    index = filled(TransformedIndex(FlatIndex(behind), transforms, train_size=1000), vectors[:2900])
    found = index.search(vectors[2900:], 10)
    np.testing.assert_array_equal(found.ids, filled(FlatIndex(outside), vectors[:2900]).search(vectors[2900:], 10).ids)
    assert index.metric == outside
    assert index.lossless


def test_centring_gives_scores_back_where_they_are_small_beside_the_mean() -> None:
    """Rows far from the origin, and near each other: centred products keep digits that raw ones lose."""
    rng = np.random.default_rng(0)
    vectors = (1000 + rng.standard_normal((500, 16))).astype(np.float32)
    queries = rng.standard_normal((10, 16)).astype(np.float32)
    index = filled(TransformedIndex(FlatIndex("ip"), [Centre()], train_size=500), vectors)
    exact = np.sort(queries.astype(np.float64) @ vectors.astype(np.float64).T, axis=1)[:, :-11:-1]
    np.testing.assert_allclose(index.search(queries, 10).scores, exact, rtol=2e-6)


def test_a_centred_graph_finds_what_a_raw_one_misses() -> None:
    """Queries on the other side of the origin, as those of attention are."""
    rng = np.random.default_rng(0)
    away = 2 * np.ones(32, dtype=np.float32)
    rows, queries = clustered(6000, 32) * 4 + away, clustered(50, 32, seed=1) * 4 - away
    rows += rng.standard_normal(rows.shape).astype(np.float32)
    exact = filled(FlatIndex("ip"), rows).search(queries, 10).ids

    def recall(index: Any) -> float:
        found = filled(index, rows).search(queries, 10).ids
        return float(np.mean([np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)]))

    raw = recall(FaissIndex("HNSW16", metric="ip"))
    centred = recall(TransformedIndex(FaissIndex("HNSW16", metric="ip"), [Centre()]))
    normed = recall(TransformedIndex(FaissIndex("HNSW16", metric="l2"), [Centre(), NormCoordinate()]))
    assert raw < normed - 0.15
    assert raw < 0.7
    assert centred > 0.9


# Rows that do not fit


def test_a_row_longer_than_any_learnt_from_is_found_exactly() -> None:
    rows, queries = clustered(500, 16), clustered(20, 16, seed=1)
    index = filled(TransformedIndex(FlatIndex("l2"), [NormCoordinate()], train_size=400), rows)
    assert index.waiting == 0 or index.waiting < 20
    longer = 5 * clustered(30, 16, seed=2)
    index.add(np.arange(1000, 1030), longer)
    assert index.waiting >= 30
    exact = filled(FlatIndex("ip"), rows)
    exact.add(np.arange(1000, 1030), longer)
    found, wanted = index.search(queries, 20), exact.search(queries, 20)
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
    np.testing.assert_allclose(index.score(queries, found.ids), wanted.scores, atol=1e-5)


def test_a_row_moves_when_it_is_replaced_by_a_longer_or_a_shorter_one() -> None:
    rows = clustered(100, 8)
    index = filled(TransformedIndex(FlatIndex("l2"), [NormCoordinate()], train_size=100), rows)
    assert index.waiting == 0
    index.add(np.array([3, 4]), np.stack([7 * rows[3], rows[4]]))
    assert (len(index), index.waiting, len(index.index)) == (100, 1, 99)
    assert index.search(rows[3:4], 1).ids.tolist() == [[3]]
    assert index.search(rows[3:4], 1).scores[0, 0] == pytest.approx(7, rel=1e-5)
    index.add(np.array([3]), rows[3:4])
    assert (len(index), index.waiting, len(index.index)) == (100, 0, 100)
    assert index.remove(np.array([3, 4, 1000])) == 2


def test_a_rebuild_takes_in_what_did_not_fit() -> None:
    rows = np.concatenate([clustered(100, 8), 3 * clustered(100, 8, seed=1)])
    index = filled(TransformedIndex(FlatIndex("l2"), [NormCoordinate()], train_size=100), rows[:100])
    index.add(np.arange(100, 200), rows[100:])
    assert index.waiting == 100
    again = build(index.spec)
    again.train(rows)
    assert filled(again, rows).waiting == 0


def test_zero_rows_and_zero_queries_are_vectors_too() -> None:
    index = filled(TransformedIndex(FlatIndex("l2"), [NormCoordinate()], train_size=3), np.zeros((3, 4), np.float32))
    found = index.search(np.array([[0, 0, 0, 0], [1, 0, 0, 0]], dtype=np.float32), 4)
    assert found.ids.tolist() == [[0, 1, 2, -1]] * 2
    assert found.scores[:, :3].tolist() == [[0, 0, 0]] * 2


# Learning


def test_it_searches_exactly_until_it_has_learnt() -> None:
    rows, queries = clustered(60, 8), clustered(5, 8, seed=1)
    index = TransformedIndex(FaissIndex("HNSW16", metric="ip"), [Centre()], train_size=50)
    assert index.training_size == 50
    index.add(np.arange(40), rows[:40])
    assert (index.waiting, len(index.index)) == (40, 0)
    np.testing.assert_array_equal(
        index.search(queries, 5).ids, filled(FlatIndex("ip"), rows[:40]).search(queries, 5).ids
    )
    index.add(np.arange(40, 60), rows[40:])
    assert (index.waiting, len(index.index), index.training_size) == (0, 60, 0)
    with pytest.raises(UnsupportedOperation, match="nothing to learn"):
        index.train(rows)


def test_the_index_behind_learns_from_transformed_rows() -> None:
    rows = clustered(900, 16) + 5
    behind = FaissIndex("IVF8,Flat", metric="l2", train_size=512)
    index = TransformedIndex(behind, [Centre(), NormCoordinate()], train_size=100)
    assert index.training_size == 512
    index.train(rows[:512])
    assert index.training_size == behind.training_size == 0
    found = filled(index, rows).search(rows[:100], 1, options={"nprobe": 8})
    exact = filled(FlatIndex("ip"), rows).search(rows[:100], 1)
    np.testing.assert_array_equal(found.ids, exact.ids)


def test_an_index_behind_that_cannot_learn_leaves_all_as_it_was() -> None:
    index = TransformedIndex(FaissIndex("IVF16,Flat", metric="l2", train_size=64), [Centre(), NormCoordinate()])
    index.add(np.arange(8), clustered(8, 16))
    with pytest.raises(ShapeError, match="16 centroids"):
        index.train(clustered(8, 16))
    with pytest.raises(ShapeError, match="no vectors"):
        index.train(np.empty((0, 16), dtype=np.float32))
    assert (index.waiting, index.transforms[0].ready, index.training_size) == (8, False, 4096)


def test_nothing_to_learn_means_no_waiting() -> None:
    index = filled(TransformedIndex(FlatIndex("cosine"), [Truncate(4)]), clustered(10, 8))
    assert (index.training_size, index.waiting) == (0, 0)


# Truncation


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_a_truncated_search_is_a_search_of_truncated_vectors(metric: Metric) -> None:
    rows, queries = clustered(400, 32), clustered(20, 32, seed=1)
    index = filled(TransformedIndex(FlatIndex(metric), [Truncate(8)]), rows)
    exact = filled(FlatIndex(metric), np.ascontiguousarray(rows[:, :8]))
    found, wanted = index.search(queries, 10), exact.search(np.ascontiguousarray(queries[:, :8]), 10)
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_array_equal(found.scores, wanted.scores)
    assert not index.lossless


def test_more_dimensions_are_better_and_all_are_exact() -> None:
    rows, queries = clustered(2000, 32), clustered(50, 32, seed=1)
    exact = filled(FlatIndex(), rows).search(queries, 10).ids

    def recall(dims: int) -> float:
        found = filled(TransformedIndex(FlatIndex(), [Truncate(dims)]), rows).search(queries, 10).ids
        return float(np.mean([np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)]))

    assert recall(8) < recall(16) < recall(28) < recall(32) == 1


def test_too_few_dimensions_are_refused_and_nothing_is_changed() -> None:
    index = TransformedIndex(FlatIndex(), [Truncate(16)])
    with pytest.raises(ShapeError, match=r"Truncate\(16\) was given vectors of 8 dimensions"):
        index.add(np.arange(3), clustered(3, 8))
    assert len(index) == 0
    assert len(filled(index, clustered(3, 20))) == 3
    with pytest.raises(ConfigurationError, match="dims is 0"):
        Truncate(0)


# What fits what


@pytest.mark.parametrize(
    ("behind", "transforms", "message"),
    [
        (FlatIndex("cosine"), [Centre()], "Centre means nothing to an index that searches by 'cosine'"),
        (FlatIndex("ip"), [NormCoordinate()], "NormCoordinate means nothing to an index that searches by 'ip'"),
        (FlatIndex("l2"), [NormCoordinate(), NormCoordinate()], "searches by 'ip'"),
        (FlatIndex("ip"), [Centre(), Normalise()], "searches by 'cosine'"),
        (FlatIndex("ip"), [], "no transforms"),
        (BM25Index(), [Centre()], "BM25Index has no metric"),
    ],
)
def test_what_does_not_fit_is_refused(behind: Any, transforms: list[Transform], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TransformedIndex(behind, transforms)


def test_a_filled_index_and_a_size_of_nothing_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="holds 4 rows"):
        TransformedIndex(filled(FlatIndex("ip"), clustered(4, 4)), [Centre()])
    for wrong in (0, "5"):
        with pytest.raises(ConfigurationError, match=f"train_size is {wrong!r}"):
            TransformedIndex(FlatIndex("ip"), [Centre()], train_size=wrong)  # type: ignore[arg-type]


def test_options_are_those_of_the_index_behind() -> None:
    index = TransformedIndex(FaissIndex("HNSW16", metric="ip"), [Centre()], train_size=50)
    for rows in (20, 100):
        filled(index, clustered(rows, 8))
        assert index.search(clustered(2, 8), 3, options={"efSearch": 100}).ids.shape == (2, 3)
        with pytest.raises(ConfigurationError, match="nprobe"):
            index.search(clustered(2, 8), 3, options={"nprobe": 3})


# Specifications and disk


def test_a_specification_nests_and_builds() -> None:
    inner = TransformedIndex(FaissIndex("IVF16,Flat", metric="l2", options={"nprobe": 4}), [NormCoordinate()])
    index = TransformedIndex(inner, [Truncate(64), Centre()], train_size=77, seed=3)
    again = build(json.loads(json.dumps(dict(index.spec))))
    assert dict(again.spec) == dict(index.spec)
    assert again.index.index.options == {"nprobe": 4}
    assert [type(transform) for transform in again.transforms] == [Truncate, Centre]
    assert again.metric == "ip"
    for wrong in ({"index": "x"}, {"transforms": ["x"]}, {"transforms": [{"type": "FlatIndex"}]}, {"more": 1}):
        with pytest.raises(ConfigurationError):
            build({**index.spec, **wrong})


def test_it_opens_with_the_options_of_the_index_behind(tmp_path: Path) -> None:
    rows, queries = clustered(800, 16), clustered(10, 16, seed=1)
    behind = FaissIndex("IVF8,Flat", metric="l2", train_size=400)
    index = filled(TransformedIndex(behind, [Centre(), NormCoordinate()]), rows)
    index.train(rows)
    index.save(tmp_path / "saved")
    for options in ({}, {"mmap": True}):
        opened = TransformedIndex.open(tmp_path / "saved", **options)
        np.testing.assert_array_equal(opened.search(queries, 10).ids, index.search(queries, 10).ids)
        np.testing.assert_array_equal(opened.search(queries, 10).scores, index.search(queries, 10).scores)


def test_another_index_in_the_folder_is_noticed(tmp_path: Path) -> None:
    filled(FlatIndex(), clustered(10, 4)).save(tmp_path / "flat")
    with pytest.raises(ConfigurationError, match="saved by FlatIndex, not by TransformedIndex"):
        TransformedIndex.open(tmp_path / "flat")


@pytest.mark.parametrize("depth", [1, 2])
def test_an_option_that_the_index_behind_has_not_is_no_damage(depth: int, tmp_path: Path) -> None:
    index: Any = UsearchIndex("ip")
    for _ in range(depth):
        index = TransformedIndex(index, [Centre()])
    index.save(tmp_path / "saved")
    for option, words in (("mmap", "be mapped"), ("verify", "be opened with verify")):
        with pytest.raises(ConfigurationError, match=f"a UsearchIndex, cannot {words}"):
            TransformedIndex.open(tmp_path / "saved", **{option: True})


def test_a_collection_uses_it_like_any_other(tmp_path: Path) -> None:
    texts = [f"word{i} common{i % 7} shared" for i in range(300)]
    with Collection.open(tmp_path / "c", signals={"dense": Signal(HashEncoder(32), FlatIndex())}) as collection:
        collection.upsert([Document(str(i), text) for i, text in enumerate(texts)])
        wanted = np.array([ranking.scores for ranking in collection.search(texts[:20], 3)])
        behind = FlatIndex("l2")
        collection.reindex("dense", TransformedIndex(behind, [Normalise(), Centre(), NormCoordinate()], train_size=99))
        np.testing.assert_allclose([ranking.scores for ranking in collection.search(texts[:20], 3)], wanted, atol=1e-6)
        collection.checkpoint()
    with Collection.open(tmp_path / "c") as collection:
        np.testing.assert_allclose([ranking.scores for ranking in collection.search(texts[:20], 3)], wanted, atol=1e-6)
