"""Vectors in full precision by position, in a file or in memory.

Shapes: n positions, d dimensions, m positions asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reperio.embeddings import Dense, Ids
from reperio.indexes.flat import Block, squared
from reperio.indexes.rows import Positions, grown

__all__ = ["Shelf"]

_CHUNK = 1 << 14
"""Rows read or written at a time."""


class Shelf:
    """Vectors that are looked up a few at a time: those that were in a file stay there, later ones are in memory.

    Parameters
    ----------
    vectors
        What it holds at first, ``(n, d)``; may be mapped from a file.
    """

    def __init__(self, vectors: Dense) -> None:
        self._first, self._later = vectors, np.asarray(vectors[:0])

    def put(self, start: int, vectors: Dense) -> None:
        """Give the positions from ``start`` to vectors, ``(m, d)``; none before was free, and any after is."""
        start -= len(self._first)
        self._later = grown(self._later, start + len(vectors))
        self._later[start : start + len(vectors)] = vectors

    def take(self, positions: Positions) -> Dense:
        """The vectors at positions, ``(m, d)``."""
        first = len(self._first)
        out = np.empty((len(positions), self._first.shape[1]), dtype=np.float32)
        early = positions < first
        out[early], out[~early] = self._first[positions[early]], self._later[positions[~early] - first]
        return out

    def blocks(self, positions: Positions, ids: Ids) -> Iterator[Block]:
        """What is at positions, under the keys ``ids``, to be searched exactly."""
        for start in range(0, len(positions), _CHUNK):
            vectors = self.take(positions[start : start + _CHUNK])
            yield Block(ids[start : start + _CHUNK], vectors, squared(vectors))

    def write(self, path: Path, positions: Positions) -> None:
        """Write the vectors at positions as an ``.npy`` file, some at a time."""
        shape = (len(positions), self._first.shape[1])
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for start in range(0, len(positions), _CHUNK):
                file.write(self.take(positions[start : start + _CHUNK]).astype("<f4", copy=False).tobytes())
