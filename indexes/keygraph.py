"""Keys linked by what training queries find, to be searched, to grow, and to lie on disk; keys go by position.

Shapes: n keys, d dimensions, t training queries, q queries, k results.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, check_dense
from reperio.errors import ShapeError
from reperio.indexes.bipartite import Lists, extend, nearest_lists
from reperio.indexes.graph import Graph, Walked, link, walk
from reperio.indexes.stored import finite, read_array, within

__all__ = ["KeyGraph"]

_LENGTH = 100
"""Keys on the list of a training query."""

_FILES = ("keys", "queries", "positions", "scores", "links", "entries")


class KeyGraph(NamedTuple):
    """A graph and all that it takes to make it larger; it is never changed.

    Attributes
    ----------
    keys
        ``(n, d)``, float32.
    queries
        Training queries, ``(t, d)``, float32; for inner products best of one length.
    lists
        The best keys of each training query.
    graph
        Their links.
    by_distance
        Whether the nearest key is the best; else the one with the highest inner product.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> keys, queries = rng.standard_normal((2, 1000, 16), dtype=np.float32)
    >>> graph = KeyGraph.of(keys, queries[:250])
    >>> graph.walk(queries[250:], 10, ef=64).positions.shape
    (750, 10)
    """

    keys: Dense
    queries: Dense
    lists: Lists
    graph: Graph
    by_distance: bool

    @classmethod
    def of(cls, keys: Dense, queries: Dense, *, degree: int = 32, by_distance: bool = False) -> Self:
        """Keys, linked.

        Parameters
        ----------
        keys, queries
            One query for four keys is enough; for eight, nearly.
        degree
            Links of a key, at most.

        Raises
        ------
        ShapeError
            No keys or no queries, of different dimensions, NaN or infinity.
        """
        keys = check_dense(keys, what="keys")
        queries = check_dense(queries, what="queries", dim=keys.shape[1])
        if not len(keys) or not len(queries):
            raise ShapeError(f"There are {len(keys)} keys and {len(queries)} queries.", "Give some of both.")
        lists = nearest_lists(len(queries), _LENGTH)
        extend(lists, queries, keys, by_distance=by_distance)
        return cls._linked(keys, queries, lists, degree=degree, by_distance=by_distance)

    @classmethod
    def _linked(cls, keys: Dense, queries: Dense, lists: Lists, *, degree: int, by_distance: bool) -> Self:
        graph = link(lists, queries, keys, degree=degree, by_distance=by_distance)
        return cls(keys, queries, lists, graph, by_distance)

    def grown(self, keys: Dense, queries: Dense) -> Self:
        """Another graph of more keys and more training queries: what `of` makes of all of them.

        What the old queries found among the old keys is not looked for again. That is most of the work.
        """
        seen, old = len(self.keys), len(self.queries)
        keys, queries = np.concatenate([self.keys, keys]), np.concatenate([self.queries, queries])
        lists = nearest_lists(len(queries), _LENGTH)
        lists.positions[:old], lists.scores[:old] = self.lists
        extend(lists.part(0, old), queries[:old], keys[seen:], first=seen, by_distance=self.by_distance)
        extend(lists.part(old, len(queries)), queries[old:], keys, by_distance=self.by_distance)
        degree = self.graph.links.shape[1]
        return self._linked(keys, queries, lists, degree=degree, by_distance=self.by_distance)

    def walk(self, queries: Dense, k: int, *, ef: int, mask: NDArray[np.bool_] | None = None) -> Walked:
        """The k best keys that a walk sees, best first, and how many keys it sees; as `reperio.indexes.graph.walk`."""
        queries = check_dense(queries, what="queries", dim=self.keys.shape[1])
        return walk(self.graph, self.keys, queries, k, ef=ef, mask=mask, by_distance=self.by_distance)

    def write(self, folder: Path) -> None:
        """Write each array to a file of its own."""
        arrays = (self.keys, self.queries, *self.lists, *self.graph)
        for name, array in zip(_FILES, arrays, strict=True):
            np.save(folder / f"{name}.npy", array, allow_pickle=False)

    @classmethod
    def read(cls, folder: Path, *, dim: int, by_distance: bool, mapped: bool) -> Self:
        """Read what `write` wrote, or map it into memory.

        Raises
        ------
        ValueError
            If the arrays do not fit one another; unless mapped, if they lead out of one another.
        """

        def array(name: str, dtype: type[np.generic], *shape: int | None) -> Any:
            # Written in memory only, if at all; but compiled code tells arrays apart that cannot be written to.
            return read_array(folder / f"{name}.npy", dtype, shape, mapped="c" if mapped else None)

        keys, queries = array("keys", np.float32, None, dim), array("queries", np.float32, None, dim)
        positions = array("positions", np.int32, len(queries), None)
        scores = array("scores", np.float32, *positions.shape)
        links, entries = array("links", np.int32, len(keys), None), array("entries", np.int32, None)
        count = len(keys)
        # Compiled code does not look where it reads.
        inside = within(entries, 0, count) and (mapped or (within(links, -1, count) and within(positions, -1, count)))
        if not inside or not (mapped or (finite(keys) and finite(queries) and not np.isnan(scores).any())):
            raise ValueError("its graph leads to keys that are not there, or holds numbers that are not finite")
        if not count or not len(entries) or not links.shape[1]:
            raise ValueError("its graph has no keys, links or entries")
        return cls(keys, queries, Lists(positions, scores), Graph(links, entries), by_distance)
