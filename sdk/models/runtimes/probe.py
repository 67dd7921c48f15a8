"""How near the vectors of an export are to those that torch gives, on texts that are always the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from reperio.embeddings import Dense
from reperio.errors import UnsupportedOperation

__all__ = ["EQUAL", "LEAST_COSINE", "TEXTS", "Probe", "compared", "overlap"]

LEAST_COSINE = 0.999
"""An export whose vectors are farther from torch's than this is not used."""

EQUAL = 1e-5
"""Largest difference, over the length of the vector, at which two runtimes count as one in a fingerprint."""

_LONG = (
    "Retrieval finds, among many documents, the few that answer a question. An encoder turns each text into a vector, "
    "and vectors that point the same way belong to texts that mean alike; an index finds the nearest of them. "
)

TEXTS = (
    "a",
    "Merge multiple sorted inputs into a single sorted output.",
    "What is the boiling point of liquid nitrogen at 2.5 bar?",
    "Größe 42, naïve café, œuvre; ¿qué pasa?",
    "東京タワーの高さは333メートルです。",
    "здравствуй мир, как дела?",
    "يُكتب العربيّ من اليمين إلى اليسار",
    "def merge(*iterables, key=None):\n\treturn sorted(chain(*iterables), key=key)  # O(n log n)",
    "HTTP/1.1 404 Not Found; id=0x7f3a-9b; 3.14159e-07; <b>&amp;</b>; C:\\tmp\\x.log",
    "🇪🇺🙂 !?!?!? ... --- ___ 0000000000 zzzzzzzzzzzzzzzzzz",
    "No effect of the treatment on survival was found in either of the two groups of patients.",
    _LONG,
    _LONG * 8,
)
"""Short and long, several scripts, code, numbers, and what no training text looks like."""


@dataclass(frozen=True, slots=True)
class Probe:
    """How near one set of vectors is to another of the same texts.

    Attributes
    ----------
    cosine
        The least of all texts.
    difference
        The largest between two components, over the length of the vector.
    recall
        Mean share of a text's ten nearest others that both name, where it was asked for.
    """

    cosine: float
    difference: float
    recall: float | None = None

    @property
    def equal(self) -> bool:
        """Whether they differ by no more than one machine's vectors do from another's."""
        return self.difference <= EQUAL

    def check(self, what: str, *, least: float = LEAST_COSINE) -> None:
        """Refuse what is too far off.

        Raises
        ------
        UnsupportedOperation
            With the numbers.
        """
        if not self.cosine >= least:  # NaN too
            near = "" if self.recall is None else f", and {self.recall:.1%} of the ten nearest texts are the same"
            problem = f"{what} gives vectors whose cosine with torch's is {self.cosine:.4f} at the lowest{near}."
            fix = f"It is not used, being below {least:g}; use another runtime or precision"
            raise UnsupportedOperation(problem, f"{fix}, or say with least_cosine that you accept it.")

    def as_json(self) -> dict[str, Any]:
        """For a manifest."""
        return {"cosine": self.cosine, "difference": self.difference, "recall": self.recall}


def compared(wanted: Dense, got: Dense, *, recall: float | None = None) -> Probe:
    """Hold vectors ``got`` against ``wanted``, both ``(n, d)``."""
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(lengths[0] * lengths[1], np.finfo(np.float32).tiny)
    differences = np.abs(a - b).max(axis=1) / np.maximum(lengths[0], np.finfo(np.float32).tiny)
    return Probe(float(cosines.min()), float(differences.max()), recall)


def overlap(wanted: Dense, got: Dense, *, k: int = 10) -> float:
    """Mean share of the ``k`` nearest other rows, by cosine, that both sets of vectors agree on."""

    def nearest(vectors: Dense) -> np.ndarray[Any, np.dtype[np.intp]]:
        rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        scores = rows @ rows.T
        np.fill_diagonal(scores, -np.inf)
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]

    pairs = zip(nearest(wanted), nearest(got), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in pairs]))
