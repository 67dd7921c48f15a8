"""Sealed segments of an inverted index: which rows hold a term, and which terms a row holds.

A segment never changes. Rows are added as a new segment, taken away by a copy that marks them dead, and dropped
when segments are merged; so whoever searches keeps a consistent view without a lock.

A row keeps what was added, exactly. A posting list keeps an upper bound of each row's impact, in a byte: enough to
find out which rows may be among the best, which are then scored from the rows. Lists of many rows are cut at
windows of rows, with the highest impact in each, so that a search can pass over windows without opening them.

Shapes: n rows, V distinct terms, p postings (pairs of a row and a term it holds), L long lists with s postings,
w windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Ids, IdSet, Sparse, take
from reperio.extras import installed
from reperio.indexes import lists
from reperio.indexes.lists import WINDOW, Cut
from reperio.indexes.stored import read_array
from reperio.indexes.weighting import Floats, Weighting

__all__ = ["Positions", "Precision", "Segment", "Settings", "Values", "compile_from", "offsets", "spread"]

Precision: TypeAlias = Literal["uint8", "float32"]
"""How impacts are kept in posting lists; scores are exact with both."""

Values: TypeAlias = NDArray[np.uint8 | np.float32]
"""What was added: one byte each where all are whole and below 256."""

Codes: TypeAlias = NDArray[np.uint8 | np.float32]
"""Upper bounds of impacts, in units of their term's scale."""

Positions: TypeAlias = NDArray[np.int64]

_LONG = 8
"""Postings for each window from which a list is cut at windows: the table is then below a byte a posting."""

_COMPILED_FROM = 1 << 16
"""Postings from which compiled code is worth loading."""

_MAPPED_FROM = 1 << 16
"""Smaller arrays are read, larger ones mapped: a map costs a page and a file descriptor."""


class Settings(NamedTuple):
    """What a segment is made with.

    Attributes
    ----------
    weighting
        What a posting counts.
    average
        Average length of all rows of the index.
    precision
        Of codes.
    """

    weighting: Weighting
    average: float
    precision: Precision


class _Rows(NamedTuple):
    """Rows, ids ascending, as they come from outside or from other segments."""

    ids: IdSet
    lengths: NDArray[np.float32]
    starts: Positions
    slots: NDArray[np.int32]
    values: Values


