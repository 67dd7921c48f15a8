"""``reperio index``."""

from __future__ import annotations

import csv
import json
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from reperio import Collection
from reperio.errors import ReperioError

ROWS = [{"id": str(i), "title": f"Title {i}", "text": f"Body number {i} of seven."} for i in range(7)]


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(ROWS), path)


def write_sqlite(path: Path) -> None:
    with sqlite3.connect(path) as base:
        base.execute("create table notes (id text primary key, title text, text text)")
        base.executemany("insert into notes values (:id, :title, :text)", ROWS)
    base.close()


@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_parquet])
def test_a_file_becomes_a_collection(
    write: Callable[[Path], None], as_json: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / f"rows.{write.__name__.removeprefix('write_')}"
    write(path)
    report = as_json("index", tmp_path / "c", path, "--text", "{title}: {text}", "--id", "id", "--lexical")
    assert (report["added"], report["updated"], report["unchanged"]) == (7, 0, 0)
    with Collection.open(tmp_path / "c", mode="r") as collection:
        document = collection.get("3")
    assert document is not None
    assert document.text == "Title 3: Body number 3 of seven."
    assert document.provenance is not None
    assert document.provenance.source == str(path)


def test_a_pattern_stands_for_all_its_files(as_json: Callable[..., Any], tmp_path: Path) -> None:
    for part in range(3):
        row = {"_id": f"{part}", "text": f"Part {part}."}
        (tmp_path / f"part{part}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert as_json("index", tmp_path / "c", tmp_path / "part*.jsonl", "--lexical")["added"] == 3


def test_a_database_is_followed_by_running_again(as_json: Callable[..., Any], tmp_path: Path) -> None:
    write_sqlite(tmp_path / "notes.db")
    url = f"sqlite:///{tmp_path / 'notes.db'}"
    call = ("index", tmp_path / "c", url, "--table", "notes", "--key", "id", "--text", "{title}: {text}")
    assert as_json(*call, "--lexical")["added"] == 7
    with sqlite3.connect(tmp_path / "notes.db") as base:
        base.execute("update notes set text = 'Another body.' where id = '2'")
    base.close()
    report = as_json(*call)
    assert (report["added"], report["updated"], report["unchanged"]) == (0, 1, 6)


def test_a_query_stands_for_a_table(as_json: Callable[..., Any], tmp_path: Path) -> None:
    write_sqlite(tmp_path / "notes.db")
    query = "select id, text from notes where id >= '4'"
    url = f"sqlite:///{tmp_path / 'notes.db'}"
    report = as_json("index", tmp_path / "c", url, "--query", query, "--key", "id", "--text", "text", "--lexical")
    assert report["added"] == 3


def test_several_columns_are_joined_by_blank_lines(as_json: Callable[..., Any], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl")
    as_json("index", tmp_path / "c", tmp_path / "rows.jsonl", "--text", "title", "--text", "text", "--lexical")
    with Collection.open(tmp_path / "c", mode="r") as collection:
        document = collection.get("0")
    assert document is not None
    assert document.text == "Title 0\n\nBody number 0 of seven."


def test_docstrings_of_named_packages_become_a_collection(as_json: Callable[..., Any], tmp_path: Path) -> None:
    report = as_json("index", tmp_path / "c", "python:json,shlex", "--lexical")
    with Collection.open(tmp_path / "c", mode="r") as collection:
        assert len(collection) == report["added"]
        assert {"json.dumps", "shlex.split"} <= {document.id for document in collection.documents()}


def test_a_beir_folder_becomes_a_collection(
    as_json: Callable[..., Any], data: Callable[[str], Path], tmp_path: Path
) -> None:
    corpus = (data("adi") / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    assert as_json("index", tmp_path / "c", data("adi"), "--lexical")["added"] == len(corpus)
    assert as_json("index", tmp_path / "c", data("adi"))["unchanged"] == len(corpus)


def test_the_report_is_told_in_words(reperio: Callable[..., Result], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl")
    result = reperio("index", tmp_path / "c", tmp_path / "rows.jsonl", "--lexical")
    assert result.exit_code == 0
    assert [line.split() for line in result.stdout.splitlines()][:3] == [
        ["7", "added"],
        ["0", "updated"],
        ["0", "unchanged"],
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nothing.jsonl", "--lexical"], 1, "nothing.jsonl"),
        (["empty.jsonl", "--lexical"], 2, "holds no document"),
        (["rows.jsonl", "--text", "{nope}", "--lexical"], 2, "nope"),
        (["rows.jsonl", "--table", "t", "--lexical"], 2, "--table"),
        (["rows.jsonl", "--key", "id", "--key", "title", "--lexical"], 2, "one key"),
        (["rows.jsonl", "--lexical", "--model", "m"], 2, "--lexical"),
        (["python:json", "--text", "text", "--lexical"], 2, "--text"),
        (["python:no_such_package_here", "--lexical"], 2, "no_such_package_here"),
        ([".", "--lexical"], 1, "corpus.jsonl"),
        (["sqlite:///rows.db", "--table", "t", "--text", "b", "--lexical"], 2, "--key"),
        (["sqlite:///rows.db", "--table", "t", "--key", "a", "--lexical"], 2, "--text"),
        (["sqlite:///rows.db", "--key", "a", "--text", "b", "--lexical"], 2, "table"),
        (["rows.jsonl", "--batch-size", "0"], 2, "--batch-size"),
    ],
)
def test_what_cannot_be_read_leaves_no_collection_behind(
    reperio: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl")
    (tmp_path / "empty.jsonl").touch()
    result = reperio("index", "c", *arguments)
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("url", ["postgresql://me:s3cret@127.0.0.1:1/base", "nosuch://me:s3cret@host/base"])
@pytest.mark.parametrize("options", [[], ["--table", "t", "--key", "id", "--text", "body"]])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_password_is_never_shown(
    reperio: Callable[..., Result], tmp_path: Path, url: str, options: list[str], form: list[str]
) -> None:
    result = reperio("index", tmp_path / "c", url, *options, "--lexical", *form)
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert result.output
    assert "s3cret" not in result.output


def test_signals_that_are_not_the_collections_are_refused(reperio: Callable[..., Result], notes: Path) -> None:
    result = reperio("index", notes, "python:json", "--model", "none/such", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["type"] == "ConfigurationError"
    with Collection.open(notes, mode="r") as collection:
        assert collection.signals == ["bm25"]
        assert len(collection) == 4


def test_a_collection_being_written_is_refused(reperio: Callable[..., Result], notes: Path) -> None:
    with Collection.open(notes):
        result = reperio("index", notes, "python:shlex")
    assert result.exit_code == 1
    assert "WriterBusy" in result.stderr
    assert "mode=" not in result.stderr


def test_ctrl_c_keeps_what_was_committed(process: Callable[..., Any], tmp_path: Path) -> None:
    with (tmp_path / "many.jsonl").open("w") as file:
        file.writelines(f'{{"_id": "{i}", "text": "Text number {i}."}}\n' for i in range(200_000))
    indexing = process("index", tmp_path / "c", tmp_path / "many.jsonl", "--lexical", "--batch-size", 10)
    assert _wait_for_a_commit(tmp_path / "c")
    indexing.send_signal(signal.SIGINT)
    _, said = indexing.communicate(timeout=120)
    assert indexing.returncode == 130
    assert "committed is kept" in said
    assert "Traceback" not in said
    with Collection.open(tmp_path / "c", mode="r") as collection:
        assert 0 < len(collection) < 200_000
        assert collection.verify().ok


def _wait_for_a_commit(folder: Path) -> bool:
    for _ in range(200):
        try:
            with Collection.open(folder, mode="r") as collection:
                if len(collection):
                    return True
        except ReperioError:
            pass  # not made yet
        time.sleep(0.05)
    return False
