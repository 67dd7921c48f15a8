"""Embeddings as columns of Arrow and Parquet, to the bit.

Shapes: n rows, d dimensions, V vocabulary, t vectors of all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reperio.embeddings import Dense, Embeddings, MultiVector, Sparse, check_dense, check_multi_vector, kind_of
from reperio.errors import CorruptArtifact, InvalidInput, ShapeError
from reperio.extras import load
from reperio.types import Fingerprint

GROUP = 4096
"""Rows in a row group: what a reader holds at a time."""

_PLAIN = ("vector", "vectors", "columns", "weights")
"""Columns of numbers that no codec makes smaller."""


def checked(embeddings: Any, fingerprint: Fingerprint, *, rows: int) -> Embeddings:
    """What an encoder gave, if it is what its fingerprint says.

    Raises
    ------
    ShapeError
    """
    kind = kind_of(embeddings)
    if kind != fingerprint.kind:
        raise ShapeError(f"The encoder says {fingerprint.kind!r} and gave {kind!r}.", "Mend its fingerprint.")
    if isinstance(embeddings, Sparse):
        if len(embeddings) != rows or embeddings.dim != fingerprint.dim:
            problem = f"The encoder gave {len(embeddings)} rows of {embeddings.dim} columns for {rows} texts."
            raise ShapeError(problem, f"Let it give {rows} rows of {fingerprint.dim}.")
        return embeddings
    if isinstance(embeddings, MultiVector):
        return check_multi_vector(embeddings, what="The encoder's output", dim=fingerprint.dim, rows=rows)
    return check_dense(embeddings, what="The encoder's output", dim=fingerprint.dim, rows=rows)


def to_columns(embeddings: Embeddings) -> dict[str, Any]:
    """Arrow columns: ``vector``; or ``columns`` and ``weights``; or ``vectors``."""
    arrow = load("pyarrow", extra="ray")
    if isinstance(embeddings, Sparse):
        columns = arrow.LargeListArray.from_arrays(embeddings.indptr, arrow.array(embeddings.indices))
        weights = arrow.LargeListArray.from_arrays(embeddings.indptr, arrow.array(embeddings.weights))
        return {"columns": columns, "weights": weights}
    if isinstance(embeddings, MultiVector):
        return {"vectors": arrow.LargeListArray.from_arrays(embeddings.offsets, _vectors(embeddings.vectors))}
    return {"vector": _vectors(embeddings)}


def _vectors(vectors: Dense) -> Any:
    arrow = load("pyarrow", extra="ray")
    return arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.ravel()), vectors.shape[1])


def from_columns(table: Any, fingerprint: Fingerprint) -> Embeddings:
    """Inverse of `to_columns`, from a table or a batch."""
    dim = fingerprint.dim
    if fingerprint.kind == "sparse":
        columns, weights = _one(table, "columns"), _one(table, "weights")
        starts = columns.offsets.to_numpy().astype(np.int64)
        numbers = columns.flatten().to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
        return Sparse(starts - starts[0], numbers, weights.flatten().to_numpy(zero_copy_only=False), dim)
    if fingerprint.kind == "multi-vector":
        lists = _one(table, "vectors")
        starts = lists.offsets.to_numpy().astype(np.int64)
        return MultiVector(_matrix(lists.flatten(), dim), starts - starts[0])
    return _matrix(_one(table, "vector"), dim)


def _one(table: Any, name: str) -> Any:
    column = table.column(name)
    return column.combine_chunks() if hasattr(column, "combine_chunks") else column


def _matrix(lists: Any, dim: int) -> Dense:
    lists = lists.chunk(0) if hasattr(lists, "chunk") and lists.num_chunks == 1 else lists
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False), dtype=np.float32).reshape(len(lists), dim)


def write(path: Path, table: Any) -> None:
    """Write Parquet; numbers as they are, the rest compressed."""
    parquet = load("pyarrow.parquet", extra="ray")
    packed = {name: "none" if name in _PLAIN else "zstd" for name in table.column_names}
    inside = [name for name in table.column_names if name not in _PLAIN]
    # Statistics of numbers in an embedding help nobody, a dictionary of them would be larger than they are.
    parquet.write_table(
        table, path, row_group_size=GROUP, compression=_leaves(table, packed), use_dictionary=False,
        write_statistics=inside,
    )  # fmt: skip


def _leaves(table: Any, packed: dict[str, str]) -> dict[str, str]:
    """Codecs by the path of each leaf, as Parquet asks for them."""
    out = dict[str, str]()
    for field in table.schema:
        path, kind = field.name, field.type
        while hasattr(kind, "value_type"):
            path, kind = f"{path}.list.element", kind.value_type
        out[path] = packed[field.name]
    return out


def batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Batches of a file that `write` wrote, in order.

    Raises
    ------
    CorruptArtifact
    """
    arrow, parquet = load("pyarrow", extra="ray"), load("pyarrow.parquet", extra="ray")
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            yield from file.iter_batches(batch_size=GROUP, columns=columns)
    except (arrow.ArrowException, OSError) as error:
        raise CorruptArtifact(
            f"{path} cannot be read as Parquet: {error}.", "Remove its folder, run it again."
        ) from error


def strings(values: Sequence[str]) -> Any:
    """A column of text that may hold more than 2 GB."""
    arrow = load("pyarrow", extra="ray")
    try:
        return arrow.array(values, type=arrow.large_string())
    except UnicodeEncodeError as error:
        raise InvalidInput(f"A value is not valid Unicode: {error}.", "Decode it with errors='replace'.") from error
