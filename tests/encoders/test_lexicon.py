"""Clusters of the vocabulary as a dense vector, and dense encoders joined in one index."""

from __future__ import annotations

import heapq
import inspect
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio import Collection, Document, LanguageModel
from reperio.encoders import BM25Encoder, Clusters, DenseSum, HashEncoder, LexiconEncoder
from reperio.errors import ConfigurationError, CorruptArtifact, NotFound, UnsupportedOperation
from reperio.indexes import FaissIndex
from reperio.models.vocabulary import word
from reperio.signals import Signal
from reperio.testing.encoder import EncoderContract
from reperio.testing.models import byte_pairs, decoder, masked

pytestmark = pytest.mark.filterwarnings("ignore:.* texts were cut")

TEXTS = [
    inspect.getdoc(thing) or ""
    for thing in (heapq.merge, heapq.nlargest, itertools.chain, itertools.product, heapq.heappush)
]
K = 40


@pytest.fixture(scope="module")
def clusters(plain_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Clusters:
    return Clusters.fit(LanguageModel(plain_llama), K).save(tmp_path_factory.mktemp("clusters") / "saved")


class TestLexiconEncoder(EncoderContract):
    @pytest.fixture
    def encoder(self, plain_llama: Path, clusters: Clusters) -> LexiconEncoder:
        return LexiconEncoder(plain_llama, clusters, prompts={"query": "Find:"}, max_tokens=96)


class TestLexiconEncoderInWindows(EncoderContract):
    @pytest.fixture
    def encoder(self, plain_llama: Path, clusters: Clusters) -> LexiconEncoder:
        return LexiconEncoder(plain_llama, clusters, attention="echo", top_n=9, max_tokens=64, on_truncation="chunk")


class TestDenseSum(EncoderContract):
    @pytest.fixture
    def encoder(self) -> DenseSum:
        return DenseSum({"a": HashEncoder(256), "b": HashEncoder(100)}, weights={"a": 0.3})


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "Gemma3Text"])
def test_a_vector_is_what_the_paper_writes(architecture: str) -> None:
    model = LanguageModel.of(decoder(architecture), byte_pairs())
    clusters = Clusters.fit(model, K)
    encoder = LexiconEncoder(model, clusters, prompts={"document": "Read this:"})
    [vector] = encoder.encode_document(TEXTS[4:]).embeddings
    network, ids = decoder(architecture), byte_pairs()("Read this:" + TEXTS[4])["input_ids"]
    network.config.is_causal = False
    before = len(byte_pairs()("Read this:")["input_ids"])
    with torch.inference_mode():
        states = network.model(torch.tensor([ids])).last_hidden_state[0, before - 1 : -1]  # one before each token
    wanted = (states @ torch.from_numpy(clusters.centroids).T).amax(0).relu().log1p().numpy()
    np.testing.assert_allclose(vector, wanted / np.linalg.norm(wanted), rtol=0, atol=1e-5)


def test_every_word_is_in_the_cluster_that_points_its_way(clusters: Clusters, plain_llama: Path) -> None:
    rows = LanguageModel(plain_llama).network.lm_head.weight.detach().numpy()
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    middles = np.stack([units[clusters.members == i].mean(0) for i in range(K)])
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    assert (np.bincount(clusters.members, minlength=K) > 0).all()
    assert (np.argmax(units @ middles.T, axis=1) == clusters.members).mean() > 0.99
    np.testing.assert_allclose(clusters.centroids[3], rows[clusters.members == 3].mean(0), atol=1e-6)
    for i in (0, 7, 39):
        inside = np.flatnonzero(clusters.members == i)
        nearest = inside[np.argmax(units[inside] @ middles[i])]
        assert clusters.names[i][0] == word(byte_pairs(), int(nearest))


def test_words_that_point_one_way_are_found_together() -> None:
    network = decoder("Llama", tie_word_embeddings=False)
    generator = torch.Generator().manual_seed(0)
    middles = torch.randn(30, 32, generator=generator)
    which = torch.arange(600) % 30
    lengths = torch.rand(600, 1, generator=generator) + 0.5  # spherical: lengths say nothing
    network.lm_head.weight.data = lengths * (middles[which] + 0.05 * torch.randn(600, 32, generator=generator))
    model = LanguageModel.of(network, byte_pairs())
    pure = []
    for seed in range(4):
        found = Clusters.fit(model, 60, seed=seed)  # twice as many as there are, so that none is missed
        pure.append(np.mean([len(np.unique(which.numpy()[found.members == i])) == 1 for i in range(60)]))
    assert np.mean(pure) > 0.9
    again, other = Clusters.fit(model, 60, seed=3), Clusters.fit(model, 60, seed=2)
    np.testing.assert_array_equal(again.centroids, found.centroids)
    assert again.names == found.names
    assert (other.members != found.members).any()


def test_as_many_clusters_as_words_are_the_words() -> None:
    model = LanguageModel.of(decoder("Llama"), byte_pairs())
    rows = model.network.lm_head.weight.detach().numpy()
    found = Clusters.fit(model, 600)
    np.testing.assert_allclose(found.centroids[found.members], rows, atol=1e-7)


