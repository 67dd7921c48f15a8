"""Late chunking against states taken by hand; windows that own every token once; chunks grouped by document."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio import Collection, Document, Hit, LanguageModel, Query, Ranking, Signal
from reperio.encoders import ChunkEncoder, DecoderEncoder
from reperio.errors import ConfigurationError, InvalidInput
from reperio.indexes import MultiVectorIndex
from reperio.rerankers import ChunkGrouper
from reperio.testing.models import byte_pairs

LONG = "The whole text is read at once, and each chunk's vector knows what was said before it. " * 8


@pytest.fixture(scope="module")
def model(plain_llama: Path) -> LanguageModel:
    return LanguageModel(plain_llama)


def test_a_chunk_is_the_mean_of_its_tokens_states_with_the_whole_text_around_them(model: LanguageModel) -> None:
    encoder = ChunkEncoder(model, chunk_tokens=30, stride=20, normalize=False)
    ids = model.tokenizer(LONG)["input_ids"]
    with torch.inference_mode():
        states = model.network.model(torch.tensor([ids])).last_hidden_state[0, 1:].numpy()
    starts = [start for start in range(0, len(states), 20) if start == 0 or start - 20 + 30 < len(states)]
    wanted = [states[start : start + 30].mean(axis=0) for start in starts]
    found = encoder.encode_document([LONG]).embeddings
    np.testing.assert_allclose(found.vectors, wanted, rtol=0, atol=1e-5)


def test_one_chunk_and_a_query_are_what_mean_pooling_gives(model: LanguageModel) -> None:
    text = LONG[:90]
    wanted = DecoderEncoder(model, pooling="mean").encode_document([text]).embeddings
    encoder = ChunkEncoder(model, chunk_tokens=400)
    for found in (encoder.encode_document([text]), encoder.encode_query([text])):
        np.testing.assert_allclose(found.embeddings.vectors, wanted, rtol=0, atol=1e-6)
    assert len(ChunkEncoder(model, chunk_tokens=4).encode_query([LONG]).embeddings.vectors) == 1


def test_what_is_longer_than_the_model_reads_is_not_cut(model: LanguageModel) -> None:
    encoder = ChunkEncoder(model, chunk_tokens=16, max_tokens=64)
    whole = encoder.encode_document([LONG])
    assert whole.token_counts[0] > 64
    assert not whole.truncated.any()
    tokens = int(whole.token_counts[0]) - 1
    assert len(whole.embeddings.vectors) == -(-tokens // 16)
    other = encoder.encode_document([LONG[:-20] + "a wholly other end."]).embeddings.vectors
    assert np.abs(other[-1] - whole.embeddings.vectors[-1]).max() > 1e-3
    np.testing.assert_allclose(other[0], whole.embeddings.vectors[0], rtol=0, atol=1e-5)


@given(tokens=st.integers(1, 300), limit=st.integers(8, 64), prompt=st.sampled_from(["", "passage: "]))
@settings(max_examples=60, deadline=None)
def test_windows_own_every_token_once_and_far_from_their_edges(tokens: int, limit: int, prompt: str) -> None:
    from reperio.encoders.chunked import CONTEXT, owned_windows
    from reperio.models.rows import RowMaker

    maker = RowMaker(byte_pairs(), prompt=prompt, limit=limit) if limit > 16 or not prompt else None
    if maker is None:
        return
    head = maker.tokenize(["a"])[0][:-1]
    row = np.concatenate([head, np.arange(1000, 1000 + tokens, dtype=np.int32)])
    windows = owned_windows(maker, row)
    owned = [window.ids[window.start : window.stop].tolist() for window, _ in windows]
    assert [token for some in owned for token in some] == list(range(1000, 1000 + tokens))
    firsts = np.cumsum([0, *map(len, owned)])[:-1].tolist()
    assert [first for _, first in windows] == firsts
    for number, (window, _) in enumerate(windows):
        assert len(window) <= limit
        room = len(window) - len(head)
        if number:
            assert window.start - len(head) >= int(room * CONTEXT) - 1
        if number < len(windows) - 1:
            assert len(window) - window.stop >= int(room * CONTEXT) - 1


def test_chunks_tell_their_characters(model: LanguageModel) -> None:
    encoder = ChunkEncoder(model, chunk_tokens=16)
    chunks = encoder.chunks(LONG)
    assert len(chunks) == len(encoder.encode_document([LONG]).embeddings.vectors)
    assert "".join(LONG[a:b] for a, b in chunks) == LONG


def test_a_collection_finds_a_document_by_its_best_chunk(model: LanguageModel, tmp_path: Path) -> None:
    encoder = ChunkEncoder(model, chunk_tokens=12)
    needle = "A red fox jumps over nine lazy dogs."
    documents = [Document("hay", LONG), Document("needle", f"{LONG} {needle} {LONG}"), Document("short", "Hay.")]
    with Collection.open(tmp_path / "c", signals={"chunks": Signal(encoder, MultiVectorIndex())}) as collection:
        collection.upsert(documents)
        before = collection.search(LONG[:80]).ids
        assert sorted(before) == ["hay", "needle", "short"]
    with Collection.open(tmp_path / "c", mode="r") as again:
        assert again.search(LONG[:80]).ids == before


def test_settings_out_of_range_are_refused(model: LanguageModel) -> None:
    for wrong in ({"chunk_tokens": 0}, {"stride": 0}, {"stride": 200}, {"attention": "echo"}):
        with pytest.raises(ConfigurationError, match="is"):
            ChunkEncoder(model, **wrong)  # type: ignore[arg-type]


# Hits of chunks


def _ranking(*pairs: tuple[str, float]) -> Ranking:
    hits = [Hit(Document(str(i), "…", {"of": name}), score, {"s": score}) for i, (name, score) in enumerate(pairs)]
    return Ranking(Query("q", "?"), hits)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(-5, 5, width=32)), max_size=12), st.integers(1, 4))
def test_each_document_stands_once_with_its_best_chunk(pairs: list[tuple[str, float]], top: int) -> None:
    ranking = _ranking(*sorted(pairs, key=lambda pair: -pair[1]))
    for score in ("max", "mean"):
        [grouped] = ChunkGrouper("of", score=score, top=top)([ranking])  # type: ignore[arg-type]
        assert sorted({name for name, _ in pairs}) == sorted(str(hit.document.metadata["of"]) for hit in grouped)
        assert (np.diff(grouped.scores) <= 0).all()
        for hit in grouped:
            own = [s for name, s in pairs if name == hit.document.metadata["of"]]
            assert hit.signals["s"] == max(own)
            assert min(s for _, s in pairs) - 1e-6 <= hit.score <= max(own) + 1e-6
            if score == "max" or top == 1:
                assert hit.score == max(own)


def test_a_chunk_that_names_no_document_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no metadata field 'page'"):
        ChunkGrouper("page")([_ranking(("a", 1.0))])
    for wrong in ({"score": "sum"}, {"top": 0}):
        with pytest.raises(ConfigurationError, match="is"):
            ChunkGrouper("of", **wrong)  # type: ignore[arg-type]
