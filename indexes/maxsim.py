"""Late interaction, exactly: the sum over a query's vectors of each one's best match among a document's vectors.

Khattab and Zaharia: ColBERT: Efficient and Effective Passage Search via Contextualized Late Interaction over BERT.
SIGIR 2020.

Shapes: q queries, m vectors of a query, n documents, t vectors of a document, d dimensions, k results.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, Ids, MultiVector
from reperio.extras import installed
from reperio.indexes.rows import Positions, merge
from reperio.types import Neighbors

__all__ = ["Block", "inside", "longest", "maxsim", "nearest", "parts", "score_documents"]

_PRODUCTS = 1 << 21
"""Products of vectors held at a time: 8 MB, which are still in a cache when they are reduced."""

_ASKED = 512
"""Query vectors multiplied at a time."""


class Block(NamedTuple):
    """Some documents to search.

    Attributes
    ----------
    ids
        Row keys, ``(n,)``.
    documents
        Their vectors.
    longest
        Length of the longest vector, or more.
    kept
        Which documents may be found, ``(n,)``; None for all.
    """

    ids: Ids
    documents: MultiVector
    longest: float
    kept: NDArray[np.bool_] | None = None


def inside(embeddings: MultiVector, start: int, stop: int) -> MultiVector:
    """Rows ``[start, stop)``, without a copy of their vectors."""
    offsets = embeddings.offsets[start : stop + 1]
    return MultiVector(embeddings.vectors[offsets[0] : offsets[-1]], offsets - offsets[0])


def parts(offsets: NDArray[np.int64], size: int) -> Iterator[tuple[int, int]]:
    """Cut rows into runs of up to ``size`` vectors, and of one row at the least."""
    start, last = 0, len(offsets) - 1
    while start < last:
        last_that_fits = np.searchsorted(offsets, int(offsets[start]) + size, side="right") - 1
        stop = max(start + 1, int(last_that_fits))
        yield start, stop
        start = stop


def longest(vectors: Dense) -> float:
    """Length of the longest vector; 0 if there is none."""
    return float(np.sqrt(np.einsum("td,td->t", vectors, vectors).max(initial=0)))


def score_documents(query: Dense, documents: MultiVector) -> NDArray[np.float32]:
    """MaxSim of one query, ``(m, d)``, with each document, ``(n,)``: it depends on nothing but the two of them."""
    each = pairwise(documents.offsets.tolist())
    scores = ((query @ documents.vectors[start:stop].T).max(axis=1).sum() for start, stop in each)
    return np.fromiter(scores, dtype=np.float32, count=len(documents))


def maxsim(queries: MultiVector, documents: MultiVector) -> Dense:
    """MaxSim of every query with every document, ``(q, n)``, to the rounding of one large matrix product."""
    out = np.empty((len(queries), len(documents)), dtype=np.float32)
    width = len(queries.vectors)
    cuts = list(parts(documents.offsets, max(1, _PRODUCTS // max(1, width))))
    highest = max((documents.offsets[stop] - documents.offsets[start] for start, stop in cuts), default=0)
    room = np.empty((highest, width), dtype=np.float32)
    for start, stop in cuts:
        some = inside(documents, start, stop)
        products = np.matmul(some.vectors, queries.vectors.T, out=room[: len(some.vectors)])
        out[:, start:stop] = _summed_maxima(products, some.offsets, queries.offsets)
    return out


def _summed_maxima(products: Dense, documents: NDArray[np.int64], queries: NDArray[np.int64]) -> Dense:
    """The largest product in each document for each query vector, summed over each query, ``(q, n)``."""
    if installed("numba"):
        from reperio.indexes.maxsim_compiled import summed_maxima

        return summed_maxima(products, documents, queries)
    maxima = np.maximum.reduceat(products, documents[:-1], axis=0)
    out: Dense = np.add.reduceat(maxima, queries[:-1], axis=1).T
    return out


def nearest(queries: MultiVector, k: int, blocks: Iterable[Block]) -> Neighbors:
    """The k best documents of all blocks for each query, exactly: ties go to the lower id.

    Notes
    -----
    One matrix product finds every document within its rounding error of the k-th best; those are scored again, one
    by one. So a result does not depend on the batch, the block or the order of the documents.
    """
    best = _empty(len(queries), k)
    for block in blocks:
        for start, stop in parts(queries.offsets, _ASKED):
            some = inside(queries, start, stop)
            known = Neighbors(best.ids[start:stop], best.scores[start:stop])
            found = _merged(some, known, block)
            best.ids[start:stop], best.scores[start:stop] = found.ids, found.scores
    return best


def _empty(queries: int, k: int) -> Neighbors:
    return Neighbors(np.full((queries, k), -1, dtype=np.int64), np.full((queries, k), -np.inf, dtype=np.float32))


def _merged(queries: MultiVector, best: Neighbors, block: Block) -> Neighbors:
    """The best so far and those of another block, as many as there were."""
    k, count = best.ids.shape[1], len(block.ids)
    if not count or not len(queries):
        return best
    rough = maxsim(queries, block.documents)
    if block.kept is not None:
        rough[:, ~block.kept] = -np.inf
    floor = best.scores[:, -1]
    if count > k:
        floor = np.maximum(floor, np.partition(rough, count - k, axis=1)[:, count - k])
    floor = floor - 2 * _slack(queries, block)
    chosen = [np.flatnonzero((row >= least) & (row > -np.inf)) for row, least in zip(rough, floor, strict=True)]
    out = _empty(len(queries), max(map(len, chosen)))
    for i, rows in enumerate(chosen):
        out.ids[i, : len(rows)] = block.ids[rows]
        out.scores[i, : len(rows)] = score_documents(queries.row(i), _picked(block.documents, rows))
    return merge([best, out], k)


def _slack(queries: MultiVector, block: Block) -> NDArray[np.float32]:
    """How far a sum of products may be off, for each query."""
    lengths = np.sqrt(np.einsum("md,md->m", queries.vectors, queries.vectors))
    terms = np.diff(queries.offsets) + queries.vectors.shape[1] + 2
    sums = np.add.reduceat(lengths, queries.offsets[:-1])
    out: NDArray[np.float32] = np.finfo(np.float32).eps * terms * sums * np.float32(block.longest)
    return out.astype(np.float32)


def _picked(documents: MultiVector, rows: Positions) -> MultiVector:
    starts, stops = documents.offsets[rows], documents.offsets[rows + 1]
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(stops - starts, out=offsets[1:])
    empty = documents.vectors[:0]
    each = (documents.vectors[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True))
    return MultiVector(np.concatenate([empty, *each]), offsets)
