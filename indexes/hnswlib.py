"""hnswlib: the graph of the paper that made it known, quick to search.

Shapes: q queries, n labels, d dimensions, m labels asked for.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense
from reperio.extras import load
from reperio.indexes.flat import Metric
from reperio.indexes.labelled import FEW, LabelledIndex, check_positive
from reperio.indexes.rows import Positions, grown
from reperio.indexes.stored import finite, read_array
from reperio.protocols import Spec

__all__ = ["HnswlibIndex"]

_GRAPH, _VECTORS = "graph.hnsw", "vectors.npy"


class HnswlibIndex(LabelledIndex):
    """A graph of full-precision vectors, searched through hnswlib.

    Parameters
    ----------
    metric
        ``"cosine"`` (vectors are scaled to length one when added and when asked for), ``"ip"`` (inner product), or
        ``"l2"``: the score is the squared Euclidean distance, negated.
    m
        Links of each row; twice as many on the lowest layer.
    ef_construction
        Candidates kept while a row is linked.
    ef
        Candidates kept while a query is answered; 64, or twice k if that is more, where None.

    Raises
    ------
    ConfigurationError
        Unknown metric; a number that is not positive.

    Notes
    -----
    Malkov and Yashunin: Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small
    World graphs. TPAMI 2020. hnswlib gives a vector back number by number, 50 µs for 384 dimensions, so a second copy
    of them is kept for scores and filters: 4 d bytes a row, mapped from the disk once opened. Where
    many rows are added at once, several threads link them, so two graphs of the same rows may differ.

    Examples
    --------
    >>> index = HnswlibIndex("l2", m=8, ef=100)
    >>> index.add(np.array([7, 9]), np.array([[1, 0], [0, 1]], dtype=np.float32))
    >>> index.search(np.array([[1, 0]], dtype=np.float32), 2, options={"ef": 200}).scores.tolist()
    [[0.0, -2.0]]
    """

    option = "ef"

    def __init__(
        self, metric: Metric = "cosine", *, m: int = 16, ef_construction: int = 200, ef: int | None = None
    ) -> None:
        super().__init__(metric, ef)
        check_positive(ef_construction=ef_construction)
        check_positive(2, m=m)
        self.m, self.ef_construction, self.ef = m, ef_construction, ef

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty."""
        return {
            "type": "HnswlibIndex",
            "metric": self.metric,
            "m": self.m,
            "ef_construction": self.ef_construction,
            "ef": self.ef,
        }

    @property
    def lossless(self) -> bool:
        """True: vectors are kept as they are."""
        return True

    def _made(self, dim: int) -> _Graph:
        graph = self._graph(dim)
        graph.init_index(_Graph.FIRST, M=self.m, ef_construction=self.ef_construction)
        return _Graph(graph, np.empty((0, dim), dtype=np.float32))

    def _read(self, folder: Path, dim: int) -> _Graph:
        graph = self._graph(dim)
        graph.load_index(str(folder / _GRAPH))
        vectors = read_array(folder / _VECTORS, np.float32, (None, dim), mapped="r")
        held = graph.get_current_count()
        if not held <= len(vectors) <= len(self._rows.ids) or not finite(vectors):
            raise ValueError(f"its graph is of {held} rows, {_VECTORS} of {len(vectors)}, or not finite")
        return _Graph(graph, vectors)

    def _graph(self, dim: int) -> Any:
        return load("hnswlib", extra="hnswlib").Index("l2" if self.metric == "l2" else "ip", dim)


class _Graph:
    FIRST = 1024
    """Rows that there is room for at first."""

    ranks = True
    looking = 0.15

    def __init__(self, graph: Any, vectors: Dense) -> None:
        self._graph, self._vectors, self._size = graph, vectors, len(vectors)
        graph.set_ef(1)  # as many as are asked for

    def __len__(self) -> int:
        return int(self._graph.get_current_count())

    def has(self, labels: Positions) -> NDArray[np.bool_]:
        held = np.array(self._graph.get_ids_list(), dtype=np.int64)
        return np.isin(labels, held[held < self._size])

    def append(self, start: int, vectors: Dense) -> None:
        size = start + len(vectors)
        if size > self._graph.get_max_elements():
            self._graph.resize_index(max(size, self._graph.get_max_elements() * 3 // 2))
        self._vectors = grown(self._vectors, size)
        self._vectors[self._size : start] = 0  # of labels that it never had
        self._vectors[start:size] = vectors
        self._size = size
        self._graph.add_items(vectors, np.arange(start, size), num_threads=1 if len(vectors) < FEW else -1)

    def propose(self, queries: Dense, count: int) -> Positions:
        try:
            labels, _ = self._graph.knn_query(queries, count)
        except RuntimeError:  # a query reached fewer, and hnswlib gives nothing then
            if len(queries) > 1:
                return np.concatenate([self.propose(query, count) for query in queries[:, None]])
            return np.full((1, count), -1, dtype=np.int64)
        out: Positions = labels.view(np.int64)
        return out

    def decode(self, labels: Positions) -> Dense:
        return self._vectors[labels]

    def write(self, folder: Path) -> None:
        np.save(folder / _VECTORS, self._vectors[: self._size], allow_pickle=False)
        file = folder / _GRAPH
        self._graph.save_index(str(file))
        if not file.exists() or file.stat().st_size != self._graph.index_file_size():  # it does not tell
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
