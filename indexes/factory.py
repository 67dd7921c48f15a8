"""What a FAISS factory string builds, whatever its layers, behind one face.

Rows are known by position and only ever appended; `reperio.indexes.faiss` gives them keys, and takes them away.

Shapes: q queries, n rows, d dimensions, k results, m positions.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense
from reperio.errors import ConfigurationError, CorruptArtifact, UnsupportedOperation
from reperio.extras import load
from reperio.indexes.flat import Block, Metric, nearest, score_pairs, squared
from reperio.indexes.layers import Layers
from reperio.indexes.rows import Positions, pad
from reperio.types import Neighbors

__all__ = ["FactoryIndex"]

Mask: TypeAlias = NDArray[np.bool_]

_PER_CENTROID = 64
_LEAST = 4096
"""Training vectors for each centroid to be learnt, and at the least. FAISS warns below 39, and ignores over 256."""

_VISITED = 4
"""Rows that are looked at one by one in the time that a walk takes for one of its ``efSearch`` candidates."""

_BLOCK = 1 << 14
"""Rows decoded at a time."""

_SAYS = re.compile(r" at \S+:\d+: (?:Error: )?(?:'[^']*' failed: (?=.))?(.*)", re.DOTALL)
"""What FAISS says is wrong, after where in its sources."""


class FactoryIndex:
    """One FAISS index and what can be asked of it.

    Parameters
    ----------
    factory
        What ``faiss.index_factory`` reads.
    metric
        A cosine is searched as an inner product of unit vectors, or by their distance where FAISS has no other.
    dim
        d.
    seed
        Of every k-means.

    Raises
    ------
    ConfigurationError
        If FAISS cannot build it for d dimensions and this metric, or it cannot grow.
    MissingDependency
        If FAISS is not installed.
    """

    def __init__(self, factory: str, metric: Metric, dim: int, *, seed: int = 0) -> None:
        self.metric: Metric = metric
        self.factory, self.dim, self._seed = factory, dim, seed
        self._faiss = load("faiss", extra="faiss")
        self._layers = self._made()

    def _made(self) -> Layers:
        """A fresh FAISS index of the metric asked for, or its twin."""
        faiss = self._faiss
        wanted = faiss.METRIC_L2 if self.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        # Keys are kept by `Rows`, so an id map of FAISS's own has nothing to do.
        plain = re.sub(r"^IDMap2?,|,IDMap2?$", "", self.factory)
        problem = "it measures something else"
        for kind in [wanted, faiss.METRIC_L2] if self.metric == "cosine" else [wanted]:
            try:
                layers = Layers(faiss.index_factory(self.dim, plain, kind))
            except RuntimeError as error:
                problem = _reason(error)
            else:
                if layers.measured == {kind}:
                    layers.seed(self._seed)
                    layers.index_positions()
                    return layers
        raise self._refusal("build", problem)

    def _refusal(self, verb: str, problem: str) -> ConfigurationError:
        what = f"FAISS cannot {verb} {self.factory!r} with {self.dim} dimensions and metric {self.metric!r}: {problem}."
        return ConfigurationError(what, "Choose another factory string or metric.")

    @property
    def total(self) -> int:
        """n, all positions."""
        return int(self._layers.index.ntotal)

    @property
    def trained(self) -> bool:
        """Whether rows can be appended."""
        return bool(self._layers.index.is_trained)

    @property
    def lossless(self) -> bool:
        """Whether scores are exact for the vectors appended."""
        return self._layers.lossless

    @property
    def centroids(self) -> int:
        """Fewer vectors than this cannot train it."""
        return self._layers.centroids

    @property
    def training_size(self) -> int:
        """Vectors that train it well."""
        return max(_LEAST, _PER_CENTROID * self.centroids)

    def defaults(self, k: int) -> dict[str, int]:
        """The search options there are, and their values for k results."""
        return self._layers.defaults(k)

    # Filling

    def check(self) -> None:
        """Append twice to an index like this one: some can be filled only once, and say so when it is too late."""
        self._try(self._made())

    def _try(self, layers: Layers) -> None:
        vectors = np.random.default_rng(self._seed).standard_normal((8, self.dim), dtype=np.float32)
        try:
            layers.index.add(vectors[:4])
            layers.index.add(vectors[4:])
        except RuntimeError as error:
            raise self._refusal("fill", _reason(error)) from error
        layers.index.reset()

    def train(self, sample: Dense) -> None:
        """Learn from vectors, ``(m, d)``, before any is appended.

        Raises
        ------
        ConfigurationError
            If FAISS cannot.
        """
        with self._layers.quiet():
            try:
                self._layers.index.train(sample)
            except RuntimeError as error:
                raise self._refusal("train", _reason(error)) from error
        self._try(self._layers)

    def append(self, vectors: Dense) -> None:
        """Give the next positions to vectors, ``(m, d)``."""
        self._layers.index.add(vectors)

    def emptied(self) -> FactoryIndex:
        """A copy that has learnt the same and holds nothing."""
        copy = FactoryIndex(self.factory, self.metric, self.dim, seed=self._seed)
        if not copy.trained:
            # By way of its bytes: a clone of a mapped index would be mapped, and cannot be emptied.
            index = self._faiss.deserialize_index(self._faiss.serialize_index(self._layers.index))
            index.reset()
            copy._layers = Layers(index)
        return copy

    # Searching

    @cached_property
    def _selects(self) -> bool:
        """Whether FAISS can keep to a set of positions in this index."""
        selector = self._faiss.IDSelectorBitmap(np.ones(1, dtype=np.uint8))
        nothing = np.zeros((1, self.dim), dtype=np.float32)
        try:
            self._layers.index.search(nothing, 1, params=self._layers.parameters(self.defaults(1), selector))
        except RuntimeError:
            return False
        return True

    def search(self, queries: Dense, k: int, mask: Mask | None, options: Mapping[str, int]) -> Neighbors:
        """The k best positions where ``mask`` is true: always as many as there are, up to k.

        Parameters
        ----------
        mask
            ``(n,)``; None for all. An approximate search through one row in ten looks ten times as far, to see as
            many rows as it would without; if it finds too few, further still, and at last at every row.
        options
            A value for each name in `defaults`.
        """
        held = self.total if mask is None else int(np.count_nonzero(mask))
        want = min(k, held)
        if want == 0:
            return pad(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32), k)
        effort, limit = self.total / held, self._limit(want, held, options)
        if held < self.total and effort >= limit and self._scans:
            found = self._scan(queries, want, mask)
        else:
            found = self._walk(queries, want, mask, options, effort)
            if found.ids.size and found.ids.min() < 0:
                self._complete(found, queries, mask, options, effort=effort, limit=limit)
        return found if want == k else pad(found.ids, found.scores, k)

    def _complete(
        self,
        found: Neighbors,
        queries: Dense,
        mask: Mask | None,
        options: Mapping[str, int],
        *,
        effort: float,
        limit: float,
    ) -> None:
        """Look further for the queries that have too few rows."""
        want = found.ids.shape[1]
        short = np.flatnonzero((found.ids < 0).any(axis=1))
        while len(short) and effort < limit:
            effort = min(4 * effort, limit)
            again = self._walk(queries[short], want, mask, options, effort)
            found.ids[short], found.scores[short] = again.ids, again.scores
            short = short[(again.ids < 0).any(axis=1)]
        if len(short):
            again = self._scan(queries[short], want, mask)
            found.ids[short], found.scores[short] = again.ids, again.scores

    def _limit(self, want: int, held: int, options: Mapping[str, int]) -> float:
        """The effort at which a walk has seen every row, or it is cheaper to look at each that is held."""
        kind, limit = self._layers.kinds[-1], 1.0
        if kind == "lists":
            limit = self._layers.core.nlist / options["nprobe"]
        elif kind == "graph":
            limit = held / (_VISITED * options["efSearch"])
        if held < self.total and not self._selects:
            limit = max(limit, (held if self._layers.decodes else self.total) / want)
        return limit

    @property
    def _scans(self) -> bool:
        """Whether a search among few rows is slower than looking at each of them."""
        return self._layers.decodes and (self._layers.kinds[-1] == "graph" or not self._selects)

    def _walk(
        self, queries: Dense, want: int, mask: Mask | None, options: Mapping[str, int], effort: float
    ) -> Neighbors:
        """FAISS's own search; ``-1`` where it has seen too few rows."""
        selector, fetch = None, want
        if mask is not None and self._selects:
            selector = self._faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        elif mask is not None:
            fetch = min(self.total, math.ceil(want * effort))
        if effort > 1:
            wider = (
                (name, value if name == "k_factor" else math.ceil(value * effort)) for name, value in options.items()
            )
            options = {name: min(value, self.total) for name, value in wider}
        found, ids = self._layers.index.search(queries, fetch, params=self._layers.parameters(options, selector))
        scores = self._scores(0 - found) if self._by_distance else found
        if mask is not None and selector is None:
            ids[~mask[ids]] = -1
        if ids.size and ids.min() < 0:
            scores[ids < 0] = -np.inf
        if fetch > want:
            order = np.argsort(-scores, axis=1, kind="stable")[:, :want]
            ids, scores = np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
        return Neighbors(ids, scores)

    def _scan(self, queries: Dense, want: int, mask: Mask | None) -> Neighbors:
        """Every position that the mask keeps, decoded a block at a time and scored in numpy."""
        positions = np.arange(self.total) if mask is None else np.flatnonzero(mask)
        queries = self._layers.transform(queries)
        found = nearest(queries, want, self._blocks(positions), metric=self._pair_metric)
        return Neighbors(found.ids, self._scores(found.scores))

    def _blocks(self, positions: Positions) -> Iterator[Block]:
        for start in range(0, len(positions), _BLOCK):
            part = positions[start : start + _BLOCK]
            vectors = self._layers.decode(part)
            yield Block(part, vectors, squared(vectors))

    def score(self, queries: Dense, asked: Positions, positions: Positions) -> NDArray[np.float32]:
        """Score of query ``asked[i]`` with position ``positions[i]``, ``(m,)``, from the vectors as they are kept.

        Raises
        ------
        UnsupportedOperation
            For RaBitQ, whose codes do not decode to what its search measures.
        """
        if not self._layers.decodes:
            problem = f"{self.factory!r} searches, but cannot score rows that are given."
            raise UnsupportedOperation(problem, f"Refine it: {self.factory + ',RFlat'!r}.")
        queries = self._layers.transform(queries)
        return self._scores(score_pairs(queries, asked, self._layers.decode, positions, metric=self._pair_metric))

    def decode(self, positions: Positions) -> Dense:
        """The vectors at positions as they are kept, ``(m, d)``."""
        return self._layers.decode(positions)

    @property
    def _by_distance(self) -> bool:
        return bool(self._layers.core.metric_type == self._faiss.METRIC_L2)

    @property
    def _pair_metric(self) -> Metric:
        return "l2" if self._by_distance else "ip"

    def _scores(self, scores: Dense) -> Dense:
        """A cosine from the negated squared distance of unit vectors; anything else as it is."""
        return scores / np.float32(2) + np.float32(1) if self._by_distance and self.metric == "cosine" else scores

    # Disk

    def write(self, path: Path) -> None:
        """Write FAISS's own file.

        Raises
        ------
        OSError
            If the disk refuses.
        """
        try:
            self._faiss.write_index(self._layers.index, str(path))
        except RuntimeError as error:
            causes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
            code = next((code for code in causes if os.strerror(code) in str(error)), errno.EIO)
            raise OSError(code, os.strerror(code), str(path)) from error

    def read(self, path: Path, *, mapped: bool) -> None:
        """Take the contents of a file that `write` made from an index of the same specification.

        Parameters
        ----------
        mapped
            Leave the rows on disk and map them into memory; nothing can be appended then.

        Raises
        ------
        CorruptArtifact
            If FAISS cannot read it.
        """
        flags = getattr(self._faiss, "IO_FLAG_MMAP_IFC", None) if mapped else 0
        if flags is None:
            raise UnsupportedOperation(f"FAISS {self._faiss.__version__} cannot map {path}.", "Install 1.11 or later.")
        try:
            index = self._faiss.read_index(str(path), flags)
        except RuntimeError as error:
            raise CorruptArtifact(f"FAISS cannot read {path}: {_reason(error)}.", "Rebuild it.") from error
        self._layers = Layers(index)


def _reason(error: RuntimeError) -> str:
    found = _SAYS.search(str(error))
    return (found[1] if found else str(error)).strip().rstrip(".")
