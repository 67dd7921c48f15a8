"""Names that stand for components, so that a configuration holds names and numbers, never code.

Others publish theirs through the entry-point group ``reperio.components``; a name maps to ``module:Class``.

>>> build({"type": "ReciprocalRank", "k": 10}).spec
{'type': 'ReciprocalRank', 'k': 10}
"""

from __future__ import annotations

import inspect
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeGuard, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from reperio.errors import ConfigurationError
from reperio.protocols import Spec

BUILT_IN: dict[str, str] = {
    "BM25Encoder": "reperio.encoders.bm25:BM25Encoder",
    "BM25Index": "reperio.indexes.bm25:BM25Index",
    "BinaryIndex": "reperio.indexes.binary:BinaryIndex",
    "BridgedEncoder": "reperio.encoders.bridged:BridgedEncoder",
    "CachedEncoder": "reperio.encoders.cached:CachedEncoder",
    "Centre": "reperio.indexes.transforms:Centre",
    "ChunkEncoder": "reperio.encoders.chunked:ChunkEncoder",
    "ChunkGrouper": "reperio.rerankers.chunks:ChunkGrouper",
    "ClosedFormEncoder": "reperio.encoders.closed_form:ClosedFormEncoder",
    "ColbertLayout": "reperio.encoders.multivector_layout:ColbertLayout",
    "CollectionRetriever": "reperio.collection:CollectionRetriever",
    "Convex": "reperio.fusion:Convex",
    "DecoderEncoder": "reperio.encoders.decoder:DecoderEncoder",
    "DenseEncoder": "reperio.encoders.dense:DenseEncoder",
    "DenseSum": "reperio.encoders.summed:DenseSum",
    "EmbeddingReranker": "reperio.rerankers.embedding:EmbeddingReranker",
    "ExpertRouting": "reperio.models.pooling_experts:ExpertRouting",
    "Expansion": "reperio.encoders.reading:Expansion",
    "FaissIndex": "reperio.indexes.faiss:FaissIndex",
    "FlatIndex": "reperio.indexes.flat:FlatIndex",
    "Fuse": "reperio.fusion:Fuse",
    "GivenVectors": "reperio.encoders.given:GivenVectors",
    "HashEncoder": "reperio.encoders.hashing:HashEncoder",
    "HashWeights": "reperio.encoders.hashing:HashWeights",
    "HashWords": "reperio.encoders.hashing:HashWords",
    "HnswlibIndex": "reperio.indexes.hnswlib:HnswlibIndex",
    "LexiconEncoder": "reperio.encoders.lexicon:LexiconEncoder",
    "LanguageModel": "reperio.models.language_model:LanguageModel",
    "InferenceFreeEncoder": "reperio.encoders.inference_free:InferenceFreeEncoder",
    "InvertedIndex": "reperio.indexes.inverted:InvertedIndex",
    "LatentAttention": "reperio.models.pooling_latent:LatentAttention",
    "MilvusIndex": "reperio.indexes.milvus:MilvusIndex",
    "MultiLayerPooling": "reperio.models.pooling_layers:MultiLayerPooling",
    "MultiVectorEncoder": "reperio.encoders.multivector:MultiVectorEncoder",
    "MultiVectorIndex": "reperio.indexes.multivector:MultiVectorIndex",
    "NormCoordinate": "reperio.indexes.transforms:NormCoordinate",
    "Normalise": "reperio.indexes.transforms:Normalise",
    "PgvectorIndex": "reperio.indexes.pgvector:PgvectorIndex",
    "ParallelEncoder": "reperio.encoders.parallel:ParallelEncoder",
    "Pipeline": "reperio.pipeline:Pipeline",
    "PassageCompressor": "reperio.compression.passages:PassageCompressor",
    "ProjectedEncoder": "reperio.encoders.adapters:ProjectedEncoder",
    "QdrantIndex": "reperio.indexes.qdrant:QdrantIndex",
    "QuantizedIndex": "reperio.indexes.quantized:QuantizedIndex",
    "QueryAwareIndex": "reperio.indexes.queryaware:QueryAwareIndex",
    "Pooling": "reperio.models.pooling:Pooling",
    "Projected": "reperio.models.projection:Projected",
    "Projection": "reperio.models.projection:Projection",
    "PostgresTextIndex": "reperio.indexes.pgtext:PostgresTextIndex",
    "ReciprocalRank": "reperio.fusion:ReciprocalRank",
    "RelativeEncoder": "reperio.encoders.relative:RelativeEncoder",
    "RemoteEncoder": "reperio.encoders.remote:RemoteEncoder",
    "RemoteSparseEncoder": "reperio.encoders.remote:RemoteSparseEncoder",
    "VerbatimEncoder": "reperio.encoders.verbatim:VerbatimEncoder",
    "SeismicIndex": "reperio.indexes.seismic:SeismicIndex",
    "SparseEncoder": "reperio.encoders.sparse:SparseEncoder",
    "SparseSum": "reperio.encoders.summed:SparseSum",
    "StemStates": "reperio.encoders.closed_form_states:StemStates",
    "TokenWeights": "reperio.encoders.token_weights:TokenWeights",
    "ToolRefiner": "reperio.rerankers.tools:ToolRefiner",
    "TokenProjection": "reperio.models.projection:TokenProjection",
    "TransformedIndex": "reperio.indexes.transformed:TransformedIndex",
    "Truncate": "reperio.indexes.transforms:Truncate",
    "UsearchIndex": "reperio.indexes.usearch:UsearchIndex",
    "View": "reperio.models.view:View",
    "WholeWords": "reperio.encoders.wholewords:WholeWords",
    "WordGate": "reperio.encoders.wordgate:WordGate",
    "WordWeights": "reperio.encoders.wordweights:WordWeights",
}


