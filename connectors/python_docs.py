"""Docstrings of the Python standard library and of installed packages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reperio.connectors.docstrings import Docstring, borrowed, of_compiled, of_compiled_module, of_source, parse
from reperio.connectors.python_packages import Package, compiled, find
from reperio.connectors.records import UNREADABLE, Report
from reperio.errors import ConfigurationError
from reperio.types import Document, FieldSpan, Provenance


class PythonDocsSource:
    """What Python's own library and the installed packages say of themselves: real text on every machine.

    Python source is read, never run; modules written in C are imported, those of the standard library only. A
    document is one docstring. Its id is the qualified name (``heapq.merge``); its text is the name, the signature
    and, from the second line on, the docstring without its indentation, each a field of the provenance; its metadata
    are ``module``, ``package``, ``kind`` (module, class, function, method) and ``name``.

    What a standard module passes on from its compiled twin is told under the public name (``os.listdir``). Where a
    package and one of its modules define the same name, the second one's id ends in its kind: ``a.b (module)``.
    Tests are left out. A file that cannot be read as Python is counted (``unreadable_files`` in `reperio.meter`) and
    told in a warning at the end of the pass.

    Parameters
    ----------
    packages
        What to read, in this order: ``"stdlib"`` for the whole standard library, one of its modules, or an installed
        package, by the name that is imported. None reads the standard library and everything installed.
    private
        Whether to keep names that start with an underscore.
    min_words
        Shortest docstring to keep, in words.

    Raises
    ------
    ConfigurationError
        If a package is not installed, or has no Python source.
    """

    def __init__(self, packages: Sequence[str] | None = None, *, private: bool = False, min_words: int = 3) -> None:
        if isinstance(packages, str):
            raise ConfigurationError(f"packages is the string {packages!r}.", f"Give a list: [{packages!r}].")
        self._packages = find(packages, private=private)
        self._private = private
        self._min_words = min_words

    @property
    def name(self) -> str:
        """``"python"``; a document's provenance names its file, from the folder that holds the package."""
        return "python"

    def __repr__(self) -> str:
        return f"PythonDocsSource({list(dict.fromkeys(package.label for package in self._packages))})"

    def documents(self) -> Iterator[Document]:
        """Every docstring, package by package, module by module, top to bottom."""
        report = Report(self.name)
        for package in self._packages:
            seen: set[str] = set()
            for module, source, found in self._docstrings(package, report):
                if len(found.text.split()) >= self._min_words:
                    yield _document(_unique(found, seen), module, package.label, source, found)
        report.tell()

    def _docstrings(self, package: Package, report: Report) -> Iterator[tuple[str, str, Docstring]]:
        """Module, file and docstring, one after the other."""
        for module, file, source in package.modules(private=self._private):
            try:
                tree = parse(file.read_bytes())
            except (OSError, SyntaxError, ValueError, RecursionError):
                report.add(UNREADABLE, source)
                continue
            own: set[str] = set()
            for found in of_source(tree, module, private=self._private):
                own.add(found.name)
                yield module, source, found
            if package.standard:
                for found in self._passed_on(module, borrowed(tree)):
                    if found.name not in own:
                        own.add(found.name)
                        yield module, source, found
        if package.standard and not package.roots and (made := compiled(package.name)):
            for found in of_compiled_module(made, private=self._private):
                yield package.name, package.name, found

    def _passed_on(self, module: str, imports: Iterator[tuple[str, str]]) -> Iterator[Docstring]:
        for origin, name in imports:
            if origin.startswith("_") or origin in {"posix", "nt", "pyexpat"}:
                made = compiled(origin)
                names = sorted(vars(made)) if made and name == "*" else [name]
                if made is not None:
                    yield from of_compiled(made, names, module, private=self._private)


def _unique(found: Docstring, seen: set[str]) -> str:
    name, count = found.name, 1
    while name in seen:
        name = f"{found.name} ({found.kind}{'' if count == 1 else f' {count}'})"
        count += 1
    seen.add(name)
    return name


def _document(name: str, module: str, package: str, source: str, found: Docstring) -> Document:
    head = found.name + found.signature
    text = f"{head}\n{found.text}"
    fields = [FieldSpan("name", 0, len(found.name))]
    if found.signature:
        fields.append(FieldSpan("signature", len(found.name), len(head)))
    fields.append(FieldSpan("docstring", len(head) + 1, len(text)))
    metadata = {"module": module, "package": package, "kind": found.kind, "name": found.name}
    return Document(name, text, metadata, Provenance(source, key=found.name, fields=tuple(fields), line=found.line))
