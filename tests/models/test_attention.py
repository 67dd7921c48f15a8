"""What each attention does, on many architectures, against masks that are written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from reperio.errors import ConfigurationError, UnsupportedOperation
from reperio.models.attention import AttentionMode, summary_mask
from reperio.models.language_model import LanguageModel
from reperio.models.rows import Row
from reperio.models.view import ModelView, View
from reperio.testing.models import ARCHITECTURES, byte_pairs, decoder

FAR = 1e-5
"""Largest difference between two ways to the same states, which are about 1 in size."""

MODES = ("causal", "bidirectional", "last-1", "last-2")


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel.of(decoder(request.param), byte_pairs())


def _rows(*lengths: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [Row(rng.integers(10, 500, n).astype(np.int32), 0, n) for n in lengths]


def _window(model: LanguageModel, layer: int) -> int | None:
    config = model.config
    sliding = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    return sliding if kinds is None or kinds[layer] == "sliding_attention" else None


def _reference(model: LanguageModel, ids: Any, ahead: Sequence[bool]) -> list[Any]:
    """States of every layer by transformers' own layers, each given a mask that is written out for it."""
    base = model.network.base_model
    at = torch.arange(len(ids))
    back = at[:, None] - at[None, :]

    def mask(layer: int) -> Any:
        window, both = _window(model, layer), ahead[layer]
        seen = torch.ones_like(back, dtype=torch.bool) if both else back >= 0
        if window is not None:
            seen &= (back.abs() <= window) if both else (back < window)
        return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]

    def given(layer: int) -> Any:
        def hook(module: Any, some: Any, named: dict[str, Any]) -> Any:
            return some, {**named, "attention_mask": mask(layer)}

        return hook

    before = base.config._attn_implementation
    base.set_attn_implementation("eager")
    layers = base.layers
    hooks = [layer.register_forward_pre_hook(given(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        with torch.inference_mode():
            out = base(input_ids=torch.tensor(np.array(ids))[None].long(), output_hidden_states=True, use_cache=False)
    finally:
        base.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()
    return [state[0] for state in out.hidden_states]


@pytest.mark.parametrize("mode", MODES)
def test_states_are_those_of_a_mask_written_out_for_each_layer(model: LanguageModel, mode: str) -> None:
    view = model.view(mode)
    depth = view.depth
    ahead = [AttentionMode.parse(mode).sees_ahead(layer, depth) for layer in range(depth)]
    rows = _rows(5, 17, 17, 2, 11)  # beyond the sliding windows, two of one length
    wanted = [_reference(model, row.ids, ahead) for row in rows]
    for packed in {view.packs, False}:
        with torch.inference_mode():
            found = view.states(rows, layers=range(depth + 1), packed=packed)
        for layer in range(depth + 1):
            for i in range(len(rows)):
                part = found.layers[layer][found.offsets[i] : found.offsets[i + 1]]
                torch.testing.assert_close(part, wanted[i][layer], rtol=0, atol=FAR)


@pytest.mark.parametrize("mode", MODES)
def test_the_last_token_changes_the_first_state_exactly_when_it_should(model: LanguageModel, mode: str) -> None:
    view = model.view(mode)
    [row] = _rows(5)
    other = Row(np.array([*row.ids[:-1], 7], dtype=np.int32), 0, 5)
    layers = range(view.depth + 1)
    with torch.inference_mode():
        a, b = (view.states([r], layers=layers, packed=view.packs) for r in (row, other))
    moved = [float((x[0] - y[0]).abs().max()) > FAR for x, y in zip(a.layers, b.layers, strict=True)]
    first = {"causal": view.depth + 1, "bidirectional": 1}.get(
        mode, view.depth + 1 - AttentionMode.parse(mode).both_ways
    )
    assert moved == [layer >= first for layer in layers]


@pytest.mark.parametrize("mode", MODES)
def test_neither_neighbours_nor_batches_nor_packing_change_a_state(model: LanguageModel, mode: str) -> None:
    view = model.view(mode)
    assert view.packs
    rows = _rows(9, 3, 14, 1, 9, 22, 6)
    alone = [_run(view, [row], 64)[0] for row in rows]
    for budget in (1, 23, 40, 1000):
        for found, wanted in zip(_run(view, rows, budget), alone, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=FAR)


def test_padding_on_the_other_side_changes_nothing(model: LanguageModel) -> None:
    for mode in ("causal", "bidirectional"):
        view = model.view(mode)
        short, long = _rows(4, 9)
        ids = torch.zeros(2, 9, dtype=torch.long)
        ids[0, 5:], ids[1] = torch.tensor(short.ids), torch.tensor(long.ids)
        mask = torch.ones_like(ids)
        mask[0, :5] = 0
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        with torch.inference_mode():
            how = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
            left = view.model.base_model(input_ids=ids, **how).last_hidden_state
            ours = view.states([short, long], packed=view.packs)
        torch.testing.assert_close(left[0, 5:], ours.states[:4], rtol=0, atol=FAR)
        torch.testing.assert_close(left[1], ours.states[4:], rtol=0, atol=FAR)


def test_the_model_itself_is_left_causal(model: LanguageModel) -> None:
    row = torch.tensor(_rows(9)[0].ids)[None].long()
    with torch.inference_mode():
        before = model.network(row).logits
        for mode in MODES:
            _run(model.view(mode), _rows(5, 9), 64)
        after = model.network(row).logits
    torch.testing.assert_close(before, after, rtol=0, atol=0)
    assert getattr(model.config, "is_causal", True) is not False


def _run(view: ModelView, rows: Sequence[Row], budget: int) -> list[Any]:
    out: list[Any] = [None] * len(rows)
    for batch, results in view.run(rows, _each, budget=budget):
        for position, result in zip(batch.tolist(), results, strict=True):
            out[position] = result.numpy()
    return out


def _each(batch: Any) -> list[Any]:
    return [batch.states[a:b] for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]


# Summary tokens


def test_what_follows_summary_tokens_sees_the_text_through_them_alone() -> None:
    lengths, starts, stops = [6, 4], [2, 1], [4, 2]
    mask = summary_mask(lengths, starts, stops, width=6)[:, 0]
    assert mask[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 1],
    ]
    assert not mask[1][:4, 4:].any()
    assert mask[1].any(dim=1).all()


def test_with_summary_tokens_a_changed_text_is_unseen_by_the_first_layer_after_them(model: LanguageModel) -> None:
    view = model.view(View("summary", summary=("<sum>",)))
    ids = _rows(9)[0].ids
    other = ids.copy()
    other[1] = 7
    rows = [Row(some, 5, 6) for some in (ids, other)]  # five of text, one summary token, three after it
    with torch.inference_mode():
        a, b = (view.states([row], layers=range(view.depth + 1)) for row in rows)
    first, last = ((x - y).abs().amax(dim=1) for x, y in zip(a.layers[1:3], b.layers[1:3], strict=True))
    assert first[5] > FAR
    assert (first[6:] <= FAR).all()
    assert (last[6:] > FAR).all()  # through the summary token, a layer later


def test_summary_tokens_need_their_names() -> None:
    with pytest.raises(ConfigurationError, match="summary names 0"):
        View("summary")
    with pytest.raises(ConfigurationError, match="summary names 1"):
        View("causal", summary=("<sum>",))


# Refusals


def test_an_architecture_that_ignores_the_switch_is_refused() -> None:
    from transformers import AutoModel, StableLmConfig

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = StableLmConfig(vocab_size=600, num_attention_heads=4, num_key_value_heads=4, **sizes)
    model = LanguageModel.of(AutoModel.from_config(config), byte_pairs())
    with pytest.raises(UnsupportedOperation, match="does not see the last one"):
        model.view("bidirectional")
    assert not model.view("causal").packs
    assert model.view("causal").probe.why_padded


@pytest.mark.parametrize("name", ["both", "last-0", "last-", "Causal", ""])
def test_an_attention_of_no_such_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="attention is"):
        View(name)


def test_more_layers_than_there_are_are_refused() -> None:
    model = LanguageModel.of(decoder("Llama"), byte_pairs())
    for view in (View("last-4"), View(depth=4)):
        with pytest.raises(ConfigurationError, match="3 layers"):
            model.view(view)
    for wrong in ({"depth": 0}, {"temperature": 0.0}, {"temperature": float("nan")}):
        with pytest.raises(ConfigurationError, match="is"):
            View(**wrong)  # type: ignore[arg-type]