@cache
def registered() -> dict[str, str]:
    """Every known name and where its class is: built in, and published by installed packages."""
    others = {point.name: point.value for point in entry_points(group="reperio.components")}
    return {**others, **BUILT_IN}


def resolve(name: str) -> type[Any]:
    """The class registered under ``name``.

    Raises
    ------
    ConfigurationError
        If no such name is registered.
    """
    where = registered().get(name)
    if where is None:
        known = ", ".join(sorted(registered()))
        raise ConfigurationError(f"No component is named {name!r}.", f"Known: {known}.")
    module, _, attribute = where.partition(":")
    found: type[Any] = getattr(import_module(module), attribute)
    return found


def build(spec: Spec) -> Any:
    """Make a component from its specification, every argument checked against the constructor's types.

    Raises
    ------
    ConfigurationError
        Naming the component and the argument that is unknown, missing or of the wrong type.
    """
    arguments = dict(spec)
    name = arguments.pop("type", None)
    if not isinstance(name, str):
        raise ConfigurationError(f"{dict(spec)!r} names no component.", 'Give it a "type".')
    cls = resolve(name)
    parameters = inspect.signature(cls).parameters
    hints = get_type_hints(cls.__init__)
    for key, value in arguments.items():
        if key not in parameters:
            raise ConfigurationError(f"{name} has no setting {key!r}.", f"It has: {', '.join(parameters)}.")
        nested = _nested(value)
        arguments[key] = nested if nested is not value else _checked(name, key, value, hints.get(key, Any))
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in arguments]
    if missing:
        raise ConfigurationError(f"{name} needs {', '.join(missing)}.", "Add it to the specification.")
    return cls(**arguments)


def _nested(value: Any) -> Any:
    """Components inside a specification, built; anything else as it is."""
    if _is_object(value):
        if isinstance(value.get("type"), str):
            return build(value)
        inside = {name: _nested(part) for name, part in value.items()}
        return inside if inside and all(inside[name] is not part for name, part in value.items()) else value
    if _is_list(value) and value:
        parts = [_nested(part) for part in value]
        return parts if all(a is not b for a, b in zip(parts, value, strict=True)) else value
    return value


def _is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _checked(name: str, key: str, value: Any, hint: Any) -> Any:
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        wanted = error.errors()[0]["msg"]
        raise ConfigurationError(f"{name}.{key} cannot be {value!r}: {wanted}.", "Mend the specification.") from error
