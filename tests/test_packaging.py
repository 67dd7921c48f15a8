"""The package is whole, light to import, and names the extra that is missing."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import reperio
from reperio import errors
from reperio.errors import ConfigurationError, MissingDependency
from reperio.extras import EXTRAS, load
from reperio.registry import BUILT_IN, resolve

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUP = PROJECT["tool"]["setuptools"]
HEAVY = "torch transformers sentence_transformers faiss scipy sqlalchemy pandas pyarrow psycopg numba matplotlib rich"


def modules() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, folder in SETUP["package-dir"].items():
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([name, *(p for p in parts if p != "__init__")])] = file
    return found


def test_every_package_is_listed() -> None:
    packages = {name for name, file in modules().items() if file.name == "__init__.py"}
    assert packages == set(SETUP["packages"])


def test_every_module_is_installed() -> None:
    missing = [name for name in modules() if importlib.util.find_spec(name) is None]
    assert not missing, f"{missing} are new: run `make install`"


def test_one_class_has_one_identity() -> None:
    assert not {"sdk", "indexes", "rerankers", "connectors"} & set(sys.modules)


def test_every_public_name_is_there_and_says_where_it_is_not() -> None:
    for name in reperio.__all__:
        assert getattr(reperio, name) is not None
        assert name in dir(reperio)
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = reperio.nothing  # type: ignore[attr-defined]


def test_no_module_is_named_like_an_exported_function() -> None:
    names = {name.rpartition(".")[2] for name in modules()}
    assert not names & {name for name in reperio.__all__ if name.islower()}


def test_every_registered_component_is_there() -> None:
    for name in BUILT_IN:
        assert resolve(name).__name__ == name


def test_every_error_is_listed_and_drawn() -> None:
    tree = errors.__doc__ or ""
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.ReperioError)
        assert re.search(rf"\b{name}\b", tree), f"{name} is missing from the tree"


def test_importing_is_light() -> None:
    code = "import sys, reperio; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {*HEAVY.split(), "numpy", "pydantic", "typer"}


def test_importing_every_name_loads_nothing_heavy() -> None:
    code = "import sys, reperio; [getattr(reperio, n) for n in reperio.__all__]; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & set(HEAVY.split())


def test_importing_takes_less_than_a_third_of_a_second() -> None:
    code = "import time; t = time.process_time(); import reperio; print(time.process_time() - t)"
    runs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in range(3)
    ]
    assert min(runs) <= 0.3


def test_a_missing_package_names_its_extra() -> None:
    with pytest.raises(MissingDependency, match=r"pip install 'reperio\[faiss\]'"):
        load("a_package_that_is_not_there", extra="faiss")


def test_a_package_that_cannot_be_loaded_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAISS for GPUs raises where the libraries of CUDA are missing."""
    (tmp_path / "lacking.py").write_text("raise RuntimeError('nvidia-cublas-cu12 is missing')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"lacking is installed, .* nvidia-cublas-cu12 is missing"):
        load("lacking", extra="faiss-gpu")


def test_an_extra_is_named_when_its_package_is_hidden(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "from reperio.indexes import FaissIndex; import numpy as np\n"
        "from reperio.errors import MissingDependency\n"
        "try: FaissIndex().add(np.arange(1), np.ones((1, 4), np.float32))\n"
        "except MissingDependency as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "pip install 'reperio[faiss]'" in out


def test_every_extra_in_the_code_is_declared() -> None:
    declared = PROJECT["project"]["optional-dependencies"]
    assert set(EXTRAS) <= set(declared)
    used = {m for file in modules().values() for m in re.findall(r'extra="([^"]+)"', file.read_text())}
    assert used <= set(declared)
