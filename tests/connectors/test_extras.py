"""Importing connectors loads nothing heavy; a missing extra is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from reperio import connectors
from reperio.connectors import FileSource, SQLSource
from reperio.errors import MissingDependency


def test_importing_connectors_loads_no_database_driver() -> None:
    script = (
        "import sys; from reperio.connectors import FileSource, PythonDocsSource, SQLSource;"
        "assert not {'sqlalchemy', 'psycopg', 'pyarrow', 'torch', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_exported_name_is_there_and_no_other() -> None:
    assert [getattr(connectors, name).__name__ for name in dir(connectors)] == connectors.__all__
    with pytest.raises(AttributeError, match="HTMLSource"):
        connectors.HTMLSource  # noqa: B018


@pytest.mark.parametrize(
    ("module", "url", "extra"),
    [("sqlalchemy", "sqlite://", "sql"), ("psycopg", "postgresql://host/db", "postgres")],
)
def test_a_database_without_its_extra_names_it(
    monkeypatch: pytest.MonkeyPatch, module: str, url: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency, match=rf"'{module}'.*reperio\[{extra}\]"):
        list(SQLSource(url, "t", key="k", text="body").documents())


def test_parquet_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match=r"'pyarrow'.*reperio\[parquet\]"):
        list(FileSource(tmp_path / "a.parquet", "text").documents())
