"""A graph over keys made from what queries look for, compiled; of arrays only, so that a cache of keys can use it.

Where queries lie far from every key (a model's queries and keys, a text that asks for an image), the neighbours of a
key among the keys say little about which keys answer one query together. So two keys are linked here when training
queries have both among their best: `Lists` keeps the best keys of each training query, exactly and row by row;
`link` projects that bipartite graph onto the keys; `walk` searches it, best first.

Half of a key's links go to the keys that share its queries, by Ochiai's coefficient: in how many lists the two stand
near each other, over the root of how many the other stands in, else everything would link to the few keys that every
query finds. The other half join neighbouring ranks of one list, which holds the graph together. A key on no list, or
that nothing links to, hangs on the list of the query that scores it highest. A walk begins at the keys that together
stand on the most lists.

Chen et al.: RoarGraph: a projected bipartite graph for efficient cross-modal approximate nearest neighbor search.
VLDB 2024. Liu et al.: RetrievalAttention: accelerating long-context LLM inference via vector retrieval. 2024.

Shapes: t training queries, L length of a list, n keys, d dimensions, m links of a key, e entries, q queries, k results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, Ids
from reperio.extras import compiled, load
from reperio.indexes.bipartite import Links, Lists, extend, nearest_lists, sift

__all__ = ["Graph", "Walked", "link", "walk"]

_NEAR = 20
"""Ranks within which two keys on one list share it."""

_STRIDE = 2
"""Ranks that neighbours on one list are apart at most."""

_SERVED = 2000
"""A key is an entry if it is so for one training query in these; so there are no more entries."""

P = ParamSpec("P")
R = TypeVar("R")


class Graph(NamedTuple):
    """What a walk needs beside the keys.

    Attributes
    ----------
    links
        Keys that each key is linked to, ``(n, m)``, int32, -1 after the last.
    entries
        Where a walk begins, ``(e,)``, int32.
    """

    links: Links
    entries: Links


class Walked(NamedTuple):
    """What a walk found: positions ``(q, k)``, best first, -1 after the last; scores; and keys scored, ``(q,)``."""

    positions: Ids
    scores: Dense
    touched: Ids


def _summing(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a sum of which the order does not matter, so that it takes eight numbers at a time."""
    njit = load("numba", extra="fast").njit
    return cast("Callable[P, R]", njit(nogil=True, cache=True, fastmath=True)(function))


@_summing
def _score(query: Dense, key: Dense, by_distance: bool) -> Any:
    total = np.float32(0)
    if by_distance:
        for i in range(len(query)):
            total -= (query[i] - key[i]) * (query[i] - key[i])
    else:
        for i in range(len(query)):
            total += query[i] * key[i]
    return total


# Links


