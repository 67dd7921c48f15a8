"""The second stage of finding tools: by the queries that used the candidates.

Shapes: q queries, u usages, d dimensions, c candidates, f features.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense
from reperio.errors import ConfigurationError, InvalidInput
from reperio.pipeline import Step
from reperio.protocols import Encoder, Spec
from reperio.types import Hit, Ranking

__all__ = ["ToolRefiner"]

_NEAREST = 50
"""Usages among which a tool's share is counted."""

_SCALE = 20.0
"""What cosines are multiplied with before their exponential weighs a usage."""

_RIDGE = 1e-2
"""What keeps weights finite where the candidates can be told apart without error."""

NEIGHBOURS = ("closest usage", "three closest usages", "share of usages", "number of usages")
"""Features of a candidate beside its scores."""


class ToolRefiner(Step[Ranking, Ranking]):
    """Orders candidates anew by all their scores and by the queries nearest to this one that used them.

    A small model, fitted with `fit`: one weight for each score in ``Hit.signals``, taken relative to the ranking's
    mean and spread, and one for each of four features of the candidate's usages. A usage with the very text of the
    query is left out. The result is a permutation of its input; equal scores keep their order.

    Parameters
    ----------
    encoder
        Encodes queries.
    usages
        Tool id → queries that used it.
    weights
        Feature → weight; what `fit` found.
    signal
        Name of the new score in ``Hit.signals``.

    Raises
    ------
    InvalidInput
        If there is no usage.

    References
    ----------
    Moon et al., Efficient and Scalable Estimation of Tool Representations in Vector Space, 2024, whose ToolRefiner is
    a transformer: this one is far smaller.
    """

    def __init__(
        self,
        encoder: Encoder[Dense],
        usages: Mapping[str, Sequence[str]],
        *,
        weights: Mapping[str, float] | None = None,
        signal: str = "refined",
    ) -> None:
        self.encoder = encoder
        self.usages = {name: list(queries) for name, queries in usages.items() if queries}
        if not self.usages:
            raise InvalidInput("There is no usage.", "Give queries that used the tools.")
        self.weights = None if weights is None else dict(weights)
        self.signal = signal
        self._lock = threading.Lock()
        self._known: _Usages | None = None

    @property
    def spec(self) -> Spec:
        return {
            "type": "ToolRefiner",
            "encoder": dict(self.encoder.spec),
            "usages": self.usages,
            "weights": self.weights,
            "signal": self.signal,
        }

    def fit(self, rankings: Sequence[Ranking], relevant: Mapping[str, Collection[str]]) -> ToolRefiner:
        """One that puts the right candidates first, as well as it can be told from these rankings.

        Parameters
        ----------
        rankings
            Of the first stage, for queries that its vectors were not made of: else it trusts them too much.
        relevant
            Query id → ids of the tools that it uses.

        Raises
        ------
        InvalidInput
            If no ranking holds a right candidate and a wrong one.
        """
        names = sorted({name for ranking in rankings for hit in ranking for name in hit.signals})
        features, targets = list[NDArray[np.float64]](), list[NDArray[np.float64]]()
        for ranking, rows in zip(rankings, self._features(rankings, names), strict=True):
            right = np.array([hit.document.id in relevant.get(ranking.query.id, ()) for hit in ranking], float)
            if 0 < right.sum() < len(right):
                features.append(rows)
                targets.append(right / right.sum())
        if not features:
            raise InvalidInput("No ranking holds a right candidate and a wrong one.", "Give more, or deeper ones.")
        found = _fitted(features, targets)
        weights = {name: float(weight) for name, weight in zip([*names, *NEIGHBOURS], found, strict=True)}
        again = ToolRefiner(self.encoder, self.usages, weights=weights, signal=self.signal)
        again._known = self._known
        return again

    def __call__(self, batch: Sequence[Ranking], /) -> Sequence[Ranking]:
        if self.weights is None:
            raise ConfigurationError("The ToolRefiner has no weights.", "Use what its `fit` returns.")
        names = [name for name in self.weights if name not in NEIGHBOURS]
        weights = np.array([self.weights.get(name, 0.0) for name in (*names, *NEIGHBOURS)])
        features = self._features(batch, names)
        return [self._order(ranking, rows @ weights) for ranking, rows in zip(batch, features, strict=True)]

    def _order(self, ranking: Ranking, scores: NDArray[np.float64]) -> Ranking:
        hits = list(ranking)
        best: list[int] = np.argsort(-scores, kind="stable").tolist()
        return Ranking(
            ranking.query,
            tuple(
                Hit(hits[i].document, float(scores[i]), {**hits[i].signals, self.signal: float(scores[i])})
                for i in best
            ),
        )

    def _features(self, rankings: Sequence[Ranking], names: Sequence[str]) -> list[NDArray[np.float64]]:
        """``(c, f)`` for each ranking."""
        with self._lock:
            if self._known is None:
                self._known = _Usages(self.encoder, self.usages)
            known = self._known
        texts = list(dict.fromkeys(ranking.query.text for ranking in rankings))
        vectors = dict(zip(texts, _unit(self.encoder.encode_query(texts).embeddings), strict=True)) if texts else {}
        out: list[NDArray[np.float64]] = []
        for ranking in rankings:
            hits = list(ranking)
            scores = [_relative([hit.signals.get(name, np.nan) for hit in hits]) for name in names]
            text = ranking.query.text
            near = known.features(text, vectors[text], [hit.document.id for hit in hits])
            out.append(np.column_stack([*scores, near]) if hits else np.empty((0, len(names) + len(NEIGHBOURS))))
        return out


