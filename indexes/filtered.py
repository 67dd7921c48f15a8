"""Search among some of the rows of a FAISS index: a walk that looks further, or a look at each of them.

Shapes: q queries, n rows, d dimensions, k results, m rows that may be returned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense
from reperio.extras import load
from reperio.indexes.chosen import KEPT, Chosen
from reperio.indexes.flat import Block, Metric, nearest, squared
from reperio.indexes.layers import Layers
from reperio.indexes.rows import Positions, merge, nothing, pad
from reperio.types import Neighbors

__all__ = ["FilteredSearch"]

# What things cost, in distances between a query and a vector that is scanned in order.
_PER_LINK = (0.6, 38.0)
"""A link of a candidate of a graph's walk: so many distances, and so many components of them, for what it leads to
takes its time to come from memory, however few dimensions there are."""
_TEST = 0.08
"""Asking whether a row may be returned."""
_APART = 1.2
"""A vector that is compared where it lies, others left out: 44 ns, where to test and compare all in order took 69."""
_DECODING = 2.0
"""Gathering a vector by its position, for all queries of a batch."""
_PRODUCT = 0.3
"""A distance that is part of a matrix product."""
_MISSES = 1.5
"""How much more a look at each row may cost than a walk: it finds them all."""

_WIDER = 0.75
"""Among a share s of the rows, lists are probed s to the power of minus this as often …"""
_SPREAD = 0.32
"""… and a graph's candidates are this many times their own root for each of the k/s rows that k of all stand for."""

_FEW = 4
"""Up to so many queries, FAISS compares chosen vectors where they lie; more share a gathered copy."""

_MANY = 20
"""From so many, matrices are multiplied."""

_BLOCK = 1 << 14
"""Rows gathered at a time."""


