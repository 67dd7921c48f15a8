"""Learned weights of words: equal to sentence-transformers, to full logits, and to themselves however they are run."""

from __future__ import annotations

import heapq
import inspect
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sentence_transformers import SparseEncoder as Peer
from sentence_transformers.sparse_encoder.modules import SpladePooling, Transformer
from torch.utils._python_dispatch import TorchDispatchMode

from reperio import Collection, Document, LanguageModel
from reperio.embeddings import Sparse
from reperio.encoders import BM25Encoder, SparseEncoder, SparseSum
from reperio.errors import ConfigurationError, ShapeError, TruncationError, UnsupportedOperation
from reperio.indexes import BM25Index, InvertedIndex
from reperio.models.rows import Row
from reperio.models.saturation import Saturation, pruned
from reperio.models.screening import Screen
from reperio.models.states import TokenStates
from reperio.models.view import View
from reperio.models.vocabulary import VocabularyHead, word
from reperio.signals import Signal
from reperio.testing.encoder import EncoderContract
from reperio.testing.models import ARCHITECTURES, MASKED, byte_pairs, decoder, masked, save_decoder, save_masked

pytestmark = pytest.mark.filterwarnings("ignore:.* texts were cut")

TEXTS = [
    inspect.getdoc(thing) or ""
    for thing in (heapq.merge, heapq.nlargest, itertools.chain, itertools.product, heapq.heappush)
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_masked(tmp_path_factory.mktemp("bert") / "model", "Bert")


def dense(rows: Sparse) -> Any:
    out = np.zeros((len(rows), rows.dim), dtype=np.float32)
    for i in range(len(rows)):
        columns, weights = rows.row(i)
        out[i, columns] = weights
    return out


def peer_of(folder: Path, pooling: str = "max", activation: str = "relu") -> Peer:
    body = Transformer(str(folder), transformer_task="fill-mask")
    return Peer(modules=[body, SpladePooling(pooling, activation)], device="cpu")


class TestSparseEncoder(EncoderContract):
    @pytest.fixture
    def encoder(self, bert: Path) -> SparseEncoder:
        return SparseEncoder(bert, max_tokens=96)


class TestSparseEncoderOfADecoderInWindows(EncoderContract):
    @pytest.fixture
    def encoder(self, plain_llama: Path) -> SparseEncoder:
        return SparseEncoder(
            plain_llama,
            attention="echo",
            top_n=40,
            prompts={"query": "Find: "},
            max_tokens=64,
            on_truncation="chunk",
        )


@pytest.mark.parametrize("pooling", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_weights_are_those_of_sentence_transformers(bert: Path, pooling: Any, activation: Any) -> None:
    wanted = peer_of(bert, pooling, activation).encode(TEXTS).to_dense().numpy()
    encoder = SparseEncoder(bert, pooling=pooling, activation=activation)
    found = encoder.encode_document(TEXTS).embeddings
    assert 0.02 < (wanted > 0).mean() < 0.6
    np.testing.assert_allclose(dense(found), wanted, rtol=0, atol=1e-5 * max(1, wanted.max()))


@pytest.mark.parametrize("architecture", MASKED)
def test_the_head_of_every_architecture_is_that_of_sentence_transformers(architecture: str, tmp_path: Path) -> None:
    folder = save_masked(tmp_path / "model", architecture)
    wanted = peer_of(folder).encode(TEXTS).to_dense().numpy()
    assert (wanted > 0).any()
    found = SparseEncoder(folder).encode_document(TEXTS).embeddings
    np.testing.assert_allclose(dense(found), wanted, rtol=0, atol=1e-5)


def test_a_folder_of_sentence_transformers_says_how_it_is_read(bert: Path, tmp_path: Path) -> None:
    peer = peer_of(bert, "sum", "log1p_relu")
    peer.max_active_dims = 20
    peer.prompts = {"query": "find: ", "document": ""}
    peer.save(str(tmp_path / "saved"))
    encoder = SparseEncoder(tmp_path / "saved")
    assert (encoder.pooling, encoder.activation, encoder.top_n) == ("sum", "log1p_relu", 20)
    for ours, theirs in ((encoder.encode_query, peer.encode_query), (encoder.encode_document, peer.encode_document)):
        found = ours(TEXTS).embeddings
        assert np.diff(found.indptr).max() == 20
        np.testing.assert_allclose(dense(found), theirs(TEXTS).to_dense().numpy(), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def saved(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that sentence-transformers wrote."""
    folder = tmp_path_factory.mktemp("peer") / "saved"
    peer_of(bert).save(str(folder))
    return folder


def test_an_older_folder_with_the_model_inside_is_read(bert: Path, tmp_path: Path) -> None:
    inside = save_masked(tmp_path / "old" / "0_MLMTransformer", "Bert")
    told = {"max_seq_length": 64, "do_lower_case": False}
    (inside / "sentence_bert_config.json").write_text(json.dumps(told))
    pooling = tmp_path / "old" / "1_SpladePooling"
    pooling.mkdir()
    (pooling / "config.json").write_text(json.dumps({"pooling_strategy": "sum", "word_embedding_dimension": 600}))
    types = "sentence_transformers.sparse_encoder.models"
    modules = [
        {"idx": 0, "name": "0", "path": "0_MLMTransformer", "type": f"{types}.MLMTransformer"},
        {"idx": 1, "name": "1", "path": "1_SpladePooling", "type": f"{types}.SpladePooling"},
    ]
    (tmp_path / "old" / "modules.json").write_text(json.dumps(modules))
    encoder = SparseEncoder(tmp_path / "old")
    assert (encoder.pooling, encoder.max_tokens) == ("sum", 64)
    assert encoder.encode_document(TEXTS).truncated.any()


def test_what_it_saves_both_open(bert: Path, tmp_path: Path) -> None:
    encoder = SparseEncoder(bert, activation="log1p_relu", prompts={"query": "find: "}, top_n=30)
    encoder.save(tmp_path / "saved")
    again, peer = SparseEncoder(tmp_path / "saved"), Peer(str(tmp_path / "saved"), device="cpu")
    other = again.fingerprint.differences(encoder.fingerprint)
    assert all(line.startswith("tokenizer") for line in other)  # its files are written anew
    wanted = dense(encoder.encode_query(TEXTS).embeddings)
    np.testing.assert_allclose(dense(again.encode_query(TEXTS).embeddings), wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(peer.encode_query(TEXTS).to_dense().numpy(), wanted, rtol=0, atol=1e-5)


def test_a_name_has_its_files_looked_at_when_they_are_here(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer_of(bert, "sum", "log1p_relu").save(str(tmp_path / "saved"))
    monkeypatch.setattr("reperio.models.language_model.locate", lambda name, revision: tmp_path / "saved")
    encoder = SparseEncoder("somebody/a-model-on-the-hub", pooling="sum")
    assert encoder.activation is None
    found = encoder.encode_document(TEXTS).embeddings
    assert (encoder.pooling, encoder.activation) == ("sum", "log1p_relu")
    wanted = SparseEncoder(tmp_path / "saved").encode_document(TEXTS).embeddings
    np.testing.assert_allclose(dense(found), dense(wanted), rtol=0, atol=1e-6)
    with pytest.warns(UserWarning, match="pooling is 'max'"):
        SparseEncoder("somebody/a-model-on-the-hub", pooling="max").encode_document(["a text"])


def test_the_files_win_over_another_pooling_and_say_so(bert: Path, tmp_path: Path) -> None:
    peer_of(bert, "sum").save(str(tmp_path / "saved"))
    with pytest.warns(UserWarning, match="pooling is 'max'.*'sum'"):
        encoder = SparseEncoder(tmp_path / "saved", pooling="max")
    assert encoder.pooling == "sum"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["echo", "bidirectional"])
def test_a_decoder_weighs_by_the_scores_of_its_own_tokens(architecture: str, attention: str) -> None:
    model = LanguageModel.of(decoder(architecture), byte_pairs())
    encoder = SparseEncoder(model, attention=attention, prompts={"document": "Read this:"})
    [row] = dense(encoder.encode_document(TEXTS[4:]).embeddings)
    ids = byte_pairs()("Read this:" + TEXTS[4])["input_ids"]
    before = len(byte_pairs()("Read this:")["input_ids"])
    if attention == "echo":
        text = ids[before:]
        before, ids = len(ids), ids + text
    network = decoder(architecture)
    network.config.is_causal = attention == "echo"
    with torch.inference_mode():
        logits = network(torch.tensor([ids])).logits[0, before - 1 : len(ids) - 1]
    wanted = logits.amax(0).relu().log1p().numpy()
    assert (wanted > 0).any()
    np.testing.assert_allclose(row, wanted, rtol=0, atol=1e-5)


def test_an_adapter_changes_the_weights_and_the_fingerprint(plain_llama: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    adapted = peft.get_peft_model(
        decoder("Llama"), peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    model = LanguageModel(plain_llama, adapters={"sparse": tmp_path / "adapter"})
    with_it = SparseEncoder(model, attention=View("echo", adapter="sparse"))
    without = SparseEncoder(model, attention="echo")
    assert with_it.fingerprint != without.fingerprint
    pair = [dense(encoder.encode_document(TEXTS[:1]).embeddings) for encoder in (with_it, without)]
    assert np.abs(pair[0] - pair[1]).max() > 1e-3


class Given:
    """States that are features already."""

    def __init__(self, states: Any, lengths: list[int], weight: Any, bias: Any) -> None:
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        spans = np.stack([offsets[:-1], offsets[1:]], axis=1)
        self.batch = TokenStates(torch.zeros(len(states), dtype=torch.int64), (states,), offsets, spans)
        self.head = VocabularyHead(lambda x: x, weight, bias)

    def naive(self, pooling: str) -> Any:
        out = []
        for a, b in zip(self.batch.offsets[:-1], self.batch.offsets[1:], strict=True):
            weights = (self.batch.states[a:b] @ self.head.weight.T + self.head.bias).relu().log1p()
            out.append(weights.amax(0) if pooling == "max" else weights.sum(0))
        return torch.stack(out).numpy()


@st.composite
def batches(draw: st.DrawFn) -> Given:
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    if draw(st.booleans()):
        lengths.append(1500)  # more than a block
    wide = draw(st.sampled_from([1e-3, 1.0, 50.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    states, weight = (torch.randn(n, 12, generator=generator) * wide for n in (sum(lengths), 2500))
    lift = draw(st.sampled_from([-6.0, -3.0, -0.5]))
    bias = torch.randn(2500, generator=generator) * wide + lift * wide**2 * 3.5
    return Given(states, lengths, weight, bias)


@settings(max_examples=12, deadline=None)
@given(batches(), st.sampled_from(["max", "sum"]), st.sampled_from([None, 7]))
def test_screened_or_not_the_weights_are_those_of_full_scores(some: Given, pooling: Any, top_n: int | None) -> None:
    wanted = some.naive(pooling)
    scale = max(1.0, float(wanted.max()))
    for screen in (None, Screen(some.head)):
        found = Saturation(some.head, pooling=pooling, top_n=top_n, screen=screen)(some.batch)
        for (columns, weights), row in zip(found, wanted, strict=True):
            strongest = np.sort(row[row > 0])[::-1][:top_n]
            np.testing.assert_allclose(np.sort(weights)[::-1], strongest, rtol=0, atol=2e-5 * scale)
            np.testing.assert_allclose(weights, row[columns], rtol=0, atol=2e-5 * scale)
    everything = Saturation(some.head, pooling=pooling).dense(some.batch).numpy()
    np.testing.assert_allclose(everything, wanted, rtol=0, atol=2e-5 * scale)


@settings(max_examples=25, deadline=None)
@given(arrays.arrays(np.float32, 12, elements=st.floats(0.125, 8, width=32)), st.integers(1, 14))
def test_pruning_takes_the_weakest(weights: Any, top_n: int) -> None:
    columns, kept = pruned((np.arange(12), weights), top_n)
    assert len(kept) == min(top_n, 12)
    assert (np.diff(columns) > 0).all()
    left = np.delete(weights, columns)
    assert not len(left) or left.max() <= kept.min()


def test_gradients_reach_the_model_through_the_head() -> None:
    model = masked("Bert")
    view = LanguageModel.of(model, byte_pairs()).view()
    ids = np.array([1, 40, 50, 60], np.int32)
    weights = Saturation(VocabularyHead.of(view)).dense(view.states([Row(ids, 1, 4), Row(ids[:3], 1, 3)]))
    weights.sum().backward()
    grown = [name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()]
    assert any("layer.0" in name for name in grown)
    assert any(name.startswith("cls") for name in grown)


def test_windows_weigh_what_the_strongest_of_them_does(bert: Path) -> None:
    long = " ".join(TEXTS)
    chunked = SparseEncoder(bert, max_tokens=60, on_truncation="chunk")
    maker = SparseEncoder(bert).model.rows(limit=60)
    [tokens] = maker.tokenize([long])
    texts = maker.windows(tokens)
    assert len(texts) > 2
    view, head = chunked.model.view(), VocabularyHead.of(chunked.model.view())
    with torch.inference_mode():
        wanted = Saturation(head).dense(view.states(texts)).amax(0).numpy()
    encoded = chunked.encode_document([long])
    np.testing.assert_allclose(dense(encoded.embeddings)[0], wanted, rtol=0, atol=1e-5)
    assert not encoded.truncated.any()
    with pytest.raises(TruncationError):
        SparseEncoder(bert, max_tokens=60, on_truncation="error").encode_document([long])


def test_a_collection_finds_and_explains_by_words(bert: Path, tmp_path: Path) -> None:
    encoder = SparseEncoder(bert, top_n={"query": 20, "document": 80})
    with Collection.open(tmp_path / "c", signals={"words": Signal(encoder, InvertedIndex())}) as collection:
        collection.upsert([Document(str(i), text) for i, text in enumerate(TEXTS)])
        hits = collection.search(TEXTS[1][:200])
        weights = [
            dense(encode([text]).embeddings)[0]
            for encode, text in (
                (encoder.encode_query, TEXTS[1][:200]),
                (encoder.encode_document, TEXTS[int(hits[0].document.id)]),
            )
        ]
        assert hits[0].score == pytest.approx(float(weights[0] @ weights[1]), rel=1e-5)
        terms = collection.explain(TEXTS[1][:200], hits[0].document.id).signals["words"].terms
        assert terms
        known = {word for word, _ in encoder.expansions(TEXTS[1][:200], role="query")}
        assert {term.term for term in terms} <= known
        assert sum(term.contribution for term in terms) == pytest.approx(hits[0].score, rel=1e-5)


def test_with_bm25_in_one_index_scores_add_up(bert: Path, tmp_path: Path) -> None:
    learned = SparseEncoder(bert, top_n=50)
    both = SparseSum({"bm25": BM25Encoder(), "learned": learned}, weights={"learned": 0.3})
    index = BM25Index(weights_below=both.weights_below)
    with Collection.open(tmp_path / "c", signals={"both": Signal(both, index)}) as collection:
        collection.upsert([Document(str(i), text) for i, text in enumerate(TEXTS)])
        told = collection.explain("largest elements", "1").signals["both"]
        words = {term.term: term.contribution for term in told.terms}
        assert words["elements"] > 0
        learnt = [
            dense(f([t]).embeddings)[0]
            for f, t in ((learned.encode_query, "largest elements"), (learned.encode_document, TEXTS[1]))
        ]
        lexical = sum(words.get(word, 0) for word in ("largest", "elements"))
        assert told.score - lexical == pytest.approx(0.3 * float(learnt[0] @ learnt[1]), rel=1e-4)


def test_expansions_are_the_strongest_words(bert: Path) -> None:
    encoder = SparseEncoder(bert)
    strongest = encoder.expansions(TEXTS[0], top=5)
    columns, weights = encoder.encode_document(TEXTS[:1]).embeddings.row(0)
    assert [weight for _, weight in strongest] == sorted(weights.tolist(), reverse=True)[:5]
    by_weight = dict(zip(weights.tolist(), columns.tolist(), strict=True))
    assert [name for name, _ in strongest] == [word(byte_pairs(), by_weight[weight]) for _, weight in strongest]
    assert all(name == name.strip() for name, _ in strongest)


def test_a_model_without_a_head_or_its_weights_is_refused(bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_decoder(tmp_path / "bare", "Llama", head=False)
    with pytest.raises(ConfigurationError, match="no head"):
        SparseEncoder(tmp_path / "bare").encode_document(["a text"])
    folder = save_masked(tmp_path / "lacking", "Bert")
    weights = {name: w for name, w in load_file(folder / "model.safetensors").items() if "transform" not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match="no weights for the head"):
        SparseEncoder(folder).encode_document(["a text"])


def test_states_that_are_no_numbers_are_refused() -> None:
    some = Given(torch.full((2, 4), float("nan")), [2], torch.ones(9, 4), torch.zeros(9))
    for screen in (None, Screen(some.head)):
        with pytest.raises(ShapeError, match="NaN"):
            Saturation(some.head, screen=screen)(some.batch)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"pooling": "mean"}, "pooling is 'mean'"),
        ({"activation": "gelu"}, "activation is 'gelu'"),
        ({"top_n": 0}, "top_n is 0"),
        ({"top_n": {"query": -1}}, "top_n is -1"),
        ({"top_n": {"documents": 5}}, "top_n names the role 'documents'"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"attention": "sideways"}, "sideways"),
        ({"prompts": {"title": "x"}}, "title"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(bert: Path, wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        SparseEncoder(bert, **wrong)


def test_a_decoder_has_no_such_layout_to_be_saved_in(plain_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperation, match="layout"):
        SparseEncoder(plain_llama).save(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"top_n": {"query": 8, "document": 80}}, "'query': 8, 'document': 80"),
        ({"top_n": {"document": 80}}, "'query': None"),
        ({"on_truncation": "chunk"}, "chunk"),
        ({"prompts": {"query": "say {text} twice"}}, "say {text} twice"),
    ],
)
def test_what_such_a_folder_cannot_tell_is_not_saved(bert: Path, tmp_path: Path, how: Any, says: str) -> None:
    with pytest.raises(UnsupportedOperation, match=re.escape(says)):
        SparseEncoder(bert, **how).save(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_a_prompt_alone_is_for_queries(bert: Path) -> None:
    one, two = SparseEncoder(bert, prompts="query: "), SparseEncoder(bert, prompts={"query": "query: "})
    assert one.fingerprint == two.fingerprint
    assert one.spec == two.spec


def test_other_modules_are_refused(bert: Path, tmp_path: Path) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConfigurationError, match="no weights of words"):
        SparseEncoder(tmp_path)


@pytest.mark.parametrize(
    ("file", "told", "says"),
    [
        ("modules.json", [{"idx": 0}], "at place 0"),
        ("modules.json", [1], "has 1 at place 0"),
        ("modules.json", {}, "lists no modules"),
        ("modules.json", [{"type": "x.Transformer", "path": "../m1"}], r"the path '\.\./m1'.*in the folder"),
        ("modules.json", [{"type": "x.Transformer", "path": 1}], "at place 0"),
        ("modules.json", [{"type": "x.Router", "path": ""}], r"router_config\.json has no routes"),
        ("1_SpladePooling/config.json", [], "holds a list"),
        ("1_SpladePooling/config.json", {"activation_function": "gelu"}, "activation is 'gelu'"),
        ("config_sentence_transformers.json", {"max_active_dims": "many"}, "max_active_dims='many'"),
        ("config_sentence_transformers.json", {"prompts": ["query"]}, "the prompts"),
    ],
)
def test_a_folder_that_is_broken_is_refused_by_its_file(
    saved: Path, tmp_path: Path, file: str, told: Any, says: str
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "saved"))
    (folder / file).write_text(json.dumps(told))
    with pytest.raises(ConfigurationError, match=says):
        SparseEncoder(folder)


@pytest.mark.parametrize(
    ("route", "says"),
    [
        ({"types": {}, "structure": {"query": ["q"], "document": []}}, "'type': None"),
        ({"types": {"../q": "x.Y"}, "structure": {"query": ["../q"]}}, r"the path '\.\./q'"),
        ({"types": {}, "structure": {"query": "q"}}, "leads 'query' to 'q'"),
        ({"types": {}, "structure": {"query": [[]]}}, "at place 0"),
    ],
)
def test_routes_that_are_broken_are_refused(tmp_path: Path, route: Any, says: str) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "x.Router", "path": ""}]))
    (tmp_path / "router_config.json").write_text(json.dumps(route))
    with pytest.raises(ConfigurationError, match=says):
        SparseEncoder(tmp_path)


@pytest.mark.parametrize(
    ("prompts", "default"),
    [
        ({"query": "q: ", "document": "d: "}, None),
        ({"query": "q: ", "passage": "p: "}, None),
        ({"corpus": "c: ", "general": "g: "}, "general"),
        ({"passage": "p: ", "corpus": "c: ", "document": "", "general": "g: "}, "general"),
    ],
)
def test_prompts_by_any_name_stand_where_sentence_transformers_puts_them(
    saved: Path, tmp_path: Path, prompts: dict[str, str], default: str | None
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "saved"))
    told = {"model_type": "SparseEncoder", "prompts": prompts, "default_prompt_name": default}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(told))
    ours, peer = SparseEncoder(folder), Peer(str(folder), device="cpu")
    for mine, its in ((ours.encode_query, peer.encode_query), (ours.encode_document, peer.encode_document)):
        wanted = its(TEXTS[:2]).to_dense().numpy()
        np.testing.assert_allclose(dense(mine(TEXTS[:2]).embeddings), wanted, rtol=0, atol=1e-5)


def test_no_array_is_as_large_as_all_tokens_times_the_vocabulary(bert: Path) -> None:
    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape[-1:] == (600,):
                self.seen = max(self.seen, out.numel())
            return out

    encoder = SparseEncoder(bert)
    texts = TEXTS * 4
    with Largest() as largest:
        tokens = int(encoder.encode_document(texts).token_counts.sum())
    assert 0 < largest.seen <= 1024 * 600 < tokens * 600 / 2
