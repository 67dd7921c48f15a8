"""Keyset pagination: each page starts after the last key of the one before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from reperio.connectors.database import Session
from reperio.errors import ConfigurationError, ConnectorError
from reperio.extras import load

Values: TypeAlias = tuple[Any, ...]
"""One row's values, in the order of the columns."""


class Relation:
    """A table, a view, or a query's result.

    Parameters
    ----------
    table
        Name of a table or view.
    schema
        Where it is, if not in the default schema.
    query
        A SELECT, sent as it is.

    Raises
    ------
    ConfigurationError
        If not exactly one of ``table`` and ``query`` is given.
    """

    def __init__(self, *, table: str | None, schema: str | None, query: str | None) -> None:
        if (table is None) == (query is None):
            raise ConfigurationError(f"table is {table!r} and query is {query!r}.", "Give one of the two.")
        self._sa = load("sqlalchemy", extra="sql")
        self._table = table
        self._schema = schema
        self._query = query
        self.table = f"{schema}.{table}" if table and schema else table
        self.title = self.table or "(query)"

    def columns(self, session: Session) -> list[str]:
        """Names of the columns, in order.

        Raises
        ------
        ConnectorError
            If the database fails, or two columns have one name.
        """
        every = self._sa.select(self._sa.literal_column("*")).select_from(self._from([]))
        names, _ = session.read(every.where(self._sa.false()))
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConnectorError(
                f"{self.title} has two columns {', '.join(twice)}.", "Rename one: SELECT a.id AS a_id."
            )
        return names

    def rows(
        self,
        session: Session,
        columns: Sequence[str],
        key: Sequence[str],
        size: int,
        *,
        between: tuple[Values | None, Values] | None = None,
    ) -> Iterator[Values]:
        """All rows in the order of the key, ``size`` in one page.

        Parameters
        ----------
        between
            Only rows after the first key, where there is one, up to and with the second: a piece that `borders` cut.

        Raises
        ------
        ConnectorError
            If the database fails, or a key is NULL or not unique.
        """
        source = self._from(columns)
        keys = [source.c[name] for name in key]
        where = [columns.index(name) for name in key]
        ordered = self._sa.select(*(source.c[name] for name in columns)).order_by(*keys).limit(size + 1)
        if between is None:
            self._refuse_null(session, keys)
        else:
            ordered = ordered.where(self._within(keys, between, row_values=session.row_values))
        last: Values | None = None
        while True:
            page = ordered if last is None else ordered.where(after(keys, last, row_values=session.row_values))
            # One row more than the page: a key that goes on behind the border would be skipped unseen.
            _, found = session.read(page)
            for row in found[:size]:
                last = self._next(key, tuple(row[i] for i in where), last)
                yield row
            if len(found) <= size:
                return
            self._next(key, tuple(found[size][i] for i in where), last)

    def borders(self, session: Session, key: Sequence[str], size: int) -> list[Values]:
        """The last key of each piece of ``size`` rows, and of what is left, in order.

        Raises
        ------
        ConnectorError
            If the database fails, a key is NULL, or two borders are the same.
        """
        sa, source = self._sa, self._from(key)
        keys = [source.c[name] for name in key]
        self._refuse_null(session, keys)
        number = sa.func.row_number().over(order_by=keys).label("reperio_row")
        numbered = sa.select(*keys, number).subquery("numbered")
        kept = [numbered.c[name] for name in key]
        whole = sa.select(*kept).where(numbered.c.reperio_row % size == 0).order_by(numbered.c.reperio_row)
        _, found = session.read(whole)
        _, top = session.read(sa.select(*keys).order_by(*(k.desc() for k in keys)).limit(1))
        last: Values | None = None
        for border in found:
            last = self._next(key, border, last)
        return found if found[-1:] == top else [*found, *top]

    def _within(self, keys: Sequence[Any], between: tuple[Values | None, Values], *, row_values: bool) -> Any:
        low, high = between
        upto = self._sa.not_(after(keys, high, row_values=row_values))
        return upto if low is None else self._sa.and_(after(keys, low, row_values=row_values), upto)

    def _from(self, columns: Sequence[str]) -> Any:
        made = [self._sa.column(name) for name in columns]
        if self._query is None:
            return self._sa.table(self._table, *made, schema=self._schema)
        # `text` reads :name as a parameter; the line's end closes a comment at the query's end.
        sent = self._query.strip().rstrip(";").replace(":", "\\:") + "\n"
        return self._sa.text(sent).columns(*made).subquery("rows")

    def _refuse_null(self, session: Session, keys: Sequence[Any]) -> None:
        _, found = session.read(self._sa.select(*keys).where(self._sa.or_(*(k.is_(None) for k in keys))).limit(1))
        if found:
            row = dict(zip((k.name for k in keys), found[0], strict=True))
            raise ConnectorError(f"{self.title} has a key that is NULL: {row}.", "Choose a key that every row has.")

    def _next(self, names: Sequence[str], key: Values, last: Values | None) -> Values:
        """The key, once it is seen to differ from the last in value and not in kind."""
        shown = dict(zip(names, key, strict=True))
        if last is not None and key == last:
            raise ConnectorError(f"{self.title} has two rows with the key {shown}.", "Choose a key that is unique.")
        if last is not None and [isinstance(v, str) for v in key] != [isinstance(v, str) for v in last]:
            problem = f"{self.title} has keys that are text and keys that are not, such as {shown}."
            raise ConnectorError(problem, "Choose a key of one type: as ids, 1 and '1' are the same.")
        return key


def after(keys: Sequence[Any], last: Values, *, row_values: bool) -> Any:
    """The condition that a row comes after ``last`` in the order of ``keys``.

    Parameters
    ----------
    keys
        Columns.
    last
        One value for each.
    row_values
        Whether the database compares rows, ``(a, b) > (1, 2)``, which an index on both serves best. Otherwise it is
        spelt out: ``a >= 1 AND (a > 1 OR a = 1 AND b > 2)``.
    """
    sa = load("sqlalchemy", extra="sql")
    # Without a type the database takes the column's own (enum, citext, uuid), not the one Python's value suggests.
    bound = [sa.bindparam(None, value, type_=sa.types.NullType()) for value in last]
    if len(keys) == 1:
        return keys[0] > bound[0]
    if row_values:
        return sa.tuple_(*keys) > sa.tuple_(*bound)
    equal = [column == value for column, value in zip(keys, bound, strict=True)]
    behind = [sa.and_(*equal[:i], keys[i] > bound[i]) for i in range(len(keys))]
    return sa.and_(keys[0] >= bound[0], sa.or_(*behind))
