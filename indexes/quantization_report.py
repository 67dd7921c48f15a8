"""What quantisation costs and saves, measured.

Shapes: q queries, k results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from reperio.embeddings import Ids

__all__ = ["QuantizationReport"]


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """Recall and bytes of a `reperio.indexes.quantized.QuantizedIndex`.

    Attributes
    ----------
    recall
        Share of the k best rows of an exact search that are found.
    k
        k.
    queries, rows
        How many were asked for, among how many.
    bytes_per_vector
        Of the codes in memory; for l2 with the squared length of what they stand for.
    bytes_beside
        Of the vector in full precision, if it is kept: mapped from the disk once the index is opened.
    compression
        How many times larger a vector in float32 is than its code.
    """

    recall: float
    k: int
    queries: int
    rows: int
    bytes_per_vector: int
    bytes_beside: int
    compression: float

    @classmethod
    def of(cls, found: Ids, wanted: Ids, *, rows: int, dim: int, width: int, beside: bool) -> Self:
        """What was found and what an exact search finds, both ``(q, k)``."""
        hits = sum(len(np.intersect1d(best[best >= 0], got)) for best, got in zip(wanted, found, strict=True))
        return cls(
            recall=hits / int((wanted >= 0).sum()),
            k=wanted.shape[1],
            queries=len(wanted),
            rows=rows,
            bytes_per_vector=width,
            bytes_beside=4 * dim if beside else 0,
            compression=4 * dim / width,
        )
