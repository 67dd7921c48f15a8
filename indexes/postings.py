"""Sealed segments of an inverted index: which rows hold a term, and which terms a row holds.

A segment never changes. Rows are added as a new segment, taken away by a copy that marks them dead, and dropped
when segments are merged; so whoever searches keeps a consistent view without a lock.

Shapes: n rows, V distinct terms, p postings (pairs of a row and a term it holds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Ids, IdSet, Sparse, take

__all__ = ["Counts", "Segment", "spread"]

Counts: TypeAlias = NDArray[np.uint8 | np.float32]
"""Term frequencies: one byte each where all are whole and below 256."""

Positions: TypeAlias = NDArray[np.int64]

_MAPPED_FROM = 1 << 16
"""Smaller arrays are read, larger ones mapped: a map costs a page and a file descriptor."""


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
    terms
        Columns in use, ``(V,)``, int64, ascending; a term's slot is its place here.
    frequencies
        In how many live rows each term occurs, ``(V,)``, int64.
    starts, positions, counts
        Postings by slot: ``(V + 1,)`` int64, ``(p,)`` int32, ``(p,)``.
    row_starts, row_slots, row_counts
        Postings by row, slots ascending in a row: ``(n + 1,)`` int64, ``(p,)`` int32, ``(p,)``.
    """

    ids: IdSet
    lengths: NDArray[np.float32]
    alive: NDArray[np.bool_]
    terms: NDArray[np.int64]
    frequencies: NDArray[np.int64]
    starts: NDArray[np.int64]
    positions: NDArray[np.int32]
    counts: Counts
    row_starts: NDArray[np.int64]
    row_slots: NDArray[np.int32]
    row_counts: Counts

    @classmethod
    def build(cls, ids: Ids, rows: Sparse) -> Self:
        """A segment of ``rows``, one for each id; ids are each once, in any order."""
        order = np.argsort(ids)
        rows = take(rows, order)
        held = np.flatnonzero(rows.weights)
        row_starts = np.searchsorted(held, rows.indptr).astype(np.int64)
        columns, weights = rows.indices[held], rows.weights[held]
        terms = np.unique(columns)
        slots = np.searchsorted(terms, columns)
        frequencies = np.bincount(slots, minlength=len(terms)).astype(np.int64)
        # Slot above, place below, in one integer: sorting it is a stable argsort, several times as fast.
        by_slot = np.sort(slots << 32 | np.arange(len(slots))) & 0xFFFFFFFF
        owner = np.repeat(np.arange(len(ids), dtype=np.int32), np.diff(row_starts))
        counts = _narrow(weights)
        totals = _offsets(weights)[row_starts]
        return cls(
            ids=ids[order],
            lengths=np.diff(totals).astype(np.float32),
            alive=np.ones(len(ids), dtype=np.bool_),
            terms=terms,
            frequencies=frequencies,
            starts=_offsets(frequencies).astype(np.int64),
            positions=owner[by_slot],
            counts=counts[by_slot],
            row_starts=row_starts,
            row_slots=slots.astype(np.int32),
            row_counts=counts,
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def live(self) -> int:
        """How many rows were not removed."""
        return int(np.count_nonzero(self.alive))

    def find(self, ids: Ids) -> Positions:
        """Position of each id, -1 where it is not held or dead."""
        if self.ids[-1] - self.ids[0] == len(self) - 1:  # without gaps
            places = np.clip(ids - self.ids[0], 0, len(self) - 1)
        else:
            places = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        return np.where((self.ids[places] == ids) & self.alive[places], places, -1)

    def slots(self, terms: NDArray[np.int64]) -> tuple[Positions, Positions]:
        """Which of the terms a row ever held, and their slots."""
        if not len(self.terms):
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        places = np.minimum(np.searchsorted(self.terms, terms), len(self.terms) - 1)
        held = np.flatnonzero(self.terms[places] == terms)
        return held, places[held]

    def rows(self, positions: Positions) -> tuple[NDArray[np.int32], Counts, Positions]:
        """Slots and counts of these rows' postings, one row after the other, and how many each has."""
        sizes = self.row_starts[positions + 1] - self.row_starts[positions]
        where = spread(self.row_starts[positions], sizes)
        return self.row_slots[where], self.row_counts[where], sizes

    def without(self, positions: Positions) -> Self:
        """This segment with the rows at ``positions`` dead."""
        alive, frequencies = self.alive.copy(), self.frequencies.copy()
        alive[positions] = False
        slots, _, _ = self.rows(positions)
        np.subtract.at(frequencies, slots, 1)
        return replace(self, alive=alive, frequencies=frequencies)

    @classmethod
    def merge(cls, segments: Sequence[Self]) -> Self:
        """One segment of all live rows, in time linear in the postings; no id is live in two."""
        alive = [np.flatnonzero(s.alive) for s in segments]
        ids = np.concatenate([s.ids[a] for s, a in zip(segments, alive, strict=True)])
        order = np.argsort(ids, kind="stable")
        place = np.empty(len(ids), dtype=np.int64)
        place[order] = np.arange(len(ids))
        used = [np.flatnonzero(s.frequencies) for s in segments]
        every = np.concatenate([s.terms[u] for s, u in zip(segments, used, strict=True)])
        terms, slot = np.unique(every, return_inverse=True)
        frequencies = np.concatenate([s.frequencies[u] for s, u in zip(segments, used, strict=True)])
        total = np.bincount(slot, weights=frequencies, minlength=len(terms)).astype(np.int64)
        starts = _offsets(total).astype(np.int64)

        size = int(starts[-1])
        dtype = np.result_type(*[s.counts.dtype for s in segments])
        sizes = np.concatenate([np.diff(s.row_starts)[a] for s, a in zip(segments, alive, strict=True)])
        row_starts = _offsets(sizes[order]).astype(np.int64)
        merged = cls(
            ids=ids[order],
            lengths=np.concatenate([s.lengths[a] for s, a in zip(segments, alive, strict=True)])[order],
            alive=np.ones(len(ids), dtype=np.bool_),
            terms=terms,
            frequencies=total,
            starts=starts,
            positions=np.empty(size, dtype=np.int32),
            counts=np.empty(size, dtype=dtype),
            row_starts=row_starts,
            row_slots=np.empty(size, dtype=np.int32),
            row_counts=np.empty(size, dtype=dtype),
        )
        filled, rows_done, terms_done = starts[:-1].copy(), 0, 0
        for segment, a, u in zip(segments, alive, used, strict=True):
            places, slots = place[rows_done : rows_done + len(a)], slot[terms_done : terms_done + len(u)]
            merged._place(segment, places=places, slots=slots, used=u, filled=filled)
            rows_done, terms_done = rows_done + len(a), terms_done + len(u)
        return merged

    def _place(self, part: Self, *, places: Positions, slots: Positions, used: Positions, filled: Positions) -> None:
        """Write the live postings of ``part`` where they belong; only while merging.

        ``places`` and ``slots`` are where its live rows and used terms go, ``filled`` where each slot goes on.
        """
        new_slot = np.zeros(len(part.terms), dtype=np.int32)
        new_slot[used] = slots
        row_slots, row_counts, sizes = part.rows(np.flatnonzero(part.alive))
        where = spread(self.row_starts[places], sizes)
        self.row_slots[where], self.row_counts[where] = new_slot[row_slots], row_counts

        new_place = np.zeros(len(part), dtype=np.int32)
        new_place[part.alive] = places
        lasting = slice(None) if part.live == len(part) else part.alive[part.positions]
        where = spread(filled[slots], part.frequencies[used])
        self.positions[where] = new_place[part.positions[lasting]]
        self.counts[where] = part.counts[lasting]
        filled[slots] += part.frequencies[used]

    def save(self, folder: Path, name: str) -> None:
        """Write each array as ``{name}-{attribute}.npy``."""
        for field in fields(self):
            np.save(folder / f"{name}-{field.name}.npy", getattr(self, field.name), allow_pickle=False)

    @classmethod
    def open(cls, folder: Path, name: str) -> Self:
        """Read what `save` wrote; large arrays stay on disk and are mapped."""
        return cls(**{field.name: _load(folder / f"{name}-{field.name}.npy") for field in fields(cls)})


def spread(starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Positions:
    """``[starts[i], starts[i] + sizes[i])`` for each i, one after the other."""
    ends = np.cumsum(sizes)
    where = np.arange(ends[-1] if len(ends) else 0, dtype=np.int64)
    where += np.repeat(starts - ends + sizes, sizes)
    return where


def _offsets(sizes: NDArray[Any]) -> NDArray[Any]:
    """Running total, from 0; int64 for whole numbers, else float64."""
    dtype = np.float64 if sizes.dtype.kind == "f" else np.int64
    out = np.zeros(len(sizes) + 1, dtype=dtype)
    np.cumsum(sizes, out=out[1:])
    return out


def _narrow(weights: NDArray[np.float32]) -> Counts:
    small = bool(np.all(weights < 256)) and bool(np.all(weights == np.floor(weights)))
    return weights.astype(np.uint8) if small else weights


def _load(path: Path) -> Any:
    mapped = path.stat().st_size >= _MAPPED_FROM
    return np.asarray(np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False))
