"""How the command starts, and what it needs to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from typer.testing import Result

import reperio.cli


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_a_missing_extra_is_named(module: str) -> None:
    done = run(f"import sys; sys.modules['{module}'] = None; from reperio.cli import main; main()")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"The package '{module}' is not installed. Run: pip install 'reperio[cli]'\n"


def test_help_loads_nothing_heavy_and_starts_in_half_a_second() -> None:
    code = (
        "import sys, time; sys.argv = ['reperio', '--help']\n"
        "from reperio.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: sys.stderr.write(f'{end.code} {time.process_time()} {sorted(sys.modules)}')"
    )
    runs = [run(code) for _ in range(3)]
    assert all("Usage" in done.stdout for done in runs)
    codes, seconds, modules = zip(*(done.stderr.split(" ", 2) for done in runs), strict=True)
    assert set(codes) == {"0"}
    assert min(map(float, seconds)) < 0.5
    for heavy in ("torch", "numpy", "faiss", "sqlalchemy", "pydantic", "reperio.collection"):
        assert f"'{heavy}'" not in modules[0]


def test_every_command_has_help_and_json(reperio: Callable[..., Result]) -> None:
    for command in ("index", "search", "explain", "eval", "verify", "stats", "doctor", "demo"):
        result = reperio(command, "--help")
        assert result.exit_code == 0
        assert "--json" in result.stdout


def test_the_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = reperio.cli.nothing  # type: ignore[attr-defined]
