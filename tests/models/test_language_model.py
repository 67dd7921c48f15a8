"""Loading, sharing, adapters, layers, temperature, and what is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from reperio import LanguageModel
from reperio.encoders import DecoderEncoder, DenseEncoder
from reperio.errors import ConfigurationError, NotFound, OutOfMemory, UnsupportedOperation
from reperio.models.pooling import Pooling
from reperio.models.view import View
from reperio.registry import build
from reperio.testing.models import byte_pairs, decoder, save_decoder

FAR = 1e-5


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, plain_llama: Path) -> dict[str, Path]:
    """Two LoRA adapters of the small Llama, one trained with its head on, one of its body alone."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoModelForCausalLM

    out: dict[str, Path] = {}
    for name, maker in (("whole", AutoModelForCausalLM), ("body", AutoModel)):
        base = maker.from_pretrained(plain_llama)
        torch.manual_seed(len(name))
        tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
        out[name] = tmp_path_factory.mktemp(name)
        tuned.save_pretrained(out[name])
    return out


# Sharing


def test_views_share_the_weights_and_nothing_else(plain_llama: Path, adapted: dict[str, Path]) -> None:
    model = LanguageModel(plain_llama, adapters=adapted)
    views = [model.view(v) for v in ("causal", "bidirectional", "last-1", View(adapter="body"), View(depth=2))]
    assert model.view("bidirectional") is views[1]
    own = {name: weight.data_ptr() for name, weight in model.network.named_parameters()}
    for view in views:
        for name, weight in view.model.named_parameters():
            assert weight.data_ptr() == own[name]
        assert view.model is not model.network
        assert view.model.config is not model.config
    assert len(own) > len(list(views[-1].model.named_parameters()))


def test_encoders_of_one_model_load_it_once(plain_llama: Path) -> None:
    model = LanguageModel(plain_llama)
    a, b = model.encoder(attention="bidirectional"), DecoderEncoder(model, pooling="last")
    a.encode_query(["one"])
    b.encode_query(["one"])
    weights = [encoder.model.network.model.embed_tokens.weight.data_ptr() for encoder in (a, b)]
    assert weights[0] == weights[1]


