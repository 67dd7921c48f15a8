"""Rows that an index holds and the store does not: never a hit, never in a hit's place, told, and taken away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reperio import Collection, Field, Signal, meter
from reperio.embeddings import Ids
from reperio.encoders.verbatim import VerbatimEncoder
from reperio.indexes.pgtext import PostgresTextIndex
from reperio.indexes.pgvector import PgvectorIndex
from reperio.protocols import Index, Spec
from reperio.registry import build
from reperio.stores.sqlite import SQLiteStore
from reperio.strangers import Strangers
from reperio.testing.kinds import KINDS, encoder, label
from reperio.testing.refusals import documents
from reperio.testing.store import commit
from reperio.types import Document

FACTORIES = (None, "Flat", "HNSW16", "IVF4,PQ8x4fs,RFlat", "auto", "BFlat")
CASES = [
    (signal, spec)
    for signal, specs in KINDS.items()
    for spec in {(s["type"], s.get("factory"), s.get("codes")): s for s in specs}.values()
    if spec.get("factory") in FACTORIES
]
"""One of each class, and of FAISS an exact one, a graph, a refined one and a tuned one."""
ASKED = "document word7 about topic7 in version v0"
FAR: Ids = np.array([10**6, 2**40, 3 * 10**12], dtype=np.int64)


def put(collection: Collection, signal: str, rows: Ids) -> None:
    """Rows that are the best match there is, straight into the index."""
    index = collection._signals[signal].index
    index.add(rows, encoder(signal).encode_document([ASKED] * len(rows)).embeddings)


def made(path: Path, signal: str, spec: Spec) -> Collection:
    index: Index[Any] = build(spec)
    stored = signal not in ("bm25", "summed")
    collection = Collection.open(path, signals={signal: Signal(encoder(signal), index, stored=stored)})
    collection.upsert([Document(d.id, d.text, {"n": int(d.id)}) for d in documents(0, 130)], progress=False)
    collection.search(ASKED)
    return collection


@pytest.mark.parametrize(("signal", "spec"), CASES, ids=[label(spec) for _, spec in CASES])
def test_a_row_that_the_store_does_not_have_is_never_found_and_taken_away(
    signal: str, spec: Spec, tmp_path: Path
) -> None:
    with made(tmp_path / "c", signal, spec) as collection:
        before = {k: collection.search(ASKED, k) for k in (1, 10, 200)}
        put(collection, signal, FAR)
        with meter.measure() as counts:
            after = {k: collection.search(ASKED, k) for k in (1, 10, 200)}
        assert counts["strangers"] >= len(FAR)
        for k, ranking in after.items():
            assert len(ranking) == len(before[k]) > 0
            assert all(isinstance(hit.document, Document) for hit in ranking)
            if signal not in ("bm25", "summed"):  # a term's weight counts them
                np.testing.assert_allclose(ranking.scores[0], before[k].scores[0], rtol=1e-4)
        told = collection.explain(ASKED, after[10].ids[0])
        assert told.rank is not None
        assert "without the 3 of its finds that the store does not have" in str(told)
        assert "still holds 3 documents, row 1000000" in "\n".join(collection.verify().problems)
        assert len(collection.search(ASKED, 5, where=Field("n") >= 60)) == 5
        collection.upsert(documents(130, 1), progress=False)
        collection.checkpoint()
    with Collection.open(tmp_path / "c") as collection:
        assert collection.verify().problems == ()
        assert len(collection.search(ASKED, 10)) == len(before[10])
    with Collection.open(tmp_path / "c", mode="r") as collection:
        with meter.measure() as counts:
            assert len(collection.search(ASKED, 10)) == len(before[10])
        assert counts["strangers"] == 0


def test_a_fusion_gives_strangers_no_place_either(tmp_path: Path) -> None:
    names = ("bm25", "dense", "words")
    signals: dict[str, Signal[Any]] = {
        name: Signal(encoder(name), build(KINDS[name][0]), stored=name != "bm25") for name in names
    }
    with Collection.open(tmp_path / "c", signals=signals) as collection:
        collection.upsert(documents(0, 130), progress=False)
        before = collection.search([ASKED, "document topic3"], 20)
        for name in names:
            put(collection, name, np.arange(1000, 1300))
        after = collection.search([ASKED, "document topic3"], 20)
        assert [ranking.ids for ranking in after] == [ranking.ids for ranking in before]


def test_a_checkpoint_that_lacks_rows_is_built_anew(tmp_path: Path) -> None:
    with made(tmp_path / "c", "dense", {"type": "FlatIndex"}) as collection:
        collection._signals["dense"].index.remove(np.arange(5, 25))
        assert "lacks 20 documents" in "\n".join(collection.verify().problems)
    with Collection.open(tmp_path / "c") as collection:
        assert collection.verify().problems == ()
        assert len(collection.search(ASKED, 200)) == 130


def test_each_row_is_asked_for_once_until_a_purge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SQLiteStore(tmp_path / "store.sqlite")
    store.declare({"dense": {}, "more": {}})
    commit(store, [Document(str(i), f"text {i}") for i in range(9)])
    asked: list[list[int]] = []
    ask = store.held

    def held(rows: Ids) -> Ids:
        asked.append(rows.tolist())
        return ask(rows)

    monkeypatch.setattr(store, "held", held)
    strangers = Strangers(store)
    assert strangers.among(np.array([[3, 1, -1], [3, 99, 2**62]])).tolist() == [99, 2**62]
    assert strangers.among(np.array([[1, 3, -1]])).tolist() == []
    assert strangers.among(np.array([[1, 9]])).tolist() == []
    assert strangers.among(np.empty((2, 0), dtype=np.int64)).tolist() == []
    assert asked == [[1, 3, 99, 2**62], [9]]
    assert strangers.met == 2
    store.commit([], np.array([3]))
    store.purge()
    assert strangers.among(np.array([[1, 3]])).tolist() == [3]
    store.close()


@pytest.mark.parametrize("kind", ["pgvector", "text"])
def test_a_row_written_by_hand_into_a_database_is_never_found_and_taken_away(
    server: str, tmp_path: Path, kind: str
) -> None:
    encode, index, stored = (encoder("dense"), PgvectorIndex(index=None), True)
    if kind == "text":
        encode, index, stored = (VerbatimEncoder(), PostgresTextIndex(), False)  # type: ignore[assignment]
    address, given = f"{server}#strangers{kind}", {"only": Signal(encode, index, stored=stored)}
    with Collection.open(address, cache=tmp_path, signals=given) as collection:
        collection.upsert(documents(0, 130), progress=False)
        before = {k: collection.search(ASKED, k) for k in (1, 10, 200)}
        held = collection._signals["only"].index
        held.add(FAR, encode.encode_document([ASKED] * len(FAR)).embeddings)
        for k, ranking in before.items():
            assert collection.search(ASKED, k).ids == ranking.ids
        assert "still holds 3 documents, row 1000000" in "\n".join(collection.verify().problems)
    with Collection.open(address, cache=tmp_path) as collection:
        assert collection.verify().problems == ()
        assert collection.search(ASKED, 10).ids == before[10].ids