class FilteredSearch:
    """Always min(k, m) positions, found by whichever way costs less.

    Parameters
    ----------
    layers
        The index.
    metric
        What a score is; a cosine may be searched by distance.

    Notes
    -----
    The best k of a share s of the rows are about the best k/s of all. So a walk through a graph keeps once or twice
    that many candidates, and one through lists probes s^-¾ times as many; where looking at each of the m rows is
    not much dearer, that is done instead. The costs are counted in distances. While the same set of rows is asked for
    again, a copy of their vectors is kept, if it takes no more than 16 MB.
    """

    def __init__(self, layers: Layers, *, metric: Metric) -> None:
        self.metric: Metric = metric
        self._layers = layers
        self._faiss = load("faiss", extra="faiss")

    def search(self, queries: Dense, k: int, chosen: Chosen | None, options: Mapping[str, int]) -> Neighbors:
        """The k best positions among those chosen, or all: always as many as there are, up to k.

        Parameters
        ----------
        options
            A value for each name in `Layers.defaults`.
        """
        held = self._layers.total if chosen is None else len(chosen)
        want = min(k, held)
        if want == 0:
            return nothing(len(queries), k)
        if chosen is not None and self._decided(want, chosen, len(queries), options):
            found = self.scan(queries, want, chosen)
        else:
            found = self._walk(queries, want, chosen, options)
            if found.ids.size and found.ids.min() < 0:
                self._complete(found, queries, chosen, options)
        return found if want == k else pad(found.ids, found.scores, k)

    def exact(self, queries: Dense, k: int, chosen: Chosen | None) -> Neighbors:
        """The twin of `search`: every position chosen is looked at."""
        held = self._layers.total if chosen is None else len(chosen)
        if self._layers.decodes and held:
            found = self.scan(queries, min(k, held), chosen)
            return pad(found.ids, found.scores, k)
        return self.search(queries, k, chosen, self._layers.largest)

    # Costs

    def _decided(self, want: int, chosen: Chosen, queries: int, options: Mapping[str, int]) -> bool:
        """Whether to look at each; kept with the set, for to reckon it takes as long as a tenth of a short search."""
        case = ("scans", want, queries, *options.values())
        if case not in chosen.made:
            chosen.made[case] = self._scans(want, len(chosen), queries, options)
        return bool(chosen.made[case])

    def _scans(self, want: int, held: int, queries: int, options: Mapping[str, int], effort: float = 1) -> bool:
        """Whether to look at each row that may be returned."""
        return self._scan_cost(held, queries) <= _MISSES * self._walk_cost(want, held, options, effort)

    def _scan_cost(self, held: int, queries: int) -> float:
        if not self._layers.decodes:
            return math.inf
        if queries <= _FEW and self._layers.plain is not None:
            return held if self._keeps(held) else _APART * held
        return held * ((_PRODUCT if queries >= _MANY else 1) + _DECODING / max(1, queries))

    def _walk_cost(self, want: int, held: int, options: Mapping[str, int], effort: float = 1) -> float:
        layers, total = self._layers, self._layers.total
        options = self.widened(options, want, held / total, effort)
        seen = held / total * layers.row_cost + _TEST if layers.selects else layers.row_cost
        if layers.kinds[-1] == "graph":
            distances, components = _PER_LINK
            link = distances + components / layers.index.d
            return float(link * layers.links * layers.row_cost * options["efSearch"])
        if layers.kinds[-1] == "lists":
            return layers.lists + options["nprobe"] * total / layers.lists * seen
        return total * seen

    def widened(self, options: Mapping[str, int], want: int, share: float, effort: float = 1) -> dict[str, int]:
        """Options of a walk among a share of the rows that is to find as much as it would among all."""
        out, total = dict(options), self._layers.total
        if "nprobe" in out:
            out["nprobe"] = min(self._layers.lists, math.ceil(out["nprobe"] * effort * share**-_WIDER))
        if "efSearch" in out:
            kept = float(out["efSearch"])
            if share < 1:
                kept = max(kept, min(2.0, max(1.0, _SPREAD * math.sqrt(kept))) * want / share)
            out["efSearch"] = min(total, math.ceil(effort * kept))
        if "k_factor" in out:
            out["k_factor"] = min(total, out["k_factor"])
        return out

    # Walking

    def _walk(
        self, queries: Dense, want: int, chosen: Chosen | None, options: Mapping[str, int], effort: float = 1
    ) -> Neighbors:
        """FAISS's own search; ``-1`` where it has seen too few rows."""
        fetch, selected = want, chosen
        if chosen is not None:
            share = len(chosen) / self._layers.total
            if not self._layers.selects:
                selected = None
                fetch = min(self._layers.total, math.ceil(want * effort / share))
            options = self.widened(options, want, share, effort)
        elif effort > 1:
            options = self.widened(options, want, 1, effort)
        scores, ids = self._layers.search(queries, fetch, options, selected)
        scores = self.scores(scores)
        if chosen is not None and selected is None:
            ids[~chosen.mask[ids]] = -1
        if ids.size and ids.min() < 0:
            scores[ids < 0] = -np.inf
        if fetch > want:
            order = np.argsort(-scores, axis=1, kind="stable")[:, :want]
            ids, scores = np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
        return Neighbors(ids, scores)

    def _complete(self, found: Neighbors, queries: Dense, chosen: Chosen | None, options: Mapping[str, int]) -> None:
        """Look further for the queries that have too few rows."""
        want, effort = found.ids.shape[1], 1.0
        held = self._layers.total if chosen is None else len(chosen)
        short = np.flatnonzero((found.ids < 0).any(axis=1))
        while len(short):
            effort *= 4
            last = effort > self._layers.total
            if self._scans(want, held, len(short), options, effort) or (last and self._layers.decodes):
                again = self.scan(queries[short], want, chosen)
            else:
                again = self._walk(queries[short], want, chosen, options, effort)
            found.ids[short], found.scores[short] = again.ids, again.scores
            short = short[(again.ids < 0).any(axis=1) & (not last)]

    # Looking at each

    def scan(self, queries: Dense, want: int, chosen: Chosen | None) -> Neighbors:
        """The best of every position chosen, from the vectors as they are kept."""
        queries, plain = self._layers.transform(queries), self._layers.plain
        if plain is not None and chosen is None:
            return self._compared(queries, want, None)
        positions = np.arange(self._layers.total) if chosen is None else chosen.positions
        kept = None if chosen is None else self._kept(chosen, len(queries))
        if kept is not None:
            found = self._block(queries, want, positions, kept)
        elif plain is not None and len(queries) <= _FEW:
            return self._compared(queries, want, chosen)
        else:
            blocks = (positions[i : i + _BLOCK] for i in range(0, len(positions), _BLOCK))
            found = merge([self._block(queries, want, part, self._layers.decode(part)) for part in blocks], want)
        return Neighbors(found.ids, self.scores(found.scores))

    def _compared(self, queries: Dense, want: int, chosen: Chosen | None) -> Neighbors:
        """By FAISS, where the vectors lie."""
        parameters = None
        if chosen is not None:
            if "array" not in chosen.made:
                selector = self._faiss.IDSelectorArray(chosen.positions)
                chosen.made["array"] = (self._faiss.SearchParameters(sel=selector), selector)
            parameters = chosen.made["array"][0]
        scores, ids = self._layers.plain.search(queries, want, params=parameters)
        return Neighbors(ids, self.scores(self._negated(scores)))

    def _keeps(self, held: int) -> bool:
        return held * int(self._layers.index.d) <= KEPT

    def _kept(self, chosen: Chosen, queries: int) -> Dense | None:
        """Their vectors side by side, if they are few; where they can be compared as they lie, the second time."""
        if "vectors" not in chosen.made and self._keeps(len(chosen)):
            if self._layers.plain is not None and queries <= _FEW and "seen" not in chosen.made:
                chosen.made["seen"] = True
                return None
            chosen.made["vectors"] = self._layers.decode(chosen.positions)
        found: Dense | None = chosen.made.get("vectors")
        return found

    def _block(self, queries: Dense, want: int, positions: Positions, vectors: Dense) -> Neighbors:
        if len(queries) >= _MANY:
            block = Block(positions, vectors, squared(vectors))
            return nearest(queries, want, [block], metric="l2" if self._layers.by_distance else "ip")
        metric = self._faiss.METRIC_L2 if self._layers.by_distance else self._faiss.METRIC_INNER_PRODUCT
        scores, places = self._faiss.knn(queries, vectors, min(want, len(positions)), metric=metric)
        return Neighbors(positions[places], self._negated(scores))

    def _negated(self, scores: NDArray[np.float32]) -> Dense:
        out: Dense = 0 - scores if self._layers.by_distance else scores
        return out

    def scores(self, scores: Dense) -> Dense:
        """A cosine from the negated squared distance of unit vectors; anything else as it is."""
        return scores / np.float32(2) + np.float32(1) if self._halved else scores

    def distance(self, score: float) -> float:
        """Where the index measures distances: the one that has this score."""
        return 2 - 2 * score if self._halved else -score

    @property
    def _halved(self) -> bool:
        return self.metric == "cosine" and self._layers.by_distance
