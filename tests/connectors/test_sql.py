"""SQLite: every row once, in the order of the key, in bounded memory, and nothing written."""

from __future__ import annotations

import sqlite3
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reperio import meter
from reperio.connectors import SQLSource
from reperio.connectors.database import Database
from reperio.connectors.keyset import Relation, after
from reperio.errors import ConfigurationError, ConnectorError
from reperio.types import Document

Data = Callable[[str], Path]


@pytest.fixture
def chinook(data: Data) -> Path:
    return data("db-chinook") / "chinook.sqlite"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'rows.db'}"


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as connection:
        return connection.execute(query).fetchall()


@pytest.mark.parametrize("batch_size", [1, 7, 1000, 3503, 5000])
def test_pages_of_any_size_give_what_one_scan_gives(chinook: Path, batch_size: int) -> None:
    source = SQLSource(f"sqlite:///{chinook}", "Track", key="TrackId", text="{Name}", batch_size=batch_size)
    limit = "WHERE TrackId <= 500" if batch_size == 1 else ""
    found = [(d.id, d.text, d.metadata["AlbumId"], d.metadata["UnitPrice"]) for d in source.documents()]
    scan = rows(chinook, f"SELECT TrackId, Name, AlbumId, UnitPrice FROM Track {limit} ORDER BY TrackId")
    assert found[: len(scan)] == [(str(i), name, album, price) for i, name, album, price in scan]
    assert len(found) == 3503


@pytest.mark.parametrize("batch_size", [13, 1000])
def test_a_composite_key_gives_every_row_once(chinook: Path, batch_size: int) -> None:
    key = ["PlaylistId", "TrackId"]
    source = SQLSource(f"sqlite:///{chinook}", "PlaylistTrack", key=key, text="{TrackId}", batch_size=batch_size)
    scan = rows(chinook, "SELECT PlaylistId, TrackId FROM PlaylistTrack ORDER BY 1, 2")
    assert [document.id for document in source.documents()] == [f"{a}/{b}" for a, b in scan]


def test_a_join_is_read_like_a_table(chinook: Path) -> None:
    query = """
        SELECT t.TrackId AS id, t.Name AS track, a.Title AS album, r.Name AS artist, t.Composer AS composer
        FROM Track t JOIN Album a USING (AlbumId) JOIN Artist r USING (ArtistId) -- every track: "Bis ':heute'"
    """
    source = SQLSource(
        f"sqlite:///{chinook}", query=query, key="id", text="{track} by {artist} on {album}", metadata=["composer"]
    )
    found = list(source.documents())
    assert len(found) == 3503
    first = found[0]
    assert first.text == "For Those About To Rock (We Salute You) by AC/DC on For Those About To Rock We Salute You"
    assert first.metadata == {"composer": "Angus Young, Malcolm Young, Brian Johnson"}
    assert first.provenance is not None
    assert first.provenance.table is None
    artist = first.provenance.field_at(first.text.index("AC/DC") + 2)
    assert artist is not None
    assert (artist.field, first.text[artist.start : artist.end]) == ("artist", "AC/DC")
    assert {"composer": None} in [document.metadata for document in found]


def test_a_view_and_a_text_key_are_read(database: sqlite3.Connection, url: str) -> None:
    database.execute("CREATE TABLE Word (w TEXT PRIMARY KEY, n INT)")
    words = ["Zebra", "apple", "äpfel", "Ärger", "", "a b", "a", "A", "中", "'; DROP TABLE Word; --", 'say "x"', "100%"]
    database.executemany("INSERT INTO Word VALUES (?, ?)", [(w, i) for i, w in enumerate(words) if w])
    database.execute('CREATE VIEW "Odd view" AS SELECT w AS "the key", n AS "Num ber" FROM Word')
    for size in (1, 2, 5, 100):
        source = SQLSource(url, "Odd view", key="the key", text=["the key", "Num ber"], batch_size=size)
        assert [d.id for d in source.documents()] == sorted(word for word in words if word)
    assert database.execute("SELECT count(*) FROM Word").fetchone() == (11,)


CELLS = st.one_of(st.integers(-3, 3), st.floats(-3, 3, allow_nan=False))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    keys=st.sets(st.tuples(CELLS, st.text("aA%_é", max_size=2), CELLS), min_size=1, max_size=30),
    size=st.integers(1, 9),
    row_values=st.booleans(),
)
def test_keyset_pages_are_a_full_scan_whatever_the_keys_and_the_form_of_comparison(
    database: sqlite3.Connection, tmp_path: Path, keys: set[tuple[float, str, float]], size: int, row_values: bool
) -> None:
    database.execute("DROP TABLE IF EXISTS t")
    database.execute("CREATE TABLE t (a, b, c, PRIMARY KEY (a, b, c))")
    database.executemany("INSERT INTO t VALUES (?, ?, ?)", sorted(keys))
    with Database(f"sqlite:///{tmp_path / 'rows.db'}").session() as session:
        session.row_values = row_values
        relation = Relation(table="t", schema=None, query=None)
        found = list(relation.rows(session, ["c", "a", "b"], ["a", "b", "c"], size))
    assert found == [(c, a, b) for a, b, c in database.execute("SELECT a, b, c FROM t ORDER BY a, b, c")]


