"""Range search: every row whose score reaches a threshold.

Shapes: q queries, n rows, d dimensions, r rows found for all queries together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, Ids, IdSet
from reperio.errors import InvalidInput, UnsupportedOperation
from reperio.extras import load
from reperio.indexes.chosen import Chosen
from reperio.indexes.filtered import FilteredSearch
from reperio.indexes.flat import FlatIndex
from reperio.indexes.layers import Layers
from reperio.indexes.rows import Positions

__all__ = ["Pairs", "RangeSearch", "Ranges", "check_threshold", "ordered", "within"]

Pairs: TypeAlias = tuple[Positions, Ids, NDArray[np.float32]]
"""Which query found which row, and its score: three arrays ``(r,)``."""

_SLACK = 1e-5
"""FAISS is asked for a little more than wanted: it leaves out what lies on the threshold, and rounds."""

_BLOCK = 1 << 14
"""Rows decoded at a time."""

_QUERIES = 64
"""Queries scored at a time with all the rows that wait."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """What reaches a threshold: as many rows for each query as there are.

    Attributes
    ----------
    lims
        Query i has the places ``lims[i]`` to ``lims[i + 1]`` of the arrays below, ``(q + 1,)``, int64.
    ids
        Row keys, best first for each query, ties to the lower id, ``(r,)``.
    scores
        ``(r,)``, float32.
    """

    lims: NDArray[np.int64]
    ids: Ids
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.lims) - 1

    def row(self, i: int) -> tuple[Ids, NDArray[np.float32]]:
        """Ids and scores of query ``i``."""
        part = slice(int(self.lims[i]), int(self.lims[i + 1]))
        return self.ids[part], self.scores[part]


def check_threshold(threshold: object) -> float:
    """Return a threshold, or refuse what is no score."""
    if not isinstance(threshold, Real) or not np.isfinite(float(threshold)):
        raise InvalidInput(f"threshold is {threshold!r}.", "Give a score, such as 0.5.")
    return float(threshold)


def ordered(queries: int, *parts: Pairs) -> Ranges:
    """Ranges of pairs in any order."""
    asked, ids, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((ids, -scores, asked))
    lims = np.zeros(queries + 1, dtype=np.int64)
    np.cumsum(np.bincount(asked, minlength=queries), out=lims[1:])
    return Ranges(lims, ids[order], scores[order])


def nothing() -> Pairs:
    """No pairs."""
    return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)


def within(index: FlatIndex, queries: Dense, threshold: float, allowed: IdSet | None) -> Pairs:
    """Rows of an exact index that reach a threshold."""
    parts = [nothing()]
    for start in range(0, len(queries) if len(index) else 0, _QUERIES):
        found = index.search(queries[start : start + _QUERIES], len(index), allowed=allowed)
        asked, places = np.nonzero((found.ids >= 0) & (found.scores >= np.float32(threshold)))
        parts.append((asked + start, found.ids[asked, places], found.scores[asked, places]))
    asked, ids, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
    return asked, ids, scores


class RangeSearch:
    """Range search in one FAISS index.

    Parameters
    ----------
    layers
        The index.
    search
        Its search, which knows what a score is.
    """

    def __init__(self, layers: Layers, search: FilteredSearch) -> None:
        self._layers, self._search = layers, search
        self._faiss = load("faiss", extra="faiss")

    def walk(self, queries: Dense, threshold: float, chosen: Chosen | None, options: Mapping[str, int]) -> Pairs:
        """Positions that FAISS's own range search finds.

        Raises
        ------
        UnsupportedOperation
            If FAISS has none for this index, or none to rely on.
        """
        layers = self._layers
        if "refine" in layers.kinds:  # FAISS multiplies the radius by k_factor, which narrows an inner product's
            return self.scan(queries, threshold, chosen)
        if "RaBitQFastScan" in type(layers.core).__name__:
            raise self._refusal("has a range search that finds rows which its search does not")
        if chosen is not None and not len(chosen):
            return nothing()
        if chosen is not None:
            options = self._search.widened(options, 1, len(chosen) / chosen.total)
        try:
            return self._found(layers.index, queries, threshold, layers.parameters(options, chosen))
        except RuntimeError as error:
            raise self._refusal("has no range search" + " with a filter" * (chosen is not None)) from error

    def scan(self, queries: Dense, threshold: float, chosen: Chosen | None) -> Pairs:
        """The twin of `walk`: every position chosen is looked at, as its vector is kept.

        Raises
        ------
        UnsupportedOperation
            For RaBitQ that is not refined.
        """
        layers, faiss = self._layers, self._faiss
        if not layers.decodes:
            raise self._refusal("has no vectors to be compared one by one")
        queries, plain, parts = layers.transform(queries), layers.plain, [nothing()]
        if plain is not None:
            selector = None if chosen is None else faiss.IDSelectorBitmap(chosen.bits)
            return self._found(plain, queries, threshold, faiss.SearchParameters(sel=selector))
        positions = np.arange(layers.total) if chosen is None else chosen.positions
        for start in range(0, len(positions), _BLOCK):
            vectors = layers.decode(positions[start : start + _BLOCK])
            block = faiss.IndexFlat(vectors.shape[1], layers.core.metric_type)
            block.add(vectors)
            asked, places, scores = self._found(block, queries, threshold, None)
            parts.append((asked, positions[start + places], scores))
        asked, ids, scores = (np.concatenate(column) for column in zip(*parts, strict=True))
        return asked, ids, scores

    def _found(self, index: Any, queries: Dense, threshold: float, parameters: Any) -> Pairs:
        nearer = self._layers.by_distance
        radius = self._search.distance(threshold) if nearer else threshold
        slack = _SLACK * max(1.0, abs(radius))
        lims, found, ids = index.range_search(queries, radius + slack if nearer else radius - slack, params=parameters)
        scores = self._search.scores(0 - found if nearer else found)
        keep = scores >= np.float32(threshold)
        asked = np.repeat(np.arange(len(queries)), np.diff(lims.astype(np.int64)))
        return asked[keep], ids[keep], scores[keep]

    def _refusal(self, problem: str) -> UnsupportedOperation:
        name = type(self._layers.core).__name__
        return UnsupportedOperation(f"FAISS's {name} {problem}.", "Refine it: add ',RFlat' to the factory string.")