class _Usages:
    """Usages as vectors, each query once."""

    def __init__(self, encoder: Encoder[Dense], usages: Mapping[str, Sequence[str]]) -> None:
        self.row: dict[str, int] = {}
        self.of = {
            name: np.unique([self.row.setdefault(query, len(self.row)) for query in queries])
            for name, queries in usages.items()
        }
        self.vectors = _unit(encoder.encode_query(list(self.row)).embeddings)

    def features(self, text: str, vector: Dense, names: Sequence[str]) -> NDArray[np.float64]:
        """Those in `NEIGHBOURS`, ``(c, 4)``."""
        cosines = (self.vectors @ vector).astype(np.float64)
        own = self.row.get(text)
        if own is not None:
            cosines[own] = -np.inf
        depth = min(_NEAREST, len(cosines))
        floor = np.partition(cosines, -depth)[-depth]
        weights = np.where(cosines >= floor, np.exp(_SCALE * (cosines - 1)), 0)
        total = weights.sum() or 1.0
        out = np.zeros((len(names), len(NEIGHBOURS)))
        for i, name in enumerate(names):
            rows = self.of.get(name, np.empty(0, np.int64))
            rows = rows[rows != own] if own is not None else rows
            if len(rows):
                best = np.sort(cosines[rows])[::-1][:3]
                out[i] = best[0], best.mean(), weights[rows].sum() / total, np.log1p(len(rows))
        return out


def _relative(scores: Sequence[float]) -> NDArray[np.float64]:
    """Scores less their mean, by their spread; one that is not there has the lowest."""
    values = np.array(scores, dtype=np.float64)
    there = np.isfinite(values)
    if not there.any():
        return np.zeros(len(values))
    values = np.where(there, values, values[there].min())
    out: NDArray[np.float64] = (values - values.mean()) / max(float(values.std()), 1e-9)
    return out


def _fitted(features: Sequence[NDArray[np.float64]], targets: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Weights with which the softmax over candidates is closest to the targets: convex, by damped Newton steps."""
    spread = np.maximum(np.concatenate(features).std(axis=0), 1e-6)
    scaled = [rows / spread for rows in features]
    weights = np.zeros(len(spread))
    loss, slope, curve = _softmax_loss(weights, scaled, targets)
    for _ in range(50):
        step, size = np.linalg.solve(curve, slope), 1.0
        while size > 1e-6:
            tried = _softmax_loss(weights - size * step, scaled, targets)
            if tried[0] <= loss - 1e-4 * size * float(slope @ step):
                break
            size /= 2
        else:
            break
        weights = weights - size * step
        loss, slope, curve = tried
        if float(np.abs(slope).max()) < 1e-8:
            break
    out: NDArray[np.float64] = weights / spread
    return out


def _softmax_loss(
    weights: NDArray[np.float64], features: Sequence[NDArray[np.float64]], targets: Sequence[NDArray[np.float64]]
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Mean cross-entropy and ridge, with its first and second derivative."""
    loss, slope, curve = _RIDGE / 2 * float(weights @ weights), _RIDGE * weights, _RIDGE * np.eye(len(weights))
    for rows, target in zip(features, targets, strict=True):
        scores = rows @ weights
        scores = scores - scores.max()
        total = np.exp(scores).sum()
        chances = np.exp(scores) / total
        mean = chances @ rows
        loss += float(np.log(total) - target @ scores) / len(features)
        slope = slope + ((chances - target) @ rows) / len(features)
        curve = curve + ((rows * chances[:, None]).T @ rows - np.outer(mean, mean)) / len(features)
    return loss, slope, curve


def _unit(vectors: Dense) -> Dense:
    out: Dense = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    return out
