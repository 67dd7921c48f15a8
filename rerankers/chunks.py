"""Hits that are chunks of documents → one hit for each document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np

from reperio.errors import ConfigurationError, InvalidInput
from reperio.pipeline import Step
from reperio.protocols import Spec
from reperio.types import Hit, Ranking

__all__ = ["ChunkGrouper"]

ChunkScore: TypeAlias = Literal["max", "mean"]


class ChunkGrouper(Step[Ranking, Ranking]):
    """Keeps the best chunk of each document, and scores the document by its chunks.

    Where a document has fewer than ``top`` chunks in the ranking, the ranking's lowest score stands for each that
    lacks: it is at least what the chunk would have had. Ties keep their order. Documents are told apart by a field of
    their chunks' metadata.

    Parameters
    ----------
    field
        Name of the metadata field that holds the document's id.
    score
        ``"max"``: the best chunk's score. ``"mean"``: the mean of the ``top`` best.
    top
        How many chunks the mean is taken of.
    signal
        Name of the new score in ``Hit.signals``.

    Raises
    ------
    ConfigurationError
        For an unknown score or a ``top`` below 1.

    Examples
    --------
    >>> from reperio import Document, Hit, Query, Ranking
    >>> found = [("x", 3.0), ("y", 2.0), ("y", 2.0)]
    >>> hits = [Hit(Document(str(i), "…", {"page": page}), score) for i, (page, score) in enumerate(found)]
    >>> [ranking] = ChunkGrouper("page", score="mean", top=2)([Ranking(Query("q", "?"), hits)])
    >>> [(hit.document.metadata["page"], hit.score) for hit in ranking]
    [('x', 2.5), ('y', 2.0)]
    """

    def __init__(self, field: str, *, score: ChunkScore = "max", top: int = 3, signal: str = "chunks") -> None:
        if score not in get_args(ChunkScore):
            raise ConfigurationError(f"score is {score!r}.", f"Use one of {', '.join(get_args(ChunkScore))}.")
        if top < 1:
            raise ConfigurationError(f"top is {top}.", "Use 1 or more.")
        self.field = field
        self.score: ChunkScore = score
        self.top = top
        self.signal = signal

    @property
    def spec(self) -> Spec:
        """How to build this again."""
        return {
            "type": "ChunkGrouper",
            "field": self.field,
            "score": self.score,
            "top": self.top,
            "signal": self.signal,
        }

    def __call__(self, batch: Sequence[Ranking], /) -> Sequence[Ranking]:
        """Rankings of documents, each hit the document's best chunk.

        Raises
        ------
        InvalidInput
            If a hit has no such field.
        """
        return [self._one(ranking) for ranking in batch]

    def _one(self, ranking: Ranking) -> Ranking:
        groups: dict[object, list[Hit]] = {}
        for hit in ranking:
            key = hit.document.metadata.get(self.field)
            if key is None:
                problem = f"The hit {hit.document.id!r} has no metadata field {self.field!r}."
                raise InvalidInput(problem, "Name the field that holds the id of a chunk's document.")
            groups.setdefault(key, []).append(hit)
        lowest = min((hit.score for hit in ranking), default=0.0)
        scored = [(self._score([hit.score for hit in hits], lowest), hits[0]) for hits in groups.values()]
        scored.sort(key=lambda pair: -pair[0])
        return Ranking(
            ranking.query,
            tuple(Hit(hit.document, score, {**hit.signals, self.signal: score}) for score, hit in scored),
        )

    def _score(self, scores: list[float], lowest: float) -> float:
        best = sorted(scores, reverse=True)[: self.top]
        if self.score == "max":
            return best[0]
        return float(np.mean([*best, *[lowest] * (self.top - len(best))]))
