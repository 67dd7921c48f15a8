"""Every source passes the contract. (PostgreSQL does so in tests/connectors/test_postgres.py, beside its server.)"""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reperio.connectors import FileSource, PythonDocsSource, SQLSource
from reperio.protocols import Source
from reperio.testing.source import SourceContract
from reperio.types import Document

ROWS = [
    {"k": f"k{i:02}", "title": f"Title {i}" if i % 3 else "", "body": f"Body of {i}.\nÄ 中 {'x' * i}", "n": i / 2}
    for i in range(50)
]


@pytest.fixture
def database(tmp_path: Path) -> str:
    """URL of a SQLite file with a table ``t`` of `ROWS`."""
    with sqlite3.connect(tmp_path / "rows.db") as connection:
        connection.execute("CREATE TABLE t (k TEXT PRIMARY KEY, title TEXT, body TEXT, n REAL)")
        connection.executemany("INSERT INTO t VALUES (:k, :title, :body, :n)", ROWS)
    connection.close()
    return f"sqlite:///{tmp_path / 'rows.db'}"


class TestTable(SourceContract):
    @pytest.fixture
    def source(self, database: str) -> Source:
        return SQLSource(database, "t", key="k", text="{title}\n{body}", batch_size=7)


class TestQueryWithACompositeKey(SourceContract):
    @pytest.fixture
    def source(self, database: str) -> Source:
        query = "SELECT n, k, title || body AS text FROM t WHERE n > 3"
        return SQLSource(database, query=query, key=["n", "k"], text="text", batch_size=7)


class TestFunctionThatMakesDocuments(SourceContract):
    @pytest.fixture
    def source(self, database: str) -> Source:
        return SQLSource(database, "t", key="k", text=lambda row: Document(f"row-{row['k']}", row["body"]))


class TestJSONLines(SourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> Source:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**row, "tags": ["a", None]}) + "\n" for row in ROWS))
        return FileSource(tmp_path / "rows.jsonl", ("title", "body"), key="k")


class TestJSONLinesWithoutKeys(SourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> Source:
        for part in range(3):
            lines = (json.dumps(row) + "\n" for row in ROWS[part::3])
            (tmp_path / f"{part}.jsonl").write_text("".join(lines))
        return FileSource(tmp_path / "*.jsonl", "{title}: {body}")


class TestCSV(SourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> Source:
        with (tmp_path / "rows.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ROWS[0])
            writer.writeheader()
            writer.writerows(ROWS)
        return FileSource(tmp_path / "rows.csv", "{title}: {body}", key="k")


class TestParquet(SourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> Source:
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
        return FileSource(tmp_path / "rows.parquet", ("title", "body"))


class TestPythonDocs(SourceContract):
    @pytest.fixture
    def source(self) -> Source:
        return PythonDocsSource(["heapq", "math", "json", "iniconfig"])
