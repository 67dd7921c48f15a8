"""What every test may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("REPERIO_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def data() -> Callable[[str], Path]:
    """Folder of a real test collection by name; skips where the collections are not at hand."""

    def folder(name: str) -> Path:
        path = DATA / name
        if not path.is_dir():
            pytest.skip(f"the test collection {name!r} is not here: set REPERIO_DATA to the folder that holds it")
        return path

    return folder
