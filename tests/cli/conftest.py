"""The command line, called in this process and as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from reperio import Collection, Document, lexical
from reperio.cli import app

TEXTS = {
    "heap": "Merge sorted inputs into one sorted output, lazily.",
    "cache": "Remember the results of calls.\nA second line.",
    "split": "Split a string as a shell does.",
    "copy": "Copy a folder with everything in it.",
}


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """One width wherever the tests run."""
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def reperio() -> Callable[..., Result]:
    """Run a command in this process."""

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(one) for one in arguments])

    return call


@pytest.fixture
def as_json(reperio: Callable[..., Result]) -> Callable[..., Any]:
    """Run a command that succeeds with ``--json``; its stdout is one object and nothing else."""

    def call(*arguments: object) -> Any:
        result = reperio(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return call


@pytest.fixture
def process() -> Callable[..., subprocess.Popen[str]]:
    """Start a command as a process of its own."""

    def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "reperio.cli", *map(str, arguments)]
        return subprocess.Popen(
            command, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        )

    return start


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A small lexical collection."""
    folder = tmp_path / "notes"
    documents = [Document(name, text, {"length": len(text)}) for name, text in TEXTS.items()]
    with Collection.open(folder, signals=lexical()) as collection:
        collection.upsert(documents, progress=False)
    return folder
