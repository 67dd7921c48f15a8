"""``reperio doctor``: what is installed here, what is missing, and what would clash."""

from __future__ import annotations

import platform
import re
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import distributions, packages_distributions, version
from importlib.util import find_spec
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

import reperio
from reperio.extras import EXTRAS, load

_OPENMP = re.compile(r"lib(gomp|iomp5|omp)\b.*\.(so|dylib)|libiomp5md\.dll")


@dataclass(frozen=True, slots=True)
class Extra:
    """One extra of this package.

    Attributes
    ----------
    installed
        Whether all its modules are there.
    modules
        Each module's distributions with their versions; empty where it is missing.
    install
        The command that installs it.
    """

    installed: bool
    modules: Mapping[str, Sequence[str]]
    install: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes
    ----------
    versions
        Of Reperio, Python, the platform and SQLite.
    extras
        By name.
    devices
        Where models can run, the best first; empty without torch.
    openmp
        Every OpenMP library that an installed package carries.
    problems
        What will not work, or not reliably.
    """

    versions: Mapping[str, str]
    extras: Mapping[str, Extra]
    devices: Sequence[str]
    openmp: Sequence[str]
    problems: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def view(self) -> RenderableType:
        """Versions, extras and problems for the terminal."""
        facts = Table(box=None, show_header=False, pad_edge=False)
        for name, value in self.versions.items():
            facts.add_row(Text(name, "dim"), Text(value))
        facts.add_row(Text("devices", "dim"), Text(", ".join(self.devices) or "unknown without torch"))
        facts.add_row(Text("OpenMP", "dim"), Text("\n".join(self.openmp) or "none carried by a package"))
        extras = Table("extra", "", "modules, or how to install it", box=SIMPLE_HEAD, pad_edge=False)
        for name, extra in self.extras.items():
            extras.add_row(name, *_extra_cells(extra))
        verdict = [Text.assemble(("problem  ", "bold red"), problem) for problem in self.problems]
        return Group(facts, extras, *(verdict or [Text("no problems found", "green")]))


def diagnose() -> Diagnosis:
    """Look at this machine; of what is heavy, only torch is imported."""
    devices, torch_problems = _devices()
    openmp = _openmp()
    return Diagnosis(
        versions={
            "reperio": reperio.__version__,
            "Python": f"{platform.python_version()} ({sys.executable})",
            "platform": platform.platform(),
            "SQLite": sqlite3.sqlite_version,
            "FAISS": _faiss_build(),
        },
        extras={name: _extra(name, modules) for name, modules in EXTRAS.items()},
        devices=devices,
        openmp=openmp,
        problems=[*torch_problems, *_faiss_problems(), *_openmp_problems(openmp)],
    )


def _extra_cells(extra: Extra) -> tuple[str, str]:
    if not extra.installed:
        return "[yellow]missing[/]", escape(extra.install)
    return "[green]installed[/]", escape(", ".join(" + ".join(found) for found in extra.modules.values()))


def _extra(name: str, modules: Sequence[str]) -> Extra:
    found = {module: _carriers(module) for module in modules}
    installed = all(_present(module) for module in modules)
    install = f"pip install 'reperio[{name}]'"
    if name == "faiss-gpu":  # the same module, another build: one must go before the other comes
        install = f"pip uninstall faiss-cpu && {install}" if installed else install
        found = {module: [one for one in carriers if "gpu" in one] for module, carriers in found.items()}
        installed = installed and any(found.values())
    return Extra(installed, found, install)


def _present(module: str) -> bool:
    return find_spec(module) is not None


@cache
def _owners() -> Mapping[str, Sequence[str]]:
    return packages_distributions()


def _carriers(module: str) -> list[str]:
    """Distributions that install this module, with versions; nothing is imported."""
    if not _present(module):
        return []
    return [f"{name} {version(name)}" for name in sorted(set(_owners().get(module, ())))]


def _faiss_build() -> str:
    return " + ".join(_carriers("faiss")) or ("of unknown origin" if _present("faiss") else "not installed")


def _faiss_problems() -> list[str]:
    carriers = _carriers("faiss")
    if len(carriers) < 2:
        return []
    return [f"{' and '.join(carriers)} overwrite each other: uninstall all of them, then install one."]


def _devices() -> tuple[list[str], list[str]]:
    """Devices of torch, and what is wrong with it."""
    if not _present("torch"):
        return [], []
    try:
        torch = load("torch", extra="models")
    except (ImportError, OSError) as error:
        return [], [f"torch is installed but cannot be loaded: {error}"]
    cuda = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [*cuda, *mps, f"cpu ({torch.get_num_threads()} threads)"], []


def _openmp() -> list[str]:
    return sorted(
        f"{file.name} of {one.name}" for one in distributions() for file in one.files or () if _OPENMP.match(file.name)
    )


def _openmp_problems(found: Sequence[str]) -> list[str]:
    """Copies of GNU's library get along on Linux; two vendors' may hang or crash, as any two do on macOS."""
    kinds = {match[1] or "iomp5" for one in found if (match := _OPENMP.match(one.partition(" ")[0]))}
    if len(kinds) < 2 and not (sys.platform == "darwin" and len(found) > 1):
        return []
    return [
        f"Several OpenMP libraries may clash in one process: {'; '.join(found)}. If it hangs, set OMP_NUM_THREADS=1."
    ]
