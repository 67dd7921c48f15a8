"""The three kinds of embedding, and how a row of each becomes bytes.

Shapes: n rows, d dimensions, V vocabulary, t tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from reperio.errors import ShapeError

LARGEST = 1e15
"""The largest component of a vector, and negated the smallest: products and distances of longer ones leave float32."""

_SQUARE = LARGEST**2

Dense: TypeAlias = NDArray[np.float32]
"""Dense vectors, ``(n, d)``, float32, C-contiguous, finite, no component beyond `LARGEST`."""

Ids: TypeAlias = NDArray[np.int64]
"""Row keys, int64; ``-1`` marks an empty slot."""

IdSet: TypeAlias = NDArray[np.int64]
"""Row keys, int64, sorted, each once."""

Kind: TypeAlias = Literal["dense", "sparse", "multi-vector"]


@dataclass(frozen=True, slots=True)
class Sparse:
    """Sparse non-negative weights in CSR form.

    Attributes
    ----------
    indptr
        Where each row starts, ``(n + 1,)``, int64.
    indices
        Columns in ``[0, V)``, ``(nnz,)``, int64, ascending within a row.
    weights
        Values, ``(nnz,)``, float32.
    dim
        V.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int64]
    weights: NDArray[np.float32]
    dim: int

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def row(self, i: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Columns and weights of row ``i``."""
        part = slice(int(self.indptr[i]), int(self.indptr[i + 1]))
        return self.indices[part], self.weights[part]


@dataclass(frozen=True, slots=True)
class MultiVector:
    """Several vectors for each text (late interaction).

    Attributes
    ----------
    vectors
        All vectors one after the other, ``(sum of t, d)``, float32.
    offsets
        Where each text starts, ``(n + 1,)``, int64.
    """

    vectors: Dense
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> Dense:
        """Vectors of text ``i``, ``(t, d)``."""
        return self.vectors[int(self.offsets[i]) : int(self.offsets[i + 1])]


Embeddings: TypeAlias = Dense | Sparse | MultiVector

E = TypeVar("E", bound=Dense | Sparse | MultiVector)


def kind_of(embeddings: Embeddings) -> Kind:
    """Which of the three kinds this is."""
    if isinstance(embeddings, Sparse):
        return "sparse"
    return "multi-vector" if isinstance(embeddings, MultiVector) else "dense"


def example(kind: str, *, dim: int) -> Embeddings | NDArray[np.object_]:
    """One row such as an encoder of this kind and size makes, ``"text"`` among the kinds."""
    if kind == "text":
        return np.array(["text"], dtype=np.object_)
    if kind == "sparse":
        return Sparse(np.array([0, 1]), np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.float32), dim)
    one = np.ones((1, dim), dtype=np.float32)
    return MultiVector(one, np.array([0, 1])) if kind == "multi-vector" else one


def check_dense(vectors: object, *, what: str, dim: int | None = None, rows: int | None = None) -> Dense:
    """Return ``vectors`` as float32 ``(n, d)``, or say what is wrong with them.

    Parameters
    ----------
    vectors
        Anything numpy reads as a matrix of floats.
    what
        The name the caller knows them by, for the message.
    dim, rows
        The expected d and n, where known.

    Raises
    ------
    ShapeError
        Wrong rank, dtype, d or n; or a NaN or infinite value (the message names the row).
    """
    if isinstance(vectors, Sparse | MultiVector):
        problem = f"{what} is {type(vectors).__name__}, not one dense vector each."
        raise ShapeError(problem, "Use an index for this kind, as InvertedIndex or MultiVectorIndex.")
    array = np.asarray(vectors)
    if array.dtype.kind not in "fiu":
        raise ShapeError(f"{what} has dtype {array.dtype}, not a number.", "Give an array of floats.")
    if array.ndim != 2:
        raise ShapeError(f"{what} has shape {array.shape}, not (n, d).", "Reshape one vector v as v[None, :].")
    if dim is not None and array.shape[1] != dim:
        raise ShapeError(f"{what} has {array.shape[1]} dimensions, expected {dim}.", "Use the same encoder for all.")
    if rows is not None and len(array) != rows:
        raise ShapeError(f"{what} has {len(array)} rows, expected {rows}.", "Give one row for each text or id.")
    out = np.ascontiguousarray(array, dtype=np.float32)
    if not float(np.vdot(out, out)) <= _SQUARE:  # NaN too: one product over all values is quicker than a test of each
        _check_values(out, what=what)
    return out


def _check_values(vectors: Dense, *, what: str) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise ShapeError(f"{what}, row {bad[0]}, holds NaN or infinity ({len(bad)} such rows).", "Drop or mend it.")
    bad = np.flatnonzero((np.abs(vectors) > LARGEST).any(axis=1))
    if len(bad):
        value = max(vectors[bad[0]].tolist(), key=abs)
        problem = f"{what}, row {bad[0]}, holds {value:g}, beyond ±{LARGEST:g} ({len(bad)} such rows)."
        raise ShapeError(problem, "Scale all vectors down alike, or drop it.")


def check_multi_vector(
    embeddings: object, *, what: str, dim: int | None = None, rows: int | None = None
) -> MultiVector:
    """Return ``embeddings`` with float32 vectors and int64 offsets, or say what is wrong with them.

    Parameters
    ----------
    embeddings
        A `MultiVector`.
    what
        The name the caller knows them by, for the message.
    dim, rows
        The expected d and n, where known.

    Raises
    ------
    ShapeError
        Not a `MultiVector`; wrong rank, dtype, d or n; a value that `check_dense` refuses; offsets that descend,
        or that do not go from 0 to the number of vectors; a row without a vector. The message names the place.
    """
    if not isinstance(embeddings, MultiVector):
        problem = f"{what} is a {type(embeddings).__name__}, not a MultiVector."
        raise ShapeError(problem, "Give several vectors for each text.")
    vectors = check_dense(embeddings.vectors, what=f"{what}.vectors", dim=dim)
    offsets = np.asarray(embeddings.offsets)
    if offsets.ndim != 1 or not len(offsets) or offsets.dtype.kind not in "iu":
        problem = f"{what}.offsets has shape {offsets.shape} and dtype {offsets.dtype}."
        raise ShapeError(problem, "Give int64, (n + 1,): where each row starts, and where the last ends.")
    offsets = offsets.astype(np.int64, copy=False)
    if rows is not None and len(offsets) - 1 != rows:
        raise ShapeError(f"{what} has {len(offsets) - 1} rows, expected {rows}.", "Give one row for each text or id.")
    if offsets[0] != 0 or offsets[-1] != len(vectors):
        problem = f"{what}.offsets goes from {offsets[0]} to {offsets[-1]}, and there are {len(vectors)} vectors."
        raise ShapeError(problem, f"Let it go from 0 to {len(vectors)}.")
    lengths = np.diff(offsets)
    if (lengths < 0).any():
        raise ShapeError(f"{what}.offsets descends after row {np.argmin(lengths)}.", "Put the rows in order.")
    if not lengths.all():
        raise ShapeError(f"{what}, row {np.argmin(lengths)}, has no vector.", "Drop it, or give it one.")
    return MultiVector(vectors, offsets)


def _gather(offsets: NDArray[np.int64], rows: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """New offsets, and where each kept element stood, for ragged ``rows``."""
    lengths = np.diff(offsets)[rows]
    out = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=out[1:])
    return out, np.arange(out[-1], dtype=np.int64) + np.repeat(offsets[:-1][rows] - out[:-1], lengths)


def take(embeddings: E, rows: Ids) -> E:
    """The given rows, in the given order."""
    if isinstance(embeddings, Sparse):
        offsets, kept = _gather(embeddings.indptr, rows)
        return cast("E", Sparse(offsets, embeddings.indices[kept], embeddings.weights[kept], embeddings.dim))
    if isinstance(embeddings, MultiVector):
        offsets, kept = _gather(embeddings.offsets, rows)
        return cast("E", MultiVector(embeddings.vectors[kept], offsets))
    return cast("E", embeddings[rows])


def joined(parts: Sequence[Embeddings], kind: str, *, dim: int) -> Embeddings:
    """All rows one after the other; none where there are no parts."""
    if kind == "sparse":
        rows = [part for part in parts if isinstance(part, Sparse)]
        columns = np.concatenate([np.empty(0, np.int64), *(part.indices for part in rows)])
        weights = np.concatenate([np.empty(0, np.float32), *(part.weights for part in rows)])
        return Sparse(_starts([part.indptr for part in rows]), columns, weights, dim)
    if kind == "multi-vector":
        several = [part for part in parts if isinstance(part, MultiVector)]
        vectors = np.concatenate([np.empty((0, dim), np.float32), *(part.vectors for part in several)])
        return MultiVector(vectors, _starts([part.offsets for part in several]))
    return np.concatenate([np.empty((0, dim), np.float32), *(cast("Dense", part) for part in parts)])


def _starts(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    lengths = [np.diff(part) for part in parts]
    return np.concatenate([[0], np.cumsum(np.concatenate([np.empty(0, np.int64), *lengths]))]).astype(np.int64)


def to_bytes(embeddings: Embeddings) -> list[bytes]:
    """One blob for each row: float32 values; sparse rows put their int64 columns first."""
    if isinstance(embeddings, Sparse):
        rows = (embeddings.row(i) for i in range(len(embeddings)))
        return [columns.astype("<i8").tobytes() + weights.astype("<f4").tobytes() for columns, weights in rows]
    if isinstance(embeddings, MultiVector):
        return [embeddings.row(i).astype("<f4").tobytes() for i in range(len(embeddings))]
    matrix = np.ascontiguousarray(embeddings, dtype="<f4")
    raw, width = matrix.tobytes(), matrix.shape[1] * 4
    return [raw[i : i + width] for i in range(0, len(raw), width)] if width else [b""] * len(matrix)


def from_bytes(blobs: Sequence[bytes], kind: Kind, *, dim: int) -> Embeddings:
    """Inverse of `to_bytes`; ``dim`` is d, or V for sparse rows."""
    if kind == "dense":
        return np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(blobs), dim).astype(np.float32, copy=False)
    width = 12 if kind == "sparse" else 4 * dim
    offsets = np.zeros(len(blobs) + 1, dtype=np.int64)
    np.cumsum([len(b) // width for b in blobs], out=offsets[1:])
    if kind == "multi-vector":
        vectors = np.frombuffer(b"".join(blobs), dtype="<f4").reshape(-1, dim).astype(np.float32, copy=False)
        return MultiVector(vectors, offsets)
    empty = [b""]
    columns = np.frombuffer(b"".join([b[: len(b) * 2 // 3] for b in blobs] or empty), dtype="<i8")
    weights = np.frombuffer(b"".join([b[len(b) * 2 // 3 :] for b in blobs] or empty), dtype="<f4")
    return Sparse(offsets, columns.astype(np.int64, copy=False), weights.astype(np.float32, copy=False), dim)
