"""JSON lines, CSV, TSV and Parquet: every record, its line, and a clear word on what is wrong with a bad one."""

from __future__ import annotations

import csv
import gzip
import json
import os
import sys
import tracemalloc
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reperio import meter
from reperio.connectors import FileSource
from reperio.errors import ConfigurationError, ConnectorError
from reperio.types import Document

Data = Callable[[str], Path]
Write = Callable[[str, str | bytes], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file and gives its path."""

    def written(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return written


def read(path: str, text: Any = "text", **settings: Any) -> list[Document]:
    return list(FileSource(path, text, **settings).documents())


@pytest.mark.parametrize("name", ["scifact", "cosqa", "qmsum"])
def test_a_beir_corpus_is_read_as_it_stands(data: Data, name: str) -> None:
    path = data(name) / "corpus.jsonl"
    with path.open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    found = read(str(path), ("title", "text"))
    assert len(found) == len(records)
    for number, (document, record) in enumerate(zip(found, records, strict=True), 1):
        assert document.id == record["_id"]
        assert document.text == "\n\n".join(part for part in (record["title"], record["text"]) if part)
        assert document.metadata == {k: v for k, v in record.items() if k not in {"_id", "title", "text"}}
        where = document.provenance
        assert where is not None
        assert (where.source, where.key, where.line) == (str(path), document.id, number)
        for field in where.fields:
            assert document.text[field.start : field.end] == record[field.field]


@pytest.mark.parametrize("table", ["tableA", "tableB"])
def test_a_csv_file_is_read_as_the_csv_module_reads_it(data: Data, table: str) -> None:
    path = data("er-amazon-google") / f"{table}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    fields = list(records[0])
    found = read(str(path), fields[1], metadata=fields)
    assert [document.metadata for document in found] == records
    assert [document.id for document in found] == [record["id"] for record in records]


def test_compressed_json_lines_are_read(data: Data) -> None:
    path = data("lost-in-the-middle") / "kv-retrieval-75_keys.jsonl.gz"
    found = read(str(path), "key", metadata=["value"])
    assert len(found) == 500
    with gzip.open(path, "rt") as file:
        first = json.loads(next(file))
    assert (found[0].id, found[0].text, found[0].metadata) == (f"{path}:1", first["key"], {"value": first["value"]})


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(CELL, CELL), max_size=8), st.sampled_from(["csv", "tsv", "jsonl", "jsonl.gz"]))
def test_what_was_written_is_read_and_found_at_its_line(
    write: Write, tmp_path: Path, cells: list[tuple[str, str]], layout: str
) -> None:
    path = tmp_path / f"records.{layout}"
    if layout in {"csv", "tsv"}:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="," if layout == "csv" else "\t", quoting=csv.QUOTE_ALL)
            writer.writerow(["text", "more"])
            writer.writerows(cells)
        lines = [2 + sum(1 + "".join(pair).count("\n") for pair in cells[:i]) for i in range(len(cells))]
    else:
        body = "".join(json.dumps({"text": a, "more": b}, ensure_ascii=False) + "\n" for a, b in cells).encode()
        path.write_bytes(gzip.compress(body) if layout.endswith("gz") else body)
        lines = list(range(1, len(cells) + 1))
    found = read(str(path), lambda row: "x" + row["text"], metadata=["more"] if cells else None)
    assert [(d.text[1:], d.metadata["more"]) for d in found] == cells
    assert [d.provenance and d.provenance.line for d in found] == lines
    assert [d.id for d in found] == [f"{path}:{line}" for line in lines]


def test_parquet_is_read_by_batches_and_only_the_columns_that_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    count = 5000
    table = pa.table(
        {
            "id": pa.array(range(count)),
            "text": [f"text {i}" if i != 7 else None for i in range(count)],
            "at": pa.array([datetime(2020, 1, 1)] * count, pa.timestamp("us")),
            "tags": [["a", str(i)] for i in range(count)],
            "photo": [b"\x00"] * count,
        }
    )
    pq.write_table(table, path, row_group_size=700)
    with pytest.warns(UserWarning, match="1 rows skipped.*'7'"):
        found = read(str(path), metadata=["at", "tags"])
    assert [d.id for d in found] == [str(i) for i in range(count) if i != 7]
    assert found[0].metadata == {"at": datetime(2020, 1, 1), "tags": ["a", "0"]}
    assert found[0].provenance is not None
    assert found[0].provenance.line is None
    with pytest.raises(ConnectorError, match=r"rows\.parquet\[0\]: Field 'photo'"):
        read(str(path))
    with pytest.raises(ConfigurationError, match=r"'nope'.*id, text, at, tags, photo"):
        read(str(path), "nope")


@pytest.mark.parametrize("layout", ["jsonl", "csv", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, layout: str) -> None:
    line = os.urandom(150).hex()
    form = {"jsonl": '{{"text": "{} {}"}}\n', "csv": "{} {}\n"}

    def peak(count: int) -> int:
        path = tmp_path / f"{count}.{layout}"
        if layout == "parquet":
            table = pa.table({"text": [f"{i} {line}" for i in range(count)]})
            pq.write_table(table, path, row_group_size=1000, compression="none", use_dictionary=False)
            del table
        else:
            with path.open("w") as file:
                file.write("text\n" if layout == "csv" else "")
                file.writelines(form[layout].format(i, line) for i in range(count))
        tracemalloc.start()
        arrow = [pa.total_allocated_bytes() for _ in FileSource(path, "text").documents()]
        assert len(arrow) == count
        most = tracemalloc.get_traced_memory()[1] - sys.getsizeof(arrow) - 32 * count
        tracemalloc.stop()
        return most + max(arrow)

    peak(100)
    small, large = peak(2000), peak(20_000)
    assert large < 1.3 * small + 200_000


def test_a_pattern_and_a_list_give_their_files_sorted_and_each_once(write: Write, tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a/1.jsonl", "b/10.jsonl", "c.csv"):
        write(name, "text\nx\n" if name.endswith("csv") else '{"text": "x"}\n')
    found = read(str(tmp_path / "**" / "*.jsonl"))
    assert [d.id for d in found] == [f"{tmp_path}/{name}:1" for name in ("a/1.jsonl", "b/10.jsonl", "b/2.jsonl")]
    source = FileSource([tmp_path / "c.csv", tmp_path / "a" / "*.jsonl", tmp_path / "a" / "1.jsonl"], "text")
    assert [d.id for d in source.documents()] == [f"{tmp_path}/c.csv:2", f"{tmp_path}/a/1.jsonl:1"]
    assert source.name.count(", ") == 2
    assert read(write("odd[1]*.jsonl", '{"text": "x"}'))[0].text == "x"


def test_a_path_is_kept_as_it_was_given(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.jsonl", '{"text": "x"}')
    monkeypatch.chdir(tmp_path)
    for path in ("a.jsonl", "*.jsonl"):
        (found,) = read(path)
        assert (found.id, found.provenance and found.provenance.source) == ("a.jsonl:1", "a.jsonl")


def test_the_first_record_settles_the_key_of_its_file(write: Write) -> None:
    assert [d.id for d in read(write("a.jsonl", '{"_id": 7, "id": "b", "text": "x"}'))] == ["7"]
    assert [d.id for d in read(write("a.csv", "id,text\n07,x\n"))] == ["07"]
    assert [d.id for d in read(write("a.csv", "name,id,text\nn,07,x\n"), key="name")] == ["n"]
    path = write("b.jsonl", '{"id": "1", "text": "x"}\n{"text": "y"}\n')
    with pytest.raises(ConnectorError, match=r"b\.jsonl:2 has no 'id'"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": y}\n', r"a\.jsonl:2 is not JSON .*\{\"text\": y\}"),
        ("a.jsonl", b'{"text": "x"}\n["text"]\n', r"a\.jsonl:2 is not a JSON object.*text"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": "caf\xe9"}\n', r"a\.jsonl:3 is not UTF-8"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl:1\[1\]: '\\ud800' is half a character"),
        ("a.jsonl", b'{"text": ["x"]}\n', r"a\.jsonl:1\[1\]: Field 'text' is a list"),
        ("a.jsonl", b'{"body": "x"}\n', r"a\.jsonl:1\[1\]: There is no field 'text'"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1 is not JSON"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "x"}\n' * 999, mtime=0)[:-20],
            r"a\.jsonl\.gz cannot be read after line",
        ),
        ("a.jsonl.gz", b"plain", r"a\.jsonl\.gz cannot be read after line 0"),
        ("a.csv", b"", "has no header"),
        ("a.csv", b"text,text\nx,y\n", r"a\.csv:1 has a header with an empty or repeated name"),
        ("a.csv", b"text,b\nx,y\nx\n", r"a\.csv:3 has 1 fields where the header has 2: 'x'"),
        ("a.csv", b"text,b\nx,y,z\n", r"a\.csv:2 has 3 fields"),
        ("a.csv", b'text,b\nx,y\n"x,y\nz,w\n', r"a\.csv:3 is malformed: unexpected end of data"),
        ("a.csv", b"text\nx\ncaf\xe9\n", r"a\.csv:3 is not UTF-8"),
        ("a.parquet", b"PAR1 and nothing else", r"a\.parquet cannot be read as Parquet"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(write: Write, name: str, content: bytes, said: str) -> None:
    with pytest.raises((ConnectorError, ConfigurationError), match=said):
        read(write(name, content))


def test_missing_files_folders_and_unknown_layouts_are_refused_before_anything_is_read(
    write: Write, tmp_path: Path
) -> None:
    here = write("a.jsonl", '{"text": "x"}')
    for missing in ("none.jsonl", "*.csv", "no/folder/*.jsonl"):
        with pytest.raises(ConnectorError, match="does not exist"):
            FileSource([here, tmp_path / missing], "text").documents()
    with pytest.raises(ConnectorError, match="is a folder"):
        FileSource(tmp_path, "text").documents()
    with pytest.raises(ConfigurationError, match="layout="):
        FileSource(write("a.txt", "x"), "text").documents()
    assert read(write("a.txt", '{"text": "x"}'), layout="jsonl")[0].text == "x"
    for wrong in ({"layout": "xml"}, {"path": []}, {"text": "{a!r}"}):
        with pytest.raises(ConfigurationError):
            FileSource(**{"path": here, "text": "text", **wrong})


def test_byte_order_marks_line_ends_and_blank_lines_are_no_text(write: Write) -> None:
    (found,) = read(write("a.jsonl", b'\xef\xbb\xbf{"text": "x"}\r\n\r\n'))
    assert found.text == "x"
    found, last = read(write("a.csv", b"\xef\xbb\xbftext\r\nx\r\n\r\ny\r\n"))
    assert (found.text, last.text, last.provenance and last.provenance.line) == ("x", "y", 4)
    (found,) = read(write("b.jsonl", '{"text": "a\u2028b\x85c"}\n'))
    assert found.text == "a\u2028b\x85c"


def test_a_field_longer_than_the_csv_modules_limit_is_read_and_the_limit_is_left_alone(write: Write) -> None:
    before = csv.field_size_limit()
    path = write("a.csv", "text\n" + "x" * (before + 10) + "\ny\n")
    documents = FileSource(path, "text").documents()
    assert len(next(documents).text) == before + 10
    assert csv.field_size_limit() == before
    assert [d.text for d in documents] == ["y"]


def test_records_without_text_are_skipped_counted_and_told(write: Write) -> None:
    path = write("a.jsonl", '{"id": 1, "text": ""}\n{"id": 2, "text": "x"}\n{"id": 3, "text": null}\n')
    with meter.measure() as counts, pytest.warns(UserWarning, match=r"a\.jsonl: 2 rows skipped.*'1', '3'"):
        assert [d.id for d in read(path)] == ["2"]
    assert counts["skipped_empty"] == 2


def test_a_json_record_may_lack_a_metadata_field_but_not_all_of_them(write: Write) -> None:
    path = write("a.jsonl", '{"text": "x", "year": 1}\n{"text": "y"}\n')
    assert [d.metadata for d in read(path, metadata=["year"])] == [{"year": 1}, {}]
    with pytest.warns(UserWarning, match="no row has the metadata field 'yeer'"):
        read(path, metadata=["yeer"])