@dataclass(frozen=True, eq=False)
class ByTerm:
    """What was added to a segment of one window, in the order of postings; made when a search first asks for it.

    Larger segments have none: it would cost up to half their memory, and they rarely score many rows of a window.
    """

    rows: tuple[Positions, NDArray[np.int32], Values]
    terms: int

    @cached_property
    def values(self) -> Values:
        """One for each posting, ``(p,)``, or ``(0,)``."""
        from reperio.indexes import inverting

        starts, _, values = self.rows
        made: Values = inverting.invert(*self.rows, self.terms)[2] if len(starts) <= WINDOW + 1 else values[:0].copy()
        made.flags.writeable = False
        return made


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Rows by term and by row.

    Attributes
    ----------
    ids
        Row keys, ``(n,)``, int64, ascending; a row's position is its place here.
    lengths
        Sum of each row's term frequencies, ``(n,)``, float32.
    alive
        Which rows were not removed, ``(n,)``, bool.
    average
        The average length that the codes were made with, ``(1,)``, float64.
    terms
        Columns in use, ``(V,)``, int64, ascending; a term's slot is its place here.
    frequencies
        In how many live rows each term occurs, ``(V,)``, int64.
    scales
        Of each term's codes, ``(V,)``, float32.
    starts, codes
        Impacts by slot: ``(V + 1,)`` int64, ``(p,)``.
    long_before
        How many of the slots before have a long list, ``(V + 1,)``, int32.
    short_positions
        Positions of the postings in short lists, one list after the other, ``(p - s,)``, uint32.
    long_starts, long_places
        Places within the window of those in long lists: ``(L + 1,)`` int64, ``(s,)`` uint16.
    cuts
        Where each window begins in a long list, counted from the list's start, ``(L, w + 1)``, uint32.
    peaks
        Highest code in each window of a long list, ``(L, w)``.
    ranked
        Codes of a long list at `reperio.indexes.lists.RANKS`, ``(L, 3)``.
    row_starts, row_slots, row_values
        What was added by row, slots ascending in a row: ``(n + 1,)`` int64, ``(p,)`` int32, ``(p,)``.
    """

    ids: IdSet
    lengths: NDArray[np.float32]
    alive: NDArray[np.bool_]
    average: NDArray[np.float64]
    terms: NDArray[np.int64]
    frequencies: NDArray[np.int64]
    scales: NDArray[np.float32]
    starts: NDArray[np.int64]
    codes: Codes
    long_before: NDArray[np.int32]
    short_positions: NDArray[np.uint32]
    long_starts: NDArray[np.int64]
    long_places: NDArray[np.uint16]
    cuts: NDArray[np.uint32]
    peaks: Codes
    ranked: Codes
    row_starts: NDArray[np.int64]
    row_slots: NDArray[np.int32]
    row_values: Values
    by_term: ByTerm | None = field(default=None, repr=False)

    @classmethod
    def build(cls, ids: Ids, rows: Sparse, settings: Settings) -> Self:
        """A segment of ``rows``, one for each id; ids are each once, in any order."""
        if (ids[1:] < ids[:-1]).any():
            order = np.argsort(ids)
            ids, rows = ids[order], take(rows, order)
        columns, weights, starts = rows.indices, rows.weights, rows.indptr
        if not weights.all():
            held = np.flatnonzero(weights)
            starts = np.searchsorted(held, starts).astype(np.int64)
            columns, weights = columns[held], weights[held]
        if compile_from(len(columns)):
            from reperio.indexes import inverting

            terms, slots = inverting.factorise(columns)
        else:
            terms = np.unique(columns)
            slots = np.searchsorted(terms, columns).astype(np.int32)
        lengths = _lengths(columns, weights, starts, settings.weighting)
        return cls._seal(
            terms,
            _Rows(np.array(ids), lengths, np.array(starts), slots, _narrow(weights, settings.precision)),
            settings,
        )

    @classmethod
    def merge(cls, segments: Sequence[Self], settings: Settings) -> Self:
        """One segment of all live rows, in time linear in the postings; no id is live in two."""
        used = [s.terms[s.frequencies > 0] for s in segments]
        terms = used[0] if len(used) == 1 else np.unique(np.concatenate(used))
        parts = sorted(segments, key=lambda s: int(s.ids[0]))
        ids = np.concatenate([s.ids[s.alive] for s in parts])
        lengths = np.concatenate([s.lengths[s.alive] for s in parts])
        sizes = np.concatenate([np.diff(s.row_starts)[s.alive] for s in parts])
        starts = offsets(sizes)
        slots = np.empty(int(starts[-1]), dtype=np.int32)
        values = np.empty(len(slots), dtype=np.result_type(*[s.row_values.dtype for s in parts]))
        done = 0
        for part in parts:
            slot = np.searchsorted(terms, part.terms).astype(np.int32)
            kept = slice(None) if part.live == len(part) else np.repeat(part.alive, np.diff(part.row_starts))
            held = part.row_slots[kept]
            np.take(slot, held, out=slots[done : done + len(held)])
            values[done : done + len(held)] = part.row_values[kept]
            done += len(held)
        if (ids[1:] < ids[:-1]).any():
            order = np.argsort(ids)
            where = spread(starts[:-1][order], sizes[order])
            ids, lengths, slots, values = ids[order], lengths[order], slots[where], values[where]
            starts = offsets(sizes[order])
        return cls._seal(terms, _Rows(ids, lengths, starts, slots, values), settings)

    @classmethod
    def _seal(cls, terms: NDArray[np.int64], rows: _Rows, settings: Settings) -> Self:
        weighting, average, precision = settings
        average = average or float(rows.lengths.mean(dtype=np.float64))  # the first rows are their own measure
        relative = weighting.relative(rows.lengths, average)
        linear = terms < weighting.weights_below
        windows = max(1, -(-len(rows.ids) // WINDOW))
        if compile_from(len(rows.slots)):
            from reperio.indexes import inverting

            starts, positions, values = inverting.invert(rows.starts, rows.slots, rows.values, len(terms))
            codes: Codes = np.empty(len(positions), dtype=precision)
            scales = inverting.encode(starts, positions, values, relative, linear, weighting.formula, codes)
        else:
            starts, positions, values = lists.invert(rows.starts, rows.slots, rows.values, len(terms))
            top = 255 if precision == "uint8" else 0
            scales, codes = lists.encode(starts, positions, values, relative, linear, weighting.formula, top)
        del values, relative
        sizes = np.diff(starts)
        is_long = sizes >= _LONG * windows
        long_slots = np.flatnonzero(is_long)
        made: Cut
        if compile_from(len(rows.slots)):
            from reperio.indexes import inverting

            made = inverting.cut(starts, positions, codes, long_slots, windows)
        else:
            made = lists.cut(starts, positions, codes, long_slots, windows)
        return cls(
            ids=rows.ids,
            lengths=rows.lengths,
            alive=np.ones(len(rows.ids), dtype=np.bool_),
            average=np.array([average]),
            terms=terms,
            frequencies=sizes,
            scales=scales,
            starts=starts,
            codes=codes,
            long_before=offsets(is_long).astype(np.int32),
            short_positions=positions[~np.repeat(is_long, sizes)],
            long_starts=offsets(sizes[is_long]),
            long_places=made.places,
            cuts=made.cuts,
            peaks=made.peaks,
            ranked=made.ranked,
            row_starts=rows.starts,
            row_slots=rows.slots,
            row_values=rows.values,
        )

    def __post_init__(self) -> None:
        for name in _arrays():  # sealed; and compiled code knows arrays that are mapped and that are not as one
            getattr(self, name).flags.writeable = False
        if self.by_term is None:
            rows = (self.row_starts, self.row_slots, self.row_values)
            object.__setattr__(self, "by_term", ByTerm(rows, len(self.terms)))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def live(self) -> int:
        """How many rows were not removed."""
        return int(np.count_nonzero(self.alive))

    @property
    def values(self) -> Values:
        """Of compiled code, see `ByTerm`."""
        assert self.by_term is not None
        return self.by_term.values

    def drift(self, average: float) -> tuple[float, float]:
        """By which factors the impacts of counts may have risen and fallen, now that lengths average this."""
        change = average / float(self.average[0]) if self.average[0] > 0 and average > 0 else 1.0
        return max(1.0, change), min(1.0, change)

    def find(self, ids: Ids) -> Positions:
        """Position of each id, -1 where it is not held or dead."""
        if self.ids[-1] - self.ids[0] == len(self) - 1:  # without gaps
            places = np.clip(ids - self.ids[0], 0, len(self) - 1)
        else:
            places = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        return np.where((self.ids[places] == ids) & self.alive[places], places, -1)

    def slots(self, terms: NDArray[np.int64]) -> Positions:
        """Slot of each term, -1 where no row ever held it."""
        if not len(self.terms):
            return np.full(len(terms), -1, dtype=np.int64)
        places = np.minimum(np.searchsorted(self.terms, terms), len(self.terms) - 1)
        return np.where(self.terms[places] == terms, places, -1)

    def postings(self, slot: int) -> tuple[Positions, Floats]:
        """Positions of the rows that hold a term, ascending, and upper bounds of their impacts."""
        first, last = int(self.starts[slot]), int(self.starts[slot + 1])
        bounds = self.codes[first:last] * np.float64(self.scales[slot])
        number = int(self.long_before[slot])
        before = int(self.long_starts[number])
        if self.long_before[slot + 1] == number:
            return self.short_positions[first - before : last - before].astype(np.int64), bounds
        places = self.long_places[before : before + last - first]
        windows: Positions = np.arange(self.cuts.shape[1] - 1, dtype=np.int64) * WINDOW
        base: Positions = np.repeat(windows, np.diff(self.cuts[number].astype(np.int64)))
        return base + places, bounds

    def rows(self, positions: Positions) -> tuple[NDArray[np.int32], Values, Positions]:
        """Slots and values of these rows' postings, one row after the other, and how many each has."""
        sizes = self.row_starts[positions + 1] - self.row_starts[positions]
        where = spread(self.row_starts[positions], sizes)
        return self.row_slots[where], self.row_values[where], sizes

    def without(self, positions: Positions) -> Self:
        """This segment with the rows at ``positions`` dead."""
        alive, frequencies = self.alive.copy(), self.frequencies.copy()
        alive[positions] = False
        slots, _, _ = self.rows(positions)
        np.subtract.at(frequencies, slots, 1)
        return replace(self, alive=alive, frequencies=frequencies)

    def save(self, folder: Path, name: str) -> None:
        """Write each array as ``{name}-{attribute}.npy``."""
        for array in _arrays():
            np.save(folder / f"{name}-{array}.npy", getattr(self, array), allow_pickle=False)

    @classmethod
    def open(cls, folder: Path, name: str) -> Self:
        """Read what `save` wrote; large arrays stay on disk and are mapped."""
        return cls(**{array: _load(folder / f"{name}-{array}.npy") for array in _arrays()})


