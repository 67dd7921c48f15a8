"""Indexes of a store that many clients share: which one a signal uses, the store says.

An index that lives in the store's own database is changed by the commits themselves. Any other is replayed by each
client into a folder of its own, which is only a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from filelock import FileLock, Timeout

from reperio.artifacts import disk_errors
from reperio.derived import Beside, DerivedIndex, Still, replay
from reperio.embeddings import Ids
from reperio.errors import NotFound, ServerUnavailable
from reperio.generations import remove
from reperio.protocols import Generation, Host, Housed, Index, Spec, Store
from reperio.registry import build

Embed: TypeAlias = Callable[[Ids], Any]

RENEWED = 10
"""A reader writes its cache anew when it had to add more than one row in so many."""


class TableIndex:
    """An index in the store's database, at every commit where the store is.

    Parameters
    ----------
    index
        It has moved in.
    generation
        What the store knows it as.
    store, host
        The truth.
    embed
        Rows → their embeddings, in order.
    """

    behind, follows = False, True
    dead, loaded = 0, True

    def __init__(self, index: Housed, generation: Generation, *, store: Store, host: Host, embed: Embed) -> None:
        self.index: Any = index
        self._generation = generation
        self._store = store
        self._host = host
        self._embed = embed

    @property
    def seq(self) -> int:
        """The commit that it is at."""
        return self._store.seq

    saved = seq

    @property
    def generations(self) -> Mapping[str, int]:
        """None here: it is saved by every commit."""
        return {}

    def catch_up(self) -> None:
        """Bring the rows to the last commit, or to the one that is being made."""
        since = self._host.seq(self._generation)
        if since < self._store.floor:  # it was out of use, and what it missed is gone
            self._refill()
        elif since < self._store.seq:
            self._replay(since)

    def _refill(self) -> None:
        self.index.drop()
        self._replay(0)

    def _replay(self, since: int) -> None:
        seq, _, _ = replay(self._store, self._embed, self.index, since)
        self._host.reached(self._generation, seq)

    def evict(self) -> None:
        """Take away rows that the store does not have, or fill it anew where it lacks some: what was done by hand."""
        with self._store.writing, self._store.transaction():
            self.catch_up()
            held, wanted = len(self.index), self._store.count()
            if held > wanted:
                self.index.remove(np.setdiff1d(self.index.ids, self._store.matching(None), assume_unique=True))
            elif held < wanted:
                self._refill()

    def checkpoint(self) -> None:
        """Make what was added quick to search. Commits alone change it, and the database keeps them and this apart."""
        self.index.settle()

    def problems(self) -> Iterator[str]:
        """Nothing of its own: whether it holds the live documents is asked of every index."""
        return iter(())

    def size(self) -> int:
        """Bytes on the server's disk."""
        return int(self.index.size())

    def drop(self) -> None:
        """Take it off the server."""
        self.index.drop()


@dataclass(frozen=True, slots=True)
class Renewal:
    """A generation that is filled beside the one in use, and the one to roll back to when it is used."""

    generation: Generation
    previous: int | None


