"""A change that fails half-way, for lack of memory or at Ctrl-C, leaves an index as it was."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reperio import Collection, Document, Field, Signal
from reperio.encoders.given import GivenVectors
from reperio.encoders.hashing import HashEncoder
from reperio.indexes.binary import BinaryIndex
from reperio.indexes.chosen import KeyedRows
from reperio.indexes.coded import CodedRows
from reperio.indexes.faiss import FaissIndex
from reperio.indexes.flat import FlatIndex
from reperio.indexes.hnswlib import HnswlibIndex
from reperio.indexes.quantization import Int8Codec
from reperio.indexes.quantized import QuantizedIndex
from reperio.indexes.queryaware import QueryAwareIndex
from reperio.indexes.rows import Rows, grown
from reperio.indexes.transformed import TransformedIndex
from reperio.indexes.transforms import Centre, NormCoordinate
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


@pytest.mark.parametrize("kind", ["faiss", "codes", "binary"])
def test_rows_that_cannot_be_removed_are_all_still_there(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait are taken away beside the others; nothing is, if either fails."""
    vectors, index = clustered(300, 64), MAKERS[kind]()
    index.add(np.arange(300), vectors)
    for module, name in ((FlatIndex, "remove"), (Rows, "find")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, failing)
            with pytest.raises(MemoryError):
                index.remove(np.arange(50))
        assert index.ids.tolist() == list(range(300))
    assert index.remove(np.arange(50)) == 50
    assert index.ids.tolist() == list(range(50, 300))


def failing(*_: Any, **__: Any) -> Any:
    raise MemoryError


