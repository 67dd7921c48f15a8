"""Qdrant: dense and sparse rows on a server, or in this process's memory.

Shapes: q queries, n rows, d dimensions, k results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

from reperio.errors import ConfigurationError, ShapeError
from reperio.indexes.flat import Metric, check_metric
from reperio.indexes.qdrant_table import EMPTY, QdrantTable, check_url, disconnect
from reperio.indexes.served import ServedIndex
from reperio.indexes.tables import Table
from reperio.protocols import Spec

__all__ = ["QdrantIndex"]

Vectors: TypeAlias = Literal["float32", "float16", "sparse"]
Quantization: TypeAlias = Literal["scalar", "binary"]

_OPTIONS = {"hnsw_ef": 1 << 16, "exact": 1}
"""Search options, and the most that each may be."""


class QdrantIndex(ServedIndex):
    """Rows in Qdrant.

    Parameters
    ----------
    url
        ``http://host:6333``, or ``":memory:"``: exact, in this process only, for tests and trials. An API key is taken
        from the environment variable ``QDRANT_API_KEY``.
    vectors
        ``"float32"``; ``"float16"``, half the memory; or ``"sparse"``.
    metric
        ``"cosine"``, the default (vectors are scaled to length one when added and when asked for), ``"ip"`` (inner
        product, the only one for sparse rows), or ``"l2"``: the squared Euclidean distance, negated.
    hnsw
        How the graph is built: ``{"m": 16, "ef_construct": 100}``.
    quantization
        ``"scalar"`` (a byte for each dimension) or ``"binary"`` (a bit), searched in place of the vectors, which
        score what was found again.
    options
        Search options: ``hnsw_ef``, the candidates that a search keeps (the server's choice, and at least k);
        ``exact`` (1: compare every row).
    prefix
        What the names of its tables on the server begin with.
    timeout
        Whole seconds that an answer may take; `settle` waits twenty times as long for the graph.

    Raises
    ------
    ConfigurationError
        For a setting that Qdrant does not have; for a key in ``url``.

    Notes
    -----
    Qdrant: qdrant.tech, version 1.16 or later. A search sees every row that was added, whether the server has linked
    it into its graph or not. Ties go to the lower id within the k rows returned. A filter is sent as a list of keys,
    or, where it passes a quarter of the rows, applied to a deeper search.

    Examples
    --------
    >>> import numpy as np
    >>> index = QdrantIndex(":memory:", metric="l2")
    >>> index.add(np.array([7, 9]), np.array([[1, 0], [0, 1]], dtype=np.float32))
    >>> index.search(np.array([[1, 0]], dtype=np.float32), 2).scores.round(3).tolist()
    [[0.0, -2.0]]
    """

    kind = "qdrant-index"

    def __init__(
        self,
        url: str = "http://localhost:6333",
        *,
        vectors: Vectors = "float32",
        metric: Metric | None = None,
        hnsw: Mapping[str, int] | None = None,
        quantization: Quantization | None = None,
        options: Mapping[str, int] | None = None,
        prefix: str = "reperio",
        timeout: int = 30,
    ) -> None:
        if vectors not in get_args(Vectors):
            raise ConfigurationError(f"vectors is {vectors!r}.", f"Choose from: {', '.join(get_args(Vectors))}.")
        sparse = vectors == "sparse"
        chosen = check_metric(metric or ("ip" if sparse else "cosine"))
        super().__init__(sparse=sparse, metric=chosen, prefix=prefix)
        check_url(url)
        self.url, self.timeout = url, timeout
        self.vectors: Vectors = vectors
        self.hnsw, self.options = dict(hnsw or {}), dict(options or {})
        self.quantization: Quantization | None = quantization
        self._check()

    def _check(self) -> None:
        if self.timeout < 1:
            raise ConfigurationError(f"timeout is {self.timeout}.", "Give whole seconds, 1 or more.")
        if self.quantization not in (None, *get_args(Quantization)):
            raise ConfigurationError(f"quantization is {self.quantization!r}.", "Choose 'scalar', 'binary' or None.")
        if self._sparse and (self.metric != "ip" or self.hnsw or self.quantization):
            problem = "Sparse rows have the metric 'ip', and neither a graph nor a quantization."
            raise ConfigurationError(problem, "Leave out metric, hnsw and quantization.")
        self._settings({})

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty."""
        return {
            "type": "QdrantIndex",
            "url": self.url,
            "vectors": self.vectors,
            "metric": self.metric,
            "hnsw": self.hnsw or None,
            "quantization": self.quantization,
            "options": self.options or None,
            "prefix": self.prefix,
            "timeout": self.timeout,
        }

    @property
    def lossless(self) -> bool:
        """Whether scores are exact for the vectors that were added: not for float16 or after quantisation."""
        return self.vectors != "float16" and self.quantization is None

    @property
    def exhaustive(self) -> bool:
        """Whether a search compares every row."""
        return self._sparse or self.url == ":memory:" or bool(self.options.get("exact"))

    @property
    def _layout(self) -> dict[str, Any]:
        layout = {"vectors": self.vectors, "metric": self.metric, "hnsw": self.hnsw}
        return {**layout, "quantization": self.quantization}

    @property
    def _patience(self) -> float:
        return float("inf")  # the server links rows into its graph in its own time

    def _settings(self, options: Mapping[str, int]) -> dict[str, int]:
        given: dict[str, Any] = {**self.options, **options}
        for name, value in given.items():
            if name not in _OPTIONS or (self._sparse and name == "hnsw_ef"):
                raise ConfigurationError(f"QdrantIndex has no search option {name!r}.", "It has: hnsw_ef, exact.")
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _OPTIONS[name]:
                raise ConfigurationError(f"The search option {name} is {value!r}.", f"Give 0 to {_OPTIONS[name]}.")
        return given

    def _widest(self) -> dict[str, int]:
        return {} if self._sparse else {"exact": 1}

    def _check_dim(self, dim: int) -> None:
        if self._sparse and dim > EMPTY:
            problem = f"The rows have {dim} columns; Qdrant numbers them up to {EMPTY - 1}."
            raise ShapeError(problem, "Use an encoder with a vocabulary; for hashed terms, BM25Index.")
        if not self._sparse and not 1 <= dim <= 65536:
            raise ShapeError(f"The rows have {dim} dimensions; Qdrant takes 1 to 65536.", "Use another encoder.")

    def _at(self, name: str) -> Table:
        return QdrantTable(
            self.url,
            name,
            vectors=self.vectors,
            distance="Euclid" if self.metric == "l2" else "Dot",
            hnsw=self.hnsw,
            quantization=self.quantization,
            timeout=self.timeout,
            width=self._width,
        )

    def close(self) -> None:
        """Let go of the server; the next call connects again. Rows in memory stay as long as the process."""
        disconnect(self.url)
