"""Compiled code that is kept on disk."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

_FAST = """
from reperio.extras import compiled
from apart.near import twice

@compiled
def scaled(value):
    return twice(value)
"""

_NEAR = """
from reperio.extras import compiled
from apart import constants
from apart.constants import OFFSET

@compiled
def twice(value):
    return constants.FACTOR * value + OFFSET
"""

_RUN = "from apart.fast import scaled as f; print(f(10), len(f.stats.cache_hits), f.__qualname__)"


def _answer(folder: Path) -> str:
    command = [sys.executable, "-B", "-c", _RUN]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_compiled_code_is_kept_and_made_again_when_a_module_that_it_is_made_from_changes(tmp_path: Path) -> None:
    package = tmp_path / "apart"
    package.mkdir()
    constants = package / "constants.py"
    for file, text in {"__init__.py": "", "near.py": _NEAR, "fast.py": _FAST}.items():
        (package / file).write_text(text, encoding="utf-8")
    constants.write_text("FACTOR, OFFSET = 2, 0\n", encoding="utf-8")
    assert [_answer(tmp_path), _answer(tmp_path)] == ["20 0 scaled", "20 1 scaled"]
    constants.write_text("FACTOR, OFFSET = 3, 1\n", encoding="utf-8")
    assert _answer(tmp_path) == "31 0 scaled"
    (package / "near.py").write_text(_NEAR.replace("FACTOR *", "FACTOR +"), encoding="utf-8")
    assert _answer(tmp_path) == "14 0 scaled"