class HostedIndex:
    """One signal's index, wherever the store says that it is.

    Parameters
    ----------
    folder
        This client's cache of the signal.
    store, host
        The truth.
    embed
        Rows → their embeddings, in order.
    number
        The signal's.
    fingerprint
        Digest of the encoder.
    """

    def __init__(self, folder: Path, store: Store, host: Host, embed: Embed, *, number: int, fingerprint: str) -> None:
        self.folder = folder
        self._store = store
        self._host = host
        self._embed = embed
        self._number = number
        self._fingerprint = fingerprint
        self._replicas: dict[int, DerivedIndex | TableIndex] = {}
        if store.writable:
            host.followers.append(self._follow)

    def _replica(self, generation: Generation) -> DerivedIndex | TableIndex:
        made = self._replicas.get(generation.number)
        if made is None:
            index: Index[Any] = build(generation.spec)
            if isinstance(index, Housed) and self._host.house(index, generation):
                made = TableIndex(index, generation, store=self._store, host=self._host, embed=self._embed)
            else:
                folder, spec = self.folder / str(generation.number), generation.spec
                made = DerivedIndex(folder, self._store, self._embed, spec=spec, fingerprint=self._fingerprint)
            made = self._replicas.setdefault(generation.number, made)
        return made

    @property
    def _used(self) -> DerivedIndex | TableIndex:
        return self._replica(self._host.current(self._number))

    def _follow(self) -> None:
        """Take part in a commit: an index in the database is changed by it, or it is not made."""
        used = self._used
        if isinstance(used, TableIndex):
            used.catch_up()

    @property
    def index(self) -> Index[Any]:
        """The index as far as it has caught up."""
        found: Index[Any] = self._used.index
        return found

    @property
    def spec(self) -> Spec:
        """What a rebuild would build."""
        return self._host.current(self._number).spec

    @property
    def seq(self) -> int:
        """The commit that it is at."""
        return self._used.seq

    @property
    def saved(self) -> int:
        """The commit up to which nothing has to be replayed."""
        return self._used.saved

    @property
    def behind(self) -> bool:
        """Whether it is not loaded, or not at the store's last commit."""
        return self._used.behind

    @property
    def follows(self) -> bool:
        """Whether this process brings it forward, or the commits themselves do."""
        return self._used.follows

    def forget(self) -> None:
        """Have every index be found again when it is next used."""
        self._replicas = {}

    @property
    def loaded(self) -> bool:
        """Whether it is in use, not only on disk."""
        return self._used.loaded

    @property
    def dead(self) -> int:
        """Rows taken away since this client's index was built, where it keeps their room."""
        return self._used.dead

    @property
    def generations(self) -> Mapping[str, int]:
        """Bytes on disk of each saved state that this client has."""
        return self._used.generations

    @property
    def served(self) -> bool:
        """Whether its rows are on another server, for which one process replays."""
        used = self._used
        return isinstance(used, DerivedIndex) and used.served

    def catch_up(self) -> None:
        """Replay what was committed since; load or rebuild first where needed."""
        used = self._used
        if isinstance(used, DerivedIndex):
            used.catch_up()

    def checkpoint(self, still: Still = nullcontext) -> None:
        """Save what is kept here as far as it has caught up, settle what is kept there."""
        self._save(self._used, still)

    def _save(self, replica: DerivedIndex | TableIndex, still: Still = nullcontext) -> None:
        if isinstance(replica, TableIndex):
            replica.checkpoint()
            return
        with self._cache_alone() as alone:
            if alone:
                replica.checkpoint(still)
                self._tidy()

    def leave(self) -> None:
        """A reader keeps its work for the next one, where that is worth it."""
        used = self._used
        if isinstance(used, DerivedIndex) and used.replayed and used.replayed * RENEWED > len(used.index):
            self.checkpoint()

    @contextmanager
    def _cache_alone(self) -> Generator[bool]:
        """Whether no other process of this machine writes the cache meanwhile."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = FileLock(self.folder / "cache.lock", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                yield False
                return
            try:
                yield True
            finally:
                lock.release()

    def _tidy(self) -> None:
        """Remove this client's caches of what is past; a higher number is being made."""
        kept = {g.number for g in (self._host.current(self._number), self._host.previous(self._number)) if g}
        for path in self.folder.iterdir():
            if path.name.isdecimal() and int(path.name) < max(kept) and int(path.name) not in kept:
                remove(path)

    # Saving and switching

    def beside(self, index: Index[Any] | None) -> Beside | Renewal:
        """Begin another index, empty; one of the same kind where None, which leaves nothing to roll back to."""
        used, previous = self._used, self._host.previous(self._number)
        if index is None and isinstance(used, DerivedIndex):  # every client's own affair
            return used.beside(None)
        spec = self.spec if index is None else index.spec
        kept = self._host.current(self._number) if index is not None else previous
        return Renewal(self._host.start(self._number, spec), None if kept is None else kept.number)

    def earlier(self) -> Renewal:
        """The index before the last `reindex`, which a switch makes that to be rolled back to.

        Raises
        ------
        NotFound
            If there is none.
        """
        current, previous = self._host.current(self._number), self._host.previous(self._number)
        if previous is None:
            raise NotFound(f"{self.folder.name} has no earlier index to roll back to.", "Only a reindex makes one.")
        return Renewal(previous, current.number)

    def advance(self, beside: Beside | Renewal, check: Callable[[], None] = lambda: None) -> None:
        """Bring it to the store's last commit. Searches of the one in use and commits go on; a purge must not."""
        if isinstance(beside, Renewal):
            self._replica(beside.generation).catch_up()
        else:
            self._own.advance(beside, check)

    def keep(self, beside: Beside | Renewal) -> None:
        """Save what is kept here, settle what is kept there."""
        if isinstance(beside, Renewal):
            self._save(self._replica(beside.generation))
            return
        with self._cache_alone() as alone:
            if alone:
                self._own.keep(beside)

    def take(self, beside: Beside | Renewal) -> None:
        """Switch to it: every client of the store, or this one for an index of its own; no search may be going on."""
        if isinstance(beside, Renewal):
            with self._store.writing, self._store.transaction():
                self._replica(beside.generation).catch_up()  # what was committed while it was filled
                self._host.switch(self._number, beside.generation.number, beside.previous)
            self._store.refresh()
        elif beside.name is not None:
            self._own.take(beside)

    def discard(self, beside: Beside | Renewal) -> None:
        """It will not be used."""
        if isinstance(beside, Renewal):
            self.clean()
        else:
            self._own.discard(beside)

    def tidy(self) -> None:
        """Remove what is neither in use nor to roll back to."""
        used = self._used
        if isinstance(used, DerivedIndex):
            with self._cache_alone() as alone:
                if alone:
                    used.tidy()
        with suppress(ServerUnavailable):  # the switch is made: what is past waits for the next writer
            self.clean()

    @property
    def _own(self) -> DerivedIndex:
        used = self._used
        assert isinstance(used, DerivedIndex)
        return used

    def clean(self) -> None:
        """Remove from the server what is neither in use nor to roll back to, such as a reindex cut short, and rows
        that the store does not have."""
        used = self._used
        if isinstance(used, TableIndex):
            used.evict()
        for generation in self._host.unused(self._number):
            replica = self._replica(generation)
            with suppress(ServerUnavailable):  # someone reads it still: the next writer finds it
                if isinstance(replica, TableIndex):
                    replica.drop()
                self._host.forget(generation)
            self._replicas.pop(generation.number, None)

    def problems(self) -> Iterator[str]:
        """What is wrong in this client's cache; it costs a rebuild, never data."""
        return self._used.problems()

    def size(self) -> int:
        """Bytes on disk, here and on the server."""
        return self._used.size()
