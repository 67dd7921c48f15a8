"""Checkpoints in the layouts that they are published in: made here with random weights, read as they lie."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import shutil
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling as TheirPooling

from reperio import LanguageModel
from reperio.encoders import DecoderEncoder
from reperio.errors import ConfigurationError, NotFound, UnsupportedOperation
from reperio.models.pooling import Pooling
from reperio.models.pooling_latent import LatentAttention
from reperio.models.view import View
from reperio.registry import build
from reperio.testing.models import byte_pairs, decoder, save_decoder

PEER = 1e-5
TEXTS = [
    "Merge sorted inputs.",
    inspect.cleandoc(itertools.groupby.__doc__ or "")[:200],
    "short",
    textwrap.dedent.__doc__ or "",
]
PROMPTS = {"query": "Instruct: find the passage\nQuery: ", "document": "passage: "}


def tokenizer(ends: str = "") -> Any:
    """The small tokenizer; with ``ends`` after every text."""
    import tokenizers

    out = copy.deepcopy(byte_pairs())
    if ends:
        special = [(name, out.convert_tokens_to_ids(name)) for name in ("<s>", ends)]
        out.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"<s> $A {ends}", special_tokens=special
        )
    return out


def saved(folder: Path, model: Any, words: Any = None) -> Path:
    model.save_pretrained(folder)
    (words or tokenizer()).save_pretrained(folder)
    return folder


def sentence(folder: Path, body: Path, *after: Any, pooling: str = "mean", length: int = 64, **how: Any) -> Path:
    """A body with modules after it, as sentence-transformers saves it."""
    transformer = Transformer(str(body), max_seq_length=length)
    whole = how.pop("include_prompt", True)
    pool = TheirPooling(transformer.get_embedding_dimension(), pooling, whole)
    SentenceTransformer(modules=[transformer, pool, *after], device="cpu", **how).save(
        str(folder), create_model_card=False
    )
    return folder


def small(name: str, **settings: Any) -> Any:
    """A model of BERT's family with random weights."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": len(byte_pairs()), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(5)
    config = getattr(transformers, f"{name}Config")(**{**sizes, **ids, **settings})
    return transformers.AutoModel.from_config(config).eval()


def check_equal(folder: Path, **settings: Any) -> DecoderEncoder:
    """Our vectors of both roles against sentence-transformers' own of the same folder."""
    ours, theirs = DecoderEncoder(folder, on_truncation="warn", **settings), SentenceTransformer(str(folder))
    for mine, its in ((ours.encode_query, theirs.encode_query), (ours.encode_document, theirs.encode_document)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            vectors = mine(TEXTS).embeddings
        np.testing.assert_allclose(vectors, its(TEXTS), rtol=0, atol=PEER)
    return ours


@pytest.fixture(scope="module")
def mean_of_llama(tmp_path_factory: pytest.TempPathFactory, plain_llama: Path) -> Path:
    """A folder of sentence-transformers, to be copied by who changes it."""
    return sentence(tmp_path_factory.mktemp("mean") / "st", plain_llama)


# sentence-transformers


@pytest.mark.parametrize(
    ("pooling", "normalized"),
    [("cls", True), ("mean", False), ("max", True), ("weightedmean", False), ("lasttoken", True)],
)
def test_every_pooling_of_sentence_transformers_is_read(
    tmp_path: Path, plain_llama: Path, pooling: str, normalized: bool
) -> None:
    after = [Normalize()] if normalized else []
    folder = sentence(tmp_path / "st", plain_llama, *after, pooling=pooling, prompts=PROMPTS)
    layout = check_equal(folder).layout
    assert layout.normalize is normalized
    assert layout.max_tokens == 64
    assert dict(layout.prompts) == PROMPTS


@pytest.mark.parametrize("pooling", ["mean", "max", "lasttoken"])
def test_a_pooling_without_the_prompt_counts_the_whole_row_where_there_is_none(
    tmp_path: Path, plain_llama: Path, pooling: str
) -> None:
    body = saved(tmp_path / "body", transformers.AutoModel.from_pretrained(plain_llama), tokenizer("</s>"))
    how: dict[str, Any] = {"pooling": pooling, "include_prompt": False}
    check_equal(sentence(tmp_path / "st", body, prompts={"query": PROMPTS["query"]}, **how))


@pytest.mark.parametrize(
    ("prompts", "default"),
    [({"query": "q: ", "passage": "p: "}, None), ({"corpus": "c: ", "general": "g: "}, "general")],
)
def test_prompts_by_other_names_stand_where_sentence_transformers_puts_them(
    tmp_path: Path, mean_of_llama: Path, prompts: dict[str, str], default: str | None
) -> None:
    folder = Path(shutil.copytree(mean_of_llama, tmp_path / "st"))
    told = {"prompts": prompts, "default_prompt_name": default}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(told))
    check_equal(folder)


