"""What one system returned for each query."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

from reperio.artifacts import replace_text
from reperio.errors import DuplicateId, InvalidInput
from reperio.evaluation.lines import malformed, read_lines
from reperio.types import Query, Ranking

Scored = tuple[str, float]
"""A document id and its score."""


@dataclass(frozen=True, slots=True, eq=False)
class Run(Mapping[str, Sequence[Scored]]):
    """Query id → (document id, score) pairs, best first. The order is the result; equal scores keep it.

    Attributes
    ----------
    name
        The system.
    results
        The pairs of each query that was asked, also of those that found nothing.
    seconds
        Wall time of all queries together, where it was measured.

    Raises
    ------
    DuplicateId
        If a query has one document twice.
    InvalidInput
        If scores are not finite, or rise along a result.
    """

    name: str
    results: Mapping[str, Sequence[Scored]]
    seconds: float | None = None

    def __post_init__(self) -> None:
        checked = {query: _checked(self.name, query, found) for query, found in self.results.items()}
        object.__setattr__(self, "results", checked)

    @classmethod
    def from_rankings(
        cls, name: str, rankings: Iterable[Ranking], *, k: int | None = None, seconds: float | None = None
    ) -> Self:
        """The ``k`` best of each ranking, or all.

        Raises
        ------
        DuplicateId
            If two rankings answer one query, or one holds a document twice.
        InvalidInput
            If scores are not finite, or rise.
        """
        results: dict[str, Sequence[Scored]] = {}
        for ranking in rankings:
            if ranking.query.id in results:
                raise DuplicateId(f"{name}: two rankings answer query {ranking.query.id!r}.", "Give each query once.")
            results[ranking.query.id] = [(hit.document.id, hit.score) for hit in ranking[:k]]
        return cls(name, results, seconds)

    def __getitem__(self, query: str) -> Sequence[Scored]:
        return self.results[query]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def top(self, k: int) -> Run:
        """The same run, each result cut to its ``k`` best."""
        return Run(self.name, {query: found[:k] for query, found in self.results.items()}, self.seconds)

    def write_trec(self, path: Path | str) -> None:
        """Write the form of ``trec_eval``: ``query Q0 document rank score name``, ranks from 1.

        The format has no line for a query that found nothing: give `read_trec` the queries to have them back.

        Raises
        ------
        InvalidInput
            If a name holds white space, which the format cannot carry.
        StorageError
            If the disk refuses; a file already there is then as it was.
        """
        names = {self.name, *self.results, *(document for found in self.results.values() for document, _ in found)}
        bad = sorted(name for name in names if len(name.split()) != 1 or name != name.strip())
        if bad:
            raise InvalidInput(f"{bad[0]!r} is empty or holds white space ({len(bad)} such names).", "Rename it.")
        lines = (
            f"{query} Q0 {document} {rank} {score!r} {self.name}\n"
            for query, found in self.results.items()
            for rank, (document, score) in enumerate(found, 1)
        )
        replace_text(Path(path), "".join(lines))

    @classmethod
    def read_trec(cls, path: Path | str, *, queries: Iterable[Query] = ()) -> Self:
        """Read the form of ``trec_eval``: by falling score; equal scores by rank, then by document id.

        Parameters
        ----------
        path
            The file.
        queries
            What was asked: those without a line found nothing.

        Raises
        ------
        NotFound
            If there is no such file.
        ConnectorError
            Naming the line that is malformed, or of another run than the first.
        """
        path, name = Path(path), None
        found: dict[str, list[tuple[float, int, str]]] = {query.id: [] for query in queries}
        for number, line in read_lines(path):
            columns = line.split()
            if len(columns) != 6:
                raise malformed(path, number, f"has {len(columns)} columns, not query, Q0, document, rank, score, name")
            query, _, document, rank, score, tag = columns
            try:
                found.setdefault(query, []).append((-float(score), int(rank), document))
            except ValueError as error:
                raise malformed(path, number, f"has rank {rank!r} and score {score!r}, not numbers") from error
            name = tag if name is None else name
            if tag != name:
                raise malformed(path, number, f"is of run {tag!r}, after lines of {name!r}")
        ordered = {
            query: [(document, -score) for score, _, document in sorted(lines)] for query, lines in found.items()
        }
        return cls(name or path.stem, ordered)


def _checked(name: str, query: str, found: Sequence[Scored]) -> tuple[Scored, ...]:
    pairs = tuple((document, float(score)) for document, score in found)
    seen: set[str] = set()
    for document, score in pairs:
        if document in seen:
            raise DuplicateId(f"{name}, query {query!r}: document {document!r} is there twice.", "Rank each once.")
        if not math.isfinite(score):
            problem = f"{name}, query {query!r}: document {document!r} has the score {score}."
            raise InvalidInput(problem, "Leave out what has no score.")
        seen.add(document)
    for (_, before), (document, score) in pairwise(pairs):
        if score > before:
            problem = f"{name}, query {query!r}: the score rises from {before} to {score} at document {document!r}."
            raise InvalidInput(problem, "Sort by score, best first; higher is better.")
    return pairs
