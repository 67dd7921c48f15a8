"""A filter means the same in Python, in SQL, as JSON and as text."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio import Document, Field
from reperio.errors import FilterError
from reperio.filters import Filter, check, from_json, parse, to_json
from reperio.stores.rows import Entry
from reperio.stores.sqlite import SQLiteStore

NAMES = ["year", "lang", "tags", "open", 'we"ird.$[0] key']
scalars = st.one_of(
    st.integers(-3, 3), st.sampled_from([0.5, -1.25, 2.0]), st.sampled_from(["", "a", "ab", "é", "3"]), st.booleans()
)
metadata = st.dictionaries(
    st.sampled_from(NAMES), st.one_of(st.none(), scalars, st.lists(scalars, max_size=3)), max_size=4
)
fields = st.sampled_from(NAMES).map(Field)
leaves = st.one_of(
    st.builds(lambda f, v: f == v, fields, scalars),
    st.builds(lambda f, v: f != v, fields, scalars),
    st.builds(lambda f, v: f < v, fields, scalars),
    st.builds(lambda f, v: f >= v, fields, scalars),
    st.builds(lambda f, v: f.in_(v), fields, st.lists(scalars, max_size=3)),
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
def store(tmp_path_factory: pytest.TempPathFactory) -> SQLiteStore:
    return SQLiteStore(tmp_path_factory.mktemp("filters") / "store.sqlite")


@given(rows=st.lists(metadata, min_size=1, max_size=6), condition=conditions)
@settings(max_examples=150, deadline=None)
def test_sql_selects_what_the_filter_matches(
    store: SQLiteStore, rows: list[dict[str, object]], condition: Filter
) -> None:
    store.commit([], store.matching(None))
    documents = [Document(str(i), "text", row) for i, row in enumerate(rows)]  # type: ignore[arg-type]
    store.commit([Entry.of(d) for d in documents], np.empty(0, np.int64))
    try:
        check(condition, store.fields())
    except FilterError:
        with pytest.raises(FilterError):
            store.matching(condition)
        return
    found = {d.id for d in store.fetch(store.matching(condition))}
    assert found == {d.id for d in documents if condition.matches(d.metadata)}


@given(conditions)
def test_a_filter_survives_json(condition: Filter) -> None:
    assert from_json(to_json(condition)) == condition


@given(metadata, conditions, conditions)
def test_negation_is_the_complement(row: dict[str, object], a: Filter, b: Filter) -> None:
    m: dict[str, object] = row
    assert (~a).matches(m) != a.matches(m)  # type: ignore[arg-type]
    assert (~(a & b)).matches(m) == (~a | ~b).matches(m)  # type: ignore[arg-type]


def test_text_on_the_command_line_is_read_and_never_run() -> None:
    assert parse("not (year < 2000 or 'x' in tags) and lang in ['en']") == (
        ~((Field("year") < 2000) | Field("tags").contains("x")) & Field("lang").in_(["en"])
    )
    for bad in ["__import__('os')", "year >", "1 < 2", "year == other", "year < 1 < 2", "f(x) == 1", ""]:
        with pytest.raises(FilterError):
            parse(bad)


def test_dates_compare_in_utc() -> None:
    noon = datetime(2024, 5, 1, 12, tzinfo=UTC)
    same = noon.astimezone(timezone(timedelta(hours=5)))
    assert (Field("at") == same).matches({"at": noon})
    assert (Field("day") >= date(2024, 1, 1)).matches({"day": date(2024, 5, 1)})


def test_an_unknown_field_is_named_with_those_there_are(store: SQLiteStore) -> None:
    store.commit([Entry.of(Document("x", "text", {"year": 2000}))], store.matching(None))
    with pytest.raises(FilterError, match=r"'yaer'.*Known fields:.*year"):
        store.matching(Field("yaer") == 2000)
    with pytest.raises(FilterError, match="cannot compare with None"):
        Field("year").in_([2000, None])  # type: ignore[list-item]


def test_a_value_of_another_type_is_refused(tmp_path: Path) -> None:
    with_year = SQLiteStore(tmp_path / "store.sqlite")
    with_year.commit([Entry.of(Document("x", "text", {"year": 2000}))], np.empty(0, np.int64))
    with pytest.raises(FilterError, match="'2000' is a string, the field holds numbers"):
        with_year.matching(Field("year") == "2000")
    with pytest.raises(FilterError, match="needs a list or string"):
        with_year.matching(Field("year").contains(3))


def test_python_words_for_logic_are_refused() -> None:
    with pytest.raises(FilterError, match="Combine with"):
        bool(Field("a") == 1)
    with pytest.raises(FilterError, match="bare string"):
        Field("a").in_("abc")
    with pytest.raises(FilterError, match="compare with"):
        Field("a") == None  # noqa: B015, E711
