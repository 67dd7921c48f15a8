"""The dense encoder against sentence-transformers' own vectors, on real text and on small models made here."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer
from transformers import RobertaConfig, RobertaModel

from reperio.encoders import DenseEncoder
from reperio.errors import ConfigurationError
from reperio.models.sentence import SentenceModel

Make = Callable[..., SentenceTransformer]
BothRoles = Callable[..., None]

ALIKE = 1e-6
"""Largest difference between two vectors of one text, in float32: what the encoder states."""

ALIKE_IN_HALF = 5e-3
"""The same in half precision."""

PEER = 1e-5
"""Largest difference from the peer's vectors."""

ignore_cut = pytest.mark.filterwarnings("ignore:.* texts were cut")


# What it computes


@ignore_cut
def test_vectors_are_those_of_sentence_transformers(
    minilm: DenseEncoder, peer: SentenceTransformer, check_both_roles: BothRoles, texts: list[str]
) -> None:
    check_both_roles(minilm, peer, texts[:10])


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
def test_every_pooling_gives_the_models_own_vectors(make: Make, pooling: str, check_both_roles: BothRoles) -> None:
    model = make(pooling=pooling)
    check_both_roles(DenseEncoder(model), model)


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
def test_each_role_has_the_models_own_prompt(
    make: Make, prompts: dict[str, str], include_prompt: bool, check_both_roles: BothRoles, texts: list[str]
) -> None:
    model = make(prompts=prompts, include_prompt=include_prompt)
    encoder = DenseEncoder(model)
    check_both_roles(encoder, model)
    same = np.array_equal(encoder.encode_query(texts[:3]).embeddings, encoder.encode_document(texts[:3]).embeddings)
    assert same == (not any(prompts.get(role) for role in ("query", "document")))
    field = json.loads(dict(encoder.fingerprint.fields)["prompts"])
    assert field == {role: prompts.get(role, "") for role in ("query", "document")}


@ignore_cut
def test_a_default_prompt_stands_where_a_role_has_none(make: Make, check_both_roles: BothRoles) -> None:
    model = make(prompts={"all": "text: "}, default_prompt_name="all")
    del model.prompts["query"], model.prompts["document"]
    check_both_roles(DenseEncoder(model), model)
    assert '"query": "text: "' in dict(DenseEncoder(model).fingerprint.fields)["prompts"]


@ignore_cut
def test_modules_after_the_pooling_are_run(make: Make, check_both_roles: BothRoles) -> None:
    model = make(Dense(32, 8), Normalize())
    encoder = DenseEncoder(model)
    check_both_roles(encoder, model)
    assert encoder.fingerprint.dim == 8


@ignore_cut
def test_shortened_vectors_are_the_models_own(make: Make, check_both_roles: BothRoles) -> None:
    model = make(Normalize(), truncate_dim=10)
    encoder = DenseEncoder(model)
    check_both_roles(encoder, model)
    assert encoder.fingerprint.dim == 10
    assert np.linalg.norm(encoder.encode_query(["a"]).embeddings) < 0.99
    assert np.linalg.norm(DenseEncoder(model, normalize=True).encode_query(["a"]).embeddings) == pytest.approx(1)


@ignore_cut
@pytest.mark.parametrize("side", ["truncation_side", "padding_side"])
def test_a_model_that_reads_from_the_left_is_cut_and_padded_there(
    make: Make, side: str, check_both_roles: BothRoles
) -> None:
    model = make(prompts={"query": "find "})
    setattr(model.tokenizer, side, "left")
    check_both_roles(DenseEncoder(model), model)


@ignore_cut
def test_each_role_may_have_its_own_length(make: Make, check_both_roles: BothRoles) -> None:
    model = make()
    model[0].query_length, model[0].document_length = 8, 16
    encoder = DenseEncoder(model)
    check_both_roles(encoder, model)
    assert json.loads(dict(encoder.fingerprint.fields)["max_tokens"]) == {"query": 8, "document": 16}


