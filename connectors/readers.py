"""Records of one file, one after the other, in the memory of a few."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias, cast

from reperio.connectors.template import Row
from reperio.errors import ConnectorError
from reperio.extras import load

Choose: TypeAlias = Callable[[Sequence[str]], Sequence[str]]
"""Columns that there are → columns that are needed; raises where one is missing."""

_CSV_LIMIT = Lock()
_LONGEST_FIELD = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Record:
    """One record.

    Attributes
    ----------
    row
        Its fields.
    number
        First line in the file, or for Parquet the row, counted from 1.
    line
        Whether ``number`` is a line.
    """

    row: Row
    number: int
    line: bool = True


def read_jsonl(path: str, choose: Choose) -> Iterator[Record]:
    """Objects of a file of JSON lines; blank lines are passed over.

    Raises
    ------
    ConnectorError
        If the file cannot be read, or a line is not a JSON object in UTF-8, naming the line.
    """
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _malformed(path, number, f"is not JSON ({error})", line) from error
        if not isinstance(row, dict):
            raise _malformed(path, number, "is not a JSON object", line)
        yield Record(cast("dict[str, Any]", row), number)


def read_csv(path: str, choose: Choose) -> Iterator[Record]:
    """Records of a CSV file with a header; every value is text.

    Raises
    ------
    ConnectorError
        If the file cannot be read, has no header, or a record has too few or too many fields.
    """
    return _separated(path, choose, ",")


def read_tsv(path: str, choose: Choose) -> Iterator[Record]:
    """Like `read_csv`, with tabs; quotes mean what they mean in CSV."""
    return _separated(path, choose, "\t")


def read_parquet(path: str, choose: Choose, rows: range | None = None) -> Iterator[Record]:
    """Rows of a Parquet file, the needed columns only, one batch of them in memory.

    Parameters
    ----------
    rows
        Which rows, counted from 0; the row groups that hold none of them are not read. All where None.

    Raises
    ------
    ConnectorError
        If the file cannot be read.
    """
    with _parquet(path) as file:
        columns = list(choose(file.schema_arrow.names))
        wanted = range(file.metadata.num_rows) if rows is None else rows
        groups, number = _groups(file.metadata, wanted)
        for batch in file.iter_batches(batch_size=1000, row_groups=groups, columns=columns):
            skipped = min(max(0, wanted.start - number), len(batch))
            kept = batch.slice(skipped, max(0, wanted.stop - number - skipped))
            for place, row in enumerate(kept.to_pylist(), number + skipped + 1):
                yield Record(row, place, line=False)
            number += len(batch)


def _groups(metadata: Any, rows: range) -> tuple[list[int], int]:
    """Row groups that hold some of these rows, and the number of the first row in them."""
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    groups = [g for g in range(len(starts) - 1) if starts[g] < rows.stop and starts[g + 1] > rows.start]
    return groups, starts[groups[0]] if groups else rows.stop


def parquet_rows(path: str) -> int:
    """Rows of a Parquet file.

    Raises
    ------
    ConnectorError
        If the file cannot be read.
    """
    with _parquet(path) as file:
        return int(file.metadata.num_rows)


@contextmanager
def _parquet(path: str) -> Generator[Any]:
    arrow = load("pyarrow", extra="parquet")
    parquet = load("pyarrow.parquet", extra="parquet")
    try:
        # Buffering ahead would hold every row group at once.
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            yield file
    except (arrow.ArrowException, OSError) as error:
        raise ConnectorError(f"{path} cannot be read as Parquet: {error}.", "Check the file.") from error


def _separated(path: str, choose: Choose, delimiter: str) -> Iterator[Record]:
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    header = _next(reader, f"{path}:1")
    if header is None:
        raise ConnectorError(f"{path} is empty: it has no header.", "Write the names of the fields in its first line.")
    if "" in header or len(set(header)) < len(header):
        problem = f"has a header with an empty or repeated name: {header}"
        raise ConnectorError(f"{path}:1 {problem}.", "Give each field a name of its own.")
    needed = [(name, header.index(name)) for name in choose(header)]
    while True:
        first = reader.line_num + 1
        values = _next(reader, f"{path}:{first}")
        if values is None:
            return
        if not values:
            continue
        if len(values) != len(header):
            problem = f"has {len(values)} fields where the header has {len(header)}"
            raise _malformed(path, first, problem, delimiter.join(values))
        yield Record({name: values[i] for name, i in needed}, first)


def _next(reader: Iterator[list[str]], place: str) -> list[str] | None:
    """The next record, however long; None at the end."""
    # The limit of a field's length belongs to the whole process: it is lifted for one record and put back.
    with _CSV_LIMIT:
        before = csv.field_size_limit(_LONGEST_FIELD)
        try:
            return next(reader, None)
        except csv.Error as error:
            raise ConnectorError(f"{place} is malformed: {error}.", "Mend its quotes.") from error
        finally:
            csv.field_size_limit(before)


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Lines with their ends, and their numbers from 1.

    Only a newline ends a line: text may hold U+2028 and its like, at which `str.splitlines` would cut.
    """
    number, raw = 0, b""
    try:
        with gzip.open(path) if path.endswith(".gz") else Path(path).open("rb") as file:
            for number, raw in enumerate(file, 1):
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 ({error.reason} at byte {error.start})"
        raise _malformed(path, number, problem, raw.decode("latin-1")) from error
    except (OSError, EOFError, zlib.error) as error:
        raise ConnectorError(f"{path} cannot be read after line {number}: {error}.", "Check the file.") from error


def _malformed(path: str, number: int, problem: str, line: str) -> ConnectorError:
    return ConnectorError(f"{path}:{number} {problem}: {line.strip()[:80]!r}.", "Mend the line, or take it out.")
