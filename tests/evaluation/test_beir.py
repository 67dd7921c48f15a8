"""Reading test collections."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from reperio.errors import ConnectorError, InvalidInput, NotFound
from reperio.evaluation import Beir, Qrels
from reperio.protocols import Source
from reperio.types import Query

DOCUMENTS: list[dict[str, object]] = [
    {"_id": "a", "title": "Alpha", "text": "first letter"},
    {"_id": "b", "title": "", "text": "second\u2028letter", "metadata": {"year": 1990}, "url": "x.org"},
    {"_id": "c", "title": "Gamma", "text": ""},
]
QUERIES: list[dict[str, object]] = [{"_id": "q1", "text": "which comes first"}, {"_id": "q2", "text": "never judged"}]
HEADER = "query-id\tcorpus-id\tscore\n"


def lines(records: list[dict[str, object]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "letters"
    (path / "qrels").mkdir(parents=True)
    (path / "corpus.jsonl").write_text(lines(DOCUMENTS), encoding="utf-8")
    (path / "queries.jsonl").write_text(lines(QUERIES), encoding="utf-8")
    (path / "qrels" / "test.tsv").write_text(f"{HEADER}q1\ta\t2\nq1\tb\t0\n", encoding="utf-8")
    return path


def test_scifact_has_the_counts_that_beir_publishes(data: Callable[[str], Path]) -> None:
    beir = Beir(data("scifact"))
    assert len(list(beir.documents())) == 5183
    assert beir.splits == ["test", "train"]
    assert (len(beir.queries()), len(beir.queries("train"))) == (300, 809)
    assert sum(map(len, beir.qrels().values())) == 339
    assert beir.qrels().absent == frozenset()


def test_spans_cut_each_field_out_of_the_text_it_was_joined_into(data: Callable[[str], Path]) -> None:
    path = data("adi")
    raw = [json.loads(line) for line in (path / "corpus.jsonl").read_text(encoding="utf-8").split("\n") if line]
    documents = list(Beir(path).documents())
    assert [document.id for document in documents] == [record["_id"] for record in raw]
    for number, (document, record) in enumerate(zip(documents, raw, strict=True), 1):
        assert document.text == f"{record['title']}\n{record['text']}"
        assert document.provenance is not None
        assert (document.provenance.source, document.provenance.line) == ("adi", number)
        cut = {span.field: document.text[span.start : span.end] for span in document.provenance.fields}
        assert cut == {"title": record["title"], "text": record["text"]}
        assert document.metadata["title"] == record["title"]


def test_a_collection_is_a_source(folder: Path) -> None:
    beir = Beir(str(folder))
    assert isinstance(beir, Source)
    assert beir.name == "letters"


def test_title_or_text_may_be_blank_and_a_line_separator_inside_ends_nothing(folder: Path) -> None:
    alpha, beta, gamma = Beir(folder).documents()
    assert (alpha.text, beta.text, gamma.text) == ("Alpha\nfirst letter", "second\u2028letter", "Gamma")
    assert beta.metadata == {"year": 1990, "url": "x.org"}
    assert [span.field for d in (beta, gamma) if d.provenance for span in d.provenance.fields] == ["text", "title"]


def test_only_judged_queries_are_asked(folder: Path) -> None:
    assert Beir(folder).queries() == [Query("q1", "which comes first")]


def test_documents_without_text_are_left_out_counted_and_named(data: Callable[[str], Path]) -> None:
    beir = Beir(data("cranfield"))
    with pytest.warns(UserWarning, match=r"cranfield: 2 documents \(471, 995\) without title and text"):
        assert len(list(beir.documents())) == 1398
    with pytest.warns(UserWarning, match=r"judges 1 document \(995\) not in the corpus") as warned:
        assert beir.qrels().absent == {"995"}
    assert len(warned) == 1


def test_a_whole_collection_warns_of_nothing(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(Beir(folder).documents())
        assert Beir(folder).qrels() == {"q1": {"a": 2, "b": 0}}


@pytest.mark.parametrize(
    ("names", "chosen"), [(["dev", "test", "train"], "test"), (["train"], "train"), (["dev", "train"], "dev")]
)
def test_the_split_is_test_else_the_only_one_else_dev(folder: Path, names: list[str], chosen: str) -> None:
    (folder / "qrels" / "test.tsv").unlink()
    for grade, name in enumerate(names):
        (folder / "qrels" / f"{name}.tsv").write_text(f"{HEADER}q1\ta\t{grade}\n", encoding="utf-8")
    assert Beir(folder).qrels() == {"q1": {"a": names.index(chosen)}}


def test_a_split_that_is_not_there_is_named_with_those_that_are(folder: Path) -> None:
    with pytest.raises(NotFound, match=r"no split 'valid'\. It has: test"):
        Beir(folder).queries("valid")
    for name in ("one", "two"):
        (folder / "qrels" / "test.tsv").replace(folder / "qrels" / f"{name}.tsv")
        (folder / "qrels" / "test.tsv").write_text(HEADER, encoding="utf-8")
    (folder / "qrels" / "test.tsv").unlink()
    with pytest.raises(NotFound, match=r"no split 'dev'\. It has: one, two"):
        Beir(folder).qrels()
    for file in (folder / "qrels").iterdir():
        file.unlink()
    with pytest.raises(NotFound, match="BEIR layout"):
        Beir(folder).qrels()


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_a_missing_file_is_named_at_once(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(NotFound, match=f"holds no {name}"):
        Beir(folder)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"_id": "d", "text": ', r"is not JSON"),
        (b'["d", "text"]', r"is a list, not an object"),
        (b'{"_id": 7, "text": "t"}', r"has _id = 7, not a string of text"),
        (b'{"_id": "", "text": "t"}', r"has _id = '', not a string"),
        (b'{"_id": "d", "title": "t"}', r"has text = None, not a string"),
        (b'{"_id": "d", "title": 3, "text": "t"}', r"has title = 3, not a string"),
        (b'{"_id": "d", "text": "t", "metadata": [1]}', r"has metadata of type list"),
        (b'{"_id": "d", "text": "\xff"}', r"is not UTF-8"),
    ],
)
def test_a_malformed_document_names_file_and_line(folder: Path, line: bytes, problem: str) -> None:
    with (folder / "corpus.jsonl").open("ab") as file:
        file.write(b"\n" + line + b"\n")
    with pytest.raises(ConnectorError, match=rf"corpus\.jsonl:5 {problem}"):
        list(Beir(folder).documents())


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("q1\ta", "has 2 columns"),
        ("q1\t0\ta\t1", "has 4 columns"),
        ("q1\ta\t1.5", r"has the score '1\.5'"),
        ("q1\ta\tyes", "has the score 'yes'"),
        ("q1\ta\t1", "grades query 'q1', document 'a' again, and differently"),
    ],
)
def test_a_malformed_judgment_names_file_and_line(folder: Path, line: str, problem: str) -> None:
    with (folder / "qrels" / "test.tsv").open("a", encoding="utf-8") as file:
        file.write(line)
    with pytest.raises(ConnectorError, match=rf"test\.tsv:4 {problem}"):
        Beir(folder).qrels()


def test_judgments_need_no_header_and_may_end_lines_as_windows_does(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").write_bytes(b"\xef\xbb\xbfq1\ta\t2\r\nq1\tb\t0\r\n")
    assert Beir(folder).qrels() == {"q1": {"a": 2, "b": 0}}


def test_a_query_given_twice_or_judged_without_text_is_refused(folder: Path) -> None:
    (folder / "queries.jsonl").write_text(lines([*QUERIES, QUERIES[0]]), encoding="utf-8")
    with pytest.raises(ConnectorError, match=r"queries\.jsonl:3 has the _id 'q1' of an earlier line"):
        Beir(folder).queries()
    (folder / "queries.jsonl").write_text(lines(QUERIES[1:]), encoding="utf-8")
    with pytest.raises(ConnectorError, match=r"judges 1 queries that .*queries\.jsonl lacks: q1"):
        Beir(folder).queries()


def test_an_unreadable_file_is_a_connector_error(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").unlink()
    (folder / "qrels" / "test.tsv").mkdir()
    with pytest.raises(ConnectorError, match=r"test\.tsv cannot be read: Is a directory"):
        Beir(folder).qrels()


@pytest.mark.parametrize("grade", [1.0, "1", None])
def test_a_grade_that_is_not_a_whole_number_is_refused(grade: object) -> None:
    with pytest.raises(InvalidInput, match="Query 'q', document 'd': the grade is"):
        Qrels({"q": {"d": grade}})  # type: ignore[dict-item]
