"""Damage a saved folder thousands of times and load it: each time it is refused, or answers as before.

Two attacks. ``"plain"``: bytes are altered, lost or moved, as disks and programs do; checksums must find it.
``"resealed"``: arrays and settings are replaced by strange ones and the checksums made to fit, as an attacker does, or
a program that goes wrong; what is loaded then must at least be well-formed, so that nothing is read out of bounds.

The work is done in child processes with bounded memory, so that a crash, a hang or a greedy allocation is counted.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from reperio.errors import CorruptArtifact, NewerFormat, NotFound, ReperioError
from reperio.testing.damage import Files, damaged, forged, held

__all__ = ["Attack", "Failure", "Job", "Loader", "Tally", "attempt", "campaign", "work"]

Attack: TypeAlias = Literal["plain", "resealed"]

_SECONDS, _WAIT = 10, 120
"""A case hangs that takes more of the processor's time, or of the clock's: others may be using the machine."""

_ALARMS = (signal.SIGALRM, signal.SIGPROF)

_ROOM = 1 << 30
"""Bytes of address space that a case may take beside what loading the undamaged folder took."""

_REPORTED = 200
"""Cases between two reports of a child."""

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Loader:
    """What reads a folder.

    Attributes
    ----------
    name
        What it is called in the table.
    save
        Writes a small folder, a different one for each number.
    ask
        Opens a folder and asks it some questions: what it returns compares equal where the answers are the same, and
        AssertionError says that they cannot be right.
    """

    name: str
    save: Callable[[Path, int], None]
    ask: Callable[[Path], object]


class Failure(NamedTuple):
    """A case that went wrong; `attempt` plays it again."""

    loader: str
    attack: Attack
    seed: int
    number: int
    what: str


@dataclass(slots=True)
class Tally:
    """What came of the cases of one loader and attack."""

    files: int = 0
    refused: int = 0
    same: int = 0
    other: int = 0
    failures: Counter[str] = field(default_factory=Counter[str])
    examples: list[Failure] = field(default_factory=list[Failure])

    def add(self, outcomes: Counter[str], failures: Iterable[Failure]) -> None:
        """Count some more."""
        self.files += sum(outcomes.values())
        self.refused += outcomes["refused"]
        self.same += outcomes["same"]
        self.other += outcomes["other"]
        for failure in failures:
            self.files += 1
            self.failures[failure.what] += 1
            if self.failures[failure.what] <= _EXAMPLES:
                self.examples.append(failure)


class Job(NamedTuple):
    """Cases from ``start`` up to ``stop``; ``loaders`` is ``"module:function"``, which returns all of them by name."""

    loaders: str
    loader: str
    attack: Attack
    seed: int
    start: int
    stop: int


class _Bench:
    """One loader's folder, damaged and mended again and again."""

    def __init__(self, loader: Loader, folder: Path) -> None:
        self.loader, self.folder = loader, folder / "x"
        loader.save(self.folder, 0)
        loader.save(folder / "other", 1)
        self.files, self.other = held(self.folder), held(folder / "other")
        self.answer, self.other_answer = loader.ask(self.folder), loader.ask(folder / "other")
        assert loader.ask(self.folder) == self.answer, f"{loader.name} answers differently each time"

    def attempt(self, attack: Attack, seed: int, number: int) -> str:
        """``refused``, ``same``, ``other``, or what went wrong."""
        rng = random.Random(f"{self.loader.name} {attack} {seed} {number}")
        files = (damaged if attack == "plain" else forged)(self.files, self.other, rng)
        changed = self._write(files)
        try:
            answer = self.loader.ask(self.folder)
        except (CorruptArtifact, NotFound, NewerFormat):
            return "refused"
        except ReperioError as error:
            return "refused" if attack == "resealed" else _said(error)
        except Exception as error:
            return _said(error)
        finally:
            self._mend(changed)
        # All files of the other time together are a sound folder.
        expected = self.other_answer if files == self.other else self.answer
        return "same" if answer == expected else "other" if attack == "resealed" else "answers differ in silence"

    def _write(self, files: Files) -> list[str]:
        changed = [name for name in {**self.files, **files} if self.files.get(name) is not files.get(name)]
        for name in changed:
            (self.folder / name).unlink(missing_ok=True)
            if name in files:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name).write_bytes(files[name])
        return changed

    def _mend(self, changed: Sequence[str]) -> None:
        for name in changed:
            (self.folder / name).unlink(missing_ok=True)
            if name in self.files:
                (self.folder / name).write_bytes(self.files[name])


