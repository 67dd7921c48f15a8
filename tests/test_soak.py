"""A collection that is changed at random says what a dictionary says."""

from __future__ import annotations

from pathlib import Path

import pytest

from reperio.testing.soak import Soak


def test_a_collection_says_what_a_dictionary_says(tmp_path: Path) -> None:
    report = Soak(tmp_path, seed=7).run(4)
    assert report.checks > 100
    assert report.operations["search"] > 0


def test_a_soak_finds_a_document_that_is_lost(tmp_path: Path) -> None:
    soak = Soak(tmp_path, seed=3)
    for _ in range(30):
        soak.step()
    soak._collection.delete(sorted(soak._documents)[:1])
    with pytest.raises(AssertionError, match="and not") as told:
        soak.run(60)
    assert "seed 3, step" in told.value.__notes__[0]
