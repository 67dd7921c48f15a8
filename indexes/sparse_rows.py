"""Sparse rows as they come in: checked, and multiplied one with another.

Shapes: n rows, V vocabulary, p pairs of a query and a row.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Sparse, take
from reperio.errors import ShapeError

__all__ = ["MOST", "check_sparse", "check_weights", "drop_zeros", "plain", "products"]

MOST = 2**24
"""Highest weight: above it, float32 no longer tells whole numbers apart."""

_INDEX, _WEIGHT = np.dtype(np.int64), np.dtype(np.float32)


def plain(rows: object, *, what: str) -> Sparse:
    """The same rows as contiguous int64 and float32: scipy gives int32, and float64.

    Raises
    ------
    ShapeError
        No `Sparse`, or arrays of something else.
    """
    if not isinstance(rows, Sparse):
        raise ShapeError(f"{what} is a {type(rows).__name__}, not Sparse.", "Encode with a sparse encoder.")
    starts, columns, weights = rows.indptr, rows.indices, rows.weights
    if _is(starts, _INDEX) and _is(columns, _INDEX) and _is(weights, _WEIGHT):
        return rows
    starts = _as(starts, _INDEX, kinds="iu", what=f"{what}.indptr")
    columns = _as(columns, _INDEX, kinds="iu", what=f"{what}.indices")
    return Sparse(starts, columns, _as(weights, _WEIGHT, kinds="iuf", what=f"{what}.weights"), rows.dim)


def _is(array: NDArray[Any], kept: np.dtype[Any]) -> bool:
    return isinstance(cast("object", array), np.ndarray) and (
        array.dtype == kept and array.ndim == 1 and bool(array.flags.c_contiguous)
    )


def _as(given: object, kept: np.dtype[Any], *, kinds: str, what: str) -> NDArray[Any]:
    array = np.asarray(given)
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise ShapeError(f"{what} is {array.dtype} of shape {array.shape}.", f"Give one dimension of {kept}.")
    with np.errstate(over="ignore"):  # what does not fit is refused as too high
        return np.ascontiguousarray(array.astype(kept))


def check_sparse(rows: object, *, what: str, dim: int | None = None) -> Sparse:
    """Return ``rows`` as `plain` does, or say what is wrong with them.

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
        Not a `Sparse`, another V, arrays that do not fit; a weight that is negative, NaN or above `MOST`; columns
        that do not ascend.
    """
    rows = plain(rows, what=what)
    if dim is not None and rows.dim != dim:
        raise ShapeError(f"{what} has {rows.dim} columns, the index {dim}.", "Use the same encoder for all.")
    size = len(rows.indices)
    if len(rows.weights) != size or not len(rows.indptr) or rows.indptr[0] != 0 or rows.indptr[-1] != size:
        raise ShapeError(f"{what} has {size} columns, {len(rows.weights)} weights.", "Mend indptr.")
    if (rows.indptr[1:] < rows.indptr[:-1]).any():
        raise ShapeError(f"{what}.indptr descends.", "Mend indptr.")
    if not size:
        return rows
    check_weights(rows, what=what)
    if rows.indices.min() < 0 or rows.indices.max() >= rows.dim:
        raise ShapeError(f"{what} holds a column outside 0 to {rows.dim - 1}.", "Mend indices.")
    falls = np.flatnonzero(rows.indices[1:] <= rows.indices[:-1]) + 1
    if len(falls) and not np.isin(falls, rows.indptr).all():
        raise ShapeError(f"{what} holds a row whose columns do not ascend.", "Sort them and sum equal ones.")
    return rows


def check_weights(rows: Sparse, *, what: str) -> None:
    """Refuse a weight that is negative, NaN or above `MOST`, with its row; raises ShapeError."""
    if not len(rows.weights) or (rows.weights.min() >= 0 and rows.weights.max() <= MOST):
        return
    at = int(np.argmin((rows.weights >= 0) & (rows.weights <= MOST)))  # the first
    row = int(np.searchsorted(rows.indptr, at, side="right")) - 1
    problem = f"{what}, row {row}, holds the weight {rows.weights[at]:g}, which is not within 0 to {MOST}."
    raise ShapeError(problem, "Give weights of that range.")


def drop_zeros(rows: Sparse) -> Sparse:
    """The same rows without weights of zero."""
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
        owners = np.repeat(np.arange(len(part)), np.diff(part.indptr))
        out[pairs] = np.bincount(owners, weights=values, minlength=len(part))  # each by itself: a row may dwarf others
    return out
