"""The one-liner and the retriever in memory."""

from __future__ import annotations

import pytest

import reperio
from reperio import Document, Retriever
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.hashing import HashEncoder
from reperio.errors import ConfigurationError, DuplicateId, InvalidInput
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.flat import FlatIndex

TEXTS = ["Berlin has a zoo.", "Paris is the capital of France.", "France has many zoos."]


def test_one_line_searches_a_list() -> None:
    assert [hit.document.id for hit in reperio.search("capital of France", TEXTS)] == ["1", "2"]
    (best,) = reperio.search("capital of France", TEXTS, k=1)
    assert best.document.text == TEXTS[1]
    assert best.signals == {"bm25": best.score}


def test_one_line_with_an_encoder_is_hybrid() -> None:
    hits = reperio.search("a zoo", TEXTS, encoder=HashEncoder())
    assert hits[0].document.id == "0"
    assert set(hits[0].signals) == {"bm25", "dense"}
    assert len(reperio.search("a zoo", TEXTS, k=2, encoder=HashEncoder())) == 2


def test_one_line_hybrid_scores_every_hit_on_both_signals() -> None:
    texts = [f"bean soup number {i}" if i % 3 else f"legume stew number {i}" for i in range(301)]
    hits = reperio.search("bean soup", texts, encoder=HashEncoder(), k=250)
    assert len(hits) == 250
    assert all(set(hit.signals) == {"bm25", "dense"} for hit in hits)
    assert hits[-1].signals["bm25"] == 0.0
    with pytest.raises(InvalidInput, match="k is 0"):
        reperio.search("bean", texts, k=0)


def test_nothing_to_search_finds_nothing() -> None:
    assert reperio.search("a zoo", []) == []


def test_bad_input_is_refused() -> None:
    with pytest.raises(InvalidInput, match="bare string"):
        reperio.search("zoo", "a text")
    with pytest.raises(ConfigurationError, match="k is 0"):
        Retriever(HashEncoder(), FlatIndex(), k=0)
    index = FlatIndex()
    Retriever(HashEncoder(), index, documents=[Document("a", "x")])
    with pytest.raises(ConfigurationError, match="holds 1 rows"):
        Retriever(HashEncoder(), index)


def test_documents_can_be_added_later_and_ids_are_each_once() -> None:
    retriever = Retriever(BM25Encoder(), BM25Index(), documents=[Document("a", "a walrus")], name="bm25")
    retriever.add([Document("b", "a seal and a walrus")])
    (found,) = retriever(["walrus"])
    assert found.ids == ["a", "b"]
    with pytest.raises(DuplicateId, match="'b'"):
        retriever.add([Document("c", "text"), Document("b", "again")])
    assert retriever(["text"])[0].ids == []
