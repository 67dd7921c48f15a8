"""Sparse rows as they come in: checked, and multiplied one with another.

Shapes: n rows, V vocabulary, p pairs of a query and a row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Sparse, take
from reperio.errors import ShapeError

__all__ = ["check_sparse", "products"]


def check_sparse(rows: object, *, what: str, dim: int | None = None) -> Sparse:
    """Return ``rows`` without weights of zero, or say what is wrong with them.

    Parameters
    ----------
    rows
        A `Sparse`.
    what
        The name the caller knows them by, for the message.
    dim
        The expected V, where known.

    Raises
    ------
    ShapeError
        Not a `Sparse`, another V, arrays that do not fit; a weight that is negative, NaN or infinite; columns that
        do not ascend.
    """
    if not isinstance(rows, Sparse):
        raise ShapeError(f"{what} is a {type(rows).__name__}, not Sparse.", "Encode with a sparse encoder.")
    if dim is not None and rows.dim != dim:
        raise ShapeError(f"{what} has {rows.dim} columns, the index {dim}.", "Use the same encoder for all.")
    size = len(rows.indices)
    if len(rows.weights) != size or not len(rows.indptr) or rows.indptr[0] != 0 or rows.indptr[-1] != size:
        raise ShapeError(f"{what} has {size} columns, {len(rows.weights)} weights.", "Mend indptr.")
    if (rows.indptr[1:] < rows.indptr[:-1]).any():
        raise ShapeError(f"{what}.indptr descends.", "Mend indptr.")
    if not size:
        return rows
    if not (rows.weights.min() >= 0 and rows.weights.max() < np.inf):
        raise ShapeError(f"{what} holds NaN, infinity or a negative weight.", "Give weights from 0.")
    if rows.indices.min() < 0 or rows.indices.max() >= rows.dim:
        raise ShapeError(f"{what} holds a column outside 0 to {rows.dim - 1}.", "Mend indices.")
    falls = np.flatnonzero(rows.indices[1:] <= rows.indices[:-1]) + 1
    if len(falls) and not np.isin(falls, rows.indptr).all():
        raise ShapeError(f"{what} holds a row whose columns do not ascend.", "Sort them and sum equal ones.")
    return _without_zeros(rows)


def _without_zeros(rows: Sparse) -> Sparse:
    kept = rows.weights > 0
    if kept.all():
        return rows
    before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(kept, dtype=np.int64)])
    return Sparse(before[rows.indptr], rows.indices[kept], rows.weights[kept], rows.dim)


def products(queries: Sparse, asked: NDArray[np.int64], rows: Sparse, places: NDArray[np.int64]) -> NDArray[np.float32]:
    """Inner product of query ``asked[i]`` with row ``places[i]``, ``(p,)``, summed in float64."""
    out = np.zeros(len(asked), dtype=np.float32)
    for query in np.unique(asked).tolist():
        pairs = np.flatnonzero(asked == query)
        columns, weights = queries.row(query)
        part = take(rows, places[pairs])
        if not len(columns) or not len(part.indices):
            continue
        at = np.minimum(np.searchsorted(columns, part.indices), len(columns) - 1)
        values = np.where(columns[at] == part.indices, weights[at].astype(np.float64) * part.weights, 0)
        totals = np.concatenate([np.zeros(1), np.cumsum(values)])
        out[pairs] = totals[part.indptr[1:]] - totals[part.indptr[:-1]]
    return out
