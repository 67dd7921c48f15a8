"""How rows of each kind stand in a column of pgvector, and how PostgreSQL compares them.

Shapes: n rows, d dimensions, V vocabulary.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from reperio.embeddings import Dense, Embeddings, MultiVector, Sparse, check_dense
from reperio.errors import ConfigurationError, ShapeError
from reperio.indexes.flat import Metric, check_metric, unit
from reperio.indexes.sparse_rows import check_weights

__all__ = ["BYTES", "Column", "DType", "column", "copied", "width"]

DType: TypeAlias = Literal["float32", "float16", "bit", "sparse"]
"""``vector``, ``halfvec``, ``bit`` (the signs alone) or ``sparsevec``."""

BYTES: dict[DType, float] = {"float32": 4, "float16": 2, "bit": 1 / 8, "sparse": 8}
"""Of one value."""

_TYPES: dict[DType, str] = {"float32": "vector", "float16": "halfvec", "bit": "bit", "sparse": "sparsevec"}

_STORED: dict[DType, int] = {"float32": 16_000, "float16": 16_000, "bit": 64_000, "sparse": 1_000_000_000}
_INDEXED: dict[DType, int] = {"float32": 2000, "float16": 4000, "bit": 64_000, "sparse": 1_000_000_000}
"""Most dimensions that pgvector keeps, and that it makes an index of."""

_SPARSE_STORED, _SPARSE_INDEXED = 16_000, 1000
"""Most weights of a sparse row."""


@dataclass(frozen=True, slots=True)
class Column:
    """One kind of column.

    Attributes
    ----------
    dtype
        What a row keeps.
    metric
        How rows compare.
    index
        The kind of index that will be made, if any: it bounds the dimensions.
    """

    dtype: DType
    metric: Metric
    index: str | None

    @property
    def type(self) -> str:
        """PostgreSQL's type."""
        return _TYPES[self.dtype]

    @property
    def distance(self) -> str:
        """The operator that orders, the nearest first: with it an index is used."""
        return "<~>" if self.dtype == "bit" else "<->" if self.metric == "l2" else "<#>"

    @property
    def operators(self) -> str:
        """The operator class of an index."""
        measure = "hamming" if self.dtype == "bit" else "l2" if self.metric == "l2" else "ip"
        return f"{self.type}_{measure}_ops"

    def score(self, dim: int) -> str:
        """SQL of the score of ``value`` with the query ``q.v``: higher is better."""
        if self.dtype == "bit":  # the cosine of two vectors of ±1
            return f"1 - 2 * (value <~> q.v) / {dim:d}"
        if self.metric == "l2":
            return f"0 - {self.type}_l2_squared_distance(value, q.v)"
        return "0 - (value <#> q.v)"

    def check(self, embeddings: Embeddings, *, what: str, dim: int | None) -> Embeddings:
        """The rows as they will be kept, or what is wrong with them.

        Raises
        ------
        ShapeError
            Another kind or other dimensions than before; NaN, infinity, or more than the column's type holds.
        ConfigurationError
            More dimensions than pgvector keeps or makes an index of.
        """
        checked = _check_sparse(embeddings, what, dim) if self.dtype == "sparse" else _check(embeddings, what, dim)
        self._check_size(checked, what)
        if isinstance(checked, Sparse):
            return checked
        assert isinstance(checked, np.ndarray)
        scaled = unit(checked) if self.metric == "cosine" else checked
        with np.errstate(over="ignore"):
            if self.dtype == "float16" and not np.isfinite(scaled.astype(np.float16)).all():
                raise ShapeError(f"{what} holds values beyond ±65504.", "Use dtype='float32', or metric='cosine'.")
        return scaled

    def _check_size(self, rows: Embeddings, what: str) -> None:
        size = width(rows)
        most = _STORED[self.dtype] if self.index is None else _INDEXED[self.dtype]
        if size > most:
            how = "keeps" if self.index is None else f"makes an {self.index} index of"
            if self.dtype == "sparse":  # terms hashed to 63 bits, as BM25Encoder's
                fix = "Keep it in an index of Reperio's own: BM25Index, InvertedIndex."
            else:
                fix = "Use dtype='float16', dtype='bit', or index=None for an exact scan."
            raise ConfigurationError(f"{what} has {size} columns; pgvector {how} up to {most} of {self.dtype}.", fix)
        if isinstance(rows, Sparse) and len(rows):
            longest, most = int(np.diff(rows.indptr).max()), _SPARSE_INDEXED if self.index else _SPARSE_STORED
            if longest > most:
                problem = f"{what} has a row of {longest} weights; pgvector takes {most}."
                raise ConfigurationError(problem, "Keep fewer of the highest, or use index=None.")

    def pack(self, rows: Embeddings) -> list[bytes]:
        """Each row as PostgreSQL reads it in binary."""
        if isinstance(rows, Sparse):
            return [_pack_sparse(*rows.row(i), rows.dim) for i in range(len(rows))]
        assert isinstance(rows, np.ndarray)
        size = rows.shape[1]
        if self.dtype == "bit":
            return [struct.pack(">i", size) + bits.tobytes() for bits in np.packbits(rows > 0, axis=1)]
        values = rows.astype(">f2" if self.dtype == "float16" else ">f4")
        return [struct.pack(">hh", size, 0) + value.tobytes() for value in values]

    def pack_array(self, rows: Embeddings, oid: int) -> bytes:
        """All rows as one binary array, of the type with this number in the database."""
        packed = self.pack(rows)
        head = struct.pack(">5i", 1, 0, oid, len(packed), 1)
        return head + b"".join(struct.pack(">i", len(value)) + value for value in packed)


