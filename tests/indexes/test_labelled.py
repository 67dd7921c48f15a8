"""What every index over an engine that proposes labels has in common, on both engines."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from reperio.errors import ConfigurationError, CorruptArtifact, DiskFull, MissingDependency
from reperio.indexes import FlatIndex, HnswlibIndex, UsearchIndex
from reperio.indexes.labelled import LabelledIndex
from reperio.indexes.rows import grown
from reperio.registry import build
from reperio.testing.damage import held, resealed
from reperio.testing.index import clustered

Make = Callable[..., LabelledIndex]
ENGINES: list[Any] = [HnswlibIndex, UsearchIndex]
ROWS = 3000


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.__name__)
def make(request: pytest.FixtureRequest) -> Make:
    return request.param


@pytest.fixture(scope="module")
def filled() -> dict[str, LabelledIndex]:
    """3,000 rows in each engine; not to be changed."""
    out: dict[str, LabelledIndex] = {engine.__name__: engine() for engine in ENGINES}
    for index in out.values():
        for keys in np.split(np.arange(ROWS), 4):  # so few at a time are always linked in the same way
            index.add(keys * 3, clustered(ROWS, 32)[keys])
    return out


@pytest.fixture
def index(make: Make, filled: dict[str, LabelledIndex]) -> LabelledIndex:
    return filled[getattr(make, "__name__", "")]


@pytest.fixture(scope="module")
def exact() -> FlatIndex:
    out = FlatIndex()
    out.add(np.arange(ROWS) * 3, clustered(ROWS, 32))
    return out


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean([np.isin(w[w >= 0], f).mean() for f, w in zip(found, wanted, strict=True)]))


# Scores and ties


def test_scores_are_those_of_an_exact_index_to_the_bit(index: LabelledIndex, exact: FlatIndex) -> None:
    queries = clustered(40, 32, seed=3)
    found = index.search(queries, 10)
    np.testing.assert_array_equal(found.scores, exact.score(queries, found.ids))
    assert recall(found.ids, exact.search(queries, 10).ids) >= 0.93


def test_rows_that_are_the_same_come_in_the_order_of_their_keys(make: Make) -> None:
    index, row = make("l2"), clustered(500, 16)
    keys = np.random.default_rng(0).permutation(500)
    index.add(keys, np.repeat(row[::5], 5, axis=0))
    found = index.search(row[:50:5], 5, options={index.option: 200})
    assert (found.scores == 0).all()
    assert (np.diff(found.ids, axis=1) > 0).all()


# Filters


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_a_filter_does_not_cost_recall(index: LabelledIndex, exact: FlatIndex, share: float) -> None:
    allowed = np.sort(np.random.default_rng(1).choice(ROWS, int(share * ROWS), replace=False)) * 3
    queries = clustered(60, 32, seed=5)
    free = recall(index.search(queries, 10).ids, exact.search(queries, 10).ids)
    kept = recall(index.search(queries, 10, allowed=allowed).ids, exact.search(queries, 10, allowed=allowed).ids)
    assert kept >= free - 0.02


def test_a_filter_far_from_the_query_still_gives_k_rows(make: Make) -> None:
    """What passes lies where a walk towards the query never comes."""
    rng = np.random.default_rng(0)
    near, far = rng.normal(5, 1, (1500, 16)), rng.normal(-5, 1, (500, 16))
    index, exact = make("l2"), FlatIndex("l2")
    for each in (index, exact):
        each.add(np.arange(2000), np.concatenate([near, far]).astype(np.float32))
    queries, allowed = near[:10].astype(np.float32), np.arange(1500, 2000)
    for k in (1, 30, 499, 700):
        found = index.search(queries, k, allowed=allowed, options={index.option: 1})
        assert ((found.ids >= 1500).sum(axis=1) == min(k, 500)).all()
        if k > 30:
            wanted = exact.search(queries, k, allowed=allowed)
            np.testing.assert_array_equal(found.ids, wanted.ids)


def test_with_a_filter_too_a_batch_gives_what_its_queries_give_one_by_one(
    index: LabelledIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reperio.indexes.labelled._LABELS", 1000)  # a few queries at a time
    queries = clustered(30, 32, seed=6)
    for count in (30, 300, 1500):
        allowed = np.sort(np.random.default_rng(count).choice(ROWS, count, replace=False)) * 3
        together = index.search(queries, 10, allowed=allowed)
        for i, query in enumerate(queries):
            alone = index.search(query[None], 10, allowed=allowed)
            np.testing.assert_array_equal(alone.ids[0], together.ids[i])
            np.testing.assert_array_equal(alone.scores[0], together.scores[i])


def test_rows_that_a_graph_does_not_reach_are_found_when_more_are_asked_for(make: Make) -> None:
    """Few links, and short vectors that no other is near to: from most rows one gets to some hundred of 1,500."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1500, 8)).astype(np.float32) * rng.lognormal(0, 2, (1500, 1)).astype(np.float32)
    few = {"m": 2, "ef_construction": 4} if make is HnswlibIndex else {"connectivity": 4, "expansion_add": 8}
    index, exact = make("ip", **few), FlatIndex("ip")
    for keys in np.split(np.arange(1500), 3):
        index.add(keys, rows[keys])
    exact.add(np.arange(1500), rows)
    assert (index._engine.propose(rows[:5], 1000) < 0).any()
    for k in (300, 700, 1500):
        found = index.search(rows[:5], k)
        assert (found.ids >= 0).all()
        assert all(len(np.unique(ids)) == k for ids in found.ids)
        np.testing.assert_array_equal(found.scores, exact.score(rows[:5], found.ids))


