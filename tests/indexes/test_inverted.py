"""The inverted index: exact however it is searched, whatever its rows hold."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reperio.embeddings import Dense, Sparse, take
from reperio.errors import ConfigurationError, ShapeError, StorageError
from reperio.indexes import BM25Index, InvertedIndex, inverted, lists, postings
from reperio.indexes.lists import WINDOW
from reperio.indexes.pgvector_columns import column
from reperio.indexes.postings import Precision
from reperio.indexes.weighting import Formula
from reperio.types import Neighbors

DIM = 3000


@pytest.fixture(params=["compiled", "numpy"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs through compiled code and without it."""
    monkeypatch.setattr(postings, "_COMPILED_FROM", {"compiled": 0, "numpy": 1 << 60}[request.param])
    return str(request.param)


def learned(rows: int, *, seed: int = 0, terms: int = 40, dim: int = DIM) -> Sparse:
    """Rows as learned-sparse encoders make them: some terms in most rows, most in few, weights below 3."""
    rng = np.random.default_rng(seed)
    columns = np.minimum((dim * rng.random((rows, terms)) ** 3).astype(np.int64), dim - 1)
    matrix = scipy.sparse.csr_array((rows, dim), dtype=np.float32)
    weights = np.log1p(rng.exponential(2, (rows, terms))).astype(np.float32)
    owner = np.repeat(np.arange(rows), terms)
    matrix = scipy.sparse.coo_array((weights.ravel(), (owner, columns.ravel())), shape=(rows, dim)).tocsr()
    matrix.sort_indices()
    return Sparse(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data, dim)


def products(queries: Sparse, rows: Sparse) -> Dense:
    """Inner products by scipy: another's arithmetic."""
    left, right = (
        scipy.sparse.csr_array((s.weights.astype(np.float64), s.indices, s.indptr), shape=(len(s), s.dim))
        for s in (queries, rows)
    )
    return (left @ right.T).toarray()


def check(found: Neighbors, scores: Dense, keys: np.ndarray, k: int, allowed: np.ndarray | None = None) -> None:
    """Found are the k best of the scores, to the rounding of float32."""
    for ids, values, row in zip(found.ids, found.scores, scores, strict=True):
        may = row > 0 if allowed is None else (row > 0) & np.isin(keys, allowed)
        best = np.sort(row[may])[::-1][:k]
        np.testing.assert_allclose(values[: len(best)], best, rtol=2e-6)
        assert (ids[len(best) :] == -1).all()
        held = ids[: len(best)]
        assert len(np.unique(held)) == len(held)
        at = np.searchsorted(keys, held)
        np.testing.assert_allclose(values[: len(best)], row[at], rtol=2e-6)
        assert may[at].all()


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("k", [1, 10, 200])
def test_search_equals_the_product_of_scipy(precision: Precision, k: int) -> None:
    rows, queries = learned(40_000, terms=20), learned(30, seed=1, terms=15)
    keys = np.arange(0, 120_000, 3)
    index = InvertedIndex(precision=precision)
    for part in np.array_split(np.arange(40_000), 3):
        index.add(keys[part], take(rows, part))
    check(index.search(queries, k), products(queries, rows), keys, k)


def test_one_query_finds_what_a_batch_finds() -> None:
    rows, queries = learned(20_000), learned(80, seed=1, terms=10)
    index = InvertedIndex()
    index.add(np.arange(20_000), rows)
    together = index.search(queries, 10)
    for i in range(80):
        alone = index.search(take(queries, np.array([i])), 10)
        np.testing.assert_array_equal(alone.ids[0], together.ids[i])
        np.testing.assert_array_equal(alone.scores[0], together.scores[i])


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.99])
def test_filters_give_the_best_of_what_passes(share: float) -> None:
    rows, queries = learned(20_000), learned(20, seed=1, terms=10)
    index, keys = InvertedIndex(), np.arange(20_000)
    index.add(keys, rows)
    allowed = np.sort(np.random.default_rng(5).choice(keys, int(share * 20_000), replace=False))
    check(index.search(queries, 10, allowed=allowed), products(queries, rows), keys, 10, allowed)


