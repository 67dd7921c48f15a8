"""What makes a collection and what does not: encoder and index, folder, query."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from reperio import Collection, Signal, lexical, opening
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.hashing import HashWeights
from reperio.encoders.summed import SparseSum
from reperio.errors import ConfigurationError, InvalidInput, StorageError
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.inverted import InvertedIndex
from reperio.indexes.seismic import SeismicIndex

SUM = SparseSum({"words": BM25Encoder(), "weights": HashWeights(64)})


@pytest.mark.parametrize(
    ("encoder", "index", "says"),
    [
        (BM25Encoder(), InvertedIndex(), "gives in every column. Use BM25Index()"),
        (BM25Encoder(), SeismicIndex(), "gives in every column. Use BM25Index()"),
        (HashWeights(64), BM25Index(), "gives none. Use InvertedIndex()"),
        (SUM, BM25Index(), r"gives in the columns from 64. Use BM25Index\(weights_below=64\)"),
        (SUM, InvertedIndex(), "gives in the columns from 64"),
        (SparseSum({"weights": HashWeights(64)}), BM25Index(), "gives none"),
    ],
)
def test_counts_are_not_taken_for_weights_nor_weights_for_counts(
    tmp_path: Path, encoder: Any, index: Any, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Collection.open(tmp_path / "c", signals={"words": Signal(encoder, index, stored=False)})


def test_what_is_no_query_is_refused_by_name(tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals=lexical()) as c:
        for asked in (None, 5):
            with pytest.raises(InvalidInput, match=rf"The queries are {asked}\. Give a string"):
                c.search(cast("Any", asked))


def test_a_folder_of_something_else_does_not_become_a_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before a model is loaded; what a making that was cut short has left is no such thing."""
    monkeypatch.setattr(opening, "hybrid", lambda: pytest.fail("a model was loaded"))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "queries").mkdir()
    with pytest.raises(
        ConfigurationError, match=r"holds 'notes.txt' and 1 more. Give a folder of its own: .*collection"
    ):
        Collection.open(tmp_path)
    with pytest.raises(StorageError, match=r"notes.txt is in the way"):
        Collection.open(tmp_path / "notes.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "queries"]
    with pytest.raises(StorageError, match="too long"):
        Collection.open(tmp_path / ("x" * 300))
    cut = tmp_path / "cut"
    (cut / "indexes").mkdir(parents=True)
    for name in ("writer.lock", "writer.pid", ".DS_Store"):
        (cut / name).touch()
    Collection.open(cut, signals=lexical()).close()
