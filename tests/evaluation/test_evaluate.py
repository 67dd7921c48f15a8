"""Measures, against trec_eval, by hand, and by law."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
import rank_bm25
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio.errors import CompositionError, ConfigurationError, DuplicateId, InvalidInput, MissingDependency
from reperio.evaluation import Beir, Qrels, Run, evaluate
from reperio.protocols import Stage
from reperio.types import Document, Hit, Query, Ranking

MakeBM25 = Callable[..., Stage[Query, Ranking]]
MEASURES = ["nDCG@10", "RR@10", "AP@100", "R@100"]
TREC_EVAL = {"nDCG@10": "ndcg_cut_10", "AP@100": "map_cut_100", "R@100": "recall_100", "RR": "recip_rank"}


def okapi(beir: Beir) -> Stage[Query, Ranking]:
    """A retriever of a few lines: rank_bm25 over words split at blanks."""
    documents = list(beir.documents())
    index = rank_bm25.BM25Okapi([document.text.lower().split() for document in documents])

    def retrieve(batch: Sequence[Query]) -> list[Ranking]:
        rankings: list[Ranking] = []
        for query in batch:
            scores = index.get_scores(query.text.lower().split())
            best = np.argsort(-scores, kind="stable")[:100]
            rankings.append(Ranking(query, [Hit(documents[i], float(scores[i])) for i in best]))
        return rankings

    return retrieve


def run(**results: str) -> Run:
    """``run(q="abc")``: documents a, b, c in this order."""
    return Run("run", {query: [(d, -float(i)) for i, d in enumerate(found)] for query, found in results.items()})


def queries(*ids: str) -> list[Query]:
    return [Query(name, "text") for name in ids]


@pytest.mark.parametrize("name", ["adi", "scifact"])
def test_each_value_of_each_query_is_that_of_trec_eval(name: str, data: Callable[[str], Path], bm25: MakeBM25) -> None:
    beir = Beir(data(name))
    asked, qrels = beir.queries(), beir.qrels()
    systems = {"stemmed": bm25(beir), "plain": okapi(beir) if name == "adi" else bm25(beir, stemmed=False)}
    report = evaluate(systems, asked, qrels, measures=["nDCG@10", "AP@100", "R@100", "RR"])
    reference = pytrec_eval.RelevanceEvaluator(dict(qrels), set(TREC_EVAL.values()))
    for s, system in enumerate(systems.values()):
        # Scores of two systems tie on real text; trec_eval is given ranks, so that it cannot reorder.
        found = {r.query.id: {d: 1000.0 - i for i, d in enumerate(r.ids)} for r in system(asked)}
        expected = reference.evaluate({query: ranked for query, ranked in found.items() if ranked})
        for m, measure in enumerate(report.measures):
            values = [expected.get(query, {}).get(TREC_EVAL[measure], 0.0) for query in report.queries]
            np.testing.assert_array_equal(report.values[s, m], values)


@pytest.mark.parametrize(("name", "published"), [("adi", 0.483), ("scifact", 0.679), ("cranfield", 0.512)])
@pytest.mark.filterwarnings("ignore:cranfield", "ignore:.*not in the corpus")
def test_bm25_has_its_known_figures(name: str, published: float, data: Callable[[str], Path], bm25: MakeBM25) -> None:
    beir = Beir(data(name))
    report = evaluate({"bm25": bm25(beir)}, beir.queries(), beir.qrels(), measures=["nDCG@10"])
    assert report.to_dict()["bm25"]["nDCG@10"] == pytest.approx(published, abs=0.0005)


def test_ndcg_reciprocal_rank_precision_and_recall_by_hand() -> None:
    qrels = {"q": {"a": 3, "b": 2, "c": 0, "d": 1}}
    found = evaluate({"s": run(q="cbxad")}, queries("q"), qrels, measures=["nDCG@4", "RR@10", "AP@100", "R@3"])
    gained = 2 / math.log2(3) + 3 / math.log2(5)
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    assert found.to_dict()["s"] == pytest.approx(
        {"nDCG@4": gained / ideal, "RR@10": 1 / 2, "AP@100": (1 / 2 + 2 / 4 + 3 / 5) / 3, "R@3": 1 / 3}
    )


def test_equal_scores_are_measured_in_the_order_they_were_returned() -> None:
    # trec_eval itself would put the higher id first: b before a.
    tied = Run("tied", {"q": [("a", 1.0), ("b", 1.0)]})
    qrels = {"q": {"a": 1}}
    assert evaluate({"s": tied}, queries("q"), qrels, measures=["RR@10", "nDCG@10"]).to_dict() == {
        "s": {"RR@10": 1.0, "nDCG@10": 1.0}
    }
    assert pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate({"q": dict(tied["q"])}) == {
        "q": {"recip_rank": 0.5}
    }


def test_scores_that_single_precision_cannot_tell_apart_keep_their_order() -> None:
    close = Run("close", {"q": [("a", 1.0 + 1e-12), ("b", 1.0)]})
    assert evaluate({"s": close}, queries("q"), {"q": {"a": 1}}, measures=["RR@10"]).to_dict() == {"s": {"RR@10": 1.0}}


def test_a_query_that_found_nothing_counts_nought_and_is_never_dropped() -> None:
    report = evaluate({"s": run(q1="a", q2="")}, queries("q1", "q2"), {"q1": {"a": 1}, "q2": {"a": 1}})
    assert report.values.shape == (1, 4, 2)
    assert report.to_dict()["s"] == dict.fromkeys(MEASURES, 0.5)
    nothing = evaluate({"s": run(q1="")}, queries("q1"), {"q1": {"a": 1}})
    assert nothing.to_dict()["s"] == dict.fromkeys(MEASURES, 0.0)


rankings = st.permutations("abcdefgh").flatmap(lambda order: st.integers(0, 8).map(lambda n: "".join(order[:n])))
grades = st.dictionaries(st.sampled_from("abcdefghij"), st.integers(0, 3), min_size=1)


@settings(deadline=None, max_examples=50)
@given(rankings, grades)
def test_every_measure_lies_between_nought_and_one(found: str, judged: dict[str, int]) -> None:
    report = evaluate({"s": run(q=found)}, queries("q"), {"q": judged})
    assert ((report.values >= 0) & (report.values <= 1 + 1e-12)).all()


@settings(deadline=None, max_examples=50)
@given(grades.filter(lambda judged: any(judged.values())))
def test_the_ideal_order_measures_one(judged: dict[str, int]) -> None:
    best = "".join(sorted(judged, key=lambda document: -judged[document]))
    report = evaluate({"s": run(q=best)}, queries("q"), {"q": judged})
    assert report.to_dict()["s"] == pytest.approx(dict.fromkeys(MEASURES, 1.0))


@settings(deadline=None, max_examples=50)
@given(rankings, grades, st.randoms(use_true_random=False))
def test_documents_of_one_grade_may_change_places(found: str, judged: dict[str, int], random: object) -> None:
    by_grade: dict[int, list[str]] = {}
    for document in found:
        by_grade.setdefault(judged.get(document, 0), []).append(document)
    for group in by_grade.values():
        random.shuffle(group)  # type: ignore[attr-defined]
    exchanged = "".join(by_grade[judged.get(document, 0)].pop() for document in found)
    report = evaluate({"one": run(q=found), "other": run(q=exchanged)}, queries("q"), {"q": judged})
    np.testing.assert_allclose(report.values[0], report.values[1], rtol=1e-12)


def test_the_order_of_queries_changes_nothing(data: Callable[[str], Path], bm25: MakeBM25) -> None:
    beir = Beir(data("adi"))
    systems, asked, qrels = {"a": bm25(beir), "b": bm25(beir, b=0.0)}, beir.queries(), beir.qrels()
    one, other = evaluate(systems, asked, qrels), evaluate(systems, asked[::-1], qrels)
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.intervals, other.intervals)
    assert one.comparisons == other.comparisons


def test_a_run_measures_as_the_system_that_made_it(data: Callable[[str], Path], bm25: MakeBM25) -> None:
    beir = Beir(data("adi"))
    asked, system = beir.queries(), bm25(beir)
    made = Run.from_rankings("made", system(asked), seconds=3.5)
    report = evaluate({"system": system, "run": made}, asked, beir.qrels())
    np.testing.assert_array_equal(report.values[0], report.values[1])
    assert report.seconds[1] == 3.5
    assert report.seconds[0] is not None
    assert [c.p for c in report.comparisons] == [1.0] * 4


def test_a_run_is_cut_to_the_depth_that_systems_are_read_to() -> None:
    report = evaluate({"s": run(q="xya")}, queries("q"), {"q": {"a": 1}}, measures=["AP", "R@2"], k=2)
    assert report.to_dict() == {"s": {"AP": 0.0, "R@2": 0.0}}


def test_systems_are_asked_in_bounded_batches_and_read_to_depth_k_only() -> None:
    sizes: list[int] = []
    read: list[int] = []

    class Lazy(Sequence[Hit]):
        def __len__(self) -> int:
            return 1000

        def __getitem__(self, i: int | slice) -> Hit | list[Hit]:  # type: ignore[override]
            if isinstance(i, slice):
                return [self[j] for j in range(*i.indices(len(self)))]  # type: ignore[misc]
            read.append(i)
            return Hit(Document(str(i), "text"), -float(i))

    def system(batch: Sequence[Query]) -> list[Ranking]:
        sizes.append(len(batch))
        return [Ranking(query, Lazy()) for query in batch]

    asked = queries(*(f"q{i}" for i in range(600)))
    report = evaluate({"s": system}, asked, {q.id: {"3": 1} for q in asked}, measures=["RR@10", "nDCG@10"], k=20)
    assert report.to_dict()["s"]["RR@10"] == pytest.approx(0.25)
    assert sum(sizes) == 600
    assert max(sizes) <= 256
    assert set(read) == set(range(20))


def test_comparisons_are_with_the_first_system_or_the_one_named() -> None:
    runs, qrels = {"a": run(q="xa"), "b": run(q="a"), "c": run(q="ya")}, {"q": {"a": 1}}
    by_default = evaluate(runs, queries("q"), qrels, measures=["RR@10"])
    assert (by_default.baseline, [c.system for c in by_default.comparisons]) == ("a", ["b", "c"])
    assert [c.difference for c in by_default.comparisons] == [0.5, 0.0]
    named = evaluate(runs, queries("q"), qrels, measures=["RR@10"], baseline="b")
    assert [(c.system, c.difference) for c in named.comparisons] == [("a", -0.5), ("c", -0.5)]
    alone = evaluate({"a": runs["a"]}, queries("q"), qrels)
    assert (alone.baseline, alone.comparisons) == (None, ())
    with pytest.raises(ConfigurationError, match=r"baseline 'z' is no system\. Choose from: a, b, c"):
        evaluate(runs, queries("q"), qrels, baseline="z")


@pytest.mark.parametrize(
    ("measures", "problem"),
    [
        (["nDCG@10", "Fame@3"], "'Fame@3' is not a measure: measure not found"),
        (["nDCG@ten"], "'nDCG@ten' is not a measure"),
        (["nDCG(depth=3)@10"], "is not a measure: unsupported params found"),
        (["P"], "'P' is not a measure: invalid param cutoff"),
        (["import os"], "'import os' is not a measure"),
        (["RR@10", "MRR@10"], "'MRR@10' is there twice"),
        (["R@1000"], "R@1000 looks at more than k = 100 documents"),
        (["NumRet"], "NumRet is a sum"),
        ("nDCG@10", "measures = 'nDCG@10' is not a list of names"),
        ([], "is not a list of names"),
    ],
)
def test_a_measure_that_cannot_be_taken_is_named(measures: Sequence[str], problem: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        evaluate({"s": run(q="a")}, queries("q"), {"q": {"a": 1}}, measures=measures)
    assert problem in str(raised.value)


def test_a_measure_is_reported_by_the_name_it_was_given() -> None:
    report = evaluate({"s": run(q="a")}, queries("q"), {"q": {"a": 2}}, measures=["MRR@10", "AP(rel=2)@50"])
    assert report.to_dict() == {"s": {"MRR@10": 1.0, "AP(rel=2)@50": 1.0}}


def test_unlike_runs_are_refused() -> None:
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}}
    with pytest.raises(InvalidInput, match="Run 'b' answers 1 other queries, as 'q3'"):
        evaluate({"a": run(q1="a"), "b": run(q1="a", q3="a")}, queries("q1"), qrels)
    with pytest.raises(InvalidInput, match="Run 'b' does not say what it found for 1 queries, as 'q2'"):
        evaluate({"a": run(q1="a", q2="a"), "b": run(q1="a")}, queries("q1", "q2"), qrels)


@pytest.mark.parametrize("change", [lambda r: r[:-1], lambda r: r[::-1], lambda r: []])
def test_a_system_that_loses_or_moves_rankings_is_refused(change: Callable[[list[Ranking]], list[Ranking]]) -> None:
    def system(batch: Sequence[Query]) -> list[Ranking]:
        return change([Ranking(query, []) for query in batch])

    with pytest.raises(CompositionError, match="System 'mine' was asked 2 queries"):
        evaluate({"mine": system}, queries("q1", "q2"), {"q1": {"a": 1}, "q2": {"a": 1}})


def test_what_cannot_be_evaluated_is_refused() -> None:
    qrels = {"q": {"a": 1}}
    with pytest.raises(InvalidInput, match="no system"):
        evaluate({}, queries("q"), qrels)
    with pytest.raises(InvalidInput, match="no query"):
        evaluate({"s": run()}, [], qrels)
    with pytest.raises(InvalidInput, match="System 's' is a str"):
        evaluate({"s": "bm25"}, queries("q"), qrels)  # type: ignore[dict-item]
    with pytest.raises(DuplicateId, match="Two queries have the id 'q'"):
        evaluate({"s": run(q="a")}, queries("q", "q"), qrels)
    with pytest.raises(InvalidInput, match="1 of 2 queries are not judged: q2"):
        evaluate({"s": run(q="a", q2="a")}, queries("q", "q2"), qrels)
    with pytest.raises(ConfigurationError, match="k = 0"):
        evaluate({"s": run(q="a")}, queries("q"), qrels, k=0)


def test_what_distorts_the_figures_is_noted() -> None:
    qrels = Qrels({"q1": {"a": 1, "gone": 2, "void": 0}, "q2": {"a": 0}}, frozenset({"gone", "void"}))
    report = evaluate({"s": run(q1="a", q2="ab")}, queries("q1", "q2"), qrels, measures=["nDCG@2", "R@5"])
    assert report.notes == (
        "Relevant documents that are not in the corpus, counted as missed: 1 (gone).",
        "Queries without a relevant document, counted as 0: 1 (q2).",
        "Measures look at up to 5 documents; most ever returned: 2 from s.",
    )
    assert report.to_dict()["s"]["R@5"] == 0.25
    assert evaluate({"s": run(q="ab")}, queries("q"), {"q": {"a": 1}}, measures=["nDCG@2"]).notes == ()


def test_without_ir_measures_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(MissingDependency, match=r"reperio\[evaluation\]"):
        evaluate({"s": run(q="a")}, queries("q"), {"q": {"a": 1}})
