"""``reperio stats`` and ``reperio verify``: what is in a collection, and whether it is sound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reperio.collection import CollectionStats, VerifyReport


def verify_view(report: VerifyReport) -> RenderableType:
    """One line, or one for each problem."""
    if report.ok:
        return Text.assemble(("sound", "bold green"), f"  {report.documents} documents")
    return Group(
        Text(f"{len(report.problems)} problems in a collection of {report.documents} documents", "bold red"),
        *map(Text, report.problems),
    )


def stats_view(stats: CollectionStats) -> RenderableType:
    """Sizes, then fields, then one row a signal."""
    return Group(_sizes(stats), _signals(stats), *map(_state, stats.signals, stats.signals.values()), *_advice(stats))


def _sizes(stats: CollectionStats) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in (
        ("documents", f"{stats.documents:,}"),
        ("replaced, until compacted", f"{stats.replaced:,}"),
        ("sequence number", f"{stats.seq:,}"),
        ("store", _size(stats.store_bytes)),
        ("indexes", _size(stats.index_bytes)),
        ("memory of this process", "not told" if stats.resident_bytes is None else _size(stats.resident_bytes)),
        ("writer", "none" if stats.writer is None else f"process {stats.writer}"),
        ("fields", ", ".join(f"{name} ({' or '.join(kinds)})" for name, kinds in stats.fields.items()) or "none"),
    ):
        table.add_row(Text(name, "dim"), Text(value))
    return table


def _signals(stats: CollectionStats) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("signal", "model", "kind", "index"):
        table.add_column(heading, overflow="fold")
    for heading in ("dim", "rows", "dead", "size", "checkpoint", "behind", "truncated"):
        table.add_column(heading, justify="right")
    for name, signal in stats.signals.items():
        dim = "–" if signal["kind"] == "sparse" else f"{signal['dim']:,}"
        rows, dead, at, behind, cut = (
            f"{signal[part]:,}" for part in ("rows", "dead", "checkpoint", "behind", "truncated")
        )
        figures = (dim, rows, dead, _size(signal["bytes"]), at, behind, cut)
        table.add_row(*map(Text, (name, signal["model"], signal["kind"], _index(signal["index"]), *figures)))
    return table


def _state(name: str, signal: Mapping[str, Any]) -> Text:
    """Where the bytes of an index are, and in how many parts it is."""
    saved = [f"{generation} {_size(size)}" for generation, size in signal["generations"].items()]
    # One in the database of the collection has no state of its own, and is at the last commit all the same.
    parts = saved or ["nothing saved" if signal["checkpoint"] < 0 else "saved by every commit"]
    if signal["mapped"]:
        parts.append(f"{_size(signal['mapped'])} mapped, {_size(signal['resident'])} of it in memory")
    if signal["segments"] is not None:
        parts.append(f"segments {signal['segments']:,}")
    if signal["waiting"] is not None:
        parts.append(f"waiting rows {signal['waiting']:,}")
    return Text(f"{name}: {'; '.join(parts)}", "dim")


def _advice(stats: CollectionStats) -> list[Text]:
    """What was measured when an index was built, and what should be done."""
    lines = list[Text]()
    for name, signal in stats.signals.items():
        tuned = signal["tuning"]
        if tuned is not None:
            figures = ", ".join(
                f"{key} {value}" for key, value in tuned.items() if isinstance(value, int | float | str)
            )
            lines.append(Text(f"{name}: {signal['factory']}, tuned: {figures}"))
        if signal["quantization"] is not None:
            figures = ", ".join(f"{key} {value}" for key, value in signal["quantization"].items())
            lines.append(Text(f"{name}: quantised: {figures}"))
        if signal["compact"]:
            lines.append(Text(f"{name}: {signal['dead']:,} dead rows: `compact` builds the index anew", "yellow"))
    return lines


def _index(spec: dict[str, object]) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in spec.items() if name != "type")
    return f"{spec['type']}({settings})"


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"
