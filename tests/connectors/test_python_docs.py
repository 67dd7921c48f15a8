"""Docstrings: real text on every machine, found without running anything."""

from __future__ import annotations

import heapq
import inspect
import itertools
import json
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from reperio import meter
from reperio.connectors import PythonDocsSource
from reperio.connectors.docstrings import of_compiled_module
from reperio.errors import ConfigurationError
from reperio.types import Document


@pytest.fixture(scope="module")
def stdlib() -> dict[str, Document]:
    documents = list(PythonDocsSource(["stdlib"]).documents())
    found = {document.id: document for document in documents}
    assert len(found) == len(documents)
    return found


def test_the_standard_library_has_thousands_of_texts(stdlib: dict[str, Document]) -> None:
    assert len(stdlib) > 5000
    kinds = Counter(document.metadata["kind"] for document in stdlib.values())
    assert set(kinds) == {"module", "class", "function", "method"}
    assert {document.metadata["package"] for document in stdlib.values()} == {"stdlib"}


def test_heapq_merge_is_there_and_every_part_of_it_is_traced(stdlib: dict[str, Document]) -> None:
    merge = stdlib["heapq.merge"]
    assert merge.text == f"heapq.merge(*iterables, key=None, reverse=False)\n{inspect.getdoc(heapq.merge)}"
    assert merge.metadata == {"module": "heapq", "package": "stdlib", "kind": "function", "name": "heapq.merge"}
    where = merge.provenance
    assert where is not None
    assert (where.source, where.key) == ("heapq.py", "heapq.merge")
    assert where.line == inspect.getsourcelines(heapq.merge)[1]
    assert [(f.field, merge.text[f.start : f.end]) for f in where.fields] == [
        ("name", "heapq.merge"),
        ("signature", "(*iterables, key=None, reverse=False)"),
        ("docstring", inspect.getdoc(heapq.merge)),
    ]


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("json.dumps", json.dumps),
        ("json.decoder.JSONDecoder", json.JSONDecoder),
        ("json.decoder.JSONDecoder.raw_decode", json.JSONDecoder.raw_decode),
        ("itertools.chain.from_iterable", itertools.chain.from_iterable),
        ("builtins.str.casefold", str.casefold),
        ("builtins.str.maketrans", str.maketrans),
        ("builtins.sorted", sorted),
        ("math", __import__("math")),
    ],
)
def test_a_docstring_is_the_one_that_python_shows(stdlib: dict[str, Document], name: str, of: object) -> None:
    document = stdlib[name]
    assert document.provenance is not None
    field = document.provenance.fields[-1]
    assert document.text[field.start : field.end] == inspect.getdoc(of)


def test_what_a_module_passes_on_from_its_compiled_twin_has_the_public_name(stdlib: dict[str, Document]) -> None:
    assert {"os.listdir", "struct.pack", "collections.deque", "decimal.Decimal", "io.open"} <= set(stdlib)
    assert not [name for name in stdlib if any(part.startswith("_") for part in name.split("."))]
    assert "functools.RLock" not in stdlib  # imported for its own use, not in __all__
    pack = stdlib["builtins.sorted"]
    assert pack.text.startswith("builtins.sorted(iterable, /, *, key=None, reverse=False)\n")


def test_two_passes_are_equal(stdlib: dict[str, Document]) -> None:
    again = list(PythonDocsSource(["heapq", "json", "math"]).documents())
    assert again == list(PythonDocsSource(["heapq", "json", "math"]).documents())
    assert all(stdlib[document.id] == document for document in again)
    assert [d.id for d in again].index("json") < [d.id for d in again].index("math")


