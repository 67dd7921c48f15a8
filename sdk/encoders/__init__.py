"""Encoders: texts in, embeddings of one kind out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reperio.encoders.adapters import ProjectedEncoder as ProjectedEncoder
    from reperio.encoders.adapters import Projection as Projection
    from reperio.encoders.asynchronous import aencode_document as aencode_document
    from reperio.encoders.asynchronous import aencode_query as aencode_query
    from reperio.encoders.bm25 import BM25Encoder as BM25Encoder
    from reperio.encoders.bridged import BridgedEncoder as BridgedEncoder
    from reperio.encoders.bridged import RecallLoss as RecallLoss
    from reperio.encoders.bridged import expected_loss as expected_loss
    from reperio.encoders.cached import CachedEncoder as CachedEncoder
    from reperio.encoders.chunked import ChunkEncoder as ChunkEncoder
    from reperio.encoders.closed_form import ClosedFormEncoder as ClosedFormEncoder
    from reperio.encoders.closed_form_states import StemStates as StemStates
    from reperio.encoders.decoder import DecoderEncoder as DecoderEncoder
    from reperio.encoders.dense import DenseEncoder as DenseEncoder
    from reperio.encoders.experts import moee as moee
    from reperio.encoders.given import GivenVectors as GivenVectors
    from reperio.encoders.hashing import HashEncoder as HashEncoder
    from reperio.encoders.hashing import HashWeights as HashWeights
    from reperio.encoders.hashing import HashWords as HashWords
    from reperio.encoders.inference_free import InferenceFreeEncoder as InferenceFreeEncoder
    from reperio.encoders.lexicon import LexiconEncoder as LexiconEncoder
    from reperio.encoders.multivector import MultiVectorEncoder as MultiVectorEncoder
    from reperio.encoders.multivector_layout import ColbertLayout as ColbertLayout
    from reperio.encoders.parallel import ParallelEncoder as ParallelEncoder
    from reperio.encoders.presets import preset as preset
    from reperio.encoders.reading import Expansion as Expansion
    from reperio.encoders.relative import RelativeEncoder as RelativeEncoder
    from reperio.encoders.remote import RemoteEncoder as RemoteEncoder
    from reperio.encoders.remote import RemoteSparseEncoder as RemoteSparseEncoder
    from reperio.encoders.remote_limits import Limits as Limits
    from reperio.encoders.remote_reading import RemoteReading as RemoteReading
    from reperio.encoders.sparse import SparseEncoder as SparseEncoder
    from reperio.encoders.summed import DenseSum as DenseSum
    from reperio.encoders.summed import SparseSum as SparseSum
    from reperio.encoders.token_weights import TokenWeights as TokenWeights
    from reperio.encoders.tools import head_vectors as head_vectors
    from reperio.encoders.tools import usage_vectors as usage_vectors
    from reperio.encoders.wholewords import WholeWords as WholeWords
    from reperio.encoders.wordgate import WordGate as WordGate
    from reperio.encoders.wordweights import WordWeights as WordWeights
    from reperio.models.clusters import Clusters as Clusters

_EXPORTS = {
    "BM25Encoder": "reperio.encoders.bm25",
    "BridgedEncoder": "reperio.encoders.bridged",
    "CachedEncoder": "reperio.encoders.cached",
    "ChunkEncoder": "reperio.encoders.chunked",
    "ClosedFormEncoder": "reperio.encoders.closed_form",
    "ColbertLayout": "reperio.encoders.multivector_layout",
    "DecoderEncoder": "reperio.encoders.decoder",
    "DenseEncoder": "reperio.encoders.dense",
    "Expansion": "reperio.encoders.reading",
    "Clusters": "reperio.models.clusters",
    "DenseSum": "reperio.encoders.summed",
    "GivenVectors": "reperio.encoders.given",
    "HashEncoder": "reperio.encoders.hashing",
    "HashWeights": "reperio.encoders.hashing",
    "HashWords": "reperio.encoders.hashing",
    "InferenceFreeEncoder": "reperio.encoders.inference_free",
    "MultiVectorEncoder": "reperio.encoders.multivector",
    "LexiconEncoder": "reperio.encoders.lexicon",
    "ParallelEncoder": "reperio.encoders.parallel",
    "ProjectedEncoder": "reperio.encoders.adapters",
    "Projection": "reperio.encoders.adapters",
    "RecallLoss": "reperio.encoders.bridged",
    "RelativeEncoder": "reperio.encoders.relative",
    "Limits": "reperio.encoders.remote_limits",
    "RemoteReading": "reperio.encoders.remote_reading",
    "RemoteEncoder": "reperio.encoders.remote",
    "RemoteSparseEncoder": "reperio.encoders.remote",
    "SparseEncoder": "reperio.encoders.sparse",
    "SparseSum": "reperio.encoders.summed",
    "StemStates": "reperio.encoders.closed_form_states",
    "TokenWeights": "reperio.encoders.token_weights",
    "WholeWords": "reperio.encoders.wholewords",
    "WordGate": "reperio.encoders.wordgate",
    "WordWeights": "reperio.encoders.wordweights",
    "aencode_document": "reperio.encoders.asynchronous",
    "aencode_query": "reperio.encoders.asynchronous",
    "expected_loss": "reperio.encoders.bridged",
    "head_vectors": "reperio.encoders.tools",
    "moee": "reperio.encoders.experts",
    "preset": "reperio.encoders.presets",
    "usage_vectors": "reperio.encoders.tools",
}

__all__ = [
    "BM25Encoder",
    "BridgedEncoder",
    "CachedEncoder",
    "ChunkEncoder",
    "ClosedFormEncoder",
    "Clusters",
    "ColbertLayout",
    "DecoderEncoder",
    "DenseEncoder",
    "DenseSum",
    "Expansion",
    "GivenVectors",
    "HashEncoder",
    "HashWeights",
    "HashWords",
    "InferenceFreeEncoder",
    "LexiconEncoder",
    "Limits",
    "MultiVectorEncoder",
    "ParallelEncoder",
    "ProjectedEncoder",
    "Projection",
    "RecallLoss",
    "RelativeEncoder",
    "RemoteEncoder",
    "RemoteReading",
    "RemoteSparseEncoder",
    "SparseEncoder",
    "SparseSum",
    "StemStates",
    "TokenWeights",
    "WholeWords",
    "WordGate",
    "WordWeights",
    "aencode_document",
    "aencode_query",
    "expected_loss",
    "head_vectors",
    "moee",
    "preset",
    "usage_vectors",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_EXPORTS[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
