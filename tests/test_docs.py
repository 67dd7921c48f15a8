"""What is written for readers is run: every Python block, every shown output, every example in a docstring."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import io
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
GUIDE = ROOT / "CONTRIBUTING.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

NOT_PYTHON = {"console", "text", "toml", "yaml", "sql"}
"""The other languages that a page may show. Any further name, ``py`` for one, would go unrun: it is refused."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, its code, its first line in the page, and whether it follows another at once."""

    language: str
    code: str
    line: int
    follows: bool


def blocks(page: Path) -> Iterator[Block]:
    fence = re.compile(r"^( *)(`{3,}|~{3,})([^\n]*)\n(.*?)^\1\2 *$\n?", re.MULTILINE | re.DOTALL)
    text, end = page.read_text(encoding="utf-8"), 0
    for found in fence.finditer(text):
        follows = end > 0 and not text[end : found.start()].strip()
        yield Block(found[3].strip(), dedent(found[4]), text.count("\n", 0, found.start()) + 2, follows)
        end = found.end()


def run(block: Block, page: Path, names: dict[str, Any]) -> str:
    """Run a block; where an expression is followed by ``# → value``, its repr must be that. Returns what it printed."""
    code = "\n" * (block.line - 1) + block.code  # so that a traceback names the line of the page
    lines = code.splitlines()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for statement in ast.parse(code).body:
            shown = re.search(r"# → (.*)$", lines[(statement.end_lineno or 1) - 1])
            if shown is None:
                exec(compile(ast.Module([statement], []), str(page), "exec"), names)
            else:
                assert isinstance(statement, ast.Expr), f"{page}:{statement.lineno}: only an expression has a value"
                value = eval(compile(ast.Expression(statement.value), str(page), "eval"), names)
                assert alike(shown[1].strip(), repr(value)), f"{page}:{statement.lineno}: is {value!r}"
    return printed.getvalue()


def alike(shown: str, found: str) -> bool:
    return doctest.OutputChecker().check_output(shown + "\n", found.rstrip("\n") + "\n", doctest.ELLIPSIS)


def with_python() -> list[Path]:
    """Pages that are run top to bottom; the guide's examples are run as a package of their own."""
    return [page for page in PAGES if page != GUIDE and any(block.language == "python" for block in blocks(page))]


@pytest.mark.parametrize("page", with_python(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_python_block_runs_and_prints_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if (ray := sys.modules.get("ray")) is not None:  # a page begins without a cluster, whatever ran in this process
        ray.shutdown()
    names: dict[str, Any] = {"__name__": "page"}
    printed: str | None = None
    for block in blocks(page):
        if block.language == "python":
            printed = run(block, page, names)
        elif block.language == "text" and block.follows and printed is not None:
            assert alike(block.code.rstrip("\n"), printed), f"{page}:{block.line}: the block above prints\n{printed}"
            printed = None
        else:
            printed = None


def test_no_block_is_in_a_language_that_nobody_looks_at() -> None:
    found = {(str(page.relative_to(ROOT)), b.line, b.language) for page in PAGES for b in blocks(page)}
    assert {where for where in found if where[2] not in {"python", *NOT_PYTHON}} == set()


def test_no_fence_is_missed() -> None:
    for page in PAGES:
        fences = re.findall(r"^ *(?:`{3,}|~{3,})", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(list(blocks(page))), page


def test_the_readme_has_its_five_snippets() -> None:
    snippets = [b for b in blocks(ROOT / "README.md") if b.language == "python"]
    assert len(snippets) == 5


def test_the_examples_of_contributing_are_a_package_that_passes_the_contracts(tmp_path: Path) -> None:
    found = list(blocks(GUIDE))
    *examples, contracts = (block.code for block in found if block.language == "python")
    (declared,) = (tomllib.loads(block.code) for block in found if block.language == "toml")
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {where}\n" for name, where in names.items())
        for group, names in declared["project"]["entry-points"].items()
    )
    for name, text in {
        "my_package.py": "\n".join(examples),
        "my_package-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: my-package\nVersion: 1\n",
        "my_package-1.dist-info/entry_points.txt": points,
        "test_my_package.py": contracts,
        "test_names.py": "from reperio.registry import build\n\n\n"
        "def test_a_published_name_is_built():\n"
        '    assert build({"type": "PhraseReranker"}).spec == {"type": "PhraseReranker"}\n',
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout
    assert passed is not None
    assert int(passed[1]) >= 30


def test_a_wrong_value_a_wrong_output_and_an_error_are_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\n1 + 1  # → 3\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:2: is 2"):
        run(next(blocks(page)), page, {})
    page.write_text("```python\nprint('b')\n```\n\n```text\na\n```\n")
    first, second = blocks(page)
    assert second.follows
    assert not alike(second.code, run(first, page, {}))
    page.write_text("Text.\n\n```python\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError):
        run(next(blocks(page)), page, {})


def modules() -> Iterator[ModuleType]:
    for name, folder in PROJECT["tool"]["setuptools"]["package-dir"].items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            if parts[-1] != "__main__":
                yield importlib.import_module(".".join([name, *(p for p in parts if p != "__init__")]))


def test_every_example_in_a_docstring_holds() -> None:
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report = io.StringIO()
    for module in modules():
        for example in finder.find(module):
            runner.run(example, out=report.write)
    assert runner.failures == 0, report.getvalue()
    assert runner.tries >= 5


def test_the_pages_name_only_extras_that_exist() -> None:
    declared = set(PROJECT["project"]["optional-dependencies"])
    for page in PAGES:
        named = re.findall(r"(?:reperio|\.)\[([a-z, -]+)\]", page.read_text(encoding="utf-8"))
        assert {extra.strip() for part in named for extra in part.split(",")} <= declared, page


def test_the_pages_name_only_commands_that_exist() -> None:
    from typer.main import get_command

    from reperio.cli import app

    commands = set(getattr(get_command(app), "commands", {}))
    for page in PAGES:
        named = set(re.findall(r"(?:^\$ |`)reperio ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert named <= commands, page


def test_the_pages_name_only_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:^\$ |`)make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert named <= targets, page


def test_the_hooks_before_a_commit_are_what_make_test_runs() -> None:
    makefile = (ROOT / "Makefile").read_text()
    checks = re.findall(r"^test:(.*)$", makefile, re.MULTILINE)[0].split()
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]] == [f"make {name}" for name in checks]


def test_the_pages_link_only_to_what_is_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"
