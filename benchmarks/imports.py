"""What `import reperio` costs, and what the core install weighs."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib.metadata import distribution, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from benchmarks.measuring import spread, table


def run() -> dict[str, Any]:
    seconds = {name: spread([_import(name) for _ in range(7)]) for name in ("reperio", "numpy", "faiss")}
    seconds["sentence_transformers"] = spread([_import("sentence_transformers") for _ in range(2)])
    table([{"import": name, "seconds": s["median"], "min": s["min"], "max": s["max"]} for name, s in seconds.items()])
    sizes = {name: _size(name) for name in sorted(_core("reperio"))}
    megabytes = sum(sizes.values()) / 1e6
    print(f"core install without torch: {megabytes:.0f} MB in {len(sizes)} packages")
    return {"import seconds": seconds, "core megabytes": megabytes, "packages": {n: s / 1e6 for n, s in sizes.items()}}


def _import(name: str) -> float:
    code = f"import time; t = time.perf_counter(); import {name}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


def _core(name: str) -> set[str]:
    """A package and all that it needs, extras left out."""
    out, todo = set[str](), [name]
    while todo:
        one = todo.pop().lower()
        if one in out:
            continue
        out.add(one)
        needs = (Requirement(text) for text in requires(one) or [])
        todo += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return out


def _size(name: str) -> int:
    root = Path(sysconfig.get_paths()["purelib"])
    files = distribution(name).files or []
    paths = {Path(str(file.locate())) for file in files}
    if name == "reperio":  # installed as links: weigh what they point to
        paths = {p for folder in ("sdk", "indexes", "rerankers", "connectors") for p in Path(folder).rglob("*.py")}
    return sum(p.stat().st_size for p in paths if p.is_file() and (name == "reperio" or root in p.parents))
