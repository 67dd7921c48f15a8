"""Where the dense encoder's models come from, how they are told apart, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import BoW, StaticEmbedding
from tokenizers import Tokenizer

from reperio.encoders import DenseEncoder
from reperio.errors import (
    ConfigurationError,
    EmptyText,
    InvalidInput,
    NotFound,
    ShapeError,
    UnsupportedOperation,
)
from reperio.registry import build

Make = Callable[..., SentenceTransformer]

ALIKE = 1e-6
"""Largest difference between two vectors of one text, in float32: what the encoder states."""


# Where models come from, and how they are told apart


def test_the_folder_and_its_name_do_not_change_the_fingerprint(make: Make, tmp_path: Path) -> None:
    make(Dense(32, 8), Normalize(), prompts={"query": "q: "}).save(str(tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere" / "two")
    one, two = (DenseEncoder(tmp_path / name, device="cpu") for name in ("one", "elsewhere/two"))
    assert one.fingerprint.differences(two.fingerprint) == []
    assert one.fingerprint.digest == two.fingerprint.digest
    assert one.fingerprint.model != two.fingerprint.model
    np.testing.assert_array_equal(one.encode_query(["a"]).embeddings, two.encode_query(["a"]).embeddings)


def test_the_fingerprint_names_what_differs(make: Make, tmp_path: Path) -> None:
    def saved(name: str, *after: Any, **how: Any) -> Path:
        make(*after, **how).save(str(tmp_path / name))
        return tmp_path / name

    base = saved("base")
    other = saved("weights")
    weights = torch.nn.Linear(2, 2).weight.detach()
    from safetensors.torch import load_file, save_file

    tensors = load_file(other / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][7, :2] = weights[0]
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    tokenizer = json.loads((saved("tokenizer") / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer))

    fingerprint = DenseEncoder(base).fingerprint
    expected = {
        DenseEncoder(other): {"weights"},
        DenseEncoder(tmp_path / "tokenizer"): {"tokenizer"},
        DenseEncoder(saved("pooling", pooling="cls")): {"pooling"},
        DenseEncoder(saved("prompts", prompts={"query": "q: "})): {"prompts"},
        DenseEncoder(saved("module", Normalize())): {"modules", "normalized"},
        DenseEncoder(base, normalize=True): {"normalized"},
        DenseEncoder(base, max_tokens=12): {"max_tokens"},
        DenseEncoder(base, on_truncation="chunk"): {"truncation"},
        DenseEncoder(base, on_truncation="error"): set[str](),
        DenseEncoder(base, batch_tokens=64): set[str](),
    }
    for encoder, names in expected.items():
        assert {line.partition(":")[0] for line in encoder.fingerprint.differences(fingerprint)} == names


def test_a_model_in_memory_is_told_by_its_tensors(make: Make) -> None:
    model = make()
    before = DenseEncoder(model).fingerprint
    assert DenseEncoder(model).fingerprint == before
    with torch.no_grad():
        model[0].model.embeddings.word_embeddings.weight[5, 5] += 1
    assert [line.partition(":")[0] for line in DenseEncoder(model).fingerprint.differences(before)] == ["weights"]
    with pytest.raises(UnsupportedOperation, match="in memory"):
        _ = DenseEncoder(model).spec


def test_a_model_in_memory_is_left_as_it_was(make: Make, texts: list[str]) -> None:
    model = make(Normalize())
    model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = DenseEncoder(model, normalize=False, max_tokens=7)
        first, second = encoder.encode_query(texts), encoder.encode_query(texts)
    np.testing.assert_array_equal(first.embeddings, second.embeddings)
    assert model.max_seq_length == 24
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]


def test_making_an_encoder_loads_nothing_and_its_vectors_are_the_same_in_another_process(
    minilm: DenseEncoder,
) -> None:
    program = """
import sys
from reperio.encoders import DenseEncoder
from reperio.registry import build
encoder = build(DenseEncoder(device="cpu").spec)
assert not {"torch", "transformers", "sentence_transformers"} & sys.modules.keys(), "a heavy import"
sys.stdout.write(encoder.encode_query(["a canary", "東京"]).embeddings.tobytes().hex())
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    other = np.frombuffer(bytes.fromhex(ran.stdout), dtype=np.float32).reshape(2, -1)
    # bitsandbytes, where it is installed, says of itself what it cannot load.
    assert [line for line in ran.stderr.splitlines() if "gemm_4bit" not in line] == []
    np.testing.assert_allclose(other, minilm.encode_query(["a canary", "東京"]).embeddings, rtol=0, atol=ALIKE)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as the hub's client leaves it, read offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    return tmp_path


def test_a_name_is_read_from_the_hubs_cache_at_its_revision(hub: Path, make: Make) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = hub / "models--sentence-transformers--tiny"
    make().save(str(repository / "snapshots" / commit))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    by_name, pinned = DenseEncoder("tiny"), DenseEncoder("sentence-transformers/tiny", revision=commit)
    assert by_name.fingerprint.differences(pinned.fingerprint) == []
    assert pinned.fingerprint.model == f"sentence-transformers/tiny@{commit}"
    assert build(pinned.spec).fingerprint == pinned.fingerprint
    with pytest.raises(NotFound, match="'v2'"):
        _ = DenseEncoder("tiny", revision="v2").fingerprint