@ignore_cut
def test_a_router_sends_each_role_its_own_way(plain_bert: Path, check_both_roles: BothRoles) -> None:
    static = StaticEmbedding(Tokenizer.from_file(str(plain_bert / "tokenizer.json")), embedding_dim=32)
    document = [Transformer(str(plain_bert), max_seq_length=24), Pooling(32, "mean")]
    model = SentenceTransformer(modules=[Router.for_query_document([static], document)], device="cpu")
    check_both_roles(DenseEncoder(model), model)


@pytest.mark.parametrize("saved", [None, 9])
def test_static_embeddings_are_read_whole_or_cut_as_saved(
    plain_bert: Path, saved: int | None, check_both_roles: BothRoles, texts: list[str]
) -> None:
    tokenizer = Tokenizer.from_file(str(plain_bert / "tokenizer.json"))
    if saved is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(saved)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
    encoder = DenseEncoder(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_both_roles(encoder, model)
        encoded = encoder.encode_document(texts)
    assert encoded.truncated.any() == (saved is not None)
    assert encoded.token_counts.max() > 50


def test_positions_counted_as_roberta_does_are_never_overrun(
    tmp_path: Path, plain_bert: Path, texts: list[str]
) -> None:
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
    assert np.isfinite(encoder.encode_document([texts[3]]).embeddings).all()
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
def test_half_precision_gives_float32_rows_near_the_full_ones(
    minilm: DenseEncoder, dtype: Any, short: list[str]
) -> None:
    half = DenseEncoder(device="cpu", dtype=dtype)
    rows = half.encode_document(short).embeddings
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, minilm.encode_document(short).embeddings, rtol=0, atol=1e-2)
    alone = np.concatenate([half.encode_document([text]).embeddings for text in short])
    np.testing.assert_allclose(rows, alone, rtol=0, atol=ALIKE_IN_HALF)
    assert half.fingerprint.differences(minilm.fingerprint) == [f'dtype: "{dtype}" != "float32"']


# The same whatever the batch


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(8)), cuts=st.sets(st.integers(1, 7)), budget=st.sampled_from([1, 40, 100, 10_000]))
def test_a_vector_does_not_hang_on_order_batch_or_neighbours(
    minilm: DenseEncoder, order: list[int], cuts: set[int], budget: int, short: list[str]
) -> None:
    expected = minilm.encode_document(short).embeddings
    other = DenseEncoder(device="cpu", batch_tokens=budget)
    other._loaded = minilm._load()
    parts = itertools.pairwise([0, *sorted(cuts), len(order)])
    got = np.concatenate([other.encode_document([short[i] for i in order[a:b]]).embeddings for a, b in parts])
    np.testing.assert_allclose(got, expected[order], rtol=0, atol=ALIKE)


@ignore_cut
def test_memory_that_runs_out_halves_the_batch_and_changes_no_vector(
    make: Make, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    encoder = DenseEncoder(make(length=64))
    expected = encoder.encode_document(texts)
    forward, sizes = SentenceModel.forward, list[int]()

    def cramped(self: SentenceModel, rows: Any, role: Any) -> Any:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return forward(self, rows, role)

    monkeypatch.setattr(SentenceModel, "forward", cramped)
    np.testing.assert_allclose(encoder.encode_document(texts).embeddings, expected.embeddings, rtol=0, atol=ALIKE)
    assert max(sizes) > 3


def test_threads_share_one_model(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> None:
    make(Normalize()).save(str(tmp_path / "m"))
    encoder, loads = DenseEncoder(tmp_path / "m", device="cpu", on_truncation="chunk"), list[int]()
    init = SentenceModel.__init__
    monkeypatch.setattr(SentenceModel, "__init__", lambda *a, **k: (loads.append(1), init(*a, **k))[1])
    results: list[Any] = [None] * 8
    wait = threading.Barrier(8)

    def work(i: int) -> None:
        wait.wait()
        results[i] = encoder.encode_document(texts).embeddings

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [1]
    for result in results:
        np.testing.assert_allclose(result, results[0], rtol=0, atol=ALIKE)
