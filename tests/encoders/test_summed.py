"""Several sparse signals in one index."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from reperio import Collection, Document
from reperio.embeddings import Sparse
from reperio.encoders import BM25Encoder, SparseSum
from reperio.encoders.hashing import HashEncoder
from reperio.errors import ConfigurationError
from reperio.indexes import BM25Index, InvertedIndex
from reperio.protocols import Encoder, Spec
from reperio.signals import Signal
from reperio.testing.encoder import EncoderContract
from reperio.types import Encoded, Fingerprint

TEXTS = [
    "merge sorted inputs into one output",
    "split the output among workers",
    "sorting keeps equal elements in order",
    "a heap gives the smallest element first",
]


class Trigrams:
    """Log-counts of a text's character trigrams: weights that need no model."""

    fingerprint = Fingerprint.make("sparse", "trigrams", 5000)

    @property
    def spec(self) -> Spec:
        return {"type": "Trigrams"}

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        return self.encode_document(texts)

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        rows = [Counter(zlib.crc32(t[i : i + 3].encode()) % 5000 for i in range(len(t) - 2)) for t in texts]
        indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        columns = np.array([c for row in rows for c in sorted(row)], dtype=np.int64)
        weights = np.log1p(np.array([row[c] for row in rows for c in sorted(row)], dtype=np.float32))
        tokens = np.array([len(t) for t in texts], dtype=np.int64)
        return Encoded(Sparse(indptr, columns, weights, 5000), tokens, np.zeros(len(texts), dtype=np.bool_))


class TestSparseSum(EncoderContract):
    @pytest.fixture
    def encoder(self) -> Encoder[Sparse]:
        return SparseSum({"bm25": BM25Encoder()}, weights={"bm25": 0.5})


def test_the_sum_in_one_index_is_the_sum_of_two_indexes() -> None:
    words, grams = BM25Encoder(), Trigrams()
    both = SparseSum({"bm25": words, "grams": grams}, weights={"grams": 0.25})
    assert both.weights_below == 5000
    together, first, second = BM25Index(weights_below=both.weights_below), BM25Index(), InvertedIndex()
    keys = np.arange(len(TEXTS))
    for index, encoder in ((together, both), (first, words), (second, grams)):
        index.add(keys, encoder.encode_document(TEXTS).embeddings)
    queries = ["sorted output", "elements of a heap"]
    every = np.tile(keys, (2, 1))
    wanted = first.score(words.encode_query(queries).embeddings, every)
    wanted = wanted + 0.25 * second.score(grams.encode_query(queries).embeddings, every)
    asked = both.encode_query(queries).embeddings
    np.testing.assert_allclose(together.score(asked, every), wanted, rtol=1e-5)
    found = together.search(asked, 4)
    scores = np.maximum(found.scores, 0)  # a row without a term of the query is no match
    np.testing.assert_allclose(scores, -np.sort(-wanted, axis=1), rtol=1e-5)


def test_without_bm25_all_columns_are_weights() -> None:
    both = SparseSum({"a": Trigrams(), "b": Trigrams()})
    assert both.dim == both.weights_below == 10_000
    rows = both.encode_document(TEXTS).embeddings
    single = Trigrams().encode_document(TEXTS).embeddings
    assert len(rows.indices) == 2 * len(single.indices)
    index = InvertedIndex()
    index.add(np.arange(4), rows)
    twice = index.score(both.encode_query(TEXTS[:1]).embeddings, np.arange(4)[None])
    alone = InvertedIndex()
    alone.add(np.arange(4), single)
    once = alone.score(Trigrams().encode_query(TEXTS[:1]).embeddings, np.arange(4)[None])
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)


def test_a_collection_searches_and_explains_it_as_one_signal(tmp_path: Path) -> None:
    encoder = SparseSum({"bm25": BM25Encoder()})
    index = BM25Index(weights_below=encoder.weights_below)
    with Collection.open(tmp_path / "c", signals={"sparse": Signal(encoder, index)}) as collection:
        collection.upsert([Document(str(i), text) for i, text in enumerate(TEXTS)])
        assert collection.search("sorted output")[0].document.id == "0"
        terms = collection.explain("sorted output", "0").signals["sparse"].terms
        assert {term.term for term in terms} == {"sorted", "output"}


@pytest.mark.parametrize(
    ("encoders", "weights", "named"),
    [
        ({}, {}, "No encoder"),
        ({"a": HashEncoder(8)}, {}, "dense"),
        ({"a": BM25Encoder(), "b": BM25Encoder("german")}, {}, "count words"),
        ({"a": BM25Encoder()}, {"a": 0.0}, "'a'"),
        ({"a": BM25Encoder()}, {"b": 1.0}, "'b'"),
    ],
)
def test_what_cannot_be_summed_is_refused(
    encoders: dict[str, Encoder[Sparse]], weights: dict[str, float], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        SparseSum(encoders, weights=weights)