@pytest.mark.parametrize("precision", get_args(Precision))
def test_removed_and_replaced_rows_are_never_found(precision: Precision) -> None:
    rows, queries = learned(20_000), learned(20, seed=1, terms=10)
    index, keys = InvertedIndex(precision=precision), np.arange(20_000)
    index.add(keys, rows)
    index.remove(keys[::7])
    index.add(keys[1::7], take(rows, keys[1::7][::-1]))
    now = take(rows, np.where(keys % 7 == 1, keys[1::7][::-1][np.minimum(keys // 7, len(keys[1::7]) - 1)], keys))
    scores = products(queries, now)
    scores[:, ::7] = 0
    check(index.search(queries, 25), scores, keys, 25)
    index.compact()
    assert len(index._view.segments) == 1
    check(index.search(queries, 25), scores, keys, 25)


def test_rows_far_above_and_below_each_other_are_ranked_exactly() -> None:
    """A byte cannot tell such weights apart: what is kept of the rows must."""
    rng = np.random.default_rng(0)
    rows = learned(5000)
    weights = (rows.weights * 10.0 ** rng.uniform(-6, 4, len(rows.weights))).astype(np.float32)
    rows = Sparse(rows.indptr, rows.indices, weights, rows.dim)
    queries = learned(20, seed=1)
    index = InvertedIndex()
    index.add(np.arange(5000), rows)
    check(index.search(queries, 20), products(queries, rows), np.arange(5000), 20)


def test_many_equal_rows_tie_to_the_lower_ids() -> None:
    one = learned(1, terms=6)
    rows = take(one, np.zeros(3000, dtype=np.int64))
    index = InvertedIndex()
    for part in (slice(2000, 3000), slice(0, 1000), slice(1000, 2000)):
        index.add(np.arange(3000)[part], take(rows, np.arange(1000)))
    assert index.search(one, 50).ids[0].tolist() == list(range(50))


def test_long_queries_and_single_terms_are_exact_too() -> None:
    rows = learned(20_000)
    keys = np.arange(20_000)
    index = InvertedIndex()
    index.add(keys, rows)
    for terms in (1, 2, 700):
        queries = learned(5, seed=2, terms=terms)
        check(index.search(queries, 10), products(queries, rows), keys, 10)


@pytest.mark.parametrize("terms", [3, 20, 200])
def test_bytes_and_floats_give_equal_results(terms: int) -> None:
    """Among removed rows and a filter too, from one segment and from three."""
    rows, queries = learned(40_000, terms=20), learned(20, seed=3, terms=terms)
    whole, parts = InvertedIndex(precision="uint8"), InvertedIndex(precision="float32")
    whole.add(np.arange(40_000), rows)
    for start, stop in ((0, 25_000), (25_000, 37_000), (37_000, 40_000)):
        parts.add(np.arange(start, stop), take(rows, np.arange(start, stop)))
    gone = np.unique(whole.search(queries, 5).ids)
    scores = products(queries, rows)
    for allowed in (None, np.arange(1, 40_000, 2)):
        for k in (1, 10, 300):
            a, b = (index.search(queries, k, allowed=allowed) for index in (whole, parts))
            np.testing.assert_array_equal(a.ids, b.ids)
            np.testing.assert_array_equal(a.scores, b.scores)
            check(a, scores, np.arange(40_000), k, allowed)
        whole.remove(gone)
        parts.remove(gone)
        scores[:, gone[gone >= 0]] = 0


def test_weights_and_counts_are_summed_in_one_index() -> None:
    """Columns below a boundary are weights, the others counts: the sum of the two indexes' scores."""
    boundary = 1000
    rng = np.random.default_rng(3)
    rows, queries = learned(8000), learned(15, seed=1)
    counts = np.where(rows.indices < boundary, rows.weights, rng.integers(1, 5, len(rows.indices)))
    rows = Sparse(rows.indptr, rows.indices, counts.astype(np.float32), DIM)
    keys = np.arange(8000)

    def side(sparse: Sparse, *, below: bool) -> Sparse:
        kept = (sparse.indices < boundary) == below
        starts = np.concatenate([[0], np.cumsum(kept)])[sparse.indptr]
        return Sparse(starts, sparse.indices[kept], sparse.weights[kept], DIM)

    both = BM25Index(weights_below=boundary)
    weights, terms = InvertedIndex(), BM25Index()
    both.add(keys, rows)
    weights.add(keys, side(rows, below=True))
    terms.add(keys, side(rows, below=False))
    every = np.tile(keys, (15, 1))
    summed = weights.score(side(queries, below=True), every) + terms.score(side(queries, below=False), every)
    np.testing.assert_allclose(both.score(queries, every), summed, rtol=1e-5)
    check(both.search(queries, 10), both.score(queries, every).astype(np.float64), keys, 10)
    parts = both.explain(take(queries, np.array([0])), 5)
    assert sum(p.contribution for p in parts) == pytest.approx(float(both.score(queries, every)[0, 5]), rel=1e-6)
    assert {p.idf for p in parts if p.term < boundary} <= {1.0}


def test_lengths_that_drift_leave_every_score_as_in_a_fresh_index() -> None:
    """Bounds were made with another average length: they must hold all the same."""
    rng = np.random.default_rng(0)

    def rows(count: int, terms: int) -> Sparse:
        sparse = learned(count, terms=terms, seed=count)
        return Sparse(sparse.indptr, sparse.indices, rng.integers(1, 9, len(sparse.indices)).astype(np.float32), DIM)

    short, long, queries = rows(4000, 5), rows(3000, 60), learned(15, seed=1, terms=8)
    drifted, fresh = BM25Index(), BM25Index()
    drifted.add(np.arange(4000), short)
    for start in range(0, 3000, 100):
        drifted.add(np.arange(4000 + start, 4100 + start), take(long, np.arange(start, start + 100)))
        found = drifted.search(queries, 10)
        every = drifted.score(queries, np.tile(drifted.ids, (15, 1)))
        check(found, every.astype(np.float64), drifted.ids, 10)
    drifted.remove(np.arange(0, 3900))
    fresh.add(np.arange(3900, 4000), take(short, np.arange(3900, 4000)))
    fresh.add(np.arange(4000, 7000), long)
    held = np.tile(fresh.ids, (15, 1))
    np.testing.assert_allclose(drifted.score(queries, held), fresh.score(queries, held), rtol=1e-5)
    np.testing.assert_allclose(drifted.search(queries, 20).scores, fresh.search(queries, 20).scores, rtol=1e-5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_rows_any_query_any_k(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    count, dim = data.draw(st.integers(1, 400)), data.draw(st.integers(1, 60))
    rows = learned(count, seed=seed, terms=data.draw(st.integers(1, 12)), dim=dim)
    queries = learned(5, seed=seed + 1, terms=data.draw(st.integers(1, 12)), dim=dim)
    keys = np.sort(rng.choice(10**12, count, replace=False))
    order = rng.permutation(count)
    index = InvertedIndex(precision=data.draw(st.sampled_from(get_args(Precision))))
    index.add(keys[order], take(rows, order))
    k = data.draw(st.integers(1, 30))
    check(index.search(queries, k), products(queries, rows), keys, k)


def test_opened_from_disk_it_finds_the_same(tmp_path: Path) -> None:
    rows, queries = learned(20_000), learned(10, seed=1)
    index = InvertedIndex()
    index.add(np.arange(20_000), rows)
    index.save(tmp_path / "saved")
    opened = InvertedIndex.open(tmp_path / "saved")
    a, b = index.search(queries, 10), opened.search(queries, 10)
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.scores, b.scores)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="float16"):
        InvertedIndex(precision="float16")  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["compiled"], indirect=True)
def test_the_two_ways_make_the_same_lists(way: str) -> None:
    """numpy's and the compiled code's posting lists are one format: each reads what the other has written."""
    from reperio.indexes import inverting

    rows = learned(40_000, terms=8)
    terms, slots = np.unique(rows.indices, return_inverse=True)
    slots = slots.astype(np.int32)
    a = lists.invert(rows.indptr, slots, rows.weights, len(terms))
    b = inverting.invert(rows.indptr, slots, rows.weights, len(terms))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
    starts, positions, values = a
    relative = np.random.default_rng(0).uniform(0.5, 2, 40_000)
    linear = terms < 100
    formula = Formula(2.2, 0.5, 1.2, 1)
    for top in (255, 0):
        scales, codes = lists.encode(starts, positions, values, relative, linear, formula, top)
        filled = np.empty_like(codes)
        np.testing.assert_allclose(
            inverting.encode(starts, positions, values, relative, linear, formula, filled), scales, rtol=1e-6
        )
        np.testing.assert_allclose(filled.astype(float), codes.astype(float), rtol=1e-6, atol=1 if top else 0)
        longs = np.flatnonzero(np.diff(starts) >= 30)
        for x, y in zip(
            lists.cut(starts, positions, codes, longs, 3),
            inverting.cut(starts, positions, codes, longs, 3),
            strict=True,
        ):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("way", ["compiled"], indirect=True)
def test_postings_beyond_the_31st_bit_are_found_where_they_are(way: str) -> None:
    from reperio.indexes import pruning

    index = InvertedIndex()
    index.add(np.arange(20_000), learned(20_000, dim=50_000))
    view = index._view
    held, far = view.lists[0], 2**33
    moved = held._replace(starts=held.starts + far, long_starts=held.long_starts + far // 4)
    asked = view._asked(view.weigh(learned(1, seed=1, dim=50_000)), 0)
    near, there = (pruning._prepare(part, asked, 0, len(asked.slots), 1.0)[0] for part in (held, moved))
    is_long = near.number >= 0
    assert 0 < is_long.sum() < len(is_long)
    np.testing.assert_array_equal(there.codes_from - near.codes_from, far)
    np.testing.assert_array_equal(there.places_from - near.places_from, np.where(is_long, far // 4, far - far // 4))
    np.testing.assert_array_equal(there.sizes, near.sizes)
    assert postings.offsets(np.array([2**31 - 1, 5], np.int32)).tolist() == [0, 2**31 - 1, 2**31 + 4]
    assert postings.spread(np.array([far]), np.array([3])).tolist() == [far, far + 1, far + 2]


@pytest.mark.parametrize("terms", [2047, 2048, 2600])
def test_a_query_of_thousands_of_terms_finds_the_row_that_holds_them_all(terms: int) -> None:
    """A sum of many more bounds, each rounded up, would not fit 16 bits."""
    rng = np.random.default_rng(0)
    columns = [np.arange(terms), *(np.sort(rng.choice(terms, terms // 3, replace=False)) for _ in range(129))]
    weights = [np.full(terms, 3.0), *(rng.uniform(0.5, 3, terms // 3) for _ in range(129))]
    indptr = np.cumsum([0, *map(len, columns)])
    rows = Sparse(indptr, np.concatenate(columns), np.concatenate(weights).astype(np.float32), terms)
    index = InvertedIndex()
    index.add(np.arange(130), rows)
    query = Sparse(np.array([0, terms]), np.arange(terms), np.ones(terms, dtype=np.float32), terms)
    scores = index.score(query, np.arange(130)[None])[0]
    assert index.search(query, 3).ids[0].tolist() == np.argsort(-scores, kind="stable")[:3].tolist()


def test_the_highest_weight_that_may_be_added_may_be_opened(tmp_path: Path) -> None:
    index = InvertedIndex()
    index.add(np.array([1]), Sparse(np.array([0, 1]), np.array([3]), np.array([2.0**24], dtype=np.float32), 8))
    index.save(tmp_path / "index")
    assert InvertedIndex.open(tmp_path / "index").ids.tolist() == [1]


@pytest.mark.parametrize("k", [1, 7, 60, 500])
@pytest.mark.parametrize("rows", [300, 20_000])
def test_of_rows_that_score_alike_the_lower_ids_come_first(k: int, rows: int) -> None:
    """Counts of one or two of five words: a handful of scores, each of very many rows."""
    rng = np.random.default_rng(k)
    counts = rng.integers(0, 3, (rows, 5)) * (rng.random((rows, 5)) < 0.3)
    at, columns = np.nonzero(counts)
    indptr = np.searchsorted(at, np.arange(rows + 1))
    held = Sparse(indptr, columns, counts[at, columns].astype(np.float32), 5)
    keys = np.arange(rows) * 3
    index = InvertedIndex()
    order = rng.permutation(rows)
    for part in np.array_split(order, 3):
        index.add(keys[part], take(held, part))
    index.remove(keys[::11])
    queries = Sparse(np.array([0, 2, 3]), np.array([0, 3, 4]), np.array([1, 1, 2], dtype=np.float32), 5)
    scores = index.score(queries, np.tile(keys, (2, 1)))
    found = index.search(queries, k)
    for ids, every in zip(found.ids, scores, strict=True):
        best = np.lexsort((keys, -every))[: min(k, np.count_nonzero(every > 0))]
        assert ids.tolist() == keys[best].tolist() + [-1] * (k - len(best))


def test_more_terms_than_two_bytes_number_are_scored_too() -> None:
    """A row's terms are marked with their numbers in the query."""
    terms = 70_000
    rng = np.random.default_rng(0)
    columns = [np.sort(rng.choice(terms, 2000, replace=False)) for _ in range(50)]
    weights = rng.uniform(0.5, 3, 50 * 2000).astype(np.float32)
    rows = Sparse(np.arange(51) * 2000, np.concatenate(columns), weights, terms)
    index = InvertedIndex()
    index.add(np.arange(50), rows)
    query = Sparse(np.array([0, terms]), np.arange(terms), rng.uniform(0.5, 3, terms).astype(np.float32), terms)
    check(index.search(query, 5), products(query, rows), np.arange(50), 5)
    check(index.search(query, 5, allowed=np.arange(9)), products(query, rows), np.arange(50), 5, np.arange(9))
    np.testing.assert_allclose(index.score(query, np.arange(50)[None]), products(query, rows), rtol=2e-6)


@pytest.mark.parametrize("index_type", ["int32", "uint64", ">i8"])
@pytest.mark.parametrize("weight_type", ["float64", "float16", ">f4", "int64"])
def test_arrays_of_another_kind_are_taken_as_their_numbers(index_type: str, weight_type: str, tmp_path: Path) -> None:
    """As scipy gives them: int32 columns, float64 weights."""
    rows = learned(200, terms=8)
    rows = Sparse(rows.indptr, rows.indices, np.ceil(rows.weights), rows.dim)
    other = Sparse(
        rows.indptr.astype(index_type), rows.indices.astype(index_type), rows.weights.astype(weight_type), rows.dim
    )
    index = InvertedIndex()
    index.add(np.arange(200), other)
    index.save(tmp_path / "index")
    opened = InvertedIndex.open(tmp_path / "index")
    check(opened.search(other, 5), products(rows, rows), np.arange(200), 5)
    np.testing.assert_array_equal(opened.rows(np.arange(200)).weights, rows.weights)


def test_what_was_added_is_a_copy() -> None:
    rows = learned(3, terms=4)
    before = take(rows, np.arange(3))
    index = InvertedIndex()
    index.add(np.arange(3), rows)
    for array in (rows.indptr, rows.indices, rows.weights):
        array[:] = 0
    np.testing.assert_array_equal(index.rows(np.arange(3)).indptr, before.indptr)
    check(index.search(before, 3), products(before, before), np.arange(3), 3)


_ONE = (np.array([0, 2]), np.array([1, 5]), np.array([1, 2], dtype=np.float32))


@pytest.mark.parametrize(
    ("indptr", "indices", "weights"),
    [
        (np.array([1, 2]), *_ONE[1:]),
        (np.array([0, 3]), *_ONE[1:]),
        (np.array([0, 2, 1, 2]), *_ONE[1:]),
        (np.array([0, -1, 2]), *_ONE[1:]),
        (np.array([], dtype=np.int64), *_ONE[1:]),
        (_ONE[0], np.array([5, 1]), _ONE[2]),
        (_ONE[0], np.array([5, 5]), _ONE[2]),
        (_ONE[0], np.array([-1, 5]), _ONE[2]),
        (_ONE[0], np.array([1, DIM]), _ONE[2]),
        (_ONE[0], np.array([1.0, 5.0]), _ONE[2]),
        (*_ONE[:2], np.array([1, np.nan], dtype=np.float32)),
        (*_ONE[:2], np.array([1, np.inf], dtype=np.float32)),
        (*_ONE[:2], np.array([1, -1], dtype=np.float32)),
        (*_ONE[:2], np.array([1, 2**25], dtype=np.float32)),
        (*_ONE[:2], np.array([1, 1e300])),
        (*_ONE[:2], np.array([1, 2, 3], dtype=np.float32)),
        (*_ONE[:2], np.array(["a", "b"])),
    ],
)
def test_malformed_rows_and_queries_are_refused(indptr: np.ndarray, indices: np.ndarray, weights: np.ndarray) -> None:
    index, bad = InvertedIndex(), Sparse(indptr, indices, weights, DIM)
    index.add(np.arange(100), learned(100))
    for refused in (
        lambda: index.search(bad, 3),
        lambda: index.score(bad, np.zeros((max(0, len(indptr) - 1), 1), dtype=np.int64)),
        lambda: index.add(np.arange(1), bad),
    ):
        with pytest.raises(ShapeError):
            refused()
    assert len(index) == 100


def test_the_smallest_weights_there_are_rank_as_they_should() -> None:
    """Below the normal numbers of float32, a scale would be rounded by more than a bound is lifted."""
    tiny = np.float32(1e-45) * np.arange(1, 301, dtype=np.float32)
    rows = Sparse(np.arange(301), np.zeros(300, dtype=np.int64), tiny, DIM)
    index = InvertedIndex()
    index.add(np.arange(300), rows)
    query = Sparse(np.array([0, 1]), np.array([0]), np.array([2**23], dtype=np.float32), DIM)
    assert index.search(query, 3).ids[0].tolist() == [299, 298, 297]


def test_half_of_very_many_ties_are_those_of_the_lower_ids() -> None:
    rows = Sparse(np.arange(60_001), np.zeros(60_000, dtype=np.int64), np.ones(60_000, dtype=np.float32), DIM)
    index = InvertedIndex()
    index.add(np.arange(60_000), rows)
    query = Sparse(np.array([0, 1]), np.array([0]), np.ones(1, dtype=np.float32), DIM)
    assert index.search(query, 30_000).ids[0].tolist() == list(range(30_000))


@pytest.mark.parametrize("terms", [1, 4, 40])
def test_term_by_term_a_row_scores_what_it_scores_by_itself(terms: int, way: str) -> None:
    """To the bit, in counts and weights, of short lists and long ones, few rows and all."""
    if way == "numpy":
        pytest.skip("there is no such way without compiled code")
    from reperio.indexes import pruning, termwise, windows

    rows, boundary = learned(6000), 1000
    whole = np.where(rows.indices < boundary, rows.weights, np.ceil(rows.weights)).astype(np.float32)
    index = BM25Index("bm25l", weights_below=boundary)
    index.add(np.arange(6000), Sparse(rows.indptr, rows.indices, whole, DIM))
    view = index._view
    (lists,) = view.lists
    for query in range(20):
        asked = view._asked(view.weigh(learned(1, seed=query, terms=terms)), 0)
        held = (asked.slots, asked.weights, asked.linear)
        entered = pruning._prepare(lists, asked, 0, len(asked.slots), 1.0)[0]
        windows.enter(lists, entered, 0)
        numbers = np.zeros(WINDOW, np.uint16)
        for count in (1, 50, 6000):
            some = np.random.default_rng(query).choice(6000, count, replace=False)
            scores = termwise.score_all(lists, view.relative, view.formula, held, entered, some, numbers)
            alone = np.zeros((1, count))
            pruning.score(
                lists, view.relative, view.formula, asked, some[None], alone, np.zeros(len(lists.scales), np.uint16)
            )
            assert np.array_equal(scores, alone[0])
            assert not numbers.any()


def test_a_small_index_that_changes_finds_what_a_fresh_one_finds() -> None:
    """What is kept in the order of terms goes with the segment, and follows removals and merges."""
    rows, queries = learned(5000), learned(10, seed=1, terms=3)
    index = InvertedIndex()
    for first in range(0, 5000, 500):
        index.add(np.arange(first, first + 500), take(rows, np.arange(first, first + 500)))
        index.remove(np.arange(first, first + 500, 7))
        kept = index.ids
        fresh = InvertedIndex()
        fresh.add(kept, take(rows, kept))
        for k in (10, 200):
            found, wanted = index.search(queries, k), fresh.search(queries, k)
            assert np.array_equal(found.ids, wanted.ids)
            assert np.array_equal(found.scores, wanted.scores)


@given(st.floats(1e-6, 257.0), st.integers(1, 255))
def test_what_a_posting_adds_is_its_bound_rounded_up(lift: float, code: int) -> None:
    """And rounded by one at most, so that what is taken off for rounding is enough."""
    from reperio.indexes import windows

    codes = np.array([code], np.uint8)
    added = windows.given(windows.step(lift, codes), np.int64(code))
    assert max(1, lift * code) <= added <= lift * code + 1 + 2**-8
    assert windows.given(windows.step(lift, codes.astype(np.float32)), np.float32(code)) == np.float32(lift) * code


@pytest.mark.parametrize("precision", get_args(Precision))
def test_rows_that_only_the_baseline_makes_equal_tie_to_the_lower_ids(precision: Precision) -> None:
    """In BM25+ a row without a heavy term still scores most of it, and float32 no longer tells the light one apart."""
    counts = np.arange(1, 42, dtype=np.float32)
    index = BM25Index("bm25+", precision=precision)
    filler = np.stack([np.ones(41, dtype=np.float32), counts], axis=1)  # a light term; another one of other frequency
    last = np.zeros(41, dtype=np.float32)
    last[40] = 1
    matrix = scipy.sparse.csr_array(np.concatenate([filler, last[:, None]], axis=1))
    index.add(np.arange(41), Sparse(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data, 3))
    query = Sparse(np.array([0, 2]), np.array([1, 2]), np.array([1e-4, 2.0**22], dtype=np.float32), 3)
    scores = index.score(query, np.arange(41)[None])[0]
    assert index.search(query, 3).ids[0].tolist() == np.lexsort((np.arange(41), -scores))[:3].tolist()


@pytest.mark.parametrize("weight", [np.nan, -1, 2.0**25])
def test_a_weight_out_of_range_is_named_with_its_row(weight: float) -> None:
    weights = np.array([1, 2, 3, weight, 4], dtype=np.float32)
    rows = Sparse(np.array([0, 2, 2, 4, 5]), np.array([1, 3, 0, 2, 1]), weights, 5)
    words = re.escape(f"embeddings, row 2, holds the weight {weight:g}, ")
    with pytest.raises(ShapeError, match=words):
        InvertedIndex().add(np.arange(4), rows)
    with pytest.raises(ShapeError, match=words):
        column("sparse", "ip", "hnsw").check(rows, what="embeddings", dim=None)


def test_an_index_that_could_not_be_opened_is_looked_at_when_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = InvertedIndex()
    index.add(np.arange(50), learned(50))
    index.save(tmp_path / "index")
    looked = list[int]()
    monkeypatch.setattr(inverted, "check_segment", lambda segment, *_: looked.append(len(segment)))

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(postings.Segment, "open", refuse)
        with pytest.raises(StorageError, match="Too many"):
            InvertedIndex.open(tmp_path / "index")
    InvertedIndex.open(tmp_path / "index")
    assert looked == [50]


def test_arrays_in_another_order_are_read_in_that_of_compiled_code(tmp_path: Path) -> None:
    """To compile for another order takes longer than most programs live."""
    table = np.asfortranarray(np.arange(12).reshape(3, 4))
    np.save(tmp_path / "table.npy", table)
    read = postings._load(tmp_path / "table.npy")
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, table)
