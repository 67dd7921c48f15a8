"""What a checkpoint can hide: replaced modules, other settings, positions that change, code from elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reperio import LanguageModel
from reperio.encoders import ChunkEncoder, DecoderEncoder
from reperio.errors import ConfigurationError, ShapeError, UnsupportedOperation
from reperio.models.checkpoint import weights_digest
from reperio.models.rows import RowMaker
from reperio.models.view import View
from reperio.testing.models import byte_pairs, decoder, save_decoder

FAR = 1e-5


def _config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


# Adapters


def test_an_adapter_that_replaces_whole_modules_touches_no_other_view(plain_llama: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(plain_llama)
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"]))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "norm.modules_to_save" in name:
                weight *= 3
                weight[:16] *= -1
    tuned.save_pretrained(tmp_path / "whole")
    text = ["a text of some words"]
    plain = DecoderEncoder(plain_llama).encode_query(text).embeddings
    model = LanguageModel(plain_llama, adapters={"whole": tmp_path / "whole"})
    with_it = model.encoder(attention=View(adapter="whole")).encode_query(text).embeddings
    without = model.encoder().encode_query(text).embeddings
    np.testing.assert_allclose(without, plain, rtol=0, atol=FAR)
    assert np.abs(with_it - plain).max() > 0.01


@pytest.mark.parametrize("broken", ["{", "[]", "{}"])
def test_a_broken_adapter_is_refused(plain_llama: Path, tmp_path: Path, broken: str) -> None:
    (tmp_path / "adapter_config.json").write_text(broken)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"garbage")
    with pytest.raises(ConfigurationError, match=r"could not be read|is no object"):
        LanguageModel(plain_llama, adapters={"a": tmp_path}).view()
    with pytest.raises(ConfigurationError, match=r"could not be read|is no object|names no base"):
        LanguageModel(tmp_path).view()
    with pytest.raises(ConfigurationError, match="without a dot"):
        LanguageModel(plain_llama, adapters={"v1.0": tmp_path}).view()


# What is told apart


def test_other_settings_of_the_same_weights_are_another_model(plain_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(plain_llama, tmp_path / "same")
    shutil.copytree(plain_llama, tmp_path / "other")
    _config(tmp_path / "same", transformers_version="5.0.0", use_cache=False)
    _config(tmp_path / "other", rms_norm_eps=0.5)
    plain, same, other = (DecoderEncoder(f).fingerprint for f in (plain_llama, tmp_path / "same", tmp_path / "other"))
    assert plain.digest == same.digest
    assert [line.partition(":")[0] for line in plain.differences(other)] == ["config"]


def test_weights_may_be_pinned_by_their_content(plain_llama: Path) -> None:
    digest = weights_digest(plain_llama)
    assert LanguageModel(plain_llama, revision=digest).fields()["weights"] == digest
    with pytest.raises(ConfigurationError, match="was asked for"):
        LanguageModel(plain_llama, revision=f"files {'0' * 32}").view()


def test_code_from_another_repository_is_refused(plain_llama: Path, tmp_path: Path, monkeypatch: Any) -> None:
    shutil.copytree(plain_llama, tmp_path / "m")
    _config(tmp_path / "m", auto_map={"AutoModel": "someone/code--modeling.Model"})
    monkeypatch.setattr("reperio.models.language_model.locate", lambda *_: tmp_path / "m")
    model = LanguageModel("organisation/m", revision="0" * 40, trust_remote_code=True)
    with pytest.raises(ConfigurationError, match="code from another repository"):
        model.view()


# Positions that change with the longest row


def _long(kind: str) -> dict[str, Any]:
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    return {"rope_parameters": rope, "max_position_embeddings": 128}


@pytest.mark.parametrize("kernel", [None, "sdpa"])
def test_a_long_neighbour_does_not_change_the_positions_of_a_short_text(tmp_path: Path, kernel: str | None) -> None:
    folder = save_decoder(tmp_path / "m", "Llama", **_long("longrope"))
    encoder = DecoderEncoder(LanguageModel(folder, kernel=kernel))
    short, long = "a short text", "a text of many words, and then of many more words. " * 3
    assert 32 < encoder.encode_document([long]).token_counts[0] <= 128
    alone = encoder.encode_document([short]).embeddings
    np.testing.assert_allclose(encoder.encode_document([short, long]).embeddings[:1], alone, rtol=0, atol=FAR)
    plain = DecoderEncoder(LanguageModel.of(decoder("Llama", **_long("longrope")), byte_pairs()))
    np.testing.assert_allclose(
        plain.encode_document([long]).embeddings,
        encoder.encode_document([long, short]).embeddings[:1],
        rtol=0,
        atol=FAR,
    )


def test_with_dynamic_positions_no_more_is_read_than_leaves_them_alone(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "m", "Llama", **_long("dynamic"))
    encoder = DecoderEncoder(folder)
    assert encoder.model.positions == 32
    with pytest.warns(UserWarning, match="cut to 32 tokens") as told:
        assert encoder.encode_document(["a text of many words, and many more of them. " * 3]).truncated[0]
    assert told[0].filename == __file__  # whoever called, not this package


# Models that are not quite as others


def test_the_text_part_of_a_model_that_reads_pictures_is_used() -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {**decoder("Gemma3Text").config.to_dict(), "vocab_size": len(byte_pairs())}
    picture = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(text_config=text, vision_config={**picture, "image_size": 28, "patch_size": 14})
    whole = Gemma3ForConditionalGeneration(config).eval()
    model = LanguageModel.of(whole, byte_pairs())
    view = model.view("bidirectional")
    assert (view.depth, model.dim, view.packs) == (3, 32, True)
    [tokens] = model.rows().tokenize(["some words"])
    row = model.rows().whole(tokens)
    with torch.inference_mode():
        wanted = whole.get_decoder()(torch.tensor(row.ids.astype(np.int64))[None]).last_hidden_state[0]
        found = model.view("causal").states([row]).states
    torch.testing.assert_close(found, wanted, rtol=0, atol=FAR)


def test_a_pad_token_outside_the_vocabulary_is_no_matter(plain_llama: Path) -> None:
    network = decoder("Llama")
    network.config.pad_token_id = -1
    model = LanguageModel.of(network, byte_pairs())
    model.kernel = "sdpa"
    texts = ["one", "a longer text of some words"]
    wanted = DecoderEncoder(plain_llama).encode_document(texts).embeddings
    np.testing.assert_allclose(model.encoder().encode_document(texts).embeddings, wanted, rtol=0, atol=FAR)


def test_a_model_that_does_not_run_on_rows_of_tokens_is_refused() -> None:
    from transformers import BloomConfig, BloomModel, T5Config, T5ForConditionalGeneration

    small = {"vocab_size": 600, "d_model": 32, "d_ff": 32, "num_layers": 2, "num_heads": 2, "d_kv": 16}
    with pytest.raises((UnsupportedOperation, ConfigurationError)):
        LanguageModel.of(T5ForConditionalGeneration(T5Config(**small)), byte_pairs()).view()
    bloom = BloomModel(BloomConfig(vocab_size=600, hidden_size=32, n_layer=2, n_head=4))
    with pytest.raises(UnsupportedOperation):
        LanguageModel.of(bloom, byte_pairs()).view("last-1")


def test_states_that_are_nan_are_said_to_be(plain_llama: Path) -> None:
    network = decoder("Llama")
    with torch.no_grad():
        network.model.norm.weight[3] = float("nan")
    with pytest.raises(UnsupportedOperation, match="NaN or infinite"):
        LanguageModel.of(network, byte_pairs()).view()
    one = decoder("Llama")
    token = byte_pairs()("zyx", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        one.model.embed_tokens.weight[token] = float("nan")
    with pytest.raises(ShapeError, match="NaN"):
        ChunkEncoder(LanguageModel.of(one, byte_pairs())).encode_document(["zyx"])


# Rows


def test_a_cut_on_the_left_keeps_the_prompt() -> None:
    import copy

    tokenizer = copy.deepcopy(byte_pairs())
    tokenizer.truncation_side = "left"
    maker = RowMaker(tokenizer, prompt="query: ", limit=14)
    [tokens] = maker.tokenize(["one two three four five six seven"])
    row = maker.whole(tokens)
    assert len(row) == 14 < len(tokens)
    assert row.start == maker.frame.before + maker.prompt_tokens(tokens) > 4
    assert row.ids[: row.start].tolist() == tokens[: row.start].tolist()
    assert row.ids[row.start : row.stop].tolist() == tokens[-(14 - row.start) :].tolist()


def test_an_end_of_text_that_the_tokenizer_puts_is_not_put_twice() -> None:
    import copy

    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(byte_pairs())
    end = tokenizer.eos_token_id
    [plain] = RowMaker(tokenizer, ends=[end]).tokenize(["a text"])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", end)]
    )
    [ended] = RowMaker(tokenizer, ends=[end]).tokenize(["a text"])
    assert ended.tolist() == plain.tolist()
    assert plain[-2:].tolist().count(end) == 1


def test_what_follows_a_text_has_the_tokens_that_it_has_there() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "▁a": 1, "▁means": 2, "means": 3, "▁": 4, '"': 5, '▁"': 6}
    backend = Tokenizer(models.WordLevel(words, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Split('"', "isolated")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    whole = tokenizer('a" means')["input_ids"]
    [row] = RowMaker(tokenizer, prompt='{text}" means').tokenize(["a"])
    assert row.tolist() == whole


# What the checkpoint says


def test_a_chunk_encoder_takes_prompts_and_attention_from_the_checkpoint(plain_bert: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    for mode in ("mean", "cls"):
        modules = [Transformer(str(plain_bert), max_seq_length=24), Pooling(32, mode)]
        SentenceTransformer(modules=modules, prompts={"query": "query: "}, device="cpu").save(str(tmp_path / mode))
    encoder = ChunkEncoder(tmp_path / "mean")
    wanted = ChunkEncoder(plain_bert, prompts="query: ", max_tokens=24).encode_query(["some words"]).embeddings
    np.testing.assert_allclose(encoder.encode_query(["some words"]).embeddings.vectors, wanted.vectors, atol=FAR)
    with pytest.warns(UserWarning, match="pools by 'cls'"):
        ChunkEncoder(tmp_path / "cls").encode_query(["some words"])


def test_a_prompt_for_one_role_leaves_the_others_as_the_checkpoint_has_it(plain_bert: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    modules = [Transformer(str(plain_bert)), Pooling(32, "mean")]
    prompts = {"query": "query: ", "document": "passage: "}
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save(str(tmp_path))
    assert DecoderEncoder(tmp_path, prompts="ask: ").layout.prompts == {"query": "ask: ", "document": "passage: "}


def test_a_head_without_a_specification_is_refused(plain_llama: Path) -> None:
    with pytest.raises(ConfigurationError, match="without a `spec`"):
        DecoderEncoder(plain_llama, pooling=lambda batch: batch.states)
