"""Rows become documents; nothing is lost without being told."""

from __future__ import annotations

import json
import warnings
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import ip_address
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reperio import meter
from reperio.connectors.records import Report, RowReader, as_value, key_text
from reperio.errors import ConfigurationError, ConnectorError
from reperio.types import Document, Provenance

WHERE = Provenance("here", "table", "1")


def parts_of(text: str) -> list[str]:
    """Reads a composite key back."""
    parts, characters = [""], iter(text)
    for character in characters:
        if character == "/":
            parts.append("")
        else:
            parts[-1] += next(characters) if character == "\\" else character
    return parts


@given(st.lists(st.text("ab/\\", max_size=6) | st.text(max_size=6), min_size=2, max_size=4))
def test_a_composite_key_can_be_read_back_so_no_two_share_an_id(parts: list[str]) -> None:
    assert parts_of(key_text(parts)) == parts


def test_a_key_is_written_in_plain_and_a_time_in_utc():
    tokyo = timezone(timedelta(hours=9))
    assert key_text(["a/b"]) == "a/b"
    assert key_text(["a/b", 2, Decimal("3.5")]) == "a\\/b/2/3.5"
    assert key_text([UUID(int=3)]) == "00000000-0000-0000-0000-000000000003"
    assert key_text([date(2020, 1, 2), time(3)]) == "2020-01-02/03:00:00"
    assert key_text([datetime(2020, 1, 1, 9, tzinfo=tokyo)]) == key_text([datetime(2020, 1, 1, tzinfo=UTC)])


@pytest.mark.parametrize("value", [None, b"x", "", [1], {"a": 1}])
def test_a_key_without_text_is_refused(value):
    with pytest.raises(ConnectorError, match="key"):
        key_text([value])


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (Decimal("12"), 12),
        (Decimal("0.99"), 0.99),
        (Decimal("123456789012345678901234567890"), 123456789012345678901234567890),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (time(1, 2), "01:02:00"),
        (timedelta(minutes=1), 60.0),
        (ip_address("10.0.0.1"), "10.0.0.1"),
        (date(2020, 1, 2), date(2020, 1, 2)),
        ([1, (2, None)], [1, [2, None]]),
        ({"a": {"b": Decimal("1.5")}}, {"a": {"b": 1.5}}),
    ],
)
def test_a_value_is_kept_in_the_form_that_metadata_holds(value, kept):
    with meter.measure() as counts:
        assert as_value(value, "f", "1", Report("here")) == kept
    assert not counts


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30))
def test_a_decimal_is_exact_or_counted(value):
    with meter.measure() as counts:
        kept = as_value(value, "f", "1", Report("here"))
    assert isinstance(kept, int | float)
    assert (Decimal(repr(kept)) == value) != (counts["rounded_decimals"] == 1)
    assert float(kept) == float(value)
    json.dumps(kept, allow_nan=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Decimal("NaN"), Decimal("-Infinity")])
def test_a_number_that_is_not_finite_is_none_and_counted(value):
    with meter.measure() as counts:
        assert as_value(value, "f", "1", Report("here")) is None
    assert counts["not_finite"] == 1


@pytest.mark.parametrize("value", [b"x", bytearray(b"x"), memoryview(b"x"), object(), {1, 2}])
def test_what_metadata_cannot_hold_is_refused_by_name(value):
    with pytest.raises(ConnectorError, match=r"'photo'.*metadata="):
        as_value(value, "photo", "1", Report("here"))


def test_rows_without_text_are_counted_and_told_once():
    reader = RowReader("{a}", None)
    report = reader.report("here")
    with meter.measure() as counts:
        made = [
            reader.document(str(i), {"a": text}, WHERE, report) for i, text in enumerate(["x", "", None, " \n", "y"])
        ]
    assert [document and document.text for document in made] == ["x", None, None, None, "y"]
    assert counts["skipped_empty"] == 3
    with pytest.warns(UserWarning, match="here: 3 rows skipped.*'1', '2', '3'"):
        report.tell()


def test_nothing_is_told_where_nothing_was_lost():
    reader = RowReader("{a}", ["b"])
    report = reader.report("here")
    reader.document("1", {"a": "x", "b": 1}, WHERE, report)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.tell()


def test_a_metadata_field_that_no_row_has_is_told():
    reader = RowReader("{a}", ["yeer", "b"])
    report = reader.report("here")
    reader.document("1", {"a": "x", "b": 1}, WHERE, report)
    with pytest.warns(UserWarning, match="'yeer'"):
        report.tell()


def test_metadata_is_every_field_but_key_and_text_unless_it_is_named():
    row = {"k": 1, "a": "x", "b": 2, "c": 3}
    report = Report("here")
    everything = RowReader("{a}", None, keys=["k"]).document("1", row, WHERE, report)
    named = RowReader("{a}", ["k", "c"], keys=["k"]).document("1", row, WHERE, report)
    assert everything is not None
    assert everything.metadata == {"b": 2, "c": 3}
    assert named is not None
    assert named.metadata == {"k": 1, "c": 3}


def test_a_function_that_makes_a_document_keeps_its_id_and_gains_a_provenance():
    reader = RowReader(lambda row: Document("mine", row["a"]), None)
    assert reader.document("1", {"a": "x"}, WHERE, Report("here")) == Document("mine", "x", provenance=WHERE)


def test_errors_name_the_row():
    reader = RowReader("{a}", None)
    with pytest.raises(ConnectorError, match=r"^here table\[1\]: Field 'a' is a list"):
        reader.document("1", {"a": ["x"]}, WHERE, Report("here"))
    with pytest.raises(ConnectorError, match=r"^here table\[1\]: '\\ud800' is half a character"):
        reader.document("1", {"a": "x \ud800"}, WHERE, Report("here"))


def test_a_bare_string_is_no_list_of_metadata():
    with pytest.raises(ConfigurationError, match=r"\['year'\]"):
        RowReader("{a}", "year")
