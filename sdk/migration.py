"""Moving a collection: from a folder to a database or back, or to other indexes, with nothing encoded again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from reperio.agreement import QUERIES, Agreement, Sample, ask, named
from reperio.choosing import Given, choose
from reperio.collection import Collection
from reperio.copying import Copy, Digest, Frozen, differing, frozen, read
from reperio.drafts import draft
from reperio.embeddings import Ids
from reperio.errors import ConfigurationError, NotFound
from reperio.opening import Place, attach, place
from reperio.postgres import is_url
from reperio.protocols import Spec, Store
from reperio.registry import build
from reperio.signals import LiveSignal

RECALL = 0.9
"""The least that an approximate index of the target must find, if the source's does."""


@dataclass(frozen=True, slots=True)
class MovedSignal:
    """What became of one signal.

    Attributes
    ----------
    source, target
        Its index, on both sides.
    embeddings
        Stored, and moved to the byte; 0 where the index encodes the texts itself.
    truncated
        Of these, how many are of a text that was cut.
    agreement
        How searches agree; None where there is no document to ask for.
    """

    source: Spec
    target: Spec
    embeddings: int
    truncated: int
    agreement: Agreement | None


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What `migrate` did and found.

    Attributes
    ----------
    source, target
        Where both are.
    seq
        The commit of the source that the target holds.
    documents
        Of the source at that commit.
    added, unchanged, removed
        In this call: written, found there from a call that was cut short, taken away because the source has them no
        more.
    digests
        Over id, text, metadata, provenance and stored embeddings of every document, of source and target.
    signals
        By name.
    problems
        What does not agree; empty where the target is in place.
    unfinished
        Where the copy is, if there is a problem.
    """

    source: str
    target: str
    seq: int
    documents: int
    added: int
    unchanged: int
    removed: int
    digests: tuple[str, str]
    signals: Mapping[str, MovedSignal]
    problems: tuple[str, ...]
    unfinished: str | None

    @property
    def ok(self) -> bool:
        """Whether the target is in place and agrees in everything."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"ok": self.ok, **asdict(self)}


def migrate(
    source: Path | str,
    target: Path | str,
    *,
    indexes: Mapping[str, Given] | None = None,
    without: Sequence[str] = (),
    recall: float = RECALL,
    batch_size: int = 512,
    cache: Path | str | None = None,
    progress: bool | None = None,
) -> MigrationReport:
    """Copy a collection to another place or other indexes, compare the two, and put the copy in its place.

    The source is read as of one commit, and never changed; who writes it meanwhile is not disturbed. Documents,
    embeddings and the signals' settings are moved as they are, with no model loaded. The target is written under
    another name and gets its own when all of it is there and agrees: until then there is none. A call that was cut
    short is taken up by the next one: what was copied and is still so is not copied again, and what the source no
    longer has goes. A target that is there already is never changed: it is compared where it holds the same, else
    refused.

    Parameters
    ----------
    source, target
        Folders, or addresses ``postgresql://…#name``.
    indexes
        For a signal, another index than it has: an empty index, its specification, the name of its class, or a FAISS
        factory string.
    without
        Signals to leave behind.
    recall
        The least share of the best hits that an approximate index of the target must find, if the source's finds it.
    batch_size
        Documents in one commit: the most that a kill can cost, and the bound on memory beside the indexes.
    cache
        As in `Collection.open`, for those in a database.
    progress
        Whether to show a bar; where None, on a terminal.

    Returns
    -------
    MigrationReport
        With ``problems`` where the copy does not agree; it is kept then, under the other name, for the next call.

    Raises
    ------
    NotFound
        If there is no source.
    ConfigurationError
        Source and target are one; the target is something else; an unknown signal; an index that cannot hold it.
    InvalidInput
        If the target cannot hold a document.
    WriterBusy
        If another process is migrating to this target.
    CorruptArtifact
        If a document of the source is not as it was written.
    DiskFull, ServerUnavailable, ReadOnly
    """
    if batch_size <= 0:
        raise ConfigurationError(f"batch_size is {batch_size}.", "Use 1 or more.")
    if not 0 <= recall <= 1:
        raise ConfigurationError(f"recall is {recall}.", "Use a share from 0 to 1.")
    if not is_url(source) and not is_url(target):
        _check_apart(Path(source), Path(target))
    with frozen(source, cache) as origin:
        chosen = origin.run(choose, origin.signals, indexes or {}, without, rows=origin.rows[:3], hosted=is_url(target))
        move = _Move(origin, chosen, recall=recall, batch_size=batch_size, progress=progress)
        try:
            there = place(target, mode="r", collection=None, cache=cache if is_url(target) else None)
        except NotFound:
            return move.to(target, cache)
        try:
            return move.compared(there)
        finally:
            there.release()


