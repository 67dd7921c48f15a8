"""A real PostgreSQL: every row once, through broken connections, read-only, and no secret shown."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from reperio import meter
from reperio.connectors import FileSource, SQLSource
from reperio.connectors import database as module
from reperio.connectors.database import Database
from reperio.connectors.keyset import Relation
from reperio.errors import ConfigurationError, ConnectorError
from reperio.protocols import Source
from reperio.testing.source import SourceContract
from reperio.types import Document


@pytest.fixture
def admin(postgres: sa.URL) -> Iterator[Callable[..., Sequence[Any]]]:
    """Runs statements as a superuser, on a connection of its own."""
    engine = sa.create_engine(postgres, isolation_level="AUTOCOMMIT")

    def run(statement: str, **values: object) -> Sequence[Any]:
        with engine.connect() as connection:
            result = connection.execute(sa.text(statement), values)
            return result.all() if result.returns_rows else []

    yield run
    engine.dispose()


KILL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND state IS NOT NULL"


class TestPostgresTable(SourceContract):
    @pytest.fixture
    def source(self, postgres: sa.URL) -> Source:
        return SQLSource(postgres, "docs", key="n", text="body", batch_size=300)


@pytest.mark.parametrize("batch_size", [7, 1000, 2000, 5000])
def test_pages_of_any_size_give_every_row_once(postgres: sa.URL, docs: list[Document], batch_size: int) -> None:
    source = SQLSource(postgres, "docs", key="n", text="{body}", metadata=["kind", "line"], batch_size=batch_size)
    found = [(d.id, d.text, d.metadata) for d in source.documents()]
    lines = [d.provenance.line for d in docs if d.provenance]
    assert found == [
        (str(n), d.text, {"kind": d.metadata["kind"], "line": line})
        for n, (d, line) in enumerate(zip(docs, lines, strict=True))
    ]


def test_a_text_key_is_read_in_the_databases_own_order(postgres: sa.URL, admin: Callable[..., Sequence[Any]]) -> None:
    words = ["Zebra", "apple", "äpfel", "Ärger", "a b", "ab", "a-b", "A", "a", "_", "中", "résumé", "resume", "Resume"]
    wanted = "'C', 'pg_c_utf8', 'pg_unicode_fast', 'en_US.utf8', 'de_DE.utf8'"
    collations = admin(f"SELECT collname AS name FROM pg_collation WHERE collname IN ({wanted})")
    assert collations
    for collation in collations:
        admin("DROP TABLE IF EXISTS words")
        admin(f'CREATE TABLE words (w text COLLATE "{collation.name}" PRIMARY KEY)')
        for word in words:
            admin("INSERT INTO words VALUES (:w)", w=word)
        expected = [row.w for row in admin("SELECT w FROM words ORDER BY w")]
        for size in (1, 3, 100):
            assert [
                d.id for d in SQLSource(postgres, "words", key="w", text="w", batch_size=size).documents()
            ] == expected


def test_keys_of_every_type_are_compared_as_their_own_type(
    postgres: sa.URL, admin: Callable[..., Sequence[Any]]
) -> None:
    admin("DROP TABLE IF EXISTS keyed")
    admin("DROP TYPE IF EXISTS mood")
    admin("CREATE TYPE mood AS ENUM ('sad', 'happy', 'angry')")
    admin(
        "CREATE TABLE keyed AS SELECT (ARRAY['sad', 'happy', 'angry'])[i % 3 + 1]::mood AS mood, 9000000000 + i AS big,"
        " md5(i::text)::uuid AS u, (i / 7.0)::numeric AS n, (i % 10)::char(4) AS c, date '2020-01-01' + i % 17 AS d,"
        " timestamptz '2020-01-01 00:00Z' + i * interval '1 hour' AS at, i / 3.0::float8 AS f, i AS i"
        " FROM generate_series(1, 100) i"
    )
    keys: list[list[str]] = [["big"], ["u"], ["n"], ["at"], ["f"], ["mood", "i"], ["c", "d", "i"], ["mood", "d", "u"]]
    for key in keys:
        source = SQLSource(postgres, "keyed", key=key, text="{i}", metadata=[], batch_size=9)
        expected = admin(f"SELECT i FROM keyed ORDER BY {', '.join(key)}")
        assert [d.text for d in source.documents()] == [str(row.i) for row in expected], key
        assert len({d.id for d in source.documents()}) == 100


def test_the_sessions_time_zone_changes_no_id(postgres: sa.URL, admin: Callable[..., Sequence[Any]]) -> None:
    admin("DROP TABLE IF EXISTS timed")
    admin("CREATE TABLE timed AS SELECT timestamptz '2020-06-01 12:00Z' AS at, 'x' AS body")
    found = []
    for zone in ("UTC", "Asia/Tokyo", "America/New_York"):
        url = postgres.update_query_dict({"options": f"-c timezone={zone}"})
        found += [d.id for d in SQLSource(url, "timed", key="at", text="body").documents()]
    assert found == ["2020-06-01T12:00:00+00:00"] * 3


def test_values_are_kept_as_metadata_holds_them(postgres: sa.URL, admin: Callable[..., Sequence[Any]]) -> None:
    query = """
        SELECT 1 AS id, 'x' AS body, 12.50::numeric AS price, 7::numeric AS whole, NULL::int AS nothing, true AS yes,
               '{"a": [1, {"b": null}]}'::jsonb AS doc, ARRAY['p', 'q'] AS tags, date '2020-01-02' AS day,
               timestamptz '2020-01-02 03:04Z' AS at, interval '90 seconds' AS took, inet '10.0.0.1' AS host,
               '00000000-0000-0000-0000-000000000001'::uuid AS u, 'a::b' AS colons, '100%' AS percent
    """
    (found,) = SQLSource(postgres, query=query, key="id", text="body").documents()
    at = found.metadata["at"]
    assert isinstance(at, datetime)
    assert at == datetime(2020, 1, 2, 3, 4, tzinfo=UTC)
    assert {k: v for k, v in found.metadata.items() if k != "at"} == {
        "price": 12.5,
        "whole": 7,
        "nothing": None,
        "yes": True,
        "doc": {"a": [1, {"b": None}]},
        "tags": ["p", "q"],
        "day": date(2020, 1, 2),
        "took": 90.0,
        "host": "10.0.0.1",
        "u": "00000000-0000-0000-0000-000000000001",
        "colons": "a::b",
        "percent": "100%",
    }
    with pytest.raises(ConnectorError, match="'photo' is a bytes"):
        list(
            SQLSource(
                postgres, query="SELECT 1 AS id, 'x' AS b, '\\x00'::bytea AS photo", key="id", text="b"
            ).documents()
        )


def test_schemas_views_and_odd_names_are_quoted(postgres: sa.URL, admin: Callable[..., Sequence[Any]]) -> None:
    admin('DROP SCHEMA IF EXISTS "Odd ""schema" CASCADE')
    admin('CREATE SCHEMA "Odd ""schema"')
    admin('CREATE VIEW "Odd ""schema"."select; --" AS SELECT n AS "Order", body AS "where %s \\:x" FROM public.docs')
    source = SQLSource(postgres, "select; --", schema='Odd "schema', key="Order", text=["where %s :x"], batch_size=999)
    found = list(source.documents())
    assert len(found) == 2000
    assert found[0].provenance is not None
    assert found[0].provenance.table == 'Odd "schema.select; --'


def test_two_columns_of_one_name_are_refused(postgres: sa.URL) -> None:
    relation = Relation(table=None, schema=None, query="SELECT 1 AS id, 2 AS id, 3 AS x")
    with Database(postgres).session() as session, pytest.raises(ConnectorError, match="two columns id"):
        relation.columns(session)


def test_null_and_repeated_keys_are_refused(postgres: sa.URL) -> None:
    nulls = "SELECT nullif(n, 1500) AS k, body FROM docs"
    with pytest.raises(ConnectorError, match="NULL"):
        next(SQLSource(postgres, query=nulls, key="k", text="body", batch_size=10).documents())
    for size in (1, 10, 11, 5000):
        twice = SQLSource(
            postgres, query="SELECT n / 2 * 2 AS k, body FROM docs", key="k", text="body", batch_size=size
        )
        with pytest.raises(ConnectorError, match="two rows with the key"):
            list(twice.documents())


def test_a_connection_killed_between_pages_costs_and_repeats_no_row(
    postgres: sa.URL, admin: Callable[..., Sequence[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITS", (0.01, 0.1, 0.5))
    found = []
    with meter.measure() as counts:
        for document in SQLSource(postgres, "docs", key="n", text="body", batch_size=100).documents():
            found.append(int(document.id))
            if len(found) in {1, 150, 750, 1900}:
                assert any(row[0] for row in admin(KILL))
    assert found == list(range(2000))
    assert counts["reconnects"] == 4


def test_a_connection_killed_in_the_middle_of_a_statement_costs_and_repeats_no_row(
    postgres: sa.URL, admin: Callable[..., Sequence[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITS", (0.01, 0.1, 0.5))
    admin("DROP TABLE IF EXISTS slow")
    admin("CREATE TABLE slow AS SELECT 150 AS n")
    query = """
        SELECT n, body FROM docs, LATERAL (SELECT pg_sleep(60 * (SELECT count(*) FROM slow WHERE slow.n = docs.n))) AS s
        WHERE n < 300
    """
    asleep = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    killed: list[Any] = []

    def kill() -> None:
        while not (found := admin(asleep)):
            time.sleep(0.01)
        admin("DELETE FROM slow")
        killed.extend(admin("SELECT pg_terminate_backend(:pid)", pid=found[0].pid))

    killer = threading.Thread(target=kill)
    killer.start()
    with meter.measure() as counts:
        source = SQLSource(postgres, query=query, key="n", text="body", batch_size=100)
        found = [int(document.id) for document in source.documents()]
    killer.join()
    assert killed == [(True,)]
    assert found == list(range(300))
    assert counts["reconnects"] == 1


@pytest.fixture
def guarded(postgres: sa.URL, postgres_folder: Path, admin: Callable[..., Sequence[Any]]) -> sa.URL:
    """The URL of a role that must give its password."""
    if admin("SELECT 1 FROM pg_roles WHERE rolname = 'guarded'"):
        admin("DROP OWNED BY guarded")
        admin("DROP ROLE guarded")
    admin("CREATE ROLE guarded LOGIN PASSWORD 's3cr/t p@ss'")
    admin("GRANT SELECT ON docs TO guarded")
    rules = postgres_folder / "pg_hba.conf"
    rule = "local all guarded scram-sha-256\n"
    if not rules.read_text().startswith(rule):
        rules.write_text(rule + rules.read_text())
    admin("SELECT pg_reload_conf()")
    return postgres.set(username="guarded", password="s3cr/t p@ss")


def test_a_password_is_used_and_never_shown(guarded: sa.URL) -> None:
    source = SQLSource(guarded, "docs", key="n", text="body", batch_size=500)
    first = next(source.documents())
    for shown in (source.name, repr(source), str(first), str(first.provenance)):
        assert "s3cr" not in shown
        assert "guarded" not in shown
    assert source.name.startswith("postgresql:///postgres?host=")


@pytest.mark.parametrize("form", ["url", "text", "setting", "engine"])
def test_a_wrong_password_is_refused_at_once_and_not_shown(postgres: sa.URL, guarded: sa.URL, form: str) -> None:
    wrong: Any = guarded.set(password="wr0ng/p@ss")
    if form == "text":
        wrong = wrong.render_as_string(hide_password=False)
    elif form == "setting":
        wrong = postgres.set(username="guarded").update_query_dict({"password": "wr0ng/p@ss"})
    elif form == "engine":
        wrong = sa.create_engine(wrong)
    source = SQLSource(wrong, "docs", key="n", text="body")
    with meter.measure() as counts, pytest.raises(ConnectorError, match="authentication failed") as caught:
        list(source.documents())
    assert counts["reconnects"] == 0
    shown = "".join(traceback.format_exception(caught.value)) + repr(source) + source.name
    assert "wr0ng" not in shown


def test_a_secret_that_the_driver_repeats_is_replaced(postgres: sa.URL) -> None:
    url = postgres.update_query_dict({"options": "-c nosuch=1", "sslpassword": "nosuch"})
    with pytest.raises(ConnectorError) as caught:
        list(SQLSource(url, "docs", key="n", text="body").documents())
    assert "***" in str(caught.value)
    assert "nosuch" not in "".join(traceback.format_exception(caught.value))


def test_a_database_that_does_not_come_back_is_told_after_the_last_attempt(
    guarded: sa.URL, admin: Callable[..., Sequence[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITS", (0.01, 0.02))
    documents = SQLSource(guarded, "docs", key="n", text="body", batch_size=100).documents()
    found = [int(next(documents).id) for _ in range(100)]
    admin("ALTER ROLE guarded NOLOGIN")
    admin(KILL)
    with meter.measure() as counts, pytest.raises(ConnectorError, match="Run it again when it is back"):
        next(documents)
    assert counts["reconnects"] == 2
    assert found == list(range(100))


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    source = SQLSource("postgresql://u:s3cret@127.0.0.1:1/db", "t", key="k", text="body")
    with meter.measure() as counts, pytest.raises(ConnectorError, match="Check host") as caught:
        list(source.documents())
    assert counts["reconnects"] == 0
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_a_query_that_writes_is_refused_by_the_database(postgres: sa.URL, admin: Callable[..., Sequence[Any]]) -> None:
    admin("DROP TABLE IF EXISTS touched")
    admin("CREATE TABLE touched (n int)")
    admin(
        "CREATE OR REPLACE FUNCTION touch() RETURNS int LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO touched VALUES (1); RETURN 1; END'"
    )
    with pytest.raises(ConnectorError, match="read-only transaction"):
        list(SQLSource(postgres, query="SELECT touch() AS id, 'x' AS body", key="id", text="body").documents())
    for attack in ("SELECT 1 AS id) AS r; DROP TABLE touched; --", "DELETE FROM docs RETURNING n AS id"):
        with pytest.raises(ConnectorError):
            list(SQLSource(postgres, query=attack, key="id", text="id").documents())
    assert admin("SELECT count(*) FROM touched") == [(0,)]
    assert admin("SELECT count(*) FROM docs") == [(2000,)]


def test_real_text_goes_in_and_comes_out_unchanged(
    postgres: sa.URL, admin: Callable[..., Sequence[Any]], data: Callable[[str], Path]
) -> None:
    corpus = list(FileSource(data("scifact") / "corpus.jsonl", ("title", "text")).documents())[:1000]
    admin("DROP TABLE IF EXISTS scifact")
    admin("CREATE TABLE scifact (id text PRIMARY KEY, title text, body text)")
    rows = [[d.text[f.start : f.end] for f in d.provenance.fields] for d in corpus if d.provenance]
    engine = sa.create_engine(postgres)
    with engine.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO scifact VALUES (:id, :title, :body)"),
            [{"id": d.id, "title": title, "body": body} for d, (title, body) in zip(corpus, rows, strict=True)],
        )
    engine.dispose()
    source = SQLSource(postgres, "scifact", key="id", text=("title", "body"), batch_size=128)
    found = {document.id: document for document in source.documents()}
    assert len(found) == 1000
    for document in corpus:
        assert found[document.id].text == document.text
        fields = found[document.id].provenance
        assert fields is not None
        assert [(f.field, f.start, f.end) for f in fields.fields] == [
            (f.field.replace("text", "body"), f.start, f.end) for f in document.provenance.fields if document.provenance
        ]


def test_a_url_without_a_driver_means_psycopg_and_an_unknown_driver_is_named() -> None:
    assert SQLSource("postgres://u:p@host/db", "t", key="k", text="k").name == "postgresql://host/db"
    assert SQLSource("postgresql://u:p@host:5433/db", "t", key="k", text="k").name == "postgresql://host:5433/db"
    with pytest.raises(ConfigurationError, match="pg8000"):
        list(SQLSource("postgresql+pg8000://u:p@host/db", "t", key="k", text="k").documents())
