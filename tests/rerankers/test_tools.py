"""Candidates ordered by the queries that used them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reperio import Document, Hit, Query, Ranking
from reperio.encoders import HashEncoder
from reperio.errors import ConfigurationError, InvalidInput
from reperio.registry import build
from reperio.rerankers import ToolRefiner

USAGES = {
    "weather": ["will it rain today", "is it sunny in Rome", "how warm is it outside"],
    "money": ["how many euros for ten dollars", "what is the price of gold", "exchange dollars"],
    "music": ["play a song", "what is this song called"],
    "idle": [],
}
WEIGHTS = {"dense": 0.5, "closest usage": 3.0, "three closest usages": 0.1, "share of usages": 2.0}


def ranking(text: str, names: Sequence[str], *, query: str = "q") -> Ranking:
    hits = (Hit(Document(name, f"The {name} tool"), -float(i), {"dense": -float(i)}) for i, name in enumerate(names))
    return Ranking(Query(query, text), tuple(hits))


@given(st.lists(st.permutations(["weather", "money", "music", "idle", "unknown"]), max_size=3), st.integers(0, 5))
def test_the_result_is_an_ordered_permutation_with_the_scores_of_before(batch: list[list[str]], length: int) -> None:
    rankings = [ranking("will it rain", names[:length]) for names in batch]
    found = ToolRefiner(HashEncoder(256), USAGES, weights=WEIGHTS)(rankings)
    for before, after in zip(rankings, found, strict=True):
        assert sorted(after.ids) == sorted(before.ids)
        assert (np.diff(after.scores) <= 0).all()
        first = {hit.document.id: hit for hit in before}
        for hit in after:
            assert hit.signals == {**first[hit.document.id].signals, "refined": hit.score}


def test_the_tool_whose_usage_is_closest_comes_first_and_an_equal_text_tells_nothing() -> None:
    refine = ToolRefiner(HashEncoder(1 << 16), USAGES, weights={"closest usage": 1.0})
    names = ["idle", "music", "money", "weather"]
    assert refine([ranking("will it rain tomorrow", names)])[0].ids[0] == "weather"
    # Its own text is among the usages: without it, "is it sunny in Rome" is closest, which shares one word.
    hits = {hit.document.id: hit.score for hit in refine([ranking("will it rain today", names)])[0]}
    assert hits["weather"] == pytest.approx(1 / np.sqrt(4 * 5), abs=1e-6)
    assert hits["idle"] == 0


def test_fitting_finds_which_signal_to_trust() -> None:
    rng = np.random.default_rng(0)
    rankings, relevant = [], {}
    for number in range(80):
        right = f"t{rng.integers(6)}"
        hits = [
            Hit(
                Document(f"t{i}", f"tool {i}"),
                0.0,
                {"good": float(f"t{i}" == right) + rng.normal(0, 0.2), "bad": rng.normal()},
            )
            for i in range(6)
        ]
        rankings.append(Ranking(Query(str(number), f"query {number}"), tuple(hits)))
        relevant[str(number)] = {right}
    refiner = ToolRefiner(HashEncoder(64), {"t0": ["nothing of the kind"]}).fit(rankings[:60], relevant)
    assert refiner.weights is not None
    assert refiner.weights["good"] > 10 * abs(refiner.weights["bad"])
    assert all(np.isfinite(list(refiner.weights.values())))
    assert sum(r.ids[0] in relevant[r.query.id] for r in refiner(rankings[60:])) >= 19
    again = build(refiner.spec)
    assert again.spec == refiner.spec
    assert again(rankings[60:]) == refiner(rankings[60:])


def test_fitting_never_ends_worse_than_it_began_whatever_the_features() -> None:
    rng = np.random.default_rng(1)
    usages = {f"t{i}": [f"query {i} {n}" for n in range(i)] for i in range(0, 40, 13)}  # few tools have any
    for _ in range(10):
        rankings, relevant = [], {}
        for number in range(30):
            names = rng.permutation(40)[:20]
            right = int(names[min(int(rng.exponential(2)), 19)])
            hits = [Hit(Document(f"t{i}", "tool"), 0.0, {"first": -float(r**3)}) for r, i in enumerate(names)]
            rankings.append(Ranking(Query(str(number), f"query {right} of {number}"), tuple(hits)))
            relevant[str(number)] = {f"t{right}"}
        refined = ToolRefiner(HashEncoder(64), usages).fit(rankings, relevant)(rankings)

        def rank(ranking: Ranking, relevant: dict[str, set[str]] = relevant) -> float:
            return 1 / (1 + next(i for i, name in enumerate(ranking.ids) if name in relevant[ranking.query.id]))

        assert np.mean([rank(r) for r in refined]) > 0.9 * np.mean([rank(r) for r in rankings])


def test_what_cannot_be_fitted_or_used_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no usage"):
        ToolRefiner(HashEncoder(), {"a": []})
    refiner = ToolRefiner(HashEncoder(), USAGES)
    with pytest.raises(ConfigurationError, match="no weights"):
        refiner([ranking("rain", ["weather"])])
    with pytest.raises(InvalidInput, match="right candidate and a wrong one"):
        refiner.fit([ranking("rain", ["weather", "money"])], {"other": {"weather"}})
