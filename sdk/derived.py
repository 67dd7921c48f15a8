"""An index as a cache that replays the store.

``indexes/<signal>/CURRENT`` names a generation, a folder beside it that holds the saved index and the sequence
number it has reached. Opening takes the newest generation that verifies and replays what the store has
committed since, or rebuilds. So nothing that happens to an index can lose data.

The rows of a `Served` index are on a server, and a generation only says where: the writer alone replays into it,
and what a generation names is dropped when no other names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeGuard

import numpy as np

from reperio.artifacts import loading
from reperio.embeddings import Ids, IdSet
from reperio.errors import CorruptArtifact, NewerFormat, NotFound, StorageError
from reperio.generations import Current, Generations, Stamp
from reperio.protocols import Index, Served, Spec, Trainable
from reperio.registry import build, resolve

Still: TypeAlias = Callable[[], AbstractContextManager[None]]
"""Keeps an index from being changed."""

CHUNK = 4096
"""Rows read from the store at a time while an index replays: the bound on its memory beside the index itself."""

_LOST = (CorruptArtifact, NewerFormat, NotFound)
"""Of a checkpoint that does not serve any more; whatever else keeps it from being read is told, and nothing rebuilt."""


class SnapshotTooOld(Exception):
    """A checkpoint is ahead of the snapshot that the store is read in: take another snapshot.

    Attributes
    ----------
    derived
        Whose.
    seq
        Where the checkpoint is.
    """

    def __init__(self, derived: DerivedIndex, seq: int) -> None:
        super().__init__(f"{derived.folder} is at {seq}")
        self.derived = derived
        self.seq = seq


class Log(Protocol):
    """What an index replays: the store, seen from one signal."""

    uuid: str

    @property
    def seq(self) -> int: ...
    @property
    def floor(self) -> int: ...
    @property
    def writable(self) -> bool: ...
    def snapshot(self) -> AbstractContextManager[int]: ...
    def count(self) -> int: ...
    def matching(self, condition: None, /) -> IdSet: ...
    def added_since(self, seq: int, /) -> Ids: ...
    def removed_since(self, seq: int, /) -> Ids: ...


@dataclass(slots=True)
class Beside:
    """An index that is made ready beside the one in use.

    Attributes
    ----------
    index, spec
        What it is, and what a rebuild would build.
    keeps
        Whether the one in use stays, to be rolled back to.
    seq
        The commit that it is at.
    name, born
        Its generation and the first that held it, when it is on disk.
    saved
        Where that generation is.
    dead
        Rows taken away since it was built.
    documents
        How many the store had when that generation was saved, where that is known.
    """

    index: Index[Any]
    spec: Spec
    keeps: bool
    seq: int = 0
    name: str | None = None
    born: str | None = None
    saved: int = -1
    dead: int = 0
    documents: int | None = None


def replay(log: Log, embed: Callable[[Ids], Any], index: Index[Any], since: int) -> tuple[int, int, int]:
    """Bring an index from one commit to the last.

    Returns
    -------
    tuple of int
        The last commit's number, which others may pass meanwhile; how many rows were added, how many taken away.
    """
    with log.snapshot() as seq:
        removed, added = log.removed_since(since), log.added_since(since)
    taken = index.remove(removed) if len(removed) else 0
    _train(index, embed, added)
    for start in range(0, len(added), CHUNK):
        rows = added[start : start + CHUNK]
        index.add(rows, embed(rows))
    return seq, len(added), taken


def _train(index: object, embed: Callable[[Ids], Any], added: Ids) -> None:
    """Learn from a random sample: the first rows of an ordered corpus are not like the rest."""
    if _learns(index) and 0 < index.training_size <= len(added):
        sample = np.sort(np.random.default_rng(0).choice(added, index.training_size, replace=False))
        index.train(embed(sample))


def _learns(index: object) -> TypeGuard[Trainable[Any]]:
    return isinstance(index, Trainable)


class DerivedIndex:
    """One signal's index, its checkpoints, and how far it has replayed.

    Parameters
    ----------
    folder
        ``indexes/<signal>``.
    log
        The store.
    embed
        Rows → their embeddings, in order.
    spec
        What to build where there is no checkpoint.
    fingerprint
        Digest of the encoder; a checkpoint of another is not used.
    """

    def __init__(self, folder: Path, log: Log, embed: Callable[[Ids], Any], *, spec: Spec, fingerprint: str) -> None:
        self.folder = folder
        self.seq = 0
        self.saved = -1
        self.replayed = 0
        self._log = log
        self._embed = embed
        self._fingerprint = fingerprint
        self._generations = Generations(folder, spec)
        self._stamp: Stamp | None = None
        self._born: str | None = None
        self._taken = 0
        self._ahead_of_all: Stamp | None = None
        self._index: Index[Any] | None = None

    @property
    def index(self) -> Index[Any]:
        """The index as far as it has caught up; loaded on first use."""
        if self._index is None:
            self.catch_up()
        assert self._index is not None
        return self._index

    @property
    def spec(self) -> Spec:
        """What a rebuild would build."""
        return self._generations.current().spec

    @property
    def behind(self) -> bool:
        """Whether the index is not loaded, or not at the store's last commit."""
        return self._stale() or (self.seq < self._log.seq and self.follows)

    @property
    def follows(self) -> bool:
        """Whether this process brings the index forward: everyone its own, the writer alone one on a server."""
        return self._log.writable or not isinstance(self._index, Served)

    def _stale(self) -> bool:
        if self._index is None or self.seq < self._log.floor:
            return True
        stamp = self._generations.stamp()
        return stamp != self._stamp and not self._is_this(stamp)

    def _is_this(self, stamp: Stamp) -> bool:
        """Whether ``CURRENT`` names but a later checkpoint of the index held, which then need not be read again."""
        name = self._generations.current().generation
        if name is None or isinstance(self._index, Served):
            return False
        try:
            meta = self._generations.meta(name)
        except (OSError, NotFound):
            return False
        if meta["born"] != self._born:
            return False
        self._stamp, self.saved = stamp, int(meta["seq"])
        return True

    def catch_up(self) -> None:
        """Replay what the store has committed since; load or rebuild first where needed.

        Raises
        ------
        SnapshotTooOld
            If a writer has checkpointed since the store's snapshot was taken.
        ServerUnavailable
            If the index is on a server that does not answer: nothing is rebuilt elsewhere.
        StorageError
            If a checkpoint cannot be read, and is not damaged: no more files may be opened, say.
        """
        if self._stale():
            self._load()
        if self.seq < self._log.seq and self._index is not None and self.follows:
            try:
                self.seq, added, taken = replay(self._log, self._embed, self._index, self.seq)
            except BaseException:  # which may have come in the middle of a change, as Ctrl-C does
                if not isinstance(self._index, Served):
                    self.forget()
                raise
            self.replayed += added
            self._taken += taken

    def _load(self) -> None:
        try:
            self._load_current()
        except BaseException:  # what CURRENT names is still to be loaded
            self._stamp = None
            raise

    def _load_current(self) -> None:
        for _ in range(3):  # a writer may remove the generation that CURRENT named a moment ago
            self._stamp = self._generations.stamp()
            current = self._generations.current()
            if current.generation is not None:
                try:
                    loaded = self._open(current.generation, current.spec)
                except _LOST:  # or removed while it was being read
                    if self._stamp != self._generations.stamp():
                        continue
                else:
                    self._evict(loaded)
                    self._use(loaded)
                    return
            break
        current = self._generations.current()
        fresh: Index[Any] = build(current.spec)
        self._use(Beside(fresh, current.spec, keeps=True))
        self.replayed = 0
        if isinstance(fresh, Served):
            if not self._log.writable:
                problem = f"The index of {self.folder.name} is on a server that no checkpoint names."
                raise StorageError(problem, "Open the collection for writing once, where it was written.")
            # Where the rows will be is known before there are any: a crash leaves none that nobody knows of.
            try:
                self._write(keep=current.previous)
            except BaseException:
                self.forget()
                raise

    def _use(self, beside: Beside) -> None:
        self._index, self.seq, self.saved = beside.index, beside.seq, beside.saved
        self._born, self._taken = beside.born, beside.dead

    def _evict(self, beside: Beside) -> None:
        """Take away rows that the store does not have: others wrote them, or the store was restored from a backup."""
        index = beside.index
        if self._log.writable if isinstance(index, Served) else beside.documents not in (None, len(index)):
            with self._log.snapshot():
                strangers = np.setdiff1d(index.ids, self._log.matching(None), assume_unique=True)
            if len(strangers):
                index.remove(strangers)
                beside.saved = -1  # to be saved without them

    def _open(self, name: str, spec: Spec) -> Beside:
        where = self.folder / name
        with loading(where, "generation"):
            meta = self._generations.meta(name, checksums=True)
            if meta["store"] != self._log.uuid or meta["fingerprint"] != self._fingerprint:
                raise CorruptArtifact(f"{where} was made for another collection.", "Rebuild it.")
            if meta["seq"] > self._log.seq and self._ahead_of_all != self._stamp:
                raise SnapshotTooOld(self, meta["seq"])
            if not self._log.floor <= meta["seq"] <= self._log.seq:
                raise CorruptArtifact(f"{where} cannot be replayed from {meta['seq']}.", "Rebuild it.")
            if meta["spec"] != dict(spec):
                raise CorruptArtifact(f"{where} is another kind of index.", "Rebuild it.")
            seq, born, dead = int(meta["seq"]), meta["born"], int(meta.get("dead", 0))
            index, documents = self._generations.load(name), meta.get("documents")
            if documents is not None and not isinstance(index, Served) and len(index) < documents:
                raise CorruptArtifact(f"{where} holds {len(index)} of {documents} documents.", "Rebuild it.")
            found = Beside(index, spec, keeps=True, seq=seq, name=name, born=born, saved=seq, dead=dead)
            found.documents = documents
            return found

    def distrust(self) -> None:
        """What ``CURRENT`` names is ahead of all that the store has: the store was restored from a backup."""
        self._ahead_of_all = self._generations.stamp()

    def forget(self) -> None:
        """Have the index read again when it is next used."""
        self._index = None

    @property
    def loaded(self) -> bool:
        """Whether it is in use, not only on disk."""
        return self._index is not None

    @property
    def dead(self) -> int:
        """Rows taken away since the index was built, of an index that keeps their room until it is built anew."""
        return self._taken if hasattr(self._index, "compact") else 0

    @property
    def generations(self) -> Mapping[str, int]:
        """Bytes on disk of each saved state: the one in use and the one to roll back to."""
        return self._generations.sizes()

    @property
    def served(self) -> bool:
        """Whether its rows are on a server, for which one process replays."""
        return hasattr(resolve(self.spec["type"]), "address")

    def leave(self) -> None:
        """A reader leaves the folder as it is."""

    # Saving and switching

    def checkpoint(self, still: Still = nullcontext) -> bool:
        """Write a new generation of the index as it is, and switch to it; False if there is nothing to write.

        Searches may go on meanwhile. ``still`` keeps the index from being changed, while its files are filled and
        while the generation is put in use; not while they go to the disk, nor while a server settles its rows.
        """
        # A checkpoint is the same index further on: what can be rolled back to stays what it was.
        return self._write(keep=self._generations.current().previous, still=still)

    def _write(self, *, keep: str | None, still: Still = nullcontext) -> bool:
        if self.saved != self.seq:
            self._settle(self._index)  # may take minutes
        with ExitStack() as held:
            held.enter_context(still())
            index, seq, born = self._index, self.seq, self._born
            if index is None or self.saved == seq:
                return False
            spec = self._generations.current().spec
            name = self._save(index, seq, spec, {"born": born, "dead": self._taken}, held.close)
        with still():
            if self._index is not index:  # built anew meanwhile: others have compacted away what it had to replay
                self._abandon(name)
                return False
            try:
                self._stamp = self._generations.use(Current(spec, name, keep))
            except BaseException:
                self._abandon(name)
                raise
            self.saved, self._born = seq, born or name
        self._generations.prune(name, keep)
        return True

    def _save(
        self,
        index: Index[Any],
        seq: int,
        spec: Spec,
        history: Mapping[str, Any],
        filled: Callable[[], None] = lambda: None,
    ) -> str:
        with self._log.snapshot() as now:  # what a reader counts, to know an index that holds others
            documents = self._log.count() if now == seq else None
        meta = {"store": self._log.uuid, "fingerprint": self._fingerprint, "spec": dict(spec)}
        history = {"documents": documents, **history}
        known = {name: value for name, value in history.items() if value is not None}
        return self._generations.write(index, seq, {**meta, **known}, filled)

    def _settle(self, index: Index[Any] | None) -> None:
        """Have a server make quick to search what was added; it keeps changes and this apart."""
        if isinstance(index, Served):
            index.settle()

    def beside(self, index: Index[Any] | None) -> Beside:
        """Begin another index, empty; one of the same kind where None, which leaves nothing to roll back to."""
        spec = self.spec
        return Beside(build(spec), spec, keeps=False) if index is None else Beside(index, index.spec, keeps=True)

    def earlier(self) -> Beside:
        """The index before the last `reindex`, which a switch makes that to be rolled back to.

        Raises
        ------
        NotFound
            If there is none.
        """
        name = self._generations.current().previous
        if name is None:
            raise NotFound(f"{self.folder.name} has no earlier index to roll back to.", "Only a reindex makes one.")
        spec = self._generations.meta(name)["spec"]
        try:
            found = self._open(name, spec)
        except _LOST:  # or from before a purge: built anew
            return Beside(build(spec), spec, keeps=True)
        self._evict(found)
        return found

    def advance(self, beside: Beside, check: Callable[[], None] = lambda: None) -> None:
        """Bring it to the store's last commit. Searches of the one in use and commits go on; a purge must not.

        ``check`` is called before each chunk, and may raise to have it end.
        """

        def embed(rows: Ids) -> Any:
            check()
            return self._embed(rows)

        if beside.seq < self._log.seq:
            beside.seq, _, taken = replay(self._log, embed, beside.index, beside.seq)
            beside.dead += taken

    def keep(self, beside: Beside) -> None:
        """Save it."""
        if beside.name is None:
            self._settle(beside.index)
            beside.name = self._save(beside.index, beside.seq, beside.spec, {"dead": beside.dead})
            beside.saved, beside.born = beside.seq, beside.name

    def take(self, beside: Beside) -> None:
        """Switch to it; no search may be going on."""
        assert beside.name is not None
        current = self._generations.current()
        previous = current.generation if beside.keeps else current.previous
        self._stamp = self._generations.use(Current(beside.spec, beside.name, previous))
        self._use(beside)

    def discard(self, beside: Beside) -> None:
        """It will not be used."""
        if beside.name is not None and beside.born == beside.name:
            self._abandon(beside.name)

    def _abandon(self, name: str) -> None:
        """Remove a generation that nothing has come to name."""
        current = self._generations.current()
        if name not in (current.generation, current.previous):
            self._generations.abandon(name)

    def tidy(self) -> None:
        """Remove generations that are neither in use nor to roll back to."""
        current = self._generations.current()
        self._generations.prune(current.generation, current.previous)

    def problems(self) -> Iterator[str]:
        """What is wrong on disk; a checkpoint that does not verify costs a rebuild, never data."""
        return self._generations.problems()

    def size(self) -> int:
        """Bytes on disk, here and on a server."""
        return self._generations.size() + (self._index.size() if isinstance(self._index, Served) else 0)

    def clean(self) -> None:
        """Remove what a killed writer left, and what is ahead of a store that was restored from a backup."""
        current = self._generations.current()
        kept = [name if name and not self._ahead(name) else None for name in (current.generation, current.previous)]
        if kept != [current.generation, current.previous]:
            self._stamp = self._generations.use(Current(current.spec, kept[0], kept[1]))
        self._generations.prune(*kept)

    def _ahead(self, name: str) -> bool:
        try:
            return bool(self._generations.meta(name)["seq"] > self._log.seq)
        except (OSError, NotFound):
            return False
