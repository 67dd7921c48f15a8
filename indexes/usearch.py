"""usearch: a graph of vectors in single, half or quarter precision, or of their signs.

Shapes: q queries, n labels, d dimensions, m labels asked for.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense
from reperio.errors import ConfigurationError
from reperio.extras import load
from reperio.indexes.flat import Metric
from reperio.indexes.labelled import FEW, LabelledIndex, check_positive
from reperio.indexes.rows import Positions
from reperio.protocols import Spec

__all__ = ["Precision", "UsearchIndex"]

Precision: TypeAlias = Literal["f32", "bf16", "f16", "i8", "b1"]
"""Bytes of each dimension: 4, 2, 2, 1 and an eighth."""

_FILE = "graph.usearch"


class UsearchIndex(LabelledIndex):
    """A graph of vectors, as exact or as compact as is asked for, searched through usearch.

    Parameters
    ----------
    metric
        ``"cosine"`` (vectors are scaled to length one when added and when asked for), ``"ip"`` (inner product), or
        ``"l2"``: the score is the squared Euclidean distance, negated.
    dtype
        What is kept of each dimension. ``"bf16"`` halves the memory at hardly any loss. ``"i8"`` (steps of 1/127) and
        ``"b1"`` (signs) are for cosine; what they find is ranked again by the query in full precision.
    connectivity
        Links of each row; twice as many on the lowest layer.
    expansion_add
        Candidates kept while a row is linked.
    expansion_search
        Candidates kept while a query is answered; where None 64, or twice k if that is more, and four times that for
        ``"b1"``.

    Raises
    ------
    ConfigurationError
        Unknown metric or dtype, or two that do not fit; a number that is not positive.

    Notes
    -----
    usearch holds the interpreter's lock while it searches, so several threads are no quicker; a batch is. Where many
    rows are added at once, several threads link them, so two graphs of the same rows may differ, and find a little
    less (0.981 in place of 0.986 of the ten best among 20,000 rows).

    Examples
    --------
    >>> index = UsearchIndex(dtype="bf16", expansion_search=100)
    >>> index.add(np.array([7, 9]), np.array([[1, 0], [0, 1]], dtype=np.float32))
    >>> index.search(np.array([[3, 4]], dtype=np.float32), 2).ids.tolist()
    [[9, 7]]
    """

    option = "expansion_search"

    def __init__(
        self,
        metric: Metric = "cosine",
        *,
        dtype: Precision = "f32",
        connectivity: int = 16,
        expansion_add: int = 128,
        expansion_search: int | None = None,
    ) -> None:
        super().__init__(metric, expansion_search)
        if dtype not in get_args(Precision):
            raise ConfigurationError(f"There is no dtype {dtype!r}.", f"Choose from: {', '.join(get_args(Precision))}.")
        if dtype in ("i8", "b1") and metric != "cosine":
            raise ConfigurationError(f"dtype {dtype!r} keeps no lengths, and metric is {metric!r}.", "Use 'cosine'.")
        check_positive(connectivity=connectivity, expansion_add=expansion_add)
        self.dtype: Precision = dtype
        self.connectivity, self.expansion_add, self.expansion_search = connectivity, expansion_add, expansion_search

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty."""
        return {
            "type": "UsearchIndex",
            "metric": self.metric,
            "dtype": self.dtype,
            "connectivity": self.connectivity,
            "expansion_add": self.expansion_add,
            "expansion_search": self.expansion_search,
        }

    @property
    def lossless(self) -> bool:
        """Whether vectors are kept as they are."""
        return self.dtype == "f32"

    def _default(self, k: int) -> int:
        return super()._default(k) * (4 if self.dtype == "b1" and self.expansion_search is None else 1)

    def _made(self, dim: int) -> _Graph:
        metric = "hamming" if self.dtype == "b1" else "l2sq" if self.metric == "l2" else "ip"
        graph = load("usearch.index", extra="usearch").Index(
            ndim=-(-dim // 8) * 8 if self.dtype == "b1" else dim,
            metric=metric,
            dtype=self.dtype,
            connectivity=self.connectivity,
            expansion_add=self.expansion_add,
            expansion_search=1,  # as many as are asked for
        )
        return _Graph(graph, dim, self.dtype)

    def _read(self, folder: Path, dim: int) -> _Graph:
        made = self._made(dim)
        wanted = (made.graph.ndim, made.graph.dtype)
        made.graph.load(str(folder / _FILE))
        found = (made.graph.ndim, made.graph.dtype)
        if found != wanted:
            raise ValueError(f"{_FILE} holds dimensions and precision {found}, not {wanted}")
        return made


class _Graph:
    looking = 2.0

    def __init__(self, graph: Any, dim: int, dtype: Precision) -> None:
        self.graph, self._dim, self._dtype = graph, dim, dtype
        self.ranks = dtype not in ("i8", "b1")

    def __len__(self) -> int:
        return len(self.graph)

    def has(self, labels: Positions) -> NDArray[np.bool_]:
        return np.asarray(self.graph.contains(labels), dtype=np.bool_)

    def append(self, start: int, vectors: Dense) -> None:
        labels = np.arange(start, start + len(vectors))
        self.graph.add(labels, self._coded(vectors), threads=1 if len(vectors) < FEW else 0)

    def propose(self, queries: Dense, count: int) -> Positions:
        found = self.graph.search(self._coded(queries), count, threads=1 if len(queries) < 8 else 0)
        out = np.full((len(queries), count), -1, dtype=np.int64)
        if len(queries) == 1:
            out[0, : len(found.keys)] = found.keys
        else:  # beyond the count is what was in memory
            out[:] = np.where(np.arange(count) < found.counts[:, None], found.keys.view(np.int64), -1)
        return out

    def decode(self, labels: Positions) -> Dense:
        if not len(labels):
            return np.empty((0, self._dim), dtype=np.float32)
        kept = np.concatenate(self.graph.get(labels)).reshape(len(labels), -1)
        if self._dtype == "b1":
            signs = np.unpackbits(kept, axis=1, count=self._dim).astype(np.float32)
            return (2 * signs - 1) / np.float32(np.sqrt(self._dim))
        return kept.astype(np.float32) / np.float32(127) if self._dtype == "i8" else kept.astype(np.float32, copy=False)

    def _coded(self, vectors: Dense) -> NDArray[Any]:
        if self._dtype == "b1":
            return np.packbits(vectors > 0, axis=1)
        return np.rint(vectors * 127).astype(np.int8) if self._dtype == "i8" else vectors

    def write(self, folder: Path) -> None:
        file = folder / _FILE
        try:
            self.graph.save(str(file))
        except RuntimeError as error:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from error
        if file.stat().st_size != self.graph.serialized_length:  # of the last bytes it does not tell
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