def test_the_condition_is_spelt_out_where_rows_do_not_compare() -> None:
    spelt = str(after([sa.column("a"), sa.column("b")], (1, 2), row_values=False))
    assert spelt == "a >= :param_1 AND (a > :param_1 OR a = :param_1 AND b > :param_2)"
    compared = after([sa.column("a"), sa.column("b")], (1, 2), row_values=True)
    assert str(compared) == "(a, b) > (:param_1, :param_2)"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="'\0"), max_size=20))
def test_a_query_reaches_the_database_as_it_is_written(literal: str) -> None:
    engine = sa.create_engine("sqlite://")
    source = SQLSource(engine, query=f"SELECT 1 AS id, 'x{literal}' AS body ;", key="id", text="body")
    assert [document.text for document in source.documents()] == [f"x{literal}"]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("column", ["k", ["k", "j"]])
def test_a_key_that_is_not_unique_is_refused_wherever_the_page_ends(
    database: sqlite3.Connection, url: str, size: int, column: str | list[str]
) -> None:
    database.execute("CREATE TABLE t (k INT, j INT, body TEXT)")
    database.executemany("INSERT INTO t VALUES (?, 0, 'x')", [(1,), (2,), (3,), (3,), (4,)])
    with pytest.raises(ConnectorError, match=r"two rows with the key .*3"):
        list(SQLSource(url, "t", key=column, text="body", batch_size=size).documents())


@pytest.mark.parametrize("key", ["k", ["j", "k"]])
def test_a_null_in_a_key_is_refused_before_any_row_is_given(
    database: sqlite3.Connection, url: str, key: str | list[str]
) -> None:
    database.execute("CREATE TABLE t (k INT, j INT, body TEXT)")
    database.executemany("INSERT INTO t VALUES (?, 0, 'x')", [(1,), (2,), (None,)])
    with pytest.raises(ConnectorError, match=r"NULL.*'k': None"):
        next(SQLSource(url, "t", key=key, text="body").documents())


def test_keys_of_two_kinds_are_refused_because_their_ids_would_meet(database: sqlite3.Connection, url: str) -> None:
    database.execute("CREATE TABLE t (k, body TEXT)")
    database.executemany("INSERT INTO t VALUES (?, 'x')", [(1,), ("1",)])
    with pytest.raises(ConnectorError, match="'k': '1'"):
        list(SQLSource(url, "t", key="k", text="body").documents())


def test_a_key_of_bytes_is_refused_and_its_table_named(database: sqlite3.Connection, url: str) -> None:
    database.execute("CREATE TABLE t (k BLOB, body TEXT)")
    database.execute("INSERT INTO t VALUES (x'00', 'x')")
    with pytest.raises(ConnectorError, match=r"rows\.db t: The key is a bytes"):
        list(SQLSource(url, "t", key="k", text="body").documents())


def test_a_file_that_is_not_there_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConnectorError, match=r"none\.db: unable to open"):
        list(SQLSource(f"sqlite:///{tmp_path / 'none.db'}", "t", key="k", text="body").documents())
    assert not list(tmp_path.iterdir())


def test_a_file_is_opened_read_only_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "odd ?#%41 name.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (k INT)")
        connection.execute("INSERT INTO t VALUES (1)")
    connection.close()
    url = sa.URL.create("sqlite", database=str(path))
    assert [d.id for d in SQLSource(url, "t", key="k", text="k").documents()] == ["1"]
    with Database(url).session() as session, pytest.raises(ConnectorError, match="readonly"):
        session.read(sa.text("INSERT INTO t VALUES (2)"))


def test_columns_that_are_not_there_are_named_with_those_that_are(database: sqlite3.Connection, url: str) -> None:
    database.execute("CREATE TABLE t (k INT, body TEXT)")
    for arguments in (
        {"key": "id", "text": "body"},
        {"key": "k", "text": "{id}"},
        {"key": "k", "text": "body", "metadata": ["id"]},
    ):
        with pytest.raises(ConfigurationError, match=r"'id'.*k, body"):
            list(SQLSource(url, "t", **arguments).documents())


def test_a_table_that_is_not_there_is_named(database: sqlite3.Connection, url: str) -> None:
    with pytest.raises(ConnectorError, match="no such table: nope"):
        list(SQLSource(url, "nope", key="k", text="body").documents())


