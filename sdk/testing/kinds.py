"""One small example of every kind of index that keeps its rows in files of its own, and encoders that need no model."""

from __future__ import annotations

from functools import cache
from typing import Any

from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.hashing import HashEncoder, HashWeights, HashWords
from reperio.encoders.summed import SparseSum
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.faiss import FaissIndex
from reperio.indexes.inverted import InvertedIndex
from reperio.indexes.multivector import MultiVectorIndex
from reperio.protocols import Encoder, Spec
from reperio.signals import Signal

__all__ = ["KINDS", "encoder", "label", "signals"]

DIM = 32

_SUM = SparseSum({"weights": HashWeights(), "bm25": BM25Encoder()})
_IP = {"type": "FaissIndex", "factory": "HNSW16", "metric": "ip"}


def _faiss(*factories: str) -> tuple[Spec, ...]:
    return tuple({"type": "FaissIndex", "factory": factory, "train_size": 64} for factory in factories)


KINDS: dict[str, tuple[Spec, ...]] = {
    "bm25": ({"type": "BM25Index"}, {"type": "BM25Index", "precision": "float32"}),
    "dense": (
        {"type": "FlatIndex"},
        *_faiss("Flat", "HNSW16", "SQ8", "IVF4,Flat", "IVF4,PQ8x4,RFlat", "IVF4,PQ8x4fs,RFlat", "PCA16,IVF4,SQ8"),
        *_faiss("IVF4,RaBitQ", "IVF4_HNSW8,SQfp16"),
        {"type": "FaissIndex", "factory": "auto"},
        *({"type": "BinaryIndex", "factory": factory} for factory in ("BFlat", "BHNSW16", "BIVF4")),
        {"type": "HnswlibIndex"},
        *({"type": "QuantizedIndex", "dtype": dtype, "train_size": 100} for dtype in ("float16", "int8", "binary")),
        {"type": "QueryAwareIndex", "metric": "cosine", "train_size": 64},
        {"type": "TransformedIndex", "index": _IP, "transforms": [{"type": "Centre"}], "train_size": 64},
        *({"type": "UsearchIndex", "dtype": dtype} for dtype in ("f32", "bf16", "i8", "b1")),
    ),
    "sparse": (
        {"type": "InvertedIndex"},
        {"type": "InvertedIndex", "precision": "float32"},
        {"type": "SeismicIndex", "seal_at": 100},
    ),
    "summed": ({"type": "BM25Index", "weights_below": _SUM.weights_below},),
    "words": (
        {"type": "MultiVectorIndex"},
        *(
            {"type": "MultiVectorIndex", "codes": "residual", "bits": b, "centroids": 16, "train_size": 64}
            for b in (2, 8)
        ),
    ),
}
"""Specifications by signal; they learn from the hundred rows or so that a test has."""


@cache
def encoder(signal: str) -> Encoder[Any]:
    """What makes the rows of a signal."""
    made: dict[str, Encoder[Any]] = {
        "bm25": BM25Encoder(),
        "dense": HashEncoder(DIM),
        "sparse": HashWeights(),
        "summed": _SUM,
        "words": HashWords(DIM),
    }
    return made[signal]


def signals() -> dict[str, Signal[Any]]:
    """A small collection that has every kind of embedding."""
    return {
        "bm25": Signal(encoder("bm25"), BM25Index(), stored=False),
        "dense": Signal(encoder("dense"), FaissIndex()),
        "sparse": Signal(encoder("sparse"), InvertedIndex()),
        "summed": Signal(encoder("summed"), BM25Index(weights_below=_SUM.weights_below), stored=False),
        "words": Signal(encoder("words"), MultiVectorIndex()),
    }


def label(spec: Spec) -> str:
    """A short name: the type, and what makes it another kind."""
    told = (spec.get(name) for name in ("factory", "dtype", "precision", "codes", "bits", "weights_below"))
    return " ".join(str(part) for part in (spec["type"], *told) if part)
