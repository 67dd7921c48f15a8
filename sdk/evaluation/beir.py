"""A test collection on disk, in the layout of BEIR."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from reperio.errors import ConnectorError, NotFound
from reperio.evaluation.lines import malformed, read_lines
from reperio.evaluation.qrels import Qrels, read_tsv
from reperio.types import Document, FieldSpan, Provenance, Query, Value

_LAYOUT = "Give a folder in BEIR layout: corpus.jsonl, queries.jsonl, qrels/<split>.tsv."


class Beir:
    """A folder with ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``; a `reperio.protocols.Source`.

    A split is ``"test"`` where none is named; else the only one; else ``"dev"``.

    Parameters
    ----------
    path
        The folder.

    Attributes
    ----------
    path
        The folder.
    name
        Its own name, which is the source in each document's provenance.

    Raises
    ------
    NotFound
        If the folder or one of its files is not there.

    References
    ----------
    Thakur et al., BEIR: A Heterogeneous Benchmark for Zero-shot Evaluation of Information Retrieval Models,
    NeurIPS 2021.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.name = self.path.resolve().name
        for name in ("corpus.jsonl", "queries.jsonl"):
            if not (self.path / name).is_file():
                raise NotFound(f"{self.path} holds no {name}.", _LAYOUT)

    def __repr__(self) -> str:
        return f"Beir({str(self.path)!r})"

    @property
    def splits(self) -> list[str]:
        """Names of the files of judgments, sorted."""
        return sorted(file.stem for file in (self.path / "qrels").glob("*.tsv"))

    def documents(self) -> Iterator[Document]:
        """The corpus in file order: title and text, joined by a line break.

        A document with neither cannot be found by anyone and is left out; a warning counts them at the end.

        Raises
        ------
        ConnectorError
            Naming the line that is not an object with ``_id`` and ``text``.
        """
        blank: list[str] = []
        for number, record in _records(self.path / "corpus.jsonl"):
            document = self._document(number, record)
            if document.text:
                yield document
            else:
                blank.append(document.id)
        if blank:
            warnings.warn(f"{self.name}: {_counted(blank)} without title and text, left out.", stacklevel=2)

    def queries(self, split: str | None = None) -> list[Query]:
        """The queries that the split judges, in file order.

        Raises
        ------
        NotFound
            If there is no such split.
        ConnectorError
            Naming the malformed or repeated line, or the judged queries that have no text.
        """
        judged = read_tsv(self._qrels_file(split))
        path, found = self.path / "queries.jsonl", dict[str, Query]()
        for number, record in _records(path):
            query = Query(_string(path, number, record, "_id"), _string(path, number, record, "text"))
            if query.id in found:
                raise malformed(path, number, f"has the _id {query.id!r} of an earlier line")
            found[query.id] = query
        lost = sorted(judged.keys() - found.keys())
        if lost:
            problem = f"{self._qrels_file(split)} judges {len(lost)} queries that {path} lacks: {_some(lost)}."
            raise ConnectorError(problem, "Add them, or take their judgments out.")
        return [query for query in found.values() if query.id in judged]

    def qrels(self, split: str | None = None) -> Qrels:
        """The judgments of a split; reads the corpus too, to name what is judged and not there.

        Raises
        ------
        NotFound
            If there is no such split.
        ConnectorError
            Naming the malformed line.

        Warns
        -----
        UserWarning
            If judged documents are not in the corpus; they are in `Qrels.absent`, and still count as relevant.
        """
        path = self._qrels_file(split)
        qrels = Qrels(read_tsv(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of those left out, only the judged ones matter here
            absent = qrels.documents.difference(document.id for document in self.documents())
        if absent:
            warnings.warn(f"{path} judges {_counted(sorted(absent))} not in the corpus.", stacklevel=2)
        return Qrels(qrels, absent)

    def _document(self, number: int, record: Mapping[str, Any]) -> Document:
        path = self.path / "corpus.jsonl"
        key, body = _string(path, number, record, "_id"), _string(path, number, record, "text")
        title = _string(path, number, record, "title") if record.get("title") is not None else ""
        text, spans = "", list[FieldSpan]()
        for field, value in (("title", title), ("text", body)):
            if value.strip():
                text += "\n" if text else ""
                spans.append(FieldSpan(field, len(text), len(text) + len(value)))
                text += value
        extra: object = record.get("metadata") or {}
        if not isinstance(extra, Mapping):
            raise malformed(path, number, f"has metadata of type {type(extra).__name__}, not an object")
        others = {name: value for name, value in record.items() if name not in {"_id", "title", "text", "metadata"}}
        metadata = {**cast("Mapping[str, Value]", extra), **others} | ({"title": title} if title.strip() else {})
        return Document(key, text, metadata, Provenance(self.name, key=key, fields=tuple(spans), line=number))

    def _qrels_file(self, split: str | None) -> Path:
        splits = self.splits
        if split is None:
            split = "test" if "test" in splits or not splits else splits[0] if len(splits) == 1 else "dev"
        if split not in splits:
            there = f"It has: {', '.join(splits)}." if splits else _LAYOUT
            raise NotFound(f"{self.path} has no split {split!r}.", there)
        return self.path / "qrels" / f"{split}.tsv"


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in read_lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise malformed(path, number, f"is not JSON ({error})") from error
        if not isinstance(record, dict):
            raise malformed(path, number, f"is a {type(record).__name__}, not an object")
        yield number, cast("dict[str, Any]", record)


def _string(path: Path, number: int, record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or (name == "_id" and not value):
        raise malformed(path, number, f"has {name} = {value!r}, not a string" + (" of text" if name == "_id" else ""))
    return value


def _counted(ids: list[str]) -> str:
    return f"{len(ids)} document{'s' if len(ids) > 1 else ''} ({_some(ids)})"


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
