"""Several signals, one order.

Scores of a signal missing for a candidate are NaN here. A collection fills them with the exact score first;
`fuse`, which knows only the rankings it is given, does not.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeAlias, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from reperio.errors import ConfigurationError
from reperio.pipeline import Step
from reperio.protocols import Spec, Stage
from reperio.types import Document, Hit, Query, Ranking

Scores: TypeAlias = Mapping[str, NDArray[np.float32]]
"""Scores of the same m candidates by signal, each ``(m,)``; NaN where a signal has none."""

Contributions: TypeAlias = dict[str, NDArray[np.float64]]
"""What each signal adds to each candidate's fused score, each ``(m,)``."""

Normalization: TypeAlias = Literal["min-max", "z-score", "theoretical", "none"]


@runtime_checkable
class Fusion(Protocol):
    """Turns the signals' scores of one query's candidates into one score each; higher is better."""

    @property
    def spec(self) -> Spec: ...

    def contributions(self, scores: Scores, /, *, lowest: Mapping[str, float]) -> Contributions:
        """What each signal adds to each candidate; ``lowest`` is each signal's lowest score in theory."""
        ...


def combine(fusion: Fusion, scores: Scores, /, *, lowest: Mapping[str, float]) -> NDArray[np.float32]:
    """Fused scores of the candidates, ``(m,)``: the sum of the signals' contributions."""
    parts = list(fusion.contributions(scores, lowest=lowest).values())
    return np.asarray(np.sum(parts, axis=0), dtype=np.float32)


class ReciprocalRank:
    """Sum over signals of weight / (k + rank); ranks start at 1, equal scores share the better rank.

    Parameters
    ----------
    k
        Damps the lead of the first ranks.
    weights
        Weight by signal name; 1 where a signal is not named.

    Notes
    -----
    Cormack, Clarke and Büttcher: Reciprocal Rank Fusion outperforms Condorcet and individual rank learning
    methods. SIGIR 2009.
    """

    def __init__(self, k: int = 60, *, weights: Mapping[str, float] | None = None) -> None:
        if k < 0:
            raise ConfigurationError(f"ReciprocalRank.k is {k}.", "Use 0 or more; 60 is usual.")
        self.k = k
        self.weights = _checked(weights)

    @property
    def spec(self) -> Spec:
        return {"type": "ReciprocalRank", "k": self.k, **({"weights": self.weights} if self.weights else {})}

    def contributions(self, scores: Scores, /, *, lowest: Mapping[str, float]) -> Contributions:
        out: Contributions = {}
        for name, values in scores.items():
            present = ~np.isnan(values)
            ascending = np.sort(-values[present])
            rank = np.searchsorted(ascending, -values[present], side="left") + 1
            out[name] = np.zeros(len(values))
            out[name][present] = self.weights.get(name, 1.0) / (self.k + rank)
        return out


class Convex:
    """Weighted mean of normalised scores.

    Parameters
    ----------
    normalize
        ``"min-max"``: lowest and highest candidate become 0 and 1.
        ``"theoretical"``: the signal's lowest possible score and its highest candidate become 0 and 1.
        ``"z-score"``: mean 0, standard deviation 1.
        ``"none"``: scores as they are, for signals whose weights were learnt on them, as ColBERTer's two.
        A candidate that a signal did not score counts as that signal's worst.
    weights
        Weight by signal name, scaled to sum 1; equal where not given.

    Notes
    -----
    Bruch, Gai and Ingber: An Analysis of Fusion Functions for Hybrid Retrieval. ACM TOIS 2023.
    """

    def __init__(self, normalize: Normalization = "min-max", *, weights: Mapping[str, float] | None = None) -> None:
        if normalize not in get_args(Normalization):
            raise ConfigurationError(
                f"Convex.normalize is {normalize!r}.", "Use min-max, z-score, theoretical or none."
            )
        self.normalize: Normalization = normalize
        self.weights = _checked(weights)

    @property
    def spec(self) -> Spec:
        return {"type": "Convex", "normalize": self.normalize, **({"weights": self.weights} if self.weights else {})}

    def contributions(self, scores: Scores, /, *, lowest: Mapping[str, float]) -> Contributions:
        out: Contributions = {}
        total = sum(self.weights.get(name, 1.0) for name in scores) or 1.0
        for name, values in scores.items():
            present = ~np.isnan(values)
            out[name] = np.zeros(len(values))
            if present.any():
                scaled = self._scale(name, values[present].astype(np.float64), lowest.get(name, -math.inf))
                out[name][:] = scaled.min() if self.normalize in ("z-score", "none") else 0.0
                out[name][present] = scaled
                out[name] *= self.weights.get(name, 1.0) / total
        return out

    def _scale(self, name: str, values: NDArray[np.float64], lowest: float) -> NDArray[np.float64]:
        if self.normalize == "none":
            return values
        if self.normalize == "z-score":
            centred: NDArray[np.float64] = (values - values.mean()) / (float(values.std()) or 1.0)
            return centred
        if self.normalize == "min-max":
            lowest = float(values.min())
        elif not math.isfinite(lowest):
            problem = f"The signal {name!r} has no lowest score, which theoretical normalisation needs."
            raise ConfigurationError(problem, "Use min-max, or a metric with a lower bound such as cosine.")
        return (values - lowest) / ((float(values.max()) - lowest) or 1.0)


