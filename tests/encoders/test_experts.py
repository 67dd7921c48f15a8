"""Routing weights of mixture-of-experts models as embeddings: against plain transformers, and as a law."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from reperio import LanguageModel
from reperio.encoders import DecoderEncoder
from reperio.encoders.experts import PROMPT, moee
from reperio.errors import ConfigurationError, InvalidInput
from reperio.models.pooling_experts import ExpertRouting
from reperio.models.states import TokenStates
from reperio.testing.encoder import EncoderContract
from reperio.testing.models import byte_pairs, save_decoder

MODELS = ("Mixtral", "Qwen3Moe", "Olmoe")
SAMPLE = [f"Item {i}: " + "a word or two, " * (i % 4) + "and done." for i in range(12)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model of each family; its routers tell tokens apart."""
    out: dict[str, Path] = {}
    for name in MODELS:
        folder = out[name] = tmp_path_factory.mktemp(name)
        save_decoder(folder, name)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if ".gate.weight" in key:
                    weight.mul_(30)
        model.save_pretrained(folder)
    return out


@cache
def opened(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def plain(folder: Path, text: str) -> tuple[Any, Any]:
    """State and routing weights of a text's last token, by one call of transformers."""
    model = opened(folder)
    ids = torch.tensor([byte_pairs()(PROMPT.replace("{text}", text))["input_ids"]])
    with torch.inference_mode():
        out = model(input_ids=ids, output_router_logits=True, output_hidden_states=True)
    routing = torch.cat([torch.softmax(logits.view(ids.shape[1], -1)[-1], dim=-1) for logits in out.router_logits])
    return out.hidden_states[-1][0, -1].numpy(), routing.numpy()


@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_plain_transformers_gives(folders: dict[str, Path], name: str) -> None:
    both = [np.concatenate(plain(folders[name], text)) for text in SAMPLE]
    mean, deviation = np.mean(both, axis=0), np.maximum(np.std(both, axis=0, ddof=1), 1e-6)
    encoder = moee(LanguageModel(folders[name]), SAMPLE, alpha=0.5)
    vectors = encoder.encode_document(SAMPLE).embeddings
    for values, vector in zip(both, vectors, strict=True):
        state, routing = np.split((values - mean) / deviation, [32])
        wanted = [state / np.linalg.norm(state), 0.5**0.5 * routing / np.linalg.norm(routing)]
        np.testing.assert_allclose(vector, np.concatenate(wanted), rtol=0, atol=2e-4)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.5**0.5, rtol=1e-5)
    assert encoder.dim == vectors.shape[1] == len(both[0])


def cosine(a: Any, b: Any) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@given(seed=st.integers(0, 2**32 - 1), alpha=st.floats(0, 8))
def test_the_inner_product_is_the_weighted_sum_of_the_cosines(seed: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    states, logits = rng.normal(size=(5, 6)).astype(np.float32), rng.normal(size=(2, 5, 4)).astype(np.float32)
    offsets = np.array([0, 3, 5])
    batch = TokenStates(
        torch.zeros(5),
        (torch.from_numpy(states),),
        offsets,
        np.array([[0, 3], [3, 5]]),
        tuple(torch.from_numpy(layer) for layer in logits),
    )
    one, two = ExpertRouting(alpha)(batch).numpy()
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    routing = [np.concatenate([layer[last] for layer in weights]) for last in (2, 4)]
    assert one @ two == pytest.approx(cosine(states[2], states[4]) + alpha * cosine(*routing), abs=1e-4)


def test_what_was_fitted_is_in_the_fingerprint(folders: dict[str, Path]) -> None:
    model = LanguageModel(folders["Olmoe"])
    one, same, other = (moee(model, some).fingerprint for some in (SAMPLE, SAMPLE, SAMPLE[:6]))
    assert one == same
    assert any("pooling" in line for line in one.differences(other))


def test_a_sample_that_is_too_small_and_a_model_without_experts_are_refused(
    folders: dict[str, Path], plain_llama: Path
) -> None:
    with pytest.raises(InvalidInput, match="sample has 1 texts"):
        moee(LanguageModel(folders["Olmoe"]), SAMPLE[:1])
    with pytest.raises(ConfigurationError, match="has no router"):
        moee(LanguageModel(plain_llama), SAMPLE)
    head = ExpertRouting(mean=[1.0] * 3, deviation=[1.0] * 3)
    other = DecoderEncoder(LanguageModel(folders["Olmoe"]), pooling=head)
    with pytest.raises(ConfigurationError, match="mean and deviation have 3 values"):
        other.encode_query(["a"])


@pytest.mark.parametrize("settings", [{"alpha": -1.0}, {"mean": [1.0]}, {"mean": [1.0], "deviation": [1.0, 2.0]}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"alpha is|not of one length"):
        ExpertRouting(**settings)


class TestExperts(EncoderContract):
    tolerance = 1e-4

    @pytest.fixture(scope="class")
    def encoder(self, folders: dict[str, Path]) -> DecoderEncoder:
        return moee(LanguageModel(folders["Qwen3Moe"]), SAMPLE)
