"""Indexes: embeddings of one kind in, nearest row keys out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reperio.indexes.binary import BinaryIndex as BinaryIndex
    from reperio.indexes.bm25 import BM25Index as BM25Index
    from reperio.indexes.faiss import FaissIndex as FaissIndex
    from reperio.indexes.flat import FlatIndex as FlatIndex
    from reperio.indexes.hnswlib import HnswlibIndex as HnswlibIndex
    from reperio.indexes.inverted import InvertedIndex as InvertedIndex
    from reperio.indexes.milvus import MilvusIndex as MilvusIndex
    from reperio.indexes.multivector import MultiVectorIndex as MultiVectorIndex
    from reperio.indexes.pgtext import PostgresTextIndex as PostgresTextIndex
    from reperio.indexes.pgvector import PgvectorIndex as PgvectorIndex
    from reperio.indexes.qdrant import QdrantIndex as QdrantIndex
    from reperio.indexes.quantized import QuantizedIndex as QuantizedIndex
    from reperio.indexes.queryaware import QueryAwareIndex as QueryAwareIndex
    from reperio.indexes.seismic import SeismicIndex as SeismicIndex
    from reperio.indexes.transformed import TransformedIndex as TransformedIndex
    from reperio.indexes.usearch import UsearchIndex as UsearchIndex

_EXPORTS = {
    "BM25Index": "reperio.indexes.bm25",
    "BinaryIndex": "reperio.indexes.binary",
    "FaissIndex": "reperio.indexes.faiss",
    "FlatIndex": "reperio.indexes.flat",
    "HnswlibIndex": "reperio.indexes.hnswlib",
    "InvertedIndex": "reperio.indexes.inverted",
    "MilvusIndex": "reperio.indexes.milvus",
    "MultiVectorIndex": "reperio.indexes.multivector",
    "PgvectorIndex": "reperio.indexes.pgvector",
    "PostgresTextIndex": "reperio.indexes.pgtext",
    "QdrantIndex": "reperio.indexes.qdrant",
    "QuantizedIndex": "reperio.indexes.quantized",
    "QueryAwareIndex": "reperio.indexes.queryaware",
    "SeismicIndex": "reperio.indexes.seismic",
    "TransformedIndex": "reperio.indexes.transformed",
    "UsearchIndex": "reperio.indexes.usearch",
}

__all__ = [
    "BM25Index",
    "BinaryIndex",
    "FaissIndex",
    "FlatIndex",
    "HnswlibIndex",
    "InvertedIndex",
    "MilvusIndex",
    "MultiVectorIndex",
    "PgvectorIndex",
    "PostgresTextIndex",
    "QdrantIndex",
    "QuantizedIndex",
    "QueryAwareIndex",
    "SeismicIndex",
    "TransformedIndex",
    "UsearchIndex",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_EXPORTS[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
