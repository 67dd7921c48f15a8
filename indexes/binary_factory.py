"""What a factory string of binary codes makes in FAISS: a graph, lists, or neither.

Shapes: n rows, m of a sample, b bytes of a code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from reperio.errors import ConfigurationError
from reperio.extras import load
from reperio.indexes.hamming import Codes

__all__ = ["BinaryFactory"]


class BinaryFactory:
    """Makes the graph or the lists that lead a search to codes.

    Parameters
    ----------
    factory
        ``"BFlat"``, ``"BHNSW32"``, ``"BIVF256"``.
    seed
        Of k-means.

    Attributes
    ----------
    walks
        Whether there is anything to make.
    lists
        How many; 0 for a graph.

    Raises
    ------
    ConfigurationError
        Another factory.
    """

    def __init__(self, factory: str, *, seed: int) -> None:
        self._factory, self._seed = factory, seed
        self._faiss = load("faiss", extra="faiss")
        made = self._made(64)
        self.walks, self.lists = made is not None, int(getattr(made, "nlist", 0))

    def _made(self, bits: int) -> Any:
        """An empty graph or lists; None where every code is compared."""
        try:
            made = self._faiss.index_binary_factory(bits, self._factory)
        except (RuntimeError, TypeError) as error:
            problem = f"FAISS cannot build {self._factory!r}."
            raise ConfigurationError(problem, "Choose 'BFlat', 'BHNSW32' or 'BIVF256'.") from error
        faiss, clustering = self._faiss, getattr(made, "cp", None)
        if clustering is not None:
            clustering.seed, clustering.min_points_per_centroid = self._seed, 1
        if isinstance(made, (faiss.IndexBinaryHNSW, faiss.IndexBinaryIVF)):
            return made
        if type(made) is not faiss.IndexBinaryFlat:
            raise ConfigurationError(f"{self._factory!r} is another kind.", "Choose 'BFlat', 'BHNSW32' or 'BIVF256'.")
        return None

    def filled(self, sample: Codes, codes: Codes) -> Any:
        """A graph or lists, learnt from a sample ``(m, b)``, of codes ``(n, b)``; None where every code is compared."""
        made = self._made(8 * codes.shape[1])
        if self.lists:
            made.train(sample)
        if made is not None and len(codes):
            made.add(codes)
        return made

    def refilled(self, made: Any, codes: Codes) -> Any:
        """A copy that has learnt the same, of other codes."""
        fresh = self.from_bytes(self.to_bytes(made))
        fresh.reset()
        if len(codes):
            fresh.add(codes)
        return fresh

    def defaults(self, k: int) -> dict[str, int]:
        """The search options there are, and their values for k results."""
        if self.lists:
            return {"nprobe": min(self.lists, max(16, 3 * math.isqrt(self.lists)))}
        return {"efSearch": max(128, 2 * k)} if self.walks else {}

    def settings(self, options: Mapping[str, int]) -> Any:
        """Search options as FAISS takes them."""
        kind = self._faiss.SearchParametersIVF if self.lists else self._faiss.SearchParametersHNSW
        return kind(**options)

    def to_bytes(self, made: Any) -> bytes:
        """A graph or lists as a file holds them."""
        return bytes(self._faiss.serialize_index_binary(made).tobytes())

    def from_bytes(self, stored: bytes) -> Any:
        """Inverse of `to_bytes`."""
        return self._faiss.deserialize_index_binary(np.frombuffer(stored, dtype=np.uint8))
