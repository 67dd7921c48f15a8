"""Exact search: what `FlatIndex` adds to the contract is that it is the definition."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio.errors import ConfigurationError
from reperio.indexes import FlatIndex, flat
from reperio.indexes.flat import Metric
from reperio.testing.index import clustered

METRICS: list[Metric] = ["cosine", "ip", "l2"]


def by_definition(queries: np.ndarray, rows: np.ndarray, metric: Metric) -> np.ndarray:
    """Scores in float64, ``(q, n)``, from the formula of each metric."""
    q, x = queries.astype(np.float64), rows.astype(np.float64)
    if metric == "l2":
        return -((q[:, None] - x[None]) ** 2).sum(axis=2)
    if metric == "cosine":
        q = q / np.linalg.norm(q, axis=1, keepdims=True)
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return q @ x.T


@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_those_of_the_formula(metric: Metric) -> None:
    rng = np.random.default_rng(0)
    rows, queries = rng.normal(2, 3, (500, 48)).astype(np.float32), rng.normal(2, 3, (7, 48)).astype(np.float32)
    index, wanted = FlatIndex(metric), by_definition(queries, rows, metric)
    index.add(np.arange(500), rows)
    found = index.search(queries, 500)
    np.testing.assert_allclose(found.scores, np.take_along_axis(wanted, found.ids, axis=1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.sort(found.ids, axis=1), np.tile(np.arange(500), (7, 1)))


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_ties_go_to_the_lower_key_at_every_k_whatever_the_order_and_the_blocks(
    metric: Metric, data: st.DataObject
) -> None:
    """Few distinct vectors, so that most scores are tied, also at the k-th place."""
    count = data.draw(st.integers(1, 40))
    picks = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    distinct = np.random.default_rng(7).normal(size=(4, 5)).astype(np.float32)
    rows, keys = distinct[picks], np.array(data.draw(st.permutations(range(count))), dtype=np.int64)
    index, queries = FlatIndex(metric), np.concatenate([distinct, distinct[:1] + 1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat, "_BLOCK", data.draw(st.integers(1, 50)))
        patch.setattr(flat, "_VALUES", data.draw(st.integers(1, 100)))
        index.add(keys, rows)
        k = data.draw(st.integers(1, count + 3))
        found = index.search(queries, k)
        scores = index.score(queries, np.tile(keys, (5, 1)))
    order = np.lexsort((np.tile(keys, (5, 1)), -scores), axis=1)[:, :k]
    np.testing.assert_array_equal(found.ids[:, : min(k, count)], keys[order])
    np.testing.assert_array_equal(found.scores[:, : min(k, count)], np.take_along_axis(scores, order, axis=1))


@pytest.mark.parametrize("metric", METRICS)
def test_what_the_matrix_product_rounds_away_still_decides(metric: Metric) -> None:
    """Rows far from the origin and close to each other: their products differ by less than they round."""
    rng = np.random.default_rng(0)
    rows = (50 + 0.01 * rng.normal(size=(2000, 24))).astype(np.float32)
    index, keys, queries = FlatIndex(metric), np.arange(2000), rows[:30] + np.float32(0.001)
    index.add(keys, rows)
    order = np.argsort(-index.score(queries, np.tile(keys, (30, 1))), axis=1, kind="stable")
    np.testing.assert_array_equal(index.search(queries, 20).ids, order[:, :20])


@pytest.mark.parametrize("metric", METRICS)
def test_a_result_is_the_same_to_the_bit_alone_and_in_a_batch(metric: Metric) -> None:
    rows, queries = clustered(3000, 40), clustered(300, 40, seed=1)
    index = FlatIndex(metric)
    index.add(np.arange(3000), rows)
    together = index.search(queries, 10)
    for i in (0, 17, 299):
        alone = index.search(queries[i : i + 1], 10)
        np.testing.assert_array_equal(alone.ids[0], together.ids[i])
        np.testing.assert_array_equal(alone.scores[0], together.scores[i])


def test_a_zero_vector_has_cosine_zero_with_everything() -> None:
    index = FlatIndex()
    index.add(np.array([3, 4]), np.array([[0, 0], [1, 0]], dtype=np.float32))
    found = index.search(np.array([[0, 0], [-1, 0]], dtype=np.float32), 2)
    assert found.ids.tolist() == [[3, 4], [3, 4]]
    assert found.scores.tolist() == [[0, 0], [0, -1]]


def test_adding_does_not_change_what_was_passed() -> None:
    rows = np.array([[3, 4], [5, 12]], dtype=np.float32)
    index = FlatIndex()
    index.add(np.array([0, 1]), rows)
    assert rows.tolist() == [[3, 4], [5, 12]]
    rows[:] = 0
    assert index.search(np.array([[3, 4]], dtype=np.float32), 1).scores[0, 0] == pytest.approx(1)


def test_the_vectors_held_are_in_the_order_of_the_keys() -> None:
    index = FlatIndex("ip")
    index.add(np.array([9, 2, 5]), np.array([[9], [2], [5]], dtype=np.float32))
    index.remove(np.array([9]))
    index.add(np.array([7]), np.array([[7]], dtype=np.float32))
    assert index.ids.tolist() == index.vectors[:, 0].tolist() == [2, 5, 7]


def test_memory_is_bounded_by_the_block_and_not_by_queries_times_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "_BLOCK", 1 << 10)
    index, queries = FlatIndex("ip"), clustered(1000, 16, seed=1)
    index.add(np.arange(10_000), clustered(10_000, 16))
    index.search(queries[:1], 5)
    tracemalloc.start()
    index.search(queries, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1000 * 10_000 * 4 / 10


def test_an_unknown_metric_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"'dot'.*cosine, ip, l2"):
        FlatIndex("dot")  # type: ignore[arg-type]