def link(lists: Lists, queries: Dense, keys: Dense, *, degree: int, by_distance: bool = False) -> Graph:
    """The graph over all keys that the lists have seen.

    Parameters
    ----------
    lists, queries
        Of the same training queries.
    degree
        m.
    """
    order = np.lexsort((lists.positions, -lists.scores), axis=1)
    ranked = np.take_along_axis(lists.positions, order, axis=1)
    starts, owners, ranks = _turned(ranked, len(keys))
    links = np.full((len(keys), degree), -1, np.int32)
    _share(ranked, starts, owners, ranks, links, degree // 2)
    _chain(np.ascontiguousarray(ranked.T), links)
    alone = np.flatnonzero(np.bincount(links[links >= 0], minlength=len(keys)) == 0)
    if len(alone):
        best = nearest_lists(len(alone), 1)
        extend(best, keys[alone], queries, by_distance=by_distance)
        _hang(ranked, alone, best.positions[:, 0], links)
    return Graph(links, _entries(ranked, starts, owners))


@compiled
def _turned(ranked: Links, count: int) -> tuple[Ids, Links, Links]:
    """The lists of each key: where they start, ``(n + 1,)``, which they are, and its rank on each."""
    starts = np.zeros(count + 1, np.int64)
    for key in ranked.ravel():
        if key >= 0:
            starts[key + 1] += 1
    for place in range(count):
        starts[place + 1] += starts[place]
    filled = starts[:-1].copy()
    owners, ranks = np.empty(starts[count], np.int32), np.empty(starts[count], np.int32)
    for number in range(len(ranked)):
        for rank in range(ranked.shape[1]):
            key = ranked[number, rank]
            if key >= 0:
                owners[filled[key]], ranks[filled[key]] = number, rank
                filled[key] += 1
    return starts, owners, ranks


@compiled
def _share(ranked: Links, starts: Ids, owners: Links, ranks: Links, links: Links, most: int) -> None:
    """Link each key to those that share the most lists with it, for how many they are on."""
    shared, seen = np.zeros(len(links), np.int32), np.empty(len(links), np.int32)
    heap, places = np.empty(most, np.float32), np.empty(most, np.int32)
    for key in range(len(links)):
        found = 0
        for at in range(starts[key], starts[key + 1]):
            rank = ranks[at]
            for other_rank in range(max(0, rank - _NEAR), min(ranked.shape[1], rank + _NEAR + 1)):
                other = ranked[owners[at], other_rank]
                if other >= 0 and other != key:
                    if shared[other] == 0:
                        seen[found] = other
                        found += 1
                    shared[other] += 1
        heap[:], places[:] = -np.inf, -1
        for at in range(found):
            other = seen[at]
            weight = np.float32(shared[other] / np.sqrt(starts[other + 1] - starts[other] + 1.0))
            shared[other] = 0
            if weight > heap[0]:
                heap[0], places[0] = weight, other
                sift(heap, places)
        filled = 0
        for place in places:
            if place >= 0:
                links[key, filled] = place
                filled += 1


@compiled
def _add(links: Links, key: Any, other: Any) -> bool:
    """Link one key to another if there is room; True if the link is there."""
    row = links[key]
    for at in range(len(row)):
        if row[at] == other:
            return True
        if row[at] < 0:
            row[at] = other
            return True
    return False


@compiled
def _chain(ranked: Links, links: Links) -> None:
    """Link neighbouring ranks of each list, ``(L, t)``, both ways while there is room; the best ranks first."""
    for stride in range(1, _STRIDE + 1):
        for rank in range(stride, len(ranked)):
            for number in range(ranked.shape[1]):
                key, other = ranked[rank, number], ranked[rank - stride, number]
                if key >= 0 and other >= 0:
                    _add(links, key, other)
                    _add(links, other, key)


@compiled
def _hang(ranked: Links, alone: Ids, chosen: Links, links: Links) -> None:
    """Link the list of the query chosen for each key to it, and it to the best of the list."""
    degree = links.shape[1]
    lasts = ranked[:, 0].copy()
    for at in range(len(alone)):
        key, members = alone[at], ranked[chosen[at]]
        holder = lasts[chosen[at]]  # the one hung there before has room
        for member in members:
            if member >= 0 and member != key and links[member, degree - 1] < 0:
                holder = member
                break
        if not _add(links, holder, key):  # it goes between two
            _add(links, key, links[holder, degree - 1])
            links[holder, degree - 1] = key
        lasts[chosen[at]] = key
        for member in members[: degree // 2]:
            if member >= 0 and member != key:
                _add(links, key, member)


@compiled
def _entries(ranked: Links, starts: Ids, owners: Links) -> Links:
    """Keys, one after the other, that stand on the most lists on which none before them stands."""
    counts = np.diff(starts)
    left = np.ones(len(ranked), np.bool_)
    out = np.empty(_SERVED, np.int32)
    for number in range(_SERVED):
        key = np.argmax(counts)
        if counts[key] == 0 or counts[key] * _SERVED < len(ranked):
            return out[:number]
        out[number] = key
        for at in range(starts[key], starts[key + 1]):
            if left[owners[at]]:
                left[owners[at]] = False
                for other in ranked[owners[at]]:
                    if other >= 0:
                        counts[other] -= 1
    return out


# Searching


def walk(
    graph: Graph,
    keys: Dense,
    queries: Dense,
    k: int,
    *,
    ef: int,
    mask: NDArray[np.bool_] | None = None,
    by_distance: bool = False,
) -> Walked:
    """Go from key to linked key, the best first, until the best ``ef`` that were seen have all been gone on from.

    Parameters
    ----------
    keys
        ``(n, d)``, float32 and in one piece, as the queries are: nothing is checked here.
    ef
        Not less than k, else k.
    mask
        ``(n,)``: which keys may be found. The others are walked through.

    Returns
    -------
    Walked
        With fewer than k positions where no more were seen. It holds no lock of the interpreter.
    """
    every = np.empty(0, np.bool_) if mask is None else mask
    ef = min(max(ef, k), max(len(graph.links), k))
    return Walked(*_walk(graph.links, graph.entries, keys, queries, k, ef, every, by_distance))


@compiled
def _walk(
    links: Links,
    entries: Links,
    keys: Dense,
    queries: Dense,
    k: int,
    ef: int,
    mask: NDArray[np.bool_],
    by_distance: bool,
) -> tuple[Ids, Dense, Ids]:
    shape = (len(queries), k)
    positions, scores = np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32)
    counts = np.zeros(len(queries), np.int64)
    seen = np.empty((len(links) + 63) // 64, np.uint64)
    pool, places, open_ = np.empty(ef, np.float32), np.empty(ef, np.int32), np.empty(ef, np.bool_)
    heap, found = np.empty(k, np.float32), np.empty(k, np.int32)
    for number in range(len(queries)):
        query = queries[number]
        seen[:] = 0
        heap[:], found[:] = -np.inf, -1
        held, at, touched = 0, -1, 0
        while at < held:
            near = entries if at < 0 else links[places[at]]
            following = at + 1
            for key in near:
                if key < 0:
                    break
                word, bit = key >> 6, np.uint64(1) << np.uint64(key & 63)
                if seen[word] & bit:
                    continue
                seen[word] |= bit
                touched += 1
                score = _score(query, keys[key], by_distance)
                if len(mask) and mask[key] and score > heap[0]:
                    heap[0], found[0] = score, key
                    sift(heap, found)
                if held == ef and score <= pool[ef - 1]:
                    continue
                place = held if held < ef else ef - 1
                held = min(held + 1, ef)
                while place > 0 and pool[place - 1] < score:
                    pool[place], places[place] = pool[place - 1], places[place - 1]
                    open_[place] = open_[place - 1]
                    place -= 1
                pool[place], places[place], open_[place] = score, key, True
                following = min(following, place)
            at = following
            while at < held and not open_[at]:
                at += 1
            if at < held:
                open_[at] = False
        counts[number] = touched
        if len(mask):
            order = np.argsort(-heap)
            positions[number], scores[number] = found[order], heap[order]
        else:
            held = min(held, k)
            positions[number, :held], scores[number, :held] = places[:held], pool[:held]
    return positions, scores, counts
