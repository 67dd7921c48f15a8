"""Rows of any source become documents; what is left out or rounded is counted and told."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import cast
from uuid import UUID

from reperio import meter
from reperio.connectors.template import Function, Row, Text, renderer
from reperio.errors import ConfigurationError, ConnectorError
from reperio.types import Document, Provenance, Value

SKIPPED_EMPTY = "skipped_empty"
ROUNDED = "rounded_decimals"
NOT_FINITE = "not_finite"
UNREADABLE = "unreadable_files"

_MEANING = {
    SKIPPED_EMPTY: "rows skipped: they have no text",
    ROUNDED: "decimals in metadata rounded to the nearest float",
    NOT_FINITE: "numbers in metadata that are NaN or infinite, kept as None",
    UNREADABLE: "files skipped: they cannot be read as Python",
}

_AS_TEXT = (UUID, IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network)


class Report:
    """What one pass over a source left out or rounded.

    Each case is counted in the running meters, and all of them are told once, at the end of the pass.

    Parameters
    ----------
    source
        Name of the source.
    expected
        Fields that at least one row should have.

    Attributes
    ----------
    absent
        Of these, the ones no row has had so far.
    """

    def __init__(self, source: str, expected: Iterable[str] = ()) -> None:
        self.absent = set(expected)
        self._source = source
        self._keys: dict[str, list[str]] = defaultdict(list)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, what: str, key: str) -> None:
        """Count one case, and remember the first few rows where it happened."""
        meter.count(what)
        self._counts[what] += 1
        if len(self._keys[what]) < 5 and key not in self._keys[what]:
            self._keys[what].append(key)

    def tell(self) -> None:
        """Warn of each kind of case, with its count and the first places."""
        for what, count in self._counts.items():
            first = ", ".join(map(repr, self._keys[what]))
            warnings.warn(f"{self._source}: {count} {_MEANING[what]} (first: {first}).", stacklevel=3)
        if self.absent:
            names = ", ".join(map(repr, sorted(self.absent)))
            warnings.warn(f"{self._source}: no row has the metadata field {names}.", stacklevel=3)


class RowReader:
    """Makes documents from rows.

    Parameters
    ----------
    text
        Template, field name, several names, or a function from row to text or to a whole document.
    metadata
        Fields to keep as metadata; None keeps every field that is neither key nor text.
    keys
        Fields that identify a row.

    Raises
    ------
    ConfigurationError
        If a template cannot be read, or ``metadata`` is a bare string.
    """

    def __init__(self, text: Text, metadata: Sequence[str] | None, *, keys: Sequence[str] = ()) -> None:
        if isinstance(metadata, str):
            raise ConfigurationError(f"metadata is the string {metadata!r}.", f"Give a list: [{metadata!r}].")
        self._renderer = renderer(text)
        self._metadata = None if metadata is None else tuple(metadata)
        self._apart = {*keys, *self._renderer.fields}

    def report(self, source: str) -> Report:
        """An empty report of one pass over ``source``."""
        return Report(source, self._metadata or ())

    def needed(self, columns: Sequence[str], where: str) -> list[str]:
        """Of a table's columns those that are read, in its order.

        Raises
        ------
        ConfigurationError
            If a column that is asked for is not there.
        """
        asked = {*self._apart, *(self._metadata or ())}
        if unknown := sorted(asked.difference(columns)):
            have = ", ".join(columns)
            raise ConfigurationError(f"{where} has no column {', '.join(map(repr, unknown))}.", f"It has: {have}.")
        if self._metadata is None or isinstance(self._renderer, Function):
            return list(columns)
        return [column for column in columns if column in asked]

    def document(self, name: str, row: Row, where: Provenance, report: Report) -> Document | None:
        """The row's document; None, and counted, where it has no text.

        Raises
        ------
        ConnectorError, ConfigurationError
            Naming the row and the field that cannot be read.
        """
        report.absent.difference_update(row)
        try:
            made = self._renderer.render(row)
            if isinstance(made, Document):
                document = made if made.provenance else replace(made, provenance=where)
            else:
                text, fields = made
                document = Document(name, text, self._values(row, name, report), replace(where, fields=fields))
        except (ConnectorError, ConfigurationError) as error:
            raise type(error)(f"{where}: {error.problem}", error.fix) from error
        try:
            document.text.encode()
        except UnicodeEncodeError as error:
            bad = ascii(document.text[error.start : error.end])
            raise ConnectorError(f"{where}: {bad} is half a character.", "Mend the text.") from error
        if document.text.strip():
            return document
        report.add(SKIPPED_EMPTY, name)
        return None

    def _values(self, row: Row, name: str, report: Report) -> dict[str, Value]:
        fields = self._metadata
        if fields is None:
            fields = tuple(field for field in row if field not in self._apart)
        return {field: as_value(row[field], field, name, report) for field in fields if field in row}


def as_value(value: object, field: str, row: str, report: Report) -> Value:
    """A value in a form that metadata holds.

    Text, numbers, booleans, dates, lists and objects stay as they are. A whole decimal becomes an integer, another
    one the nearest float; NaN and infinity become None; both are counted. A time of day becomes ISO 8601 text, a
    duration its seconds, a UUID or a network address its text.

    Raises
    ------
    ConnectorError
        If metadata cannot hold it: bytes and everything else.
    """
    if value is None or isinstance(value, str | bool | int | date):
        return value
    if isinstance(value, float | Decimal):
        return _number(value, row, report)
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value).items()
        return {str(key): as_value(item, field, row, report) for key, item in items}
    if isinstance(value, list | tuple):
        return [as_value(item, field, row, report) for item in cast("Sequence[object]", value)]
    if isinstance(value, time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, _AS_TEXT):
        return str(value)
    raise ConnectorError(
        f"Field {field!r} is a {type(value).__name__}, which metadata cannot hold.",
        "Name the fields to keep: metadata=[...].",
    )


def _number(value: float | Decimal, row: str, report: Report) -> Value:
    if not math.isfinite(value):
        report.add(NOT_FINITE, row)
        return None
    if not isinstance(value, Decimal):
        return value
    if value == value.to_integral_value():
        return int(value)
    if Decimal(repr(float(value))) != value:
        report.add(ROUNDED, row)
    return float(value)


def key_text(values: Sequence[object]) -> str:
    r"""A row's key as one string: two rows of a table never share one.

    A single value is its plain text. Several are joined by ``/``; a ``/`` or ``\`` inside them is preceded by ``\``.
    A time with a zone is written in UTC, so that the session's zone does not matter.

    >>> key_text([7]), key_text(["a/b", "c"])
    ('7', 'a\\/b/c')

    Raises
    ------
    ConnectorError
        If a value is empty, NULL, or of a type that has no text: bytes, lists, objects.
    """
    parts = [_key_part(value) for value in values]
    if len(parts) == 1:
        if not parts[0]:
            raise ConnectorError("The key is an empty string.", "Choose a key that every row has.")
        return parts[0]
    return "/".join(part.replace("\\", "\\\\").replace("/", "\\/") for part in parts)


def _key_part(value: object) -> str:
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo else value).isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, str | int | float | Decimal | UUID):
        return str(value)
    kind = "NULL" if value is None else f"a {type(value).__name__}"
    raise ConnectorError(f"The key is {kind}: {value!r}.", "Choose a key that is text, a number, a date or a UUID.")
