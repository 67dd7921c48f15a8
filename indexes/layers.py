"""The layers of a FAISS index: transforms and refinement around lists, a graph, or plain codes.

Shapes: n rows, d dimensions, k results, m positions.
"""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense
from reperio.errors import CorruptArtifact
from reperio.extras import load
from reperio.indexes.chosen import Chosen
from reperio.indexes.rows import Positions

__all__ = ["LISTS", "OPTIONS", "Layers", "write_file"]

Kind: TypeAlias = Literal["transform", "refine", "lists", "graph", "codes"]

LISTS = ".ivfdata"
"""Beside FAISS's own file: the lists of an index whose rows stay on disk."""

OPTIONS = {"lists": "nprobe", "graph": "efSearch", "refine": "k_factor"}
"""The search option of each kind of layer."""

_LINK = 4
"""Bytes of a graph's link."""

_KEY = 8
"""Bytes of a row's number in a list, and of its place in the map back."""


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
        self._lock = threading.Lock()
        while index is not None:
            part = self._faiss.downcast_index(index)
            kind = self._kind(part)
            self.parts.append(part)
            self.kinds.append(kind)
            index = {"transform": "index", "refine": "base_index"}.get(kind)
            index = index and getattr(part, index)
        self.core = self.parts[-1]
        """The layer that holds the rows."""
        self.by_distance = bool(self.core.metric_type == self._faiss.METRIC_L2)
        """Whether a smaller number of FAISS's is better."""
        self.lists = int(self.core.nlist) if self.kinds[-1] == "lists" else 1
        """Lists that the rows are in."""

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
    def total(self) -> int:
        """n, all positions."""
        return int(self.index.ntotal)

    @property
    def measured(self) -> set[int]:
        """FAISS's metric of each layer; empty where a score is no metric, as of LSH's bits."""
        return set() if isinstance(self.core, self._faiss.IndexLSH) else {part.metric_type for part in self.parts}

    def changed(self, kind: int, *, unit: bool) -> str | None:
        """How its transforms change what FAISS's metric measures; None where they turn vectors, or leave some out.

        Vectors of length one (``unit``) are scaled to it once more at no loss, unless their mean was taken away.
        """
        faiss, centred = self._faiss, False
        for step in self._steps():
            if isinstance(step, faiss.ITQTransform) or getattr(step, "eigen_power", False):
                return "ITQ and whitening stretch what is measured"
            if isinstance(step, faiss.NormalizationTransform) and (centred or not unit):
                return "L2norm scales vectors to length one, and then it measures a cosine"
            centred = centred or isinstance(step, (faiss.PCAMatrix, faiss.CenteringTransform))
            if centred and kind == faiss.METRIC_INNER_PRODUCT:
                return "PCA takes the mean away, which changes every inner product"
        return None

    @property
    def lossless(self) -> bool:
        """Whether scores are those of the vectors appended."""
        faiss, outer = self._faiss, self.parts[0]
        if self.kinds[0] == "refine":
            return isinstance(faiss.downcast_index(outer.refine_index), faiss.IndexFlat)
        return isinstance(outer, (faiss.IndexFlat, faiss.IndexIVFFlat, faiss.IndexHNSWFlat))

    @property
    def row_bytes(self) -> int:
        """Memory that a row takes: its codes, its links or its place in the lists, and what refines it."""
        kind, refined = self.kinds[-1], sum(int(part.refine_index.sa_code_size()) for part in self._refining())
        core = self._faiss.downcast_index(self.core.storage) if kind == "graph" else self.core
        links = _LINK * (self.links + 1) if self.links else 0
        keys = _KEY * (1 + (self.kinds[0] != "refine")) if kind == "lists" else 0
        return int(core.code_size) + links + keys + refined

    def _refining(self) -> Iterator[Any]:
        return (part for part, kind in zip(self.parts, self.kinds, strict=True) if kind == "refine")

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

    @property
    def largest(self) -> dict[str, int]:
        """The search options there are, and the values beyond which nothing more is found."""
        total = max(1, self.total)
        limits = {"lists": self.lists, "graph": total, "refine": total}
        return {OPTIONS[kind]: limits[kind] for kind in self.kinds if kind in limits}

    @cached_property
    def selects(self) -> bool:
        """Whether FAISS can keep to a set of positions in this index."""
        selector = self._faiss.IDSelectorBitmap(np.ones(1, dtype=np.uint8))
        nothing = np.zeros((1, self.index.d), dtype=np.float32)
        try:
            self.index.search(nothing, 1, params=self._parameters(self.defaults(1), selector))
        except RuntimeError:
            return False
        return True

    @cached_property
    def row_cost(self) -> float:
        """What comparing a query with a row costs, in distances between two vectors."""
        faiss = self._faiss
        if isinstance(self.core, (faiss.IndexFlat, faiss.IndexIVFFlat, faiss.IndexHNSWFlat)):
            return 1.0
        return 0.02 if "FastScan" in type(self.core).__name__ else 0.3

    @cached_property
    def links(self) -> int:
        """Links of each row of a graph, on the layer that has them all; 0 where there is none."""
        return int(self.core.hnsw.nb_neighbors(0)) if self.kinds[-1] == "graph" else 0

    @cached_property
    def plain(self) -> Any:
        """The vectors themselves, as FAISS scans them; None where there are only codes."""
        faiss = self._faiss
        held = self.core.storage if self.kinds[-1] == "graph" else self.core
        held = faiss.downcast_index(self.parts[0].refine_index if self.kinds[0] == "refine" else held)
        return held if isinstance(held, faiss.IndexFlat) and "refine" not in self.kinds[1:] else None

    def defaults(self, k: int) -> dict[str, int]:
        """The search options there are, and their values for k results."""
        found: dict[str, int] = {}
        for part, kind in zip(self.parts, self.kinds, strict=True):
            if kind == "lists":
                found["nprobe"] = min(part.nlist, max(16, 3 * math.isqrt(part.nlist)))
            elif kind == "graph":
                found["efSearch"] = max(128, 2 * k)
            elif kind == "refine":
                found["k_factor"] = max(8, math.ceil(80 / k))
        return found

    def search(
        self, queries: Dense, k: int, options: Mapping[str, int], chosen: Chosen | None = None
    ) -> tuple[NDArray[np.float32], Positions]:
        """FAISS's own search: scores, a distance negated, and positions, ``-1`` where it found none, ``(q, k)``."""
        scores, ids = self.index.search(queries, k, params=self.parameters(options, chosen))
        return (0 - scores if self.by_distance else scores), ids

    def parameters(self, options: Mapping[str, int], chosen: Chosen | None = None) -> Any:
        """FAISS's parameters of one search, layer by layer: nothing in the index itself changes.

        They are made once for each setting and set of positions, as that takes as long as a short search.
        """
        made = self._made if chosen is None else chosen.made
        setting = tuple(options.values())
        if setting not in made:
            selector = None if chosen is None else self._faiss.IDSelectorBitmap(chosen.bits)
            made[setting] = (self._parameters(options, selector), selector)
        return made[setting][0]

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
        if self.on_disk:
            with self._lock:
                if self.core.direct_map.no():
                    self.core.make_direct_map()
        source = self.parts[1] if self.kinds[0] == "transform" else self.parts[0]
        out: Dense = source.reconstruct_batch(positions)
        return out

    def transform(self, queries: Dense) -> Dense:
        """Queries in the space of what `decode` gives."""
        if self.kinds[0] == "transform":
            for step in self._steps():
                queries = step.apply(queries)
        return np.ascontiguousarray(queries)

    # Lists on disk

    @cached_property
    def on_disk(self) -> bool:
        """Whether the rows are in lists on disk, in a file of their own."""
        if self.kinds[-1] != "lists":
            return False
        lists: Any = self._faiss.downcast_InvertedLists(self.core.invlists)
        return isinstance(lists, self._faiss.OnDiskInvertedLists) and bool(lists.filename)

    def attach(self, lists: Any, total: int) -> None:
        """Take lists on disk in place of its own; it holds them from now on."""
        self.core.replace_invlists(lists, True)
        lists.this.disown()
        self.index.ntotal = self.core.ntotal = total
        self.__dict__.pop("on_disk", None)

    def map_lists(self, path: Path) -> None:
        """Map lists that FAISS's file only describes.

        By hand, for FAISS would look where they were written, or print where it looks.

        Raises
        ------
        CorruptArtifact
            If the file is shorter than described.
        """
        lists = self._faiss.downcast_InvertedLists(self.core.invlists)
        if not isinstance(lists, self._faiss.OnDiskInvertedLists) or lists.totsize != path.stat().st_size:
            raise CorruptArtifact(f"{path} is not what its index describes.", "Rebuild it.")
        lists.filename, lists.read_only = str(path), True
        if lists.totsize:
            lists.do_mmap()

    def write_beside(self, path: Path) -> None:
        """Write FAISS's file without the lists, and these beside it."""
        lists = self._faiss.downcast_InvertedLists(self.core.invlists)
        where, lists.filename = lists.filename, path.with_suffix(LISTS).name
        try:
            write_file(self.index, path)
        finally:
            lists.filename = where
        if path.with_suffix(LISTS) != Path(where):
            shutil.copyfile(where, path.with_suffix(LISTS))


def write_file(index: Any, path: Path) -> None:
    """Write FAISS's file through Python, which notices when the last bytes do not fit; FAISS would only print it."""
    faiss = load("faiss", extra="faiss")
    with path.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