def _arrays() -> list[str]:
    return [held.name for held in fields(Segment) if held.name != "by_term"]


def compile_from(postings: int) -> bool:
    """Whether so much work is worth loading compiled code, and there is a compiler."""
    return postings >= _COMPILED_FROM and installed("numba")


def spread(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Positions:
    """``[starts[i], starts[i] + sizes[i])`` for each i, one after the other."""
    ends = np.cumsum(sizes)
    where = np.arange(ends[-1] if len(ends) else 0, dtype=np.int64)
    where += np.repeat(starts - ends + sizes, sizes)
    return where


def offsets(sizes: NDArray[Any]) -> Positions:
    """Running total, from 0."""
    out = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=out[1:])
    return out


def _lengths(
    columns: NDArray[np.int64], weights: NDArray[np.float32], starts: Positions, weighting: Weighting
) -> NDArray[np.float32]:
    """Sum of each row's counts."""
    counted = weights.astype(np.float64)
    if weighting.weights_below:
        counted[columns < weighting.weights_below] = 0
    totals = np.concatenate([[0.0], np.cumsum(counted)])
    return np.diff(totals[starts]).astype(np.float32)


def _narrow(weights: NDArray[np.float32], precision: Precision) -> Values:
    small = precision == "uint8" and bool(np.all(weights < 256)) and bool(np.all(weights == np.floor(weights)))
    return weights.astype(np.uint8) if small else weights.copy()


def _load(path: Path) -> Any:
    mapped = path.stat().st_size >= _MAPPED_FROM
    return np.ascontiguousarray(read_array(path, mapped="r" if mapped else None))  # as compiled code knows them
