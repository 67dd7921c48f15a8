"""What a FAISS factory string builds, whatever its layers, behind one face.

Rows are known by position and only ever appended; `reperio.indexes.faiss` gives them keys, and takes them away.

Shapes: q queries, n rows, d dimensions, k results, m positions.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense
from reperio.errors import ConfigurationError, CorruptArtifact, UnsupportedOperation
from reperio.extras import load
from reperio.indexes.chosen import Chosen
from reperio.indexes.filtered import FilteredSearch
from reperio.indexes.flat import Metric, score_pairs
from reperio.indexes.gpu import OnGpu, check_device
from reperio.indexes.layers import LISTS, Layers, write_file
from reperio.indexes.ranges import Pairs, RangeSearch
from reperio.indexes.rows import Positions, pad
from reperio.types import Neighbors

__all__ = ["FactoryIndex", "check_factory"]

_PER_CENTROID = 64
_LEAST = 4096
"""Training vectors for each centroid to be learnt, and at the least. FAISS warns below 39, and ignores over 256."""

_SAYS = re.compile(r" at \S+:\d+: (?:Error: )?(?:'[^']*' failed: (?=.))?(.*)", re.DOTALL)
"""What FAISS says is wrong, after where in its sources."""


def check_factory(factory: object) -> str:
    """Return a factory string, or refuse what cannot be one of rows that come and go.

    Raises
    ------
    ConfigurationError
        If it is no string, or its rows are in an NSG; one of centroids does not change.
    """
    if not isinstance(factory, str):
        raise ConfigurationError(f"factory is {factory!r}.", "Give a string for faiss.index_factory: 'HNSW32'.")
    if re.search(r"(?:^|,)NSG", factory):
        problem = (
            f"{factory!r} is an NSG graph, which FAISS builds in one go: it takes no rows later, and leaves none out."
        )
        raise ConfigurationError(problem, "Choose 'HNSW32'; of the centroids, 'IVF1024_NSG16,Flat' has an NSG.")
    return factory


class FactoryIndex:
    """One FAISS index and what can be asked of it.

    Parameters
    ----------
    factory
        What ``faiss.index_factory`` reads.
    metric
        A cosine is searched as an inner product of unit vectors, or by their distance where FAISS has no other, or
        a transform takes their mean away.
    dim
        d.
    seed
        Of every k-means.
    device
        ``"cpu"``, or the GPU that it is trained, filled and searched on; what that cannot do is done by a copy in
        main memory.
    saved
        Whether it is to be read from a file, and measures as it did then.

    Raises
    ------
    ConfigurationError
        If FAISS cannot build it for d dimensions and this metric, it measures something else, or it cannot grow.
    MissingDependency
        If FAISS is not installed.
    """

    def __init__(
        self, factory: str, metric: Metric, dim: int, *, seed: int = 0, device: str = "cpu", saved: bool = False
    ) -> None:
        self.metric: Metric = metric
        self.factory, self.dim, self.device, self._seed = factory, dim, device, seed
        self._faiss = load("faiss", extra="faiss")
        self._number = check_device(device)
        self._gpu: OnGpu | None = None
        self._take(self._made(saved=saved))

    def _take(self, layers: Layers) -> None:
        """Hold this index, and on the GPU, if there is to be one, a copy that leads from now on."""
        self._keep(layers)
        if self._number is not None:
            try:
                self._gpu = OnGpu(layers.index, self._number)
            except RuntimeError as error:
                raise self._refusal(f"put on {self.device}", _reason(error)) from error

    def _keep(self, layers: Layers) -> None:
        self._held, self._search = layers, FilteredSearch(layers, metric=self.metric)

    @property
    def layers(self) -> Layers:
        """The index in main memory, with all that the GPU has learnt and holds."""
        if self._gpu is not None and self._gpu.ahead:
            layers = Layers(self._gpu.to_cpu())
            layers.index_positions()
            self._keep(layers)
        return self._held

    def _made(self, *, saved: bool = False) -> Layers:
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
                changed = layers.changed(kind, unit=self.metric == "cosine")
                if changed and not saved:
                    problem = changed
                elif layers.measured == {kind}:
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
        return self._held.total if self._gpu is None else int(self._gpu.index.ntotal)

    @property
    def trained(self) -> bool:
        """Whether rows can be appended."""
        return bool((self._held if self._gpu is None else self._gpu).index.is_trained)

    @property
    def lossless(self) -> bool:
        """Whether scores are exact for the vectors appended."""
        return self.layers.lossless

    @property
    def centroids(self) -> int:
        """Fewer vectors than this cannot train it."""
        return self.layers.centroids

    @property
    def training_size(self) -> int:
        """Vectors that train it well."""
        return max(_LEAST, _PER_CENTROID * self.centroids)

    def defaults(self, k: int) -> dict[str, int]:
        """The search options there are, and their values for k results."""
        return self._held.defaults(k)

    @property
    def largest(self) -> dict[str, int]:
        """The search options there are, and the values beyond which nothing more is found."""
        return self.layers.largest

    @property
    def row_bytes(self) -> int:
        """Memory that a row takes."""
        return self._held.row_bytes

    @property
    def on_disk(self) -> bool:
        """Whether the rows are in lists on disk: nothing can be appended, or copied out of them."""
        return self._held.on_disk

    # Filling

    def check(self) -> None:
        """Fill an index like this one twice and search it: some cannot be, and say so when it is too late."""
        self._try(self._made())

    def _try(self, layers: Layers) -> None:
        vectors = np.random.default_rng(self._seed).standard_normal((8, self.dim), dtype=np.float32)
        try:
            layers.index.add(vectors[:4])
            layers.index.add(vectors[4:])
        except RuntimeError as error:
            raise self._refusal("fill", _reason(error)) from error
        try:
            layers.search(vectors[:1], 1, layers.defaults(1))
        except RuntimeError as error:
            raise self._refusal("search", _reason(error)) from error
        layers.index.reset()

    def train(self, sample: Dense) -> None:
        """Learn from vectors, ``(m, d)``, before any is appended.

        Raises
        ------
        ConfigurationError
            If FAISS cannot.
        """
        layers = self.layers
        with layers.quiet():
            try:
                if self._gpu is None:
                    layers.index.train(sample)
                else:
                    self._gpu.train(sample, seed=self._seed)
            except RuntimeError as error:
                raise self._refusal("train", _reason(error)) from error
        self._try(self.layers)

    def append(self, vectors: Dense) -> None:
        """Give the next positions to vectors, ``(m, d)``."""
        (self._held.index if self._gpu is None else self._gpu).add(vectors)

    def unmap(self) -> None:
        """Bring a mapped index into memory, where it can grow."""
        self._take(Layers(self._copied()))

    def _copied(self) -> Any:
        """By way of its bytes: a clone of a mapped index would be mapped."""
        return self._faiss.deserialize_index(self._faiss.serialize_index(self.layers.index))

    def emptied(self) -> FactoryIndex:
        """A copy that has learnt the same and holds nothing.

        Raises
        ------
        UnsupportedOperation
            If the rows are in lists on disk.
        """
        if self.on_disk:
            problem = f"The rows of this {self.factory!r} are in lists on disk."
            raise UnsupportedOperation(problem, "Build it again with `build_sharded`.")
        copy = FactoryIndex(self.factory, self.metric, self.dim, seed=self._seed, device=self.device)
        if not copy.trained:
            index = self._copied()
            index.reset()
            copy._take(Layers(index))
        return copy

    # Searching

    def search(self, queries: Dense, k: int, chosen: Chosen | None, options: Mapping[str, int]) -> Neighbors:
        """The k best positions among those chosen, or all: see `FilteredSearch.search`."""
        if self._gpu is not None:
            found = self._gpu.search(queries, k, chosen, options, self._held)
            if found is not None:
                return pad(found.ids, self._search.scores(found.scores), k)
        return self._up_to_date.search(queries, k, chosen, options)

    def exact(self, queries: Dense, k: int, chosen: Chosen | None) -> Neighbors:
        """The same by looking at every position chosen."""
        return self._up_to_date.exact(queries, k, chosen)

    def search_range(
        self, queries: Dense, threshold: float, chosen: Chosen | None, options: Mapping[str, int] | None
    ) -> Pairs:
        """Positions that reach a threshold; without options, every one is looked at."""
        search = RangeSearch(self.layers, self._search)
        if options is None:
            return search.scan(queries, threshold, chosen)
        return search.walk(queries, threshold, chosen, options)

    @property
    def _up_to_date(self) -> FilteredSearch:
        return FilteredSearch(self.layers, metric=self.metric) if self._gpu is not None else self._search

    def score(self, queries: Dense, asked: Positions, positions: Positions) -> NDArray[np.float32]:
        """Score of query ``asked[i]`` with position ``positions[i]``, ``(m,)``, from the vectors as they are kept.

        Raises
        ------
        UnsupportedOperation
            For RaBitQ, whose codes do not decode to what its search measures.
        """
        if not self.layers.decodes:
            problem = f"{self.factory!r} searches, but cannot score rows that are given."
            raise UnsupportedOperation(problem, f"Refine it: {self.factory + ',RFlat'!r}.")
        queries = self.layers.transform(queries)
        metric: Metric = "l2" if self.layers.by_distance else "ip"
        return self._search.scores(score_pairs(queries, asked, self.layers.decode, positions, metric=metric))

    def decode(self, positions: Positions) -> Dense:
        """The vectors at positions as they are kept, ``(m, d)``."""
        return self.layers.decode(positions)

    # Disk

    def write(self, path: Path) -> None:
        """Write FAISS's own file, and beside it the lists that are on disk.

        Raises
        ------
        OSError
            If the disk refuses.
        """
        try:
            if self.on_disk:
                self._held.write_beside(path)
            else:
                write_file(self.layers.index, path)
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
        faiss, beside = self._faiss, path.with_suffix(LISTS).exists()
        flags: int | None = 0
        if beside:
            flags = faiss.IO_FLAG_SKIP_IVF_DATA
        elif mapped:
            flags = getattr(faiss, "IO_FLAG_MMAP_IFC", None)
        if flags is None:
            raise UnsupportedOperation(f"FAISS {faiss.__version__} cannot map {path}.", "Install 1.11 or later.")
        if (beside or mapped) and self._number is not None:
            raise UnsupportedOperation(f"Rows on disk cannot be searched on {self.device}.", "Open it on the CPU.")
        try:
            index = self._faiss.read_index(str(path), flags)
        except RuntimeError as error:
            raise CorruptArtifact(f"FAISS cannot read {path}: {_reason(error)}.", "Rebuild it.") from error
        layers = Layers(index)
        if beside:
            layers.map_lists(path.with_suffix(LISTS))
        self._take(layers)


def _reason(error: RuntimeError) -> str:
    found = _SAYS.search(str(error))
    return (found[1] if found else str(error)).strip().rstrip(".")
