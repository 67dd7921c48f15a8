"""Fusion obeys its formulas and its laws."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from reperio import Document, Hit, Query, Ranking, fuse
from reperio.errors import ConfigurationError
from reperio.fusion import Convex, Fusion, ReciprocalRank, combine
from reperio.registry import build

FUSIONS = [ReciprocalRank(), Convex("min-max"), Convex("z-score"), Convex("theoretical", weights={"a": 0.3, "b": 0.7})]
LOWEST = {"a": -20.0, "b": -20.0}


def column(values: Sequence[float | None]) -> NDArray[np.float32]:
    return np.array([np.nan if v is None else v for v in values], np.float32)


def test_reciprocal_rank_by_hand() -> None:
    fused = combine(ReciprocalRank(60), {"a": column([3, 2, None]), "b": column([None, 9, 9])}, lowest={})
    np.testing.assert_allclose(fused, [1 / 61, 1 / 62 + 1 / 61, 1 / 61], rtol=1e-6)


def test_min_max_by_hand() -> None:
    scores = {"bm25": column([0, 5, 10]), "dense": column([0.9, 0.5, None])}
    fused = combine(Convex(weights={"bm25": 1, "dense": 3}), scores, lowest={})
    np.testing.assert_allclose(fused, [0.75, 0.125, 0.25], rtol=1e-6)


def test_theoretical_uses_the_lowest_score_there_can_be() -> None:
    scores = {"bm25": column([5, 10]), "dense": column([0.0, 0.5])}
    fused = combine(Convex("theoretical"), scores, lowest={"bm25": 0.0, "dense": -1.0})
    np.testing.assert_allclose(fused, [0.5 * 0.5 + 0.5 * (1 / 1.5), 1.0], rtol=1e-6)
    with pytest.raises(ConfigurationError, match="'dense' has no lowest score"):
        combine(Convex("theoretical"), scores, lowest={"bm25": 0.0})


def test_z_score_by_hand() -> None:
    fused = combine(Convex("z-score"), {"a": column([1, 2, 3, None])}, lowest={})
    np.testing.assert_allclose(fused, np.array([-1, 0, 1, -1]) * np.sqrt(1.5), rtol=1e-5)


values = st.lists(st.one_of(st.none(), st.floats(-10, 10, width=32)), min_size=2, max_size=8)


@pytest.mark.parametrize("fusion", FUSIONS, ids=lambda f: str(f.spec))
@given(data=st.data())
def test_laws(fusion: Fusion, data: st.DataObject) -> None:
    a = data.draw(values)
    b = data.draw(st.lists(st.one_of(st.none(), st.floats(-10, 10, width=32)), min_size=len(a), max_size=len(a)))
    scores = {"a": column(a), "b": column(b)}
    fused = combine(fusion, scores, lowest=LOWEST)
    assert fused.dtype == np.float32
    assert np.isfinite(fused).all()
    order = np.array(data.draw(st.permutations(range(len(a)))))
    shuffled = combine(fusion, {n: s[order] for n, s in scores.items()}, lowest=LOWEST)
    np.testing.assert_allclose(shuffled, fused[order], atol=1e-6)
    # Better on every signal is never worse in the end.
    for i in range(len(a)):
        for j in range(len(a)):
            if all(s[i] >= s[j] for s in scores.values()):
                assert fused[i] >= fused[j] - 1e-6


@pytest.mark.parametrize("fusion", FUSIONS, ids=lambda f: str(f.spec))
def test_a_fusion_is_built_again_from_its_specification(fusion: Fusion) -> None:
    assert build(fusion.spec).spec == fusion.spec


def ranking(query: str, scores: dict[str, float]) -> Ranking:
    hits = tuple(Hit(Document(name, f"text {name}"), score) for name, score in scores.items())
    return Ranking(Query("0", query), hits)


def test_fuse_merges_rankings_and_keeps_each_score() -> None:
    def first(batch: Sequence[str | Query]) -> Sequence[Ranking]:
        return [ranking("q", {"x": 9, "y": 8}) for _ in batch]

    def second(batch: Sequence[str | Query]) -> Sequence[Ranking]:
        return [ranking("q", {"y": 0.9, "z": 0.1}) for _ in batch]

    stage = fuse(first, second, names=["bm25", "dense"], k=2)
    (found,) = stage(["q"])
    assert found.ids == ["y", "x"]
    assert found[0].signals == {"bm25": 8, "dense": 0.9}
    assert found[1].signals == {"bm25": 9}
    assert asyncio.run(stage.acall(["q"])) == stage(["q"])


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="weights"):
        Convex(weights={"a": -1})
    with pytest.raises(ConfigurationError, match="at least one above 0"):
        ReciprocalRank(weights={"a": 0.0})
    with pytest.raises(ConfigurationError, match="'median'"):
        Convex("median")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="as many different names"):
        fuse(lambda batch: [], lambda batch: [], names=["a", "a"])
    with pytest.raises(ConfigurationError, match="at least one retriever"):
        fuse()
    with pytest.raises(ConfigurationError, match="'rff'"):
        fuse(lambda batch: [], method="rff")  # type: ignore[arg-type]
