"""Filtered search: the right rows, whichever way the planner chooses, and which way it chooses."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio.indexes import FaissIndex, FlatIndex
from reperio.indexes.chosen import KeyedRows
from reperio.indexes.filtered import FilteredSearch
from reperio.indexes.rows import Rows
from reperio.testing.index import clustered

ROWS = 4000
VECTORS = clustered(ROWS + 60, 32)
KEYS = np.arange(ROWS)
QUERIES = VECTORS[ROWS:]
FACTORIES = ["Flat", "HNSW16", "IVF64,Flat", "IVF64,PQ8x4fs,RFlat", "SQ8", "PQ8x4fs,RFlat", "HNSW16,SQ8"]
OPTIONS = {"HNSW16": {"efSearch": 48}, "IVF64,PQ8x4fs,RFlat": {"k_factor": 40}, "PQ8x4fs,RFlat": {"k_factor": 40}}


@pytest.fixture(scope="module")
def indexes() -> dict[str, FaissIndex]:
    made = {}
    for factory in FACTORIES:
        made[factory] = FaissIndex(factory, train_size=2000, options=OPTIONS.get(factory))
        made[factory].add(KEYS, VECTORS[:ROWS])
    return made


@pytest.fixture(scope="module")
def exact() -> FlatIndex:
    index = FlatIndex()
    index.add(KEYS, VECTORS[:ROWS])
    return index


def some(share: float) -> np.ndarray:
    return np.sort(np.random.default_rng(0).choice(KEYS, max(1, int(share * ROWS)), replace=False))


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean([np.isin(w[w >= 0], f).mean() for f, w in zip(found, wanted, strict=True)]))


# What is found


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("factory", FACTORIES)
def test_a_filter_finds_what_an_exact_scan_of_what_passes_finds(
    factory: str, share: float, indexes: dict[str, FaissIndex], exact: FlatIndex
) -> None:
    index, allowed = indexes[factory], some(share)
    floor = 0.9 if "SQ8" in factory else 0.97
    for part in (QUERIES, QUERIES[:1]):
        found = index.search(part, 10, allowed=allowed)
        assert np.isin(found.ids[found.ids >= 0], allowed).all()
        assert ((found.ids >= 0).sum(axis=1) == min(10, len(allowed))).all()
        assert recall(found.ids, exact.search(part, 10, allowed=allowed).ids) >= floor


@pytest.mark.parametrize(
    ("factory", "metric"),
    [
        *product(["Flat", "HNSW16", "IVF64,Flat", "RR32,Flat"], ["cosine", "ip", "l2"]),
        *product(["IMI2x4,Flat"], ["cosine", "l2"]),  # by distance only
    ],
)
def test_looking_at_each_row_gives_exact_scores_in_a_batch_and_alone(factory: str, metric: str) -> None:
    rows = 3 * VECTORS[:ROWS]
    index, twin = FaissIndex(factory, metric=metric, train_size=2000), FlatIndex(metric)  # type: ignore[arg-type]
    for each in (index, twin):
        each.add(KEYS, rows)
    for allowed in (None, some(0.02)):
        wanted = twin.search(QUERIES, 15, allowed=allowed)
        together = index.exact(QUERIES, 15, allowed=allowed)
        alone = [index.exact(QUERIES[[i]], 15, allowed=allowed) for i in range(len(QUERIES))]
        np.testing.assert_allclose(together.scores, wanted.scores, atol=2e-5)
        np.testing.assert_allclose(np.concatenate([a.scores for a in alone]), wanted.scores, atol=2e-5)
        assert (together.ids == wanted.ids).mean() > 0.99


def test_codes_without_vectors_are_searched_as_far_as_they_go() -> None:
    index = FaissIndex("IVF16,RaBitQ", train_size=1000)
    index.add(KEYS, VECTORS[:ROWS])
    np.testing.assert_array_equal(index.exact(QUERIES, 10).ids, index.search(QUERIES, 10, options={"nprobe": 16}).ids)
    assert (index.search(QUERIES, 10, allowed=some(0.004), options={"nprobe": 1}).ids >= 0).all()


# Which way is taken


def way(index: FaissIndex, monkeypatch: pytest.MonkeyPatch, **arguments: object) -> str:
    taken = []
    for name in ("scan", "_walk"):
        real = getattr(FilteredSearch, name)

        def noted(self: FilteredSearch, *a: object, name: str = name, real: object = real, **k: object) -> object:
            taken.append(name)
            return real(self, *a, **k)  # type: ignore[operator]

        monkeypatch.setattr(FilteredSearch, name, noted)
    index.search(QUERIES[:1], 10, **arguments)  # type: ignore[arg-type]
    monkeypatch.undo()
    return taken[0]


@pytest.mark.parametrize(
    ("factory", "share", "wanted"),
    [
        ("Flat", 0.5, "scan"),
        ("Flat", 0.01, "scan"),
        ("HNSW16", 0.01, "scan"),
        ("HNSW16", 0.9, "_walk"),
        ("IVF64,Flat", 0.01, "scan"),
        ("IVF64,Flat", 0.9, "_walk"),
        ("IVF64,PQ8x4fs,RFlat", 0.01, "scan"),
        ("IVF64,PQ8x4fs,RFlat", 0.9, "_walk"),
    ],
)
def test_each_row_is_looked_at_where_that_is_cheaper(
    factory: str, share: float, wanted: str, indexes: dict[str, FaissIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"efSearch": 24} if "HNSW" in factory else None
    assert way(indexes[factory], monkeypatch, allowed=some(share), options=options) == wanted
    assert way(indexes[factory], monkeypatch) == "_walk"


def test_a_walk_looks_further_the_fewer_rows_pass(indexes: dict[str, FaissIndex]) -> None:
    for factory, name in (("HNSW16", "efSearch"), ("IVF64,Flat", "nprobe")):
        main = indexes[factory]._held.main
        assert main is not None
        search = FilteredSearch(main.layers, metric="cosine")
        values = [search.widened({name: 8}, 10, share)[name] for share in (1, 0.9, 0.5, 0.1, 0.01)]
        assert values[0] == 8
        assert values == sorted(values)
        assert values[-1] > 4 * values[0]
        assert values[-1] <= indexes[factory].widest[name]


# Which positions keys stand at


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 60), unique=True, max_size=40),
    st.lists(st.integers(0, 60), unique=True, max_size=20),
    st.sets(st.integers(0, 70)),
    st.integers(0, 30),
    st.booleans(),
)
def test_chosen_positions_are_those_of_the_keys_that_are_alive(
    keys: list[int], gone: list[int], allowed: set[int], first: int, run: bool
) -> None:
    held = np.arange(first, first + len(keys)) if run else np.array(keys, dtype=np.int64)
    rows = KeyedRows()
    rows.append(held)
    rows.remove(np.array(gone, dtype=np.int64))
    asked = np.array(sorted(allowed), dtype=np.int64)
    for _ in range(2):  # the second time from what was kept
        chosen = rows.chosen(asked)
        assert chosen is not None
        wanted = sorted((set(held.tolist()) - set(gone)) & allowed)
        assert sorted(rows.ids[chosen.positions].tolist()) == wanted
        assert sorted(np.flatnonzero(chosen.mask).tolist()) == sorted(chosen.positions.tolist())
        assert np.unpackbits(chosen.bits, bitorder="little")[: len(held)].tolist() == chosen.mask.tolist()
    living = rows.chosen(None)
    assert (living is None) == (len(rows) == len(held))
    assert living is None or sorted(rows.ids[living.positions]) == sorted(set(held.tolist()) - set(gone))


def test_a_set_that_is_changed_in_place_is_another_set() -> None:
    index = FaissIndex("Flat")
    index.add(KEYS, VECTORS[:ROWS])
    allowed = np.arange(100)
    assert index.search(QUERIES[:1], 5, allowed=allowed).ids.max() < 100
    allowed += 1000
    assert index.search(QUERIES[:1], 5, allowed=allowed).ids.min() >= 1000


def test_what_was_kept_is_forgotten_when_rows_come_and_go() -> None:
    rows, allowed = KeyedRows(), np.arange(10)
    rows.append(np.arange(5))
    assert len(rows.chosen(allowed) or []) == 5
    rows.append(np.arange(5, 12))
    assert len(rows.chosen(allowed) or []) == 10
    rows.remove(np.array([3]))
    assert len(rows.chosen(allowed) or []) == 9
    assert len(rows.chosen(None) or []) == 11
    rows.bury(20)
    assert len(rows.chosen(allowed) or []) == 9


@pytest.mark.parametrize("step", ["remove", "append", "bury"])
@pytest.mark.parametrize("when", ["before", "meanwhile", "after"])
def test_a_search_in_the_middle_of_a_change_leaves_nothing_of_the_old_rows(
    step: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It marks what it found while rows come and go, just before or after: no later search is told of it."""
    rows, allowed = KeyedRows(), np.arange(10)
    rows.append(np.arange(5))
    rows.remove(np.array([4]))
    change, positions = getattr(Rows, step), KeyedRows._positions

    def searched(self: Rows, argument: Any) -> Any:
        if when == "before":
            look(rows)
        out = change(self, argument)
        if when == "after":
            look(rows)
        return out

    def look(rows: KeyedRows) -> None:
        rows.chosen(None)
        rows.chosen(allowed)

    def late(self: KeyedRows, *arguments: Any) -> Any:
        """The rows change after a search has looked at them, before it keeps what it saw."""
        found = positions(self, *arguments)
        patched.setattr(KeyedRows, "_positions", positions)
        getattr(self, step)(argument)
        return found

    argument: Any = {"remove": np.array([3]), "append": np.array([7]), "bury": 9}[step]
    with monkeypatch.context() as patched:
        if when == "meanwhile":
            patched.setattr(KeyedRows, "_positions", late)
            rows.chosen(allowed)
        else:
            patched.setattr(Rows, step, searched)
            getattr(rows, step)(argument)
    held = {"remove": {0, 1, 2}, "append": {0, 1, 2, 3, 7}, "bury": {0, 1, 2, 3}}[step]
    for chosen in (rows.chosen(allowed), rows.chosen(None)):
        assert chosen is not None
        assert set(rows.ids[chosen.positions].tolist()) == held
        assert len(chosen.mask) == len(rows.ids)