# Options


def test_more_candidates_find_more_and_are_not_remembered(index: LabelledIndex, exact: FlatIndex) -> None:
    queries = clustered(100, 32, seed=7)
    wanted, before = exact.search(queries, 5).ids, index.search(queries, 5).ids
    few, many = (recall(index.search(queries, 5, options={index.option: n}).ids, wanted) for n in (5, 400))
    assert few + 0.02 < many > 0.995
    np.testing.assert_array_equal(index.search(queries, 5).ids, before)


def test_threads_with_other_options_do_not_disturb_each_other(index: LabelledIndex) -> None:
    queries, efforts = clustered(50, 32, seed=8), [1, 10, 100, 300]
    wanted = [index.search(queries, 5, options={index.option: n}).ids for n in efforts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: index.search(queries, 5, options={index.option: n}).ids, efforts * 8))
    for i, ids in enumerate(found):
        np.testing.assert_array_equal(ids, wanted[i % 4])


@pytest.mark.parametrize("value", [0, -3, 2.5, "10"])
def test_an_option_that_is_no_positive_number_is_refused(index: LabelledIndex, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=index.option):
        index.search(clustered(1, 32), 5, options={index.option: value})


@pytest.mark.parametrize("metric", ["dot", None])
def test_an_unknown_metric_is_refused_by_name(make: Make, metric: Any) -> None:
    with pytest.raises(ConfigurationError, match="metric"):
        make(metric)


# Changing


def test_it_grows_from_one_row_at_a_time(make: Make) -> None:
    """hnswlib has to be told how many rows there will be."""
    index, rows = make("ip"), clustered(1300, 8)
    for i in range(60):
        index.add(np.array([i]), rows[i : i + 1])
    for start in (60, 700):  # so few at once are linked in the same way each time
        index.add(np.arange(start, min(start + 640, 1300)), rows[start : start + 640])
    assert len(index) == 1300
    found = index.search(rows, 1, options={index.option: 100})
    assert (found.ids[:, 0] == np.arange(1300)).mean() > 0.98


def test_a_row_replaced_again_and_again_is_there_once(make: Make) -> None:
    index, rows = make(), clustered(400, 16)
    index.add(np.arange(200), rows[:200])
    for start in range(0, 400, 100):
        index.add(np.arange(100), rows[start : start + 100])
    assert len(index) == 200
    found = index.search(rows[300:], 1, options={index.option: 100})
    np.testing.assert_array_equal(found.ids[:, 0], np.arange(100))


def test_compacting_forgets_what_was_removed(make: Make, tmp_path: Path) -> None:
    rows, keys = clustered(1000, 32), np.random.default_rng(0).permutation(1000)
    index = make("l2")
    index.add(keys, rows)
    index.remove(np.arange(700))
    index.save(tmp_path / "before")
    exact = index.search(rows[:20], 300)
    index.compact()
    index.save(tmp_path / "after")
    again = index.search(rows[:20], 300)
    np.testing.assert_array_equal(again.ids, exact.ids)
    np.testing.assert_array_equal(again.scores, exact.scores)
    size = [sum(file.stat().st_size for file in (tmp_path / name).iterdir()) for name in ("before", "after")]
    assert size[1] < 0.45 * size[0]
    make().compact()


