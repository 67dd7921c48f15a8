"""SQLite's own indexes, beside the table that they lead into.

Neither has a checksum. But when a document was added and removed is said by both, so that a byte altered in one of
them makes them say different things: what is asked of one is held against the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

__all__ = ["Altered", "added_since", "agree", "check_absent_ids", "check_absent_rows", "complete", "removed_since"]

Read: TypeAlias = Callable[[str, Sequence[Any]], list[Any]]
"""Runs a query."""


class Altered(Exception):
    """An index and the table differ; says in what."""


def agree(read: Read) -> None:
    """Compare the whole table with each index, by sums: one altered value changes one of them.

    Raises
    ------
    Altered
    """
    table = (
        "SELECT count(*), count(removed), sum(row + added), sum(CASE WHEN removed IS NULL THEN row END), "
        "sum(row + removed) FROM documents NOT INDEXED"
    )
    ((rows, dead, added, alive, removed),) = read(table, ())
    by_added = "SELECT count(*), sum(row + added) FROM documents INDEXED BY by_added"
    by_id = "SELECT count(*), sum(row) FROM documents INDEXED BY live WHERE removed IS NULL"
    by_removed = "SELECT count(*), sum(row + removed) FROM documents INDEXED BY by_removed WHERE removed IS NOT NULL"
    for what, sql, wanted in (
        ("were added", by_added, (rows, added)),
        ("are live", by_id, (rows - dead, alive)),
        ("were removed", by_removed, (dead, removed)),
    ):
        if read(sql, ()) != [wanted]:
            raise Altered(f"the table and an index differ in which documents {what}")


def complete(read: Read) -> None:
    """Compare the indexes with each other: each row is live or was removed, and no entry is lacking or there twice.

    Raises
    ------
    Altered
    """
    sql = (
        "SELECT count(id), coalesce(sum(row), 0) FROM documents INDEXED BY live WHERE removed IS NULL",
        "SELECT count(removed), coalesce(sum(row), 0) FROM documents INDEXED BY by_removed WHERE removed IS NOT NULL",
        "SELECT count(added), coalesce(sum(row), 0) FROM documents INDEXED BY by_added",
    )
    ((alive, a),), ((dead, b),), ((rows, c),) = (read(one, ()) for one in sql)
    if (alive + dead, a + b) != (rows, c):
        raise Altered(f"the indexes differ in which rows there are: {alive} live and {dead} removed, of {rows}")


def added_since(read: Read, seq: int) -> list[int]:
    """Live rows that were committed later, in order.

    Raises
    ------
    Altered
    """
    # Rows are numbered in the order of commits, so that they are the end of the table.
    told = "SELECT count(*), sum(row), sum(added), min(row) FROM documents INDEXED BY by_added WHERE added > ?"
    ((*wanted, first),) = read(told, (seq,))
    if first is None:
        ((first,),) = read("SELECT coalesce(max(row), 0) + 1 FROM documents", ())
    sql = (
        "SELECT d.row, d.added, d.removed IS NULL, CASE WHEN d.removed IS NULL "
        "THEN (SELECT x.row FROM documents AS x INDEXED BY live WHERE x.id = d.id AND x.removed IS NULL) "
        "ELSE (SELECT x.row FROM documents AS x INDEXED BY by_removed WHERE x.removed = d.removed AND x.row = d.row) "
        "END FROM documents AS d NOT INDEXED WHERE d.row >= ? ORDER BY d.row"
    )
    found = read(sql, (first,))
    before = read("SELECT added FROM documents NOT INDEXED WHERE row < ? ORDER BY row DESC LIMIT 1", (first,))
    sums = [len(found), sum(row for row, *_ in found) or None, sum(added for _, added, *_ in found) or None]
    if sums != wanted or any(added > seq for (added,) in before):
        raise Altered(f"the table and an index differ in what was added after commit {seq}")
    for row, _, _, led in found:
        if led != row:
            raise Altered(f"the table and an index differ in whether row {row} was removed")
    return [row for row, _, alive, _ in found if alive]


def removed_since(read: Read, seq: int) -> list[int]:
    """Rows that were removed later, in the order of their removal.

    Raises
    ------
    Altered
    """
    sql = (
        "SELECT x.removed, x.row, d.removed FROM documents AS x INDEXED BY by_removed "
        "LEFT JOIN documents AS d NOT INDEXED ON d.row = x.row WHERE x.removed "
    )
    # An entry that was altered to an earlier commit stands where it was: at the end of those before, or among these.
    before = read(f"{sql} <= ? ORDER BY x.removed DESC, x.row DESC LIMIT 2", (seq,))
    found = read(f"{sql} > ? ORDER BY x.removed, x.row", (seq,))
    for removed, row, told in (*before, *found):
        if removed != told:
            raise Altered(f"the table and an index differ in when row {row} was removed")
    if any(a >= b for a, b in pairwise([*reversed(before), *found])):
        raise Altered(f"the index of what was removed after commit {seq} is out of order")
    return [row for _, row, _ in found]


def check_absent_ids(read: Read, names: str) -> None:
    """Hold the neighbours of ids that the index does not have against the table: one of them may be an id altered.

    Raises
    ------
    Altered
    """
    sql = (
        "SELECT (SELECT coalesce(x.id = d.id, 0) FROM documents AS x INDEXED BY live "
        "LEFT JOIN documents AS d NOT INDEXED ON d.row = x.row "
        "WHERE x.id < h.value AND x.removed IS NULL ORDER BY x.id DESC LIMIT 1), "
        "(SELECT coalesce(x.id = d.id, 0) FROM documents AS x INDEXED BY live "
        "LEFT JOIN documents AS d NOT INDEXED ON d.row = x.row "
        "WHERE x.id > h.value AND x.removed IS NULL ORDER BY x.id LIMIT 1) FROM json_each(?) AS h"
    )
    if any(0 in pair for pair in read(sql, (names,))):
        raise Altered("the index of ids leads to another document")


def check_absent_rows(read: Read, rows: str) -> None:
    """Look for rows that the table does not have from both sides: a page that was altered leads past what it has.

    Raises
    ------
    Altered
    """
    sql = (
        "SELECT h.value, (SELECT row FROM documents NOT INDEXED WHERE row < h.value ORDER BY row DESC LIMIT 1), "
        "(SELECT row FROM documents NOT INDEXED WHERE row > h.value ORDER BY row LIMIT 1) FROM json_each(?) AS h"
    )
    for row, before, after in read(sql, (rows,)):
        if (before is not None and before >= row) or (after is not None and after <= row):
            raise Altered(f"the pages of the table lead past row {row}")