def qwen3(folder: Path) -> Path:
    """Qwen3-Embedding: causal, the last token, which the tokenizer sets, and an instruction for queries alone."""
    body = saved(folder / "body", decoder("Qwen3", head=False), tokenizer("</s>"))
    prompts = {"query": PROMPTS["query"], "document": ""}
    return sentence(folder / "st", body, Normalize(), pooling="lasttoken", prompts=prompts)


def embedding_gemma(folder: Path) -> Path:
    """EmbeddingGemma: both ways with a window, the mean, two linear layers."""
    body = saved(folder / "body", decoder("Gemma3Text", head=False, use_bidirectional_attention=True))
    identity = torch.nn.Identity()
    after = [
        Dense(32, 64, bias=False, activation_function=identity),
        Dense(64, 24, activation_function=torch.nn.GELU()),
    ]
    return sentence(folder / "st", body, *after, Normalize(), prompts=PROMPTS)


def bge(folder: Path) -> Path:
    """BGE-M3: XLM-RoBERTa's first token."""
    body = saved(folder / "body", small("XLMRoberta", max_position_embeddings=80), tokenizer("</s>"))
    return sentence(folder / "st", body, Normalize(), pooling="cls")


def modernbert(folder: Path) -> Path:
    """ModernBERT-embed: prefixes, and layers that look far and near."""
    model = small("ModernBert", global_attn_every_n_layers=2, local_attention=8, cls_token_id=1, sep_token_id=2)
    return sentence(folder / "st", saved(folder / "body", model), Normalize(), prompts=PROMPTS)


def nomic(folder: Path) -> Path:
    """Nomic, as transformers saves it."""
    return sentence(folder / "st", saved(folder / "body", small("NomicBert")), Normalize(), prompts=PROMPTS)


def gte(folder: Path) -> Path:
    """gte-multilingual."""
    return sentence(folder / "st", saved(folder / "body", small("Gte")), Normalize(), pooling="cls")


def jina(folder: Path) -> Path:
    """jina-embeddings-v3 without its adapters."""
    return sentence(folder / "st", saved(folder / "body", small("JinaEmbeddingsV3")), Normalize())


@pytest.mark.parametrize("make", [qwen3, embedding_gemma, bge, modernbert, nomic, gte, jina])
def test_published_families_give_what_sentence_transformers_gives(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    ours = check_equal(folder)
    again = build(json.loads(json.dumps(dict(ours.spec))))
    assert again.fingerprint == ours.fingerprint
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_nomic_as_it_was_published_is_read_without_its_code(tmp_path: Path) -> None:
    ours = saved(tmp_path / "ours", small("NomicBert"))
    published = tmp_path / "published"
    shutil.copytree(ours, published)
    config = {
        "model_type": "nomic_bert",
        "architectures": ["NomicBertModel"],
        "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
        "activation_function": "swiglu",
        "n_embd": 32,
        "n_head": 4,
        "n_inner": 48,
        "n_layer": 2,
        "n_positions": 2048,
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
        "layer_norm_epsilon": 1e-12,
        "qkv_proj_bias": False,
        "vocab_size": len(byte_pairs()),
        "type_vocab_size": 2,
    }
    (published / "config.json").write_text(json.dumps(config))
    a, b = (DecoderEncoder(folder).encode_document(TEXTS).embeddings for folder in (ours, published))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    (published / "config.json").write_text(json.dumps({**config, "moe_every_n_layers": 2}))
    with pytest.raises(UnsupportedOperation, match=r"experts.*revision"):
        DecoderEncoder(published).encode_document(TEXTS)


# LLM2Vec


def lora(
    folder: Path, base: Any, of: str, seed: int, targets: Sequence[str] = ("q_proj", "v_proj", "down_proj")
) -> Any:
    """A random LoRA adapter of a model, saved as peft saves it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=list(targets), init_lora_weights=False))
    tuned.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": of}))
    return tuned


@pytest.fixture(scope="module")
def llm2vec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, the adapter of LLM2Vec's first stage with a configuration of its hub code, and that of its second."""
    home = tmp_path_factory.mktemp("llm2vec")
    base = save_decoder(home / "base", "Llama")
    lora(home / "mntp", transformers.AutoModel.from_pretrained(base), str(base), 1)
    config = json.loads((base / "config.json").read_text())
    code = {"AutoModel": "modeling_llama_encoder.LlamaEncoderModel"}
    (home / "mntp" / "config.json").write_text(
        json.dumps({**config, "architectures": ["LlamaEncoderModel"], "auto_map": code})
    )
    lora(home / "supervised", transformers.AutoModel.from_pretrained(base), str(base), 2)
    told = {"pooling_mode": "mean", "max_length": 48, "doc_max_length": 40, "skip_instruction": True}
    (home / "supervised" / "llm2vec_config.json").write_text(json.dumps(told))
    return {name: home / name for name in ("base", "mntp", "supervised")}


def seen_by_all(body: Any, ids: list[int]) -> Any:
    """States of one row whose tokens all see each other, by an explicit mask, ``(t, d)``."""
    mask = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)
    with torch.inference_mode():
        return body(input_ids=torch.tensor([ids]), attention_mask=mask, use_cache=False).last_hidden_state[0]