class Oracle(RuleBasedStateMachine):
    """Random changes and searches, compared with an exact index; few candidates, so that it often looks further."""

    make: Make

    @initialize()
    def start(self) -> None:
        self.pool = clustered(300, 8)
        self.index, self.exact = self.make("l2"), FlatIndex("l2")

    @rule(data=st.data(), count=st.integers(1, 120))
    def add(self, data: st.DataObject, count: int) -> None:
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        keys, rows = rng.choice(200, count, replace=False), self.pool[rng.choice(300, count)]
        self.index.add(keys, rows)
        self.exact.add(keys, rows)

    @rule(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 100))
    def remove(self, seed: int, count: int) -> None:
        gone = np.random.default_rng(seed).choice(200, count)
        assert self.index.remove(gone) == self.exact.remove(gone)

    @rule()
    def compact(self) -> None:
        self.index.compact()

    @rule(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 250), effort=st.integers(1, 50), filtered=st.booleans())
    def search(self, seed: int, k: int, effort: int, filtered: bool) -> None:
        rng = np.random.default_rng(seed)
        queries, allowed = self.pool[rng.choice(300, 3)], None
        if filtered:
            allowed = np.sort(rng.choice(220, rng.integers(0, 200), replace=False))
        found = self.index.search(queries, k, allowed=allowed, options={self.index.option: effort})
        wanted = self.exact.search(queries, k, allowed=allowed)
        held = found.ids >= 0
        np.testing.assert_array_equal(held.sum(axis=1), (wanted.ids >= 0).sum(axis=1))
        np.testing.assert_array_equal(found.scores, self.exact.score(queries, found.ids))
        assert all(len(np.unique(ids)) == len(ids) for ids in (row[row >= 0] for row in found.ids))
        if allowed is not None:
            assert np.isin(found.ids[held], allowed).all()
        if k >= len(self.exact):
            np.testing.assert_array_equal(found.ids, wanted.ids)

    @invariant()
    def the_keys_are_the_same(self) -> None:
        if hasattr(self, "index"):
            np.testing.assert_array_equal(self.index.ids, self.exact.ids)


@pytest.mark.parametrize("engine", ENGINES)
def test_it_holds_what_a_dictionary_would(engine: Any) -> None:
    machine = type("Machine", (Oracle,), {"make": engine}).TestCase
    machine.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)
    machine("runTest").runTest()


# Failures


