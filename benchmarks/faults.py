"""A disk that refuses and bytes that change: every kind of index, every operation, every call, bytes by the thousand.

Takes a quarter of an hour; the tests take a sample of it. Needs room in the folder of temporary files, and root for the
disks of a few pages, which are left out without.
"""

from __future__ import annotations

import errno
import tempfile
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import faiss

from reperio.protocols import Spec
from reperio.testing.faults import RefusingDisk, file_limit, small_disk
from reperio.testing.flips import Altered, altered, made, offsets, structure
from reperio.testing.kinds import KINDS, label
from reperio.testing.refusals import OPERATIONS, Subject

EVERY = [(signal, spec) for signal, specs in KINDS.items() for spec in specs]
EVERY_CALL = ("FlatIndex", "InvertedIndex", "SeismicIndex", "MultiVectorIndex residual 2")
"""For these, each call of each operation is refused; for the others, each call of a checkpoint."""

STEP = 16_384
BYTES = {"index": 60, "database": 2000}
"""How many bytes of a file are altered, one at a time; all of a smaller file."""


def run() -> dict[str, Any]:
    faiss.omp_set_num_threads(1)
    refusals, problems = _refusals()
    flips = _flips()
    print(f"{sum(refusals.values())} refusals: {len(problems)} problems")
    for name, counts in flips.items():
        print(f"flips, {name}: {counts}")
    return {"refusals": dict(refusals), "problems": problems, "flips": flips}


def _refusals() -> tuple[Counter[str], list[str]]:
    done: Counter[str] = Counter()
    problems: list[str] = []
    for signal, spec in EVERY:
        operations = OPERATIONS if label(spec) in EVERY_CALL else ["checkpoint"]
        for operation in operations:
            for how, raised, wrong in _refused(signal, spec, operation):
                done[f"{how}: {raised or 'done'}"] += 1
                problems += (f"{label(spec)}, {operation}, {how}: {problem}" for problem in wrong)
        print(f"{label(spec)}: {sum(done.values())} so far, {len(problems)} problems", flush=True)
    return done, problems


def _refused(signal: str, spec: Spec, operation: str) -> Generator[tuple[str, str, list[str]]]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subject = Subject(folder, signal, spec, operation)
        counting = RefusingDisk(folder)
        subject.undisturbed(counting)
        for number, code in enumerate(islice(cycle([errno.ENOSPC, errno.EIO]), len(counting.calls))):
            disk = RefusingDisk(folder, refuse=number, code=code)
            yield (f"call, {errno.errorcode[code]}", *subject.refused(disk))
        yield from _until_done(lambda size: subject.refused(file_limit(size)), "limit on files")
        try:
            with small_disk(folder / "disk", 32 << 20) as leave:
                small = Subject(folder / "disk", signal, spec, operation)
                yield from _until_done(lambda free: small.refused(_left(leave, free)), "small disk")
        except PermissionError:
            return


def _until_done(refused: Callable[[int], tuple[str, list[str]]], how: str) -> Generator[tuple[str, str, list[str]]]:
    for number in range(200):
        raised, wrong = refused(STEP * number)
        yield (how, raised, wrong)
        if not raised:
            return


@contextmanager
def _left(leave: Callable[[int | None], None], free: int) -> Generator[None]:
    leave(free)
    try:
        yield
    finally:
        leave(None)


def _flips() -> dict[str, dict[str, int]]:
    """What came of altering one byte: by the kind of file, how often it was noticed, harmless, or neither."""
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number, (signal, spec) in enumerate(EVERY):
            folder = Path(temporary) / str(number)
            made(folder, signal, spec, rows=120)
            _flip(Altered.of(folder), folder / "indexes", found)
        for name, log in (("closed", False), ("killed", True)):
            folder = Path(temporary) / name
            made(folder, "dense", {"type": "FlatIndex"}, log=log)
            _flip(Altered.of(folder), folder, found, prefix=f"{name}, ")
    return {name: dict(counts) for name, counts in found.items()}


def _flip(subject: Altered, below: Path, found: dict[str, Counter[str]], *, prefix: str = "") -> None:
    for file in sorted(path for path in below.rglob("*") if path.is_file() and path.suffix not in (".lock", ".pid")):
        database = "sqlite" in file.name
        name = prefix + file.name if database else "manifests" if file.suffix == ".json" else file.suffix or file.name
        count = BYTES["database" if database else "index"]
        places = list(offsets(file.stat().st_size, count))
        if file.suffix == ".sqlite":
            of_rows = structure(file)
            places += (of_rows[i] for i in offsets(len(of_rows), count))
        for number, offset in enumerate(places):
            with altered(file, offset, 1 << number % 8):
                outcome = subject.outcome()
                if outcome not in ("right", "detected"):
                    outcome = outcome.split(":")[0] + (
                        ", verify finds it" if subject.verified() else ", verify does not"
                    )
                found.setdefault(name, Counter())[outcome] += 1