def test_llm2vec_with_its_two_adapters_is_the_paper_s_formula(llm2vec: dict[str, Path]) -> None:
    from peft import PeftModel

    body = transformers.AutoModel.from_pretrained(llm2vec["base"])
    for stage in ("mntp", "supervised"):
        body = PeftModel.from_pretrained(body, str(llm2vec[stage])).merge_and_unload()
    words, wanted = byte_pairs(), []
    for text in TEXTS:  # no instruction: the mean of all tokens but the first, which is special
        states = seen_by_all(body.eval(), words(text, truncation=True, max_length=48)["input_ids"])
        wanted.append((states[1:].mean(dim=0) / states[1:].mean(dim=0).norm()).numpy())
    model = LanguageModel(llm2vec["mntp"], adapters={"supervised": llm2vec["supervised"]})
    ours = DecoderEncoder(model, attention=View(adapter="supervised"))
    with pytest.warns(UserWarning, match="2 of 4 texts were cut to 48 tokens"):
        vectors = ours.encode_document(TEXTS).embeddings
    np.testing.assert_allclose(vectors, wanted, rtol=0, atol=PEER)
    assert (ours.layout.source, ours.layout.attention) == ("LLM2Vec", "bidirectional")
    first = DecoderEncoder(model)  # of the first stage alone, which says nothing of lengths
    assert first.layout.max_tokens == 512
    assert np.abs(first.encode_document(TEXTS[:1]).embeddings - vectors[:1]).max() > 0.01
    lines = [line.partition(":")[0] for line in first.fingerprint.differences(ours.fingerprint)]
    assert "adapter" in lines


def test_llm2vec_leaves_its_instruction_out_of_the_mean(llm2vec: dict[str, Path]) -> None:
    model = LanguageModel(llm2vec["mntp"], adapters={"supervised": llm2vec["supervised"]})
    prompt = "Given a function, find its use: "
    ours = DecoderEncoder(model, attention=View(adapter="supervised"), prompts=prompt)
    view = model.view(View("bidirectional", adapter="supervised"))
    words = byte_pairs()
    ids, instruction = words(prompt + TEXTS[0])["input_ids"], words(prompt.strip())["input_ids"]
    assert ids[: len(instruction)] == instruction
    mean = seen_by_all(view.model.base_model, ids)[len(instruction) :].mean(dim=0)
    [vector] = ours.encode_query(TEXTS[:1]).embeddings
    np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), rtol=0, atol=PEER)


