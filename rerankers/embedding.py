"""Reranking by the similarity of embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reperio.embeddings import Dense
from reperio.pipeline import Step
from reperio.protocols import Encoder, Spec
from reperio.types import Hit, Ranking


class EmbeddingReranker(Step[Ranking, Ranking]):
    """Orders hits anew by the cosine of query and document: a bi-encoder over a short list, with no index.

    The result is a permutation of its input; equal scores keep their order.

    Parameters
    ----------
    encoder
        Makes the vectors.
    signal
        Name of the new score in ``Hit.signals``.
    """

    def __init__(self, encoder: Encoder[Dense], *, signal: str = "embedding") -> None:
        self.encoder = encoder
        self.signal = signal

    @property
    def spec(self) -> Spec:
        return {"type": "EmbeddingReranker", "encoder": dict(self.encoder.spec), "signal": self.signal}

    def __call__(self, batch: Sequence[Ranking], /) -> Sequence[Ranking]:
        full = [ranking for ranking in batch if len(ranking)]
        if not full:
            return list(batch)
        queries = _unit(self.encoder.encode_query([ranking.query.text for ranking in full]).embeddings)
        # Each text once, however many rankings hold it.
        texts = list(dict.fromkeys(hit.document.text for ranking in full for hit in ranking))
        vectors = dict(zip(texts, _unit(self.encoder.encode_document(texts).embeddings), strict=True))
        encoded = iter(queries)
        return [self._order(ranking, next(encoded), vectors) if len(ranking) else ranking for ranking in batch]

    def _order(self, ranking: Ranking, query: Dense, vectors: dict[str, Dense]) -> Ranking:
        scores = np.stack([vectors[hit.document.text] for hit in ranking]) @ query
        hits = list(ranking)
        best: list[int] = np.argsort(-scores, kind="stable").tolist()
        return Ranking(
            ranking.query,
            tuple(
                Hit(hits[i].document, float(scores[i]), {**hits[i].signals, self.signal: float(scores[i])})
                for i in best
            ),
        )


def _unit(vectors: Dense) -> Dense:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    out: Dense = vectors / np.maximum(length, np.float32(1e-12))
    return out
