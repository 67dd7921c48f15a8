"""``reperio demo``, with a small encoder in place of the model: the collection in the folder keeps its own signals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from reperio import Collection, Signal, lexical
from reperio.cli.demo import QUESTIONS, Answered, Question, agree
from reperio.connectors import PythonDocsSource
from reperio.encoders.hashing import HashEncoder
from reperio.indexes.flat import FlatIndex


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "kept"
    signals = {**lexical(), "dense": Signal(HashEncoder(64), FlatIndex("cosine"))}
    with Collection.open(path, signals=signals):
        return path


def test_the_demo_answers_twice_and_encodes_once(
    as_json: Callable[..., Any], reperio: Callable[..., Result], folder: Path
) -> None:
    first = as_json("demo", "--folder", folder, "--limit", 400)
    assert first["upsert"]["added"] == 400
    assert 0 < first["upsert"]["encoded"]["dense"] <= 400
    assert first["second_process_agrees"]
    assert [answer["question"] for answer in first["questions"]] == [question.text for question in QUESTIONS]
    again = reperio("demo", "--folder", folder, "--limit", 400)
    assert again.exit_code == 0
    assert "0 texts encoded, 400 documents unchanged" in again.stderr
    assert "stopped" in again.stderr
    assert "hits, from disk" in again.stdout
    for answer in first["questions"]:
        assert answer["rank"] is not None or f"missed: {' or '.join(answer['answers'])}" in again.stdout


def test_every_known_answer_is_in_the_standard_library() -> None:
    modules = {answer.partition(".")[0] for question in QUESTIONS for answer in question.answers}
    there = {document.id for document in PythonDocsSource(sorted(modules)).documents()}
    for question in QUESTIONS:
        assert question.answers <= there


def test_a_miss_is_told() -> None:
    hit = {"rank": 1, "id": "a"}
    question = Question("?", frozenset({"b"}))
    assert Answered(question, [hit]).rank is None
    assert "missed" in Answered(question, [hit]).verdict.plain
    assert Answered(question, [hit, {"rank": 2, "id": "b"}]).verdict.plain == "b: rank 2\n"


def test_two_processes_agree_where_ids_and_scores_do() -> None:
    hits = [{"id": "a", "score": 0.5}, {"id": "b", "score": 0.25}]
    assert agree(hits, [{"id": "a", "score": 0.50001}, hits[1]])
    assert not agree(hits, [{"id": "a", "score": 0.51}, hits[1]])
    assert not agree(hits, hits[::-1])
    assert not agree(hits, hits[:1])
