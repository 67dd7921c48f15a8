"""Which index each signal uses, kept beside the documents, so that every client of a database uses the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reperio.protocols import Generation, Housed, Index, Spec

if TYPE_CHECKING:
    from reperio.stores.postgres import PostgresStore


class PostgresHost:
    """A `Host` for the collections of `PostgresStore`.

    Attributes
    ----------
    followers
        Called inside each commit, before it is acknowledged.
    """

    def __init__(self, store: PostgresStore) -> None:
        self.followers: list[Callable[[], None]] = []
        self._store = store
        self._known: tuple[int, dict[int, tuple[Generation, Generation | None]]] = (-1, {})

    def follow(self) -> None:
        """Bring the indexes in the database to what is being committed."""
        for follower in self.followers:
            follower()

    def current(self, signal: int, /) -> Generation:
        """The index in use."""
        return self._both(signal)[0]

    def previous(self, signal: int, /) -> Generation | None:
        """The index to roll back to."""
        return self._both(signal)[1]

    def _both(self, signal: int) -> tuple[Generation, Generation | None]:
        """Read again when a signal has taken another index, of which the store's last look tells."""
        turn, known = self._known
        if turn != self._store.turn:
            turn, known = self._store.turn, {}
            sql = "SELECT number, {0}.signals.current, previous FROM {0}.signals"
            made = {(g.signal, g.number): g for g in self._all()}
            for number, current, previous in self._store.read(sql):
                known[number] = made[number, current], made.get((number, previous))
            self._known = turn, known
        return known[signal]

    def _all(self) -> list[Generation]:
        rows = self._store.read("SELECT signal, number, spec FROM {}.indexes ORDER BY signal, number")
        return [Generation(signal, number, json.loads(spec)) for signal, number, spec in rows]

    def start(self, signal: int, spec: Spec, /) -> Generation:
        """A new generation, not yet in use."""
        with self._store.transaction() as connection:
            sql = "UPDATE {}.signals SET started = started + 1 WHERE number = %s RETURNING started"
            (number,) = self._store.run(connection, sql, (signal,)).fetchone()
            values = (signal, number, json.dumps(dict(spec)))
            self._store.run(connection, "INSERT INTO {}.indexes VALUES (%s, %s, %s)", values)
            return Generation(signal, number, spec)

    def seq(self, generation: Generation, /) -> int:
        """Sequence number that the rows on the server have reached."""
        sql = "SELECT seq FROM {}.indexes WHERE signal = %s AND number = %s"
        found = self._store.read(sql, (generation.signal, generation.number))
        return int(found[0][0]) if found else 0

    def reached(self, generation: Generation, seq: int, /) -> None:
        """The rows on the server have come to ``seq``."""
        with self._store.transaction() as connection:
            sql = "UPDATE {}.indexes SET seq = %s WHERE signal = %s AND number = %s"
            self._store.run(connection, sql, (seq, generation.signal, generation.number))

    def switch(self, signal: int, current: int, previous: int | None, /) -> None:
        """Use these generations."""
        with self._store.transaction() as connection:
            sql = "UPDATE {}.signals SET current = %s, previous = %s WHERE number = %s"
            self._store.run(connection, sql, (current, previous, signal))
            self._store.run(connection, "UPDATE {}.reperio SET turn = turn + 1")

    def unused(self, signal: int, /) -> list[Generation]:
        """Generations that are neither in use nor to roll back to: a reindex cut short, or one that is past."""
        kept = {g.number for g in self._both(signal) if g is not None}
        return [g for g in self._all() if g.signal == signal and g.number not in kept]

    def forget(self, generation: Generation, /) -> None:
        """Keep no record of it any more."""
        with self._store.transaction() as connection:
            sql = "DELETE FROM {}.indexes WHERE signal = %s AND number = %s"
            self._store.run(connection, sql, (generation.signal, generation.number))

    def house(self, index: Index[Any], generation: Generation, /) -> bool:
        """Give an index its table beside the documents; False if it is not one that lives there."""
        if not isinstance(index, Housed) or index.address:
            return False
        index.move_in(self._store.database, self._store.collection, f"index_{generation.signal}_{generation.number}")
        return True
