"""Every character of a document's text traces to its field."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reperio.connectors.template import Columns, Function, Template, renderer
from reperio.errors import ConfigurationError, ConnectorError, InvalidInput
from reperio.types import Document

NAMES = ["title", "body", "Första kolumn", "n_1"]
VALUES = st.one_of(
    st.none(), st.text(), st.integers(), st.floats(), st.booleans(), st.decimals(), st.dates(), st.uuids()
)
ROWS = st.fixed_dictionaries(dict.fromkeys(NAMES, VALUES))
PARTS = st.lists(st.one_of(st.text(max_size=5), st.sampled_from(NAMES).map(lambda name: (name,))), max_size=8)


def written(value: object) -> str:
    return "" if value is None else str(value)


@given(PARTS, ROWS)
def test_a_span_is_the_fields_own_text_and_the_rest_is_the_templates(parts, row):
    pattern = "".join(p.replace("{", "{{").replace("}", "}}") if isinstance(p, str) else f"{{{p[0]}}}" for p in parts)
    if not any(isinstance(part, tuple) for part in parts):
        with pytest.raises(ConfigurationError):
            Template(pattern)
        return
    text, spans = Template(pattern).render(row)
    assert text == "".join(part if isinstance(part, str) else written(row[part[0]]) for part in parts)
    for span in spans:
        assert text[span.start : span.end] == str(row[span.field])[span.offset : span.offset + span.end - span.start]
    fields = [part[0] for part in parts if isinstance(part, tuple) and written(row[part[0]])]
    assert [span.field for span in spans] == fields


@given(st.lists(st.sampled_from(NAMES), min_size=1, unique=True), ROWS)
def test_columns_are_joined_by_blank_lines_where_both_sides_have_text(names, row):
    text, spans = Columns(*names).render(row)
    assert text == "\n\n".join(written(row[name]) for name in names if written(row[name]))
    assert all(text[span.start : span.end] == str(row[span.field]) for span in spans)


@pytest.mark.parametrize(
    "pattern",
    [
        "{a.b}",
        "{a[0]}",
        "{a!r}",
        "{a:>10}",
        "{a:}{}",
        "{}",
        "{a",
        "a}",
        "{a:{b}}",
        "{{a}}",
        "no field {{",
        "{a.__class__}",
    ],
)
def test_a_template_holds_nothing_but_names(pattern):
    with pytest.raises(ConfigurationError, match="template"):
        Template(pattern)


def test_an_unknown_field_is_named_with_those_there_are():
    with pytest.raises(ConfigurationError, match=r"'titel'.*title, body"):
        Template("{titel}").render({"title": "x", "body": "y"})


@pytest.mark.parametrize("value", [["a", "b"], {"a": 1}, b"bytes", object()])
def test_a_value_that_is_no_text_is_refused(value):
    with pytest.raises(ConnectorError, match="'tags'"):
        Template("{tags}").render({"tags": value})


def test_values_are_written_as_str_writes_them():
    row = {
        "a": Decimal("1.50"),
        "b": date(2020, 1, 2),
        "c": datetime(2020, 1, 2, 3, 4),
        "d": UUID(int=1),
        "e": True,
    }
    text, _ = Template("{a}|{b}|{c}|{d}|{e}").render(row)
    assert text == "1.50|2020-01-02|2020-01-02 03:04:00|00000000-0000-0000-0000-000000000001|True"


def test_a_string_with_braces_is_a_template_and_one_without_is_a_field():
    assert isinstance(renderer("{a}"), Template)
    assert renderer("a").fields == ("a",)
    assert renderer(["a{", "b"]).fields == ("a{", "b")
    with pytest.raises(ConfigurationError, match="No field"):
        renderer([])


def test_a_function_may_write_text_or_a_whole_document():
    assert Function(lambda row: row["a"] * 2).render({"a": "x"}) == ("xx", ())
    made = Document("1", "text")
    assert Function(lambda row: made).render({}) is made
    with pytest.raises(InvalidInput, match="3"):
        Function(lambda row: 3).render({})
