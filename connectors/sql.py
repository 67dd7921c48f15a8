"""Tables, views and queries of any database that SQLAlchemy knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import UUID

from reperio.connectors.database import Database, Session
from reperio.connectors.keyset import Relation, Values
from reperio.connectors.records import RowReader, key_text
from reperio.connectors.template import Text
from reperio.errors import ConfigurationError, ConnectorError
from reperio.protocols import Part
from reperio.types import Document, Provenance

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine


class SQLSource:
    """Rows of a table, a view or a query as documents, in the order of their key.

    Read page by page: each page starts after the last key of the one before (keyset pagination), so memory is
    bounded by ``batch_size`` and a broken connection is made again without losing or repeating a row. Each page
    sees what is committed when it is read; a row inserted behind the reader is found by the next pass.

    Values come as the driver gives them (SQLite keeps dates as text). A row whose text is empty is skipped, counted
    (``skipped_empty`` in `reperio.meter`) and told in a warning at the end of the pass.

    Parameters
    ----------
    url
        SQLAlchemy URL, as text or made, or an engine; ``postgresql://`` means psycopg 3. Read-only, see `Database`.
    table
        Table or view.
    query
        A SELECT in place of a table, sent as it is, as a subquery. It is run for every page, so let it be one that
        an index on the key serves, or a view.
    key
        Column or columns that identify a row: unique, never NULL. The document's id is the key as text; several
        columns are joined by ``/``, see `reperio.connectors.records.key_text`.
    text
        Template (``"{title}: {body}"``), column, several columns (joined by blank lines), or a function from row to
        text or to a whole `Document`.
    metadata
        Columns to keep as metadata; None keeps all that are neither key nor text.
    batch_size
        Rows in one page.
    schema
        Schema of the table, where it is not the default one.

    Raises
    ------
    ConfigurationError
        If the URL or the template cannot be read, or not exactly one of ``table`` and ``query`` is given.

    Notes
    -----
    A function makes the fields of its text unknown: the documents' provenance then has no field spans.
    """

    def __init__(
        self,
        url: str | URL | Engine,
        table: str | None = None,
        *,
        query: str | None = None,
        key: str | Sequence[str],
        text: Text,
        metadata: Sequence[str] | None = None,
        batch_size: int = 1000,
        schema: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigurationError(f"batch_size is {batch_size}.", "Use 1 or more.")
        self._key = [key] if isinstance(key, str) else list(key)
        if not self._key or len(set(self._key)) < len(self._key):
            raise ConfigurationError(f"key is {key!r}.", "Name one column or more, each once.")
        self._database = Database(url)
        self._relation = Relation(table=table, schema=schema, query=query)
        self._reader = RowReader(text, metadata, keys=self._key)
        self._batch_size = batch_size

    @property
    def name(self) -> str:
        """The database's URL with neither user nor password."""
        return self._database.name

    def __repr__(self) -> str:
        return f"SQLSource({self.name!r}, {self._relation.title!r}, key={self._key!r})"

    def documents(self) -> Iterator[Document]:
        """Every row that has text, in the order of the key.

        Raises
        ------
        ConfigurationError
            If a column that is asked for is not there.
        ConnectorError
            If the database fails, a key is NULL or not unique, or a value cannot be kept.
        """
        with self._database.session() as session:
            yield from self._documents(session, None)

    def divide(self, rows: int, /) -> list[Part]:
        """Cut the table into pieces of so many rows, by ranges of the key.

        Raises
        ------
        ConfigurationError
            If the source was given an engine, which no other process has.
        ConnectorError
            If the database fails, or a key is NULL, not unique, or of a type that JSON has no word for.
        """
        if self._database.given:
            raise ConfigurationError("An engine cannot be handed to another process.", "Give SQLSource the URL.")
        with self._database.session() as session:
            self._reader.needed(self._relation.columns(session), f"{self.name} {self._relation.title}")
            borders = [[_plain(value) for value in key] for key in self._relation.borders(session, self._key, rows)]
        return [{"after": borders[i - 1] if i else None, "to": border} for i, border in enumerate(borders)]

    def read(self, part: Part, /) -> Iterator[Document]:
        """The documents of one piece."""
        low, high = part["after"], part["to"]
        with self._database.session() as session:
            yield from self._documents(session, (None if low is None else tuple(low), tuple(high)))

    def _documents(self, session: Session, between: tuple[Values | None, Values] | None) -> Iterator[Document]:
        report = self._reader.report(self.name)
        relation = self._relation
        columns = self._reader.needed(relation.columns(session), f"{self.name} {relation.title}")
        keys = [columns.index(name) for name in self._key]
        for row in relation.rows(session, columns, self._key, self._batch_size, between=between):
            name = self._id([row[i] for i in keys])
            where = Provenance(self.name, relation.table, name)
            document = self._reader.document(name, dict(zip(columns, row, strict=True)), where, report)
            if document is not None:
                yield document
        report.tell()

    def _id(self, values: Sequence[object]) -> str:
        try:
            return key_text(values)
        except ConnectorError as error:
            raise ConnectorError(f"{self.name} {self._relation.title}: {error.problem}", error.fix) from error


def _plain(value: object) -> str | int | float:
    """A key as JSON has it; text stands for what the database reads as its own type again."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    raise ConnectorError(f"The key {value!r} is a {type(value).__name__}.", "Choose one of text, numbers or dates.")
