"""Poolings, plain and trained: laws, training, and what is kept in a folder."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer

from reperio import LanguageModel
from reperio.encoders import DecoderEncoder
from reperio.errors import ConfigurationError, DiskFull, NotFound, UnsupportedOperation
from reperio.models.pooling import Pooling
from reperio.models.pooling_experts import ExpertRouting
from reperio.models.pooling_latent import LatentAttention
from reperio.models.pooling_layers import MultiLayerPooling
from reperio.models.projection import Projected, Projection
from reperio.models.states import TokenStates
from reperio.models.trainable import TrainablePooling
from reperio.registry import build
from reperio.testing.encoder import EncoderContract

DIM, DEPTH = 32, 3
TEXTS = ["Merge sorted inputs.", "Return the current time of day, in seconds.", "short", "A queue of work to be done."]

MAKERS: dict[str, Callable[[], TrainablePooling]] = {
    "latent": lambda: LatentAttention(DIM, latents=6, heads=4, head_dim=8),
    "layers": lambda: MultiLayerPooling(DIM, DEPTH, queries=2, heads=4, out=24),
}


def made(name: str) -> TrainablePooling:
    torch.manual_seed(4)
    return MAKERS[name]()


def ragged_states(lengths: list[int], layers: int = DEPTH, *, lead: int = 0) -> TokenStates:
    rng = np.random.default_rng(sum(lengths))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    states = tuple(torch.from_numpy(rng.normal(size=(offsets[-1], DIM)).astype(np.float32)) for _ in range(layers))
    spans = np.stack([offsets[:-1] + max(1, lead), offsets[1:] - 1], axis=1)
    return TokenStates(torch.zeros(int(offsets[-1])), states, offsets, spans, (), np.array([lead] * len(lengths)))


def row(batch: TokenStates, i: int) -> TokenStates:
    """One row of a batch alone."""
    part = slice(int(batch.offsets[i]), int(batch.offsets[i + 1]))
    offsets = batch.offsets[i : i + 2] - batch.offsets[i]
    states = tuple(states[part] for states in batch.layers)
    return TokenStates(
        batch.ids[part], states, offsets, batch.spans[i : i + 1] - batch.offsets[i], (), batch.leads[i : i + 1]
    )


POOLINGS: list[Any] = [Pooling(mode) for mode in ("cls", "mean", "weightedmean", "max", "last", "eos")]
POOLINGS += [Pooling(mode, over=over) for mode in ("mean", "max") for over in ("onward", "unprompted", "row")]


@pytest.mark.parametrize("pooling", [*POOLINGS, *(made(name) for name in MAKERS)], ids=lambda p: getattr(p, "mode", ""))
@pytest.mark.parametrize("lead", [0, 3])
def test_a_row_s_vector_does_not_hang_on_the_rows_beside_it(pooling: Any, lead: int) -> None:
    batch = ragged_states([9, 5, 12, 6], lead=lead)
    with torch.inference_mode():
        together = pooling(batch)
        for i in range(4):
            torch.testing.assert_close(pooling(row(batch, i))[0], together[i], rtol=0, atol=1e-6)


def test_each_region_counts_the_tokens_that_it_names() -> None:
    batch = ragged_states([8], lead=3)
    states, text = batch.states, batch.spans[0]
    wanted = {"text": states[text[0] : text[1]], "onward": states[text[0] :], "unprompted": states[3:], "row": states}
    for over, part in wanted.items():
        torch.testing.assert_close(Pooling("mean", over=over)(batch)[0], part.mean(dim=0))  # type: ignore[arg-type]
    ramp = torch.arange(1, 1 + text[1] - text[0]).float()[:, None]
    torch.testing.assert_close(
        Pooling("weightedmean")(batch)[0], (ramp * states[text[0] : text[1]]).sum(dim=0) / ramp.sum()
    )


# Training


@pytest.mark.parametrize("name", MAKERS)
def test_every_parameter_gets_a_gradient_and_a_few_steps_fit_two_texts(name: str) -> None:
    pooling, batch = made(name), ragged_states([9, 5])
    target = torch.nn.functional.normalize(torch.randn(2, pooling(batch).shape[1]), dim=1)
    optimizer, losses = torch.optim.Adam(pooling.parameters(), lr=0.02), []
    for _ in range(60):
        loss = 1 - torch.nn.functional.cosine_similarity(pooling(batch), target).mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in pooling.parameters())
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.05 < losses[0]


def test_the_model_below_a_pooling_is_trained_with_it(plain_llama: Path) -> None:
    model = LanguageModel(plain_llama)
    view, head = model.view("bidirectional"), made("layers")
    rows = [model.rows().whole(tokens) for tokens in model.rows().tokenize(TEXTS[:2])]
    for weight in view.model.parameters():
        weight.requires_grad_(True)
    head(view.states(rows, layers=head.layers)).square().sum().backward()
    weight = view.model.base_model.layers[0].self_attn.q_proj.weight
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


# Folders


@pytest.mark.parametrize("name", MAKERS)
def test_a_saved_pooling_is_the_same_again(tmp_path: Path, name: str) -> None:
    pooling, batch = made(name), ragged_states([9, 5])
    with pytest.raises(UnsupportedOperation, match="save"):
        _ = pooling.spec
    pooling.save(tmp_path / "p")
    again = build(json.loads(json.dumps(dict(pooling.spec))))
    assert type(again) is type(pooling)
    assert again.fields() == pooling.fields()
    assert torch.equal(again(batch), pooling(batch))
    with torch.no_grad():
        next(pooling.parameters()).add_(1)
    assert again.fields() != pooling.fields()
    with pytest.raises(UnsupportedOperation, match="in memory"):  # the folder holds what it was before
        _ = pooling.spec


@pytest.mark.parametrize("name", MAKERS)
def test_a_sentence_transformers_model_with_it_is_kept_opened_and_read_here(
    tmp_path: Path, plain_llama: Path, name: str
) -> None:
    body = Transformer(str(plain_llama), max_seq_length=64, config_kwargs={"output_hidden_states": True})
    whole = SentenceTransformer(modules=[body, made(name), Normalize()], device="cpu")
    ends = [text + "</s>" if name == "latent" else text for text in TEXTS]  # which there is the caller's to add
    wanted = whole.encode(ends)
    whole.save(str(tmp_path / "st"))
    np.testing.assert_allclose(
        SentenceTransformer(str(tmp_path / "st"), trust_remote_code=True).encode(ends), wanted, rtol=0, atol=1e-6
    )
    ours = DecoderEncoder(tmp_path / "st")
    vectors = ours.encode_document(TEXTS).embeddings
    np.testing.assert_allclose(vectors, wanted, rtol=0, atol=1e-5)
    assert type(ours.layout.pooling).__name__ == type(made(name)).__name__


def test_a_region_that_features_cannot_tell_is_kept_and_not_trained_there(tmp_path: Path) -> None:
    head = MultiLayerPooling(DIM, DEPTH, heads=4, over="text")
    head.save(tmp_path)
    again, batch = MultiLayerPooling(folder=tmp_path), ragged_states([9, 5])
    assert again.settings["over"] == "text"
    rows = MultiLayerPooling(DIM, DEPTH, heads=4)
    rows.load_state_dict(head.state_dict())
    assert (again(batch) - rows(batch)).abs().max() > 1e-3
    with pytest.raises(UnsupportedOperation, match="over is 'text'"):
        again({})


def test_what_a_pooling_inside_needs_is_asked_for() -> None:
    assert Projected(ExpertRouting(), []).router
    assert not Projected(Pooling(), []).router


def test_linear_layers_follow_a_pooling(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = Projection(DIM, 16, activation="Tanh", use_residual=True)
    second = Projection(16, 16, bias=False, use_residual=True)
    head, batch = Projected(Pooling("mean"), [first, second]), ragged_states([9, 5])
    mean = Pooling("mean")(batch)
    one = torch.tanh(first.linear(mean)) + mean @ first.residual.weight.T
    torch.testing.assert_close(head(batch), one @ second.linear.weight.T + one)
    for place, part in enumerate(head.projections):
        part.save(tmp_path / str(place))
    again = build(json.loads(json.dumps(dict(head.spec))))
    assert torch.equal(again(batch), head(batch))
    assert again.fields() == head.fields()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LatentAttention(), "given neither dim nor a folder"),
        (lambda: LatentAttention(8, heads=0), "heads is 0"),
        (lambda: MultiLayerPooling(8), "given neither depth"),
        (lambda: MultiLayerPooling(9, 2, heads=2), "heads is 2, and dim 9"),
        (lambda: MultiLayerPooling(8, 2, mode="median"), "mode is 'median'"),  # type: ignore[arg-type]
        (lambda: MultiLayerPooling(8, 2, over="all"), "over is 'all'"),  # type: ignore[arg-type]
        (lambda: MultiLayerPooling("8", 2), "dim='8'.*cannot be made"),  # type: ignore[arg-type]
        (lambda: LatentAttention(8, latents=2.5), "latents=2.5.*cannot be made"),  # type: ignore[arg-type]
        (lambda: Projection(8, 4, activation=5), "activation_function=5.*cannot be made"),  # type: ignore[arg-type]
        (lambda: Projection(8, 4, activation="os.system"), "no module of torch.nn"),
        (lambda: Projection(8, 4, activation="Parameter"), "no module of torch.nn"),
        (lambda: Pooling("median"), "pooling is 'median'"),  # type: ignore[arg-type]
        (lambda: Pooling("mean", over="all"), "over is 'all'"),  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        make()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"holds no config.json"):
        LatentAttention(folder=tmp_path)
    made("layers").save(tmp_path)
    with pytest.raises(ConfigurationError, match="not of a LatentAttention"):
        LatentAttention(folder=tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "queries": weights["queries"][:1].contiguous()}, tmp_path / "model.safetensors")
    with pytest.raises(
        ConfigurationError, match=r"the weight queries has the shape \(1, 32\), and \(2, 32\) is wanted"
    ):
        MultiLayerPooling(folder=tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(ConfigurationError, match=r"model\.safetensors holds no weights"):
        MultiLayerPooling(folder=tmp_path)


def test_a_folder_stays_as_it_was_where_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made("layers").save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFull):
        made("latent").save(tmp_path)
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("made_of", MAKERS)
class TestTrainedPoolings(EncoderContract):
    @pytest.fixture(scope="class")
    def model(self, plain_llama: Path) -> LanguageModel:
        return LanguageModel(plain_llama)

    @pytest.fixture
    def encoder(self, model: LanguageModel, tmp_path: Path, made_of: str) -> DecoderEncoder:
        pooling = made(made_of)
        pooling.save(tmp_path)
        return DecoderEncoder(model, attention="bidirectional", pooling=pooling, max_tokens=120, on_truncation="chunk")
