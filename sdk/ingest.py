"""Upserting as an exact diff: what is unchanged is neither written nor encoded again, whatever the batch size."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from reperio import meter
from reperio.embeddings import Dense, Ids, check_dense, to_bytes
from reperio.errors import ConfigurationError, DuplicateId, InvalidInput, ReperioError
from reperio.protocols import Store
from reperio.signals import LiveSignal
from reperio.stores.rows import Entry, Known, Vector, check
from reperio.types import Document


@dataclass(frozen=True, slots=True)
class UpsertReport:
    """What an upsert did.

    Attributes
    ----------
    added, updated, unchanged
        Documents.
    encoded
        Texts encoded, by signal; embeddings that were stored before are used again and do not count.
    truncated
        Of these, texts longer than the model reads, by signal.
    seq
        Sequence number after the last commit.
    """

    added: int
    updated: int
    unchanged: int
    encoded: Mapping[str, int]
    truncated: Mapping[str, int]
    seq: int


@dataclass(slots=True)
class _Tally:
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    encoded: Counter[str] = field(default_factory=Counter[str])
    truncated: Counter[str] = field(default_factory=Counter[str])


class Upsert:
    """One call of ``Collection.upsert``.

    Parameters
    ----------
    store
        Where documents go.
    signals
        The signals whose embeddings are stored.
    given
        Vectors brought by the caller, by signal, one row for each document.
    batch_size
        Documents in one commit: the most that a kill can cost, and the bound on memory.
    """

    def __init__(
        self,
        store: Store,
        signals: Sequence[LiveSignal],
        *,
        given: Mapping[str, Dense] | None = None,
        batch_size: int = 512,
    ) -> None:
        if batch_size <= 0:
            raise ConfigurationError(f"batch_size is {batch_size}.", "Use 1 or more.")
        self._store = store
        self._signals = [signal for signal in signals if signal.stored]
        self._given = {name: np.asarray(vectors) for name, vectors in (given or {}).items()}
        self._batch_size = batch_size
        self._tally = _Tally()
        unknown = self._given.keys() - {signal.name for signal in self._signals}
        if unknown:
            known = ", ".join(signal.name for signal in self._signals) or "none"
            raise InvalidInput(f"No signal {sorted(unknown)[0]!r} stores vectors.", f"Signals that do: {known}.")

    def run(self, documents: Iterable[Document], *, progress: bool | None) -> UpsertReport:
        """Commit batch by batch; what a commit acknowledged stays, whatever happens later."""
        if isinstance(documents, Sequence):
            self._check_whole(documents)
        elif self._given:
            raise InvalidInput("Vectors were given for an iterator of documents.", "Give the documents as a list.")
        total = len(documents) if isinstance(documents, Sequence) else None
        hide = None if progress is None else not progress
        with _each_once() as repeated, tqdm(total=total, unit="doc", disable=hide) as bar:
            for start, batch in _batches(documents, self._batch_size):
                again = repeated([document.id for document in batch])
                if again:
                    raise DuplicateId(f"The id {again[0]!r} occurs twice.", "Give each document an id of its own.")
                self._commit(batch, start)
                bar.update(len(batch))
        t = self._tally
        return UpsertReport(t.added, t.updated, t.unchanged, dict(t.encoded), dict(t.truncated), self._store.seq)

    def _check_whole(self, documents: Sequence[Document]) -> None:
        """Refuse a list with anything wrong in it before the first commit."""
        if isinstance(documents, str):
            raise InvalidInput("The documents are a bare string.", "Give a list of Document.")
        _check_batch(documents, 0)
        for document in documents:
            self._store.check(Entry.of(document))
        for signal in self._signals:
            vectors = self._given.get(signal.name)
            if vectors is not None:
                check_dense(vectors[:0], what=f"embeddings[{signal.name!r}]", dim=signal.fingerprint.dim)
                if len(vectors) != len(documents):
                    problem = f"{len(vectors)} vectors were given to {signal.name!r} for {len(documents)} documents."
                    raise InvalidInput(problem, "Give one row for each document, in the same order.")
                for start in range(0, len(vectors), 8192):
                    part = vectors[start : start + 8192]
                    what = f"embeddings[{signal.name!r}] from row {start}"
                    check_dense(part, what=what, dim=signal.fingerprint.dim)

    def _commit(self, batch: Sequence[Document], start: int) -> None:
        with self._store.writing:  # what is known must still be so when it is written
            self._diff(batch, start)

    def _diff(self, batch: Sequence[Document], start: int) -> None:
        known = self._store.known([document.id for document in batch])
        given = {s.number: self._vectors(s, start, len(batch)) for s in self._signals if s.name in self._given}
        held = {number: self._held(number, known) for number in given}
        entries: list[Entry] = []
        removed: list[int] = []
        same: dict[int, Entry] = {}
        for i, document in enumerate(batch):
            entry, old = Entry.of(document), known.get(document.id)
            self._store.check(entry)
            for number, vectors in given.items():
                entry.vectors[number] = vectors[i]
            if old is not None and old.digest == entry.digest and _same_vectors(entry, old, held):
                self._tally.unchanged += 1
                continue
            if old is not None:
                removed.append(old.row)
                if old.text_hash == entry.text_hash:
                    same[old.row] = entry
            entries.append(entry)
        self._carry(same)
        for signal in self._signals:
            self._fill(signal, [entry for entry in entries if signal.number not in entry.vectors])
        if entries:
            self._store.commit(entries, np.array(removed, dtype=np.int64))
        self._tally.updated += len(removed)
        self._tally.added += len(entries) - len(removed)

    def _carry(self, entries: Mapping[int, Entry]) -> None:
        """A document with the same text keeps its embeddings, also those that were given."""
        rows: Ids = np.array(list(entries), dtype=np.int64)
        for signal in self._signals:
            for row, vector in self._store.vectors(signal.number, rows).items():
                entries[row].vectors.setdefault(signal.number, vector)

    def _vectors(self, signal: LiveSignal, start: int, count: int) -> list[Vector]:
        part = np.asarray(self._given[signal.name][start : start + count], dtype=np.float32)
        return [Vector(value) for value in to_bytes(part)]

    def _held(self, number: int, known: Mapping[str, Known]) -> dict[int, Vector]:
        rows: Ids = np.array([k.row for k in known.values()], dtype=np.int64)
        return self._store.vectors(number, rows)

    def _fill(self, signal: LiveSignal, entries: Sequence[Entry]) -> None:
        """Embeddings for new texts: used again where the same text was encoded before, encoded otherwise."""
        texts = {entry.text_hash: entry.document.text for entry in entries}
        found = self._store.reusable(signal.number, texts)
        new = {hashed: text for hashed, text in texts.items() if hashed not in found}
        if new:
            try:
                found.update(zip(new, signal.encode(list(new.values())), strict=True))
            except ReperioError as error:
                first = next(entry.document.id for entry in entries if entry.text_hash in new)
                error.add_note(f"While encoding {len(new)} texts for {signal.name!r}, from document {first!r} on.")
                raise
            self._tally.encoded[signal.name] += len(new)
            meter.count("encoded", len(new))
        for entry in entries:
            entry.vectors[signal.number] = found[entry.text_hash]
            if entry.text_hash in new and found[entry.text_hash].truncated:
                self._tally.truncated[signal.name] += 1


def _same_vectors(entry: Entry, old: Known, held: Mapping[int, Mapping[int, Vector]]) -> bool:
    return all(old.row in rows and rows[old.row].value == entry.vectors[n].value for n, rows in held.items())


def _batches(documents: Iterable[Document], size: int) -> Iterator[tuple[int, list[Document]]]:
    stream, start = iter(documents), 0
    while batch := list(islice(stream, size)):
        _check_batch(batch, start)
        yield start, batch
        start += len(batch)


def _check_batch(batch: Sequence[Any], start: int) -> None:
    seen: dict[str, int] = {}
    for i, item in enumerate(batch, start):
        name = check(item, i).id
        if name in seen:
            problem = f"The id {name!r} occurs twice: as document {seen[name]} and as document {i}."
            raise DuplicateId(problem, "Give each document an id of its own.")
        seen[name] = i


@contextmanager
def _each_once() -> Generator[Callable[[Sequence[str]], list[str]]]:
    """Give a function that returns the ids of a batch seen before, on disk where they are many."""
    # A private database: the ids of a stream may not fit in memory, and must not touch the collection.
    with closing(sqlite3.connect("", isolation_level=None)) as seen:
        seen.execute("CREATE TABLE seen (id TEXT PRIMARY KEY) WITHOUT ROWID")

        def repeated(ids: Sequence[str]) -> list[str]:
            batch = json.dumps(ids)
            found = seen.execute("SELECT id FROM seen WHERE id IN (SELECT value FROM json_each(?))", (batch,))
            out = [name for (name,) in found]
            seen.execute("INSERT OR IGNORE INTO seen SELECT value FROM json_each(?)", (batch,))
            return out

        yield repeated
