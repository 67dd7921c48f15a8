"""``reperio demo``: the main job on real text that every machine has, the docstrings of its own Python."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.text import Text

from reperio.cli.output import Output
from reperio.cli.searching import Row, hits_table, rows
from reperio.collection import Collection
from reperio.connectors import PythonDocsSource
from reperio.errors import StorageError
from reperio.types import Document

SHOWN = 3
DEPTH = 10
TOLERANCE = 1e-4
"""A query encoded alone differs by rounding from one encoded among others."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question in plain words, and the ids that answer it."""

    text: str
    answers: frozenset[str]


QUESTIONS = (
    Question("merge sorted iterables without loading them", frozenset({"heapq.merge"})),
    Question(
        "remember the results of a function so that they are not computed again",
        frozenset({"functools.lru_cache", "functools.cache"}),
    ),
    Question("split a command line into words the way a shell does", frozenset({"shlex.split"})),
    Question("copy a whole folder with everything in it", frozenset({"shutil.copytree"})),
    Question("find words that are spelled almost like this one", frozenset({"difflib.get_close_matches"})),
    Question("remove the common indentation of a block of text", frozenset({"textwrap.dedent"})),
)
"""Written down before the first search, and not changed to fit."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A question and what was found for it."""

    question: Question
    hits: list[Row]

    @property
    def rank(self) -> int | None:
        """Where the first right answer stands, from 1; None if it is not among the hits."""
        return next((hit["rank"] for hit in self.hits if hit["id"] in self.question.answers), None)

    @property
    def verdict(self) -> Text:
        """Whether it was found, also where it was not."""
        wanted = " or ".join(sorted(self.question.answers))
        if self.rank is None:
            return Text(f"missed: {wanted} is not in the first {DEPTH}\n", "red")
        return Text(f"{wanted}: rank {self.rank}\n", "green" if self.rank == 1 else "yellow")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        answers = sorted(self.question.answers)
        return {"question": self.question.text, "answers": answers, "rank": self.rank, "hits": self.hits}


def run(output: Output, folder: Path, limit: int) -> None:
    """Index, ask, and ask again from a second process.

    Parameters
    ----------
    output
        Where to write.
    folder
        The collection's.
    limit
        Most docstrings.
    """
    documents = list(islice(PythonDocsSource().documents(), limit))
    output.tell(_walked(documents, limit))
    with Collection.open(folder) as collection:
        report = collection.upsert(documents, progress=True)
        encoded = sum(report.encoded.values())
        output.tell(f"{encoded} texts encoded, {report.unchanged} documents unchanged: {len(collection)} in {folder}.")
        rankings = collection.search([question.text for question in QUESTIONS], DEPTH)
        answers = [Answered(q, rows(ranking)) for q, ranking in zip(QUESTIONS, rankings, strict=True)]
    for answer in answers:
        output.show(hits_table(answer.hits[:SHOWN], answer.question.text))
        output.show(answer.verdict)
    first, inside = sum(a.rank == 1 for a in answers), sum(a.rank is not None for a in answers)
    output.show(Text(f"{first} of {len(answers)} answered first, {inside} in the first {DEPTH}.\n", "bold"))
    again = _ask_elsewhere(folder, QUESTIONS[0].text)
    same = agree(again, answers[0].hits)
    if output.as_json:
        questions = [answer.to_dict() for answer in answers]
        output.result({"upsert": asdict(report), "questions": questions, "second_process_agrees": same}, Text)
    output.show(hits_table(again[:SHOWN], f"A second process opened {folder}: {QUESTIONS[0].text}"))
    output.show(_agreement(len(again), same=same))


def _walked(documents: Sequence[Document], limit: int) -> str:
    packages = Counter(str(document.metadata["package"]) for document in documents)
    parts = ", ".join(f"{name} {count}" for name, count in packages.items())
    cut = f"; --limit {limit} stopped it there" if len(documents) == limit else ""
    return f"{len(documents)} docstrings of this Python: {parts}{cut}."


def _ask_elsewhere(folder: Path, question: str) -> list[Row]:
    """The hits that another process finds in the collection on disk.

    Raises
    ------
    StorageError
        If it could not open or search it.
    """
    command = [sys.executable, "-m", "reperio.cli", "search", str(folder), question, "-k", str(DEPTH), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        problem = (
            f"A second process could not search {folder} (exit code {done.returncode}): {done.stdout}{done.stderr}"
        )
        raise StorageError(problem.strip(), f"Try: reperio verify {folder}")
    hits: list[Row] = json.loads(done.stdout)["hits"]
    return hits


def agree(hits: Sequence[Row], others: Sequence[Row]) -> bool:
    """Whether two processes found the same: equal ids in equal order, scores equal to `TOLERANCE`."""
    return [hit["id"] for hit in hits] == [hit["id"] for hit in others] and all(
        abs(a["score"] - b["score"]) <= TOLERANCE for a, b in zip(hits, others, strict=True)
    )


def _agreement(count: int, *, same: bool) -> Text:
    if same:
        return Text(f"The same {count} hits, from disk; scores equal to {TOLERANCE:g}.", "green")
    return Text("Its hits or scores are not those of the first process.", "bold red")
