"""Tables of token vectors without torch, against model2vec's own package and sentence-transformers."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model2vec import StaticModel
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from reperio.encoders import DenseEncoder
from reperio.errors import ConfigurationError, CorruptArtifact, EmptyText, InvalidInput, ShapeError
from reperio.testing.encoder import EncoderContract

ALIKE = 1e-6
"""Largest difference between two vectors of one text."""

STRANGE = ["a \U0001f9ff b", "short", "東京タワー café"]
"""Texts that hold what the tokenizer does not know."""


@pytest.fixture(scope="module")
def tokenizer(plain_bert: Path) -> Tokenizer:
    return Tokenizer.from_file(str(plain_bert / "tokenizer.json"))


@pytest.fixture(scope="module")
def table(tokenizer: Tokenizer) -> Any:
    size = (tokenizer.get_vocab_size(), 16)
    return np.random.default_rng(5).normal(size=size).astype(np.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, table: Any) -> Path:
    """As model2vec saves it: normalised, cut after 40 tokens."""
    folder = tmp_path_factory.mktemp("static") / "plain"
    StaticModel(table, tokenizer, normalize=True, max_length=40).save_pretrained(folder)
    return folder


class TestStaticEncoder(EncoderContract):
    tolerance = 0.0
    pytestmark = pytest.mark.filterwarnings("ignore:.* texts were cut")

    @pytest.fixture
    def encoder(self, saved: Path) -> DenseEncoder:
        return DenseEncoder(saved, device="static")


@pytest.mark.filterwarnings("ignore:.* texts were cut")
@pytest.mark.parametrize(("dtype", "normalize"), [("float32", True), ("float16", False)])
def test_vectors_are_those_of_model2vec(
    tmp_path: Path, tokenizer: Tokenizer, table: Any, texts: list[str], dtype: str, normalize: bool
) -> None:
    StaticModel(table.astype(dtype), tokenizer, normalize=normalize).save_pretrained(tmp_path / "m")
    peer, some = StaticModel.from_pretrained(tmp_path / "m"), [*texts, *STRANGE]
    encoder = DenseEncoder(tmp_path / "m", device="static")
    got = encoder.encode_document(some).embeddings
    np.testing.assert_allclose(got, peer.encode(some), rtol=0, atol=ALIKE if dtype == "float32" else 2e-3)
    assert encoder.runtime.runtime == "static"


@pytest.mark.filterwarnings("ignore:.* texts were cut")
def test_a_quantised_vocabulary_and_its_weights_are_model2vecs(
    tmp_path: Path, tokenizer: Tokenizer, table: Any, texts: list[str]
) -> None:
    rng, size = np.random.default_rng(6), len(table)
    weights, mapping = rng.random(size).astype(np.float32), rng.integers(0, 100, size)
    peer = StaticModel(table[:100], tokenizer, weights=weights, token_mapping=mapping, max_length=None)
    peer.save_pretrained(tmp_path / "m")
    got = DenseEncoder(tmp_path / "m", device="static").encode_query([*texts, *STRANGE]).embeddings
    np.testing.assert_allclose(got, peer.encode([*texts, *STRANGE]), rtol=0, atol=ALIKE)


@pytest.mark.parametrize("settings", [{}, {"normalize": True, "max_tokens": 9, "on_truncation": "chunk"}])
@pytest.mark.parametrize("after", [[], [Normalize()]])
def test_in_sentence_transformers_layout_vectors_and_fingerprint_are_torchs(
    tmp_path: Path, tokenizer: Tokenizer, table: Any, texts: list[str], after: list[Any], settings: dict[str, Any]
) -> None:
    module = StaticEmbedding(tokenizer, embedding_weights=torch.from_numpy(table))
    prompts = {"query": "find: ", "document": ""}
    SentenceTransformer(modules=[module, *after], device="cpu", prompts=prompts).save(str(tmp_path / "m"))
    mine, theirs = (DenseEncoder(tmp_path / "m", device=device, **settings) for device in ("static", "cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for role in ("encode_query", "encode_document"):
            a, b = (getattr(encoder, role)([*texts, *STRANGE]) for encoder in (mine, theirs))
            np.testing.assert_allclose(a.embeddings, b.embeddings, rtol=0, atol=ALIKE)
            assert a.token_counts.tolist() == b.token_counts.tolist()
            assert a.truncated.tolist() == b.truncated.tolist()
    assert mine.fingerprint.differences(theirs.fingerprint) == []


def test_a_table_is_read_without_torch(saved: Path) -> None:
    program = f"""
import sys
from reperio.encoders import DenseEncoder
encoder = DenseEncoder({str(saved)!r}, device="static")
sys.stdout.write(encoder.encode_query(["a canary"]).embeddings.tobytes().hex() + " " + encoder.fingerprint.digest)
assert not {{"torch", "transformers", "sentence_transformers", "model2vec"}} & sys.modules.keys()
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    vector, digest = ran.stdout.split()
    here = DenseEncoder(saved, device="static")
    assert (
        np.frombuffer(bytes.fromhex(vector), np.float32).tolist()
        == here.encode_query(["a canary"]).embeddings[0].tolist()
    )
    assert digest == here.fingerprint.digest


def test_what_model2vec_leaves_out_stands_in_the_fingerprint(saved: Path) -> None:
    fields = dict(DenseEncoder(saved, device="static").fingerprint.fields)
    assert fields["unknown"] == '"left out"'
    assert fields["max_tokens"] == "40"
    with pytest.raises(EmptyText, match=r"texts\[1\].*no token"):
        DenseEncoder(saved, device="static").encode_query(["fine", "\U0001f9ff"])


# Bad input


def test_what_is_no_table_is_refused(saved: Path, plain_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not a table of token vectors"):
        DenseEncoder(plain_bert, device="static").encode_query(["a"])
    with pytest.raises(ConfigurationError, match="holds \\['Transformer', 'Pooling', 'Normalize'\\]"):
        DenseEncoder(device="static").encode_query(["a"])
    with pytest.raises(ConfigurationError, match="no bfloat16"):
        DenseEncoder(saved, device="static", dtype="bfloat16").encode_query(["a"])


def test_a_damaged_table_is_told(saved: Path, tmp_path: Path) -> None:
    for name in ("cut", "bare", "nan"):
        (tmp_path / name).mkdir()
        for file in saved.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "bare" / "tokenizer.json").unlink()
    tensors = load_file(saved / "model.safetensors")
    tensors["embeddings"] = np.full_like(tensors["embeddings"], np.nan)
    save_file(tensors, tmp_path / "nan" / "model.safetensors")
    for name, error in (("cut", CorruptArtifact), ("bare", CorruptArtifact), ("nan", ShapeError)):
        with pytest.raises(error):
            DenseEncoder(tmp_path / name, device="static").encode_query(["a"])


def test_a_text_that_the_tokenizer_cannot_read_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for file in saved.iterdir():
        (tmp_path / "m" / file.name).write_bytes(file.read_bytes())
    definition = json.loads((saved / "tokenizer.json").read_text())
    definition["model"] = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "[none]"}
    definition["added_tokens"], definition["post_processor"] = [], None
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(definition))
    encoder = DenseEncoder(tmp_path / "m", device="static")
    assert len(encoder.encode_query(["a b"]).embeddings) == 1
    with pytest.raises(InvalidInput, match=r"tokenizer cannot read one of texts\[0:2\]"):
        encoder.encode_query(["a b", "c"])
