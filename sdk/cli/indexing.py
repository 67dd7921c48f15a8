"""``reperio index``: any source into a collection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from rich.table import Table

from reperio.collection import Collection, hybrid, lexical
from reperio.connectors import FileSource, PythonDocsSource, SQLSource
from reperio.errors import ConfigurationError, InvalidInput
from reperio.evaluation import Beir
from reperio.ingest import UpsertReport
from reperio.protocols import Source
from reperio.signals import Signal


@dataclass(frozen=True, slots=True)
class Selection:
    """Which part of a source makes a document, as given on the command line; None or empty where not given."""

    table: str | None = None
    query: str | None = None
    key: Sequence[str] = ()
    text: Sequence[str] = ()


def open_source(name: str, chosen: Selection) -> Source:
    """The source that a name on the command line stands for.

    Parameters
    ----------
    name
        Database URL, ``python``, ``python:numpy,json``, folder in BEIR layout, or path or pattern of files.
    chosen
        The options given beside it.

    Raises
    ------
    ConfigurationError
        Naming the option that is missing or has no meaning for this kind of source.
    """
    if "://" in name:
        return _database(name, chosen)
    if chosen.table or chosen.query:
        raise ConfigurationError("--table and --query need a database.", "Give its URL: sqlite:///file.db")
    if name == "python" or name.startswith("python:"):
        _refuse_fields(chosen, "Python docstrings")
        packages = name.removeprefix("python").removeprefix(":")
        return PythonDocsSource(packages.split(",") if packages else None)
    if Path(name).is_dir():
        _refuse_fields(chosen, "A BEIR folder")
        return Beir(name)
    if len(chosen.key) > 1:
        raise ConfigurationError(f"A file has one key, not {len(chosen.key)}.", "Give --key once.")
    return FileSource(name, _text(chosen.text) or "text", key=next(iter(chosen.key), None))


def _database(url: str, chosen: Selection) -> SQLSource:
    if not chosen.key or not chosen.text:
        missing = "--key" if not chosen.key else "--text"
        fix = "Name the column that identifies a row and the text: --key id --text '{title}: {body}'"
        raise ConfigurationError(f"A database needs {missing}.", fix)
    return SQLSource(url, chosen.table, query=chosen.query, key=list(chosen.key), text=_text(chosen.text))


def _text(given: Sequence[str]) -> str | list[str]:
    """One template or column as it is; several columns as a list."""
    return given[0] if len(given) == 1 else list(given)


def _refuse_fields(chosen: Selection, what: str) -> None:
    if chosen.key or chosen.text:
        raise ConfigurationError(f"{what} take no --key and no --text.", "Leave them out.")


def choose_signals(*, only_lexical: bool, model: str | None, factory: str | None) -> dict[str, Signal[Any]] | None:
    """The signals that the options ask for; None where they say nothing, so that a collection keeps its own.

    Raises
    ------
    ConfigurationError
        If ``only_lexical`` comes with a model or a factory.
    """
    if only_lexical and (model or factory):
        raise ConfigurationError("--lexical keeps no vectors, so it takes no --model and no --factory.", "Choose one.")
    if only_lexical:
        return lexical()
    if not model and not factory:
        return None
    from reperio.encoders.dense import DenseEncoder
    from reperio.indexes.faiss import FaissIndex

    return hybrid(DenseEncoder(model) if model else None, index=FaissIndex(factory) if factory else None)


def fill(
    path: Path, source: Source, signals: dict[str, Signal[Any]] | None, *, batch_size: int, progress: bool | None = None
) -> UpsertReport:
    """Bring a collection up to date with a source.

    The first document is read before the collection is made: a source that cannot be read leaves nothing behind.

    Raises
    ------
    InvalidInput
        If the source is empty.
    """
    documents = iter(source.documents())
    first = next(documents, None)
    if first is None:
        raise InvalidInput(f"{source.name} holds no document.", "Check the path, the table or the query.")
    with Collection.open(path, signals=signals) as collection:
        return collection.upsert(chain([first], documents), batch_size=batch_size, progress=progress)


def report_table(report: UpsertReport) -> Table:
    """Documents, and texts by signal."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right")
    table.add_column()
    for count, what in ((report.added, "added"), (report.updated, "updated"), (report.unchanged, "unchanged")):
        table.add_row(str(count), what)
    table.add_row(*_by_signal(report.encoded, "encoded"))
    if sum(report.truncated.values()):
        table.add_row(*_by_signal(report.truncated, "[yellow]longer than the model reads, cut"))
    return table


def _by_signal(counts: Any, what: str) -> tuple[str, str]:
    total = sum(counts.values())
    return str(total), f"{what} ({', '.join(counts)})" if total else what
