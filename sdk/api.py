"""The one-liner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reperio.embeddings import Dense
from reperio.encoders.bm25 import BM25Encoder
from reperio.errors import InvalidInput
from reperio.fusion import Convex, combine
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.flat import FlatIndex
from reperio.protocols import Encoder
from reperio.retriever import Retriever
from reperio.types import Document, Hit


def search(query: str, texts: Sequence[str], *, k: int = 10, encoder: Encoder[Dense] | None = None) -> list[Hit]:
    """Rank texts in memory: BM25, or BM25 and ``encoder`` together where one is given.

    Parameters
    ----------
    query
        What is asked.
    texts
        What is searched; a hit's document id is the text's position.
    k
        Most hits to return.
    encoder
        Makes dense vectors; the scores are then the mean of both signals, each scaled to 0..1.

    Examples
    --------
    >>> search("capital of France", ["Berlin has a zoo.", "Paris is the capital of France."], k=1)[0].document.id
    '1'
    """
    if isinstance(texts, str):
        raise InvalidInput(f"The texts are the bare string {texts[:40]!r}.", "Give a list of texts.")
    if k <= 0:
        raise InvalidInput(f"k is {k}.", "Use a whole number of 1 or more.")
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    lexical = Retriever(BM25Encoder(), BM25Index(), documents=documents, k=max(1, len(texts)), name="bm25")
    words = lexical([query])[0]
    if encoder is None or not documents:
        return list(words)[:k]
    dense = Retriever(encoder, FlatIndex("cosine"), documents=documents, k=len(texts), name="dense")
    hits = list(dense([query])[0])
    matched = {hit.document.id: hit.score for hit in words}
    scores = {
        "bm25": np.array([matched.get(hit.document.id, 0.0) for hit in hits], np.float32),  # no word in common: 0
        "dense": np.array([hit.score for hit in hits], np.float32),
    }
    fused = combine(Convex(), scores, lowest={})
    best: list[int] = np.argsort(-fused, kind="stable")[:k].tolist()
    return [Hit(hits[i].document, float(fused[i]), {name: float(s[i]) for name, s in scores.items()}) for i in best]
