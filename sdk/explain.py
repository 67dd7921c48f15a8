"""Why a document is, or is not, among the hits of a query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reperio.types import Document


@dataclass(frozen=True, slots=True)
class TermScore:
    """What one term adds to a lexical score: ``contribution`` = query weight × idf × saturated frequency.

    Of a learned weight, which is the ``frequency`` then, the idf is 1 and nothing is saturated.
    """

    term: str
    frequency: float
    idf: float
    contribution: float


@dataclass(frozen=True, slots=True)
class SignalScore:
    """One signal's part.

    Attributes
    ----------
    score
        On the signal's own scale; higher is better.
    rank
        Among all candidates of this query, from 1.
    contribution
        What it adds to the fused score.
    plan
        How the signal looked for candidates.
    proposed
        Whether the signal itself brought the document up.
    terms
        Term by term, where the signal is lexical.
    """

    score: float
    rank: int
    contribution: float
    plan: str
    proposed: bool
    terms: tuple[TermScore, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """One query, one document.

    Attributes
    ----------
    query
        The query's text.
    document
        The document.
    score
        Fused score; the sum of the signals' contributions where there are several.
    rank
        Where it stands among all candidates, from 1; None if the filter shuts it out, or nothing in it matches.
    fusion
        How the signals were combined; None where there is one.
    filter
        The filter, and whether the document passes; None where there is no filter.
    signals
        Part of each signal.
    seq
        Sequence number of the store that was searched.
    """

    query: str
    document: Document
    score: float
    rank: int | None
    fusion: Mapping[str, Any] | None
    filter: tuple[str, bool] | None
    signals: Mapping[str, SignalScore]
    seq: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        where = "" if self.document.provenance is None else f"  ({self.document.provenance})"
        lines = [f"{self.document.id}{where}", f"rank {self.rank}  score {self.score:.4f}  for {self.query!r}"]
        if self.filter is not None:
            lines.append(f"filter {self.filter[0]}: {'passes' if self.filter[1] else 'shut out'}")
        for name, part in self.signals.items():
            how = "proposed it" if part.proposed else "scored it"
            lines.append(
                f"  {name}: {part.score:.4f}, rank {part.rank}, adds {part.contribution:.4f}; {how} by {part.plan}"
            )
            lines += [f"    {t.term}: {_held(t)}, adds {t.contribution:.4f}" for t in part.terms]
        return "\n".join(lines)


def _held(term: TermScore) -> str:
    if term.idf == 1:
        return f"weighs {term.frequency:.4g} in the text"
    return f"{term.frequency:g}× in the text, idf {term.idf:.3f}"
