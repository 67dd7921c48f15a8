"""Files of records: JSON lines, CSV, TSV, Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from reperio.connectors.readers import Choose, Record, parquet_rows, read_csv, read_jsonl, read_parquet, read_tsv
from reperio.connectors.records import Report, RowReader, key_text
from reperio.connectors.template import Row, Text
from reperio.errors import ConfigurationError, ConnectorError
from reperio.protocols import Part
from reperio.types import Document, Provenance

Layout: TypeAlias = Literal["jsonl", "csv", "tsv", "parquet"]

_READERS: dict[Layout, Callable[[str, Choose], Iterator[Record]]] = {
    "jsonl": read_jsonl,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
}

_SUFFIXES: dict[str, Layout] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}


class FileSource:
    """Records of files as documents, file by file in the order of their names, top to bottom.

    One record is in memory at a time; of Parquet, one batch of rows. JSON lines, CSV and TSV may be gzipped (their
    name then ends in ``.gz``) and are UTF-8, with or without a byte order mark. CSV and TSV have a header, and all
    their values are text. A record whose text is empty is skipped, counted (``skipped_empty`` in `reperio.meter`)
    and told in a warning at the end of the pass.

    Parameters
    ----------
    path
        A file, a pattern (``"data/**/*.jsonl"``), or several of them.
    text
        Template (``"{title}: {body}"``), field, several fields (joined by blank lines), or a function from record
        to text or to a whole `Document`.
    key
        Field that identifies a record over all the files; None takes ``_id`` or ``id`` where the first record of a
        file has it, else ``path:line`` (of Parquet ``path:row``).
    metadata
        Fields to keep as metadata; None keeps all that are neither key nor text. A JSON record need not have them.
    layout
        How the files are written; None goes by the end of their names.

    Raises
    ------
    ConfigurationError
        If the template cannot be read.
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        text: Text,
        *,
        key: str | None = None,
        metadata: Sequence[str] | None = None,
        layout: Layout | None = None,
    ) -> None:
        self._paths = [str(path)] if isinstance(path, str | Path) else [str(one) for one in path]
        if not self._paths:
            raise ConfigurationError("No file is named.", "Give a path, a pattern, or a list of them.")
        if layout is not None and layout not in _READERS:
            raise ConfigurationError(f"No layout is called {layout!r}.", f"There are: {', '.join(_READERS)}.")
        self._key = key
        self._layout: Layout | None = layout
        self._folder = Path.cwd()  # a process that reads a piece may have another
        self._rows = partial(RowReader, text, metadata)
        self._rows()  # refuses a bad template now

    @property
    def name(self) -> str:
        """The paths as they were given; a document's provenance names its file."""
        return ", ".join(self._paths)

    def __repr__(self) -> str:
        return f"FileSource({self.name!r})"

    def documents(self) -> Iterator[Document]:
        """Every record that has text.

        Raises
        ------
        ConnectorError
            If a file is missing or unreadable, naming the line where there is one.
        ConfigurationError
            If a field that is asked for is not there, or a file's name does not tell its layout.
        """
        found = dict.fromkeys(file for path in self._paths for file in _expand(path))
        return self._documents([(file, self._layout or _layout(file)) for file in found])

    def _documents(self, files: Sequence[tuple[str, Layout]]) -> Iterator[Document]:
        report = self._rows().report(self.name)
        for path, layout in files:
            file = _File(path, self._key, self._rows)
            for record in _READERS[layout](path, file.needed):
                document = file.document(record, report)
                if document is not None:
                    yield document
        report.tell()

    def divide(self, rows: int, /) -> list[Part]:
        """Cut Parquet files into pieces of so many rows; each piece is of one file.

        Raises
        ------
        ConnectorError
            If a file is missing or unreadable.
        ConfigurationError
            If a file is not Parquet: rows of other files are found only by reading all before them.
        """
        parts: list[Part] = []
        for file in dict.fromkeys(file for path in self._paths for file in _expand(path)):
            if (layout := self._layout or _layout(file)) != "parquet":
                raise ConfigurationError(
                    f"{file} is {layout}, which cannot be read in pieces.", "Convert it to Parquet."
                )
            count = parquet_rows(file)
            parts += [{"file": file, "from": at, "to": min(at + rows, count)} for at in range(0, count, rows)]
        return parts

    def read(self, part: Part, /) -> Iterator[Document]:
        """The documents of one piece; relative names go from the folder in which the source was made."""
        report = self._rows().report(self.name)
        file = _File(part["file"], self._key, self._rows)
        for record in read_parquet(str(self._folder / part["file"]), file.needed, range(part["from"], part["to"])):
            document = file.document(record, report)
            if document is not None:
                yield document
        report.tell()


class _File:
    """One file, whose first record settles what its key is."""

    def __init__(self, path: str, key: str | None, rows: Callable[..., RowReader]) -> None:
        self._path = path
        self._key = key
        self._make = rows
        self._rows: RowReader | None = None

    def needed(self, fields: Sequence[str]) -> list[str]:
        return self._settled(fields).needed(fields, self._path)

    def document(self, record: Record, report: Report) -> Document | None:
        rows = self._settled(list(record.row))
        place = f"{self._path}:{record.number}"
        name = place if self._key is None else self._name(record.row, place)
        key = str(record.number) if self._key is None else name
        where = Provenance(self._path, key=key, line=record.number if record.line else None)
        return rows.document(name, record.row, where, report)

    def _settled(self, fields: Sequence[str]) -> RowReader:
        if self._rows is None:
            self._key = self._key or next((key for key in ("_id", "id") if key in fields), None)
            self._rows = self._make(keys=() if self._key is None else (self._key,))
        return self._rows

    def _name(self, row: Row, place: str) -> str:
        try:
            return key_text([row.get(str(self._key))])
        except ConnectorError as error:
            raise ConnectorError(f"{place} has no {self._key!r}. {error.problem}", error.fix) from error


def _expand(path: str) -> list[str]:
    """The files that a path or a pattern stands for, sorted."""
    if Path(path).is_file():
        return [path]
    if Path(path).is_dir():
        raise ConnectorError(f"{path} is a folder.", f"Give a file or a pattern: {Path(path) / '*.jsonl'}")
    parts = Path(path).parts
    fixed = next((i for i, part in enumerate(parts) if set("*?[") & set(part)), len(parts))
    pattern = "/".join(parts[fixed:])
    found = sorted(str(file) for file in Path(*parts[:fixed]).glob(pattern) if file.is_file()) if pattern else []
    if not found:
        raise ConnectorError(f"{path} does not exist, or matches no file.", "Check the path.")
    return found


def _layout(path: str) -> Layout:
    suffix = Path(path.removesuffix(".gz")).suffix.lower()
    if suffix not in _SUFFIXES:
        fix = f"Say it: layout= one of {', '.join(_READERS)}."
        raise ConfigurationError(f"The name {path} does not tell how the file is written.", fix)
    return _SUFFIXES[suffix]
