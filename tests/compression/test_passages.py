"""A context never exceeds its budget, and every character of it is from its source."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reperio import Document, Hit, Query, Ranking
from reperio.compression import PassageCompressor
from reperio.compression.passages import words
from reperio.errors import ConfigurationError, UnsupportedOperation

texts = st.text(alphabet="ab .!?\n", min_size=1, max_size=60).filter(str.strip)


def ranking(texts: list[str]) -> Ranking:
    return Ranking(Query("q", "?"), tuple(Hit(Document(str(i), t), 1.0 - i) for i, t in enumerate(texts)))


@given(st.lists(texts, max_size=6), st.integers(1, 40), st.integers(0, 20))
def test_laws(texts: list[str], budget: int, more: int) -> None:
    (context,) = PassageCompressor(budget)([ranking(texts)])
    assert words(context.text) == context.tokens <= budget
    for span in context.spans:
        assert context.documents[span.document_id].text[span.start : span.end] in context.text
    (larger,) = PassageCompressor(budget + more)([ranking(texts)])
    assert larger.text.startswith(context.text)
    if sum(map(words, texts)) <= budget:
        assert context.text == "\n\n".join(texts)


def test_the_last_hit_is_cut_after_a_sentence() -> None:
    (context,) = PassageCompressor(7)([ranking(["One two three.", "Four five. Six seven eight nine. Ten."])])
    assert context.text == "One two three.\n\nFour five."


def test_tokens_are_counted_by_the_given_counter() -> None:
    compressor = PassageCompressor(5, count=len)
    (context,) = compressor([ranking(["abc", "defgh"])])
    assert context.text == "abc"
    with pytest.raises(UnsupportedOperation, match="cannot be saved"):
        _ = compressor.spec
    with pytest.raises(ConfigurationError, match="budget is 0"):
        PassageCompressor(0)


def test_nothing_gives_an_empty_context() -> None:
    (context,) = PassageCompressor(5)([ranking([])])
    assert (context.text, context.spans, context.tokens) == ("", (), 0)
