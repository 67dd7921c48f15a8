"""What a person and a program see of an evaluation."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from reperio.errors import MissingDependency
from reperio.evaluation import Beir, Comparison, Report, Run, evaluate
from reperio.protocols import Stage
from reperio.types import Query, Ranking

MakeBM25 = Callable[..., Stage[Query, Ranking]]


@pytest.fixture(scope="module")
def report(data: Callable[[str], Path], bm25: MakeBM25) -> Report:
    """BM25 on adi with and without stemming, and one that finds nothing."""
    beir = Beir(data("adi"))
    asked = beir.queries()
    nothing = Run("nothing", {query.id: [] for query in asked})
    systems: dict[str, Stage[Query, Ranking] | Run] = {
        "stemmed": bm25(beir),
        "plain": bm25(beir, stemmed=False),
        "none": nothing,
    }
    return evaluate(systems, asked, beir.qrels())


def rendered(report: Report, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(report.table())
    return out.getvalue()


def test_a_dictionary_holds_the_mean_of_each_measure_by_system(report: Report) -> None:
    means = report.to_dict()
    assert list(means) == ["stemmed", "plain", "none"]
    assert list(means["plain"]) == ["nDCG@10", "RR@10", "AP@100", "R@100"]
    assert means["stemmed"]["nDCG@10"] == pytest.approx(0.483, abs=0.0005)
    assert means["none"] == dict.fromkeys(means["none"], 0.0)
    assert json.loads(json.dumps(means)) == means


def test_details_are_json_and_agree_with_the_arrays(report: Report) -> None:
    details = json.loads(json.dumps(report.details(), allow_nan=False))
    assert (details["queries"], details["baseline"]) == (35, "stemmed")
    for s, system in enumerate(report.systems):
        for m, measure in enumerate(report.measures):
            cell = details["systems"][system]["measures"][measure]
            assert cell["mean"] == report.to_dict()[system][measure]
            assert list(cell["by_query"].values()) == report.values[s, m].tolist()
            assert cell["interval"] == report.intervals[s, m].tolist()
            assert (cell["versus_baseline"] is None) == (system == "stemmed")
    worst = details["systems"]["none"]["measures"]["R@100"]["versus_baseline"]
    assert worst["difference"] == pytest.approx(-report.to_dict()["stemmed"]["R@100"])
    assert worst["interval"][1] < 0
    assert worst["p"] <= worst["p_holm"] < 0.01
    assert details["systems"]["stemmed"]["seconds_per_query"] > 0
    assert details["systems"]["none"]["seconds_per_query"] is None


def test_intervals_hold_the_means_and_differences_add_up(report: Report) -> None:
    low, high = report.intervals[..., 0], report.intervals[..., 1]
    assert ((low <= report.means) & (report.means <= high)).all()
    for c in report.comparisons:
        means = report.to_dict()
        assert c.difference == pytest.approx(means[c.system][c.measure] - means["stemmed"][c.measure])
        assert c.interval[0] <= c.difference <= c.interval[1]


def test_only_differences_beyond_luck_are_marked(report: Report) -> None:
    assert {c.mark for c in report.comparisons if c.system == "none"} == {"▼"}
    plain = {c.measure: c for c in report.comparisons if c.system == "plain"}
    assert plain["nDCG@10"].p_holm > 0.05
    assert plain["nDCG@10"].mark == ""
    assert Comparison("s", "m", 0.1, (0.0, 0.2), 0.01, 0.04).mark == "▲"


@pytest.mark.parametrize("show", [str, rendered, Report._repr_html_])
def test_every_form_shows_figures_intervals_marks_times_and_notes(
    report: Report, show: Callable[[Report], str]
) -> None:
    text = show(report)
    for shown in ("stemmed", "plain", "none", "nDCG@10", "R@100", "ms/query", "0.483", "0.000▼", "35 queries"):
        assert shown in text
    low, high = report.intervals[0, 0]
    assert f"{low:.3f}–{high:.3f}" in text
    assert "most ever returned" in text
    assert "worse than stemmed" in text


def test_the_plain_table_is_aligned(report: Report) -> None:
    head, first, second, *_ = str(report).split("\n")
    assert head.startswith("system ")
    assert first.startswith("stemmed ")
    assert second.startswith("  ")
    assert len(head) == len(first) > len(second)


def test_names_are_shown_as_they_are_never_as_markup() -> None:
    name = "[bold]<b>a & b</b>"
    run = Run("run", {"q": [("a", 1.0)]})
    report = evaluate({name: run, "b": run}, [Query("q", "")], {"q": {"a": 1}}, measures=["R@1"], baseline=name)
    for text in (str(report), rendered(report, width=300)):
        assert text.count(name) == 2  # its row, and the legend
    assert "&lt;b&gt;a &amp; b&lt;/b&gt;" in report._repr_html_()
    assert "<b>" not in report._repr_html_()


def test_a_system_without_a_measured_time_shows_none() -> None:
    report = evaluate({"s": Run("s", {"q": []})}, [Query("q", "")], {"q": {"a": 1}})
    assert str(report).split("\n")[1].endswith("–")


def test_the_plot_puts_a_point_at_each_mean_and_a_bar_over_each_interval(report: Report) -> None:
    (axes,) = report.plot().axes
    assert [label.get_text() for label in axes.get_xticklabels()] == list(report.measures)
    for s, container in enumerate(axes.containers):
        points, _, (bars,) = container
        np.testing.assert_allclose(points.get_ydata(), report.means[s])
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends, report.intervals[s])
    legend = report.plot().legends[0]
    assert [text.get_text() for text in legend.get_texts()] == list(report.systems)


@pytest.mark.parametrize(("ending", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_plot_is_written_where_asked(report: Report, tmp_path: Path, ending: str, begin: bytes) -> None:
    report.plot(tmp_path / f"plot.{ending}")
    assert (tmp_path / f"plot.{ending}").read_bytes().startswith(begin)


def test_evaluating_and_plotting_need_no_display_and_leave_pyplot_alone(tmp_path: Path) -> None:
    program = f"""
import sys
import reperio.evaluation as e
assert not {{"ir_measures", "matplotlib", "rich", "scipy"}} & sys.modules.keys()
from reperio.types import Query
run = e.Run("s", {{"q": [("a", 1.0)]}})
e.evaluate({{"s": run}}, [Query("q", "")], {{"q": {{"a": 1}}}}).plot({str(tmp_path / "p.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert (tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.parametrize(("module", "extra", "use"), [("rich", "cli", "table"), ("matplotlib", "plot", "plot")])
def test_a_missing_extra_is_named_and_the_plain_table_still_works(
    report: Report, module: str, extra: str, use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency, match=rf"reperio\[{extra}\]"):
        getattr(report, use)()
    assert "nDCG@10" in str(report)