@pytest.mark.parametrize("name", ["no-such-model", "org/no-such-model", "a/b/c", "/no/such/folder"])
def test_a_model_that_is_nowhere_is_not_found(hub: Path, name: str) -> None:
    with pytest.raises(NotFound, match=name):
        DenseEncoder(name).encode_query(["a"])
    with pytest.raises(NotFound, match="no folder"):
        DenseEncoder(Path(name)).encode_query(["a"])


# Bad input


@pytest.mark.parametrize(
    ("setting", "value"),
    [("dtype", "float64"), ("on_truncation", "cut"), ("max_tokens", 0), ("batch_tokens", -1)],
)
def test_a_setting_out_of_range_is_refused_by_name(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{setting} is {value!r}"):
        DenseEncoder(**{setting: value})


def test_what_is_no_model_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="model is a int"):
        DenseEncoder(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="revision and device"):
        DenseEncoder(make(), device="cpu")
    with pytest.raises(ConfigurationError, match="computes in float16"):
        DenseEncoder(make().half()).encode_query(["a"])
    with pytest.raises(ConfigurationError, match="has no revision 'main'"):
        DenseEncoder(tmp_path, revision="main").encode_query(["a"])
    with pytest.raises(ConfigurationError, match="no-such-device"):
        DenseEncoder(device="no-such-device").encode_query(["a"])


def test_half_of_a_surrogate_pair_is_refused_by_its_position(minilm: DenseEncoder, plain_bert: Path) -> None:
    tokenizer = Tokenizer.from_file(str(plain_bert / "tokenizer.json"))
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4)], device="cpu")
    for encoder in (minilm, DenseEncoder(static)):
        with pytest.raises(InvalidInput, match=r"texts\[1\] holds half of a surrogate pair at character 2"):
            encoder.encode_document(["fine", "a \ud83d b"])


def test_a_text_without_a_token_is_refused_by_its_position(plain_bert: Path) -> None:
    tokenizer = Tokenizer.from_file(str(plain_bert / "tokenizer.json"))
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4)], device="cpu")
    with pytest.raises(EmptyText, match=r"texts\[1\].*no token"):
        DenseEncoder(model).encode_document(["fine", "\u200b"])


def test_only_safetensors_are_read(make: Make, tmp_path: Path) -> None:
    make(Dense(32, 8)).save(str(tmp_path / "m"))
    shutil.copytree(tmp_path / "m", tmp_path / "part")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    (tmp_path / "part" / "2_Dense" / "model.safetensors").rename(tmp_path / "part" / "2_Dense" / "pytorch_model.bin")
    for folder in ("m", "part"):
        with pytest.raises(ConfigurationError, match="pickled"):
            DenseEncoder(tmp_path / folder).encode_query(["a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"holds no model\.safetensors"):
        DenseEncoder(tmp_path / "empty").encode_query(["a"])


def test_a_damaged_folder_is_refused_with_the_reason(make: Make, tmp_path: Path) -> None:
    make().save(str(tmp_path / "m"))
    shutil.copytree(tmp_path / "m", tmp_path / "foreign")
    weights = (tmp_path / "m" / "model.safetensors").read_bytes()
    (tmp_path / "m" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ConfigurationError, match="could not be loaded"):
        DenseEncoder(tmp_path / "m").encode_query(["a"])
    modules = (tmp_path / "foreign" / "modules.json").read_text()
    (tmp_path / "foreign" / "modules.json").write_text(modules.replace("sentence_transformers.", "my_code."))
    (tmp_path / "foreign" / "my_code.py").write_text("raise SystemExit('ran code of the model')")
    with pytest.raises(ConfigurationError, match="trust_remote_code"):
        DenseEncoder(tmp_path / "foreign").encode_query(["a"])


def test_a_model_that_reads_texts_in_a_way_of_its_own_is_refused(make: Make) -> None:
    chat, changed, bag = make(), make(), SentenceTransformer(modules=[BoW(["a", "b"])], device="cpu")
    chat[0].modality_config["message"] = chat[0].modality_config["text"]
    changed[0].processing_kwargs = {"text": {"add_special_tokens": False}}
    for model, why in ((chat, "chat template"), (changed, "add_special_tokens"), (bag, "BoW")):
        with pytest.raises(UnsupportedOperation, match=why):
            DenseEncoder(model).encode_query(["a"])


def test_a_model_that_gives_no_number_is_caught(make: Make) -> None:
    model = make()
    encoder = DenseEncoder(model)
    encoder.encode_query(["a"])
    with torch.no_grad():
        model[0].model.embeddings.LayerNorm.bias[0] = float("nan")
    with pytest.raises(ShapeError, match="NaN"):
        encoder.encode_query(["a"])
