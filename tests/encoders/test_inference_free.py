"""Queries by a table: equal to sentence-transformers, counted in one pass, and without torch."""

from __future__ import annotations

import heapq
import inspect
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SparseEncoder as Peer
from sentence_transformers.sparse_encoder.modules import (
    Router,
    SparseStaticEmbedding,
    SpladePooling,
    Transformer,
)

from reperio import Collection, Document
from reperio.embeddings import Sparse
from reperio.encoders import BM25Encoder, InferenceFreeEncoder, SparseEncoder, TokenWeights
from reperio.errors import ConfigurationError, InvalidInput, NotFound, UnsupportedOperation
from reperio.indexes import InvertedIndex
from reperio.signals import Signal
from reperio.testing.encoder import EncoderContract
from reperio.testing.models import byte_pairs, save_masked

TEXTS = [
    inspect.getdoc(thing) or ""
    for thing in (heapq.merge, heapq.nlargest, itertools.chain, itertools.product, heapq.heappush)
]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that sentence-transformers wrote: queries by a table, documents by a model."""
    folder = tmp_path_factory.mktemp("published")
    body = Transformer(str(save_masked(folder / "model", "Bert")), transformer_task="fill-mask")
    weights = torch.rand(600, generator=torch.Generator().manual_seed(0)) * 5
    table = SparseStaticEmbedding(byte_pairs(), weight=weights)
    router = Router.for_query_document(
        query_modules=[table], document_modules=[body, SpladePooling("max", activation_function="log1p_relu")]
    )
    Peer(modules=[router], device="cpu").save(str(folder / "saved"))
    return folder / "saved"


def dense(rows: Sparse) -> Any:
    out = np.zeros((len(rows), rows.dim), dtype=np.float32)
    for i in range(len(rows)):
        columns, weights = rows.row(i)
        out[i, columns] = weights
    return out


class TestTokenWeights(EncoderContract):
    tolerance = 0.0

    @pytest.fixture
    def encoder(self, published: Path) -> TokenWeights:
        return TokenWeights(published / "query_0_SparseStaticEmbedding")


@pytest.mark.filterwarnings("ignore:.* texts were cut")
class TestInferenceFreeEncoder(EncoderContract):
    @pytest.fixture
    def encoder(self, published: Path) -> InferenceFreeEncoder:
        return InferenceFreeEncoder(published)


def test_both_sides_are_those_of_sentence_transformers(published: Path) -> None:
    peer, ours = Peer(str(published), device="cpu"), InferenceFreeEncoder(published)
    for wanted, found in (
        (peer.encode_query(TEXTS), ours.encode_query(TEXTS)),
        (peer.encode_document(TEXTS), ours.encode_document(TEXTS)),
    ):
        np.testing.assert_allclose(dense(found.embeddings), wanted.to_dense().numpy(), rtol=0, atol=1e-5)


def test_what_it_saves_both_open(published: Path, tmp_path: Path) -> None:
    ours = InferenceFreeEncoder(published)
    ours.save(tmp_path / "saved")
    again, peer = InferenceFreeEncoder(tmp_path / "saved"), Peer(str(tmp_path / "saved"), device="cpu")
    for name in ("encode_query", "encode_document"):
        wanted = dense(getattr(ours, name)(TEXTS).embeddings)
        np.testing.assert_allclose(dense(getattr(again, name)(TEXTS).embeddings), wanted, rtol=0, atol=1e-6)
        np.testing.assert_allclose(getattr(peer, name)(TEXTS).to_dense().numpy(), wanted, rtol=0, atol=1e-5)


def test_a_table_of_idf_as_json_is_that_of_sentence_transformers(tmp_path: Path) -> None:
    byte_pairs().save_pretrained(tmp_path)
    table = {token: 1 + i / 7 for i, token in enumerate(sorted(byte_pairs().get_vocab())[100:400])}
    (tmp_path / "idf.json").write_text(json.dumps(table))
    peer = Peer(modules=[SparseStaticEmbedding.from_json(str(tmp_path / "idf.json"), tokenizer=byte_pairs())])
    found = TokenWeights(tmp_path).encode_query(TEXTS).embeddings
    np.testing.assert_allclose(dense(found), peer.encode(TEXTS).cpu().to_dense().numpy(), rtol=1e-6)


def test_idf_is_counted_in_one_pass_over_texts_that_are_read_once(tmp_path: Path) -> None:
    byte_pairs().save_pretrained(tmp_path)
    most = 0

    def stream() -> Iterator[str]:
        nonlocal most
        for i in range(2500):
            most += 1
            yield TEXTS[i % 5]

    made = TokenWeights.from_corpus(stream(), tmp_path)
    assert most == 2500
    sets = [set(byte_pairs()(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    for token in (5, 80, 300, 599):
        df = 500 * sum(token in some for some in sets)
        assert made.weights[token] == pytest.approx(np.log(1 + (2500 - df + 0.5) / (df + 0.5)), rel=1e-6)
    made.save(tmp_path / "table")
    again = TokenWeights(tmp_path / "table")
    assert again.fingerprint == made.fingerprint
    peer = SparseStaticEmbedding.load(str(tmp_path / "table"))
    np.testing.assert_array_equal(peer.weight.detach().numpy(), made.weights)


def test_a_query_needs_no_torch_nor_does_the_fingerprint_of_what_was_saved(published: Path, tmp_path: Path) -> None:
    ours = InferenceFreeEncoder(published)
    ours.save(tmp_path / "saved")
    opened = InferenceFreeEncoder(tmp_path / "saved")
    opened.documents.encode_document(["a text"])  # its model is loaded
    index = InvertedIndex()
    with Collection.open(tmp_path / "c", signals={"words": Signal(opened, index)}) as collection:
        collection.upsert([Document(str(i), text) for i, text in enumerate(TEXTS)])
        wanted = [hit.document.id for hit in collection.search("merge sorted inputs")]
        terms = collection.explain("merge sorted inputs", wanted[0]).signals["words"].terms
        assert {term.term for term in terms} <= set(opened.terms("merge sorted inputs").values())
        assert terms
    code = f"""
