"""Whether a reader ever sees half a commit.

A writer commits all documents again and again, each time in a version that they share, and now and then reindexes,
rolls back, checkpoints and compacts. Whoever reads must find every document, all in one version, whichever way it
asks: by one signal or both, through a filter, one by one.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reperio.collection import Collection
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.hashing import HashEncoder
from reperio.errors import StaleResult
from reperio.filters import Field
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.faiss import FaissIndex
from reperio.signals import Signal
from reperio.types import Document

DOCUMENTS = 24
"""In each commit."""


def signals() -> dict[str, Signal[Any]]:
    """A small hybrid that needs no model."""
    return {
        "bm25": Signal(BM25Encoder(), BM25Index(), stored=False),
        "dense": Signal(HashEncoder(32), FaissIndex()),
    }


def commit(collection: Collection, version: int) -> None:
    """All documents in one version, in one commit."""
    documents = [
        Document(f"d{i}", f"words of document {i}, version {version}", {"v": version}) for i in range(DOCUMENTS)
    ]
    collection.upsert(documents, progress=False)


def write(collection: Collection, stop: Callable[[], bool]) -> int:
    """Commit, and change the indexes in every way, until told to stop; returns how many versions there were."""
    steps: Iterator[Callable[[], object]] = itertools.cycle(
        (
            lambda: collection.reindex("dense", "HNSW8"),
            collection.checkpoint,
            lambda: collection.rollback("dense"),
            collection.compact,
            lambda: collection.reindex("bm25", BM25Index()),
        )
    )
    for version in itertools.count(1):
        commit(collection, version)
        if version % 4 == 0:
            next(steps)()
        if stop():
            return version
    raise AssertionError


@dataclass(slots=True)
class Look:
    """What a reader has seen: how often it looked, how often a result was compacted away, and what was wrong."""

    looks: int = 0
    stale: int = 0
    problems: tuple[str, ...] = ()


def read(collection: Collection, stop: Callable[[], bool]) -> Look:
    """Look in every way until told to stop, or something is wrong."""
    seen = Look()
    while not seen.problems and (not stop() or not seen.looks):
        try:
            seen.problems = tuple(_wrong(collection))
        except StaleResult:
            seen.stale += 1
        seen.looks += 1
    return seen


def _wrong(collection: Collection) -> Iterator[str]:
    newest = 0  # no look may go back in time
    for what, ask in (
        ("both signals", lambda: [hit.document for hit in collection.search("words of document", DOCUMENTS)]),
        ("bm25", lambda: _documents(collection, signals=["bm25"])),
        ("dense", lambda: _documents(collection, signals=["dense"])),
        ("both signals, filtered", lambda: _documents(collection, where=Field("v") >= 0)),
        ("dense, filtered", lambda: _documents(collection, where=Field("v") >= 0, signals=["dense"])),
        ("the documents", lambda: list(collection.documents())),
        ("one document", lambda: [collection.get("d0")] * DOCUMENTS),
    ):
        found = ask()
        versions = {-1 if document is None else int(str(document.metadata["v"])) for document in found}
        if len(found) != DOCUMENTS or len(versions) != 1 or -1 in versions:
            yield f"{what}: {len(found)} documents in versions {versions}"
        elif max(versions) < newest:
            yield f"{what}: version {versions} after {newest}"
        else:
            newest = max(versions)


def _documents(collection: Collection, **how: Any) -> list[Document]:
    return [hit.document for hit in collection.search("words of document", DOCUMENTS, **how)]


def until(deadline: float) -> Callable[[], bool]:
    """Whether this moment, of `time.monotonic`, has come."""
    return lambda: time.monotonic() > deadline


if __name__ == "__main__":
    with Collection.open(Path(sys.argv[1]), mode="r") as opened:
        result = read(opened, until(time.monotonic() + float(sys.argv[2])))
    sys.stdout.write(f"{result.looks} looks, {result.stale} stale; {'; '.join(result.problems) or 'sound'}\n")
    sys.exit(bool(result.problems))