def test_views_run_beside_each_other_in_threads(plain_llama: Path) -> None:
    model = LanguageModel(plain_llama)
    encoders = [model.encoder(attention=name) for name in ("causal", "bidirectional", "last-1", "echo")]
    texts = ["a text of some words", "another", "a third one, which is longer than the others are"] * 5
    wanted = [encoder.encode_query(texts).embeddings for encoder in encoders]
    found: dict[int, list[Any]] = {i: [] for i in range(4)}

    def work(i: int) -> None:
        found[i] = [encoders[i].encode_query(texts).embeddings for _ in range(4)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert len(found[i]) == 4
        for some in found[i]:
            np.testing.assert_allclose(some, wanted[i], rtol=0, atol=FAR)


# Layers and temperature


def test_layers_are_those_of_transformers(plain_llama: Path) -> None:
    model = LanguageModel(plain_llama)
    rows = model.rows().tokenize(["a text of some words"])
    row = model.rows().whole(rows[0])
    with torch.inference_mode():
        ids = torch.tensor(row.ids.astype(np.int64))[None]
        wanted = model.network(ids, output_hidden_states=True).hidden_states
        for packed in (True, False):
            found = model.view().states([row], layers=[0, 1, 2, 3], packed=packed)
            for a, b in zip(found.layers, wanted, strict=True):
                torch.testing.assert_close(a, b[0], rtol=0, atol=FAR)
            shallow = model.view(View(depth=2)).states([row], layers=[1, 2], packed=packed)
            torch.testing.assert_close(shallow.layers[1], wanted[2][0], rtol=0, atol=FAR)
            with pytest.raises(ConfigurationError, match="layer is 3, and 2"):
                model.view(View(depth=2)).states([row], layers=[3], packed=packed)


def test_a_temperature_is_that_of_the_softmax(plain_llama: Path) -> None:
    text = ["a text of some words"]
    sharp = DecoderEncoder(plain_llama, attention=View(temperature=0.5)).encode_query(text).embeddings
    network = decoder("Llama")
    with torch.no_grad():
        for layer in network.model.layers:
            layer.self_attn.q_proj.weight /= 0.5
    wanted = DecoderEncoder(LanguageModel.of(network, byte_pairs())).encode_query(text).embeddings
    np.testing.assert_allclose(sharp, wanted, rtol=0, atol=FAR)
    plain = DecoderEncoder(plain_llama).encode_query(text).embeddings
    assert np.abs(sharp - plain).max() > 1e-3


# Memory


class _Scarce:
    """The mean, on a device with room for so many tokens; counts the batches that it was given."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.sizes: list[int] = []
        self.spec = {"type": "Scarce"}

    def __call__(self, batch: Any) -> Any:
        self.sizes.append(len(batch.ids))
        if len(batch.ids) > self.room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return Pooling("mean")(batch)


@pytest.mark.parametrize("kernel", [None, "sdpa"])
def test_where_memory_runs_out_batches_are_halved_and_vectors_stay(plain_llama: Path, kernel: str | None) -> None:
    texts = [f"text {i} of some words " * (1 + i % 4) for i in range(24)]
    wanted = DecoderEncoder(LanguageModel(plain_llama, kernel=kernel)).encode_document(texts).embeddings
    scarce = _Scarce(60)
    found = DecoderEncoder(LanguageModel(plain_llama, kernel=kernel), pooling=scarce).encode_document(texts).embeddings
    np.testing.assert_allclose(found, wanted, rtol=0, atol=FAR)
    assert max(scarce.sizes) > 60 >= scarce.sizes[-1]
    with pytest.raises(OutOfMemory, match="Not even one text fits into memory: CUDA out of memory"):
        DecoderEncoder(LanguageModel(plain_llama), pooling=_Scarce(3)).encode_document(texts)


def test_no_batch_holds_more_tokens_than_its_budget(plain_llama: Path) -> None:
    texts = [f"text {i} of some words " * (1 + i % 4) for i in range(24)]
    for kernel in (None, "sdpa"):
        seen = _Scarce(10**6)
        model = LanguageModel(plain_llama, kernel=kernel, batch_tokens=100)
        DecoderEncoder(model, pooling=seen).encode_document(texts)
        assert max(seen.sizes) <= 100
        assert len(seen.sizes) > 3


# Adapters


def test_an_adapter_gives_what_peft_gives_and_others_are_not_touched(
    plain_llama: Path, adapted: dict[str, Path]
) -> None:
    from peft import PeftModel
    from transformers import AutoModel, AutoModelForCausalLM

    model = LanguageModel(plain_llama, adapters=adapted)
    plain = LanguageModel(plain_llama).encoder().encode_query(["some words"]).embeddings
    [tokens] = model.rows().tokenize(["some words"])
    row = model.rows().whole(tokens)
    for name, maker in (("whole", AutoModelForCausalLM), ("body", AutoModel)):
        peer = PeftModel.from_pretrained(maker.from_pretrained(plain_llama), adapted[name]).eval()
        with torch.inference_mode():
            out = peer(torch.tensor(row.ids.astype(np.int64))[None], output_hidden_states=True)
            ours = model.view(View(adapter=name)).states([row], packed=True)
        torch.testing.assert_close(ours.states, out.hidden_states[-1][0], rtol=0, atol=FAR)
        np.testing.assert_array_equal(model.encoder().encode_query(["some words"]).embeddings, plain)


def test_an_adapter_is_part_of_the_fingerprint_by_its_content(plain_llama: Path, adapted: dict[str, Path]) -> None:
    model = LanguageModel(plain_llama, adapters=adapted)
    plain, whole, body = (model.encoder(attention=View(adapter=a)).fingerprint for a in (None, "whole", "body"))
    assert [line.partition(":")[0] for line in plain.differences(whole)] == ["adapter"]
    assert [line.partition(":")[0] for line in body.differences(whole)] == ["adapter"]
    again = LanguageModel(plain_llama, adapters={"renamed": adapted["body"]})
    assert again.encoder(attention=View(adapter="renamed")).fingerprint.digest == body.digest


def test_a_model_with_adapters_is_built_again_from_its_specification(
    plain_llama: Path, adapted: dict[str, Path]
) -> None:
    encoder = DecoderEncoder(LanguageModel(plain_llama, adapters=adapted), attention=View("last-1", adapter="body"))
    again: DecoderEncoder = build(json.loads(json.dumps(dict(encoder.spec))))
    assert again.fingerprint == encoder.fingerprint
    assert dict(again.spec) == dict(encoder.spec)


def test_adapters_that_do_not_fit_are_refused(plain_llama: Path, adapted: dict[str, Path], tmp_path: Path) -> None:
    other = save_decoder(tmp_path / "other", "Llama", hidden_size=64)
    with pytest.raises(ConfigurationError, match=r"'whole' was made for .* and does not fit"):
        LanguageModel(other, adapters={"whole": adapted["whole"]}).view()
    phi = save_decoder(tmp_path / "phi", "Phi3")
    with pytest.raises(ConfigurationError, match="does not fit this Phi3ForCausalLM"):
        LanguageModel(phi, adapters={"whole": adapted["whole"]}).view()
    with pytest.raises(NotFound, match="no adapter_config"):
        LanguageModel(plain_llama, adapters={"a": tmp_path}).view()
    with pytest.raises(NotFound, match="There is no adapter 'b'"):
        LanguageModel(plain_llama, adapters=adapted).view(View(adapter="b"))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "adapter_config.json").write_text((adapted["body"] / "adapter_config.json").read_text())
    (pickled / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"no adapter_model\.safetensors"):
        LanguageModel(plain_llama, adapters={"a": pickled}).view()


# Quantised weights


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("dtype", "near"), [("int8", 0.995), ("int4", 0.9)])
def test_quantised_weights_are_shared_by_views_and_near_the_full_ones(tmp_path: Path, dtype: Any, near: float) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    folder = save_decoder(tmp_path / "m", "Llama", hidden_size=128, intermediate_size=256)
    texts = ["a text of some words", "another one"]
    full, model = LanguageModel(folder), LanguageModel(folder, dtype=dtype)
    first = model.encoder(pooling="mean").encode_query(texts).embeddings
    for attention in ("bidirectional", "causal", "last-1"):
        ours, wanted = (m.encoder(attention=attention, pooling="mean") for m in (model, full))
        alone = LanguageModel(folder, dtype=dtype).encoder(attention=attention, pooling="mean")
        found = ours.encode_query(texts).embeddings
        np.testing.assert_array_equal(found, alone.encode_query(texts).embeddings)
        assert ((found * wanted.encode_query(texts).embeddings).sum(axis=1) > near).all()
        assert model.view(attention).packs
    np.testing.assert_array_equal(model.encoder(pooling="mean").encode_query(texts).embeddings, first)
    assert model.network.get_memory_footprint() < 0.8 * full.network.get_memory_footprint()
    assert dtype in dict(ours.fingerprint.fields)["dtype"]


# What is refused


def _without(folder: Path, name: str) -> None:
    (folder / name).unlink()


def _config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def _nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _lacking(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _no_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_nan, r"model\.layers\.1\.mlp\.up_proj\.weight holds 1 values that are NaN"),
        (_lacking, r"lacks model\.layers\.1\.mlp\.up_proj\.weight"),
        (_no_tokenizer, "has no tokenizer"),
        (_truncated, "could not be loaded"),
        (lambda f: _without(f, "model.safetensors"), r"holds no model\.safetensors"),
        (lambda f: _without(f, "config.json"), "could not be loaded"),
        (lambda f: _config(f, model_type="unheard_of", architectures=["X"]), "could not be loaded"),
        (lambda f: _config(f, intermediate_size=96), "in another shape|could not be loaded"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "is pickled"),
    ],
)
def test_a_broken_checkpoint_is_refused_by_what_is_wrong(
    tmp_path: Path, damage: Callable[[Path], None], told: str
) -> None:
    folder = save_decoder(tmp_path / "m", "Llama")
    damage(folder)
    with pytest.raises(ConfigurationError, match=told):
        LanguageModel(folder).view()


def test_code_of_a_models_own_needs_a_full_commit() -> None:
    for revision in (None, "main", "abc123"):
        with pytest.raises(ConfigurationError, match="full commit"):
            LanguageModel("organisation/model", revision=revision, trust_remote_code=True)
    LanguageModel("organisation/model", revision="0" * 40, trust_remote_code=True)


def test_settings_out_of_range_are_refused(plain_llama: Path) -> None:
    for wrong in ({"dtype": "float8"}, {"batch_tokens": 0}):
        with pytest.raises(ConfigurationError, match="is"):
            LanguageModel(plain_llama, **wrong)  # type: ignore[arg-type]
    for wrong in (
        {"dim": 0},
        {"dim": 33},
        {"max_tokens": 0},
        {"max_tokens": 513},
        {"max_tokens": 1},
        {"on_truncation": "cut"},
        {"pooling": "middle"},
        {"prompts": {"passage": "x"}},
        {"prompts": "{text} and {text}"},
    ):
        with pytest.raises(ConfigurationError, match=r"is|names|leave"):
            DecoderEncoder(plain_llama, **wrong).encode_query(["a"])  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="no folder"):
        LanguageModel(Path("nowhere")).view()


def test_a_model_without_experts_has_no_router(plain_llama: Path) -> None:
    model = LanguageModel(plain_llama)
    row = model.rows().whole(model.rows().tokenize(["a"])[0])
    with pytest.raises(ConfigurationError, match="no router"):
        model.view().states([row], router=True)


def test_a_model_in_memory_cannot_be_written_down_but_is_told_by_its_content(plain_llama: Path) -> None:
    model = LanguageModel.of(decoder("Llama"), byte_pairs())
    with pytest.raises(UnsupportedOperation, match="in memory"):
        _ = model.encoder().spec
    one, two = (LanguageModel.of(decoder("Llama", seed=s), byte_pairs()).encoder().fingerprint for s in (0, 1))
    assert model.encoder().fingerprint == one
    assert [line.partition(":")[0] for line in one.differences(two)] == ["weights"]


# A model that is no decoder


def test_minilm_gives_the_same_vectors_as_through_sentence_transformers() -> None:
    texts = ["Merge sorted inputs.", "A red fox, which jumps over a lazy dog and then over another one."]
    ours = DecoderEncoder("all-MiniLM-L6-v2", max_tokens=256)
    wanted = DenseEncoder().encode_document(texts).embeddings
    assert ours.model.view().probe.ahead
    assert ours.model.view().packs
    whole = DecoderEncoder(ours.model, pooling=Pooling("mean", over="row"), max_tokens=256)
    np.testing.assert_allclose(whole.encode_document(texts).embeddings, wanted, rtol=0, atol=1e-6)
