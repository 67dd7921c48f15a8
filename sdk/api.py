"""The one-liner."""

from __future__ import annotations

from collections.abc import Sequence

from reperio.embeddings import Dense
from reperio.encoders.bm25 import BM25Encoder
from reperio.errors import InvalidInput
from reperio.fusion import Convex, fuse
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
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    lexical = Retriever(BM25Encoder(), BM25Index(), documents=documents, k=max(k, 100), name="bm25")
    if encoder is None:
        return list(lexical([query])[0])[:k]
    dense = Retriever(encoder, FlatIndex("cosine"), documents=documents, k=max(k, 100), name="dense")
    return list(fuse(lexical, dense, method=Convex(), names=["bm25", "dense"], k=k)([query])[0])
