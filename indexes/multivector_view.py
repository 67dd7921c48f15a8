"""All segments of a multi-vector index at one moment: what a search sees, and how the next moment comes of it.

Shapes: n rows, t vectors of all rows, d dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from reperio.embeddings import Ids, IdSet, MultiVector
from reperio.indexes.maxsim import Block, inside, parts
from reperio.indexes.multivector_segments import CodedSegment, PlainSegment, Segment
from reperio.indexes.residual import Codec
from reperio.indexes.rows import Positions
from reperio.indexes.stored import once_each, whole

__all__ = ["View"]

_SMALLEST = 128
"""Segments up to this many rows are merged whenever a row is added."""

S = TypeVar("S", bound=Segment)


class View(NamedTuple):
    """Rows are plain until there is a codec, then coded. A view never changes.

    Attributes
    ----------
    plain, coded
        Segments, the largest first; no key is alive in two.
    codec
        What was learnt; None before.
    dim
        d; None before the first row.
    """

    plain: tuple[PlainSegment, ...] = ()
    coded: tuple[CodedSegment, ...] = ()
    codec: Codec | None = None
    dim: int | None = None

    @property
    def segments(self) -> tuple[PlainSegment | CodedSegment, ...]:
        """All of them."""
        return (*self.plain, *self.coded)

    @property
    def rows(self) -> int:
        """How many rows are alive."""
        return sum(segment.live for segment in self.segments)

    # The next view

    def without(self, ids: Ids) -> tuple[Self, int]:
        """The view without these rows, and how many were there."""
        plain, some = _thinned(self.plain, ids)
        coded, others = _thinned(self.coded, ids)
        return self._replace(plain=plain, coded=coded), some + others

    def grown(self, fresh: PlainSegment) -> Self:
        """The view with more rows, whose keys it does not hold."""
        if self.codec is None:
            return self._replace(plain=_grown(self.plain, fresh), dim=fresh.vectors.shape[1])
        return self._replace(coded=_grown(self.coded, CodedSegment.encode(fresh, self.codec)))

    def encoded(self, codec: Codec) -> Self:
        """The view with its plain rows as codes."""
        coded = tuple(CodedSegment.encode(segment, codec) for segment in self.plain)
        return self._replace(plain=(), coded=coded, codec=codec, dim=codec.centroids.shape[1])

    # Reading

    def read(self, segment: PlainSegment | CodedSegment, positions: Positions) -> MultiVector:
        """The vectors of some rows of one segment; codes read back."""
        if isinstance(segment, PlainSegment):
            return segment.pick(positions)
        assert self.codec is not None
        return segment.decode(positions, self.codec)

    def blocks(self, passing: IdSet | None, size: int) -> Iterator[Block]:
        """The plain rows that pass, up to ``size`` vectors at a time; few of a segment are gathered."""
        for segment in self.plain:
            mask, bound = segment.mask(passing), float(segment.bound[0])
            chosen = mask.nonzero()[0]
            if 2 * len(chosen) < len(segment):
                for rows in segment.runs(chosen, size):
                    yield Block(segment.ids[rows], segment.pick(rows), bound)
            else:
                for start, stop in parts(segment.offsets, size):
                    some = inside(segment.documents, start, stop)
                    yield Block(segment.ids[start:stop], some, bound, mask[start:stop])

    # Disk

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the arrays; returns what `open` must be told."""
        for number, segment in enumerate(self.segments):
            segment.save(folder, str(number))
        if self.codec is not None:
            self.codec.save(folder)
        counts = {"plain": len(self.plain), "coded": len(self.coded)}
        return {"dim": self.dim, "learnt": self.codec is not None, **counts}

    @classmethod
    def open(cls, folder: Path, told: dict[str, Any], *, bits: int, unit: bool, trusted: bool) -> Self:
        """Map what `save` wrote.

        Parameters
        ----------
        folder, told
            Where it lies, and what `save` returned.
        bits, unit
            Of the codec.
        trusted
            Whether to leave the values of large arrays unread.

        Raises
        ------
        ValueError
            If the arrays do not fit one another.
        """
        dim, count = None if told["dim"] is None else whole(told, "dim", least=1), whole(told, "plain")
        codec = Codec.open(folder, dim=dim or 0, bits=bits, unit=unit) if told["learnt"] else None
        plain = tuple(PlainSegment.open(folder, str(number)) for number in range(count))
        coded = tuple(CodedSegment.open(folder, str(count + number)) for number in range(whole(told, "coded")))
        for vectors in plain:
            vectors.check(dim or 0, deep=not trusted)
        for codes in coded:
            if codec is None:
                raise ValueError("there are codes and nothing to read them by")
            codes.check(codec, deep=not trusted)
        view = cls(plain, coded, codec, dim)
        once_each([segment.ids[segment.alive] for segment in view.segments])
        return view


def _thinned(segments: Sequence[S], ids: Ids) -> tuple[tuple[S, ...], int]:
    """The segments with these rows dead, mostly dead ones rewritten; and how many rows were there."""
    kept: list[S] = []
    removed = 0
    for segment in segments:
        positions = segment.find(ids)
        positions = positions[positions >= 0]
        removed += len(positions)
        rest = segment.without(positions) if len(positions) else segment
        if rest.live:
            kept.append(rest if 2 * rest.live > len(rest) else rest.merge([rest]))
    return tuple(kept), removed


def _grown(segments: Sequence[S], fresh: S) -> tuple[S, ...]:
    """The segments and one more, merged with those before it that are no larger."""
    kept, merging, size = list(segments), [fresh], len(fresh)
    while kept and kept[-1].live <= max(size, _SMALLEST):
        merging.append(kept.pop())
        size += merging[-1].live
    return (*kept, fresh.merge(merging) if len(merging) > 1 else fresh)
