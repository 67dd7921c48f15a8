"""The type checkers accept what fits and reject what does not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "typing"
NAMES = ["good.py", "bad.py"]


def expected(name: str) -> set[int]:
    lines = (HERE / name).read_text().splitlines()
    return {number for number, line in enumerate(lines, 1) if "  # E: " in line}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two programs, as a user's project would hold them."""
    folder = tmp_path_factory.mktemp("project")
    for name in NAMES:
        shutil.copy(HERE / name, folder)
    settings = {"include": NAMES, "typeCheckingMode": "strict", "reportUnusedExpression": False}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    return folder


def run(project: Path, *command: str) -> str:
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=project).stdout


def test_pyright_flags_exactly_the_marked_lines(project: Path) -> None:
    found = json.loads(run(project, "pyright", "--outputjson", "--pythonpath", sys.executable))
    assert found["summary"]["filesAnalyzed"] == 2, found
    for name in NAMES:
        errors = [d for d in found["generalDiagnostics"] if d["file"].endswith(name) and d["severity"] == "error"]
        assert {d["range"]["start"]["line"] + 1 for d in errors} == expected(name), errors


def test_mypy_flags_exactly_the_marked_lines(project: Path) -> None:
    out = run(project, "mypy", "--strict", *NAMES)
    for name in NAMES:
        assert {int(number) for number in re.findall(rf"^{name}:(\d+): error", out, re.MULTILINE)} == expected(name), (
            out
        )
