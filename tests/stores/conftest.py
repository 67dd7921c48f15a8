"""A PostgreSQL server that tests may do anything to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

_NUMBERS = count()


@pytest.fixture
def name() -> str:
    """A collection that is not there yet."""
    return f"s{next(_NUMBERS)}"


@pytest.fixture
def admin(server: str) -> Iterator[Callable[..., list[Any]]]:
    """Runs statements as a superuser, on a connection of its own."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("SET client_min_messages = error")

        def run(statement: str, *values: object) -> list[Any]:
            cursor = connection.execute(statement, values or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

        yield run


@pytest.fixture
def end_sessions(admin: Callable[..., list[Any]]) -> Callable[[], None]:
    """Ends every session of the package, as an administrator, a fail-over or a restart does."""
    sql = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'reperio'"

    def end() -> None:
        admin(sql)

    return end


@pytest.fixture
def guarded(server: str, admin: Callable[..., list[Any]]) -> Iterator[tuple[str, str]]:
    """The address of a role that must give its password, without it and with it."""
    (folder,) = admin("SHOW data_directory")[0]
    rules = Path(folder) / "pg_hba.conf"
    before = rules.read_text()
    admin("CREATE ROLE guarded LOGIN PASSWORD 's3cr/t p@ss'")
    admin("GRANT CREATE ON DATABASE postgres TO guarded")
    if admin("SELECT to_regnamespace('reperio_indexes') IS NOT NULL")[0][0]:  # another test's user made it
        admin("GRANT ALL ON SCHEMA reperio_indexes TO guarded")
        admin("GRANT ALL ON ALL TABLES IN SCHEMA reperio_indexes TO guarded")
    rules.write_text("local all guarded scram-sha-256\n" + before)
    admin("SELECT pg_reload_conf()")
    host = server.split("host=")[1]
    yield (
        f"postgresql:///postgres?host={host}&user=guarded",
        f"postgresql://guarded:s3cr%2Ft%20p%40ss@/postgres?host={host}",
    )
    rules.write_text(before)
    admin("SELECT pg_reload_conf()")
    admin("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'guarded'")
    admin("DROP OWNED BY guarded CASCADE")
    admin("DROP ROLE guarded")


@pytest.fixture
def bare(server: str, admin: Callable[..., list[Any]]) -> Iterator[str]:
    """The address of a database without pgvector."""
    name = f"bare{next(_NUMBERS)}"
    admin(f"CREATE DATABASE {name}")
    yield server.replace("/postgres?", f"/{name}?")
    admin("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", name)
    admin(f"DROP DATABASE {name}")
