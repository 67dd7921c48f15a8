"""The layers of a FAISS index: transforms and refinement around lists, a graph, or plain codes.

Shapes: n rows, d dimensions, k results, m positions.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np

from reperio.embeddings import Dense
from reperio.extras import load
from reperio.indexes.rows import Positions

__all__ = ["OPTIONS", "Layers"]

Kind: TypeAlias = Literal["transform", "refine", "lists", "graph", "codes"]

OPTIONS = {"lists": "nprobe", "graph": "efSearch", "refine": "k_factor"}
"""The search option of each kind of layer."""


class Layers:
    """A FAISS index as its layers, outermost first; the last holds the rows.

    Parameters
    ----------
    index
        What ``faiss.index_factory`` made or ``faiss.read_index`` read.
    """

    def __init__(self, index: Any) -> None:
        self._faiss = load("faiss", extra="faiss")
        self.index = index
        self.parts: list[Any] = []
        self.kinds: list[Kind] = []
        self._made: dict[tuple[int, ...], Any] = {}
        while index is not None:
            part = self._faiss.downcast_index(index)
            kind = self._kind(part)
            self.parts.append(part)
            self.kinds.append(kind)
            index = {"transform": "index", "refine": "base_index"}.get(kind)
            index = index and getattr(part, index)

    def _kind(self, part: Any) -> Kind:
        faiss = self._faiss
        kinds: dict[Kind, Any] = {
            "transform": faiss.IndexPreTransform,
            "refine": faiss.IndexRefine,
            "lists": faiss.IndexIVF,
            "graph": faiss.IndexHNSW,
        }
        found: list[Kind] = [kind for kind, cls in kinds.items() if isinstance(part, cls)]
        return found[0] if found else "codes"

    @property
    def core(self) -> Any:
        """The layer that holds the rows."""
        return self.parts[-1]

    @property
    def measured(self) -> set[int]:
        """FAISS's metric of each layer; empty where a score is no metric, as of LSH's bits."""
        return set() if isinstance(self.core, self._faiss.IndexLSH) else {part.metric_type for part in self.parts}

    @property
    def lossless(self) -> bool:
        """Whether scores are those of the vectors appended."""
        faiss, outer = self._faiss, self.parts[0]
        if self.kinds[0] == "refine":
            return isinstance(faiss.downcast_index(outer.refine_index), faiss.IndexFlat)
        return isinstance(outer, (faiss.IndexFlat, faiss.IndexIVFFlat, faiss.IndexHNSWFlat))

    # Training

    @property
    def centroids(self) -> int:
        """Size of the largest codebook to be learnt; 0 where there is none."""
        return max((size for size, _ in self._codebooks()), default=0)

    def seed(self, seed: int) -> None:
        """Fix what k-means draws, and let it take few vectors without a word on the standard error stream."""
        for _, clustering in self._codebooks():
            if clustering is not None:
                clustering.seed, clustering.min_points_per_centroid = seed, 1

    def _codebooks(self) -> Iterator[tuple[int, Any]]:
        """Size of each codebook, and the settings of its k-means where FAISS lets them be set."""
        faiss, core = self._faiss, self.core
        inner = [getattr(core, name, None) for name in ("quantizer", "storage")]
        parts = [faiss.downcast_index(part) for part in inner if isinstance(part, faiss.Index)]
        if self.kinds[-1] == "lists" and not isinstance(parts[0], faiss.MultiIndexQuantizer):
            yield core.nlist, core.cp
        for part in (core, *parts):
            if hasattr(part, "pq"):
                yield part.pq.ksub, part.pq.cp
            if any(hasattr(part, name) for name in ("rq", "lsq", "prq", "plsq")):
                yield 256, None
        yield from ((256, None) for _ in self._rotations())

    def _rotations(self) -> Iterator[Any]:
        """Rotations that are learnt with a product quantizer of their own."""
        return (step for step in self._steps() if isinstance(step, self._faiss.OPQMatrix))

    def _steps(self) -> Iterator[Any]:
        """Transforms, in the order in which a vector passes them."""
        for part, kind in zip(self.parts, self.kinds, strict=True):
            if kind == "transform":
                yield from (self._faiss.downcast_VectorTransform(part.chain.at(i)) for i in range(part.chain.size()))

    @contextmanager
    def quiet(self) -> Generator[None]:
        """While training: rotations, too, take few vectors without a word."""
        lent = [(step, self._faiss.ProductQuantizer(step.d_out, step.M, 8)) for step in self._rotations()]
        for step, quantizer in lent:
            quantizer.cp.min_points_per_centroid = 1
            step.pq = quantizer
        try:
            yield
        finally:
            for step, _ in lent:
                step.pq = None

    # Searching

    def defaults(self, k: int) -> dict[str, int]:
        """The search options there are, and their values for k results."""
        found: dict[str, int] = {}
        for part, kind in zip(self.parts, self.kinds, strict=True):
            if kind == "lists":
                found["nprobe"] = min(part.nlist, max(8, math.isqrt(part.nlist)))
            elif kind == "graph":
                found["efSearch"] = max(64, 2 * k)
            elif kind == "refine":
                found["k_factor"] = 8
        return found

    def parameters(self, options: Mapping[str, int], selector: Any = None) -> Any:
        """FAISS's parameters of one search, layer by layer: nothing in the index itself changes.

        Without a selector they are made once for each setting, as that takes as long as a short search.
        """
        if selector is not None:
            return self._parameters(options, selector)
        setting = tuple(options.values())
        if setting not in self._made:
            self._made[setting] = self._parameters(options, None)
        return self._made[setting]

    def _parameters(self, options: Mapping[str, int], selector: Any) -> Any:
        faiss, inner = self._faiss, None
        for kind in reversed(self.kinds):
            if kind == "lists":
                inner = faiss.SearchParametersIVF(sel=selector, nprobe=min(self.core.nlist, options["nprobe"]))
            elif kind == "graph":
                inner = faiss.SearchParametersHNSW(sel=selector, efSearch=options["efSearch"])
            elif kind == "refine":
                inner = faiss.IndexRefineSearchParameters(k_factor=options["k_factor"], base_index_params=inner)
            elif kind == "transform":
                inner = None if inner is None else faiss.SearchParametersPreTransform(index_params=inner)
            elif selector is not None:
                inner = faiss.SearchParameters(sel=selector)
        return inner

    # Reading rows back

    @property
    def decodes(self) -> bool:
        """Whether `decode` gives what the search measures: not for RaBitQ, whose search corrects its codes."""
        return self.kinds[0] == "refine" or "RaBitQ" not in type(self.core).__name__

    def index_positions(self) -> None:
        """Let lists find a row by its position, where nothing outside them can: 8 bytes a row."""
        if self.kinds[-1] == "lists" and self.kinds[0] != "refine":
            self.core.make_direct_map()

    def decode(self, positions: Positions) -> Dense:
        """The vectors at positions as they are kept, ``(m, d)``; behind an outermost transform, transformed."""
        source = self.parts[1] if self.kinds[0] == "transform" else self.parts[0]
        out: Dense = source.reconstruct_batch(positions)
        return out

    def transform(self, queries: Dense) -> Dense:
        """Queries in the space of what `decode` gives."""
        if self.kinds[0] == "transform":
            for step in self._steps():
                queries = step.apply(queries)
        return np.ascontiguousarray(queries)