def test_a_merged_llm2vec_is_told_by_the_name_of_its_architecture(
    tmp_path: Path, llm2vec: dict[str, Path], plain_llama: Path
) -> None:
    body = transformers.AutoModel.from_pretrained(llm2vec["base"])
    folder = saved(tmp_path / "merged", body)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaBiModel"]}))
    vectors = DecoderEncoder(folder).encode_document(TEXTS[:1]).embeddings
    states = seen_by_all(body.eval(), byte_pairs()(TEXTS[0])["input_ids"])[1:].mean(dim=0)
    np.testing.assert_allclose(vectors[0], (states / states.norm()).numpy(), rtol=0, atol=PEER)
    assert DecoderEncoder(plain_llama).layout.attention == "own"


def test_an_adapter_whose_base_is_not_here_says_so(tmp_path: Path, llm2vec: dict[str, Path]) -> None:
    shutil.copytree(llm2vec["mntp"], tmp_path / "mntp")
    config = json.loads((tmp_path / "mntp" / "adapter_config.json").read_text())
    (tmp_path / "mntp" / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "nobody/nowhere"})
    )
    with pytest.raises(NotFound, match="nobody/nowhere"):
        DecoderEncoder(tmp_path / "mntp").encode_document(TEXTS)


# NV-Embed