def test_installed_packages_are_read_and_not_imported() -> None:
    script = """
        import sys
        from reperio.connectors import PythonDocsSource
        found = [d for d in PythonDocsSource(["sqlalchemy", "networkx", "hypothesis"]).documents()]
        assert len(found) > 1000, len(found)
        assert {d.metadata["package"] for d in found} == {"sqlalchemy", "networkx", "hypothesis"}
        assert any(d.provenance.source.startswith("networkx/algorithms/") for d in found)
        assert not {"sqlalchemy", "networkx", "hypothesis"} & set(sys.modules), set(sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_everything_installed_is_read_where_no_package_is_named() -> None:
    source = PythonDocsSource()
    shown = repr(source)
    assert all(f"'{name}'" in shown for name in ("stdlib", "numpy", "pydantic", "pytest", "reperio"))
    assert source.name == "python"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package on the path, to be filled."""
    folder = tmp_path / "oddpackage"
    folder.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_a_package_is_read_never_run(package: Path) -> None:
    (package / "__init__.py").write_text(
        textwrap.dedent('''
        """What the package is for."""
        raise SystemExit("this file was run")

        def twice(x, /, *, y: int = 2):
            """Say it more than once."""
            def inner():
                """Not told because it is inside."""

        if False:
            async def waits(*a, **k):
                """For one platform only."""
        else:
            def waits():
                """Never the second one."""

        class Thing(object):
            """A thing with parts."""

            def _hidden(self):
                """This one is private."""

            @property
            def part(self):
                """One part of it."""

            @part.setter
            def part(self, value):
                """The setter says nothing."""

            class Inner:
                """A class inside a class."""

        def short():
            """Too short."""
        ''')
    )
    found = {d.id: d for d in PythonDocsSource(["oddpackage"]).documents()}
    assert list(found) == [
        "oddpackage",
        "oddpackage.twice",
        "oddpackage.waits",
        "oddpackage.Thing",
        "oddpackage.Thing.part",
        "oddpackage.Thing.Inner",
    ]
    assert found["oddpackage.twice"].text == "oddpackage.twice(x, /, *, y: int=2)\nSay it more than once."
    assert found["oddpackage.waits"].text == "oddpackage.waits(*a, **k)\nFor one platform only."
    assert found["oddpackage.Thing.part"].text.endswith("One part of it.")
    assert str(found["oddpackage.twice"].provenance) == "oddpackage/__init__.py:5[oddpackage.twice]"
    private = {d.id for d in PythonDocsSource(["oddpackage"], private=True, min_words=1).documents()}
    assert private - set(found) == {"oddpackage.Thing._hidden", "oddpackage.short"}


def test_one_name_defined_twice_gives_two_ids(package: Path) -> None:
    (package / "__init__.py").write_text('def both():\n    """A function of this name."""\n')
    (package / "both.py").write_text('"""A module of this name."""\n')
    (package / "sub").mkdir()
    (package / "sub" / "__init__.py").write_text('"""A package inside a package."""\n')
    (package / "tests").mkdir()
    (package / "tests" / "__init__.py").write_text('"""Tests are left out always."""\n')
    (package / "data").mkdir()
    (package / "data" / "template.py").write_text('"""Not part of the package."""\n')
    found = [(d.id, d.metadata["kind"]) for d in PythonDocsSource(["oddpackage"]).documents()]
    assert found == [
        ("oddpackage.both", "function"),
        ("oddpackage.both (module)", "module"),
        ("oddpackage.sub", "module"),
    ]


def test_what_is_not_python_is_counted_and_told(package: Path) -> None:
    (package / "__init__.py").write_text('"""Some words to keep."""\n')
    (package / "old.py").write_text('print "python 2"\n')
    (package / "nul.py").write_bytes(b"x = '\0'\n")
    (package / "latin.py").write_bytes('# coding: latin-1\n"""Un café très chaud."""\n'.encode("latin-1"))
    (package / "half.py").write_text('"""Half a \\ud800 character here."""\n')
    source = PythonDocsSource(["oddpackage"])
    with (
        meter.measure() as counts,
        pytest.warns(UserWarning, match=r"2 files skipped.*oddpackage/nul\.py.*oddpackage/old\.py"),
    ):
        found = {d.id: d.text for d in source.documents()}
    assert counts["unreadable_files"] == 2
    assert found["oddpackage.latin"].endswith("Un café très chaud.")
    assert found["oddpackage.half"].endswith("Half a \\ud800 character here.")


def test_a_file_in_the_working_folder_is_not_taken_for_the_librarys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_bisect.py").write_text("raise SystemExit('this file was run')")
    monkeypatch.delitem(sys.modules, "_bisect", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    ids = {d.id for d in PythonDocsSource(["bisect"]).documents()}
    assert "bisect.bisect_left" in ids


def test_an_unknown_package_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match="'nosuchpackage'"):
        PythonDocsSource(["heapq", "nosuchpackage"])
    with pytest.raises(ConfigurationError, match=r"\['heapq'\]"):
        PythonDocsSource("heapq")


def test_signatures_of_compiled_functions_are_declared_not_evaluated() -> None:
    found = {d.name: d.signature for d in of_compiled_module(__import__("builtins"), private=False)}
    assert found["builtins.len"] == "(obj, /)"
    assert found["builtins.str.split"] == "(sep=None, maxsplit=-1)"
    assert found["builtins.str.upper"] == "()"
    assert found["builtins.dict"] == ""
