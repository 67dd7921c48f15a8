"""A damaged folder is refused, or answers as before; one that is made to fit is never followed out of bounds."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest

from reperio.artifacts import new_folder, read_folder
from reperio.testing.damage import damaged, forged, held, resealed
from reperio.testing.fuzz import Attack, Job, Loader, campaign
from reperio.testing.loaders import NATIVE, OWN

LOADERS = "reperio.testing.loaders:loaders"
PLAIN, RESEALED = 60, 40


@pytest.mark.parametrize(
    ("attack", "names", "files"), [("plain", (*OWN, *NATIVE), PLAIN), ("resealed", OWN, RESEALED)], ids=str
)
def test_no_damaged_folder_crashes_hangs_or_answers_wrong(attack: Attack, names: tuple[str, ...], files: int) -> None:
    tallies = campaign([Job(LOADERS, name, attack, 2026, 0, files) for name in names])
    assert {loader: tally.examples for (loader, _), tally in tallies.items() if tally.failures} == {}
    assert all(tally.files == files for tally in tallies.values())
    assert sum(tally.refused for tally in tallies.values()) > len(names) * files // 3


def _save(path: Path, number: int) -> None:
    with new_folder(path, "thing", {"number": number}) as folder:
        (folder / "data.bin").write_bytes(bytes([number]) * 40)


def _ask(path: Path) -> object:
    """A loader that believes what it reads: it dies of some bytes, and takes any room."""
    read_folder(path, "thing", checksums=False)
    data = (path / "data.bin").read_bytes()
    if data[:1] != data[1:2]:
        os.kill(os.getpid(), signal.SIGSEGV)
    return np.empty(2**34 if 255 in data else 1, dtype=np.uint8).size, data


def careless() -> list[Loader]:
    return [Loader("careless", _save, _ask)]


def test_a_careless_loader_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    (tally,) = campaign([Job("test_fuzz:careless", "careless", "plain", 1, 0, 250)]).values()
    assert tally.files == 250
    kinds = {what.split(" at ")[0] for what in tally.failures}
    assert {"answers differ in silence", "dies: SIGSEGV"} <= kinds
    assert any("Memory" in kind for kind in kinds)


def test_damage_is_decided_by_a_seed_and_resealing_mends_checksums(tmp_path: Path) -> None:
    _save(tmp_path / "x", 0)
    _save(tmp_path / "y", 1)
    files, other = held(tmp_path / "x"), held(tmp_path / "y")
    assert all(
        damaged(files, other, random.Random(n)) == damaged(files, other, random.Random(n))
        and forged(files, other, random.Random(n)) == forged(files, other, random.Random(n))
        for n in range(50)
    )
    (tmp_path / "x" / "data.bin").write_bytes(b"another")
    for name, data in resealed(held(tmp_path / "x")).items():
        (tmp_path / "x" / name).write_bytes(data)
    assert read_folder(tmp_path / "x", "thing") == {"number": 0}
