"""What an evaluation found, as a table, a plot and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from reperio.evaluation.plot import draw
from reperio.extras import load

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

ALPHA = 0.05
"""A difference is marked where its corrected p is below this."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One system against the baseline, on one measure.

    Attributes
    ----------
    system, measure
        What is compared.
    difference
        Mean over queries of system minus baseline.
    interval
        95 % percentile bootstrap interval of ``difference``.
    p
        Of the two-sided paired sign-flip test.
    p_holm
        The same, corrected for all comparisons of the report.
    """

    system: str
    measure: str
    difference: float
    interval: tuple[float, float]
    p: float
    p_holm: float

    @property
    def mark(self) -> str:
        """``▲`` better, ``▼`` worse, or nothing where luck would do."""
        if self.p_holm >= ALPHA:
            return ""
        return "▲" if self.difference > 0 else "▼"


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """Systems by measures by queries. Shapes: s systems, m measures, q queries.

    Attributes
    ----------
    systems, measures, queries
        Names, in the order of the axes of ``values``; queries by id.
    values
        ``(s, m, q)``, float64.
    intervals
        95 % percentile bootstrap interval of each mean, ``(s, m, 2)``.
    comparisons
        Every other system with the baseline, on every measure.
    baseline
        None where there is one system.
    seconds
        Wall time of each system for all queries, where it was measured.
    notes
        What a reader of the figures should know.
    """

    systems: tuple[str, ...]
    measures: tuple[str, ...]
    queries: tuple[str, ...]
    values: NDArray[np.float64]
    intervals: NDArray[np.float64]
    comparisons: tuple[Comparison, ...]
    baseline: str | None
    seconds: tuple[float | None, ...]
    notes: tuple[str, ...] = ()

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean over queries, ``(s, m)``."""
        means: NDArray[np.float64] = self.values.mean(axis=2)
        return means

    def to_dict(self) -> dict[str, dict[str, float]]:
        """``{system: {measure: mean}}``."""
        rows = zip(self.systems, self.means.tolist(), strict=True)
        return {system: dict(zip(self.measures, row, strict=True)) for system, row in rows}

    def details(self) -> dict[str, Any]:
        """Everything, as JSON holds it: intervals, comparisons, times, and each query's values."""
        compared = {(c.system, c.measure): c for c in self.comparisons}
        systems: dict[str, Any] = {}
        for s, (system, means) in enumerate(self.to_dict().items()):
            measures = {
                measure: {
                    "mean": mean,
                    "interval": self.intervals[s, m].tolist(),
                    "versus_baseline": _as_json(compared.get((system, measure))),
                    "by_query": dict(zip(self.queries, self.values[s, m].tolist(), strict=True)),
                }
                for m, (measure, mean) in enumerate(means.items())
            }
            systems[system] = {"seconds_per_query": self._seconds_per_query(s), "measures": measures}
        notes = list(self.notes)
        return {"queries": len(self.queries), "baseline": self.baseline, "notes": notes, "systems": systems}

    def table(self) -> Table:
        """A table for the terminal, the best mean of each measure in bold; needs the extra ``cli``."""
        text = load("rich.text", extra="cli").Text
        table: Table = load("rich.table", extra="cli").Table(caption_justify="left")
        table.caption = text("\n".join(self._legend()))
        for heading in self._headings():
            table.add_column(text(heading), justify="right" if table.columns else "left")
        means = self.means
        best = means == means.max(axis=0)
        for ((system, _), *cells, (time, _)), strong in zip(self._rows(), best, strict=True):
            figures = (
                text.assemble((mean, "bold" if is_best else ""), "\n", (spread, "dim"))
                for (mean, spread), is_best in zip(cells, strong, strict=True)
            )
            table.add_row(text(system), *figures, time)
        return table

    def plot(self, path: Path | str | None = None) -> Figure:
        """Means as points with their intervals, grouped by measure; needs the extra ``plot``.

        Parameters
        ----------
        path
            Where to write it as well; the ending chooses the format (``.png``, ``.svg``, ``.pdf``).
        """
        figure = draw(self.systems, self.measures, self.means, self.intervals)
        if path is not None:
            figure.savefig(path, bbox_inches="tight", dpi=150)
        return cast("Figure", figure)

    def __str__(self) -> str:
        rows = [self._headings()]
        for cells in self._rows():
            rows += [[upper for upper, _ in cells], [lower for _, lower in cells]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
        return "\n".join([*map(str.rstrip, lines), "", *self._legend()])

    def _repr_html_(self) -> str:
        heading = "".join(f"<th>{escape(name)}</th>" for name in self._headings())
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(top)}<br><small>{escape(low)}</small></td>" for top, low in row) + "</tr>"
            for row in self._rows()
        )
        legend = "<br>".join(map(escape, self._legend()))
        return f"<table><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table><p><small>{legend}</small></p>"

    def _headings(self) -> list[str]:
        return ["system", *self.measures, "ms/query"]

    def _rows(self) -> Iterator[list[tuple[str, str]]]:
        """Cells of two lines: a figure, and how sure it is."""
        marks = {(c.system, c.measure): c.mark for c in self.comparisons}
        for s, (system, means) in enumerate(self.to_dict().items()):
            cells = [(system, "")]
            for m, (measure, mean) in enumerate(means.items()):
                low, high = self.intervals[s, m]
                cells.append((f"{mean:.3f}{marks.get((system, measure)) or ' '}", f"{low:.3f}–{high:.3f} "))
            time = self._seconds_per_query(s)
            yield [*cells, ("–" if time is None else f"{time * 1e3:.1f}", "")]

    def _legend(self) -> list[str]:
        head = f"{len(self.queries)} queries; 95 % bootstrap intervals"
        if self.baseline is not None:
            head += f"; ▲ better, ▼ worse than {self.baseline} (sign-flip test, Holm-corrected p < {ALPHA})"
        return [f"{head}.", *self.notes]

    def _seconds_per_query(self, s: int) -> float | None:
        seconds = self.seconds[s]
        return None if seconds is None else seconds / len(self.queries)


def _as_json(comparison: Comparison | None) -> Mapping[str, Any] | None:
    if comparison is None:
        return None
    return {
        "difference": comparison.difference,
        "interval": list(comparison.interval),
        "p": comparison.p,
        "p_holm": comparison.p_holm,
    }
