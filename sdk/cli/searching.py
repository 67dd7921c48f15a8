"""``reperio search`` and ``reperio explain``: hits as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from reperio.errors import ConfigurationError
from reperio.filters import Filter, parse
from reperio.types import Hit, Ranking

Row = Mapping[str, Any]


def read_filter(where: str | None) -> Filter | None:
    """The filter that ``--where`` holds."""
    return None if where is None else parse(where)


def read_names(text: str | None) -> list[str] | None:
    """The names of a list with commas; None where nothing was given.

    Raises
    ------
    ConfigurationError
        If a name is empty.
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ConfigurationError(f"{text!r} is not a list of names.", "Write them with commas between: bm25,dense")
    return names


def rows(ranking: Ranking) -> list[Row]:
    """Hits as plain data, best first."""
    return [_row(rank, hit) for rank, hit in enumerate(ranking, 1)]


def _row(rank: int, hit: Hit) -> Row:
    document = hit.document
    return {
        "rank": rank,
        "id": document.id,
        "score": hit.score,
        "signals": dict(hit.signals),
        "source": None if document.provenance is None else str(document.provenance),
        "text": document.text,
        "metadata": dict(document.metadata),
    }


def hits_table(found: Sequence[Row], title: str = "") -> Table:
    """Rows of `rows` as a table: scores, one column a signal, where it came from, first line of the text."""
    signals = list(found[0]["signals"]) if found else []
    table = Table(
        title=Text(title, "bold") if title else None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, expand=True
    )
    for heading in ("", "score", *signals):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("id", overflow="fold", max_width=40)
    table.add_column("source", overflow="fold", max_width=40)
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in found:
        table.add_row(*_cells(row, signals))
    return table


def _cells(row: Row, signals: Sequence[str]) -> list[Text]:
    """Texts, so that brackets in an id are not read as markup."""
    scores = [f"{row['score']:.4f}", *(f"{row['signals'][name]:.4f}" for name in signals)]
    return [
        Text(str(row["rank"]), "dim"),
        Text(scores[0], "bold"),
        *map(Text, scores[1:]),
        Text(row["id"], "cyan"),
        Text((row["source"] or "").removesuffix(f"[{row['id']}]"), "dim"),
        Text(next(iter(row["text"].splitlines()), "")),
    ]
