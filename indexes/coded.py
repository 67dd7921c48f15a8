"""Codes by position: an exhaustive search through them, whose best may be scored again.

Shapes: q queries, n positions, d dimensions, k results, m positions asked for, p pairs of a query and a position.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, Ids
from reperio.indexes.flat import Metric, score_pairs, squared, unit
from reperio.indexes.quantization import Codec, Codes
from reperio.indexes.rows import Positions, grown, merge
from reperio.indexes.shelf import Shelf
from reperio.indexes.stored import finite, read_array
from reperio.types import Neighbors

__all__ = ["CodedRows", "Rescore", "reduced"]

Rescore: TypeAlias = Literal["dequantized", "full"]
"""What the best rows of a scan are scored with again."""

Mask: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float32]

_QUERIES = 256
_BLOCK = 1 << 16
"""Queries and codes compared at a time: 64 MB of scores."""

_SHARE = 4
"""Where fewer than one code in so many may be returned, those are gathered; else all are compared."""

_CHUNK = 1 << 14
"""Rows encoded or decoded at a time."""

_EPS = float(np.finfo(np.float32).eps)


def reduced(vectors: Dense, dims: int | None, metric: Metric) -> Dense:
    """What is encoded: the first ``dims`` dimensions, for cosine scaled to length one."""
    kept = vectors if dims is None else np.ascontiguousarray(vectors[:, :dims])
    return unit(kept) if metric == "cosine" else kept


class CodedRows:
    """A code for each position, beside it the vector in full if that is to be scored.

    Parameters
    ----------
    codec
        What makes and compares codes, of the ``codec.dim`` first dimensions.
    metric
        For ``"cosine"`` vectors and queries are scaled here.
    rescore
        See `reperio.indexes.quantized.QuantizedIndex`.
    shelf
        Where the vectors are, for ``rescore="full"``.
    codes
        What it holds at first.
    """

    def __init__(
        self,
        codec: Codec,
        metric: Metric,
        *,
        rescore: Rescore | None = None,
        shelf: Shelf | None = None,
        codes: Codes | None = None,
    ) -> None:
        self.codec, self.shelf = codec, shelf
        self.metric: Metric = metric
        self.rescore: Rescore | None = rescore
        self._codes: Codes = codec.encode(np.empty((0, codec.dim), dtype=np.float32)) if codes is None else codes
        self._squares: Floats = np.empty(0, dtype=np.float32)
        if metric == "l2":
            self._squares = self._measured(self._codes)

    @property
    def width(self) -> int:
        """Bytes in memory of a position: its code, and for l2 its squared length."""
        return int(self._codes.itemsize) * int(self._codes.shape[1]) + (4 if self.metric == "l2" else 0)

    def put(self, start: int, vectors: Dense) -> None:
        """Give the positions from ``start`` to vectors, ``(m, d)``; none before was free, and any after is."""
        stop = start + len(vectors)
        codes = grown(self._codes, stop)
        for at in range(0, len(vectors), _CHUNK):
            part = vectors[at : at + _CHUNK]
            codes[start + at : start + at + len(part)] = self.codec.encode(self._reduced(part))
        if self.metric == "l2":
            self._squares = grown(self._squares, stop)
            self._squares[start:stop] = self._measured(codes[start:stop])
        if self.shelf is not None:
            self.shelf.put(start, self._scaled(vectors))
        self._codes = codes

    def _measured(self, codes: Codes) -> Floats:
        parts = [squared(self.codec.decode(codes[at : at + _CHUNK])) for at in range(0, len(codes), _CHUNK)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)

    def _reduced(self, vectors: Dense) -> Dense:
        return reduced(vectors, self.codec.dim, self.metric)

    def _scaled(self, vectors: Dense) -> Dense:
        return unit(vectors) if self.metric == "cosine" else vectors

    def kept(self, positions: Positions) -> CodedRows:
        """Another with these positions, in their order."""
        shelf = None if self.shelf is None else Shelf(self.shelf.take(positions))
        return CodedRows(self.codec, self.metric, rescore=self.rescore, shelf=shelf, codes=self._codes[positions])

    # Searching

    def scan(self, queries: Dense, k: int, ids: Ids, mask: Mask | None) -> Neighbors:
        """The k best codes at positions where ``mask`` is true, exactly, as ``ids[position]``; ties go to the lower id.

        Notes
        -----
        Approximate products find every row within their error of the k-th best; those are scored again, pair by pair.
        So a result depends neither on the batch, nor on how the products are computed.
        """
        queries, best = self._reduced(queries), _nothing(len(queries), k)
        for part in self._parts(len(ids), mask):
            inside = mask[part] if mask is not None and isinstance(part, slice) else None
            found = [
                self._best(queries[at : at + _QUERIES], k, part, ids=ids[part], inside=inside)
                for at in range(0, len(queries), _QUERIES)
            ]
            if found:
                joined = Neighbors(np.concatenate([f.ids for f in found]), np.concatenate([f.scores for f in found]))
                best = merge([best, joined], k)
        return best

    def _parts(self, size: int, mask: Mask | None) -> Iterator[slice | Positions]:
        """Where to look: whole stretches, or the positions in one that may be returned where those are few."""
        for start in range(0, size, _BLOCK):
            part = slice(start, min(start + _BLOCK, size))
            count = part.stop - start if mask is None else int(np.count_nonzero(mask[part]))
            if mask is None or count * _SHARE >= part.stop - start:
                yield part
            elif count:
                yield start + np.flatnonzero(mask[part])

    def _best(self, queries: Dense, k: int, part: slice | Positions, *, ids: Ids, inside: Mask | None) -> Neighbors:
        codes = self._codes[part]
        about, slack = self._about(queries, codes, part)
        count = len(ids)
        if inside is not None:
            about[:, ~inside] = -np.inf
            count = int(np.count_nonzero(inside))
        floor = np.full(len(queries), np.finfo(np.float32).min)
        if count > k:
            floor = np.partition(about, len(ids) - k, axis=1)[:, len(ids) - k] - 2 * slack
        asked, rows = np.divmod(np.flatnonzero(about >= floor[:, None]), len(ids))
        scores = self.codec.score(queries, asked, codes, rows, metric=self.metric)
        order = np.lexsort((ids[rows], -scores, asked))
        asked, keys, scores = asked[order], ids[rows[order]], scores[order]
        rank = np.arange(len(asked)) - np.searchsorted(asked, np.arange(len(queries)))[asked]
        kept, out = rank < k, _nothing(len(queries), min(k, count))
        out.ids[asked[kept], rank[kept]] = keys[kept]
        out.scores[asked[kept], rank[kept]] = scores[kept]
        return out

    def _about(self, queries: Dense, codes: Codes, part: slice | Positions) -> tuple[Dense, Floats]:
        """Scores but for what is the same for all rows of a query, ``(q, n)``, and how far off they are, ``(q,)``."""
        about, slack = self.codec.products(queries, codes)
        if self.metric == "l2":
            squares = self._squares[part]
            largest = squares.max()
            lengths: Floats = np.sqrt(squared(queries))
            slack = 2 * slack + np.float32(_EPS * (self.codec.dim + 2)) * ((lengths + np.sqrt(largest)) ** 2 + largest)
            about = 2 * about - squares
        return about, slack

    def score(self, queries: Dense, asked: Positions, positions: Positions) -> Floats:
        """Score of query ``asked[i]`` with position ``positions[i]``, ``(p,)``, as a search gives it."""
        if self.shelf is not None:
            return score_pairs(self._scaled(queries), asked, self.shelf.take, positions, metric=self.metric)
        if self.rescore == "dequantized":
            return score_pairs(self._reduced(queries), asked, self.decode, positions, metric=self.metric)
        return self.codec.score(self._reduced(queries), asked, self._codes, positions, metric=self.metric)

    def decode(self, positions: Positions) -> Dense:
        """The vectors that the codes at positions stand for, ``(m, codec.dim)``."""
        return self.codec.decode(self._codes[positions])

    # Disk

    def write(self, folder: Path, positions: Positions) -> None:
        """Write what is at positions, and what the codec has learnt."""
        for name, array in self.codec.learnt.items():
            np.save(folder / name, array, allow_pickle=False)
        np.save(folder / "codes.npy", self._codes[positions], allow_pickle=False)
        if self.shelf is not None:
            self.shelf.write(folder / "vectors.npy", positions)

    @classmethod
    def read(
        cls,
        folder: Path,
        codec: Codec,
        metric: Metric,
        *,
        rescore: Rescore | None,
        rows: int,
        dim: int,
        mmap: bool,
    ) -> Self:
        """What `write` wrote: the codes in memory or mapped, the vectors always mapped.

        Raises
        ------
        ValueError
            If it is of another shape; unless mapped, if it holds what is no code, or no finite vector.
        """
        like = codec.encode(np.empty((0, codec.dim), dtype=np.float32))
        shape = (rows, like.shape[1])
        codes = read_array(folder / "codes.npy", like.dtype.type, shape, mapped="r" if mmap else None)
        sound, shelf = mmap or codec.takes(codes), None
        if rescore == "full":
            vectors = read_array(folder / "vectors.npy", np.float32, (rows, dim), mapped="r")
            sound, shelf = sound and (mmap or finite(vectors)), Shelf(vectors)
        if not sound:
            raise ValueError("it holds what is no code, or a vector that is not finite")
        return cls(codec, metric, rescore=rescore, shelf=shelf, codes=codes)


def _nothing(queries: int, k: int) -> Neighbors:
    return Neighbors(np.full((queries, k), -1, dtype=np.int64), np.full((queries, k), -np.inf, dtype=np.float32))
