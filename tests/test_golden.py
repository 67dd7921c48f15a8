"""What an earlier build of this format wrote still opens, and finds what it found.

The files were made by ``python -m tests.golden.make``; a change that cannot open them needs a new format version.
"""

from __future__ import annotations

import json
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.golden.make import COLLECTION, EVERY, HERE, answers, archive, documents, ranked, texts

from reperio.artifacts import FORMAT, MANIFEST, sealed
from reperio.collection import Collection
from reperio.errors import ConfigurationError, NewerFormat
from reperio.protocols import Index
from reperio.registry import build, resolve
from reperio.testing.kinds import encoder
from reperio.types import Document

TOLD: dict[str, Any] = json.loads((HERE / "expected.json").read_text())


def unpacked(name: str, folder: Path) -> Path:
    """A golden file; skips where its library is absent or of another major version."""
    for library, wrote in TOLD["written_by"][name].items():
        try:
            here = version(library)
        except PackageNotFoundError:
            pytest.skip(f"{library} is not installed")
        if here.split(".")[0] != wrote.split(".")[0]:
            pytest.skip(f"{library} {here} is another major version than {wrote}, which wrote the file")
    shutil.unpack_archive(archive(name), folder / "golden", filter="data")
    return folder / "golden"


def same(found: list[list[Any]], name: str) -> None:
    """Equal scores, and the same rows but for those as good as the last: which of them, a library may decide anew."""
    for ours, theirs in zip(found, TOLD["answers"][name], strict=True):
        np.testing.assert_allclose([score for _, score in ours], [score for _, score in theirs], rtol=1e-4, atol=1e-5)
        last = theirs[-1][1] + 1e-4 if theirs else 0.0
        assert [key for key, score in ours if score > last] == [key for key, score in theirs if score > last]


def test_every_kind_has_a_golden_file_of_this_format() -> None:
    assert {path.name for path in HERE.iterdir()} == {"expected.json"} | {archive(n).name for n in (*EVERY, COLLECTION)}
    assert all(any(ranking) for rankings in TOLD["answers"].values() for ranking in rankings)
    assert sum(path.stat().st_size for path in HERE.iterdir()) < 1 << 20


@pytest.mark.parametrize("name", EVERY)
def test_a_golden_index_finds_what_it_found_and_goes_on(tmp_path: Path, name: str) -> None:
    signal, spec = EVERY[name]
    index: Index[Any] = resolve(spec["type"]).open(unpacked(name, tmp_path))
    assert dict(index.spec) == dict(build(spec).spec)
    same(answers(index, signal), name)
    index.add(np.array([200]), encoder(signal).encode_document([texts()[60]]).embeddings)
    assert index.remove(np.array([60])) == 1
    assert 200 in index.ids
    index.save(tmp_path / "again")


@pytest.mark.parametrize("name", EVERY)
def test_a_newer_format_is_refused_by_every_kind(tmp_path: Path, name: str) -> None:
    manifest = unpacked(name, tmp_path) / MANIFEST
    manifest.write_text(sealed({**json.loads(manifest.read_text()), "format": FORMAT + 1}))
    kind = resolve(EVERY[name][1]["type"])
    with pytest.raises(NewerFormat, match=rf"format {FORMAT + 1}.*up to {FORMAT}.*Upgrade"):
        kind.open(manifest.parent)


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_golden_collection_finds_what_it_found_and_goes_on(tmp_path: Path, mode: Any) -> None:
    path = unpacked(COLLECTION, tmp_path)
    with Collection.open(path, mode=mode) as collection:
        assert collection.verify().ok
        assert list(collection.documents()) == [d for d in documents() if d.id != "doc-3"]
        same(ranked(collection), COLLECTION)
        signals = collection.stats().signals
        assert all(signal["checkpoint"] == collection.seq for signal in signals.values())
        if mode == "rw":
            collection.upsert([Document("new", "a text about walruses")], progress=False)
            assert collection.search("walruses", 1).ids == ["new"]


def test_indexes_that_a_newer_release_saved_are_made_anew(tmp_path: Path) -> None:
    """The store is still of this format: an index costs a rebuild, as any that cannot be used."""
    path = unpacked(COLLECTION, tmp_path)
    for manifest in path.glob(f"indexes/*/*/{MANIFEST}"):
        manifest.write_text(sealed({**json.loads(manifest.read_text()), "format": FORMAT + 1}))
    with Collection.open(path) as collection:
        assert "format 2" in "\n".join(collection.verify().problems)
        same(ranked(collection), COLLECTION)


def test_a_golden_index_is_not_opened_as_another(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="saved by QueryAwareIndex"):
        resolve("FlatIndex").open(unpacked("QueryAwareIndex", tmp_path))
