"""The docstrings of one module: of Python source by reading it, of compiled modules by looking at them."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["module", "class", "function", "method"]

_Definition: TypeAlias = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Docstring:
    """What one object says of itself.

    Attributes
    ----------
    name
        Qualified, ``heapq.merge``.
    signature
        ``(*iterables, key=None, reverse=False)``; empty for modules, classes, and where none is known.
    text
        The docstring, its indentation taken away as `inspect.cleandoc` does; never empty.
    kind
        What it is.
    line
        Where its definition starts, counted from 1; None in compiled modules.
    """

    name: str
    signature: str
    text: str
    kind: Kind
    line: int | None


def parse(source: bytes) -> ast.Module:
    """The tree of a file's bytes, whose encoding is read from them; nothing of it is run.

    Raises
    ------
    SyntaxError, ValueError, RecursionError
        If the source is not Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return ast.parse(source)


def of_source(tree: ast.Module, module: str, *, private: bool) -> Iterator[Docstring]:
    """Docstrings of a module's source, top to bottom.

    Functions inside functions are left out. A name that is defined more than once (overloads, a property's setter,
    one definition for each platform) counts once, with the first docstring that it has.

    Parameters
    ----------
    tree
        What `parse` made.
    module
        Qualified name.
    private
        Whether to keep names that start with an underscore.
    """
    if text := _docstring(tree):
        yield Docstring(module, "", text, "module", 1)
    seen: set[str] = set()
    for name, node, kind in _definitions(tree.body, module, "function", private=private):
        text = _docstring(node)
        if text and name not in seen:
            seen.add(name)
            signature = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
            yield Docstring(name, signature, text, kind, node.lineno)


def borrowed(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Pairs of module and name (or ``*``) that a module imports to pass on: ``from _struct import *``.

    Where there is an ``__all__``, a name counts if that lists it.
    """
    listed: set[str] | None = None
    imports: list[tuple[str, str]] = []
    for node in _statements(tree.body):
        if isinstance(node, ast.Assign) and any(ast.unparse(target) == "__all__" for target in node.targets):
            constants = (part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant))
            listed = {value for value in constants if isinstance(value, str)}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports += [(node.module, alias.name) for alias in node.names if alias.asname in {None, alias.name}]
    return ((module, name) for module, name in imports if name == "*" or listed is None or name in listed)


def _docstring(node: ast.Module | _Definition) -> str:
    # A docstring may spell half a character, which no text can hold: it is kept as its escape.
    return (ast.get_docstring(node) or "").encode("utf-8", "backslashreplace").decode()


def _statements(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Statements, those for one platform or version only among them."""
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.TryStar | ast.With | ast.ExceptHandler):
            yield from _statements(ast.iter_child_nodes(node))
        else:
            yield node


def _definitions(
    body: Iterable[ast.AST], where: str, kind: Kind, *, private: bool
) -> Iterator[tuple[str, _Definition, Kind]]:
    for node in _statements(body):
        if isinstance(node, _Definition) and (private or not node.name.startswith("_")):
            name = f"{where}.{node.name}"
            if isinstance(node, ast.ClassDef):
                yield name, node, "class"
                yield from _definitions(node.body, name, "method", private=private)
            else:
                yield name, node, kind


def of_compiled(module: ModuleType, names: Iterable[str], where: str, *, private: bool) -> Iterator[Docstring]:
    """Docstrings of classes and functions written in C.

    Parameters
    ----------
    module
        What holds them.
    names
        Which of its names to look at.
    where
        Qualified name of the module that they are told under.
    private
        Whether to keep names that start with an underscore.
    """
    for name in names:
        found: object = getattr(module, name, None)
        if name.startswith("_") and not private:
            continue
        if isinstance(found, type):
            yield from _of_class(found, f"{where}.{name}", private=private)
        elif inspect.isbuiltin(found):
            yield from _of_object(found, f"{where}.{name}", "function")


def of_compiled_module(module: ModuleType, *, private: bool) -> Iterator[Docstring]:
    """Docstrings of a module written in C, its own first."""
    yield from _of_object(module, module.__name__, "module")
    yield from of_compiled(module, sorted(vars(module)), module.__name__, private=private)


def _of_class(cls: type, name: str, *, private: bool) -> Iterator[Docstring]:
    yield from _of_object(cls, name, "class")
    for own, member in sorted(vars(cls).items()):
        member = getattr(member, "__func__", member)
        if (private or not own.startswith("_")) and (inspect.isroutine(member) or inspect.isdatadescriptor(member)):
            yield from _of_object(member, f"{name}.{own}", "method")


def _of_object(found: object, name: str, kind: Kind) -> Iterator[Docstring]:
    if text := inspect.cleandoc(str(found.__doc__ or "")):
        yield Docstring(name, _signature(found) if kind in {"function", "method"} else "", text, kind, None)


def _signature(found: object) -> str:
    """What C code declares, ``($self, x, /, y=0)``, without the object itself; read, not evaluated."""
    declared = " ".join(str(getattr(found, "__text_signature__", None) or "").split())
    return re.sub(r"^\(\$\w+(, /)?(, )?", "(", declared)