def _said(error: BaseException) -> str:
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if "reperio" in f.filename or "indexes" in f.filename
    ]
    where = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "testing" not in f.filename][-2:]
    return f"{type(error).__name__} at {' > '.join(where)}: {str(error)[:80]}"


def attempt(loader: Loader, attack: Attack, seed: int, number: int) -> str:
    """Play one case again, here: for a debugger."""
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        return _Bench(loader, Path(folder)).attempt(attack, seed, number)


def campaign(
    jobs: Iterable[Job], *, tell: Callable[[Job, Tally], None] | None = None
) -> dict[tuple[str, Attack], Tally]:
    """Do every job, one child process after another where one dies; ``tell`` is called as each job ends."""
    tallies: dict[tuple[str, Attack], Tally] = {}
    todo = list(jobs)
    while todo:
        todo = _child(todo, tallies, tell)
    return tallies


def _child(
    jobs: list[Job], tallies: dict[tuple[str, Attack], Tally], tell: Callable[[Job, Tally], None] | None
) -> list[Job]:
    """Have a child do the jobs; returns those that it left when it died."""
    done = 0
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        ours, theirs = os.pipe()
        # Libraries print as they please, so reports have a pipe of their own.
        command = [sys.executable, "-c", "from reperio.testing.fuzz import work; work()"]
        with (
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[theirs]) as child,
            os.fdopen(ours) as reports,
        ):
            os.close(theirs)
            assert child.stdin is not None
            child.stdin.write(json.dumps([jobs, theirs, folder]).encode())
            child.stdin.close()
            for line in reports:
                number, outcomes, failures, ended = json.loads(line)
                job = jobs[done]
                tally = tallies.setdefault((job.loader, job.attack), Tally())
                tally.add(Counter(outcomes), [Failure(*failure) for failure in failures])
                if ended:
                    done += 1
                    if tell is not None:
                        tell(job, tally)
                else:
                    jobs[done] = job._replace(start=number)
        if done == len(jobs):
            return []
        job, died = jobs[done], _last(folder)
        if died is None:  # it did not come to the first case
            raise RuntimeError(f"A child that was to load {job.loader} ended with {child.returncode}.")
        how = "hangs" if child.returncode in [-alarm for alarm in _ALARMS] else f"dies: {_name(child.returncode)}"
        failure = Failure(job.loader, job.attack, job.seed, died, how)
        # What it did since its last report is not known: those up to the one it died of are done again, without it.
        tallies.setdefault((job.loader, job.attack), Tally()).add(Counter(), [failure])
        before = [job._replace(stop=died)] if died > job.start else []
        after = [job._replace(start=died + 1)] if died + 1 < job.stop else []
        return [*before, *after, *jobs[done + 1 :]]


def _name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit {code}"


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _last(folder: str) -> int | None:
    file = Path(folder) / "case"
    return int(file.read_bytes()) if file.exists() and file.stat().st_size else None


def work() -> None:
    """What a child does: the jobs that it reads from its standard input."""
    told, pipe, folder = json.loads(sys.stdin.read())
    jobs, reports = [Job(*job) for job in told], os.fdopen(pipe, "w", buffering=1)
    for alarm in _ALARMS:
        signal.signal(alarm, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    case = (Path(folder) / "case").open("wb", buffering=0)
    for job in jobs:
        place = Path(folder) / "bench"
        bench = _Bench(_found(job.loaders)[job.loader], place)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + _ROOM, resource.RLIM_INFINITY))
        outcomes, failures = Counter[str](), list[Failure]()
        for number in range(job.start, job.stop):
            case.seek(0)
            case.write(b"%020d" % number)
            signal.setitimer(signal.ITIMER_PROF, _SECONDS)
            signal.setitimer(signal.ITIMER_REAL, _WAIT)
            what = bench.attempt(job.attack, job.seed, number)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if what in ("refused", "same", "other"):
                outcomes[what] += 1
            else:
                failures.append(Failure(job.loader, job.attack, job.seed, number, what))
            if (number - job.start) % _REPORTED == _REPORTED - 1:
                reports.write(json.dumps([number + 1, outcomes, failures, False]) + "\n")
                outcomes, failures = Counter[str](), list[Failure]()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        shutil.rmtree(place)
        case.truncate(0)
        reports.write(json.dumps([job.stop, outcomes, failures, True]) + "\n")
    reports.close()


def _found(name: str) -> dict[str, Loader]:
    module, function = name.split(":")
    loaders: Any = getattr(__import__(module, fromlist=[function]), function)()
    return {loader.name: loader for loader in loaders}
