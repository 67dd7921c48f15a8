"""Rows of databases, records of files and docstrings in, documents out: each knows where its text came from."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reperio.connectors.files import FileSource
    from reperio.connectors.python_docs import PythonDocsSource
    from reperio.connectors.sql import SQLSource

__all__ = ["FileSource", "PythonDocsSource", "SQLSource"]

_WHERE = {"FileSource": "files", "PythonDocsSource": "python_docs", "SQLSource": "sql"}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__]
