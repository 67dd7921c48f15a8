"""What can be done to vectors so that an index finds more, or holds less; undone in the scores.

An inner product ranks the same keys after their mean is taken away, and the same as a distance once every key has
been given one length. An approximate index, which groups keys by where they lie, does not search them the same: out
of distribution, where queries lie far from all keys, either of the two can double its recall.

Shapes: n rows, q queries, d dimensions, k results.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense
from reperio.errors import ConfigurationError, ShapeError, UnsupportedOperation
from reperio.indexes.flat import Metric, unit
from reperio.protocols import Spec

__all__ = ["Centre", "NormCoordinate", "Normalise", "Transform", "Truncate"]

_ABOVE = 1 + 1e-6
"""Lifts the longest length above what rounding makes of it."""


class Transform(ABC):
    """One change of vectors, for `reperio.indexes.TransformedIndex`.

    A subclass says what becomes of rows, of queries and of metrics; and, where a score is another number afterwards,
    how to have the first one back.

    Attributes
    ----------
    learns
        Whether it must see a sample of rows before it can be used.
    lossless
        Whether scores are given back as they were.
    learned
        What the sample taught; None before.
    """

    learns: ClassVar[bool] = False
    lossless: ClassVar[bool] = True
    learned: NDArray[np.float64] | None = None

    @property
    def spec(self) -> Spec:
        """How to build it again, before it has learnt."""
        return {"type": type(self).__name__}

    @property
    def ready(self) -> bool:
        """Whether it has learnt what it must."""
        return self.learned is not None or not self.learns

    @abstractmethod
    def outer(self, inner: Metric) -> Metric:
        """What a search by the metric ``inner`` measures, seen from before this transform.

        Raises
        ------
        ConfigurationError
            If that is no metric.
        """

    def learn(self, sample: Dense) -> Self:
        """A copy that has learnt from rows, ``(n, d)``, at least one."""
        return self if not self.learns else self.restored(self.lesson(sample))

    def lesson(self, sample: Dense) -> NDArray[np.float64]:
        """What is to be kept of a sample."""
        raise UnsupportedOperation(f"{type(self).__name__} learns, but does not say what.", "Write its `lesson`.")

    def takes(self, learned: NDArray[np.float64], dim: int) -> bool:
        """Whether this is what a sample of d dimensions can have taught."""
        return True

    def restored(self, learned: NDArray[np.float64] | None) -> Self:
        """A copy that has learnt this."""
        out = copy.copy(self)
        out.learned = learned
        return out

    def fits(self, vectors: Dense) -> NDArray[np.bool_]:
        """Which rows it can take, ``(n,)``; the others are searched as they are."""
        return np.ones(len(vectors), dtype=np.bool_)

    @abstractmethod
    def rows(self, vectors: Dense) -> Dense:
        """Rows for the index behind, ``(n, d')``; those that do not fit are any finite vectors."""

    @abstractmethod
    def queries(self, queries: Dense, *, inner: Metric) -> Dense:
        """Queries for the index behind, which searches by ``inner``, ``(q, d')``."""

    def scores(self, queries: Dense, scores: Dense, *, inner: Metric) -> Dense:
        """The scores that these queries would have had before the transform, ``(q, k)``; finite, same order."""
        return scores

    def _refused(self, inner: Metric, fix: str) -> ConfigurationError:
        return ConfigurationError(f"{type(self).__name__} means nothing to an index that searches by {inner!r}.", fix)

    def _learned(self) -> NDArray[np.float64]:
        assert self.learned is not None, "an index learns before it transforms"
        return self.learned


class Centre(Transform):
    """Take the mean row away from every row.

    By inner product every score of a query falls by the same ``query · mean``, so the ranking is the same, and the
    scores are given back by adding it. By distance the queries move along.

    Examples
    --------
    >>> centre = Centre().learn(np.array([[1, 0], [3, 0]], dtype=np.float32))
    >>> centre.rows(np.array([[2, 5]], dtype=np.float32)).tolist()
    [[0.0, 5.0]]
    """

    learns = True

    def outer(self, inner: Metric) -> Metric:
        """Inner product or distance, as behind; not cosine, which a shift changes."""
        if inner == "cosine":
            raise self._refused(inner, "Search behind by 'ip', and put Normalise() first for cosines.")
        return inner

    def lesson(self, sample: Dense) -> NDArray[np.float64]:
        """The mean, ``(d,)``, as float32 has it."""
        mean: NDArray[np.float64] = sample.mean(axis=0, dtype=np.float64).astype(np.float32).astype(np.float64)
        return mean

    def takes(self, learned: NDArray[np.float64], dim: int) -> bool:
        """Whether it is a mean of d dimensions."""
        return learned.shape == (dim,)

    def rows(self, vectors: Dense) -> Dense:
        """Less the mean."""
        return vectors - self._learned().astype(np.float32)

    def queries(self, queries: Dense, *, inner: Metric) -> Dense:
        """As they are for an inner product; for a distance less the mean."""
        return self.rows(queries) if inner == "l2" else queries

    def scores(self, queries: Dense, scores: Dense, *, inner: Metric) -> Dense:
        """With ``query · mean`` added for an inner product."""
        if inner == "l2":
            return scores
        return (scores + (queries @ self._learned())[:, None]).astype(np.float32)


class NormCoordinate(Transform):
    """Give every row one length by a further coordinate, √(M² − |row|²), so that the nearest is the best product.

    M is the length of the longest row seen in learning. A longer one that comes later does not fit: it is searched
    exactly, beside the index, until that is built again. Queries are scaled to length M, which ranks the same: their
    distances then round off no more than the products do.

    Notes
    -----
    Bachrach et al.: Speeding up the Xbox recommender system using a Euclidean transformation for inner-product
    spaces. RecSys 2014.

    Examples
    --------
    >>> transform = NormCoordinate().learn(np.array([[3, 4]], dtype=np.float32))
    >>> transform.rows(np.array([[3, 0]], dtype=np.float32)).round(3).tolist()
    [[3.0, 0.0, 4.0]]
    """

    learns = True

    def outer(self, inner: Metric) -> Metric:
        """Inner product, by a distance or a cosine behind."""
        if inner == "ip":
            raise self._refused(inner, "Search behind by 'l2' or 'cosine'.")
        return "ip"

    def lesson(self, sample: Dense) -> NDArray[np.float64]:
        """M, ``(1,)``."""
        longest = float(_lengths(sample).max())
        return np.array([longest * _ABOVE if longest else 1.0])

    def takes(self, learned: NDArray[np.float64], dim: int) -> bool:
        """Whether it is one length."""
        return learned.shape == (1,) and bool(learned[0] > 0)

    def fits(self, vectors: Dense) -> NDArray[np.bool_]:
        """Which are not longer than M."""
        return _lengths(vectors) <= self._learned()

    def rows(self, vectors: Dense) -> Dense:
        """With the further coordinate, ``(n, d + 1)``."""
        room = np.maximum(self._learned() ** 2 - _lengths(vectors) ** 2, 0)
        return np.hstack([vectors, np.sqrt(room).astype(np.float32)[:, None]])

    def queries(self, queries: Dense, *, inner: Metric) -> Dense:
        """Of length M, with 0 for the further coordinate, ``(q, d + 1)``."""
        lengths = _lengths(queries)
        scale = np.divide(self._learned(), lengths, out=np.zeros_like(lengths), where=lengths > 0)
        return np.hstack([(queries * scale[:, None]).astype(np.float32), np.zeros((len(queries), 1), np.float32)])

    def scores(self, queries: Dense, scores: Dense, *, inner: Metric) -> Dense:
        """Inner products, from −|q′ − k′|² = 2 q′·k − 2 M² with q′ = M q / |q|, or from q·k / (|q| M)."""
        longest, lengths = self._learned(), _lengths(queries)[:, None]
        products = np.where(lengths > 0, longest + scores / (2 * longest), 0) if inner == "l2" else scores * longest
        return (products * lengths).astype(np.float32)


class Normalise(Transform):
    """Scale every vector to length one: cosines from an index that searches by inner product or distance.

    A row that is zero does not fit: it has a cosine, 0, but no distance that tells it.
    """

    def outer(self, inner: Metric) -> Metric:
        """Cosine."""
        return "cosine"

    def fits(self, vectors: Dense) -> NDArray[np.bool_]:
        """Which are longer than zero."""
        return _lengths(vectors) > 0

    def rows(self, vectors: Dense) -> Dense:
        """Of length one; zero stays zero."""
        return unit(vectors)

    def queries(self, queries: Dense, *, inner: Metric) -> Dense:
        """Of length one; zero stays zero."""
        return unit(queries)

    def scores(self, queries: Dense, scores: Dense, *, inner: Metric) -> Dense:
        """A cosine from the negated squared distance of unit vectors; else as it is."""
        if inner != "l2":
            return scores
        return np.where(_lengths(queries)[:, None] > 0, 1 + scores / 2, 0).astype(np.float32)


class Truncate(Transform):
    """Keep the first dimensions only, as Matryoshka embeddings are made for.

    Scores are those of the shortened vectors; where the index behind searches by cosine, it scales these to length
    one again.

    Parameters
    ----------
    dims
        How many to keep.

    Raises
    ------
    ConfigurationError
        If it is not positive.

    Notes
    -----
    Kusupati et al.: Matryoshka Representation Learning. NeurIPS 2022.
    """

    lossless = False

    def __init__(self, dims: int) -> None:
        if dims < 1:
            raise ConfigurationError(f"dims is {dims}.", "Keep 1 dimension or more.")
        self.dims = dims

    @property
    def spec(self) -> Spec:
        """How to build it again."""
        return {"type": "Truncate", "dims": self.dims}

    def outer(self, inner: Metric) -> Metric:
        """As behind."""
        return inner

    def rows(self, vectors: Dense) -> Dense:
        """The first dimensions.

        Raises
        ------
        ShapeError
            If there are fewer.
        """
        if vectors.shape[1] < self.dims:
            problem = f"Truncate({self.dims}) was given vectors of {vectors.shape[1]} dimensions."
            raise ShapeError(problem, "Keep no more dimensions than there are.")
        return np.ascontiguousarray(vectors[:, : self.dims])

    def queries(self, queries: Dense, *, inner: Metric) -> Dense:
        """The first dimensions."""
        return self.rows(queries)


def _lengths(vectors: Dense) -> NDArray[np.float64]:
    out: NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    return out
