"""Expansion in closed form: what it is made of, that its parts add up, and that it finds what BM25 cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reperio import Collection, Document
from reperio.encoders import BM25Encoder, ClosedFormEncoder, SparseSum, StemStates
from reperio.encoders.analysis import DROPPED, term_key
from reperio.encoders.closed_form_words import token_terms
from reperio.errors import (
    ConfigurationError,
    CorruptArtifact,
    EmptyText,
    FingerprintMismatch,
    InvalidInput,
    NotFound,
    ShapeError,
    UnsupportedOperation,
)
from reperio.indexes import BM25Index
from reperio.models.language_model import LanguageModel
from reperio.models.view import View
from reperio.registry import build
from reperio.signals import Signal
from reperio.testing.models import save_decoder


@pytest.fixture(scope="module")
def model(plain_llama: Path) -> LanguageModel:
    return LanguageModel(plain_llama, batch_tokens=600)


@pytest.fixture(scope="module")
def whole(model: LanguageModel, texts: list[str]) -> StemStates:
    return StemStates(model, max_tokens=48).add(texts)


@pytest.fixture(scope="module")
def folder(whole: StemStates, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("states") / "seen"
    whole.save(path)
    return path


def same(a: StemStates, b: StemStates) -> None:
    assert a.texts == b.texts
    assert a.tokens == b.tokens
    assert a.shortest == b.shortest
    for name in ("keys", "counts"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for mine, theirs in ((a.sums, b.sums), (a.mean, b.mean), (a.within(), b.within())):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * np.abs(mine).max())


def test_it_is_the_discriminant_analysis_of_every_state(
    model: LanguageModel, whole: StemStates, texts: list[str]
) -> None:
    """Against all states held at once, windows and pieces of words among them."""
    reading, analyzer = whole.reading, whole.words.analyzer
    laid, maker = reading.lay_out(texts, "document"), reading.maker("document")
    states: list[Any] = []
    keys: list[int] = []
    for number, (text, spans) in enumerate(zip(texts, maker.spans(texts), strict=True)):
        tokens, terms = token_terms(text, spans.tolist(), analyzer)
        places = maker.own(laid.tokens[number], np.arange(len(laid.tokens[number])))
        for row, own in zip(laid.rows[laid.starts[number] : laid.starts[number + 1]], places, strict=True):
            found = model.view("own").states([row])
            for place, token in enumerate(own.tolist()):
                for key in terms[tokens == token].tolist():
                    states.append(found.states[row.start + place].detach().double().numpy())
                    keys.append(key)
    every, labels = np.array(states), np.array(keys)
    distinct, counts = np.unique(labels, return_counts=True)
    means = np.array([every[labels == key].mean(axis=0) for key in distinct])
    apart = every - means[np.searchsorted(distinct, labels)]
    within = apart.T @ apart / (len(every) - len(distinct))
    np.testing.assert_array_equal(whole.keys, distinct)
    np.testing.assert_array_equal(whole.counts, counts)
    np.testing.assert_allclose(whole.within(), within, rtol=0, atol=1e-5 * np.abs(within).max())

    told = ClosedFormEncoder(whole, min_count=4, ridge=0.1).discriminant
    kept, mean = counts >= 4, every.mean(axis=0)
    inverse = np.linalg.inv(within + 0.1 * np.trace(within) / len(within) * np.eye(len(within)))
    weights = (means[kept] - mean) @ inverse
    bias = np.log(counts[kept] / len(every)) / 2 - ((means[kept] - mean) * weights).sum(axis=1) / 2
    np.testing.assert_allclose(told.weights, weights, rtol=0, atol=1e-3 * np.abs(weights).max())
    np.testing.assert_allclose(told.bias, bias, rtol=0, atol=1e-3 * np.abs(bias).max())


@pytest.mark.parametrize("own", [True, False])
def test_a_row_holds_the_best_stems_over_all_tokens_of_all_windows(
    model: LanguageModel, whole: StemStates, texts: list[str], own: bool
) -> None:
    encoder = ClosedFormEncoder(whole, top=9, min_count=2, own=own)
    told = encoder.discriminant
    laid = whole.reading.lay_out(texts, "document")
    rows = encoder.encode_document(texts).embeddings
    assert int(np.diff(laid.starts).max()) > 3
    for number in range(len(texts)):
        scores = np.full(encoder.dim, -np.inf)
        for row in laid.rows[laid.starts[number] : laid.starts[number + 1]]:
            states = model.view("own").states([row]).states.detach().numpy()[row.start : row.stop]
            scores = np.maximum(scores, ((states - told.mean) @ told.weights.T + told.bias).max(axis=0))
        weights = np.log1p(0.2 * np.maximum(scores, 0))
        if not own:
            weights[np.isin(told.keys, whole.words.analyzer.keys(texts[number]))] = 0
        columns, found = rows.row(number)
        assert len(columns) == min(9, int((weights > 0).sum()))
        np.testing.assert_allclose(np.sort(found)[::-1], np.sort(weights)[::-1][: len(found)], atol=1e-4)
        np.testing.assert_allclose(found, weights[columns], atol=1e-4)
    # With the states at hand it is the same.
    states: list[list[Any]] = [[] for _ in texts]
    for number in range(len(texts)):
        for row in laid.rows[laid.starts[number] : laid.starts[number + 1]]:
            states[number].append(model.view("own").states([row]).states.detach().numpy()[row.start : row.stop])
    np.testing.assert_allclose(encoder.weigh(texts, states).weights, rows.weights, atol=1e-4)


def test_halves_seen_apart_add_up_to_the_whole_in_any_order(
    model: LanguageModel, whole: StemStates, texts: list[str]
) -> None:
    parts = [StemStates(model, max_tokens=48).add(some) for some in (texts[:3], texts[3:11], texts[11:])]
    first = StemStates(model, max_tokens=48).merge(parts[0]).merge(parts[1]).merge(parts[2])
    same(first, whole)
    same(parts[2].merge(parts[1].merge(parts[0])), whole)


def test_what_was_saved_goes_on_where_it_was(
    model: LanguageModel, whole: StemStates, texts: list[str], tmp_path: Path
) -> None:
    StemStates(model, max_tokens=48).add(iter(texts[:7])).save(tmp_path / "a")
    again = StemStates.open(tmp_path / "a", model=model)
    assert again.texts == 7
    assert dict(again.spec) == dict(whole.spec)
    same(again.add(texts[again.texts :]), whole)


def test_opened_by_path_it_is_the_very_same(folder: Path, whole: StemStates, model: LanguageModel) -> None:
    opened = StemStates.open(folder)
    assert opened.seen == whole.seen
    encoder = ClosedFormEncoder(folder, min_count=2)
    assert encoder.fingerprint == ClosedFormEncoder(whole, model=model, min_count=2).fingerprint
    assert build(json.loads(json.dumps(dict(encoder.spec)))).fingerprint == encoder.fingerprint


def test_the_fingerprint_tells_what_was_seen_and_every_setting(
    whole: StemStates, model: LanguageModel, texts: list[str]
) -> None:
    prints = {ClosedFormEncoder(whole).fingerprint.digest}
    for setting in ({"min_count": 2}, {"max_stems": 9}, {"ridge": 0.5}, {"scale": 0.3}, {"top": 5}, {"own": True}):
        prints.add(ClosedFormEncoder(whole, **setting).fingerprint.digest)
    for of in (
        StemStates(model, max_tokens=48).add(texts[:-1]),
        StemStates(model, max_tokens=64).add(texts),
        StemStates(model, max_tokens=48, layer=1).add(texts),
        StemStates(model, max_tokens=48, attention=View("causal", depth=2)).add(texts),
        StemStates(model, max_tokens=48, words=BM25Encoder(stem=False)).add(texts),
        StemStates(model, max_tokens=48, prompt="Read: ").add(texts),
    ):
        prints.add(ClosedFormEncoder(of).fingerprint.digest)
    assert len(prints) == 13


def test_the_rarest_stems_make_room_and_their_scatter_stays_accounted_for(
    model: LanguageModel, whole: StemStates, texts: list[str]
) -> None:
    small = StemStates(model, max_tokens=48, capacity=40).add(texts)
    assert len(small) <= 40
    assert len(small) + small.left_out == len(whole)
    np.testing.assert_array_equal(small.counts.min(), np.sort(whole.counts)[-len(small)])
    np.testing.assert_allclose(small.within(), whole.within(), rtol=0, atol=1e-5 * np.abs(whole.within()).max())


def test_what_fails_leaves_no_part_behind(model: LanguageModel, whole: StemStates, texts: list[str]) -> None:
    states = StemStates(model, max_tokens=48)
    with pytest.raises(EmptyText, match=r"texts\[20\]"):
        states.add([*texts, " "])
    assert (states.texts, len(states)) == (0, 0)
    same(states.add(texts), whole)


def test_a_query_is_looked_up_by_its_stems_alone(whole: StemStates, monkeypatch: pytest.MonkeyPatch) -> None:
    one = ClosedFormEncoder(whole, min_count=1)
    monkeypatch.setattr(whole.reading, "read", None)
    [word, other] = [one.discriminant.words[place] for place in (3, 5)]
    query = f"the {word} {other} {word} zyzzyva"
    columns, weights = one.encode_query([query]).embeddings.row(0)
    assert (columns.tolist(), weights.tolist()) == ([3, 5], [2, 1])
    assert one.encode_query([query]).token_counts.tolist() == [4]
    assert one.terms(query) == {3: f"~{word}", 5: f"~{other}"}


def test_the_columns_are_those_of_the_words_of_bm25(whole: StemStates) -> None:
    told = ClosedFormEncoder(whole, min_count=1).discriminant
    known = BM25Encoder().analyzer
    assert [known.keys(word) for word in told.words] == [[key] for key in told.keys.tolist()]
    assert DROPPED not in told.keys


@pytest.fixture(scope="module")
def fruits() -> list[str]:
    """Texts in which words of one sense have the same neighbours."""
    kinds = ["car", "automobile"], ["doctor", "physician"]
    frames = (
        ["The {} was parked in the garage.", "She drove her {} to work.", "He bought a used {} with a new engine."],
        ["The {} treated the patient.", "See a {} if the fever stays.", "The {} at the hospital wrote a prescription."],
    )
    return [frame.format(word) for words, some in zip(kinds, frames, strict=True) for word in words for frame in some]


def test_a_collection_finds_a_document_by_a_word_that_it_does_not_have_and_says_why(
    fruits: list[str], tmp_path: Path
) -> None:
    StemStates(LanguageModel("all-MiniLM-L6-v2", device="cpu")).add(fruits).save(tmp_path / "states")
    expansion = ClosedFormEncoder(tmp_path / "states", min_count=1, scale=1.0)
    text = "His car broke down near the bridge."
    assert "automobile" in [word for word, _ in expansion.expansions(text)]
    both = SparseSum({"bm25": BM25Encoder(), "expansion": expansion}, weights={"expansion": 0.25})
    signal = Signal(both, BM25Index(weights_below=both.weights_below))
    with Collection.open(tmp_path / "c", signals={"words": signal}) as collection:
        collection.upsert(
            [Document("a", "Soup with noodles."), Document("b", text), Document("c", "The surgeon came.")]
        )
        assert collection.search("automobile")[0].document.id == "b"
        [term] = collection.explain("automobile", "b").signals["words"].terms
        assert term.term == "~automobile"
        weight = dict(expansion.expansions(text))["automobile"]
        assert term.contribution == pytest.approx(weight / 4, rel=1e-4)
    with Collection.open(tmp_path / "c") as collection:
        assert collection.search("automobile")[0].document.id == "b"


def test_states_of_another_model_are_refused(folder: Path, whole: StemStates, texts: list[str], tmp_path: Path) -> None:
    other = LanguageModel(save_decoder(tmp_path / "other", "Llama", seed=5))
    with pytest.raises(FingerprintMismatch, match="weights"):
        ClosedFormEncoder(folder, model=other).encode_document(texts[:1])
    with pytest.raises(FingerprintMismatch, match="weights"):
        StemStates.open(folder, model=other).add(texts[:1])
    with pytest.raises(FingerprintMismatch, match="max_tokens"):
        StemStates(whole.model, max_tokens=40).add(texts[:1]).merge(whole)
    with pytest.raises(ShapeError, match="33"):
        StemStates.open(folder).observe(np.ones((2, 33)), np.array([0]), np.array([term_key("a")]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_states_that_are_not_finite_are_refused_and_nothing_of_them_is_kept(
    plain_llama: Path, folder: Path, texts: list[str], value: float
) -> None:
    states = StemStates.open(folder)
    before, bad = states.seen, np.ones((4, 32))
    bad[3, 7] = value
    with pytest.raises(ShapeError, match="1 of 2 states are not finite; the first is that of token 3"):
        states.observe(bad, np.array([0, 3]), np.array([term_key("a"), term_key("b")]))
    encoder = ClosedFormEncoder(states, min_count=2)
    with pytest.raises(ShapeError, match="states of a text are not finite"):
        encoder.weigh(["merge"], [[bad]])
    whole = encoder.weigh(["merge"], [[bad[:3]]])
    assert np.isfinite(whole.weights).all()
    assert states.seen == before
    broken = LanguageModel(plain_llama)
    fresh = StemStates(broken).add(texts[:2])  # the model is sound while it is probed
    seen = fresh.seen
    broken.network.base_model.norm.weight.data.fill_(value)
    with pytest.raises(ShapeError, match="not finite"):
        fresh.add(texts[2:4])
    assert (fresh.seen, fresh.texts) == (seen, 2)
    states._sums[0, 0] = value
    with pytest.raises(ConfigurationError, match="weights that are not finite"):
        ClosedFormEncoder(states, min_count=1)


def test_damage_is_noticed(folder: Path, tmp_path: Path, whole: StemStates) -> None:
    whole.save(tmp_path / "seen")
    file = tmp_path / "seen" / "sums.npy"
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 1
    file.write_bytes(raw)
    with pytest.raises(CorruptArtifact, match=r"sums\.npy"):
        ClosedFormEncoder(tmp_path / "seen")
    with pytest.raises(NotFound):
        ClosedFormEncoder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"min_count": 0}, "min_count is 0"),
        ({"max_stems": 0}, "max_stems is 0"),
        ({"top": 0}, "top is 0"),
        ({"ridge": 0.0}, "ridge is 0"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"min_count": 10**6}, "None of"),
    ],
)
def test_settings_out_of_range_are_refused(whole: StemStates, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        ClosedFormEncoder(whole, **settings)


def test_what_cannot_be_fitted_is_refused(model: LanguageModel) -> None:
    with pytest.raises(ConfigurationError, match="capacity is 1"):
        StemStates(model, capacity=1)
    with pytest.raises(ConfigurationError, match="Summary"):
        StemStates(model, attention=View("summary", summary=("<sum>",)))
    with pytest.raises(InvalidInput, match="batch"):
        StemStates(model).add("a bare text")
    with pytest.raises(ConfigurationError, match="0 tokens of 0 stems"):
        StemStates(model).add(["the of and"]).within()
    with pytest.raises(UnsupportedOperation, match="memory"):
        _ = ClosedFormEncoder(StemStates(model).add(["heap heap queue queue"] * 2), min_count=1).spec