def test_bytes_are_refused_by_column_and_left_alone_where_they_are_not_asked_for(
    database: sqlite3.Connection, url: str
) -> None:
    database.execute("CREATE TABLE t (k INT, body TEXT, photo BLOB)")
    database.execute("INSERT INTO t VALUES (1, 'x', x'00ff')")
    with pytest.raises(ConnectorError, match=r"t\[1\]: Field 'photo' is a bytes.*metadata="):
        list(SQLSource(url, "t", key="k", text="body").documents())
    assert [d.metadata for d in SQLSource(url, "t", key="k", text="body", metadata=[]).documents()] == [{}]


def test_rows_without_text_are_skipped_counted_and_told(database: sqlite3.Connection, url: str) -> None:
    database.execute("CREATE TABLE t (k INT, body TEXT)")
    database.executemany("INSERT INTO t VALUES (?, ?)", [(1, "x"), (2, None), (3, ""), (4, "  "), (5, "y")])
    source = SQLSource(url, "t", key="k", text="body", batch_size=2)
    with meter.measure() as counts, pytest.warns(UserWarning, match="3 rows skipped.*'2', '3', '4'"):
        assert [d.id for d in source.documents()] == ["1", "5"]
    assert counts["skipped_empty"] == 3


def test_a_function_sees_every_column(database: sqlite3.Connection, url: str) -> None:
    database.execute("CREATE TABLE t (k INT, title TEXT, body TEXT)")
    database.execute("INSERT INTO t VALUES (1, 'a', 'b')")
    texts = SQLSource(url, "t", key="k", text=lambda row: f"{row['title']}-{row['body']}", metadata=["title"])
    assert [(d.text, d.metadata) for d in texts.documents()] == [("a-b", {"title": "a"})]
    whole = SQLSource(url, "t", key="k", text=lambda row: Document(f"doc-{row['k']}", row["body"]))
    (made,) = whole.documents()
    assert (made.id, made.provenance and made.provenance.key) == ("doc-1", "1")


def test_an_engine_of_the_callers_stays_open() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE t (k INT, body TEXT)"))
        connection.execute(sa.text("INSERT INTO t VALUES (1, 'x')"))
    source = SQLSource(engine, "t", key="k", text="body")
    assert list(source.documents()) == list(source.documents())
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM t")) == 1


def test_rows_written_and_removed_while_reading_neither_repeat_nor_hide_others(
    database: sqlite3.Connection, url: str
) -> None:
    database.execute("CREATE TABLE t (k INT PRIMARY KEY, body TEXT)")
    database.executemany("INSERT INTO t VALUES (?, 'x')", [(k,) for k in range(0, 100, 2)])
    found = []
    for document in SQLSource(url, "t", key="k", text="body", batch_size=10).documents():
        found.append(int(document.id))
        if len(found) == 15:
            database.execute("DELETE FROM t WHERE k IN (?, 60)", (found[-1],))
            database.execute("INSERT INTO t VALUES (1, 'behind'), (61, 'ahead')")
    assert found == sorted({*range(0, 100, 2), 61} - {60})


def test_memory_is_bounded_by_the_page(database: sqlite3.Connection, url: str) -> None:
    database.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, body TEXT)")

    def peak(count: int) -> int:
        database.execute("DELETE FROM t")
        many = "WITH RECURSIVE i(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM i WHERE k < ?) "
        database.execute(f"INSERT INTO t {many} SELECT k, hex(zeroblob(500)) FROM i", (count,))
        source = SQLSource(url, "t", key="k", text="body", batch_size=200)
        tracemalloc.start()
        assert sum(1 for _ in source.documents()) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(200)
    small, large = peak(1000), peak(10_000)
    assert large < 1.2 * small
    assert large < 200 * 1000 * 10


@pytest.mark.parametrize(
    "url", ["postgresql://u:s3cret@host:port/db", "s3cret", "nosuch://u:s3cret@host/db", "://u:s3cret@"]
)
def test_a_url_that_cannot_be_read_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"sqlite:///file\.db") as caught:
        SQLSource(url, "t", key="k", text="body")
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None or "s3cret" not in str(caught.value.__cause__)


def test_settings_out_of_range_are_refused(url: str) -> None:
    for wrong in ({"batch_size": 0}, {"key": []}, {"key": ["k", "k"]}, {"query": "SELECT 1"}, {"table": None}):
        with pytest.raises(ConfigurationError):
            SQLSource(url, **{"table": "t", "key": "k", "text": "body", **wrong})


def test_two_passes_are_silent_where_nothing_is_lost(chinook: Path) -> None:
    source = SQLSource(f"sqlite:///{chinook}", "Artist", key="ArtistId", text="Name")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(source.documents()) == list(source.documents())
    assert repr(source) == f"SQLSource('sqlite:///{chinook}', 'Artist', key=['ArtistId'])"
