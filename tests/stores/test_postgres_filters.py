"""A filter means the same in Python, in SQLite and in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio import Document, Field
from reperio.errors import (
    FilterError,
)
from reperio.filters import Filter, check
from reperio.stores.postgres import PostgresStore
from reperio.stores.postgres_schema import exact_json
from reperio.stores.rows import Entry
from reperio.stores.sqlite import SQLiteStore
from reperio.testing.store import commit, some

NAMES = ["year", "lang", "tags", 'we"ird.$[0] %s {key}']
scalars = st.one_of(
    st.integers(-3, 3),
    st.sampled_from(
        [2**53 + 1, 2**62, 2**62 + 1, -(2**63), 2.0**53, 2.0**62, 0.1, 0.5, -1.25, 2.0, -0.0, 1e300, 5e-324]
    ),
    st.sampled_from(["", "a", "ab", "B", "é", "z", "中", "🎈", "3", "true", "%", "'", '"', "\\", "a\nb", "{}"]),
    st.booleans(),
)
values = st.recursive(
    st.one_of(st.none(), scalars),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("xy"), inner, max_size=2)),
    max_leaves=4,
)
metadata = st.dictionaries(st.sampled_from(NAMES), values, max_size=4)
fields = st.sampled_from(NAMES).map(Field)
leaves = st.one_of(
    *(st.builds(compare, fields, scalars) for compare in (lambda f, v: f == v, lambda f, v: f != v)),
    *(st.builds(compare, fields, scalars) for compare in (lambda f, v: f < v, lambda f, v: f <= v)),
    *(st.builds(compare, fields, scalars) for compare in (lambda f, v: f > v, lambda f, v: f >= v)),
    st.builds(lambda f, v: f.in_(v), fields, st.lists(scalars, max_size=4)),
    st.builds(lambda f, v: f.contains(v), fields, scalars),
    st.builds(lambda f: f.exists(), fields),
)
conditions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        inner.map(lambda a: ~a),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def stores(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """One in a file, one on the server."""
    both = [
        SQLiteStore(tmp_path_factory.mktemp("filters") / "store.sqlite"),
        PostgresStore(f"{server}&options=-csynchronous_commit%3Doff", collection="filters"),
    ]
    yield both
    for store in both:
        store.close()


@given(rows=st.lists(metadata, min_size=1, max_size=6), condition=conditions)
@settings(max_examples=120, deadline=None)
def test_a_filter_passes_the_same_documents_in_every_store(
    stores: list[Any], rows: list[dict[str, Any]], condition: Filter
) -> None:
    documents = [Document(str(i), "text", row) for i, row in enumerate(rows)]
    wanted = {d.id for d in documents if condition.matches(d.metadata)}
    for store in stores:
        store.commit([Entry.of(d) for d in documents], store.matching(None))
        try:
            check(condition, store.fields())
        except FilterError:
            with pytest.raises(FilterError):
                store.matching(condition)
            continue
        live = store.matching(None)
        assert [d.metadata for d in store.fetch(live)] == [d.metadata for d in documents]
        assert {d.id for d in store.fetch(store.matching(condition))} == wanted, type(store).__name__


@given(st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**63 - 1)))
def test_a_number_is_kept_as_the_decimal_that_it_is(number: float) -> None:
    packed = exact_json(json.dumps({"x": [number, "1.5e3", "\\"], "1.5": {"y": -0.5}}))
    found = json.loads(packed, parse_float=Fraction, parse_int=Fraction)
    assert found["x"][0] == Fraction(number)
    assert found["x"][1:] == ["1.5e3", "\\"]
    assert found["1.5"]["y"] == Fraction(-1, 2)


def test_text_that_cannot_be_stored_is_no_filter(server: str, name: str) -> None:
    store = PostgresStore(server, collection=name)
    commit(store, some(3))
    for bad in ("a\0b", "\ud800"):
        with pytest.raises(FilterError, match="half a character"):
            store.matching(Field("name") == bad)
    long = Field("n") == 0
    for i in range(1, 1500):
        long = long | (Field("n") == i)
    assert len(store.matching(long)) == len(store.matching(Field("n").in_(range(5000)))) == 3
    store.close()
