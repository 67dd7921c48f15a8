"""A change that fails half-way, for lack of memory or at Ctrl-C, leaves an index as it was."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reperio import Collection, Document, Field, Signal
from reperio.encoders.given import GivenVectors
from reperio.encoders.hashing import HashEncoder
from reperio.indexes.binary import BinaryIndex
from reperio.indexes.faiss import FaissIndex
from reperio.indexes.flat import FlatIndex
from reperio.indexes.hnswlib import HnswlibIndex
from reperio.indexes.quantized import QuantizedIndex
from reperio.indexes.queryaware import QueryAwareIndex
from reperio.indexes.rows import grown
from reperio.indexes.transformed import TransformedIndex
from reperio.indexes.transforms import Centre
from reperio.indexes.usearch import UsearchIndex
from reperio.testing.index import clustered

MAKERS: dict[str, Callable[[], Any]] = {
    "flat": FlatIndex,
    "faiss": FaissIndex,
    "faiss graph": lambda: FaissIndex("HNSW16"),
    "hnswlib": HnswlibIndex,
    "usearch": UsearchIndex,
    "codes": lambda: QuantizedIndex("int8", train_size=100),
    "query-aware": QueryAwareIndex,
    "binary": BinaryIndex,
    "binary graph": lambda: BinaryIndex("BHNSW16"),
}


class Failing:
    """`grown`, which fails at one call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, error: type[BaseException]) -> None:
        self.at, self.calls, self.error = at, 0, error
        for name, module in list(sys.modules.items()):
            if name.startswith("reperio.") and getattr(module, "grown", None) is grown:
                monkeypatch.setattr(module, "grown", self)

    def __call__(self, array: Any, size: int) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return grown(array, size)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", MAKERS)
def test_an_add_that_fails_changes_nothing_and_can_be_made_again(
    kind: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, index = clustered(600, 64), MAKERS[kind]()
    index.add(np.arange(300), vectors[:300])
    before = index.search(vectors[:50], 10)
    for at in count(1):
        with monkeypatch.context() as patched:
            failing = Failing(patched, at, error)
            try:
                index.add(np.arange(200, 500), vectors[300:])
            except error:
                pass
            else:
                break
        assert failing.calls >= at
        assert index.ids.tolist() == list(range(300))
        after = index.search(vectors[:50], 10)
        assert (after.ids[:, 0] == before.ids[:, 0]).all()
        assert (after.ids == before.ids).mean() > 0.9  # a graph walks by what is dead in it
    assert at > 1
    assert index.ids.tolist() == list(range(500))
    found = index.search(vectors[300:], 1).ids[:, 0]
    assert (found == np.arange(200, 500)).mean() > 0.98


def test_a_flat_index_that_cannot_remove_still_holds_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, index = clustered(100, 16), FlatIndex()
    index.add(np.arange(100), vectors)

    def none(*_: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(np, "setdiff1d", none)
        with pytest.raises(MemoryError):
            index.remove(np.arange(50))
    assert index.search(vectors, 1).ids[:, 0].tolist() == list(range(100))
    assert index.remove(np.arange(50)) == 50
    assert index.search(vectors[50:], 1).ids[:, 0].tolist() == list(range(50, 100))


@pytest.mark.parametrize("index", [FlatIndex, FaissIndex])
def test_a_collection_interrupted_while_it_catches_up_reads_its_index_again(
    index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"some{i} words{i} for{i} this{i} document{i}" for i in range(40)]
    with Collection.open(tmp_path / "c", signals={"dense": Signal(HashEncoder(512), index())}) as c:
        c.upsert([Document(text, text) for text in texts[:20]])
        c.search("any", 3)
        c.upsert([Document(text, text) for text in texts[20:]])
        real = index.add

        def interrupted(self: Any, ids: Any, rows: Any) -> None:
            real(self, ids[:7] + 1000, rows[:7])  # out of step, as it may be in the middle of a change
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(index, "add", interrupted)
            with pytest.raises(KeyboardInterrupt):
                c.search("any", 3)
        assert [c.search(text, 1).ids[0] for text in texts] == texts
        assert c.verify().ok


WHOLE: dict[str, Callable[[], Any]] = {
    "flat": FlatIndex,
    "faiss": FaissIndex,
    "usearch": UsearchIndex,
    "distance": lambda: FaissIndex("HNSW16", metric="l2"),
    "centred": lambda: TransformedIndex(FlatIndex("l2"), [Centre()], train_size=10),
    "product": lambda: FlatIndex("ip"),
}


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("kind", WHOLE)
def test_vectors_that_are_not_those_of_the_store_are_found(kind: str, length: float, tmp_path: Path) -> None:
    rows = clustered(40, 64) * np.float32(length)
    documents = [Document(f"d{i}", f"text {i}") for i in range(40)]
    with Collection.open(tmp_path / "c", signals={"dense": Signal(GivenVectors(64), WHOLE[kind]())}) as c:
        c.upsert(documents, embeddings={"dense": rows})
        assert c.verify().ok
        live = c._signals["dense"]
        live.index.add(np.array([3, 4]), live.embed(np.array([4, 3])))
        assert c.verify().problems == ("dense: the index has other vectors for 2 documents, row 3 the first",)


def test_few_rows_that_pass_a_filter_are_measured_as_all_are(tmp_path: Path) -> None:
    """They are scored one by one, beside an index that only says from outside how it measures."""
    rows = clustered(40, 16) * np.linspace(1, 9, 40, dtype=np.float32)[:, None]
    index = TransformedIndex(FlatIndex("l2"), [Centre()], train_size=10)
    documents = [Document(f"d{i}", f"text {i}", {"n": i}) for i in range(40)]
    with Collection.open(tmp_path / "c", signals={"dense": Signal(GivenVectors(16), index)}) as c:
        c.upsert(documents, embeddings={"dense": rows})
        asked = {"dense": rows[[7]] + np.float32(0.01)}
        plain = c.search(["any"], 5, embeddings=asked)[0]
        passing = c.search(["any"], 5, where=Field("n") >= 0, embeddings=asked)[0]
        assert plain.ids == passing.ids
        assert [hit.score for hit in passing] == pytest.approx([hit.score for hit in plain], rel=1e-3, abs=1e-3)