@pytest.mark.parametrize("kind", ["faiss", "faiss graph", "hnswlib", "usearch", "binary graph"])
def test_positions_that_could_not_even_be_told_to_be_dead_are_dead_at_the_next_add(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, failures = clustered(600, 64), 0
    for at in count(1):
        index = MAKERS[kind]()
        index.add(np.arange(300), vectors[:300])
        with monkeypatch.context() as patched:
            patched.setattr(KeyedRows, "bury", failing)
            Failing(patched, at, MemoryError)
            try:
                index.add(np.arange(200, 500), vectors[300:])
            except MemoryError:
                failures += 1
            else:
                break
        index.add(np.arange(200, 400), vectors[300:500])
        assert index.ids.tolist() == list(range(400))
        found = index.search(np.concatenate([vectors[:200], vectors[300:500]]), 1).ids[:, 0]
        assert (found == np.arange(400)).mean() > 0.98
    assert failures


def test_a_flat_index_without_room_for_more_keys_keeps_the_rows_it_has() -> None:
    class Full(dict[int, int]):
        def __ior__(self, _: Any) -> Any:
            raise MemoryError

        update = failing

    vectors, index = clustered(100, 16), FlatIndex()
    index.add(np.arange(50), vectors[:50])
    before, index._at = index._at, Full(index._at)
    with pytest.raises(MemoryError):
        index.add(np.arange(40, 60), vectors[80:])
    index._at = before
    assert index.search(vectors[:50], 1).ids[:, 0].tolist() == list(range(50))
    index.add(np.arange(40, 60), vectors[80:])
    assert index.search(vectors[80:], 1).ids[:, 0].tolist() == list(range(40, 60))


def test_a_mapped_index_that_cannot_replace_a_row_holds_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, index = clustered(200, 16), FaissIndex()
    index.add(np.arange(100), vectors[:100])
    index.save(tmp_path / "index")
    mapped, real = FaissIndex.open(tmp_path / "index", mmap=True), KeyedRows.find
    for at in count(1):
        calls = count(1)

        def find(self: Any, ids: Any, /, at: int = at, calls: Any = calls) -> Any:
            if next(calls) == at:
                raise MemoryError
            return real(self, ids)

        with monkeypatch.context() as patched:
            patched.setattr(KeyedRows, "find", find)
            try:
                mapped.add(np.arange(90, 110), vectors[180:])
            except MemoryError:
                pass
            else:
                break
        assert mapped.ids.tolist() == list(range(100))
        assert mapped.search(vectors[:100], 1).ids[:, 0].tolist() == list(range(100))
    assert at > 1
    assert mapped.ids.tolist() == list(range(110))
    assert mapped.search(vectors[180:], 1).ids[:, 0].tolist() == list(range(90, 110))


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_graph_that_cannot_be_linked_is_the_one_it_was(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, index = clustered(900, 16), QueryAwareIndex(batch=64)

    def stopped(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("reperio.indexes.keygraph.link", stopped)
        with pytest.raises(error):
            index.add(np.arange(100), vectors[:100, :8])
    assert len(index) == 0
    index.add(np.arange(500), vectors[:500])  # of other dimensions: nothing was kept
    index.add(np.arange(500, 530), vectors[500:530])
    index.remove(np.arange(300))
    before = index.search(vectors, 20)
    for change in (lambda: index.add(np.arange(490, 700), vectors[690:]), index.link, index.compact):
        with monkeypatch.context() as patched:
            patched.setattr("reperio.indexes.keygraph.link", stopped)
            with pytest.raises(error):
                change()
        assert (index.learned, index.waiting) == ("rows", 30)
        after = index.search(vectors, 20)
        np.testing.assert_array_equal(after.ids, before.ids)
        np.testing.assert_array_equal(after.scores, before.scores)
    index.add(np.arange(490, 700), vectors[690:])
    assert (index.search(vectors[690:], 1).ids[:, 0] == np.arange(490, 700)).mean() > 0.98


def test_a_row_that_moves_between_an_index_and_what_waits_beside_it_is_never_in_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that is too long for a transform waits."""
    vectors = clustered(120, 16)
    refusing: list[tuple[Any, str]] = [(FlatIndex, "add"), (FlatIndex, "remove"), (UsearchIndex, "remove")]
    for kind, name in refusing:
        for moving, length in ((np.arange(80, 110), 0.5), (np.arange(70, 90), 5)):  # into the index, out of it
            index = TransformedIndex(UsearchIndex("l2"), [NormCoordinate()], train_size=80)
            index.add(np.arange(80), vectors[:80])
            index.add(np.arange(80, 100), 5 * vectors[80:100])
            real, calls = getattr(kind, name), count()

            def once(self: Any, *rows: Any, real: Any = real, calls: Any = calls) -> Any:
                if not next(calls):
                    raise MemoryError
                return real(self, *rows)

            rows = np.float32(length) * vectors[moving]
            with monkeypatch.context() as patched:
                patched.setattr(kind, name, once)
                with suppress(MemoryError):
                    index.add(moving, rows)
            assert index.ids.tolist() == sorted({*index.ids.tolist()})
            assert {*range(100)} <= {*index.ids.tolist()} <= {*range(100), *moving.tolist()}
            index.add(moving, rows)
            assert index.ids.tolist() == sorted({*range(100), *moving.tolist()})
            found = index.score(vectors[:1], moving[None])[0]
            np.testing.assert_allclose(found, rows @ vectors[0], atol=1e-4)


def test_codes_whose_cost_cannot_be_counted_are_not_added(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, index = clustered(400, 16), QuantizedIndex("int8", train_size=100)
    index.add(np.arange(300), vectors[:300])
    before = index.search(vectors, 10)
    with monkeypatch.context() as patched:
        patched.setattr(Int8Codec, "clipped", failing)
        with pytest.raises(MemoryError):
            index.add(np.arange(290, 400), vectors[290:])
    np.testing.assert_array_equal(index.search(vectors, 10).ids, before.ids)
    assert index.ids.tolist() == list(range(300))


def test_codes_that_cannot_be_moved_together_go_on_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, index = clustered(400, 16), QuantizedIndex("int8", train_size=100)
    index.add(np.arange(400), vectors)
    monkeypatch.setattr("reperio.indexes.quantized._DEAD", 0)
    with monkeypatch.context() as patched:
        patched.setattr(CodedRows, "kept", failing)
        assert index.remove(np.arange(300)) == 300
        assert index.search(vectors[300:], 1).ids[:, 0].tolist() == list(range(300, 400))
    assert index.remove(np.arange(300, 301)) == 1
    assert len(index._rows.ids) == 99


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
