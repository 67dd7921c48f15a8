"""Range search: what reaches a threshold, equal to scoring every row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio.embeddings import Dense
from reperio.errors import ConfigurationError, InvalidInput, ShapeError, UnsupportedOperation
from reperio.indexes import FaissIndex
from reperio.indexes.ranges import Ranges
from reperio.testing.index import clustered

ROWS = 800
VECTORS = clustered(ROWS + 6, 32)
KEYS = np.arange(ROWS) * 3
QUERIES = VECTORS[ROWS:]
EVERYTHING = {"nprobe": 16, "efSearch": 800}


def filled(factory: str, metric: str = "cosine") -> FaissIndex:
    index = FaissIndex(factory, metric=metric, train_size=500)
    index.add(KEYS, VECTORS[:ROWS])
    return index


def by_scoring(
    index: FaissIndex, queries: Dense, threshold: float, allowed: np.ndarray | None = None
) -> list[set[int]]:
    keys = index.ids if allowed is None else np.intersect1d(index.ids, allowed)
    scores = index.score(queries, np.tile(keys, (len(queries), 1)))
    return [set(keys[row >= threshold].tolist()) for row in scores]


def as_sets(found: Ranges) -> list[set[int]]:
    return [set(found.row(i)[0].tolist()) for i in range(len(found))]


def everything(index: FaissIndex) -> dict[str, int]:
    return {name: value for name, value in EVERYTHING.items() if name in index.widest}


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("factory", ["Flat", "HNSW32", "IVF16,Flat", "IVF16,PQ8x4fs,RFlat", "HNSW16,Flat,RFlat"])
def test_every_row_that_reaches_the_threshold_is_found_and_no_other(factory: str, metric: str) -> None:
    index = filled(factory, metric)
    threshold = -0.9 if metric == "l2" else 0.55
    wanted = by_scoring(index, QUERIES, threshold)
    assert 20 < sum(map(len, wanted)) < len(QUERIES) * ROWS / 2
    for exact in (False, True):
        found = index.search_range(QUERIES, threshold, options=everything(index), exact=exact)
        assert as_sets(found) == wanted
        assert found.scores.dtype == np.float32
        assert (found.scores >= threshold).all()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("factory", ["SQ8", "HNSW32,SQ8", "IVF16,SQ8", "IVF16,PQ8x4np", "PCA16,IVF16,Flat", "PQ8np"])
def test_codes_are_compared_as_they_are_kept(factory: str, metric: str) -> None:
    index = filled(factory, metric)
    threshold = -0.9 if metric == "l2" else 0.55
    scores = index.score(QUERIES, np.tile(KEYS, (len(QUERIES), 1)))
    for exact in (False, True):
        found = as_sets(index.search_range(QUERIES, threshold, options=everything(index), exact=exact))
        for ids, row in zip(found, scores, strict=True):
            clear = np.abs(row - threshold) > 1e-5  # what lies nearer may be rounded to either side
            assert ids & set(KEYS[clear].tolist()) == set(KEYS[clear & (row >= threshold)].tolist())


@pytest.mark.parametrize("factory", ["HNSW16", "IVF16,Flat"])
def test_a_narrow_look_misses_little_of_what_the_exact_twin_finds(factory: str) -> None:
    index = filled(factory)
    found, wanted = as_sets(index.search_range(QUERIES, 0.6)), as_sets(index.search_range(QUERIES, 0.6, exact=True))
    assert all(a <= b for a, b in zip(found, wanted, strict=True))
    assert sum(map(len, found)) >= 0.9 * sum(map(len, wanted))


@pytest.mark.parametrize("factory", ["Flat", "HNSW32", "IVF16,Flat", "IVF16,PQ8x4fs,RFlat"])
def test_a_filter_and_what_was_removed_hold(factory: str) -> None:
    index = filled(factory)
    index.remove(KEYS[::7])
    for allowed in (None, KEYS[:300], KEYS[:0], np.array([5])):
        for exact in (False, True):
            found = index.search_range(QUERIES, 0.5, allowed=allowed, options=everything(index), exact=exact)
            assert as_sets(found) == by_scoring(index, QUERIES, 0.5, allowed)


def test_rows_that_wait_and_rows_that_are_trained_are_found_alike() -> None:
    index = FaissIndex("IVF16,Flat", train_size=500, options={"nprobe": 16})
    assert len(index.search_range(QUERIES[:0], 0.5)) == 0
    assert index.search_range(QUERIES, 0.5).ids.size == 0
    for start in range(0, ROWS, 200):
        index.add(KEYS[start : start + 200], VECTORS[start : start + 200])
        wanted = [set(KEYS[: start + 200][row >= 0.5].tolist()) for row in QUERIES @ VECTORS[: start + 200].T]
        assert as_sets(index.search_range(QUERIES, 0.5)) == wanted


def test_rows_added_to_a_mapped_index_are_found_too(tmp_path: Path) -> None:
    index = filled("IVF16,Flat")
    index.save(tmp_path / "index")
    mapped = FaissIndex.open(tmp_path / "index", mmap=True)
    mapped.add(np.array([1]), QUERIES[:1])
    found = mapped.search_range(QUERIES[:1], 0.5, exact=True)
    assert found.row(0)[0][0] == 1
    assert as_sets(found)[0] == by_scoring(mapped, QUERIES[:1], 0.5)[0]


def test_a_row_on_the_threshold_is_in_and_ties_go_to_the_lower_id() -> None:
    index = FaissIndex("Flat", metric="ip")
    index.add(np.array([9, 4, 7]), np.array([[1, 0], [1, 0], [0.5, 0]], dtype=np.float32))
    found = index.search_range(np.array([[1, 0]], dtype=np.float32), 1.0)
    assert found.ids.tolist() == [4, 9]
    assert index.search_range(np.array([[1, 0]], dtype=np.float32), 0.5).ids.tolist() == [4, 9, 7]


@settings(max_examples=30, deadline=None)
@given(st.floats(-1, 1, width=32), st.integers(0, ROWS - 1))
def test_a_higher_threshold_finds_a_part_of_what_a_lower_one_finds(threshold: float, row: int) -> None:
    index = LAW
    low, high = (index.search_range(VECTORS[[row]], t) for t in (threshold, threshold + 0.1))
    assert np.isin(high.ids, low.ids).all()
    assert (np.diff(low.scores) <= 0).all()
    nearest = index.search(VECTORS[[row]], max(1, len(low.ids)))
    if len(low.ids):
        np.testing.assert_allclose(low.scores, nearest.scores[0], atol=1e-6)


LAW = filled("Flat")


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("PQ8x4fs", "IndexPQFastScan has no range search.*RFlat"),
        ("IVF16,RaBitQfs", "finds rows which its search.*RFlat"),
    ],
)
def test_an_index_without_a_range_search_says_how_to_get_one(factory: str, words: str) -> None:
    with pytest.raises(UnsupportedOperation, match=words):
        filled(factory).search_range(QUERIES, 0.5)
    assert filled(f"{factory},RFlat").search_range(QUERIES, 0.5).ids.size


def test_codes_that_do_not_decode_have_no_exact_twin() -> None:
    index = filled("IVF16,RaBitQ")
    assert index.search_range(QUERIES, 0.5, options={"nprobe": 16}).ids.size
    with pytest.raises(UnsupportedOperation, match="one by one"):
        index.search_range(QUERIES, 0.5, exact=True)


def test_bad_input_is_named() -> None:
    index = filled("Flat")
    threshold: Any
    for threshold in (np.nan, np.inf, "a", None):
        with pytest.raises(InvalidInput, match=f"threshold is {threshold!r}"):
            index.search_range(QUERIES, threshold)
    with pytest.raises(ShapeError, match="queries"):
        index.search_range(QUERIES[:, :8], 0.5)
    with pytest.raises(ConfigurationError, match="nprobe"):
        index.search_range(QUERIES, 0.5, options={"nprobe": 3})


@pytest.mark.parametrize("allowed", [np.array([40, 3, 7]), np.ones(9, dtype=bool), np.array([3, 3])])
def test_a_set_out_of_order_is_refused_as_in_a_search(allowed: np.ndarray) -> None:
    index = filled("Flat")
    with pytest.raises(InvalidInput):
        index.search_range(np.ones((1, index.dim or 1), dtype=np.float32), 0.5, allowed=allowed)
