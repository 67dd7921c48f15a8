"""Which terms each token of a model is part of: the very terms that BM25 counts."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio.encoders.analysis import DROPPED, Analyzer, term_key
from reperio.encoders.closed_form_words import token_terms
from reperio.errors import UnsupportedOperation
from reperio.models.language_model import LanguageModel
from reperio.models.rows import RowMaker
from reperio.testing.encoder import TEXTS
from reperio.testing.models import byte_pairs

ANALYZER = Analyzer()


@pytest.fixture(scope="module")
def maker() -> RowMaker:
    return LanguageModel("all-MiniLM-L6-v2").rows(limit=24)


@pytest.mark.parametrize("analyzer", [ANALYZER, Analyzer(identifiers=True), Analyzer("german", stem=False)])
def test_the_tokens_of_a_text_have_all_the_terms_that_bm25_counts_in_it(
    maker: RowMaker, texts: list[str], analyzer: Analyzer
) -> None:
    some = [*TEXTS, *texts]
    for text, spans in zip(some, maker.spans(some), strict=True):
        _, keys = token_terms(text, spans.tolist(), analyzer)
        assert set(keys.tolist()) == set(analyzer.keys(text)) - {DROPPED}


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("abé_1ﬁ東京タワー \n-.'日ß½İ\u0301\u200b🇪한국ไท"), max_size=24), st.data())
def test_a_token_has_terms_of_its_text_only_wherever_it_is_cut(text: str, data: st.DataObject) -> None:
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=6))})
    _, keys = token_terms(text, itertools.pairwise(cuts), ANALYZER)
    assert set(keys.tolist()) <= set(ANALYZER.keys(text)) - {DROPPED}


def test_all_pieces_of_a_word_share_its_stem_and_stop_words_have_none(maker: RowMaker) -> None:
    text = "the unretrievability"
    [row], [spans] = maker.tokenize([text]), maker.spans([text])
    tokens, keys = token_terms(text, spans.tolist(), ANALYZER)
    assert len(row) > 5
    assert tokens.tolist() == list(range(2, len(row) - 1))
    assert set(keys.tolist()) == {term_key("unretriev")}


def test_pairs_of_characters_belong_to_both(maker: RowMaker) -> None:
    [spans] = maker.spans(["東京都"])
    tokens, keys = token_terms("東京都", spans.tolist(), ANALYZER)
    assert Counter(keys.tolist()) == {term_key("東京"): 2, term_key("京都"): 2}
    assert tokens.tolist() == [1, 2, 2, 3]


@pytest.mark.parametrize("prompt", ["", "passage: ", "{text}\nSummary:", "Read {text} again"])
def test_spans_say_what_each_token_was_whatever_stands_around(prompt: str, texts: list[str]) -> None:
    tokenizer = byte_pairs()
    rows = RowMaker(tokenizer, prompt=prompt, limit=64, ends=[tokenizer.eos_token_id])
    for text, row, spans in zip(texts, rows.tokenize(texts), rows.spans(texts), strict=True):
        assert len(row) == len(spans)
        said = [text[a:b] for a, b in spans if a < b]
        assert "".join(said).replace(" ", "") == "".join(text.split(" "))
        own = [np.concatenate(rows.own(row, spans[:, side])[:1]) for side in (0, 1)]
        window = rows.windows(row)[0]
        assert len(own[0]) == window.stop - window.start
        told = tokenizer.decode(window.ids[window.start : window.stop]).strip()
        assert told == text[own[0].min() : own[1].max()].strip()


def test_a_tokenizer_in_python_cannot_say_where_its_tokens_are() -> None:
    slow = byte_pairs()
    maker = RowMaker(slow)
    maker._tokenizer = type("Slow", (), {"is_fast": False})()
    with pytest.raises(UnsupportedOperation, match="Slow"):
        maker.spans(["a"])
