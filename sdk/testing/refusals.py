"""Change a collection on a disk that refuses at some moment, and look at what is left.

Whatever is refused: the error says so, a search answers as before or as after the whole change, the change goes
through when it is tried again, and the folder opens with everything that was acknowledged. A move leaves the source as
it is, and the target is absent or whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from reperio.collection import Collection
from reperio.errors import StorageError
from reperio.migration import migrate
from reperio.protocols import Index, Spec
from reperio.registry import build
from reperio.signals import Signal
from reperio.testing.faults import leftovers
from reperio.testing.kinds import encoder
from reperio.types import Document

__all__ = ["OPERATIONS", "Subject", "documents"]

ROWS = 130
Step: TypeAlias = Callable[["Collection", str], object]
Answers: TypeAlias = list[list[tuple[str, float]]]


def documents(start: int, count: int, *, version: int = 0) -> list[Document]:
    """Short texts, each with a word of its own."""
    numbers = range(start, start + count)
    return [Document(str(i), f"document word{i} about topic{i % 17} in version v{version}") for i in numbers]


def _change(collection: Collection, signal: str) -> None:
    collection.upsert(documents(ROWS - 10, 30, version=1), progress=False)
    collection.delete(["3", "4", "5"])
    collection.search("document", signals=[signal])


def _again(collection: Collection, signal: str) -> None:
    fresh: Index[Any] = build(collection.stats().signals[signal]["index"])
    collection.reindex(signal, fresh)


def _none(collection: Collection, signal: str) -> None:
    collection.search("document", signals=[signal])


def _beside(path: Path | str) -> Path:
    """Where a collection is moved to."""
    return Path(path).with_name("moved")


def _move(collection: Collection, _: str) -> None:
    report = migrate(collection.location, _beside(collection.location), progress=False)
    assert report.ok, report.problems


OPERATIONS: dict[str, tuple[Step, Step]] = {
    "checkpoint": (_change, lambda collection, _: collection.checkpoint()),
    "reindex": (_change, _again),
    "rollback": (_again, lambda collection, signal: collection.rollback(signal)),
    "compact": (_change, lambda collection, _: collection.compact()),
    "upsert": (_none, lambda collection, _: collection.upsert(documents(100, 60, version=2), progress=False)),
    "migrate": (_change, _move),
    "delete": (_none, lambda collection, _: collection.delete([str(i) for i in range(40)])),
}
"""What comes before, undisturbed, and what is refused."""


@dataclass(frozen=True, slots=True)
class _State:
    """What a collection holds and answers."""

    documents: frozenset[tuple[str, str]]
    answers: Answers

    @classmethod
    def of(cls, collection: Collection, signal: str) -> _State:
        held = frozenset((document.id, document.text) for document in collection.documents())
        asked = [f"document word{i} about topic{i % 17}" for i in (7, 30, 125)]
        rankings = collection.search(asked, 4, signals=[signal])
        return cls(held, [[(hit.document.id, hit.score) for hit in ranking] for ranking in rankings])

    def like(self, other: _State) -> bool:
        """Whether it is the same but for rounding."""
        if self.documents != other.documents or len(self.answers) != len(other.answers):
            return False
        ours, theirs = (list(chain.from_iterable(state.answers)) for state in (self, other))
        near = (
            a[0] == b[0] and abs(a[1] - b[1]) < 1e-4 * max(1.0, abs(b[1])) for a, b in zip(ours, theirs, strict=False)
        )
        return len(ours) == len(theirs) and all(near)


class Subject:
    """A collection of one signal and one kind of index, and one operation on it.

    Parameters
    ----------
    folder
        Holds the collection as it is before, and its copies.
    signal, spec
        Of `reperio.testing.kinds.KINDS`.
    operation
        Of `OPERATIONS`.
    """

    def __init__(self, folder: Path, signal: str, spec: Spec, operation: str) -> None:
        self.base, self.work = folder / "base", folder / "work"
        self._signal = signal
        self._prepare, self._operate = OPERATIONS[operation]
        stored = signal not in ("bm25", "summed")
        index: Index[Any] = build(spec)
        signals = {signal: Signal(encoder(signal), index, stored=stored)}
        with Collection.open(self.base, signals=signals) as collection:
            collection.upsert(documents(0, ROWS), progress=False)
        self._copy()
        with Collection.open(self.work) as collection:
            self._prepare(collection, signal)
            self.before = _State.of(collection, signal)
            self._operate(collection, signal)
            self.after = _State.of(collection, signal)
        self._target = _beside(self.work)
        self._moved = self._read(self._target) if operation == "migrate" else None
        self._again = self.after if operation != "rollback" else None

    def _read(self, path: Path) -> _State:
        with Collection.open(path, mode="r") as collection:
            return _State.of(collection, self._signal)

    def _copy(self) -> None:
        for path in (self.work, _beside(self.work), self.work.with_name(".moved.migrating")):
            if path.exists():
                shutil.rmtree(path)
        shutil.copytree(self.base, self.work)

    def undisturbed(self, counted: AbstractContextManager[Any]) -> None:
        """Run the operation once while something counts."""
        self._copy()
        with Collection.open(self.work) as collection:
            self._prepare(collection, self._signal)
            with counted:
                self._operate(collection, self._signal)

    def refused(self, disk: AbstractContextManager[Any]) -> tuple[str, list[str]]:
        """Run the operation while ``disk`` refuses; what was raised, and what is wrong afterwards."""
        self._copy()
        problems: list[str] = []
        with Collection.open(self.work) as collection:
            self._prepare(collection, self._signal)
            raised = self._raised(collection, disk, problems)
            problems += self._wrong(collection, "afterwards", whole=not raised)
            if self._target.exists():
                problems += self._arrived()
            try:
                self._operate(collection, self._signal)
            except Exception as error:
                problems.append(f"again: {type(error).__name__}: {error}")
            problems += self._wrong(collection, "tried again", whole=True)
        with Collection.open(self.work, mode="r") as collection:
            problems += self._wrong(collection, "read", whole=True)
        Collection.open(self.work).close()
        problems += self._arrived()
        problems += (f"left behind: {path.name}" for path in self.work.parent.glob(".*.migrating"))
        problems += (f"left behind: {name}" for name in leftovers(self.work.parent))
        return raised, problems

    def _arrived(self) -> Iterator[str]:
        """What is wrong with a target that is there."""
        if self._moved is None:
            return
        if not self._read(self._target).like(self._moved):
            yield "moved: other documents or answers than those of a migration that nothing disturbed"
        with Collection.open(self._target) as collection:
            yield from (f"moved: {problem}" for problem in collection.verify().problems)

    def _raised(self, collection: Collection, disk: AbstractContextManager[Any], problems: list[str]) -> str:
        try:
            with disk:
                self._operate(collection, self._signal)
        except StorageError as error:
            return type(error).__name__
        except Exception as error:
            problems.append(f"raised {type(error).__name__}: {error}")
            return type(error).__name__
        return ""

    def _wrong(self, collection: Collection, when: str, *, whole: bool) -> Iterator[str]:
        found = _State.of(collection, self._signal)
        allowed = [self.after] if whole and self._again is not None else [self.before, self.after]
        if not any(found.like(state) for state in allowed):
            held = [len(state.documents) for state in (found, *allowed)]
            yield f"{when}: other documents or answers; documents {held}, {found.answers[0]} {allowed[-1].answers[0]}"
        yield from (f"{when}: {problem}" for problem in collection.verify().problems)
