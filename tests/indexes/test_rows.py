"""Row keys and positions: the laws of `reperio.indexes.rows`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio.embeddings import Sparse
from reperio.errors import DuplicateId, InvalidInput, ShapeError
from reperio.indexes import rows as module
from reperio.indexes.rows import Rows, check_ids, grown, merge
from reperio.indexes.sparse_rows import products
from reperio.types import Neighbors

keys = st.lists(st.integers(0, 60), max_size=12, unique=True)
ascending = st.lists(st.integers(0, 60), max_size=12, unique=True).map(sorted)


def ints(values: object) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["append", "append in order", "remove", "bury"]), keys), max_size=12))
def test_rows_find_every_key_where_it_was_put_last(steps: list[tuple[str, list[int]]]) -> None:
    rows, place, size = Rows(), dict[int, int](), 0
    for step, chosen in steps:
        if step == "remove":
            assert rows.remove(ints(chosen)) == sum(key in place for key in chosen)
            for key in chosen:
                place.pop(key, None)
        elif step == "bury":
            size += len(chosen)
            rows.bury(size)
        else:
            ids = sorted(chosen) if step == "append in order" else chosen
            rows.append(ints(ids))
            place.update({key: size + i for i, key in enumerate(ids)})
            size += len(ids)
        everything = np.arange(-1, 62)
        np.testing.assert_array_equal(rows.find(everything), [place.get(key, -1) for key in everything.tolist()])
        assert len(rows) == len(place)
        np.testing.assert_array_equal(np.flatnonzero(rows.alive), sorted(place.values()))
        again = Rows(rows.ids.copy(), rows.alive.copy())
        np.testing.assert_array_equal(again.find(everything), rows.find(everything))


def test_rows_stay_right_when_keys_out_of_order_grow_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RECENT", 16)
    rows, order = Rows(), np.random.default_rng(0).permutation(400)
    for part in np.split(order, np.arange(3, 400, 7)):
        rows.append(part)
    rows.append(np.arange(100, 200))
    np.testing.assert_array_equal(rows.ids[rows.find(np.arange(400))], np.arange(400))
    np.testing.assert_array_equal(rows.find(np.arange(100, 200)), np.arange(400, 500))


def test_keys_in_order_need_no_map() -> None:
    rows = Rows()
    for start in range(0, 1000, 100):
        rows.append(np.arange(start, start + 100) * 3)
    rows.remove(ints([3, 6]))
    held = [name for name, value in vars(rows).items() if isinstance(value, np.ndarray | dict) and len(value)]
    assert held == ["_ids", "_alive"]


def test_a_mask_keeps_the_living_that_are_allowed() -> None:
    rows = Rows(ints([5, 7, 9]))
    assert rows.mask(None) is None
    rows.remove(ints([7]))
    assert rows.mask(None).tolist() == [True, False, True]
    assert rows.mask(ints([7, 9, 11])).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("ids", "error", "words"),
    [
        ([[1, 2]], ShapeError, r"\(1, 2\)"),
        ([1.0, 2.0], ShapeError, "float64"),
        (["a", "b"], ShapeError, "<U1"),
        ([1], ShapeError, "1 ids for 2"),
        ([4, 4], DuplicateId, "4"),
        ([9, -3], InvalidInput, "-3"),
        ([-3, 9], InvalidInput, "-3"),
    ],
)
def test_keys_that_are_none_are_refused(ids: list[object], error: type[InvalidInput], words: str) -> None:
    with pytest.raises(error, match=words):
        check_ids(ids, rows=2)


def test_keys_may_be_of_any_whole_type() -> None:
    assert check_ids(np.array([3, 1], dtype=np.uint8), rows=2).dtype == np.int64
    assert check_ids([], rows=0).dtype == np.int64


def test_an_array_grows_by_half_so_that_appending_is_cheap() -> None:
    array, copies = np.zeros(1), 0
    for size in range(1, 10_000):
        bigger = grown(array, size)
        copies += bigger is not array
        array = bigger
    assert copies < 25


@given(
    parts=st.lists(st.lists(st.tuples(st.integers(0, 30), st.sampled_from([0.0, 0.5, 1.0])), max_size=6), min_size=1),
    k=st.integers(1, 8),
)
def test_merging_keeps_the_best_and_gives_ties_to_the_lower_key(parts: list[list[tuple[int, float]]], k: int) -> None:
    width = 6
    neighbors = []
    for part in parts:
        ranked = sorted(part, key=lambda pair: (-pair[1], pair[0])) + [(-1, -np.inf)] * (width - len(part))
        neighbors.append(Neighbors(ints([[i for i, _ in ranked]]), np.array([[s for _, s in ranked]], np.float32)))
    found = merge(neighbors, k)
    wanted = sorted((pair for part in parts for pair in part), key=lambda pair: (-pair[1], pair[0]))[:k]
    held = found.ids[0] >= 0
    assert list(zip(found.ids[0][held].tolist(), found.scores[0][held].tolist(), strict=True)) == wanted


def test_a_product_does_not_depend_on_its_neighbours() -> None:
    weights = np.array([1e18, 1e-5, 2e-5], dtype=np.float32)
    rows = Sparse(ints([0, 1, 1, 3]), ints([4, 2, 4]), weights, 8)  # one row holds nothing
    query = Sparse(ints([0, 2]), ints([2, 4]), np.ones(2, dtype=np.float32), 8)
    found = products(query, ints([0, 0, 0]), rows, ints([0, 1, 2]))
    np.testing.assert_allclose(found, [1e18, 0, 3e-5], rtol=1e-6)
