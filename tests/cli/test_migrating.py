"""``reperio migrate``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from reperio import Collection, Document, Signal
from reperio.encoders import GivenVectors
from reperio.indexes import FaissIndex

Run = Callable[..., Result]


def test_a_collection_is_moved_and_told(as_json: Callable[..., Any], reperio: Run, notes: Path, tmp_path: Path) -> None:
    found = as_json("migrate", notes, tmp_path / "moved")
    assert found["ok"]
    assert (found["documents"], found["added"], found["problems"]) == (4, 4, [])
    assert found["digests"][0] == found["digests"][1]
    assert found["signals"]["bm25"]["agreement"]["target"] == 1
    again = reperio("migrate", notes, tmp_path / "moved")
    assert again.exit_code == 0
    assert "moved  4 documents" in again.stdout
    assert found["digests"][0] in again.stdout
    with Collection.open(tmp_path / "moved", mode="r") as moved, Collection.open(notes, mode="r") as before:
        assert moved.search("shell", 4).ids == before.search("shell", 4).ids


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    with Collection.open(tmp_path / "vectors", signals={"dense": Signal(GivenVectors(16), FaissIndex())}) as c:
        rows = np.random.default_rng(0).normal(size=(2500, 16)).astype(np.float32)
        c.upsert([Document(str(i), f"t{i}") for i in range(2500)], embeddings={"dense": rows}, progress=False)
    return tmp_path / "vectors"


def test_an_index_is_given_as_a_factory_a_name_or_json(
    as_json: Callable[..., Any], reperio: Run, vectors: Path, tmp_path: Path
) -> None:
    for number, given in enumerate(["HNSW32", "FlatIndex", '{"type": "FaissIndex", "factory": "SQ8"}']):
        found = as_json("migrate", vectors, tmp_path / str(number), "--index", f"dense={given}")
        target = found["signals"]["dense"]["target"]
        assert (target.get("factory"), target["metric"]) == ([*("HNSW32", None), "SQ8"][number], "cosine")
    coarse = json.dumps({"type": "FaissIndex", "factory": "IVF64,Flat", "train_size": 2500, "options": {"nprobe": 1}})
    poor = reperio("migrate", vectors, tmp_path / "poor", "--index", f"dense={coarse}")
    assert poor.exit_code == 1
    assert "1 problems: there is no collection at" in poor.stdout
    assert "must find 90.0%" in poor.stdout
    assert ".poor.migrating; run it again" in poor.stdout.replace("\n", "")
    assert not json.loads(
        reperio("migrate", vectors, tmp_path / "poor", "--index", f"dense={coarse}", "--json").stdout
    )["ok"]
    assert reperio("migrate", vectors, tmp_path / "poor", "--index", "dense=Flat").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--index", "HNSW32"], "--index is 'HNSW32'"),
        (["--index", "=HNSW32"], "--index is"),
        (["--index", "bm25=Flat", "--index", "bm25=Flat"], "'bm25' twice"),
        (["--index", "bm25={type}"], "no JSON"),
        (["--index", "dense=Flat"], "no signal 'dense'"),
        (["--without", "bm25"], "No signal is left"),
        (["--recall", "7"], "recall is 7.0"),
    ],
)
def test_what_is_wrong_is_told_with_exit_code_2(
    reperio: Run, notes: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    result = reperio("migrate", notes, tmp_path / "moved", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "moved").exists()


def test_what_is_not_there_or_there_already_is_told(reperio: Run, notes: Path, tmp_path: Path) -> None:
    missing = reperio("migrate", tmp_path / "nowhere", tmp_path / "moved")
    assert missing.exit_code == 1
    assert "Check the source" in missing.stderr
    same = reperio("migrate", notes, notes)
    assert same.exit_code == 2
    assert "is the source" in same.stderr
