"""What an autotuner measured, what it chose, and what is in use.

Shapes: k results.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

__all__ = ["OperatingPoint", "TuneReport"]

_OF_THE_INDEX = ("asked", "held", "given")
"""Not saved with a report."""

_SURE = 1.0
"""Standard errors by which a recall has to pass the target: of six that do, chance carries one."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Search options, and what they gave.

    Attributes
    ----------
    options
        Values by name.
    recall
        Share of the k best rows that were found, the mean over all queries.
    milliseconds
        Of one query, asked in a batch of all.
    error
        Standard error of the recall, by how far the queries differ.
    """

    options: dict[str, int]
    recall: float
    milliseconds: float
    error: float = 0.0

    def reaches(self, target: float) -> bool:
        """Whether other queries like these can be trusted to reach a recall too."""
        return self.recall - _SURE * self.error >= target


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What an autotuner measured and what it chose; its text is a table.

    Attributes
    ----------
    factory
        The index.
    rows, row_bytes
        How many it held, and the memory that each takes.
    queries, k
        How many were asked, for how many results.
    target
        The recall aimed at.
    chosen
        The quickest point that reaches the target, or the best there is.
    points
        All that were measured, by options.
    asked
        The recall asked for, where more was aimed at: while an index grows, for rows still to come.
    held
        Rows that are searched with it now, if others than ``rows``: the options chosen are fitted to them.
    given
        Search options that were given to the index: they go before those chosen.
    """

    factory: str
    rows: int
    row_bytes: int
    queries: int
    k: int
    target: float
    chosen: OperatingPoint
    points: tuple[OperatingPoint, ...] = field(repr=False)
    asked: float | None = None
    held: int | None = field(default=None, compare=False)
    given: Mapping[str, int] = field(default_factory=dict[str, int], compare=False)

    @property
    def reached(self) -> bool:
        """Whether the point chosen has the recall asked for."""
        return self.chosen.recall >= (self.asked or self.target)

    def fits(self, factory: str, options: Collection[str]) -> bool:
        """Whether it can be of an index of this factory with these search options."""
        return self.factory == factory and set(self.chosen.options) == set(options)

    def now(self, held: int, given: Mapping[str, int]) -> Self:
        """The same of an index that holds so many rows by now, and was given options."""
        return self if held == self.rows and not given else replace(self, held=held, given=given)

    @property
    def in_use(self) -> dict[str, int]:
        """What a search for k results uses: the options chosen, fitted to the rows there are now, and those given."""
        return {**self.options_for(self.k, self.held or self.rows), **self.given}

    def options_for(self, k: int, rows: int) -> dict[str, int]:
        """The options chosen, fitted to another number of results, and to rows that have come since.

        As many rows are scored again for few results as for the k that was tuned for. Where rows lie denser, an
        estimate is wrong by as many more of them.
        """
        out, more, grown = dict(self.chosen.options), max(1.0, k / self.k), max(1.0, rows / max(1, self.rows))
        if "k_factor" in out:
            out["k_factor"] = math.ceil(out["k_factor"] * grown * max(1.0, self.k / k))
        if "nprobe" in out:
            out["nprobe"] = math.ceil(out["nprobe"] * math.sqrt(more))
        if "efSearch" in out:
            out["efSearch"] = max(math.ceil(out["efSearch"] * math.sqrt(grown)), 2 * k if more > 1 else 0)
        return out

    def as_json(self) -> dict[str, Any]:
        """What was measured and chosen, as JSON keeps it; an index knows the rest of itself."""
        return {name: value for name, value in asdict(self).items() if name not in _OF_THE_INDEX}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `as_json`."""
        points = tuple(OperatingPoint(**point) for point in data["points"])
        fields: dict[str, Any] = {**data, "chosen": OperatingPoint(**data["chosen"]), "points": points}
        return cls(**fields)

    def __str__(self) -> str:
        names = list(self.chosen.options)
        aimed = "" if self.asked is None else f" {self.target:g} aimed at for rows to come,"
        verdict = "reached" if self.reached else "NOT reached"
        lines = [
            f"{self.factory}: {self.rows} rows of {self.row_bytes} bytes; {self.queries} queries, "
            f"recall@{self.k} {self.asked or self.target:g} asked,{aimed} {self.chosen.recall:.4f} measured: {verdict}",
            "  ".join(["  ", *(f"{name:>8}" for name in names), "recall", "ms a query"]),
        ]
        for point in self.points:
            mark = "->" if point == self.chosen else "  "
            values = (f"{point.options[name]:>8}" for name in names)
            lines.append("  ".join([mark, *values, f"{point.recall:.4f}", f"{point.milliseconds:10.4f}"]))
        return "\n".join([*lines, *self._differences()])

    def _differences(self) -> list[str]:
        """Why other options are in use than those at the arrow."""
        lines = list[str]()
        for name, value in self.in_use.items():
            if name in self.given:
                lines.append(f"in use: {name} {value}, as given")
            elif value != self.chosen.options[name]:
                lines.append(f"in use: {name} {value}, for {self.held} rows in place of {self.rows}")
        return lines