@pytest.fixture(scope="module")
def nv_embed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NV-Embed's folder: a body and a latent attention in one file, under its names, and a configuration of its own."""
    folder = tmp_path_factory.mktemp("nv")
    body = decoder("Mistral", head=False)
    torch.manual_seed(9)
    latent = LatentAttention(32, latents=12, heads=4, head_dim=32)
    with torch.no_grad():
        for weight in latent.parameters():
            weight.normal_(std=0.3)
    weights = {f"embedding_model.{name}": value for name, value in body.state_dict().items()}
    weights |= {f"latent_attention_model.{name}": value for name, value in latent.state_dict().items()}
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    text = {**json.loads(body.config.to_json_string()), "model_type": "bidir_mistral", "_name_or_path": "nv/base"}
    told = {
        "model_type": "latent_attention",
        "num_latents_value": 12,
        "num_cross_heads": 4,
        "cross_dim_head": 32,
        "hidden_dim": 32,
        "latent_dim": 32,
        "output_normalize": False,
    }
    config = {
        "model_type": "nvembed",
        "architectures": ["NVEmbedModel"],
        "auto_map": {"AutoModel": "modeling_nvembed.NVEmbedModel"},
        "text_config": text,
        "latent_attention_config": told,
        "padding_side": "right",
        "is_mask_instruction": True,
        "add_eos": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    byte_pairs().save_pretrained(folder)
    return folder


def latent_mean(weights: dict[str, Any], states: Any, first: int) -> Any:
    """NV-Embed's pooling, one head after the other, from its paper's formulas."""
    functional = torch.nn.functional

    def norm(x: Any, name: str) -> Any:
        name = f"cross_attend_blocks.{name}"
        return functional.layer_norm(x, (32,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    attend, mlp = "cross_attend_blocks.0.fn", "cross_attend_blocks.1.fn.net"
    query = norm(states, "0.norm") @ weights[f"{attend}.to_q.weight"].T
    both = norm(weights["latents"], "0.norm_context") @ weights[f"{attend}.to_kv.weight"].T
    key, value = both[:, :128], both[:, 128:]
    heads = []
    for head in range(4):
        part = slice(32 * head, 32 * head + 32)
        heads.append(torch.softmax(query[:, part] @ key[:, part].T / 32**0.5, dim=-1) @ value[:, part])
    states = torch.cat(heads, dim=-1) @ weights[f"{attend}.to_out.weight"].T + states
    wide = norm(states, "1.norm") @ weights[f"{mlp}.0.weight"].T + weights[f"{mlp}.0.bias"]
    gated = wide[:, :128] * functional.gelu(wide[:, 128:])
    states = gated @ weights[f"{mlp}.2.weight"].T + weights[f"{mlp}.2.bias"] + states
    mean = states[first:].mean(dim=0)
    return (mean / mean.norm()).numpy()


def test_nv_embed_is_its_published_formula(nv_embed: Path) -> None:
    weights = load_file(nv_embed / "model.safetensors")
    inside = {"embedding_model.": decoder("Mistral", head=False, seed=1, sliding_window=None)}
    body = inside["embedding_model."]
    body.load_state_dict({k.removeprefix("embedding_model."): v for k, v in weights.items() if k.startswith("emb")})
    latent = {k.removeprefix("latent_attention_model."): v for k, v in weights.items() if k.startswith("latent")}
    words, prompt = byte_pairs(), "Instruct: find the passage\nQuery: "
    ours = DecoderEncoder(nv_embed, prompts=prompt)
    for texts, encode, lead in ((TEXTS, ours.encode_document, ""), (TEXTS, ours.encode_query, prompt)):
        left_out = len(words.tokenize(lead))  # as the published code counts: without the special token before it
        rows = [[*words(lead + text)["input_ids"], words.eos_token_id] for text in texts]
        wanted = [latent_mean(latent, seen_by_all(body, row), left_out) for row in rows]
        np.testing.assert_allclose(encode(texts).embeddings, wanted, rtol=0, atol=PEER)
    assert ours.layout.source == "NV-Embed"
    again = build(json.loads(json.dumps(dict(ours.spec))))
    assert again.fingerprint == ours.fingerprint


def test_the_end_of_text_stays_where_nv_embed_cuts(nv_embed: Path) -> None:
    ours = DecoderEncoder(nv_embed, max_tokens=12, on_truncation="error")
    read = ours._settled[2]["document"]
    row = read.maker("document").whole(read.maker("document").tokenize(TEXTS)[1])
    assert len(row) == 12
    assert row.ids[-1] == byte_pairs().eos_token_id


def test_weights_that_are_not_nv_embed_s_are_refused_by_name(tmp_path: Path, nv_embed: Path) -> None:
    shutil.copytree(nv_embed, tmp_path / "nv")
    weights = load_file(tmp_path / "nv" / "model.safetensors")
    del weights["latent_attention_model.latents"]
    save_file(weights, tmp_path / "nv" / "model.safetensors")
    with pytest.raises(ConfigurationError, match=r"weight latents has the shape None"):
        DecoderEncoder(tmp_path / "nv").encode_document(TEXTS)


# GritLM


def test_gritlm_looks_both_ways_and_leaves_its_instruction_out(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "grit", "Mistral", sliding_window=None)
    config = json.loads((folder / "config.json").read_text())
    code = {
        "AutoModel": "modeling_gritlm7b.MistralModel",
        "AutoModelForCausalLM": "modeling_gritlm7b.MistralForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": code}))
    body, words = decoder("Mistral", sliding_window=None).model, byte_pairs()
    ask = "<|user|>\nFind the passage\n<|embed|>\n"
    ours = DecoderEncoder(folder, prompts={"query": ask, "document": "<|embed|>\n"})
    for lead, encode in ((ask, ours.encode_query), ("<|embed|>\n", ours.encode_document)):
        first = len(words(lead)["input_ids"])
        means = [seen_by_all(body, words(lead + text)["input_ids"])[first:].mean(dim=0) for text in TEXTS]
        wanted = [(mean / mean.norm()).numpy() for mean in means]
        np.testing.assert_allclose(encode(TEXTS).embeddings, wanted, rtol=0, atol=PEER)
    plain = DecoderEncoder(folder)
    assert dict(plain.layout.prompts) == {"query": "<|embed|>\n", "document": "<|embed|>\n"}
    np.testing.assert_array_equal(plain.encode_document(TEXTS).embeddings, ours.encode_document(TEXTS).embeddings)


# jina: an adapter for each role


def test_each_role_may_have_an_adapter_of_its_own(tmp_path: Path) -> None:
    folder = jina(tmp_path)
    adapters = {}
    for seed, task in enumerate(("retrieval_query", "retrieval_passage")):
        base = transformers.AutoModel.from_pretrained(folder)
        adapters[task] = folder / task
        lora(adapters[task], base, str(folder), seed, ["q_proj", "v_proj"])
    model = LanguageModel(folder, adapters=adapters)
    views = {role: View(adapter=task) for role, task in zip(("query", "document"), adapters, strict=True)}
    ours = DecoderEncoder(model, attention=views)  # type: ignore[arg-type]
    for encode, task in ((ours.encode_query, "retrieval_query"), (ours.encode_document, "retrieval_passage")):
        alone = DecoderEncoder(model, attention=View(adapter=task))
        np.testing.assert_array_equal(encode(TEXTS).embeddings, alone.encode_document(TEXTS).embeddings)
        assert alone.fingerprint != ours.fingerprint
    assert np.abs(ours.encode_query(TEXTS).embeddings - ours.encode_document(TEXTS).embeddings).max() > 0.01
    assert build(json.loads(json.dumps(dict(ours.spec)))).fingerprint == ours.fingerprint
    with pytest.raises(ConfigurationError, match="the role 'passage'"):
        DecoderEncoder(model, attention={"passage": "own"})  # type: ignore[dict-item]


# What is asked for, and what the checkpoint says


def test_the_checkpoint_s_pooling_wins_over_a_name_with_a_warning_and_a_pooling_wins_over_it(
    tmp_path: Path, plain_llama: Path
) -> None:
    folder = sentence(tmp_path / "st", plain_llama, pooling="cls")
    named = DecoderEncoder(folder, pooling="mean")
    with pytest.warns(UserWarning, match=r"pooling='mean' was asked for, and .* says 'cls'.*Pooling\('mean'\)"):
        vectors = named.encode_document(TEXTS[:1]).embeddings
    its = SentenceTransformer(str(folder)).encode(TEXTS[:1])
    np.testing.assert_allclose(vectors, its, rtol=0, atol=PEER)
    given = DecoderEncoder(folder, pooling=Pooling("mean"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.abs(given.encode_document(TEXTS[:1]).embeddings - its).max() > 0.01
        DecoderEncoder(folder, pooling="cls").encode_document(TEXTS[:1])
    assert "pooling" in " ".join(given.fingerprint.differences(named.fingerprint))


def test_what_is_given_comes_before_what_the_checkpoint_says(tmp_path: Path, plain_llama: Path) -> None:
    folder = sentence(tmp_path / "st", plain_llama, Normalize(), prompts=PROMPTS)
    none = {"query": "", "document": ""}
    other = DecoderEncoder(folder, prompts=none, normalize=False, max_tokens=32, dim=8, attention="bidirectional")
    layout = other.layout
    assert (dict(layout.prompts), layout.normalize, layout.max_tokens, layout.dim) == (none, False, 32, 8)
    assert layout.attention == "bidirectional"
    assert other.dim == 8


def spoilt(folder: Path, file: str, told: Any) -> None:
    (folder / file).write_text(told if isinstance(told, str) else json.dumps(told))


@pytest.mark.parametrize(
    ("file", "told", "error", "says"),
    [
        (
            "1_Pooling/config.json",
            {"pooling_mode": ["cls", "mean"]},
            UnsupportedOperation,
            "cls and mean.*DenseEncoder",
        ),
        ("1_Pooling/config.json", {"pooling_mode": "mean_sqrt_len_tokens"}, UnsupportedOperation, "mean_sqrt"),
        ("1_Pooling/config.json", "{", ConfigurationError, "no JSON"),
        ("sentence_bert_config.json", {"do_lower_case": True}, UnsupportedOperation, "do_lower_case"),
        ("sentence_bert_config.json", {"query_expansion": {"length": 32}}, UnsupportedOperation, "query_expansion"),
        ("sentence_bert_config.json", [], ConfigurationError, "holds a list"),
        ("modules.json", "[", ConfigurationError, "no JSON"),
        ("modules.json", [], ConfigurationError, "lists no modules"),
        ("modules.json", [1], ConfigurationError, "has 1 at place 0"),
        ("modules.json", [{"type": "x.Transformer", "path": 1}], ConfigurationError, "at place 0"),
        ("modules.json", [{"type": "x.Router", "path": ""}], UnsupportedOperation, "starts with a x.Router"),
        (
            "modules.json",
            [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "../1_Pooling"}],
            ConfigurationError,
            "must lie in the folder",
        ),
        (
            "modules.json",
            [{"type": "x.Transformer", "path": ""}, {"type": "x.LSTM", "path": "1"}],
            UnsupportedOperation,
            "x.LSTM at place 1",
        ),
        ("llm2vec_config.json", {"pooling_mode": "median"}, ConfigurationError, "median.*Known: mean"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_name(
    tmp_path: Path, mean_of_llama: Path, file: str, told: Any, error: type[Exception], says: str
) -> None:
    folder = Path(shutil.copytree(mean_of_llama, tmp_path / "st"))
    spoilt(folder, file, told)
    with pytest.raises(error, match=says):
        DecoderEncoder(folder).encode_document(TEXTS[:1])
