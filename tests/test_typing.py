"""The type checkers accept what fits and reject what does not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "typing"


def expected(file: Path) -> set[int]:
    return {number for number, line in enumerate(file.read_text().splitlines(), 1) if "# E:" in line}


def pyright(file: Path, tmp_path: Path) -> set[int]:
    config = tmp_path / "pyrightconfig.json"
    settings = {"include": [str(file)], "typeCheckingMode": "strict", "reportUnusedExpression": False}
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(config)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    assert found["summary"]["filesAnalyzed"] == 1, found
    return {d["range"]["start"]["line"] + 1 for d in found["generalDiagnostics"] if d["severity"] == "error"}


def mypy(file: Path) -> set[int]:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", str(file)]
    out = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE).stdout
    return {int(number) for number in re.findall(rf"{file.name}:(\d+): error", out)}


@pytest.mark.parametrize("name", ["good.py", "bad.py"])
def test_pyright_flags_exactly_the_marked_lines(name: str, tmp_path: Path) -> None:
    assert pyright(HERE / name, tmp_path) == expected(HERE / name)


@pytest.mark.parametrize("name", ["good.py", "bad.py"])
def test_mypy_flags_exactly_the_marked_lines(name: str) -> None:
    assert mypy(HERE / name) == expected(HERE / name)