def test_clusters_come_back_as_they_were_saved(clusters: Clusters, tmp_path: Path) -> None:
    clusters.save(tmp_path / "saved")
    again = Clusters.open(tmp_path / "saved")
    np.testing.assert_array_equal(again.centroids, clusters.centroids)
    np.testing.assert_array_equal(again.members, clusters.members)
    assert (again.names, again.source, again.digest) == (clusters.names, clusters.source, clusters.digest)
    content = bytearray((tmp_path / "saved" / "centroids.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "saved" / "centroids.npy").write_bytes(content)
    with pytest.raises(CorruptArtifact):
        Clusters.open(tmp_path / "saved")
    with pytest.raises(NotFound):
        Clusters.open(tmp_path / "nowhere")


def test_a_masked_model_has_clusters_too() -> None:
    model = LanguageModel.of(masked("Bert"), byte_pairs())
    encoder = LexiconEncoder(model, Clusters.fit(model, K))
    vectors = encoder.encode_document(TEXTS).embeddings
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_pruning_keeps_the_strongest_clusters(plain_llama: Path, clusters: Clusters) -> None:
    whole = LexiconEncoder(plain_llama, clusters).encode_document(TEXTS).embeddings
    few = LexiconEncoder(plain_llama, clusters, top_n=5).encode_document(TEXTS).embeddings
    for all_of_them, kept in zip(whole, few, strict=True):
        assert (kept > 0).sum() == 5
        assert set(np.flatnonzero(kept)) == set(np.argsort(-all_of_them, kind="stable")[:5])
    np.testing.assert_allclose(np.linalg.norm(few, axis=1), 1, atol=1e-5)


def test_the_strongest_clusters_are_told_by_their_words(plain_llama: Path, clusters: Clusters) -> None:
    encoder = LexiconEncoder(plain_llama, clusters)
    [vector] = encoder.encode_document(TEXTS[:1]).embeddings
    told = encoder.expansions(TEXTS[0], top=3)
    assert [weight for _, weight in told] == sorted(vector.tolist(), reverse=True)[:3]
    assert told[0][0] == ", ".join(clusters.names[int(vector.argmax())])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=3), st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3))
def test_one_inner_product_is_the_weighted_sum(counts: list[float], texts: list[str]) -> None:
    encoders = {str(i): HashEncoder(20 + 7 * i) for i in range(len(counts))}
    weights = {str(i): count for i, count in enumerate(counts)}
    both = DenseSum(encoders, weights=weights)
    found = both.encode_query(texts).embeddings @ both.encode_document(TEXTS).embeddings.T
    wanted = sum(
        weights[name] / sum(counts) * (e.encode_query(texts).embeddings @ e.encode_document(TEXTS).embeddings.T)
        for name, e in encoders.items()
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(both.encode_document(texts).embeddings, axis=1), 1, atol=1e-5)


def test_dense_and_lexicon_live_in_one_index(plain_llama: Path, clusters: Clusters, tmp_path: Path) -> None:
    model = LanguageModel(plain_llama)
    parts: dict[str, Any] = {
        "dense": model.encoder(attention="bidirectional"),
        "lexicon": LexiconEncoder(model, clusters),
    }
    both = DenseSum(parts, weights={"lexicon": 0.5})
    with Collection.open(tmp_path / "c", signals={"both": Signal(both, FaissIndex("Flat"))}) as collection:
        collection.upsert([Document(str(i), text) for i, text in enumerate(TEXTS)])
        hits = collection.search("the largest elements", k=5)
        scores = {
            name: e.encode_query(["the largest elements"]).embeddings @ e.encode_document(TEXTS).embeddings.T
            for name, e in parts.items()
        }
        wanted = (2 * scores["dense"] + scores["lexicon"])[0] / 3
        assert {hit.document.id: pytest.approx(hit.score, abs=1e-5) for hit in hits} == {
            str(i): value for i, value in enumerate(wanted.tolist())
        }


def test_what_does_not_fit_is_refused(plain_llama: Path, clusters: Clusters) -> None:
    other = LanguageModel.of(decoder("Llama", seed=5), byte_pairs())
    with pytest.raises(ConfigurationError, match="another vocabulary"):
        LexiconEncoder(other, clusters).encode_document(["a text"])
    with pytest.raises(ConfigurationError, match="601"):
        Clusters.fit(other, 601)
    with pytest.raises(ConfigurationError, match="k is 0"):
        Clusters.fit(other, 0)
    with pytest.raises(ConfigurationError, match="top_n is 0"):
        LexiconEncoder(plain_llama, clusters, top_n=0)
    with pytest.raises(UnsupportedOperation, match="memory"):
        _ = LexiconEncoder(plain_llama, Clusters.fit(other, 3)).spec
    with pytest.raises(ConfigurationError, match="'a' makes sparse"):
        DenseSum({"a": BM25Encoder()})
    with pytest.raises(ConfigurationError, match="No encoder"):
        DenseSum({})
    with pytest.raises(ConfigurationError, match="weight of 'b'"):
        DenseSum({"a": HashEncoder(8)}, weights={"b": 1.0})
