"""Vectors of tools from the queries that used them, and not from how they are described.

Shapes: t tools, d dimensions, q queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense
from reperio.errors import ConfigurationError, InvalidInput
from reperio.protocols import Encoder
from reperio.types import Document

__all__ = ["head_vectors", "usage_vectors"]

PRIOR = 10.0
"""How many queries a tool's description counts as."""

_SCALE = 20.0
"""What cosines are multiplied with before the softmax."""

_BATCH, _RATE, _DECAY = 256, 2e-3, (0.9, 0.999)
"""Of Adam (Kingma & Ba, 2015)."""


def usage_vectors(
    encoder: Encoder[Dense],
    tools: Sequence[Document],
    usages: Mapping[str, Sequence[str]],
    *,
    prior: float = PRIOR,
) -> Dense:
    """One vector for each tool: the mean of the queries that used it, and of its description.

    Queries for a tool are more like each other than like its description. Give the vectors to
    ``collection.upsert(tools, embeddings={"usage": vectors})``; its signal ``usage`` encodes queries with ``encoder``.

    Parameters
    ----------
    encoder
        Encodes the queries that used a tool as queries, and descriptions as documents.
    tools
        Their ids are the keys of ``usages``, their texts describe them.
    usages
        Tool id → queries that used it; a query that used several tools stands under each. A tool without any has the
        vector of its description.
    prior
        How many queries the description counts as; 0 leaves it out where there are queries.

    Returns
    -------
    Dense
        ``(t, d)``, float32, rows of length 1, in the order of ``tools``.

    Raises
    ------
    InvalidInput
        For usages of a tool that is not there, a bare string of queries, or what the encoder refuses.
    ConfigurationError
        If ``prior`` is negative or not finite.

    References
    ----------
    Moon et al., Efficient and Scalable Estimation of Tool Representations in Vector Space, 2024 (Tool2Vec).

    Examples
    --------
    >>> from reperio.encoders import HashEncoder
    >>> tools = [Document("wx", "Meteorological service"), Document("fx", "Currency conversion")]
    >>> vectors = usage_vectors(HashEncoder(), tools, {"wx": ["will it rain", "is rain likely"]}, prior=1)
    >>> found = HashEncoder().encode_query(["rain tomorrow"]).embeddings @ vectors.T
    >>> tools[int(found.argmax())].id
    'wx'
    """
    queries, used = _encoded(encoder, tools, usages)
    return _means(encoder, tools, queries, used, prior).astype(np.float32)


def head_vectors(
    encoder: Encoder[Dense],
    tools: Sequence[Document],
    usages: Mapping[str, Sequence[str]],
    *,
    prior: float = PRIOR,
    epochs: int = 10,
    seed: int = 0,
) -> Dense:
    """Vectors of a classifier that tells from a query which tools it uses, trained on the usages.

    It begins with `usage_vectors`, and moves them until the softmax over all tools' cosines gives each query its
    tools (several have equal parts). As its weights are vectors of length 1 in the space of the queries, a collection
    searches them as any others. Tools without a usage keep the vector of their description and take no part: the
    usages do not say that a query is not for them.

    Parameters
    ----------
    encoder, tools, usages, prior
        As for `usage_vectors`.
    epochs
        How often each query is seen.
    seed
        Of the order of the queries.

    Returns
    -------
    Dense
        ``(t, d)``, float32, rows of length 1.

    Raises
    ------
    InvalidInput, ConfigurationError
        As `usage_vectors`; and if ``epochs`` is below 1.
    """
    if epochs < 1:
        raise ConfigurationError(f"epochs is {epochs}.", "Use 1 or more; 10 are usual.")
    queries, used = _encoded(encoder, tools, usages)
    vectors = _means(encoder, tools, queries, used, prior)
    seen = np.flatnonzero(used.any(axis=0))
    if len(seen) > 1:
        wanted = used[:, seen] / used[:, seen].sum(axis=1, keepdims=True)
        vectors[seen] = _trained(vectors[seen], queries, wanted, epochs, seed)
    return vectors.astype(np.float32)


def _trained(
    weights: NDArray[np.float32], queries: Dense, wanted: NDArray[np.float32], epochs: int, seed: int
) -> NDArray[np.float32]:
    """Softmax regression of cosines, by Adam; rows are brought back to length 1 after each step."""
    rng = np.random.default_rng(seed)
    first, second, step = np.zeros_like(weights), np.zeros_like(weights), 0
    for _ in range(epochs):
        order = rng.permutation(len(queries))
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            scores = _SCALE * queries[rows] @ weights.T
            chances = np.exp(scores - scores.max(axis=1, keepdims=True))
            chances /= chances.sum(axis=1, keepdims=True)
            slope = _SCALE / len(rows) * (chances - wanted[rows]).T @ queries[rows]
            step += 1
            first += (1 - _DECAY[0]) * (slope - first)
            second += (1 - _DECAY[1]) * (slope**2 - second)
            size = _RATE * np.sqrt(1 - _DECAY[1] ** step) / (1 - _DECAY[0] ** step)
            weights = _unit(weights - size * first / (np.sqrt(second) + 1e-8))
    return weights


def _encoded(
    encoder: Encoder[Dense], tools: Sequence[Document], usages: Mapping[str, Sequence[str]]
) -> tuple[Dense, NDArray[np.float32]]:
    """Each different query's vector, of length 1, ``(q, d)``, and which tools it used, ``(q, t)``, 1 or 0."""
    column = {tool.id: i for i, tool in enumerate(tools)}
    unknown = sorted(usages.keys() - column.keys())
    if unknown:
        fix = "Give its document, or leave it out."
        raise InvalidInput(f"usages has {len(unknown)} tools that are not there, as {unknown[0]!r}.", fix)
    row: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    for name, queries in usages.items():
        if isinstance(queries, str):
            raise InvalidInput(f"usages[{name!r}] is the bare string {queries[:40]!r}.", "Give a list of queries.")
        pairs += [(row.setdefault(query, len(row)), column[name]) for query in queries]
    used = np.zeros((len(row), len(tools)), dtype=np.float32)
    if pairs:
        used[tuple(np.array(pairs).T)] = 1
    return _unit(encoder.encode_query(list(row)).embeddings), used


def _means(
    encoder: Encoder[Dense], tools: Sequence[Document], queries: Dense, used: NDArray[np.float32], prior: float
) -> NDArray[np.float32]:
    if not 0 <= prior < float("inf"):
        raise ConfigurationError(f"prior is {prior}.", "Use 0 or more; 10 is usual.")
    described = _unit(encoder.encode_document([tool.text for tool in tools]).embeddings)
    counts = used.sum(axis=0)[:, None]
    weight: NDArray[np.float32] = np.where(counts, prior, 1.0).astype(np.float32)
    return _unit((used.T @ queries + weight * described).astype(np.float32))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    out: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    return out
