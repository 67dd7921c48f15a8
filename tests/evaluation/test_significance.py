"""Tests and intervals, against scipy and by law."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import stats

from reperio.errors import ConfigurationError, ShapeError
from reperio.evaluation import Beir, evaluate
from reperio.evaluation.significance import bootstrap_means, holm, interval, sign_flip_test
from reperio.protocols import Stage
from reperio.types import Query, Ranking

MakeBM25 = Callable[..., Stage[Query, Ranking]]
Values = NDArray[np.float64]


@pytest.fixture(scope="module")
def paired(data: Callable[[str], Path], bm25: MakeBM25) -> Values:
    """nDCG@10 of each query of adi, stemmed and not, ``(2, 35)``."""
    beir = Beir(data("adi"))
    systems = {"stemmed": bm25(beir), "plain": bm25(beir, stemmed=False)}
    return evaluate(systems, beir.queries(), beir.qrels(), measures=["nDCG@10"]).values[:, 0]


def scipy_p(one: Values, other: Values, *, resamples: float) -> float:
    found = stats.permutation_test(
        (one, other),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        rng=np.random.default_rng(1),
    )
    return float(found.pvalue)


@pytest.mark.parametrize("n", [2, 3, 7, 13])
def test_few_queries_are_counted_exactly_as_scipy_counts_them(paired: Values, n: int) -> None:
    one, other = paired[:, np.flatnonzero(paired[0] != paired[1])[:n]]
    assert len(one) == n
    assert sign_flip_test(one - other) == pytest.approx(scipy_p(one, other, resamples=np.inf), abs=1e-12)


def test_many_queries_are_sampled_close_to_the_exact_count_of_scipy(paired: Values) -> None:
    one, other = paired[:, np.flatnonzero(paired[0] != paired[1])[:16]]
    exact = scipy_p(one, other, resamples=np.inf)
    four_deviations = 4 * np.sqrt(exact * (1 - exact) / 10_000)
    assert sign_flip_test(one - other) == pytest.approx(exact, abs=four_deviations)
    assert sign_flip_test(one - other, resamples=2**16) == pytest.approx(exact, abs=1e-12)


def test_the_whole_collection_agrees_with_scipy_and_with_the_t_test(paired: Values) -> None:
    p = sign_flip_test(paired[0] - paired[1])
    assert p == pytest.approx(scipy_p(*paired, resamples=50_000), abs=0.01)
    assert p == pytest.approx(stats.ttest_rel(*paired).pvalue, abs=0.03)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.2])
def test_normal_differences_give_the_p_of_the_t_test(shift: float) -> None:
    differences = np.random.default_rng(5).normal(shift, 1.0, size=400)
    assert sign_flip_test(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)


@pytest.mark.parametrize("queries", [10, 40])  # counted and sampled
def test_p_is_uniform_where_the_systems_are_alike(queries: int) -> None:
    rng = np.random.default_rng(11)
    found = [sign_flip_test(rng.normal(size=queries), resamples=1500, seed=i) for i in range(400)]
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_a_clear_difference_has_the_smallest_p_there_is() -> None:
    assert sign_flip_test(np.ones(5)) == 2 / 2**5
    assert sign_flip_test(np.ones(100)) == 1 / 10_001


@pytest.mark.parametrize("n", [1, 5, 1000])
def test_identical_systems_have_p_one(n: int) -> None:
    assert sign_flip_test(np.zeros(n)) == 1.0


differences = hnp.arrays(np.float64, st.integers(1, 40), elements=st.sampled_from([-0.5, -0.1, 0.0, 0.1, 0.3, 1.0]))


@settings(deadline=None, max_examples=40)
@given(differences, st.randoms(use_true_random=False))
def test_p_depends_neither_on_the_order_of_queries_nor_on_which_system_is_first(values: Values, random: object) -> None:
    p = sign_flip_test(values, resamples=500)
    shuffled = values.tolist()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sign_flip_test(shuffled, resamples=500) == p
    assert sign_flip_test(-values, resamples=500) == p
    assert sign_flip_test(values * 1000, resamples=500) == p
    assert 0 < p <= 1


def test_a_tied_query_changes_nothing(paired: Values) -> None:
    values = paired[0] - paired[1]
    assert sign_flip_test(np.concatenate([values, np.zeros(50)])) == sign_flip_test(values)


def test_the_seed_decides() -> None:
    values = np.random.default_rng(0).normal(0.2, 1.0, size=50)
    assert sign_flip_test(values, seed=1) == sign_flip_test(values, seed=1)
    assert len({sign_flip_test(values, seed=seed) for seed in range(5)}) > 1
    matrix = values[:, None]
    np.testing.assert_array_equal(bootstrap_means(matrix, seed=1), bootstrap_means(matrix, seed=1))
    assert (bootstrap_means(matrix, seed=1) != bootstrap_means(matrix, seed=2)).any()


def test_intervals_of_means_and_of_differences_are_those_of_scipy(paired: Values) -> None:
    columns = np.stack([*paired, paired[0] - paired[1]])
    found = interval(bootstrap_means(columns.T))
    for low_high, column in zip(found, columns, strict=True):
        expected = stats.bootstrap(
            (column,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(3)
        ).confidence_interval
        np.testing.assert_allclose(low_high, expected, atol=0.005)


def test_the_difference_is_paired_because_all_columns_share_one_draw(paired: Values) -> None:
    means = bootstrap_means(np.stack([*paired, paired[0] - paired[1]]).T)
    np.testing.assert_allclose(means[:, 0] - means[:, 1], means[:, 2], atol=1e-12)


def test_an_interval_of_95_percent_holds_the_true_mean_about_so_often() -> None:
    rng = np.random.default_rng(17)
    samples = rng.beta(2, 3, size=(100, 400))
    low, high = interval(bootstrap_means(samples, resamples=2000)).T
    # the columns are independent samples though they share the draw
    assert np.mean((low <= 0.4) & (high >= 0.4)) == pytest.approx(0.95, abs=0.035)


def test_memory_does_not_grow_with_resamples_times_queries() -> None:
    values = np.random.default_rng(0).normal(size=(4000, 2))
    tracemalloc.start()
    try:
        sign_flip_test(values[:, 0], resamples=4000)
        bootstrap_means(values, resamples=4000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 80e6  # all at once: 128 MB for the draws alone, and as much for each step on them


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([]).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_step_down_procedure_rejects(p: list[float], alpha: float) -> None:
    rejected: set[int] = set()
    for step, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if (len(p) - step) * p[i] > alpha:
            break
        rejected.add(i)
    assert set(np.flatnonzero(holm(p) <= alpha).tolist()) == rejected


@pytest.mark.parametrize("values", [[], [[0.1, 0.2]], [0.1, float("nan")], [float("inf")]])
def test_what_is_no_list_of_finite_numbers_is_refused(values: list[float]) -> None:
    with pytest.raises(ShapeError, match="differences has shape"):
        sign_flip_test(values)
    with pytest.raises(ShapeError, match="p has shape"):
        holm(values or [[]])


@pytest.mark.parametrize("values", [[], [0.1, 0.2], [[0.1], [float("nan")]]])
def test_what_is_no_matrix_of_finite_numbers_is_refused(values: list[list[float]]) -> None:
    with pytest.raises(ShapeError, match="values has shape"):
        bootstrap_means(values)


def test_no_resamples_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="resamples = 0"):
        sign_flip_test([0.1], resamples=0)
    with pytest.raises(ConfigurationError, match="resamples = -1"):
        bootstrap_means([[0.1]], resamples=-1)
