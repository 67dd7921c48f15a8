"""A row's text, and which field each of its characters came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from string import Formatter
from typing import Any, Protocol, TypeAlias, cast
from uuid import UUID

from reperio.errors import ConfigurationError, ConnectorError, InvalidInput
from reperio.types import Document, FieldSpan

Row: TypeAlias = Mapping[str, Any]
"""Field → value."""

Text: TypeAlias = str | Sequence[str] | Callable[[Row], str | Document]
"""How a row becomes text: ``"{title}: {body}"``, a field's name, several names, or a function."""

Rendered: TypeAlias = tuple[str, tuple[FieldSpan, ...]]
"""A text, and the spans of it that are fields."""


class Renderer(Protocol):
    """Writes a row as text and remembers what came from where."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields it reads, each once."""
        ...

    def render(self, row: Row, /) -> Rendered | Document: ...


class Template:
    """Text with fields in braces.

    >>> text, spans = Template("{title}: {body}").render({"title": "Heap", "body": "a tree"})
    >>> text, [(span.field, text[span.start : span.end]) for span in spans]
    ('Heap: a tree', [('title', 'Heap'), ('body', 'a tree')])

    ``{{`` and ``}}`` stand for braces. Nothing but a name may stand between braces: no conversion, format,
    attribute or index, so that every span is the field's own text and nothing is executed. None is written as
    nothing, other values as ``str`` writes them.

    Parameters
    ----------
    pattern
        The text.

    Raises
    ------
    ConfigurationError
        If the braces do not match, or hold anything but a field's name, or there are none.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._parts = tuple(_parse(pattern))
        self.fields = tuple(dict.fromkeys(field for _, field in self._parts if field is not None))
        if not self.fields:
            raise ConfigurationError(f"The template {pattern!r} names no field.", 'Write, for example: "{title}".')

    def render(self, row: Row, /) -> Rendered:
        """The row's text and field spans.

        Raises
        ------
        ConfigurationError
            If the row lacks a field.
        ConnectorError
            If a field's value has no text of its own: a list, an object, bytes.
        """
        return _write(self._parts, row)

    def __repr__(self) -> str:
        return f"Template({self.pattern!r})"


class Columns:
    """Fields one after the other, with a blank line between two that are not empty.

    >>> Columns("title", "text").render({"title": None, "text": "No title."})[0]
    'No title.'
    """

    def __init__(self, *fields: str) -> None:
        self.fields = tuple(dict.fromkeys(fields))
        if not self.fields:
            raise ConfigurationError("No field is named for the text.", 'Name one or more: text=("title", "body").')

    def render(self, row: Row, /) -> Rendered:
        """Like `Template.render`."""
        filled = [field for field in self.fields if _text(row, field)]
        return _write([("\n\n" if i else "", field) for i, field in enumerate(filled)], row)

    def __repr__(self) -> str:
        return f"Columns{self.fields!r}"


class Function:
    """The caller's own function of a row: what it writes has no fields, unless it makes a whole document."""

    fields: tuple[str, ...] = ()

    def __init__(self, function: Callable[[Row], str | Document]) -> None:
        self._function = function

    def render(self, row: Row, /) -> Rendered | Document:
        """What the function returns for the row.

        Raises
        ------
        InvalidInput
            If that is neither text nor a document.
        """
        made = cast("object", self._function(row))
        if isinstance(made, Document):
            return made
        if isinstance(made, str):
            return made, ()
        raise InvalidInput(f"The text function returned {made!r}.", "Return a string or a Document.")

    def __repr__(self) -> str:
        return f"Function({self._function!r})"


def renderer(text: Text) -> Renderer:
    """`Function` of a function; `Template` of a string with braces; `Columns` of names."""
    if callable(text):
        return Function(text)
    if isinstance(text, str):
        return Template(text) if "{" in text or "}" in text else Columns(text)
    return Columns(*text)


def _parse(pattern: str) -> Iterator[tuple[str, str | None]]:
    """Pairs of the text before a field and the field's name; None after the last."""
    try:
        for literal, field, form, conversion in Formatter().parse(pattern):
            if field is not None and (form or conversion or not field or any(c in field for c in ".[]{}")):
                raise ConfigurationError(
                    f"The template {pattern!r} holds {field!r}, which is not a bare field name.",
                    "Write only names between braces, or give a function of the row.",
                )
            yield literal, field
    except ValueError as error:
        if isinstance(error, ConfigurationError):
            raise
        fix = "Write {{ and }} for braces that are text."
        raise ConfigurationError(f"The template {pattern!r} cannot be read: {error}.", fix) from error


def _write(parts: Iterable[tuple[str, str | None]], row: Row) -> Rendered:
    pieces: list[str] = []
    spans: list[FieldSpan] = []
    end = 0
    for literal, field in parts:
        value = "" if field is None else _text(row, field)
        start = end + len(literal)
        end = start + len(value)
        pieces += (literal, value)
        if field is not None and value:
            spans.append(FieldSpan(field, start, end))
    return "".join(pieces), tuple(spans)


def _text(row: Row, field: str) -> str:
    try:
        value: object = row[field]
    except KeyError:
        have = ", ".join(map(str, row))
        raise ConfigurationError(
            f"There is no field {field!r}.",
            f"There are: {have}. Give a function of the row for one that may be absent.",
        ) from None
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float | Decimal | date | time | UUID):
        return str(cast("object", value))
    raise ConnectorError(
        f"Field {field!r} is a {type(value).__name__}, which is not text.", "Give a function of the row that writes it."
    )
