"""Runs, and the files that carry them."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reperio.errors import ConnectorError, DuplicateId, InvalidInput, NotFound
from reperio.evaluation import Beir, Run, evaluate
from reperio.types import Document, Hit, Query, Ranking

names = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=8)
scores = st.floats(allow_nan=False, allow_infinity=False, width=32)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    results: dict[str, list[tuple[str, float]]] = {}
    for query in draw(st.lists(names, unique=True, max_size=4)):
        documents = draw(st.lists(names, unique=True, max_size=6))
        falling = sorted((draw(scores) for _ in documents), reverse=True)
        results[query] = list(zip(documents, falling, strict=True))
    return Run(draw(names), results)


def ranking(query: str, *hits: tuple[str, float]) -> Ranking:
    return Ranking(Query(query, "text"), [Hit(Document(name, name), score) for name, score in hits])


@given(runs())
def test_a_run_written_and_read_again_is_the_same_run(run: Run) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run.write_trec(Path(folder) / "run.trec")
        again = Run.read_trec(Path(folder) / "run.trec", queries=[Query(query, "") for query in run])
    assert again == run
    assert again.name == run.name or not any(run.values())


# nDCG@10 as published with the lists; ours must be equal to the four digits given.
@pytest.mark.parametrize(
    ("track", "system", "published"),
    [
        ("dl19", "BM25", 0.5058),
        ("dl19", "BM25_RM3", 0.5216),
        ("dl19", "D_BERT_KD_TASB", 0.7210),
        ("dl19", "OPEN_AI_ADA2", 0.7035),
        ("dl19", "SPLADE_P_P_ENSEMBLE_DISTIL", 0.7308),
        ("dl20", "BM25", 0.4796),
        ("dl20", "SPLADE_P_P_ENSEMBLE_DISTIL", 0.7197),
        ("dl20", "REP_LLAMA", 0.7205),
    ],
)
def test_published_runs_have_their_published_figures(
    data: Callable[[str], Path], track: str, system: str, published: float
) -> None:
    beir = Beir(data("rerank-dl19-dl20"))
    run = Run.read_trec(beir.path / "runs" / f"{track}.{system}.trec")
    queries = [query for query in beir.queries(f"{track}.full") if query.id in run]
    with pytest.warns(UserWarning, match="not in the corpus"):
        qrels = beir.qrels(f"{track}.full")
    report = evaluate({run.name: run}, queries, qrels, measures=["nDCG@10"])
    assert len(queries) == {"dl19": 43, "dl20": 54}[track]
    assert round(report.to_dict()[system]["nDCG@10"], 4) == published


def test_lines_in_any_order_are_read_by_score_then_rank_then_document(tmp_path: Path) -> None:
    lines = ["q Q0 d 2 5.0 s", "q Q0 c 1 5.0 s", "q Q0 b 9 7.5 s", "q Q0 a 1 5.0 s"]
    for order in itertools.permutations(lines):
        (tmp_path / "run").write_text("\n".join(order), encoding="utf-8")
        found = Run.read_trec(tmp_path / "run")
        assert found == {"q": (("b", 7.5), ("a", 5.0), ("c", 5.0), ("d", 5.0))}


def test_rankings_become_a_run_that_keeps_the_order_of_equal_scores() -> None:
    found = [ranking("q1", ("z", 1.0), ("a", 1.0), ("m", 0.5)), ranking("q2")]
    run = Run.from_rankings("mine", found, seconds=1.5)
    assert run == {"q1": (("z", 1.0), ("a", 1.0), ("m", 0.5)), "q2": ()}
    assert (run.name, run.seconds) == ("mine", 1.5)
    assert Run.from_rankings("mine", found, k=2) == run.top(2) == {"q1": (("z", 1.0), ("a", 1.0)), "q2": ()}


def test_a_document_or_a_query_twice_is_refused() -> None:
    with pytest.raises(DuplicateId, match="mine, query 'q': document 'a' is there twice"):
        Run("mine", {"q": [("a", 2.0), ("b", 1.0), ("a", 0.5)]})
    with pytest.raises(DuplicateId, match="two rankings answer query 'q'"):
        Run.from_rankings("mine", [ranking("q"), ranking("q")])


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_refused(score: float) -> None:
    with pytest.raises(InvalidInput, match="document 'a' has the score"):
        Run("mine", {"q": [("a", score)]})


def test_scores_that_rise_are_refused_and_named() -> None:
    with pytest.raises(InvalidInput, match=r"rises from 1\.0 to 2\.0 at document 'b'"):
        Run("mine", {"q": [("a", 1.0), ("b", 2.0)]})


@pytest.mark.parametrize(
    "run", [Run("two words", {}), Run("s", {"a query": []}), Run("s", {"q": [("a\tb", 1.0)]}), Run("", {})]
)
def test_a_name_that_the_format_cannot_carry_is_refused_and_the_old_file_stays(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q Q0 d 1 1.0 old\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match="is empty or holds white space"):
        run.write_trec(tmp_path / "run")
    assert Run.read_trec(tmp_path / "run").name == "old"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("q Q0 d 1 1.0", "has 5 columns"),
        ("q Q0 d 1 1.0 s t", "has 7 columns"),
        ("q Q0 d first 1.0 s", "has rank 'first'"),
        ("q Q0 d 1 high s", "has rank '1' and score 'high', not numbers"),
        ("q Q0 d 1 1.0 other", "is of run 'other', after lines of 's'"),
    ],
)
def test_a_malformed_line_of_a_run_is_named(line: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "run").write_text(f"q Q0 c 1 2.0 s\n{line}\n", encoding="utf-8")
    with pytest.raises(ConnectorError, match=f"run:2 {problem}"):
        Run.read_trec(tmp_path / "run")


def test_a_run_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        Run.read_trec(tmp_path / "run")
