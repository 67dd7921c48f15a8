"""``reperio verify``, ``reperio stats`` and ``reperio doctor``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

import reperio as package
from reperio import Collection
from reperio.extras import EXTRAS


def test_a_sound_collection_passes(as_json: Callable[..., Any], reperio: Callable[..., Result], notes: Path) -> None:
    assert as_json("verify", notes) == {"ok": True, "documents": 4, "problems": []}
    assert "4 documents" in reperio("verify", notes).stdout


def test_an_altered_checkpoint_is_named_and_exits_with_1(reperio: Callable[..., Result], notes: Path) -> None:
    largest = max((file for file in (notes / "indexes").rglob("*") if file.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 255
    largest.write_bytes(content)
    result = reperio("verify", notes, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert not report["ok"]
    assert "bm25" in report["problems"][0]
    plain = reperio("verify", notes)
    assert plain.exit_code == 1
    assert report["problems"][0] in plain.stdout.replace("\n", "")


def test_stats_are_those_of_the_library(
    as_json: Callable[..., Any], reperio: Callable[..., Result], notes: Path
) -> None:
    with Collection.open(notes, mode="r") as collection:
        expected = json.loads(json.dumps(collection.stats().to_dict()))
    found = as_json("stats", notes)
    for stats in (found, expected):  # what is in memory differs from one moment to the next
        size, held = stats.pop("resident_bytes"), stats["signals"]["bm25"].pop("resident")
        assert size is None or size > held >= 0
    assert found == expected
    shown = reperio("stats", notes).stdout
    (generation,) = expected["signals"]["bm25"]["generations"]
    assert f"bm25: {generation} " in shown
    assert "segments 1" in shown
    assert "memory of this process" in shown
    assert "length (number)" in shown
    assert "bm25" in shown


def test_doctor_knows_every_extra(as_json: Callable[..., Any], reperio: Callable[..., Result]) -> None:
    found = as_json("doctor")
    assert set(found["extras"]) == set(EXTRAS)
    assert found["extras"]["cli"]["installed"]
    assert found["versions"]["reperio"] == package.__version__
    shown = reperio("doctor").stdout
    for name, extra in found["extras"].items():
        assert name in shown
        assert extra["installed"] or extra["install"] in shown


def test_doctor_works_with_the_cli_extra_alone() -> None:
    hidden = {module for name, modules in EXTRAS.items() if name != "cli" for module in modules}
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(hidden)!r}))\n"
        "from reperio.cli import main; sys.argv = ['reperio', 'doctor', '--json']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["devices"] == []
    assert found["versions"]["FAISS"] == "not installed"
    missing = {name: extra["install"] for name, extra in found["extras"].items() if not extra["installed"]}
    assert missing == {name: f"pip install 'reperio[{name}]'" for name in EXTRAS if name != "cli"}


def test_doctor_imports_nothing_heavy_but_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from reperio.cli.doctor import diagnose; diagnose()\n"
        "sys.stdout.write(' '.join(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"faiss", "transformers", "sentence_transformers", "pyarrow", "sqlalchemy", "matplotlib"} & set(loaded)


def test_doctor_finds_two_builds_of_faiss(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    for name in ("faiss_cpu", "faiss_gpu"):
        folder = tmp_path / f"{name}-1.15.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.15\n")
        (folder / "top_level.txt").write_text("faiss\n")
    code = "import sys; sys.modules['torch'] = None; from reperio.cli.doctor import diagnose as d; print(*d().problems)"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert "faiss-cpu 1.15 and faiss-gpu 1.15" in done.stdout
    assert "uninstall" in done.stdout
