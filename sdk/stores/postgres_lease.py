"""The right to write a collection of a database: an advisory lock of a session, which ends with the session."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from typing import Any

from reperio.errors import ReadOnly, StorageError, WriterBusy
from reperio.postgres import Database

WAITS = (0.05, 0.1, 0.2, 0.4)
"""Seconds between attempts: the session of a process that was just killed ends in a moment."""

_HOLDER = """
SELECT a.pid, coalesce(host(a.client_addr), 'this host') FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.classid::bigint = (%(key)s::bigint >> 32) & 4294967295 AND l.objid::bigint = %(key)s::bigint & 4294967295
"""


class WriterLease:
    """A connection of its own that holds the right to write for as long as it lives.

    Parameters
    ----------
    database
        Where the collection is.
    name, location
        The collection's, and how messages call it.

    Raises
    ------
    WriterBusy
        If another session holds it.
    """

    def __init__(self, database: Database, name: str, location: str) -> None:
        self._database = database
        self._location = location
        digest = hashlib.blake2b(f"reperio {name}".encode(), digest_size=8).digest()
        self._key = int.from_bytes(digest, signed=True)
        self._pid = os.getpid()
        self._connection: Any = self._take()

    def _take(self) -> Any:
        connection = self._database.connect()
        try:
            with self._database.errors():
                for wait in (*WAITS, None):
                    if connection.execute("SELECT pg_try_advisory_lock(%s)", (self._key,)).fetchone()[0]:
                        return connection
                    if wait is not None:
                        time.sleep(wait)
                holder = connection.execute(_HOLDER, {"key": self._key}).fetchone()
            who = " by session {} from {}".format(*holder) if holder else ""
            raise WriterBusy(f"{self._location} is being written{who}.", "Close it there, or open it with mode='r'.")
        except BaseException:
            connection.close()
            raise

    @property
    def connection(self) -> Any:
        """The connection; a new one, with the right taken again, where the server has ended it.

        Raises
        ------
        ReadOnly
            In a child process: the right is its parent's.
        WriterBusy
            If another session took the right meanwhile.
        """
        if self._pid != os.getpid():
            raise ReadOnly(f"{self._location} was opened for writing before a fork.", "Open it again in the child.")
        if not self._database.alive(self._connection):
            self._connection.close()
            self._connection = self._take()
        return self._connection

    def release(self) -> None:
        """Give it back at once: a session that is merely closed lives on for a moment. Safe to call twice."""
        if self._pid == os.getpid() and not self._connection.closed:
            with suppress(StorageError), self._database.errors():
                self._connection.execute("SELECT pg_advisory_unlock(%s)", (self._key,))
            self._connection.close()
