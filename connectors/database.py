"""A database that is only read, reconnected when a connection breaks, and whose secrets stay secret."""

from __future__ import annotations

import re
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, quote_plus

from reperio import meter
from reperio.errors import ConfigurationError, ConnectorError
from reperio.extras import load

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

WAITS = (0.1, 0.4, 1.6, 6.4)
"""Seconds before each new attempt at a read whose connection broke."""

_SECRET_SETTING = re.compile(r"pass|pwd|secret|token|key|odbc_connect", re.IGNORECASE)


class Database:
    """Where a source reads; nothing is opened before `session`.

    Parameters
    ----------
    url
        SQLAlchemy URL, as text or made, or an engine of the caller's. ``postgresql://`` means psycopg 3. A SQLite
        file is opened read-only; PostgreSQL reads in read-only transactions; elsewhere, only SELECT is sent.

    Attributes
    ----------
    name
        The URL with neither user nor password nor settings.

    Raises
    ------
    ConfigurationError
        If the URL cannot be read, or names no known kind of database.
    MissingDependency
        If SQLAlchemy, or psycopg for a PostgreSQL URL, is not installed.
    """

    def __init__(self, url: str | URL | Engine) -> None:
        self._sa = load("sqlalchemy", extra="sql")
        self._given = cast("Engine", url) if isinstance(url, self._sa.Engine) else None
        self._url = _parse(self._sa, cast("str | URL", url)) if self._given is None else self._given.url
        self._secrets = _secrets(self._url)
        self.name = _public(self._sa, self._url)

    @property
    def given(self) -> bool:
        """Whether it reads through the caller's engine."""
        return self._given is not None

    @contextmanager
    def session(self) -> Generator[Session]:
        """Read for a while; every connection is given back at the end.

        Raises
        ------
        ConfigurationError
            If no driver for the URL is known.
        """
        engine = self._given if self._given is not None else self._engine()
        try:
            yield Session(self._sa, engine, self)
        finally:
            if engine is not self._given:
                engine.dispose()

    def told(self, error: Exception, fix: str) -> ConnectorError:
        """The driver's error as ours, every secret in it replaced."""
        said = " ".join(str(getattr(error, "orig", None) or error).split())
        return ConnectorError(f"{self.name}: {self._clean(said)}.", fix)

    def cause(self, error: Exception) -> Exception | None:
        """The error, unless it holds a secret, which a traceback would show."""
        shown = f"{error} {error.__cause__} {error.__context__}"
        return error if self._clean(shown) == shown else None

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _engine(self) -> Engine:
        if self._url.get_backend_name() == "postgresql" and self._url.get_driver_name() == "psycopg":
            load("psycopg", extra="postgres")
        try:
            made: Engine = self._sa.create_engine(_read_only(self._url), hide_parameters=True)
        except (ImportError, self._sa.exc.ArgumentError) as error:
            problem = f"{self.name} needs a driver that is not here: {error}."
            raise ConfigurationError(problem, "Install it, or name another in the URL.") from error
        return made


class Session:
    """Reads of one pass: each is whole or is made again, so that a lost connection costs and repeats no row."""

    def __init__(self, sa: Any, engine: Engine, database: Database) -> None:
        self._sa = sa
        self._engine = engine
        self._database = database
        self._reached = False
        self.row_values = engine.dialect.name in {"postgresql", "sqlite", "mysql", "mariadb"}

    def read(self, statement: Any) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Column names and all rows.

        Raises
        ------
        ConnectorError
            If the database cannot be reached or refuses; after a connection broke, only when it does not come back.
        """
        waits = iter(WAITS)
        while True:
            inside = False
            try:
                with self._engine.connect() as connection:
                    inside = self._reached = True
                    if self._engine.dialect.name == "postgresql":
                        connection = connection.execution_options(postgresql_readonly=True)
                    result = connection.execute(statement)
                    return list(result.keys()), [tuple(row) for row in result]
            except self._sa.exc.DBAPIError as error:
                lost = error.connection_invalidated if inside else self._reached
                wait = next(waits, None)
                if not lost or wait is None:
                    fix = "Check the query and your rights." if inside else "Check host, user and password."
                    fix = "Run it again when it is back." if lost else fix
                    raise self._database.told(error, fix) from self._database.cause(error)
                meter.count("reconnects")
                time.sleep(wait)
            except self._sa.exc.SQLAlchemyError as error:
                raise self._database.told(error, "Check the table or query.") from self._database.cause(error)


def _parse(sa: Any, url: str | URL) -> URL:
    fix = "Write, for example: sqlite:///file.db or postgresql://user:password@host/database"
    try:
        made: URL = sa.make_url(url)
    except (ValueError, sa.exc.ArgumentError):
        # The text is not shown, nor its error: either may hold the password.
        raise ConfigurationError("The database URL cannot be read.", fix) from None
    if made.drivername in {"postgres", "postgresql"}:
        made = made.set(drivername="postgresql+psycopg")
    try:
        made.get_dialect()
    except (ImportError, sa.exc.ArgumentError) as error:
        raise ConfigurationError(f"No database is called {made.drivername!r}.", fix) from error
    return made


def _public(sa: Any, url: URL) -> str:
    host = {name: value for name, value in url.query.items() if name in {"host", "port"}}
    kept = sa.URL.create(url.get_backend_name(), host=url.host, port=url.port, database=url.database, query=host)
    return str(kept.render_as_string())


def _secrets(url: URL) -> list[str]:
    values = [str(url.password)] if url.password else []
    for name, value in url.query.items():
        if _SECRET_SETTING.search(name):
            values += [value] if isinstance(value, str) else list(value)
    forms = {
        form for value in values if value for form in (value, quote(value), quote_plus(value), quote(value, safe=""))
    }
    return sorted(forms, key=len, reverse=True)


def _read_only(url: URL) -> URL:
    """SQLite would make a file that is not there; opened like this, it cannot."""
    plain = url.drivername in {"sqlite", "sqlite+pysqlite"} and "uri" not in url.query
    if not plain or url.database in {None, "", ":memory:"}:
        return url
    path = quote(Path(str(url.database)).absolute().as_posix())
    return url.set(database=f"file:{path}").update_query_dict({"mode": "ro", "uri": "true"})
