"""Queries of an inverted index, their terms looked up and weighed.

Shapes: q queries, t terms of all queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reperio.indexes.postings import Positions, offsets
from reperio.indexes.weighting import Floats

__all__ = ["Weighed"]


@dataclass(frozen=True, slots=True)
class Weighed:
    """Queries, reduced to the terms that some row holds.

    Attributes
    ----------
    starts
        Where each query's terms begin, ``(q + 1,)``.
    terms
        Columns, ascending in a query, ``(t,)``.
    linear
        Whether rows hold weights of it, not counts, ``(t,)``.
    idf
        ``(t,)``.
    weights
        idf times the query's own weight, ``(t,)``.
    slots
        For each segment the slots of the terms, -1 where it holds none, ``(t,)``.
    baseline
        What a row without any of the terms scores, ``(q,)``.
    """

    starts: Positions
    terms: NDArray[np.int64]
    linear: NDArray[np.bool_]
    idf: Floats
    weights: Floats
    slots: list[Positions]
    baseline: Floats

    def __len__(self) -> int:
        return len(self.starts) - 1

    def part(self, first: int, last: int) -> Weighed:
        """Queries ``first`` up to ``last``."""
        a, b = int(self.starts[first]), int(self.starts[last])
        columns = (self.terms[a:b], self.linear[a:b], self.idf[a:b], self.weights[a:b])
        slots = [s[a:b] for s in self.slots]
        return Weighed(self.starts[first : last + 1] - a, *columns, slots, self.baseline[first:last])

    def only(self, chosen: NDArray[np.bool_]) -> Weighed:
        """The chosen queries."""
        sizes = np.diff(self.starts)
        held = np.repeat(chosen, sizes)
        slots = [s[held] for s in self.slots]
        columns = (self.terms[held], self.linear[held], self.idf[held], self.weights[held])
        return Weighed(offsets(sizes[chosen]), *columns, slots, self.baseline[chosen])
