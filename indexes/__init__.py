"""Indexes: embeddings of one kind in, nearest row keys out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reperio.indexes.bm25 import BM25Index as BM25Index
    from reperio.indexes.faiss import FaissIndex as FaissIndex
    from reperio.indexes.flat import FlatIndex as FlatIndex
    from reperio.indexes.inverted import InvertedIndex as InvertedIndex
    from reperio.indexes.seismic import SeismicIndex as SeismicIndex

_EXPORTS = {
    "BM25Index": "reperio.indexes.bm25",
    "FaissIndex": "reperio.indexes.faiss",
    "FlatIndex": "reperio.indexes.flat",
    "InvertedIndex": "reperio.indexes.inverted",
    "SeismicIndex": "reperio.indexes.seismic",
}

__all__ = [
    "BM25Index",
    "FaissIndex",
    "FlatIndex",
    "InvertedIndex",
    "SeismicIndex",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_EXPORTS[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
