"""Where packages lie on this machine, found without importing them."""

from __future__ import annotations

import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

from reperio.errors import ConfigurationError

STDLIB = "stdlib"
"""The name that stands for the whole standard library."""

_LIB = Path(sysconfig.get_path("stdlib"))

# Tests, demonstrations, and one whose import changes the terminal; posix and nt are told as os.
_LEFT_OUT = {"idlelib", "lib2to3", "nt", "posix", "readline", "test", "turtledemo", "xxlimited", "xxsubtype"}

_TESTS = {"conftest", "test", "tests"}


@dataclass(frozen=True, slots=True)
class Package:
    """A top-level module or package.

    Attributes
    ----------
    name
        As it is imported.
    label
        What it belongs to: `STDLIB`, or its own name.
    roots
        Its file, or its folders; none where it is written in C.
    """

    name: str
    label: str
    roots: tuple[Path, ...]

    @property
    def standard(self) -> bool:
        """Whether it is part of the standard library."""
        return self.label == STDLIB

    def modules(self, *, private: bool) -> Iterator[tuple[str, Path, str]]:
        """Name, file, and that file's path from the folder that holds the package; sorted, tests left out."""
        for root in self.roots:
            for name, file in _walk(root, self.name, private=private):
                yield name, file, file.relative_to(root.parent).as_posix()


def find(names: Sequence[str] | None, *, private: bool) -> list[Package]:
    """Packages by name, `STDLIB` taken apart, each once; None for the standard library and all that is installed.

    Raises
    ------
    ConfigurationError
        If a package that is named is not installed, or has no Python source.
    """
    found: dict[str, Package] = {}
    for name in names if names is not None else [STDLIB, *_installed(private=private)]:
        if name == STDLIB:
            for module in sorted(sys.stdlib_module_names - _LEFT_OUT):
                if _wanted(module, private=private) and (package := _standard(module)):
                    found.setdefault(module, package)
        elif package := _standard(name) if name in sys.stdlib_module_names else _other(name):
            found.setdefault(name, package)
        elif names is not None:
            fix = f"Name {STDLIB!r}, one of its modules, or an installed package, as it is imported."
            raise ConfigurationError(f"No package with Python source is called {name!r}.", fix)
    return list(found.values())


def compiled(name: str) -> ModuleType | None:
    """A module of the standard library that is written in C, imported; None if it is anything else."""
    if name not in sys.stdlib_module_names:
        return None
    if name not in sys.builtin_module_names:
        spec = PathFinder.find_spec(name)
        # A file of that name in the working folder would be found first: only the library's own is imported.
        if spec is None or spec.origin is None or not _is_library_extension(Path(spec.origin)):
            return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return import_module(name)
    except ImportError:
        return None


def _is_library_extension(file: Path) -> bool:
    return file.is_relative_to(_LIB) and file.name.endswith(tuple(EXTENSION_SUFFIXES))


def _standard(name: str) -> Package | None:
    for root in (_LIB / f"{name}.py", _LIB / name):
        if root.is_file() or (root / "__init__.py").is_file():
            return Package(name, STDLIB, (root,))
    return Package(name, STDLIB, ()) if compiled(name) else None


def _other(name: str) -> Package | None:
    spec = PathFinder.find_spec(name) if name.isidentifier() else None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Package(name, name, tuple(sorted(map(Path, spec.submodule_search_locations))))
    source = spec.origin is not None and spec.origin.endswith(".py")
    return Package(name, name, (Path(str(spec.origin)),)) if source else None


def _installed(*, private: bool) -> list[str]:
    names = (name for name in packages_distributions() if name not in sys.stdlib_module_names)
    return sorted(name for name in names if name.isidentifier() and _wanted(name, private=private))


def _walk(root: Path, name: str, *, private: bool) -> Iterator[tuple[str, Path]]:
    if root.is_file():
        yield name, root
        return
    own = root / "__init__.py"
    if own.is_file():
        yield name, own
    for entry in sorted(root.iterdir()):
        if not entry.stem.isidentifier() or entry == own or not _wanted(entry.stem, private=private):
            continue
        folder = entry.is_dir() and (not own.is_file() or (entry / "__init__.py").is_file())
        if folder or (entry.suffix == ".py" and entry.is_file()):
            yield from _walk(entry, f"{name}.{entry.stem}", private=private)


def _wanted(name: str, *, private: bool) -> bool:
    return name not in _TESTS and (private or not name.startswith("_"))
