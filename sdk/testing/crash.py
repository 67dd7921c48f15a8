"""Kill a writer at a random moment, look at what it left, again and again.

A worker process changes a collection without end and notes each change in a log before it starts and after it
returns. It is killed with SIGKILL. Whatever had returned must be there; of the one change that was under way,
any prefix of its commits may be. SIGKILL shows what a crash of the process leaves, not a loss of power.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reperio import upkeep
from reperio.collection import Collection
from reperio.errors import MissingDependency, NotFound
from reperio.protocols import Index, Spec
from reperio.registry import build
from reperio.testing.kinds import KINDS, label, signals
from reperio.types import Document

EVERY: tuple[tuple[str, Spec], ...] = tuple((signal, spec) for signal, specs in KINDS.items() for spec in specs)
"""The kinds of index that the worker switches between."""

_AT = "at: "
"""Begins what the worker says, for libraries say things too."""

IDS = 400
BATCH = 16


def _text(name: str, version: int) -> str:
    return f"document {name} in version {version} about topic{version % 17}"


class Worker:
    """Changes a collection for ever.

    Parameters
    ----------
    folder
        Holds the collection and the log.
    number
        Decides what is done: in its turn, each kind of index comes first.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._random = random.Random(number)
        self._next = EVERY[7 * number % len(EVERY)]  # all of them in turn, far ones first
        self._log = os.open(folder / "log.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._version = time.time_ns()
        upkeep.FEWEST_DEAD = BATCH  # compaction in the background is killed too
        self._collection = Collection.open(folder / "collection", signals=signals() if number == 0 else None)

    def run(self) -> None:
        """Go on until killed; says on standard output when it begins and what it is at."""
        steps = [self.upsert, self.delete, self.checkpoint, self.reindex, self.rollback, self.compact]
        weights = [12, 2, 3, 3, 1, 1]
        order = iter([self.upsert, self.reindex, self.checkpoint])
        while True:
            step = next(order, None) or self._random.choices(steps, weights)[0]
            self._say(step.__name__)
            step()

    def _say(self, what: str) -> None:
        sys.stdout.write(f"{_AT}{what}\n")
        sys.stdout.flush()

    def _note(self, state: str, changes: Mapping[str, int | None]) -> None:
        os.write(self._log, (json.dumps([state, changes]) + "\n").encode())

    def upsert(self) -> None:
        """Some documents in new versions, in several commits."""
        names = self._random.sample(range(IDS), self._random.randint(1, 4 * BATCH))
        self._version += 1
        changes = {str(name): self._version for name in names}
        self._note("begin", changes)
        documents = [Document(name, _text(name, version), {"version": version}) for name, version in changes.items()]
        self._collection.upsert(documents, batch_size=BATCH, progress=False)
        self._note("done", changes)

    def delete(self) -> None:
        """A few documents."""
        changes: dict[str, int | None] = {str(n): None for n in self._random.sample(range(IDS), 8)}
        self._note("begin", changes)
        self._collection.delete(list(changes))
        self._note("done", changes)

    def checkpoint(self) -> None:
        """Indexes to disk."""
        self._collection.checkpoint()

    def reindex(self) -> None:
        """Another kind of index; one whose library is not installed is passed over."""
        (name, spec), self._next = self._next, self._random.choice(EVERY)
        with contextlib.suppress(MissingDependency):
            index: Index[Any] = build(spec)
            self._say(f"reindex {label(index.spec)}")
            self._collection.reindex(name, index)

    def rollback(self) -> None:
        """Back to the index before."""
        with contextlib.suppress(NotFound):
            self._collection.rollback(self._random.choice(sorted(KINDS)))

    def compact(self) -> None:
        """Old versions off the disk."""
        self._collection.compact()


@dataclass(frozen=True, slots=True)
class Trial:
    """One kill.

    Attributes
    ----------
    during
        What the worker was at; of a reindex, the kind of index as well.
    kinds
        The kinds of index that were in use.
    documents
        Live documents afterwards.
    problems
        What was lost, unreadable or wrong; empty when all is well.
    """

    during: str
    kinds: tuple[str, ...]
    documents: int
    problems: tuple[str, ...]


def trials(folder: Path, count: int, *, seed: int = 0, longest: float = 0.4) -> Iterator[Trial]:
    """Kill a worker ``count`` times on one collection and check it each time.

    Parameters
    ----------
    folder
        Empty; holds the collection and the log.
    count
        Kills.
    seed
        Decides what the workers do and when they are killed.
    longest
        Most seconds between a worker's first change and its death.
    """
    clock = random.Random(seed)
    for number in range(count):
        during = _kill(folder, number, clock.uniform(0.0, longest))
        yield _look(folder, during)


def _kill(folder: Path, number: int, after: float) -> str:
    command = [sys.executable, "-m", "reperio.testing.crash", str(folder), str(number)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        said = [worker.stdout.readline()]
        time.sleep(after)
        worker.send_signal(signal.SIGKILL)
        said += worker.stdout.readlines()
    if worker.returncode != -signal.SIGKILL:
        return f"crashed by itself with {worker.returncode}"
    return [line.removeprefix(_AT).strip() for line in said if line.startswith(_AT)][-1]


def _look(folder: Path, during: str) -> Trial:
    problems = [during] if during.startswith("crashed") else []
    with Collection.open(folder / "collection") as collection:
        found = {document.id: document.metadata["version"] for document in collection.documents()}
        problems += _lost(folder / "log.jsonl", found)
        problems += collection.verify().problems
        if found and not len(collection.search("document in version about topic1", 5)):
            problems.append("a search finds nothing")
        kinds = tuple(label(signal["index"]) for signal in collection.stats().signals.values())
    return Trial(during, kinds, len(found), tuple(problems))


def _lost(log: Path, found: Mapping[str, Any]) -> Iterator[str]:
    """Compare with the log: each document as last acknowledged, or as a change under way since would leave it."""
    allowed: dict[str, set[int | None]] = {str(name): {None} for name in range(IDS)}
    for line in log.read_text().splitlines():
        state, changes = json.loads(line)
        for name, version in changes.items():
            if state == "done":
                allowed[name] = {version}
            else:
                allowed[name].add(version)
    for name, versions in allowed.items():
        if found.get(name) not in versions:
            yield f"document {name} is at version {found.get(name)}, acknowledged was {versions}"


if __name__ == "__main__":
    Worker(Path(sys.argv[1]), int(sys.argv[2])).run()
