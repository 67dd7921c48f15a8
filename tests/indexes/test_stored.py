"""What a folder holds is looked at before it is believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reperio.errors import CorruptArtifact
from reperio.indexes import FlatIndex, InvertedIndex, QueryAwareIndex
from reperio.indexes.stored import ascends, finite, offsets_of, read_array, whole, within
from reperio.testing.damage import held, resealed
from reperio.testing.loaders import dense, sparse


def rewritten(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change an array, and make the checksums fit."""
    np.save(folder / name, change(np.load(folder / name)))
    for file, data in resealed(held(folder)).items():
        (folder / file).write_bytes(data)


def put(place: int, value: float) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array.reshape(-1)[place] = value
        return array

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("row_slots", put(5, 1 << 30)),
        ("row_slots", put(5, -1)),
        ("row_starts", put(3, 1 << 40)),
        ("row_starts", put(0, 1)),
        ("short_positions", put(0, 4_000_000)),
        ("starts", put(2, -5)),
        ("long_before", put(1, 9)),
        ("cuts", put(0, 7)),
        ("long_places", put(0, 16_000)),
        ("ids", put(4, 0)),
        ("ids", lambda ids: ids[::-1]),
        ("ids", lambda ids: ids.astype(np.int32)),
        ("scales", put(0, np.nan)),
        ("row_values", lambda values: values[:-1]),
        ("codes", lambda codes: codes.astype(np.float32)),
        ("peaks", lambda peaks: peaks[:, :0]),
        ("terms", put(-1, 31)),
        ("alive", lambda alive: alive.view(np.uint8)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # a function's name differs from process to process
)
def test_a_segment_that_leads_out_of_itself_is_refused(tmp_path: Path, name: str, change: Callable[[Any], Any]) -> None:
    index = InvertedIndex()
    index.add(np.arange(10, 70), sparse(0, 60))
    index.save(tmp_path / "x")
    assert InvertedIndex.open(tmp_path / "x").ids.tolist() == list(range(10, 70))
    rewritten(tmp_path / "x", f"0-{name}.npy", change)
    with pytest.raises(CorruptArtifact, match="is no InvertedIndex"):
        InvertedIndex.open(tmp_path / "x")


@pytest.mark.parametrize("place", [("links.npy", 1 << 20), ("entries.npy", -1), ("ids.npy", -3), ("keys.npy", np.inf)])
def test_a_graph_that_leads_to_no_row_is_refused(tmp_path: Path, place: tuple[str, float]) -> None:
    index = QueryAwareIndex(degree=4, batch=40)
    index.add(np.arange(60), dense(0, 60))
    index.save(tmp_path / "x")
    rewritten(tmp_path / "x", place[0], put(0, place[1]))
    with pytest.raises(CorruptArtifact, match="is no QueryAwareIndex"):
        QueryAwareIndex.open(tmp_path / "x")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (-3,), }",
        "{'descr': '<i8', 'fortran_order': False, 'shape': (((((",
        "{" * 90,
    ],
)
def test_a_header_is_not_believed(tmp_path: Path, header: str) -> None:
    np.save(tmp_path / "x.npy", np.arange(3))
    data = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(data[:10] + header.ljust(117).encode() + b"\n" + data[128:])
    with pytest.raises(ValueError, match=r"x\.npy"):
        read_array(tmp_path / "x.npy", np.int64, (None,))


def test_a_setting_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    index = FlatIndex()
    index.add(np.arange(3), dense(0, 3))
    index.save(tmp_path / "x")
    manifest = json.loads((tmp_path / "x" / "manifest.json").read_text())
    for strange in (8.0, True, "8", None, -8, [8]):
        manifest["meta"]["dim"] = strange
        (tmp_path / "x" / "manifest.json").write_text(json.dumps(manifest))
        for file, data in resealed(held(tmp_path / "x")).items():
            (tmp_path / "x" / file).write_bytes(data)
        with pytest.raises(CorruptArtifact, match="is no FlatIndex"):
            FlatIndex.open(tmp_path / "x")
    assert whole({"n": 2}, "n") == 2


def test_checks_in_parts_say_what_checks_of_the_whole_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reperio.indexes.stored._PART", 7)
    rng = np.random.default_rng(0)
    for _ in range(300):
        values = np.sort(rng.integers(0, 60, rng.integers(1, 30)))
        assert ascends(values) == bool((np.diff(values) > 0).all())
        starts = np.sort(rng.integers(0, len(values) + 1, 4))
        falls = np.flatnonzero(np.diff(values) <= 0) + 1
        assert ascends(values, starts) == bool(np.isin(falls, starts).all())
        offsets = np.concatenate([[0], rng.permutation(values) if rng.random() < 0.3 else values])
        total = int(offsets[-1])
        assert offsets_of(offsets, total) == bool((np.diff(offsets) >= 0).all())
        assert offsets_of(offsets, total, filled=True) == bool((np.diff(offsets) > 0).all())
    assert not finite(np.array([1, np.nan]))
    assert not within(np.array([np.nan]), 0, 1)
    assert finite(np.empty(0))


def test_what_was_refused_is_refused_again(tmp_path: Path) -> None:
    index = InvertedIndex()
    index.add(np.arange(10, 70), sparse(0, 60))
    index.save(tmp_path / "x")
    rewritten(tmp_path / "x", "0-row_slots.npy", put(5, 1 << 30))
    for _ in range(2):
        with pytest.raises(CorruptArtifact, match="is no InvertedIndex"):
            InvertedIndex.open(tmp_path / "x")