class Fuse(Step[str | Query, Ranking]):
    """Runs several retrievers on the same queries and merges their rankings by document id.

    Parameters
    ----------
    stages
        Retrievers by name; the name becomes the signal's name in ``Hit.signals``.
    method
        How scores are combined.
    k
        Hits kept for each query; all where None.
    """

    def __init__(
        self, stages: Mapping[str, Stage[str | Query, Ranking]], *, method: Fusion | None = None, k: int | None = None
    ) -> None:
        if not stages:
            raise ConfigurationError("Fuse needs at least one retriever.", "Give it two or more.")
        if k is not None and k <= 0:
            raise ConfigurationError(f"Fuse.k is {k}.", "Use 1 or more, or None for all.")
        self.stages = dict(stages)
        self.method = method or ReciprocalRank()
        self.k = k

    @property
    def spec(self) -> Spec:
        stages = {name: getattr(stage, "spec", None) for name, stage in self.stages.items()}
        return {"type": "Fuse", "stages": stages, "method": self.method.spec, "k": self.k}

    def __call__(self, batch: Sequence[str | Query], /) -> Sequence[Ranking]:
        return self._merge([stage(batch) for stage in self.stages.values()])

    async def acall(self, batch: Sequence[str | Query], /) -> Sequence[Ranking]:
        """Run the retrievers side by side."""
        runs = (asyncio.to_thread(stage, batch) for stage in self.stages.values())
        return self._merge(await asyncio.gather(*runs))

    def _merge(self, results: Sequence[Sequence[Ranking]]) -> list[Ranking]:
        return [self._one(rankings) for rankings in zip(*results, strict=True)]

    def _one(self, rankings: Sequence[Ranking]) -> Ranking:
        documents: dict[str, Document] = {}
        found: dict[str, dict[str, float]] = {}
        for name, ranking in zip(self.stages, rankings, strict=True):
            for hit in ranking:
                documents.setdefault(hit.document.id, hit.document)
                found.setdefault(hit.document.id, {})[name] = hit.score
        columns = {name: np.array([s.get(name, np.nan) for s in found.values()], np.float32) for name in self.stages}
        fused = combine(self.method, columns, lowest={})
        # Equal scores keep the order of first sight, which is the order of the first retriever that found them.
        best = np.argsort(-fused, kind="stable")[: self.k]
        ids = list(found)
        hits = tuple(Hit(documents[ids[i]], float(fused[i]), found[ids[i]]) for i in best)
        return Ranking(rankings[0].query, hits)


def fuse(
    *stages: Stage[str | Query, Ranking],
    method: Fusion | Literal["rrf", "convex"] = "rrf",
    names: Sequence[str] | None = None,
    k: int | None = None,
) -> Fuse:
    """Retrievers merged into one.

    Parameters
    ----------
    stages
        Two or more retrievers.
    method
        ``"rrf"`` (reciprocal rank, k = 60), ``"convex"`` (min-max, equal weights), or a `Fusion`.
    names
        Signal names; ``"0"``, ``"1"``, ... where None.
    k
        Hits kept for each query; all where None.
    """
    chosen = {"rrf": ReciprocalRank, "convex": Convex}.get(method) if isinstance(method, str) else None
    if isinstance(method, str) and chosen is None:
        raise ConfigurationError(f"method is {method!r}.", "Use 'rrf', 'convex', or a Fusion object.")
    labels = [str(i) for i in range(len(stages))] if names is None else list(names)
    if len(set(labels)) != len(stages):
        raise ConfigurationError(f"{len(stages)} retrievers need as many different names, not {labels}.", "Name each.")
    fusion = chosen() if chosen else method
    assert not isinstance(fusion, str)
    return Fuse(dict(zip(labels, stages, strict=True)), method=fusion, k=k)


def _checked(weights: Mapping[str, float] | None) -> dict[str, float]:
    out = {name: float(value) for name, value in (weights or {}).items()}
    bad = {name: value for name, value in out.items() if not (math.isfinite(value) and value >= 0)}
    if bad or (out and not any(out.values())):
        raise ConfigurationError(f"Fusion weights are {out}.", "Use finite weights of 0 or more, at least one above 0.")
    return out
