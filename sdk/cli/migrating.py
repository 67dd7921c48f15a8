"""``reperio migrate``: a collection to another place or other indexes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reperio.errors import ConfigurationError
from reperio.migration import MigrationReport
from reperio.postgres import is_url


def read_place(text: str) -> Path | str:
    """A folder, or the address of a database."""
    return text if is_url(text) else Path(text)


def read_indexes(given: Sequence[str]) -> dict[str, str | Mapping[str, Any]]:
    """What ``--index`` holds: ``signal=`` and a factory string, the name of a class, or JSON.

    Raises
    ------
    ConfigurationError
        If it is not of this form, the JSON cannot be read, or a signal is named twice.
    """
    out: dict[str, str | Mapping[str, Any]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            fix = "Write --index dense=HNSW32, --index dense=PgvectorIndex or --index 'dense={\"type\": …}'."
            raise ConfigurationError(f"--index is {text!r}.", fix)
        if name in out:
            raise ConfigurationError(f"--index names {name!r} twice.", "Give each signal one index.")
        out[name] = _read_spec(name, value) if value.lstrip().startswith("{") else value
    return out


def _read_spec(name: str, text: str) -> Mapping[str, Any]:
    try:
        spec: Mapping[str, Any] = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(
            f"The index for {name!r} is no JSON: {error}.", 'Write {"type": "FaissIndex"}.'
        ) from error
    return spec


def migration_view(report: MigrationReport) -> RenderableType:
    """One line, what was done, one row a signal, and what does not agree."""
    head = (
        Text.assemble(("moved", "bold green"), f"  {report.documents:,} documents to {report.target}")
        if report.ok
        else Text(f"{len(report.problems)} problems: there is no collection at {report.target} yet", "bold red")
    )
    parts: list[RenderableType] = [head, *map(Text, report.problems), _counts(report), _signals(report)]
    if report.unfinished is not None:
        parts.append(Text(f"What was copied is kept in {report.unfinished}; run it again with other settings."))
    return Group(*parts)


def _counts(report: MigrationReport) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in (
        ("from", f"{report.source}, as of its commit {report.seq:,}"),
        ("copied", f"{report.added:,}"),
        ("there already", f"{report.unchanged:,}"),
        ("taken away", f"{report.removed:,}"),
        ("digest", report.digests[1]),
    ):
        table.add_row(Text(name, "dim"), Text(value))
    return table


def _signals(report: MigrationReport) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("signal", "from", "to"):
        table.add_column(heading, overflow="fold")
    for heading in ("embeddings", "truncated", "recall before", "after"):
        table.add_column(heading, justify="right")
    for name, moved in report.signals.items():
        found = moved.agreement
        recalls = (None, None) if found is None else (found.source, found.target)
        figures = [
            f"{moved.embeddings:,}",
            f"{moved.truncated:,}",
            *("–" if r is None else f"{r:.1%}" for r in recalls),
        ]
        table.add_row(*map(Text, (name, moved.source["type"], moved.target["type"], *figures)))
    return table
