"""One dimension a word: the score of Uni-ColBERTer through an inverted index; gates and how they are learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reperio import Collection, Document, Signal
from reperio.embeddings import MultiVector
from reperio.encoders import ColbertLayout, MultiVectorEncoder, WholeWords, WordGate, WordWeights
from reperio.encoders.wordgate import linear_fit, winners
from reperio.errors import ConfigurationError, InvalidInput, ShapeError
from reperio.indexes import InvertedIndex
from reperio.models.language_model import LanguageModel
from reperio.models.projection import TokenProjection
from reperio.registry import build

TEXTS = [
    "Merge multiple sorted inputs into a single sorted output.",
    "The heap queue algorithm: a priority queue, sorted lazily.",
    "Return the n largest elements of the dataset.",
]
QUERIES = ["merge the sorted heaps", "largest priority elements"]


@pytest.fixture(scope="module")
def model(plain_bert: Path) -> LanguageModel:
    return LanguageModel(plain_bert)


def encoder(model: LanguageModel, gate: WordGate | None = None) -> MultiVectorEncoder:
    words = WholeWords(queries=True, normalize=False)
    layout = ColbertLayout(special=False, normalize=False)
    return MultiVectorEncoder(model, layout=layout, words=words, gate=gate)


@pytest.fixture(scope="module")
def weigh() -> TokenProjection:
    generator = torch.Generator().manual_seed(5)
    return TokenProjection.of(torch.randn(1, 32, generator=generator), torch.tensor([0.3]))


@pytest.mark.parametrize("gated", [False, True])
def test_an_inverted_index_gives_maxsim_in_one_dimension_of_equal_words(
    model: LanguageModel, weigh: TokenProjection, gated: bool
) -> None:
    gate = WordGate.of(torch.randn(32, generator=torch.Generator().manual_seed(1)), 0.2) if gated else None
    words = encoder(model, gate)
    weight, bias = weigh.linear.weight.detach().numpy()[0], float(weigh.linear.bias.detach())
    asked, held = words.bags(QUERIES, "query"), words.bags(TEXTS, "document")
    wanted = np.zeros((len(QUERIES), len(TEXTS)))
    for j in range(len(TEXTS)):
        vectors = held.embeddings.row(j)
        if gate is not None:
            gates = np.maximum(vectors @ gate.linear.weight.detach().numpy()[0] + 0.2, 0)
            vectors = vectors * gates[:, None]
        known = {
            word: float(vector @ weight + bias)
            for k, (word, vector) in enumerate(zip(held.words[j], vectors, strict=True))
            if gate is None or gates[k] > 0
        }
        for i in range(len(QUERIES)):
            for word, vector in zip(asked.words[i], asked.embeddings.row(i), strict=True):
                wanted[i, j] += max(0.0, float(vector @ weight + bias) * known.get(word, 0.0))
    one, index = WordWeights(words, weigh), InvertedIndex()
    index.add(np.arange(len(TEXTS)), one.encode_document(TEXTS).embeddings)
    found = index.score(one.encode_query(QUERIES).embeddings, np.tile(np.arange(len(TEXTS)), (len(QUERIES), 1)))
    assert (wanted > 0).any()
    np.testing.assert_allclose(np.where(np.isfinite(found), found, 0), wanted, rtol=1e-4, atol=1e-4)


def test_a_collection_holds_it_and_explains_it_word_by_word(plain_bert: Path, tmp_path: Path) -> None:
    weigh = TokenProjection.of(torch.full((1, 32), 0.01), torch.tensor([1.0]))
    weigh.save(tmp_path / "weigh")
    spec = WordWeights(MultiVectorEncoder(plain_bert, words=WholeWords(queries=True, normalize=False)), weigh).spec
    one: Any = build(json.loads(json.dumps(dict(spec))))
    with Collection.open(tmp_path / "c", signals={"words": Signal(one, InvertedIndex())}) as collection:
        collection.upsert([Document(str(i), text) for i, text in enumerate(TEXTS)])
        before = [(hit.document.id, hit.score) for hit in collection.search(QUERIES[0])]
        assert [name for name, _ in before] == ["0", "1", "2"]
        terms = collection.explain(QUERIES[0], "0").signals["words"].terms
        assert {term.term for term in terms} == {"merge", "sorted"}
        assert sum(term.contribution for term in terms) == pytest.approx(before[0][1], rel=1e-5)
    with Collection.open(tmp_path / "c") as collection:
        assert [(hit.document.id, hit.score) for hit in collection.search(QUERIES[0])] == before


def test_an_encoder_without_words_of_queries_is_refused(model: LanguageModel, weigh: TokenProjection) -> None:
    with pytest.raises(ConfigurationError, match="does not merge the words of queries"):
        WordWeights(MultiVectorEncoder(model, words=WholeWords()), weigh).encode_query(QUERIES)
    with pytest.raises(ConfigurationError, match="gives 2 dimensions"):
        WordWeights(encoder(model), TokenProjection.of(torch.ones(2, 32)))


# Gates


def test_a_fitted_gate_keeps_the_useful_share() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3000, 8)).astype(np.float32)
    useful = vectors @ np.arange(8) + rng.standard_normal(3000)
    for keep in (0.3, 0.7, 1.0):
        gate = WordGate.fit(vectors[:2000], useful[:2000], keep=keep)
        staying, kept = gate.apply(MultiVector(vectors, np.array([0, 3000])))
        assert abs(kept.mean() - keep) < 0.03
        np.testing.assert_array_equal(staying.vectors, vectors[kept])
        if keep < 1:
            assert useful[2000:][kept[2000:]].mean() > useful[2000:][~kept[2000:]].mean() + 5


def test_a_text_of_which_nothing_would_stay_keeps_all() -> None:
    gate = WordGate.of(torch.tensor([1.0, 0.0]))
    vectors = np.array([[-1, 0], [-2, 1], [3, 1], [-1, 5]], dtype=np.float32)
    staying, kept = gate.apply(MultiVector(vectors, np.array([0, 2, 4])))
    assert kept.tolist() == [True, True, True, False]
    assert staying.offsets.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(staying.vectors, [[-1, 0], [-2, 1], [9, 3]])


def test_winners_are_the_best_matches_in_the_best_documents() -> None:
    queries = MultiVector(np.eye(3, dtype=np.float32)[[0, 1]], np.array([0, 2]))
    rows = np.array([[1, 0, 0], [0, 0.9, 0], [0.9, 0.1, 0], [0, 0, 1], [0, 0, 1]], dtype=np.float32)
    wins, looked = winners(queries, MultiVector(rows, np.array([0, 3, 5])), k=1)
    assert wins.tolist() == [1, 1, 0, 0, 0]
    assert looked.tolist() == [True, True, True, False, False]
    with pytest.raises(InvalidInput, match="k is 0"):
        winners(queries, queries, k=0)


@given(st.integers(0, 100), st.floats(1e-6, 1))
def test_a_linear_fit_is_ridge_regression(seed: int, ridge: float) -> None:
    rng = np.random.default_rng(seed)
    vectors, targets = rng.standard_normal((40, 5)).astype(np.float32), rng.standard_normal(40)
    weight, bias = linear_fit(vectors, targets, ridge=ridge)
    centred = vectors - vectors.mean(axis=0)
    strength = ridge * np.trace(centred.T @ centred) / 5
    rows = np.concatenate([centred, np.sqrt(strength) * np.eye(5)])
    wanted = np.linalg.lstsq(rows, np.concatenate([targets - targets.mean(), np.zeros(5)]), rcond=None)[0]
    np.testing.assert_allclose(weight, wanted, atol=1e-4)
    assert abs((vectors @ weight + bias).mean() - targets.mean()) < 1e-4


def test_a_gate_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="keep is 0"):
        WordGate.fit(np.ones((2, 2), np.float32), np.ones(2), keep=0)
    with pytest.raises(ShapeError, match="There are 2 vectors and targets of shape"):
        WordGate.fit(np.ones((2, 2), np.float32), np.ones(3))