def width(rows: Embeddings) -> int:
    """d or V."""
    return rows.dim if isinstance(rows, Sparse) else int(np.asarray(rows).shape[1])


def copied(ids: Sequence[int], values: Sequence[bytes]) -> bytes:
    """Rows of a key and a value as ``COPY … (FORMAT BINARY)`` reads them."""
    head = struct.Struct(">hiqi")
    rows = (head.pack(2, 8, key, len(value)) + value for key, value in zip(ids, values, strict=True))
    return b"PGCOPY\n\xff\r\n\0" + bytes(8) + b"".join(rows) + b"\xff\xff"


def column(dtype: str, metric: str, index: str | None) -> Column:
    """The column of a configuration.

    Raises
    ------
    ConfigurationError
        If one of the three is not known, or they do not go together.
    """
    found = {name: name for name in get_args(DType)}.get(dtype)
    if found is None:
        raise ConfigurationError(f"There is no dtype {dtype!r}.", f"Choose from: {', '.join(get_args(DType))}.")
    if found == "bit" and metric != "cosine":
        raise ConfigurationError(f"Signs compare by angle, not by {metric!r}.", "Use metric='cosine'.")
    if found == "sparse" and metric != "ip":
        raise ConfigurationError(f"Sparse rows compare by inner product, not by {metric!r}.", "Use metric='ip'.")
    if index not in (None, "hnsw", "ivfflat") or (index == "ivfflat" and found == "sparse"):
        fix = "Use 'hnsw', 'ivfflat' (not of sparse rows), or None for an exact scan."
        raise ConfigurationError(f"pgvector makes no index {index!r} of {dtype}.", fix)
    return Column(found, check_metric(metric), index)


def _check(embeddings: object, what: str, dim: int | None) -> Dense:
    if isinstance(embeddings, Sparse | MultiVector):
        raise ShapeError(f"{what} is {type(embeddings).__name__}, not dense.", "Use dtype='sparse' for sparse rows.")
    return check_dense(embeddings, what=what, dim=dim)


def _check_sparse(rows: object, what: str, dim: int | None) -> Sparse:
    if not isinstance(rows, Sparse):
        raise ShapeError(f"{what} is {type(rows).__name__}, not Sparse.", "Use dtype='float32' for dense rows.")
    if dim is not None and rows.dim != dim:
        raise ShapeError(f"{what} has {rows.dim} columns, the index {dim}.", "Use the same encoder for all.")
    if not len(rows.indptr) or rows.indptr[0] != 0 or not len(rows.indices) == len(rows.weights) == rows.indptr[-1]:
        raise ShapeError(f"{what} has rows of no sound extent.", "Mend indptr.")
    falls = np.flatnonzero(rows.indices[1:] <= rows.indices[:-1]) + 1
    outside = len(rows.indices) > 0 and not 0 <= rows.indices.min() <= rows.indices.max() < rows.dim
    if (np.diff(rows.indptr) < 0).any() or outside or not np.isin(falls, rows.indptr).all():
        raise ShapeError(f"{what} has columns out of order or range.", "Sort each row's; they lie from 0 to V - 1.")
    check_weights(rows, what=what)
    return rows


def _pack_sparse(columns: np.ndarray, weights: Dense, dim: int) -> bytes:
    held = weights != 0
    columns, weights = columns[held], weights[held]
    return struct.pack(">3i", dim, len(columns), 0) + columns.astype(">i4").tobytes() + weights.astype(">f4").tobytes()
