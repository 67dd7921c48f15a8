"""From queries to scored rows: every signal's candidates, exact scores for all of them, one fused order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, Ids, IdSet
from reperio.fusion import Fusion, combine
from reperio.signals import LiveSignal
from reperio.types import Neighbors

EXACT_SCAN = 1000
"""A filter that leaves no more rows than this is answered by scoring them all, past the index."""

OVERFETCH = 4
"""How many times k a lossy index proposes before exact scores decide."""

MIN_DEPTH = 100
"""The least that each signal proposes to a fusion."""

Options: TypeAlias = Mapping[str, Mapping[str, int]]
"""Search settings by signal: ``{"dense": {"nprobe": 32}}``."""


@dataclass(frozen=True, slots=True)
class Found:
    """The best rows of one query, best first.

    Attributes
    ----------
    rows
        Row keys, ``(m,)``, int64.
    scores
        ``(m,)``, float32, non-increasing, finite.
    signals
        Each signal's exact score of each row, ``(m,)``.
    """

    rows: Ids
    scores: Dense
    signals: Mapping[str, Dense]


def plan(signals: Sequence[LiveSignal], allowed: IdSet | None) -> dict[str, str]:
    """How each signal will look: in words, for a person."""
    out: dict[str, str] = {}
    for signal in signals:
        if allowed is None:
            out[signal.name] = f"{signal.index.spec['type']} over all {len(signal.index)} rows"
            if signal.strangers.met:
                out[signal.name] += f", without the {signal.strangers.met} of its finds that the store does not have"
        elif signal.scans_exactly and len(allowed) <= EXACT_SCAN:
            out[signal.name] = f"exact scan of the {len(allowed)} rows that pass the filter"
        else:
            out[signal.name] = f"{signal.index.spec['type']} among the {len(allowed)} rows that pass the filter"
    return out


def candidates(
    signal: LiveSignal,
    queries: Any,
    k: int,
    *,
    allowed: IdSet | None = None,
    options: Mapping[str, int] | None = None,
) -> Neighbors:
    """One signal's k best rows for each query, with exact scores."""
    if allowed is not None and signal.scans_exactly and len(allowed) <= EXACT_SCAN:
        return signal.exact(allowed).search(queries, k)
    lossless = signal.index.lossless
    depth = k if lossless else max(MIN_DEPTH, OVERFETCH * k)
    if allowed is None:
        proposed = signal.nearest(queries, depth, options=options)
    else:
        proposed = signal.index.search(queries, depth, allowed=allowed, options=options)
    if lossless:
        return proposed
    best = signal.rescore(queries, proposed)
    return Neighbors(best.ids[:, :k], best.scores[:, :k])


def alone(signal: LiveSignal, found: Neighbors) -> Iterator[Found]:
    """Results of one signal."""
    for rows, scores, held in zip(found.ids, found.scores, (found.ids >= 0).sum(axis=1).tolist(), strict=True):
        yield Found(rows[:held], scores[:held], {signal.name: scores[:held]})


@dataclass(frozen=True, slots=True)
class Pool:
    """Candidates of one query and their exact score on every signal."""

    rows: Ids
    scores: Mapping[str, Dense]
    lowest: Mapping[str, float]

    def best(self, fusion: Fusion, k: int) -> Found:
        """The k best rows by fused score; equal scores by lower row."""
        fused = combine(fusion, self.scores, lowest=self.lowest) if len(self.rows) else np.empty(0, np.float32)
        order = np.lexsort((self.rows, -fused))[:k]
        return Found(self.rows[order], fused[order], {name: s[order] for name, s in self.scores.items()})


def pools(
    signals: Sequence[LiveSignal],
    queries: Mapping[str, Any],
    found: Mapping[str, Neighbors],
    *,
    extra: Ids | None = None,
) -> list[Pool]:
    """The union of the signals' candidates, each scored exactly by each signal.

    Parameters
    ----------
    signals
        The signals to fuse.
    queries
        Encoded queries by signal.
    found
        Candidates by signal.
    extra
        Rows to score besides, for every query.
    """
    unions = [_union([*parts, extra] if extra is not None else parts) for parts in zip(*_ids(found), strict=True)]
    widest = max((len(rows) for rows in unions), default=0)
    matrix: Ids = np.full((len(unions), widest), -1, dtype=np.int64)
    for row, union in zip(matrix, unions, strict=True):
        row[: len(union)] = union
    scores = {s.name: s.score(queries[s.name], matrix) for s in signals}
    lowest = {s.name: s.index.lowest for s in signals}
    return [
        Pool(rows, {name: values[i, : len(rows)] for name, values in scores.items()}, lowest)
        for i, rows in enumerate(unions)
    ]


def _ids(found: Mapping[str, Neighbors]) -> list[Ids]:
    return [neighbors.ids for neighbors in found.values()]


def _union(parts: Sequence[NDArray[np.int64]]) -> Ids:
    rows: Ids = np.unique(np.concatenate(parts))
    return rows[rows >= 0]
