"""``reperio search`` and ``reperio explain``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from reperio import Collection, Document, Field, lexical


def test_json_hits_are_those_of_the_library(
    as_json: Callable[..., Any], data: Callable[[str], Path], tmp_path: Path
) -> None:
    as_json("index", tmp_path / "c", data("adi"), "--lexical")
    found = as_json("search", tmp_path / "c", "information", "retrieval", "systems", "-k", 7)
    with Collection.open(tmp_path / "c", mode="r") as collection:
        ranking = collection.search("information retrieval systems", 7)
        assert [(hit["id"], hit["score"], hit["signals"]) for hit in found["hits"]] == [
            (hit.document.id, hit.score, hit.signals) for hit in ranking
        ]
    assert found["query"] == "information retrieval systems"
    assert [hit["rank"] for hit in found["hits"]] == list(range(1, 8))
    assert all(hit["source"].startswith("adi:") for hit in found["hits"])


def test_the_table_shows_scores_source_and_the_first_line(reperio: Callable[..., Result], tmp_path: Path) -> None:
    rows = tmp_path / "r.jsonl"
    rows.write_text(json.dumps({"_id": "[red]a", "text": "Wanted words [bold].\nA second line."}) + "\n")
    assert reperio("index", tmp_path / "c", rows, "--lexical").exit_code == 0
    shown = reperio("search", tmp_path / "c", "wanted").stdout
    assert "score" in shown
    assert "bm25" in shown
    assert "[red]a" in shown
    assert "Wanted words [bold]." in shown
    assert "A second line" not in shown


def test_a_filter_is_applied_inside_the_search(as_json: Callable[..., Any], notes: Path) -> None:
    with Collection.open(notes, mode="r") as collection:
        expected = collection.search("split folder", 10, where=Field("length") < 40).ids
    found = as_json("search", notes, "split folder", "--where", "length < 40")["hits"]
    assert [hit["id"] for hit in found] == expected
    assert 0 < len(found) < 4
    assert all(hit["metadata"]["length"] < 40 for hit in found)


def test_no_hit_is_told_and_is_no_error(reperio: Callable[..., Result], notes: Path) -> None:
    result = reperio("search", notes, "split", "--where", "length > 1000", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["hits"] == []
    assert "No document matches" in result.stderr
    assert reperio("search", notes, "split", "--where", "length > 1000").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["search", "{notes}", "x", "--where", "nope == 1"], 2, "FilterError"),
        (["search", "{notes}", "x", "--where", "__import__('os')"], 2, "FilterError"),
        (["search", "{notes}", "x", "--signals", "dense"], 2, "ConfigurationError"),
        (["search", "{notes}", "x", "--signals", "bm25,"], 2, "ConfigurationError"),
        (["search", "{notes}", "  "], 2, "EmptyText"),
        (["search", "{notes}/absent", "x"], 1, "NotFound"),
        (["explain", "{notes}", "x", "absent"], 1, "NotFound"),
        (["explain", "{notes}", "", "heap"], 2, "EmptyText"),
        (["stats", "{notes}/absent"], 1, "NotFound"),
        (["verify", "{notes}/absent"], 1, "NotFound"),
    ],
)
def test_an_error_is_one_message_and_a_code(
    reperio: Callable[..., Result], notes: Path, arguments: list[str], code: int, error: str
) -> None:
    call = [one.format(notes=notes) for one in arguments]
    plain, as_json = reperio(*call), reperio(*call, "--json")
    assert plain.exit_code == as_json.exit_code == code
    assert plain.stdout == ""
    assert plain.stderr.startswith(error)
    assert "Traceback" not in plain.output
    report = json.loads(as_json.stdout)
    assert report["error"]["type"] == error
    assert report["error"]["message"] in plain.stderr
    assert report["error"]["fix"] in plain.stderr


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (["search", "{notes}/absent", "x"], "reperio index {notes}/absent SOURCE"),
        (["stats", "{notes}/absent"], "reperio index {notes}/absent SOURCE"),
        (["verify", "{notes}/absent"], "reperio index {notes}/absent SOURCE"),
        (["explain", "{notes}/absent", "x", "heap"], "reperio index {notes}/absent SOURCE"),
        (["explain", "{notes}", "x", "absent"], "reperio search {notes} QUERY"),
    ],
)
def test_an_error_points_to_a_command(
    reperio: Callable[..., Result], notes: Path, arguments: list[str], fix: str
) -> None:
    told = reperio(*(one.format(notes=notes) for one in arguments)).stderr
    assert fix.format(notes=notes) in told
    assert "mode=" not in told


def test_searching_makes_nothing(reperio: Callable[..., Result], tmp_path: Path) -> None:
    assert reperio("search", tmp_path / "c", "x").exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_usage_errors_exit_with_2(reperio: Callable[..., Result], notes: Path) -> None:
    for call in (["search"], ["search", notes, "x", "-k", "0"], ["search", notes, "x", "--nope"], ["nope"]):
        assert reperio(*call).exit_code == 2


def test_explain_says_what_the_library_says(
    as_json: Callable[..., Any], reperio: Callable[..., Result], notes: Path
) -> None:
    with Collection.open(notes, mode="r") as collection:
        expected = collection.explain("split a string", "split", where=Field("length") < 40)
    call = ("explain", notes, "split a string", "split", "--where", "length < 40")
    found = as_json(*call)
    assert found == json.loads(json.dumps(expected.to_dict()))
    assert found["rank"] == 1
    assert [term["term"] for term in found["signals"]["bm25"]["terms"]]
    assert reperio(*call).stdout.strip() == str(expected).strip()


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_goes_away_ends_it_quietly(process: Callable[..., Any], tmp_path: Path, form: list[str]) -> None:
    with Collection.open(tmp_path / "c", signals=lexical()) as collection:
        collection.upsert([Document(str(i), f"word {i} " * 50) for i in range(2000)], progress=False)
    # Unbuffered, Python takes a write of one part for a whole one and never learns that the reader went away.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    searching = process("search", tmp_path / "c", "word", "-k", 2000, *form, stdout=writing, env=buffered)
    os.close(writing)
    assert os.read(reading, 1)
    os.close(reading)
    _, said = searching.communicate(timeout=30)
    assert searching.returncode == 141
    assert said == ""
