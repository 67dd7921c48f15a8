"""Answers of servers, looked at closely: what is not as it should be is an `InvalidResponse`, never a wrong row."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeGuard

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, Sparse, check_dense
from reperio.errors import InvalidResponse, ShapeError

__all__ = [
    "as_list",
    "as_object",
    "check_model",
    "in_order",
    "is_list",
    "is_object",
    "sparse_rows",
    "vectors",
    "weights",
    "whole",
]


def _refuse(what: str, fix: str = "Look after the server; nothing of this answer is used.") -> NoReturn:
    raise InvalidResponse(f"The server answered with {what}.", fix)


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether it is a JSON object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether it is a JSON list."""
    return isinstance(value, list)


def as_object(value: object, what: str = "the answer") -> dict[str, Any]:
    """A JSON object, or an error."""
    if not is_object(value):
        _refuse(f"{_short(value)} where {what} should be an object")
    return value


def as_list(value: object, what: str, length: int | None = None) -> list[Any]:
    """A JSON list, of so many items where given, or an error."""
    if not is_list(value):
        _refuse(f"{_short(value)} where {what} should be a list")
    if length is not None and len(value) != length:
        _refuse(f"{len(value)} items in {what} for {length} texts")
    return value


def whole(value: Any) -> int | None:
    """A number of things, also as the text of a header; None for anything else."""
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def check_model(answered: Any, asked: str) -> None:
    """Refuse the answer of another model.

    A server may add a version to the name (``text-embedding-ada-002-v2``, ``:latest``), and a gateway may leave out
    whose model it is: one name has to begin with the other, but for what stands before a slash.
    """
    if not isinstance(answered, str) or not answered:
        return
    names = [name.rpartition("/")[2].casefold() for name in (answered, asked)]
    if not (names[0].startswith(names[1]) or names[1].startswith(names[0])):
        _refuse(f"embeddings of the model {answered!r}, and {asked!r} was asked for", "Give the name that it answers.")


def in_order(items: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Embeddings by their ``index``, whatever order they came in."""
    places: list[Any] = [item.get("index") for item in items]
    if not all(type(place) is int for place in places) or sorted(places) != list(range(len(items))):
        _refuse(f"the indexes {_short(places)} for {len(items)} texts")
    out: list[Any] = [None] * len(items)
    for place, item in zip(places, items, strict=True):
        out[place] = item.get("embedding")
    return out


def vectors(rows: Sequence[Any]) -> Dense:
    """Rows of numbers, or of float32 values in base64, ``(n, d)``."""
    decoded = [_decoded(row) if isinstance(row, str) else as_list(row, "an embedding") for row in rows]
    lengths = {len(row) for row in decoded}
    if len(lengths) != 1 or 0 in lengths:
        _refuse(f"embeddings of {' and '.join(map(str, sorted(lengths)))} dimensions in one request")
    try:
        with np.errstate(over="ignore"):  # beyond float32 is infinite, which is refused
            found = check_dense(np.array(decoded), what="The server's answer")
    except ShapeError as error:
        raise InvalidResponse(error.problem, "Look after the server; nothing of this answer is used.") from error
    except ValueError:  # lists in lists
        _refuse(f"{_short(decoded[0])} for an embedding")
    if not (some := found.any(axis=1)).all():
        _refuse(f"nothing but zeros for {(~some).sum()} of {len(found)} texts")
    return found


def weights(rows: Sequence[Any], dim: int) -> Sparse:
    """Rows of ``{"index": column, "value": weight}``."""
    items = [as_object(item, "a weight") for row in rows for item in as_list(row, "an embedding")]
    columns = [item.get("index") for item in items]
    wrong = next((c for c in columns if type(c) is not int or not 0 <= c < dim), dim)
    if wrong != dim or dim in columns:
        _refuse(f"a weight in column {wrong}, and dim is {dim}", "Give the size of the model's vocabulary as dim.")
    values = [item.get("value") for item in items]
    if not all(type(value) in (int, float) for value in values):
        _refuse("a weight that is no number")
    with np.errstate(over="ignore"):
        found = np.array(values, dtype=np.float32)
    if not (np.isfinite(found) & (found >= 0)).all():
        _refuse(f"the weight {found[~(found >= 0) | np.isinf(found)][0]:g}, where all are finite and none is below 0")
    owners = np.repeat(np.arange(len(rows), dtype=np.int64), [len(row) for row in rows])
    out = sparse_rows(owners, np.array(columns, dtype=np.int64), found, rows=len(rows), dim=dim)
    if len(out.indices) < np.count_nonzero(found):
        _refuse("two weights for one column")
    return out


def sparse_rows(
    owners: NDArray[np.int64], columns: NDArray[np.int64], values: NDArray[np.float32], *, rows: int, dim: int
) -> Sparse:
    """Weights by row and column in any order; of several in one place, the largest."""
    order = np.lexsort((columns, owners))
    order = order[values[order] > 0]
    owners, columns, values = owners[order], columns[order], values[order]
    starts = np.flatnonzero((np.diff(owners, prepend=-1) != 0) | (np.diff(columns, prepend=-1) != 0))
    indptr = np.searchsorted(owners[starts], np.arange(rows + 1)).astype(np.int64)
    largest = np.maximum.reduceat(values, starts) if len(starts) else values
    return Sparse(indptr, columns[starts], largest, dim)


def _decoded(text: str) -> NDArray[np.float32]:
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4")
    except (binascii.Error, ValueError):
        _refuse(f"{_short(text)}, which is not float32 values in base64")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
