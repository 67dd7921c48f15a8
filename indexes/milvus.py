"""Milvus: dense and sparse rows on a cluster, a single server, or in the embedded file.

Shapes: q queries, n rows, d dimensions, k results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from reperio.errors import ConfigurationError, ShapeError
from reperio.indexes.flat import Metric, check_metric
from reperio.indexes.milvus_table import EMPTY, MilvusTable, disconnect, read_uri
from reperio.indexes.served import ServedIndex
from reperio.indexes.tables import Table
from reperio.protocols import Spec

__all__ = ["MilvusIndex"]

Vectors: TypeAlias = Literal["float32", "float16", "sparse"]

_PATIENCE = 1000
"""Rows that the embedded file may hold unsealed: each costs every single search about 20 µs, sealing 0.2 s."""


class _Kind(NamedTuple):
    """An index type of Milvus.

    Attributes
    ----------
    option, default, widest
        Its search option, if any; a default of 0 is the server's own.
    lossless
        Whether scores come from the vectors as they were added.
    embedded
        Whether the embedded file has it.
    """

    option: str | None = None
    default: int = 0
    widest: int = 0
    lossless: bool = True
    embedded: bool = True


_KINDS: dict[str, _Kind] = {
    "FLAT": _Kind(),
    "HNSW": _Kind("ef", 64, 32768),
    "IVF_FLAT": _Kind("nprobe", 16, 65536),
    "HNSW_SQ": _Kind("ef", 64, 32768, lossless=False),
    "IVF_SQ8": _Kind("nprobe", 16, 65536, lossless=False),
    "AUTOINDEX": _Kind("level", 0, 10, lossless=False),  # the server chooses, and may quantise
    "HNSW_PQ": _Kind("ef", 64, 32768, lossless=False, embedded=False),
    "IVF_PQ": _Kind("nprobe", 16, 65536, lossless=False, embedded=False),
    "IVF_RABITQ": _Kind("nprobe", 16, 65536, lossless=False, embedded=False),
    "SCANN": _Kind("nprobe", 16, 65536, lossless=False, embedded=False),
    "DISKANN": _Kind("search_list", 100, 65535, lossless=False, embedded=False),
    "SPARSE_INVERTED_INDEX": _Kind(),
}


class MilvusIndex(ServedIndex):
    """Rows in Milvus.

    Parameters
    ----------
    uri
        ``http://host:19530/database``, or a path that ends with ``.db``: the embedded file, which one process at a
        time may open. A user and password or an API key is taken from the environment variable ``MILVUS_TOKEN``.
    vectors
        ``"float32"``; ``"float16"``, half the memory, on a server; or ``"sparse"``.
    metric
        ``"cosine"``, the default (vectors are scaled to length one when added and when asked for), ``"ip"`` (inner
        product, the only one for sparse rows), or ``"l2"``: the squared Euclidean distance, negated.
    index_type
        ``"HNSW"``, the default, ``"FLAT"``, ``"IVF_FLAT"``, ``"HNSW_SQ"``, ``"IVF_SQ8"``, ``"AUTOINDEX"``; on a server
        also ``"HNSW_PQ"``, ``"IVF_PQ"``, ``"IVF_RABITQ"``, ``"SCANN"`` and ``"DISKANN"``. Sparse rows have
        ``"SPARSE_INVERTED_INDEX"``.
    params
        How it is built, as Milvus knows it: ``{"M": 16, "efConstruction": 200}``.
    options
        Search options in place of the defaults: ``ef``, the candidates that HNSW keeps (64, or twice k); ``nprobe``,
        the lists that IVF looks into (16); ``search_list`` for DISKANN; ``level`` for AUTOINDEX.
    prefix
        What the names of its tables on the server begin with.
    timeout
        Seconds that an answer may take; sealing and loading, which build the index, twenty times as long.

    Raises
    ------
    ConfigurationError
        For a setting that Milvus, or the embedded file, does not have; for a password in ``uri``.

    Notes
    -----
    Wang et al.: Milvus: A Purpose-Built Vector Data Management System. SIGMOD 2021. Reads are strongly consistent: a
    search sees every row that was added. Ties go to the lower id within the k rows returned. A filter is sent as a
    list of keys, or, where it passes a quarter of the rows, applied to a deeper search. The embedded file is slow
    over rows that were not sealed, so it seals them before a search as soon as there are a thousand.

    Examples
    --------
    >>> index = MilvusIndex("./rows.db", index_type="FLAT", metric="l2")
    >>> index
    MilvusIndex('./rows.db/reperio_...')
    """

    kind = "milvus-index"

    def __init__(
        self,
        uri: str = "http://localhost:19530",
        *,
        vectors: Vectors = "float32",
        metric: Metric | None = None,
        index_type: str | None = None,
        params: Mapping[str, int | float | str] | None = None,
        options: Mapping[str, int] | None = None,
        prefix: str = "reperio",
        timeout: float = 30.0,
    ) -> None:
        if vectors not in get_args(Vectors):
            raise ConfigurationError(f"vectors is {vectors!r}.", f"Choose from: {', '.join(get_args(Vectors))}.")
        sparse = vectors == "sparse"
        chosen = check_metric(metric or ("ip" if sparse else "cosine"))
        super().__init__(sparse=sparse, metric=chosen, prefix=prefix)
        self.embedded = read_uri(uri)
        self.uri, self.timeout = uri, timeout
        self.vectors: Vectors = vectors
        self.index_type = index_type or ("SPARSE_INVERTED_INDEX" if sparse else "HNSW")
        self.params, self.options = dict(params or {}), dict(options or {})
        self._check()

    def _check(self) -> None:
        if not 0 < self.timeout < math.inf:
            raise ConfigurationError(f"timeout is {self.timeout}.", "Give seconds, more than 0.")
        if self._sparse and self.metric != "ip":
            raise ConfigurationError(f"Sparse rows have no metric {self.metric!r}.", "Use 'ip'.")
        if self.embedded and self.vectors == "float16":
            raise ConfigurationError("The embedded file keeps no float16 vectors.", "Use float32, or a server.")
        kinds = [name for name in _KINDS if name.startswith("SPARSE") == self._sparse]
        if self.index_type not in kinds:
            problem = f"Milvus has no index_type {self.index_type!r} for {self.vectors} rows."
            raise ConfigurationError(problem, f"Choose from: {', '.join(kinds)}.")
        if self.embedded and not _KINDS[self.index_type].embedded:
            kinds = [name for name in kinds if _KINDS[name].embedded]
            problem = f"The embedded file has no index_type {self.index_type!r}."
            raise ConfigurationError(problem, f"Choose from: {', '.join(kinds)}; or use a server.")
        if self._sparse and self.params.get("drop_ratio_build"):
            raise ConfigurationError("drop_ratio_build makes scores of sparse rows inexact.", "Leave it out.")
        self._settings({})

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty."""
        return {
            "type": "MilvusIndex",
            "uri": self.uri,
            "vectors": self.vectors,
            "metric": self.metric,
            "index_type": self.index_type,
            "params": self.params or None,
            "options": self.options or None,
            "prefix": self.prefix,
            "timeout": self.timeout,
        }

    @property
    def lossless(self) -> bool:
        """Whether scores are exact for the vectors that were added: not for float16 or a quantising index."""
        return _KINDS[self.index_type].lossless and self.vectors != "float16"

    @property
    def exhaustive(self) -> bool:
        """Whether a search compares every row."""
        return self.index_type in ("FLAT", "SPARSE_INVERTED_INDEX")

    @property
    def _layout(self) -> dict[str, Any]:
        return {"vectors": self.vectors, "metric": self.metric, "index_type": self.index_type, "params": self.params}

    @property
    def _patience(self) -> float:
        return _PATIENCE if self.embedded else math.inf  # a server seals in its own time

    def _settings(self, options: Mapping[str, int]) -> dict[str, int]:
        kind = _KINDS[self.index_type]
        given: dict[str, object] = {**self.options, **options}
        for name, value in given.items():
            if name != kind.option:
                fix = f"It has: {kind.option}." if kind.option else "It has none."
                raise ConfigurationError(f"MilvusIndex({self.index_type!r}) has no search option {name!r}.", fix)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= kind.widest:
                raise ConfigurationError(f"The search option {name} is {value!r}.", f"Give 1 to {kind.widest}.")
        chosen = {**self.options, **options}
        if kind.option == "nprobe":
            return {"nprobe": min(chosen.get("nprobe", kind.default), self._lists)}
        return {kind.option: kind.default, **chosen} if kind.option and kind.default else chosen

    @property
    def _lists(self) -> int:
        return int(self.params.get("nlist", 128))

    def _widest(self) -> dict[str, int]:
        kind = _KINDS[self.index_type]
        if kind.option is None or not kind.default:
            return {}
        return {kind.option: self._lists if kind.option == "nprobe" else kind.widest}

    def _check_dim(self, dim: int) -> None:
        if self._sparse and dim > EMPTY:
            problem = f"The rows have {dim} columns; Milvus numbers them up to {EMPTY - 1}."
            raise ShapeError(problem, "Use an encoder with a vocabulary; for hashed terms, BM25Index.")
        if not self._sparse and not 1 <= dim <= 32768:
            raise ShapeError(f"The rows have {dim} dimensions; Milvus takes 1 to 32768.", "Use another encoder.")

    def _at(self, name: str) -> Table:
        return MilvusTable(
            self.uri,
            name,
            vectors=self.vectors,
            metric="L2" if self.metric == "l2" else "IP",
            index_type=self.index_type,
            params=self.params,
            timeout=self.timeout,
        )

    def close(self) -> None:
        """Let go of the server; an embedded file is then free for another process. The next call connects again."""
        disconnect(self.uri)
