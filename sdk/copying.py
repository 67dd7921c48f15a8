"""Documents and stored embeddings of one store, as they are, into another: an exact diff in bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np

from reperio.derived import SnapshotTooOld
from reperio.embeddings import Ids, IdSet
from reperio.errors import CorruptArtifact, NotFound, ReperioError
from reperio.opening import attach, place
from reperio.postgres import is_url
from reperio.protocols import Store
from reperio.signals import LiveSignal
from reperio.stores.rows import Entry

P = ParamSpec("P")
T = TypeVar("T")


class Frozen:
    """A collection at one commit, whatever its writer does meanwhile; nothing in it is changed.

    All of it is read on a thread of its own: a snapshot belongs to a thread, and that of a database would be seen
    in the target too, if both are in one.

    Attributes
    ----------
    store
        Ask it through `run`.
    signals
        By name.
    rows
        Of the live documents, in order of arrival.
    seq
        The commit.
    silent
        Why a signal's index cannot be asked, by name: it may be on a server that is gone.
    """

    def __init__(self, thread: ThreadPoolExecutor, path: Path | str, cache: Path | str | None) -> None:
        self._thread = thread
        self._held = ExitStack()
        self.run(self._open, path, cache)

    def _open(self, path: Path | str, cache: Path | str | None) -> None:
        try:
            found = place(path, mode="r", collection=None, cache=cache if is_url(path) else None)
        except NotFound as error:
            raise NotFound(error.problem, "Check the source's path or address.") from error
        self._held.callback(found.release)
        self.store: Store = found.store
        try:
            self.signals: dict[str, LiveSignal] = attach(found, None)
            while not self._stop():
                pass
        except BaseException:
            self._held.close()
            raise

    def _stop(self) -> bool:
        """Take a snapshot and the indexes at it; False if a checkpoint has overtaken it."""
        with ExitStack() as held:
            self.seq = held.enter_context(self.store.snapshot())
            self.rows: IdSet = self.store.matching(None)
            self.silent: dict[str, str] = {}
            for name, signal in self.signals.items():
                try:
                    signal.derived.catch_up()
                except SnapshotTooOld as error:
                    held.close()
                    self.store.refresh()
                    if self.store.seq < error.seq:
                        error.derived.distrust()
                    return False
                except ReperioError as error:
                    self.silent[name] = error.problem
            self._held.push(held.pop_all())
        return True

    def close(self) -> None:
        """Let it go on, and let go of its files."""
        self.run(self._held.close)
        for signal in self.signals.values():
            signal.derived.forget()

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call on the thread of the snapshot."""
        return self._thread.submit(call, *args, **kwargs).result()

    def chunks(self, signals: Mapping[int, LiveSignal], size: int) -> Iterator[tuple[Ids, list[Entry]]]:
        """Rows and entries, the next read while the caller works on one. See `read`."""
        ahead: Future[list[Entry]] | None = None
        starts = range(0, len(self.rows), size)
        for start in starts:
            rows = self.rows[start : start + size]
            reading = ahead or self._thread.submit(read, self.store, rows, signals)
            entries, following = reading.result(), self.rows[start + size : start + 2 * size]
            ahead = self._thread.submit(read, self.store, following, signals) if len(following) else None
            yield rows, entries


@contextmanager
def frozen(path: Path | str, cache: Path | str | None) -> Generator[Frozen]:
    """Hold a collection at one commit while the block lasts."""
    with ThreadPoolExecutor(1, thread_name_prefix="reperio-source") as thread:
        found = Frozen(thread, path, cache)
        try:
            yield found
        finally:
            found.close()


def read(store: Store, rows: Ids, signals: Mapping[int, LiveSignal]) -> list[Entry]:
    """Documents with their embeddings, as they were written.

    Parameters
    ----------
    store
        Holds both.
    rows
        Live documents.
    signals
        Those that store embeddings, by the number that each is to have in the entries.

    Raises
    ------
    CorruptArtifact
        If a document is not as it was written, or lacks an embedding.
    """
    documents = store.fetch(rows)
    known = store.known([document.id for document in documents])
    entries = [Entry.of(document) for document in documents]
    fix = f"Look with `reperio verify {store.location}`; mend it with an upsert of the document."
    for entry in entries:
        old = known.get(entry.document.id)
        if old is None or old.digest != entry.digest:
            raise CorruptArtifact(f"Document {entry.document.id!r} of {store.location} is not as it was written.", fix)
    for number, signal in signals.items():
        vectors = store.vectors(signal.number, rows)
        for row, entry in zip(rows.tolist(), entries, strict=True):
            if row not in vectors:
                problem = f"Document {entry.document.id!r} of {store.location} has no embedding for {signal.name!r}."
                raise CorruptArtifact(problem, fix)
            entry.vectors[number] = vectors[row]
    return entries


class Digest:
    """Stands for a set of documents with their embeddings, in whatever order they come.

    Parameters
    ----------
    names
        Of the signals, by their number in the entries.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = sorted(names.items(), key=lambda pair: pair[1])
        self._sum = 0

    def take(self, entries: Sequence[Entry]) -> None:
        """Count documents in: id, text, metadata, provenance, and all that is kept of their embeddings."""
        for entry in entries:
            hashed = hashlib.blake2b(digest_size=32)
            parts = [entry.document.id.encode(), entry.digest]
            for number, name in self._names:
                vector = entry.vectors[number]
                parts += [name.encode(), vector.value, repr((vector.tokens, vector.truncated)).encode()]
            for part in parts:
                hashed.update(len(part).to_bytes(8, "little") + part)
            self._sum += int.from_bytes(hashed.digest(), "little")

    def __str__(self) -> str:
        """64 hexadecimal digits."""
        return (self._sum % (1 << 256)).to_bytes(32, "little").hex()


def differing(store: Store, entries: Sequence[Entry]) -> Iterator[Entry]:
    """Entries that a store does not hold to the byte."""
    known = store.known([entry.document.id for entry in entries])
    rows: Ids = np.array([old.row for old in known.values()], dtype=np.int64)
    held = {number: store.vectors(number, rows) for number in (entries[0].vectors if entries else ())}
    for entry in entries:
        old = known.get(entry.document.id)
        same = old is not None and old.digest == entry.digest
        if old is None or not same or any(held[n].get(old.row) != vector for n, vector in entry.vectors.items()):
            yield entry


class Copy:
    """Entries into a store that may hold a part of them already.

    Attributes
    ----------
    added, unchanged, removed
        Documents so far.
    """

    def __init__(self, store: Store) -> None:
        self.added = self.unchanged = self.removed = 0
        self._store = store
        self._before = store.matching(None)
        self._seen: list[Ids] = []

    def take(self, entries: Sequence[Entry]) -> None:
        """Commit what is not there to the byte."""
        known = self._store.known([entry.document.id for entry in entries])
        new = list(differing(self._store, entries))
        for entry in new:
            self._store.check(entry)
        replaced = [known[entry.document.id].row for entry in new if entry.document.id in known]
        if new:
            self._store.commit(new, np.array(replaced, dtype=np.int64))
        self._seen.append(np.array([old.row for old in known.values()], dtype=np.int64))
        self.added += len(new)
        self.unchanged += len(entries) - len(new)

    def finish(self, size: int) -> None:
        """Take away what was there and did not come; forget old versions."""
        gone = np.setdiff1d(self._before, np.concatenate([np.empty(0, np.int64), *self._seen]))
        for start in range(0, len(gone), size):
            self._store.commit([], gone[start : start + size])
        self.removed += len(gone)
        if self._store.dead():
            self._store.purge()
