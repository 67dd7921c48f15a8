"""Presets: each builds, each says what it is, and they are what the layouts of the same families are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reperio import LanguageModel
from reperio.encoders import DecoderEncoder
from reperio.encoders.presets import PRESETS, preset
from reperio.errors import ConfigurationError
from reperio.registry import build

TEXTS = ["Merge sorted inputs.", "Return the current time of day, in seconds since the epoch."]


@pytest.fixture(scope="module")
def model(plain_llama: Path) -> LanguageModel:
    return LanguageModel(plain_llama)


@pytest.mark.parametrize("name", PRESETS)
def test_each_makes_an_encoder_that_is_built_again_from_its_specification(model: LanguageModel, name: str) -> None:
    encoder = DecoderEncoder(model, **preset(name))
    vectors = encoder.encode_query(TEXTS).embeddings
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    spec = json.loads(json.dumps(dict(encoder.spec)))
    again = build({**spec, "model": {"type": "LanguageModel", "model": "unread"}})
    assert {**again.spec, "model": spec["model"]} == spec
    layout = encoder.layout
    settled = {"attention": layout.attention, "prompts": dict(layout.prompts), "max_tokens": layout.max_tokens}
    for key in PRESETS[name].keys() & settled.keys() - {"prompts"}:
        assert settled[key] == PRESETS[name][key]
    assert not any("{instruction}" in prompt for prompt in layout.prompts.values())


def test_one_that_is_built_again_has_the_same_fingerprint(model: LanguageModel) -> None:
    encoder = DecoderEncoder(model, **preset("gritlm"))
    assert build(json.loads(json.dumps(dict(encoder.spec)))).fingerprint == encoder.fingerprint


def test_presets_that_differ_give_other_vectors(model: LanguageModel) -> None:
    seen: dict[bytes, str] = {}
    for name in ("llm2vec", "e5-mistral", "bge", "e5", "bellm", "echo", "prompteol", "sgpt", "gte", "gritlm"):
        vectors = DecoderEncoder(model, **preset(name)).encode_query(TEXTS).embeddings
        assert vectors.tobytes() not in seen, (name, seen.get(vectors.tobytes()))
        seen[vectors.tobytes()] = name


def test_an_instruction_is_where_the_method_puts_it() -> None:
    prompts: Mapping[str, str] = preset("gritlm", instruction="Find a proof.")["prompts"]
    assert prompts["query"] == "<|user|>\nFind a proof.\n<|embed|>\n"
    with pytest.raises(ConfigurationError, match=r"'bge' takes no instruction.*e5-mistral"):
        preset("bge", instruction="Find a proof.")
    with pytest.raises(ConfigurationError, match=r"no preset 'bert'.*bellm, bge"):
        preset("bert")


def test_a_preset_is_not_changed_by_who_uses_it() -> None:
    first: dict[str, Any] = preset("nomic")
    first["prompts"]["query"] = "other"
    assert preset("nomic")["prompts"]["query"] == "search_query: "