import sys
from reperio import Collection
with Collection.open({str(tmp_path / "c")!r}, mode="r") as collection:
    print([hit.document.id for hit in collection.search("merge sorted inputs")])
assert not {{"torch", "transformers"}} & set(sys.modules), "a model was loaded"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(wanted)


def test_a_fingerprint_that_was_kept_is_that_of_the_model(published: Path, tmp_path: Path) -> None:
    InferenceFreeEncoder(published).save(tmp_path / "saved")
    kept, loaded = InferenceFreeEncoder(tmp_path / "saved"), InferenceFreeEncoder(tmp_path / "saved")
    loaded._folder = None
    assert kept.fingerprint == loaded.fingerprint


def test_other_weights_in_the_folder_are_another_fingerprint(published: Path, tmp_path: Path) -> None:
    InferenceFreeEncoder(published).save(tmp_path / "saved")
    before = InferenceFreeEncoder(tmp_path / "saved").fingerprint
    save_masked(tmp_path / "other", "Bert", seed=1)
    target = tmp_path / "saved" / "document_0_Transformer" / "model.safetensors"
    target.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    assert InferenceFreeEncoder(tmp_path / "saved").fingerprint != before


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("config_sentence_transformers.json", {"max_active_dims": 3}),
        ("document_1_SpladePooling/config.json", {"activation_function": "relu"}),
        ("document_0_Transformer/sentence_bert_config.json", {"max_seq_length": 40}),
        ("document_0_Transformer/tokenizer.json", {"normalizer": {"type": "Lowercase"}}),
    ],
)
def test_what_was_changed_in_the_folder_is_another_fingerprint(
    published: Path, tmp_path: Path, file: str, changed: dict[str, Any]
) -> None:
    InferenceFreeEncoder(published).save(tmp_path / "saved")
    before = InferenceFreeEncoder(tmp_path / "saved").fingerprint
    told = json.loads((tmp_path / "saved" / file).read_text())
    (tmp_path / "saved" / file).write_text(json.dumps({**told, **changed}))
    after = InferenceFreeEncoder(tmp_path / "saved")
    loaded = InferenceFreeEncoder(tmp_path / "saved")
    loaded._folder = None
    assert after.fingerprint != before
    assert after.fingerprint == loaded.fingerprint


def test_a_model_with_a_table_is_no_sparse_encoder(published: Path) -> None:
    with pytest.raises(ConfigurationError, match="InferenceFreeEncoder"):
        SparseEncoder(published)


def test_what_does_not_fit_is_refused(published: Path, tmp_path: Path) -> None:
    table = TokenWeights(published / "query_0_SparseStaticEmbedding")
    with pytest.raises(ConfigurationError, match="no table"):
        InferenceFreeEncoder(published / "document_0_Transformer")
    larger = TokenWeights.of(byte_pairs().backend_tokenizer, np.ones(700, np.float32))
    with pytest.raises(ConfigurationError, match=r"700 tokens.*600 columns"):
        _ = InferenceFreeEncoder(published, larger).fingerprint
    with pytest.raises(UnsupportedOperation, match="BM25Encoder"):
        InferenceFreeEncoder(BM25Encoder(), table).save(tmp_path / "saved")
    with pytest.raises(NotFound, match=r"tokenizer\.json"):
        TokenWeights(tmp_path)
    byte_pairs().save_pretrained(tmp_path)
    with pytest.raises(NotFound, match=r"idf\.json"):
        TokenWeights(tmp_path)
    (tmp_path / "idf.json").write_text(json.dumps({"no such token": 1.0}))
    with pytest.raises(ConfigurationError, match="no such token"):
        TokenWeights(tmp_path)
    with pytest.raises(InvalidInput, match="no text"):
        TokenWeights.from_corpus([], tmp_path)
    for size in (0, 10):
        with pytest.raises(ConfigurationError, match=f"size is {size}; the tokenizer has 600 tokens"):
            TokenWeights.from_corpus(TEXTS, tmp_path, size=size)
    with pytest.raises(InvalidInput, match=r"texts\[0\] holds half of a surrogate pair at character 1"):
        table.terms("a\ud800")
    for weights, named in ((np.ones(5), r"\(5,\)"), (np.full(600, -1.0), "-1"), (np.full(600, np.nan), "nan")):
        with pytest.raises(ConfigurationError, match=named):
            TokenWeights.of(byte_pairs().backend_tokenizer, weights.astype(np.float32))
