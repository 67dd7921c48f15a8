"""Relevance judgments."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from reperio.errors import InvalidInput
from reperio.evaluation.lines import malformed, read_lines


@dataclass(frozen=True, slots=True, eq=False)
class Qrels(Mapping[str, Mapping[str, int]]):
    """How relevant a document is to a query: query id → document id → grade; 0 is judged and not relevant.

    Attributes
    ----------
    judgments
        The grades, whole numbers.
    absent
        Judged documents that no system can return, because the corpus lacks them.

    Raises
    ------
    InvalidInput
        If a grade is not a whole number.
    """

    judgments: Mapping[str, Mapping[str, int]]
    absent: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        grades = {query: {d: _grade(query, d, g) for d, g in found.items()} for query, found in self.judgments.items()}
        object.__setattr__(self, "judgments", grades)

    def __getitem__(self, query: str) -> Mapping[str, int]:
        return self.judgments[query]

    def __iter__(self) -> Iterator[str]:
        return iter(self.judgments)

    def __len__(self) -> int:
        return len(self.judgments)

    @property
    def documents(self) -> frozenset[str]:
        """Every document that was judged for some query."""
        return frozenset(document for found in self.judgments.values() for document in found)


def _grade(query: str, document: str, grade: object) -> int:
    try:
        return operator.index(grade)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        problem = f"Query {query!r}, document {document!r}: the grade is {grade!r}, not a whole number."
        raise InvalidInput(problem, "Grade with 0, 1, 2, ...") from error


def read_tsv(path: Path) -> dict[str, dict[str, int]]:
    """Grades from a file of ``query-id, corpus-id, score``, separated by tabs, with or without that header.

    Raises
    ------
    NotFound
        If there is no such file.
    ConnectorError
        Naming the line that has not three columns, whose score is not a whole number, or that contradicts another.
    """
    grades: dict[str, dict[str, int]] = {}
    for number, line in read_lines(path):
        columns = line.split("\t")
        if len(columns) != 3:
            raise malformed(path, number, f"has {len(columns)} columns, not query-id, corpus-id and score")
        query, document, score = columns
        try:
            grade = int(score)
        except ValueError as error:
            if number == 1:
                continue
            raise malformed(path, number, f"has the score {score!r}, not a whole number") from error
        if grades.setdefault(query, {}).setdefault(document, grade) != grade:
            raise malformed(path, number, f"grades query {query!r}, document {document!r} again, and differently")
    return grades
