"""An index as a cache that replays the store.

``indexes/<signal>/CURRENT`` names a generation, a folder beside it that holds the saved index and the sequence
number it has reached. Opening takes the newest generation that verifies and replays what the store has
committed since, or rebuilds. So nothing that happens to an index can lose data.

The rows of a `Served` index are on a server, and a generation only says where: the writer alone replays into it,
and what a generation names is dropped when no other names it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np

from reperio.artifacts import disk_errors, new_folder, read_folder, replace_text, sealed, unsealed
from reperio.embeddings import Ids, IdSet
from reperio.errors import CorruptArtifact, NewerFormat, NotFound, StorageError
from reperio.protocols import Index, Served, Spec, Trainable
from reperio.registry import build, resolve

CHUNK = 4096
"""Rows read from the store at a time while an index replays: the bound on its memory beside the index itself."""

KEPT = 2
"""Generations kept: the current one and the one to roll back to."""


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
    def matching(self, condition: None, /) -> IdSet: ...
    def added_since(self, seq: int, /) -> Ids: ...
    def removed_since(self, seq: int, /) -> Ids: ...


@dataclass(frozen=True, slots=True)
class Current:
    """Which generation is in use, and what a rebuild would build."""

    spec: Spec
    generation: str | None = None
    previous: str | None = None


def replay(log: Log, embed: Callable[[Ids], Any], index: Index[Any], since: int) -> tuple[int, int]:
    """Bring an index from one commit to the last.

    Returns
    -------
    tuple of int
        The last commit's number, which others may pass meanwhile, and how many rows were added.
    """
    with log.snapshot() as seq:
        removed, added = log.removed_since(since), log.added_since(since)
    if len(removed):
        index.remove(removed)
    _train(index, embed, added)
    for start in range(0, len(added), CHUNK):
        rows = added[start : start + CHUNK]
        index.add(rows, embed(rows))
    return seq, len(added)


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
        self._declared = spec
        self._fingerprint = fingerprint
        self._stamp: tuple[int, int] | None = None
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
        return self._current().spec

    @property
    def behind(self) -> bool:
        """Whether the index is not loaded, or not at the store's last commit."""
        return self._stale or (self.seq < self._log.seq and self._follows)

    @property
    def _follows(self) -> bool:
        """Whether this process brings the index forward: everyone its own, the writer alone one on a server."""
        return self._log.writable or not isinstance(self._index, Served)

    @property
    def _stale(self) -> bool:
        return self._index is None or self._stamp != self._stamp_of_current() or self.seq < self._log.floor

    def catch_up(self) -> None:
        """Replay what the store has committed since; load or rebuild first where needed."""
        if self._stale:
            self._load()
        if self.seq < self._log.seq and self._index is not None and self._follows:
            self.seq, added = replay(self._log, self._embed, self._index, self.seq)
            self.replayed += added

    def _load(self) -> None:
        for _ in range(3):  # a writer may remove the generation that CURRENT named a moment ago
            self._stamp = self._stamp_of_current()
            current = self._current()
            if current.generation is not None:
                try:
                    self._index, self.seq = self._open(current.generation, current.spec)
                except (OSError, NotFound):  # damaged, newer, or removed while it was being read
                    if self._stamp != self._stamp_of_current():
                        continue
                else:
                    self.saved = self.seq
                    self._evict(self._index)
                    return
            break
        current = self._current()
        fresh: Index[Any] = build(current.spec)
        self._index, self.seq, self.saved, self.replayed = fresh, 0, -1, 0
        if isinstance(fresh, Served):
            if not self._log.writable:
                problem = f"The index of {self.folder.name} is on a server that no checkpoint names."
                raise StorageError(problem, "Open the collection for writing once, where it was written.")
            # Where the rows will be is known before there are any: a crash leaves none that nobody knows of.
            self._switch(fresh, 0, current.spec, previous=current.previous)

    def _evict(self, index: Index[Any]) -> None:
        """Take away rows that the store does not have: others wrote them, or the store was restored from a backup."""
        if isinstance(index, Served) and self._log.writable:
            with self._log.snapshot():
                strangers = np.setdiff1d(index.ids, self._log.matching(None), assume_unique=True)
            if len(strangers):
                index.remove(strangers)

    def _open(self, name: str, spec: Spec) -> tuple[Index[Any], int]:
        meta = read_folder(self.folder / name, "generation")
        if meta["store"] != self._log.uuid or meta["fingerprint"] != self._fingerprint:
            raise CorruptArtifact(f"{self.folder / name} was made for another collection.", "Rebuild it.")
        if not self._log.floor <= meta["seq"] <= self._log.seq:
            raise CorruptArtifact(f"{self.folder / name} cannot be replayed from {meta['seq']}.", "Rebuild it.")
        if meta["spec"] != dict(spec):
            raise CorruptArtifact(f"{self.folder / name} is another kind of index.", "Rebuild it.")
        opened: Index[Any] = resolve(meta["spec"]["type"]).open(self.folder / name / "index")
        return opened, int(meta["seq"])

    # Generations

    def _current(self) -> Current:
        try:
            data = unsealed((self.folder / "CURRENT").read_text(encoding="utf-8"))
            return Current(data["spec"], data["generation"], data["previous"])
        except FileNotFoundError:
            return Current(self._declared)
        except (ValueError, KeyError, TypeError):  # damaged: the newest generation says what it is itself
            for path in sorted(self._generations(), reverse=True):
                try:
                    return Current(read_folder(path, "generation", checksums=False)["spec"], path.name)
                except (OSError, NotFound):
                    continue
            return Current(self._declared)

    def _stamp_of_current(self) -> tuple[int, int]:
        try:
            found = (self.folder / "CURRENT").stat()
        except FileNotFoundError:
            return (0, 0)
        return (found.st_ino, found.st_mtime_ns)

    @property
    def transactional(self) -> bool:
        """Whether it is read in the store's own snapshot."""
        return False

    @property
    def served(self) -> bool:
        """Whether its rows are on a server, for which one process replays."""
        return hasattr(resolve(self.spec["type"]), "address")

    def leave(self) -> None:
        """A reader leaves the folder as it is."""

    def checkpoint(self) -> bool:
        """Write a new generation if the index has moved on, and switch to it; True if one was written."""
        self.catch_up()
        index = self.index
        if self.saved == self.seq:
            return False
        if isinstance(index, Served):
            index.settle()
        current = self._current()
        # A checkpoint is the same index further on: what can be rolled back to stays what it was.
        self._switch(index, self.seq, current.spec, previous=current.previous)
        return True

    def reindex(self, index: Index[Any]) -> None:
        """Fill another, empty index from the store beside the one in use, then switch to it."""
        if self._current().generation is None:  # there must be something to roll back to
            self.checkpoint()
        current = self._current()
        seq, _ = replay(self._log, self._embed, index, 0)
        if isinstance(index, Served):
            index.settle()
        self._switch(index, seq, index.spec, previous=current.generation)

    def rebuild(self) -> None:
        """Fill a fresh index of the same kind from the store and save it."""
        current = self._current()
        index: Index[Any] = build(current.spec)
        seq, _ = replay(self._log, self._embed, index, 0)
        if isinstance(index, Served):
            index.settle()
        self._switch(index, seq, current.spec, previous=current.previous)

    def rollback(self) -> None:
        """Switch back to the index before the last `reindex`; a second call undoes the first.

        Raises
        ------
        NotFound
            If there is none.
        """
        current = self._current()
        if current.previous is None:
            raise NotFound(f"{self.folder.name} has no earlier index to roll back to.", "Only a reindex makes one.")
        spec = read_folder(self.folder / current.previous, "generation")["spec"]
        self._write_current(Current(spec, current.previous, current.generation))
        self._index = None

    def _switch(self, index: Index[Any], seq: int, spec: Spec, *, previous: str | None) -> None:
        name = self._new_name(seq)
        meta = {"store": self._log.uuid, "fingerprint": self._fingerprint, "seq": seq, "spec": dict(spec)}
        with new_folder(self.folder / name, "generation", meta) as folder:
            index.save(folder / "index")
        self._write_current(Current(spec, name, previous))
        self._index, self.seq, self.saved = index, seq, seq  # before anything else can fail
        self._prune(name, previous)

    def _new_name(self, seq: int) -> str:
        taken = {path.name for path in self._generations()}
        return next(name for i in range(len(taken) + 1) if (name := f"{seq:012d}-{i}") not in taken)

    def _write_current(self, current: Current) -> None:
        data = {"generation": current.generation, "previous": current.previous, "spec": dict(current.spec)}
        replace_text(self.folder / "CURRENT", sealed(data))
        self._stamp = self._stamp_of_current()

    def _prune(self, *kept: str | None) -> None:
        past = [path for path in self._generations() if path.name not in kept]
        if past:
            self._drop(past, [path for path in self._generations() if path.name in kept])
        with disk_errors(self.folder):
            for path in past:
                shutil.rmtree(path)

    def _drop(self, past: Iterable[Path], kept: Iterable[Path]) -> None:
        """Take off their server the rows that no generation names any more; where in doubt, they stay."""
        try:
            named = {index.address for path in kept if (index := self._served(path)) is not None}
        except (OSError, NotFound):
            return
        for path in past:
            with suppress(OSError, NotFound):
                index = self._served(path)
                if index is not None and index.address not in named:
                    index.drop()

    def _served(self, path: Path) -> Served | None:
        """The index of a generation, if its rows are on a server."""
        kind = resolve(read_folder(path, "generation", checksums=False)["spec"]["type"])
        index = kind.open(path / "index") if hasattr(kind, "address") else None
        return index if isinstance(index, Served) else None

    def _generations(self) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from (path for path in sorted(self.folder.iterdir()) if path.is_dir())

    def problems(self) -> Iterator[str]:
        """What is wrong on disk; a checkpoint that does not verify costs a rebuild, never data."""
        current = self._current()
        for name in (current.generation, current.previous):
            if name is not None:
                try:
                    meta = read_folder(self.folder / name, "generation")
                    resolve(meta["spec"]["type"]).open(self.folder / name / "index")
                except (CorruptArtifact, NewerFormat, NotFound) as error:
                    yield f"indexes/{self.folder.name}: {error.problem}"

    def size(self) -> int:
        """Bytes on disk, here and on a server."""
        here = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        return here + (self._index.size() if isinstance(self._index, Served) else 0)

    def clean(self) -> None:
        """Remove what a killed writer left, and what is ahead of a store that was restored from a backup."""
        current = self._current()
        kept = [name if name and not self._ahead(name) else None for name in (current.generation, current.previous)]
        if kept != [current.generation, current.previous]:
            self._write_current(Current(current.spec, kept[0], kept[1]))
        self._prune(*kept)

    def _ahead(self, name: str) -> bool:
        try:
            return bool(read_folder(self.folder / name, "generation", checksums=False)["seq"] > self._log.seq)
        except (OSError, NotFound):
            return False