def test_rows_that_the_engine_fails_to_take_are_not_there(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = clustered(500, 8)
    index = make("ip")
    index.add(np.arange(200), rows[:200])
    engine: Any = type(index._engine)
    append, calls = engine.append, []

    def fail_at_the_second(self: Any, start: int, vectors: np.ndarray) -> None:
        calls.append(len(vectors))
        append(self, start, vectors)
        if len(calls) == 2:
            raise MemoryError

    monkeypatch.setattr(engine, "append", fail_at_the_second)
    monkeypatch.setattr("reperio.indexes.labelled._CHUNK", 100)
    before = index.search(rows, 200)
    with pytest.raises(MemoryError):
        index.add(np.arange(100, 400), rows[100:400])
    np.testing.assert_array_equal(index.ids, np.arange(200))
    after = index.search(rows, 200)
    np.testing.assert_array_equal(after.ids, before.ids)
    index.add(np.arange(200, 500), rows[200:])
    np.testing.assert_array_equal(index.search(rows, 1, options={index.option: 300}).ids[:, 0], np.arange(500))
    empty = make("ip")
    calls.clear()
    with pytest.raises(MemoryError):
        empty.add(np.arange(400), rows[:400])
    empty.add(np.arange(2), rows[:2, :5])
    assert len(empty) == 2


@pytest.mark.parametrize("taken", [True, False], ids=["the part is taken", "the part is not taken"])
@pytest.mark.parametrize("more", [True, False], ids=["more rows", "no more rows"])
def test_it_opens_though_it_was_interrupted_while_it_took_rows(
    make: Make, tmp_path: Path, taken: bool, more: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are labels then that the engine never had; no row of them is ever found."""

    def interrupted(self: Any, start: int, vectors: np.ndarray) -> None:
        if start != 300 or taken:
            append(self, start, vectors)
        if start == 300:
            raise KeyboardInterrupt

    def littered(array: np.ndarray, size: int) -> np.ndarray:
        """New room holds what was in memory before."""
        out = grown(array, size)
        if out is not array:
            out[len(array) :] = np.nan
        return out

    monkeypatch.setattr("reperio.indexes.hnswlib.grown", littered)
    rows, index, exact = clustered(700, 8), make("ip"), FlatIndex("ip")
    for one in (index, exact):
        one.add(np.arange(200), rows[:200])
    engine: Any = type(index._engine)
    append = engine.append
    with monkeypatch.context() as patched:
        patched.setattr(engine, "append", interrupted)
        patched.setattr("reperio.indexes.labelled._CHUNK", 100)
        with pytest.raises(KeyboardInterrupt):
            index.add(np.arange(150, 600), rows[150:600])
    for one in (index, exact) if more else ():
        one.add(np.arange(500, 650), rows[500:650])
    for turn in range(2):
        index.save(tmp_path / str(turn))
        index = make.open(tmp_path / str(turn))  # type: ignore[attr-defined]
        np.testing.assert_array_equal(index.ids, exact.ids)
        for k in (5, len(exact), 700):
            found = index.search(rows[:9], k, options={index.option: 300})
            np.testing.assert_array_equal(found.ids, exact.search(rows[:9], k).ids)
        for one in (index, exact):
            one.add(np.arange(640, 700), rows[640:])
            one.remove(np.arange(20))
    index.compact()
    np.testing.assert_array_equal(index.search(rows[:9], 700).ids, exact.search(rows[:9], 700).ids)


def test_a_folder_of_rows_that_its_engine_lacks_is_refused(make: Make, tmp_path: Path) -> None:
    index, rows = make(), clustered(60, 8)
    index.add(np.arange(50), rows[:50])
    index.save(tmp_path / "fewer")
    index.add(np.arange(50, 60), rows[50:])
    index.save(tmp_path / "more")
    for kept in ("graph.hnsw", "graph.usearch"):
        if (tmp_path / "more" / kept).exists():
            (tmp_path / "more" / kept).write_bytes((tmp_path / "fewer" / kept).read_bytes())
    for file, data in resealed(held(tmp_path / "more")).items():
        (tmp_path / "more" / file).write_bytes(data)
    with pytest.raises(CorruptArtifact, match="lacks 10 rows, of label 50 the first"):
        make.open(tmp_path / "more")  # type: ignore[attr-defined]


def test_a_full_disk_is_named_and_leaves_nothing(make: Make, tmp_path: Path) -> None:
    index = make()
    index.add(np.arange(1000), clustered(1000, 16))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (500, 20_000, 70_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(DiskFull):
                index.save(tmp_path / "index")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list(tmp_path.iterdir()) == []
    index.save(tmp_path / "index")


def test_a_folder_of_the_other_engine_is_refused(index: LabelledIndex, tmp_path: Path) -> None:
    index.save(tmp_path / "index")
    (other,) = (engine for engine in ENGINES if engine is not type(index))
    with pytest.raises(ConfigurationError, match=type(index).__name__):
        other.open(tmp_path / "index")


def test_without_its_engine_the_extra_is_named(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    module = {"HnswlibIndex": "hnswlib", "UsearchIndex": "usearch"}[make().spec["type"]]
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    index = make()
    with pytest.raises(MissingDependency, match=rf"reperio\[{module}\]"):
        index.add(np.arange(2), clustered(2, 8))
    assert len(index) == 0


def test_its_specification_keeps_every_argument() -> None:
    for spec in (
        {"type": "HnswlibIndex", "metric": "l2", "m": 5, "ef_construction": 40, "ef": 9},
        {
            "type": "UsearchIndex",
            "metric": "cosine",
            "dtype": "i8",
            "connectivity": 5,
            "expansion_add": 40,
            "expansion_search": 9,
        },
    ):
        assert build(spec).spec == spec
