"""Alter one byte of a collection on disk, and see whether it is noticed before a wrong answer is given."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from reperio.collection import Collection
from reperio.errors import NotFound, ReperioError
from reperio.filters import Field
from reperio.protocols import Index, Spec
from reperio.registry import build
from reperio.signals import Signal
from reperio.testing.kinds import encoder
from reperio.types import Document

__all__ = ["Altered", "altered", "made", "offsets", "structure"]

ROWS = 60
CELL = 20
"""Bytes at the beginning of a cell: its size, its row number, and of which type each column is."""

Answers: TypeAlias = list[Any]


def made(folder: Path, signal: str, spec: Spec, *, rows: int = ROWS, log: bool = False) -> None:
    """Write a collection to alter.

    Parameters
    ----------
    log
        Whether the last commits are in SQLite's log only and in no checkpoint, as a process leaves them that is killed.
    """
    index: Index[Any] = build(spec)
    given = {signal: Signal(encoder(signal), index, stored=signal not in ("bm25", "summed"))}
    home = folder.with_name(f"{folder.name}-open") if log else folder
    collection = Collection.open(home, signals=given)
    documents = [Document(f"id{i}", f"text {i} word{i} about topic{i % 7}", {"n": i}) for i in range(rows)]
    collection.upsert(documents[: rows // 2], batch_size=16, progress=False)
    collection.checkpoint()
    collection.upsert(documents[rows // 2 :], batch_size=16, progress=False)
    collection.delete(["id3", f"id{rows - 5}"])
    if log:
        shutil.copytree(home, folder)
    collection.close()
    shutil.rmtree(home) if log else None


def offsets(size: int, count: int, *, seed: int = 0) -> Sequence[int]:
    """All places of a small file, else so many, spread by chance."""
    if size <= count:
        return range(size)
    found: list[int] = np.sort(np.random.default_rng(seed).choice(size, count, replace=False)).tolist()
    return found


def structure(file: Path) -> list[int]:
    """Places in a database of SQLite's that say what its rows are: of each page the head, of each cell the beginning.

    Most of a file is free space, and most of the rest is text: chance seldom meets these.
    """
    content = file.read_bytes()
    size = int.from_bytes(content[16:18], "big")
    found: set[int] = set()
    for start in range(0, len(content), size):
        head = start + (100 if start == 0 else 0)
        width = {2: 12, 5: 12, 10: 8, 13: 8}.get(content[head])
        if width is None:  # it belongs to a row that takes up more than a page
            continue
        pointers = head + width
        cells = int.from_bytes(content[head + 3 : head + 5], "big")
        found.update(range(head, pointers + 2 * cells))
        for place in range(pointers, pointers + 2 * cells, 2):
            cell = start + int.from_bytes(content[place : place + 2], "big")
            found.update(range(cell, min(cell + CELL, start + size)))
    return sorted(found)


@contextmanager
def altered(file: Path, offset: int, flip: int) -> Generator[None]:
    """Flip bits of one byte, and put it back."""
    with file.open("r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes([byte ^ flip]))
    try:
        yield
    finally:
        with file.open("r+b") as opened:
            opened.seek(offset)
            opened.write(bytes([byte]))


@dataclass(frozen=True, slots=True)
class Altered:
    """A collection, and what it answers while it is sound.

    Attributes
    ----------
    folder
        Where it is.
    answers
        Of `ask`, when nothing is altered.
    """

    folder: Path
    answers: Answers

    @classmethod
    def of(cls, folder: Path) -> Altered:
        """Ask once while all is sound."""
        return cls(folder, list(_asked(folder)))

    def outcome(self) -> str:
        """``"right"``, ``"detected"``, or what is wrong: another answer, or an error that is not of this package."""
        found: Answers = []
        try:
            found.extend(_asked(self.folder))
        except (ReperioError, NotFound):
            pass
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        for number, (ours, sound) in enumerate(zip(found, self.answers, strict=False)):
            if not _same(ours, sound):
                return f"wrong {_QUESTIONS[number]}: {str(ours)[:150]} not {str(sound)[:150]}"
        return "right" if len(found) == len(self.answers) else "detected"

    def verified(self) -> bool:
        """Whether `Collection.verify` or opening notices."""
        try:
            with Collection.open(self.folder, mode="r") as collection:
                return not collection.verify().ok
        except ReperioError:
            return True


_QUESTIONS = ("search", "filtered search", "documents", "filtered documents", "each document", "count")


def _asked(folder: Path) -> Generator[Any]:
    """What is asked: an answer follows another; an error ends it."""
    with Collection.open(folder, mode="r") as collection:
        rankings = collection.search(["word5 topic5", "word50 about", "text 20"], 4)
        yield [[(h.document, h.score) for h in ranking] for ranking in rankings]
        rankings = collection.search(["word5 topic5", "text 40"], 4, where=Field("n") >= 20)
        yield [[(h.document, h.score) for h in ranking] for ranking in rankings]
        yield list(collection.documents())
        yield list(collection.documents(Field("n") >= 0))
        yield [collection.get(f"id{i}") for i in range(ROWS)]
        yield collection.count()


def _same(ours: Any, sound: Any) -> bool:
    if isinstance(cast("object", sound), list):
        return len(ours) == len(sound) and all(map(_same, ours, sound))
    if isinstance(cast("object", sound), tuple):
        return bool(ours[0] == sound[0] and abs(ours[1] - sound[1]) < 1e-4)
    return bool(ours == sound)
