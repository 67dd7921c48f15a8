"""Stages compose, report, save and load; what does not fit is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from reperio import Context, Document, Pipeline, Query, Ranking, Retriever, meter
from reperio.compression import PassageCompressor
from reperio.encoders.hashing import HashEncoder
from reperio.errors import CompositionError, ConfigurationError, InvalidInput, NewerFormat, UnsupportedOperation
from reperio.indexes.flat import FlatIndex
from reperio.pipeline import Step, stage_types
from reperio.rerankers import EmbeddingReranker

DOCUMENTS = [
    Document("heapq.merge", "Merge multiple sorted inputs into a single sorted output. Returns a generator."),
    Document("bisect.insort", "Insert item x in list a, and keep it sorted assuming a is sorted."),
    Document("textwrap.dedent", "Remove any common leading whitespace from every line in text."),
]


@pytest.fixture
def retrieve() -> Retriever:
    return Retriever(HashEncoder(), FlatIndex("cosine"), documents=DOCUMENTS, k=3)


def test_stages_compose_from_query_to_context(retrieve: Retriever) -> None:
    pipeline = retrieve >> EmbeddingReranker(HashEncoder()) >> PassageCompressor(20)
    one, two = pipeline(["merge sorted inputs", Query("w", "leading whitespace of a line")])
    assert isinstance(one, Context)
    assert one.text.startswith("Merge multiple sorted inputs")
    assert two.spans[0].document_id == "textwrap.dedent"
    assert two.query.id == "w"


def test_a_run_reports_each_stage(retrieve: Retriever) -> None:
    report = (retrieve >> PassageCompressor(1000)).run(["merge", "insert"])
    assert [(s.name, s.inputs, s.outputs) for s in report.stages] == [("Retriever", 2, 2), ("PassageCompressor", 2, 2)]
    assert report.stages[1].counts["tokens"] == sum(context.tokens for context in report.outputs)
    assert report.seconds == sum(s.seconds for s in report.stages) > 0
    assert "PassageCompressor" in str(report)


def test_an_event_loop_gets_the_same_and_is_not_blocked(retrieve: Retriever) -> None:
    pipeline = retrieve >> PassageCompressor(30)

    async def main() -> tuple[Sequence[Context], dict[str, int]]:
        first, report = await asyncio.gather(pipeline.acall(["merge"]), pipeline.arun(["merge"]))
        return first, dict(report.stages[1].counts)

    contexts, counts = asyncio.run(main())
    assert contexts == pipeline(["merge"])
    assert counts["tokens"] == contexts[0].tokens


def test_a_wrong_composition_names_both_stages(retrieve: Retriever) -> None:
    with pytest.raises(CompositionError, match=r"PassageCompressor gives Context, but EmbeddingReranker takes Ranking"):
        retrieve >> PassageCompressor(5) >> EmbeddingReranker(HashEncoder())  # type: ignore[operator]
    with pytest.raises(CompositionError, match="Retriever"):
        EmbeddingReranker(HashEncoder()) >> retrieve  # type: ignore[operator]


def test_plain_functions_are_stages_and_are_checked_too(retrieve: Retriever) -> None:
    def best(batch: Sequence[Ranking]) -> Sequence[Ranking]:
        return [Ranking(r.query, r.hits[:1]) for r in batch]

    def count(batch: Sequence[Context]) -> Sequence[int]:
        return [len(c.spans) for c in batch]

    assert (retrieve >> best >> PassageCompressor(100) >> count)(["merge"]) == [1]
    with pytest.raises(CompositionError, match="best gives Ranking, but count takes Context"):
        retrieve >> best >> count  # type: ignore[operator]


def test_a_stage_that_loses_items_is_caught(retrieve: Retriever) -> None:
    pipeline = retrieve >> (lambda batch: batch[:1])
    with pytest.raises(CompositionError, match="was given 2 items and returned 1"):
        pipeline(["a question", "another"])


def test_a_bare_string_is_no_batch(retrieve: Retriever) -> None:
    with pytest.raises(InvalidInput, match=r"pipeline\(\[text\]\)"):
        Pipeline.of(retrieve)("merge")
    with pytest.raises(InvalidInput, match="bare string"):
        retrieve("merge")


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_pipeline_survives_its_file(tmp_path: Path, suffix: str, retrieve: Retriever) -> None:
    pipeline = EmbeddingReranker(HashEncoder(64), signal="again") >> PassageCompressor(7)
    pipeline.save(tmp_path / f"p.{suffix}")
    loaded = Pipeline.load(tmp_path / f"p.{suffix}")
    assert loaded.spec == pipeline.spec
    assert loaded(retrieve(["merge"])) == pipeline(retrieve(["merge"]))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"format": 99}, NewerFormat, "99"),
        ({"stages": [{"type": "os.system"}]}, ConfigurationError, "No component is named 'os.system'"),
        ({"stages": [{"type": "PassageCompressor"}]}, ConfigurationError, "needs budget"),
        ({"stages": [{"type": "PassageCompressor", "budget": "many"}]}, ConfigurationError, "budget cannot be 'many'"),
        ({"stages": [{"type": "PassageCompressor", "budget": 3, "x": 1}]}, ConfigurationError, "no setting 'x'"),
        ({"stages": []}, ConfigurationError, "at least one stage"),
        ({"type": "FlatIndex"}, ConfigurationError, "FlatIndex"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(
    tmp_path: Path, change: dict[str, object], error: type[Exception], words: str
) -> None:
    good = {"format": 1, "type": "Pipeline", "stages": [{"type": "PassageCompressor", "budget": 3}]}
    (tmp_path / "p.json").write_text(json.dumps({**good, **change}))
    with pytest.raises(error, match=words):
        Pipeline.load(tmp_path / "p.json")


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Pipeline.load(tmp_path / "p.yaml")


def test_what_holds_documents_cannot_be_saved(tmp_path: Path, retrieve: Retriever) -> None:
    with pytest.raises(UnsupportedOperation, match="Retriever"):
        (retrieve >> PassageCompressor(3)).save(tmp_path / "p.json")


def test_the_diagram_shows_what_flows(retrieve: Retriever) -> None:
    assert str(retrieve >> PassageCompressor(3)).split("\n") == [
        "str | Query",
        "  │ Retriever",
        "  ▼",
        "Ranking",
        "  │ PassageCompressor",
        "  ▼",
        "Context",
    ]
    assert stage_types(retrieve >> PassageCompressor(3)) == (str | Query, Context)


def test_meters_nest_and_are_free_outside() -> None:
    meter.count("tokens")
    with meter.measure() as outer:
        with meter.measure() as inner:
            meter.count("tokens", 2)
        meter.count("tokens", 3)
    assert (inner["tokens"], outer["tokens"]) == (2, 5)


def test_a_step_without_a_call_says_so() -> None:
    class Empty(Step[int, int]):
        pass

    with pytest.raises(TypeError, match="Empty defines no __call__"):
        Empty()([1])