def _check_apart(source: Path, target: Path) -> None:
    a, b = Path(os.path.realpath(source)), Path(os.path.realpath(target))  # of a link to itself, no error
    if a == b or a in b.parents:
        raise ConfigurationError(f"The target {target} is the source, or inside it.", "Choose another place.")


class _Move:
    """One call of `migrate`.

    Parameters
    ----------
    origin
        The source.
    chosen
        Specification of each signal's index in the target.
    recall, batch_size, progress
        See `migrate`.
    """

    def __init__(
        self, origin: Frozen, chosen: dict[str, Spec], *, recall: float, batch_size: int, progress: bool | None
    ) -> None:
        self._origin = origin
        self._chosen = chosen
        self._recall = recall
        self._size = batch_size
        self._hide = None if progress is None else not progress
        self._samples = origin.run(self._sampled)
        self._digests: list[str] = []

    def to(self, target: Path | str, cache: Path | str | None) -> MigrationReport:
        """Fill a draft of the target, compare it, and put it in place if all is well."""
        drafted = draft(target, cache)
        there = drafted.place
        try:
            self._declare(there.store)
            signals = attach(there, None)
            collection = Collection(there, signals)
            for name, signal in signals.items():
                signal.derived.clean()
                if dict(signal.derived.spec) != dict(self._chosen[name]):
                    collection.reindex(name, build(self._chosen[name]))
            copied = Copy(there.store)
            self._stream(signals, copied)
            copied.finish(self._size)
            collection.checkpoint()
            problems, agreements = self._check(there, signals, collection)
            report = self._report(there.store, drafted.location, signals, copied, (problems, agreements))
            if report.ok:
                drafted.put()
            return report
        finally:
            there.release()

    def compared(self, there: Place) -> MigrationReport:
        """Compare a collection that is at the target already, and change nothing.

        Raises
        ------
        ConfigurationError
            If it holds anything else than the source.
        """
        store, origin = there.store, self._origin
        if store.uuid == origin.store.uuid:
            raise ConfigurationError(f"The target {store.location} is the source, or a copy of it.", "Choose another.")
        count = store.count()
        other = f"The target {store.location} is there already, and"
        if count != len(origin.rows) or store.signals().keys() != self._chosen.keys():
            problem = f"{other} holds {count} documents that are not those of {origin.store.location}."
            raise ConfigurationError(problem, "Choose another target, or delete it first.")
        signals = attach(there, None)
        for name, signal in signals.items():
            if dict(signal.derived.spec) != dict(self._chosen[name]):
                problem = f"{other} its signal {name!r} has another index: {dict(signal.derived.spec)}."
                raise ConfigurationError(problem, f"Switch with Collection.reindex({name!r}, index).")
            if signal.fingerprint.differences(origin.signals[name].fingerprint):
                raise ConfigurationError(f"{other} its signal {name!r} has another encoder.", "Choose another target.")
        self._stream(signals, None)
        problems, agreements = self._check(there, signals, Collection(there, signals))
        if self._digests[0] != self._digests[1]:
            problem = f"{other} its documents are not those of {origin.store.location}: {problems[0]}."
            raise ConfigurationError(problem, "Choose another target, or delete it first.")
        return self._report(store, store.location, signals, None, (problems, agreements))

    # Filling

    def _declare(self, store: Store) -> None:
        """Write the signals' settings, or check that a draft is of the same migration."""
        origin = self._origin
        known = store.signals()
        if not known:
            configs = origin.run(origin.store.signals)
            where = {"uuid": origin.store.uuid, "location": origin.store.location}
            declared = {
                name: {**configs[name][1], "index": dict(spec), "origin": where} for name, spec in self._chosen.items()
            }
            store.declare(declared)
            return
        of = next(iter(known.values()))[1].get("origin", {})
        if of.get("uuid") != origin.store.uuid or known.keys() != self._chosen.keys():
            what = f"a migration from {of.get('location')} with the signals {', '.join(known)}"
            problem = f"{store.location} holds {what} that was not finished."
            raise ConfigurationError(problem, "Finish that one, or delete what it left there.")

    def _stream(self, signals: Mapping[str, LiveSignal], copied: Copy | None) -> None:
        """Read the whole source once: into the copy, the digest, and the exact scans."""
        origin = self._origin
        stored = {s.number: origin.signals[name] for name, s in signals.items() if s.stored}
        digest = Digest({number: signal.name for number, signal in stored.items()})
        with tqdm(total=len(origin.rows), unit="doc", desc="copying", disable=self._hide) as bar:
            for rows, entries in origin.chunks(stored, self._size):
                digest.take(entries)
                for number, signal in stored.items():
                    if signal.name in self._samples:
                        self._samples[signal.name].see(rows, [entry.vectors[number].value for entry in entries])
                if copied is not None:
                    copied.take(entries)
                bar.update(len(entries))
        self._digests = [str(digest)]

    # Comparing

    def _sampled(self) -> dict[str, Sample]:
        """Documents from all over the source, to ask both sides for."""
        origin, rows = self._origin, self._origin.rows
        if not len(rows):
            return {}
        some = np.unique(rows[np.linspace(0, len(rows) - 1, QUERIES).astype(np.int64)])
        texts = origin.store.texts(some)
        return {
            name: Sample(origin.signals[name], some, texts, silent=origin.silent.get(name)) for name in self._chosen
        }

    def _check(
        self, there: Place, signals: Mapping[str, LiveSignal], collection: Collection
    ) -> tuple[list[str], dict[str, Agreement]]:
        """Counts, digests, the target's own check, and searches."""
        problems: list[str] = []
        with there.store.snapshot():
            rows = there.store.matching(None)
            if len(rows) != len(self._origin.rows):
                problems.append(f"the target holds {len(rows)} documents, the source {len(self._origin.rows)}")
            self._digests.append(self._digested(there.store, rows, signals))
        if self._digests[0] != self._digests[1]:
            problems.append(f"the digests differ{self._where(there.store, signals)}")
        problems += collection.verify().problems
        if problems:  # searches over other documents say nothing
            return problems, {}
        agreements = {name: self._agreement(there.store, signals[name]) for name in self._samples}
        problems += [f"{name}: {found.problem}" for name, found in agreements.items() if found.problem is not None]
        return problems, agreements

    def _where(self, store: Store, signals: Mapping[str, LiveSignal]) -> str:
        """The first document that differs."""
        stored = {s.number: self._origin.signals[name] for name, s in signals.items() if s.stored}
        for _, entries in self._origin.chunks(stored, self._size):
            for entry in differing(store, entries):
                return f": document {entry.document.id!r} is not the same"
        return ""

    def _digested(self, store: Store, rows: Ids, signals: Mapping[str, LiveSignal]) -> str:
        stored = {signal.number: signal for signal in signals.values() if signal.stored}
        digest = Digest({number: signal.name for number, signal in stored.items()})
        with tqdm(total=len(rows), unit="doc", desc="comparing", disable=self._hide) as bar:
            for start in range(0, len(rows), self._size):
                entries = read(store, rows[start : start + self._size], stored)
                digest.take(entries)
                bar.update(len(entries))
        return str(digest)

    def _agreement(self, store: Store, signal: LiveSignal) -> Agreement:
        sample, origin = self._samples[signal.name], self._origin
        with store.snapshot():
            found = ask(signal, sample.queries)
            names = named(store, found.ids)
        return origin.run(sample.judge, origin.store, names, found.scores, signal.index, least=self._recall)

    def _report(
        self,
        store: Store,
        location: str,
        signals: Mapping[str, LiveSignal],
        copied: Copy | None,
        found: tuple[Sequence[str], Mapping[str, Agreement]],
    ) -> MigrationReport:
        problems, agreements = found
        origin, count = self._origin, len(self._origin.rows)
        return MigrationReport(
            source=origin.store.location,
            target=location,
            seq=origin.seq,
            documents=count,
            added=copied.added if copied else 0,
            unchanged=copied.unchanged if copied else count,
            removed=copied.removed if copied else 0,
            digests=(self._digests[0], self._digests[1]),
            signals={
                name: MovedSignal(
                    source=dict(origin.run(_spec_of, origin.signals[name])),
                    target=dict(signal.derived.spec),
                    embeddings=count if signal.stored else 0,
                    truncated=store.truncated(signal.number) if signal.stored else 0,
                    agreement=agreements.get(name),
                )
                for name, signal in signals.items()
            },
            problems=tuple(problems),
            unfinished=store.location if problems and copied else None,
        )


def _spec_of(signal: LiveSignal) -> Spec:
    return signal.derived.spec
