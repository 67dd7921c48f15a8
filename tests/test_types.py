"""Contexts trace every character; fingerprints name what differs; embeddings survive their bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reperio import Context, Document, Query, Span
from reperio.embeddings import MultiVector, Sparse, check_dense, from_bytes, kind_of, take, to_bytes
from reperio.errors import InvalidInput, ShapeError
from reperio.types import FieldSpan, Fingerprint, Neighbors, Provenance

texts = st.text(min_size=1, max_size=20)


@given(texts=st.lists(texts, min_size=1, max_size=4), data=st.data(), separator=st.text(max_size=3))
def test_every_character_of_a_context_is_traced(texts: list[str], data: st.DataObject, separator: str) -> None:
    documents = {str(i): Document(str(i), text) for i, text in enumerate(texts)}
    spans = []
    for document in documents.values():
        start = data.draw(st.integers(0, len(document.text)))
        spans.append(Span(document.id, start, data.draw(st.integers(start, len(document.text)))))
    context = Context(Query("q", "?"), tuple(spans), documents, separator)
    traced = 0
    for i, character in enumerate(context.text):
        origin = context.to_original(i)
        if origin is not None:
            name, position = origin
            assert documents[name].text[position] == character
            assert context.from_original(name, position) == i
            traced += 1
    assert traced == sum(map(len, spans))
    with pytest.raises(InvalidInput, match="outside"):
        context.source(len(context.text))


def test_a_source_names_table_key_and_field() -> None:
    where = Provenance("shop.db", "articles", "42", (FieldSpan("title", 0, 5), FieldSpan("body", 7, 12)))
    document = Document("42", "Shoes\n\nGreen", provenance=where)
    context = Context(Query("q", "?"), (Span("42", 3, 10),), {"42": document})
    origin = context.source(5)
    assert origin is not None
    assert origin.field == FieldSpan("body", 7, 12)
    assert origin.provenance == where
    assert context.source(3).field is None  # type: ignore[union-attr]
    assert str(where) == "shop.db articles[42]"


def test_a_span_outside_its_text_is_refused() -> None:
    documents = {"a": Document("a", "abc")}
    with pytest.raises(InvalidInput, match="3 characters"):
        Context(Query("q", "?"), (Span("a", 0, 4),), documents)
    with pytest.raises(InvalidInput, match="does not hold"):
        Context(Query("q", "?"), (Span("b", 0, 1),), documents)


def test_fingerprints_differ_by_named_field_and_not_by_path() -> None:
    one = Fingerprint.make("dense", "/here/model", 384, pooling="mean", prompts={"query": ""})
    two = Fingerprint.make("dense", "/there/model", 384, pooling="mean", prompts={"query": ""})
    three = Fingerprint.make("dense", "/here/model", 384, pooling="cls", prompts={"query": ""})
    assert one.digest == two.digest != three.digest
    assert one.differences(two) == []
    assert one.differences(three) == ['pooling: "mean" != "cls"']


@st.composite
def sparse(draw: st.DrawFn) -> Sparse:
    rows = draw(st.lists(st.dictionaries(st.integers(0, 2**63 - 2), st.floats(0, 9, width=32), max_size=4), max_size=5))
    columns = [np.array(sorted(row), np.int64) for row in rows]
    weights = [np.array([row[c] for c in sorted(row)], np.float32) for row in rows]
    indptr = np.cumsum([0, *map(len, columns)]).astype(np.int64)
    empty = np.empty(0, np.int64)
    return Sparse(
        indptr, np.concatenate([empty, *columns]), np.concatenate([empty, *weights]).astype(np.float32), 2**63 - 1
    )


@given(sparse())
def test_sparse_rows_survive_their_bytes(rows: Sparse) -> None:
    again = from_bytes(to_bytes(rows), "sparse", dim=rows.dim)
    assert isinstance(again, Sparse)
    for a, b in ((again.indptr, rows.indptr), (again.indices, rows.indices), (again.weights, rows.weights)):
        np.testing.assert_array_equal(a, b)
    order = np.arange(len(rows), dtype=np.int64)[::-1]
    assert to_bytes(take(rows, order)) == to_bytes(rows)[::-1]


@given(st.lists(st.integers(0, 3), max_size=5), st.integers(1, 4))
def test_dense_and_multi_vector_rows_survive_their_bytes(lengths: list[int], dim: int) -> None:
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((len(lengths), dim)).astype(np.float32)
    np.testing.assert_array_equal(from_bytes(to_bytes(dense), "dense", dim=dim), dense)
    offsets = np.cumsum([0, *lengths]).astype(np.int64)
    multi = MultiVector(rng.standard_normal((sum(lengths), dim)).astype(np.float32), offsets)
    again = from_bytes(to_bytes(multi), "multi-vector", dim=dim)
    assert isinstance(again, MultiVector)
    np.testing.assert_array_equal(again.vectors, multi.vectors)
    np.testing.assert_array_equal(again.offsets, multi.offsets)
    assert [kind_of(e) for e in (dense, multi)] == ["dense", "multi-vector"]
    if lengths:
        picked = take(multi, np.array([len(lengths) - 1, 0]))
        assert to_bytes(picked) == [to_bytes(multi)[-1], to_bytes(multi)[0]]


def test_bad_vectors_are_named() -> None:
    good = np.zeros((3, 4))
    assert check_dense(good, what="v").dtype == np.float32
    for bad, words in [
        (np.zeros(4), r"shape \(4,\)"),
        (np.array([["a"]]), "dtype"),
        (np.where(np.eye(3, 4) > 0, np.nan, 0), "row 0, holds NaN"),
        (np.full((2, 4), np.inf), "infinity"),
    ]:
        with pytest.raises(ShapeError, match=words):
            check_dense(bad, what="v")
    with pytest.raises(ShapeError, match="4 dimensions, expected 5"):
        check_dense(good, what="v", dim=5)
    with pytest.raises(ShapeError, match="3 rows, expected 2"):
        check_dense(good, what="v", rows=2)
    large = np.full((3, 4), 1e15, dtype=np.float32)
    np.testing.assert_array_equal(check_dense(large, what="v"), large)
    large[1, 2] = -3e20
    with pytest.raises(ShapeError, match=r"v, row 1, holds -3e\+20, beyond ±1e\+15 \(1 such rows\)\. Scale"):
        check_dense(large, what="v")
    with pytest.raises(ShapeError, match="differ"):
        Neighbors(np.zeros((1, 2), np.int64), np.zeros((1, 3), np.float32))
