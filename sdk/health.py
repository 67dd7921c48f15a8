"""What a collection says of itself: its sizes, the state of its signals, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from reperio import memory
from reperio.errors import CorruptArtifact
from reperio.protocols import Store
from reperio.signals import LiveSignal, replayed
from reperio.upkeep import Upkeep

__all__ = ["CollectionStats", "VerifyReport", "gathered", "verified"]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `Collection.verify` found; sound where ``problems`` is empty."""

    documents: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class CollectionStats:
    """Sizes of a collection.

    Attributes
    ----------
    documents
        Live documents.
    replaced
        Old versions and deleted documents that `Collection.compact` would take away.
    seq
        Sequence number of the last commit.
    store_bytes, index_bytes
        On disk.
    fields
        Metadata fields and the kinds of their values.
    signals
        For each signal: model, kind, dim, index, rows in the index, checkpoint's sequence number, truncated texts;
        and its health: ``behind``, commits since the checkpoint, which an opening replays; ``dead``, rows taken
        away since the index was built, in whose room it still searches; ``compact``, whether building it anew is
        advised; ``bytes`` on disk, ``generations``, those of each saved state; ``mapped``, bytes of its files that
        this process has mapped, and ``resident``, how many of them are in memory now, where Linux tells it;
        ``segments`` that a search looks into, ``waiting``, rows that it searches exactly beside them, in an index that
        has such; ``factory`` in use; ``tuning`` and ``quantization``, what the index measured when it was built, where
        it did, with the recall ``asked`` for and the options ``in_use`` now.
    writer
        The process on this machine that writes, if any.
    compaction
        In the background, of this object: ``"off"``, ``"idle"``, ``"running"`` or ``"failed: …"``.
    resident_bytes
        Memory that this process takes up with all that it holds, where Linux tells it.
    """

    documents: int
    replaced: int
    seq: int
    store_bytes: int
    index_bytes: int
    fields: Mapping[str, Sequence[str]]
    signals: Mapping[str, Mapping[str, Any]]
    writer: int | None = None
    compaction: str = "off"
    resident_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def _measured(index: object) -> dict[str, Any]:
    """What an index says that it chose and measured when it was built."""
    tuning, report = getattr(index, "tuning", None), getattr(index, "report", None)
    return {
        "factory": getattr(index, "factory", None),
        "tuning": None
        if tuning is None
        else {**tuning.as_json(), "asked": tuning.asked or tuning.target, "in_use": tuning.in_use},
        "quantization": asdict(report) if is_dataclass(report) and not isinstance(report, type) else None,
    }


def gathered(store: Store, signals: Mapping[str, LiveSignal], upkeep: Upkeep, *, writer: int | None) -> CollectionStats:
    """The sizes of a collection, of which the caller holds the indexes and a snapshot."""
    files = memory.mapped()
    found = {name: _signal(store, signal, upkeep, files) for name, signal in signals.items()}
    return CollectionStats(
        documents=store.count(),
        replaced=store.dead(),
        seq=store.seq,
        store_bytes=store.size(),
        index_bytes=sum(signal["bytes"] for signal in found.values()),
        fields={name: sorted(kinds) for name, kinds in sorted(store.fields().items())},
        signals=found,
        writer=writer,
        compaction=upkeep.state,
        resident_bytes=memory.resident(),
    )


def _signal(
    store: Store, signal: LiveSignal, upkeep: Upkeep, files: Mapping[str, memory.Mapped] | None
) -> dict[str, Any]:
    mapped = (None, None) if files is None else memory.within(signal.derived.folder, files)
    return {
        "model": signal.fingerprint.model,
        "kind": signal.kind,
        "dim": signal.fingerprint.dim,
        "index": dict(signal.index.spec),
        "rows": len(signal.index),
        "checkpoint": signal.derived.saved,
        "truncated": store.truncated(signal.number) if signal.stored else 0,
        "behind": store.seq - max(0, signal.derived.saved),
        "dead": signal.derived.dead,
        "compact": upkeep.advised(signal),
        "bytes": signal.derived.size(),
        "generations": dict(signal.derived.generations),
        "mapped": mapped[0],
        "resident": mapped[1],
        "segments": getattr(signal.index, "segments", None),
        "waiting": getattr(signal.index, "waiting", None),
        **_measured(signal.index),
    }


def verified(
    store: Store,
    signals: Sequence[LiveSignal],
    current: Callable[[Sequence[LiveSignal]], AbstractContextManager[None]],
) -> VerifyReport:
    """Check every byte: the database, each checkpoint, and that every index holds exactly the live documents."""
    problems, documents = list(store.problems()), 0
    for signal in signals:
        problems += signal.derived.problems()
    try:
        with current(signals):
            live = store.matching(None, at=replayed(signals))
            documents = len(live)
            for signal in signals:
                problems += signal.problems(live)
    except CorruptArtifact as error:  # what cannot be read cannot be compared
        problems.append(error.problem)
    return VerifyReport(documents=documents, problems=tuple(dict.fromkeys(problems)))
