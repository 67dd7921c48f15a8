"""Term counts: equal to the peers' tokens, lost nowhere, the same whatever stands beside."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bm25s
import numpy as np
import pytest
import Stemmer
from hypothesis import given
from hypothesis import strategies as st

from reperio import meter, registry
from reperio.embeddings import take
from reperio.encoders.analysis import KEYS, Analyzer, stop_words, term_key
from reperio.encoders.bm25 import BM25Encoder
from reperio.errors import ConfigurationError, EmptyText, InvalidInput, MissingDependency
from reperio.protocols import Encoder

Data = Callable[[str], Path]


@pytest.fixture(scope="module")
def texts(data: Data) -> list[str]:
    lines = (data("scifact") / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[:1500]
    return [f"{d['title']} {d['text']}" for d in map(json.loads, lines)]


# Analysis


def test_tokens_of_real_ascii_text_are_those_of_bm25s(texts: list[str]) -> None:
    plain = [text for text in texts if text.isascii()]
    peer = bm25s.tokenization.Tokenizer(stopwords="en", stemmer=Stemmer.Stemmer("english"))
    theirs = peer.tokenize(plain, return_as="string", show_progress=False)
    analyze = Analyzer("english")
    assert len(plain) > 1000
    assert [analyze.tokenize(text) for text in plain] == [list(tokens) for tokens in theirs]


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_the_fast_path_for_ascii_finds_what_the_general_one_does(text: str) -> None:
    analyze = Analyzer(stopwords=False, stem=False)
    marked = Analyzer(stopwords=False, stem=False).tokenize(text + " \u00e9\u00e9")
    assert analyze.tokenize(text) == marked[:-1]


def test_the_published_english_list_has_the_33_words_of_lucene() -> None:
    assert stop_words("english") == frozenset(bm25s.stopwords.STOPWORDS_EN)
    assert stop_words("porter") == stop_words("english")


def test_other_languages_stem_and_drop_their_own_stop_words() -> None:
    assert Analyzer("german").tokenize("Die Häuser und die Übergänge") == ["haus", "ubergang"]
    assert Analyzer("french").tokenize("l'homme et les chevaux") == ["homm", "cheval"]
    assert Analyzer("spanish").tokenize("las canciones de los niños") == ["cancion", "niñ"]


@pytest.mark.parametrize("language", Analyzer.languages())
def test_every_language_of_the_stemmer_is_usable(language: str) -> None:
    assert Analyzer(language, stopwords=False).tokenize("2024 Reperio")[0] == "2024"


def test_an_unknown_language_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"'klingon'.*english"):
        Analyzer("klingon")


def test_a_language_without_a_list_of_stop_words_says_so() -> None:
    with pytest.raises(ConfigurationError, match=r"'basque'.*stopwords=False"):
        Analyzer("basque")
    assert Analyzer("basque", stopwords=["eta"]).tokenize("etxea eta") == ["etxea"]


def test_missing_lists_name_the_extra_that_brings_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stop_words", None)
    with pytest.raises(MissingDependency, match=r"reperio\[languages\]"):
        Analyzer("german")
    assert Analyzer("english").tokenize("the merge") == ["merg"]


def test_own_stop_words_may_be_given_but_not_as_one_text() -> None:
    assert Analyzer(stopwords=["Merge"], stem=False).tokenize("merge the sort") == ["the", "sort"]
    with pytest.raises(InvalidInput, match="a list of words"):
        Analyzer(stopwords="the")


def test_min_length_keeps_or_drops_short_words() -> None:
    assert Analyzer(min_length=1, stem=False).tokenize("C and R") == ["c", "r"]
    assert Analyzer(min_length=4, stem=False).tokenize("abc abcd") == ["abcd"]
    with pytest.raises(ConfigurationError, match="min_length is 0"):
        Analyzer(min_length=0)


def test_scripts_without_spaces_become_pairs_of_characters() -> None:
    analyze = Analyzer()
    assert analyze.tokenize("自然语言处理。") == ["自然", "然语", "语言", "言处", "处理"]
    assert analyze.tokenize("Python语言3 茶") == ["python", "语言", "茶"]
    assert analyze.tokenize("データ") == ["デー", "ータ"]
    assert analyze.tokenize("สวัสดี")[0] == "สว"


def test_combining_marks_stay_in_their_word() -> None:
    assert Analyzer(stem=False).tokenize("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert Analyzer(stem=False).tokenize("cafe\u0301 café") == ["café", "café"]


def test_ligatures_width_and_the_turkish_i_are_folded() -> None:
    assert Analyzer(stem=False).tokenize("ﬁle ＡＢＣ İzmir") == ["file", "abc", "izmir"]
    assert Analyzer("turkish", stopwords=False, stem=False).tokenize("ISPARTA İzmir") == ["ısparta", "izmir"]


def test_identifiers_are_found_whole_and_by_their_parts() -> None:
    analyze = Analyzer(stem=False, identifiers=True)
    assert analyze.tokenize("heapq.merge") == ["heapq", "merge"]
    assert analyze.tokenize("read_csv OrderedDict") == ["read_csv", "read", "csv", "ordereddict", "ordered", "dict"]
    assert analyze.tokenize("HTTPServer sha256") == ["httpserver", "http", "server", "sha256", "sha", "256"]
    assert Analyzer(stem=False).tokenize("read_csv OrderedDict") == ["read_csv", "ordereddict"]


@given(st.text())
def test_no_text_breaks_the_analyzer_and_keys_follow_terms(text: str) -> None:
    analyze = Analyzer(identifiers=True)
    assert [key for key in analyze.keys(text) if key >= 0] == [term_key(term) for term in analyze.tokenize(text)]


def test_the_cache_stays_small_and_changes_nothing(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> None:
    wanted = [Analyzer().keys(text) for text in texts[:50]]
    monkeypatch.setattr(Analyzer, "CACHE_SIZE", 100)
    small = Analyzer()
    assert [small.keys(text) for text in texts[:50]] == wanted
    assert len(small._keys) <= 100


# Encoder


def test_it_is_an_encoder_that_its_spec_builds_again() -> None:
    encoder = BM25Encoder("german", stopwords=["die"], stem=False, min_length=3, identifiers=True)
    again = registry.build(encoder.spec)
    assert isinstance(encoder, Encoder)
    assert json.loads(json.dumps(encoder.spec)) == dict(again.spec)
    assert again.fingerprint == encoder.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        BM25Encoder("porter"),
        BM25Encoder(stem=False),
        BM25Encoder(stopwords=False),
        BM25Encoder(stopwords=["the"]),
        BM25Encoder(min_length=1),
        BM25Encoder(identifiers=True),
    ],
)
def test_the_fingerprint_tells_every_setting(other: BM25Encoder) -> None:
    assert BM25Encoder().fingerprint.digest == BM25Encoder().fingerprint.digest
    assert BM25Encoder().fingerprint.differences(other.fingerprint)


def test_rows_count_terms_in_ascending_columns(texts: list[str]) -> None:
    encoder = BM25Encoder()
    encoded = encoder.encode_document(texts)
    for i, text in enumerate(texts):
        columns, weights = encoded.embeddings.row(i)
        wanted = Counter(term_key(term) for term in encoder.analyzer.tokenize(text))
        assert dict(zip(columns.tolist(), weights.tolist(), strict=True)) == wanted
        assert np.all(np.diff(columns) > 0)
        assert encoded.token_counts[i] == weights.sum()
    assert encoded.embeddings.dim == KEYS
    assert not encoded.truncated.any()


def test_a_row_does_not_depend_on_its_neighbours(texts: list[str]) -> None:
    together = BM25Encoder().encode_document(texts[:64]).embeddings
    for i in (0, 17, 63):
        alone = BM25Encoder().encode_query([texts[i]]).embeddings
        part = take(together, np.array([i]))
        assert np.array_equal(part.indices, alone.indices)
        assert np.array_equal(part.weights, alone.weights)


def test_a_column_is_the_same_for_ever() -> None:
    assert term_key("merg") == 4_260_696_228_311_787_515
    assert 0 <= term_key("") < KEYS


def test_a_text_without_a_term_has_an_empty_row() -> None:
    encoded = BM25Encoder().encode_query(["the", "!?", "merge"])
    assert encoded.token_counts.tolist() == [0, 0, 1]
    assert encoded.embeddings.indptr.tolist() == [0, 0, 0, 1]


def test_an_empty_batch_has_no_rows() -> None:
    encoded = BM25Encoder().encode_document([])
    assert (len(encoded.embeddings), len(encoded.token_counts), len(encoded.truncated)) == (0, 0, 0)


@pytest.mark.parametrize("blank", ["", "  \n"])
def test_a_blank_text_is_refused_with_its_position(blank: str) -> None:
    with pytest.raises(EmptyText, match=r"texts\[1\]"):
        BM25Encoder().encode_document(["merge", blank])


def test_a_bare_text_or_another_type_is_refused() -> None:
    with pytest.raises(InvalidInput, match="batch"):
        BM25Encoder().encode_query("merge")
    with pytest.raises(InvalidInput, match=r"texts\[0\] is a int"):
        BM25Encoder().encode_query([7])  # type: ignore[list-item]


def test_terms_give_back_the_words_behind_the_columns() -> None:
    encoder = BM25Encoder()
    words = encoder.terms("Merging the sorted, merged iterables")
    columns, _ = encoder.encode_query(["Merging the sorted, merged iterables"]).embeddings.row(0)
    assert sorted(words) == columns.tolist()
    assert set(words.values()) == {"merging", "sorted", "iterables"}


def test_tokens_are_counted_where_someone_measures() -> None:
    with meter.measure() as counts:
        BM25Encoder().encode_document(["merge the sorted", "heap"])
    assert counts["tokens"] == 3


def test_threads_may_share_an_encoder(texts: list[str]) -> None:
    encoder = BM25Encoder()
    wanted = BM25Encoder().encode_document(texts[:400]).embeddings
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(encoder.encode_document, [texts[i : i + 50] for i in range(0, 400, 50)]))
    assert np.array_equal(np.concatenate([part.embeddings.indices for part in parts]), wanted.indices)
