"""Diagnostics of layers and of length: laws that must hold, and what they say of real models on real texts."""

from __future__ import annotations

import heapq
import inspect
import itertools
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio import LanguageModel
from reperio.encoders import DecoderEncoder
from reperio.errors import ConfigurationError, EmptyText, InvalidInput
from reperio.models.collapse import length_collapse
from reperio.models.diagnostics import choose_layer, curvature, invariance, noisy, prompt_entropy
from reperio.models.pooling import Pooling
from reperio.models.view import View

TEXTS = [
    inspect.cleandoc(member.__doc__)
    for module in (heapq, itertools, textwrap)
    for _, member in inspect.getmembers(module, callable)
    if member.__doc__ and len(member.__doc__) > 60
]

seeds = st.integers(0, 2**32 - 1)


def some(seed: int, tokens: int = 12, dim: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(tokens, dim)))


def turned(seed: int, dim: int = 6) -> torch.Tensor:
    """A random rotation."""
    return torch.linalg.qr(some(seed, dim, dim))[0]


@given(seed=seeds, scale=st.floats(0.01, 100))
@settings(max_examples=30)
def test_neither_rotation_nor_scale_changes_a_diagnostic(seed: int, scale: float) -> None:
    states, other = some(seed), some(seed + 1)
    rotation = turned(seed + 2)
    moved = scale * states @ rotation
    assert prompt_entropy(moved) == pytest.approx(prompt_entropy(states), abs=1e-6)
    assert curvature(moved) == pytest.approx(curvature(states), abs=1e-6)
    both = [x.numpy() for x in (states, other)]
    apart = [x.numpy() for x in (moved, other @ rotation)]
    assert invariance(*apart) == pytest.approx(invariance(*both), abs=1e-6)


@given(seed=seeds)
@settings(max_examples=30)
def test_the_order_of_tokens_is_nothing_to_the_entropy_and_a_shift_nothing_to_the_curvature(seed: int) -> None:
    states = some(seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(states)))
    assert prompt_entropy(states[order]) == pytest.approx(prompt_entropy(states), abs=1e-9)
    assert curvature(states + 7 * torch.ones(6)) == pytest.approx(curvature(states), abs=1e-6)
    assert curvature(states.flip(0)) == pytest.approx(curvature(states), abs=1e-9)


def test_the_ends_of_the_scales() -> None:
    one = torch.ones(8, 5) * torch.arange(1, 9)[:, None]  # one direction, one straight line
    assert prompt_entropy(one) == pytest.approx(0, abs=1e-9)
    assert curvature(one) == pytest.approx(0, abs=1e-6)
    assert prompt_entropy(torch.eye(5)) == pytest.approx(1)
    back = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    assert curvature(back) == pytest.approx(np.pi)
    same = np.eye(40)
    assert invariance(same, same) > 0.99
    assert invariance(same, np.roll(same, 1, axis=0)) < 0
    chance = invariance(*(np.random.default_rng(i).normal(size=(200, 400)) for i in (0, 1)))
    assert abs(chance) < 0.05


def test_noise_is_small_and_the_same_each_time() -> None:
    text = TEXTS[0]
    assert noisy(text) == noisy(text) != text
    assert noisy(text, seed=1) != noisy(text)
    assert noisy(text, share=0) == text
    kept = set(text.split()) & set(noisy(text).split())
    assert len(kept) > 0.7 * len(set(text.split()))
    assert noisy("") == ""


# Real models


@pytest.fixture(scope="module")
def minilm() -> LanguageModel:
    return LanguageModel("all-MiniLM-L6-v2")


def test_of_minilm_the_last_layer_is_chosen_which_it_was_trained_for(minilm: LanguageModel) -> None:
    report = choose_layer(minilm, TEXTS[:16], max_tokens=48)
    assert report.layer == 6
    assert report.pooling.spec == Pooling("mean", layer=6).spec
    assert report.invariance[6] > report.invariance[1:6].max() + 0.1
    assert ((report.entropy > 0) & (report.entropy < 1)).all()
    assert report.table().count("\n") == 7
    assert report.table().splitlines()[7].endswith("<")
    assert [axes.get_title() for axes in report.plot().axes] == ["invariance", "entropy", "curvature"]
    vectors = DecoderEncoder(minilm, pooling=report.pooling).encode_document(TEXTS[:2]).embeddings
    own = DecoderEncoder(minilm, pooling=Pooling("mean")).encode_document(TEXTS[:2]).embeddings
    np.testing.assert_allclose(vectors, own, atol=1e-6)


