"""What the dense encoder does with texts longer than the model reads, and with more texts than memory holds."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from reperio import meter
from reperio.encoders import DenseEncoder
from reperio.errors import (
    ConfigurationError,
    EmptyText,
    InvalidInput,
    TruncationError,
)
from reperio.models.sentence import SentenceModel

Make = Callable[..., SentenceTransformer]

ALIKE = 1e-6
"""Largest difference between two vectors of one text, in float32: what the encoder states."""

PEER = 1e-5
"""Largest difference from the peer's vectors."""

ignore_cut = pytest.mark.filterwarnings("ignore:.* texts were cut")


# What is longer than the model reads


def test_tokens_are_counted_before_the_cut_as_the_models_tokenizer_does(make: Make, texts: list[str]) -> None:
    model = make(prompts={"document": "passage: "})
    with pytest.warns(UserWarning, match="texts were cut"):
        encoded = DenseEncoder(model).encode_document(texts)
    whole = model.tokenizer([f"passage: {text}" for text in texts], truncation=False, verbose=False)["input_ids"]
    assert encoded.token_counts.tolist() == [len(ids) for ids in whole]
    assert encoded.truncated.tolist() == [len(ids) > 24 for ids in whole]


def test_one_warning_says_how_many_were_cut_the_longest_and_the_limit(make: Make, texts: list[str]) -> None:
    encoder = DenseEncoder(make())
    with pytest.warns(UserWarning, match="texts were cut") as caught:
        counts = encoder.encode_document(["short", *texts]).token_counts
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


def test_the_last_word_of_a_long_text_counts_in_windows_and_not_when_cut(make: Make, texts: list[str]) -> None:
    model = make()
    for how, differs in (("chunk", True), ("warn", False)):
        encoder = DenseEncoder(model, on_truncation=how)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            a, b = encoder.encode_document([texts[3] + " sheep", texts[3] + " goats"]).embeddings
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
def test_a_stream_gives_what_one_batch_gives_and_counts_what_was_done(make: Make, texts: list[str]) -> None:
    encoder = DenseEncoder(make())
    whole = encoder.encode_query(texts)
    with meter.measure() as counts:
        parts = list(encoder.encode_stream(iter(texts), role="query", batch_size=7))
    assert [len(part.embeddings) for part in parts] == [7, 7, len(texts) - 14]
    np.testing.assert_allclose(np.concatenate([p.embeddings for p in parts]), whole.embeddings, rtol=0, atol=ALIKE)
    assert np.concatenate([p.token_counts for p in parts]).tolist() == whole.token_counts.tolist()
    read = int(np.minimum(whole.token_counts, 24).sum())
    assert counts == {"texts": len(texts), "tokens": read, "truncated": int(whole.truncated.sum())}


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
