"""Kill a migration at a random moment, change its source, go on, and compare what arrives, again and again.

Each worker process migrates one collection and is killed with SIGKILL. The source must be as it was, to the byte; the
target must be absent or whole. Now and then the source is changed, and the migration finished: source and target
must then hold the same.
"""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reperio.collection import Collection
from reperio.copying import Copy
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.hashing import HashEncoder
from reperio.errors import NotFound
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.faiss import FaissIndex
from reperio.migration import migrate
from reperio.signals import Signal
from reperio.stores.rows import Entry
from reperio.types import Document, Provenance

BATCH = 16


@dataclass(frozen=True, slots=True)
class Moved:
    """One kill.

    Attributes
    ----------
    died
        Whether the worker was killed before it had finished.
    unchanged, removed
        Where the migration was finished after it: documents that had been copied before, and that were taken away.
    problems
        What was changed in the source, lost or doubled; empty when all is well.
    """

    died: bool
    unchanged: int
    removed: int
    problems: tuple[str, ...]


def some(count: int, version: int = 0) -> list[Document]:
    """Documents with metadata and provenance."""
    return [
        Document(
            f"d{i}", f"document {i} in version {version} about topic{i % 17}", {"n": i / 7}, Provenance("t", key="k")
        )
        for i in range(count)
    ]


def make(folder: Path, count: int) -> None:
    """A small hybrid to be moved."""
    dense = Signal(HashEncoder(32), FaissIndex())
    with Collection.open(folder, signals={"bm25": Signal(BM25Encoder(), BM25Index()), "dense": dense}) as collection:
        collection.upsert(some(count), progress=False)


def trials(
    folder: Path, count: int, target: Callable[[int], str], *, seed: int = 0, longest: float = 0.4, documents: int = 400
) -> Iterator[Moved]:
    """Kill ``count`` migrations.

    Parameters
    ----------
    folder
        Empty; holds the source, and what is derived of targets in a database.
    count
        Kills.
    target
        A new place for each number.
    seed
        Decides when workers are killed, and what is changed.
    longest
        Most seconds between the last batch and a worker's death, if it is killed after that: when it fills the indexes,
        compares, and puts the target in place.
    documents
        Of the source.
    """
    chance = random.Random(seed)
    source, cache = folder / "source", folder / "cache"
    make(source, documents)
    number = 0
    for trial in range(count):
        before = _bytes(source)
        batches = -(-documents // BATCH)
        after = chance.randrange(2 * batches)
        rest = chance.uniform(0.0, longest if after >= batches else 0.01)
        died = _kill(source, target(number), cache, min(after, batches - 2), rest)
        problems = [] if _bytes(source) == before else ["the source was changed"]
        whole = _there(target(number), cache)
        if not died and whole is None:
            problems.append("a worker had finished, and there is no target")
        if whole is not None and whole != _held(source, cache):
            problems.append("the target is there and not whole")
        unchanged = removed = 0
        if whole is not None or chance.random() < 0.5 or trial == count - 1:
            if whole is None:
                _change(source, documents, trial, chance)
            report = migrate(source, target(number), batch_size=BATCH, cache=cache, progress=False)
            unchanged, removed = report.unchanged, report.removed
            problems += report.problems
            if _held(target(number), cache) != _held(source, cache):
                problems.append("source and target differ")
            number += 1
        yield Moved(died, unchanged, removed, tuple(problems))


def _kill(source: Path, target: str, cache: Path, batches: int, seconds: float) -> bool:
    """Kill a worker after so many batches and seconds; False if it had ended by then."""
    command = [sys.executable, "-m", "reperio.testing.moving", str(source), target, str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        for _ in range(batches + 1):
            worker.stdout.readline()
        time.sleep(seconds)
        worker.send_signal(signal.SIGKILL)
    if worker.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"The worker ended by itself with {worker.returncode}.")
    return worker.returncode != 0


def _change(source: Path, documents: int, version: int, chance: random.Random) -> None:
    with Collection.open(source) as collection:
        collection.upsert(chance.sample(some(documents, version), 9), progress=False)
        collection.delete([f"d{chance.randrange(documents)}" for _ in range(9)])


def _bytes(folder: Path) -> dict[str, str]:
    """Every file that holds something; SQLite makes its own beside the database when it is read."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(("-shm", "-wal")))
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _held(place: Path | str, cache: Path) -> dict[str, Any]:
    opened: dict[str, Any] = {"cache": cache} if "://" in str(place) else {}
    with Collection.open(place, mode="r", **opened) as collection:
        return {document.id: document for document in collection.documents()}


def _there(place: str, cache: Path) -> dict[str, Any] | None:
    try:
        return _held(place, cache)
    except NotFound:
        return None


def _say_each_batch() -> None:
    take = Copy.take

    def said(self: Copy, entries: Sequence[Entry]) -> None:
        take(self, entries)
        sys.stdout.write("batch\n")
        sys.stdout.flush()

    Copy.take = said  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    _say_each_batch()
    if not migrate(sys.argv[1], sys.argv[2], batch_size=BATCH, cache=sys.argv[3], progress=False).ok:
        sys.exit(3)