def test_a_decoder_s_layers_are_told_and_any_diagnostic_chooses(data: Callable[[str], Path]) -> None:
    model = LanguageModel(data("lm-stories260k") / "hf")
    for by, best in (("entropy", np.argmax), ("curvature", np.argmin), ("invariance", np.argmax)):
        report = choose_layer(model, TEXTS[:20], by=by, max_tokens=96)  # type: ignore[arg-type]
        assert report.layer == 1 + best(getattr(report, by)[1:])
        assert len(report.entropy) == 6
    again = choose_layer(model, TEXTS[:20], max_tokens=96)
    np.testing.assert_array_equal(again.invariance, report.invariance)


def test_what_is_read_in_passing_is_read_whole(minilm: LanguageModel) -> None:
    many = [f"{text[:40]} {i}" for i, text in enumerate(TEXTS * 5)][:70]  # more than are read at once
    report = choose_layer(minilm, iter(many), max_tokens=16)
    assert report.texts == 70
    with pytest.raises(InvalidInput, match="0 texts have 3 tokens"):
        choose_layer(minilm, ["a", "b"])
    with pytest.raises(ConfigurationError, match="by is 'luck'"):
        choose_layer(minilm, many, by="luck")  # type: ignore[arg-type]


@pytest.mark.parametrize("tell", [choose_layer, length_collapse])
@pytest.mark.parametrize(
    ("texts", "error", "says"),
    [
        ("one text", InvalidInput, "the one text 'one text'"),
        (["a text of words", ""], EmptyText, r"texts\[1\] is ''"),
        (["a text of words"] * 5 + [" "], EmptyText, r"texts\[5\] is ' '"),
        (["a text of words", "\ud800"], InvalidInput, r"texts\[1\] holds half of a surrogate pair"),
        (["a text of words", None], InvalidInput, r"texts\[1\] is a NoneType"),
        (["a text of words", "\u200b\u200b"], EmptyText, r"texts\[1\].*has no token"),
    ],
)
def test_a_text_that_is_none_is_refused_by_its_position(
    minilm: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    tell: Callable[..., Any],
    texts: Any,
    error: type[Exception],
    says: str,
) -> None:
    monkeypatch.setitem(tell.__globals__, "_AT_ONCE", 3)
    with pytest.raises(error, match=says):
        tell(minilm, texts, max_tokens=8)


# Length


def test_the_cosines_of_a_bucket_are_those_of_all_its_pairs(minilm: LanguageModel) -> None:
    found = length_collapse(minilm, iter(TEXTS), edges=(1, 48, 1000), temperatures=(1.0, 0.8), max_tokens=64)
    for row, temperature in enumerate(found.temperatures):
        encoder = DecoderEncoder(
            minilm, attention=View(temperature=temperature), pooling=Pooling(), max_tokens=64, on_truncation="warn"
        )
        encoded = encoder.encode_document(TEXTS)
        lengths = np.minimum(encoded.token_counts, 64)
        for place, inside in enumerate((lengths < 48, lengths >= 48)):
            vectors = encoded.embeddings[inside]
            cosines = (vectors @ vectors.T)[~np.eye(len(vectors), dtype=bool)]
            assert found.cosines[row, place] == pytest.approx(cosines.mean(), abs=1e-5)
            assert found.counts[place] == inside.sum()
    assert np.isnan(found.cosines[:, 2]).all()
    assert found.collapse.shape == (2,)
    np.testing.assert_allclose(found.collapse, found.cosines[:, 1] - found.cosines[:, 0])
    assert found.table().splitlines()[0].endswith("τ=0.8  ")
    assert len(found.plot().axes[0].lines) == 2


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"edges": (8, 4)}, ConfigurationError, r"edges are \[8, 4\]"),
        ({"edges": ()}, ConfigurationError, "edges are"),
        ({"temperatures": ()}, ConfigurationError, "no temperature"),
        ({"edges": (1, 10_000)}, InvalidInput, "two buckets"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    minilm: LanguageModel, how: dict[str, tuple[int, ...]], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        length_collapse(minilm, TEXTS[:3], **how)  # type: ignore[arg-type]
