"""A real retriever, made without this package: BM25 of bm25s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import bm25s
import pytest
import Stemmer

from reperio.evaluation import Beir
from reperio.protocols import Stage
from reperio.types import Hit, Query, Ranking

MakeBM25 = Callable[..., Stage[Query, Ranking]]


@pytest.fixture(scope="session")
def bm25() -> MakeBM25:
    """``bm25(beir, stemmed=True, k1=1.2, b=0.75)``: Lucene's variant, English stop words, title and text."""

    def make(beir: Beir, *, stemmed: bool = True, k1: float = 1.2, b: float = 0.75) -> Stage[Query, Ranking]:
        documents = list(beir.documents())
        stemmer = Stemmer.Stemmer("english") if stemmed else None

        def tokens(texts: list[str]) -> Any:
            return bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False)

        index = bm25s.BM25(method="lucene", k1=k1, b=b)
        index.index(tokens([document.text for document in documents]), show_progress=False)

        def retrieve(batch: Sequence[Query]) -> list[Ranking]:
            k = min(100, len(documents))
            rows, scores = index.retrieve(tokens([query.text for query in batch]), k=k, show_progress=False)
            return [
                Ranking(query, [Hit(documents[i], float(score)) for i, score in zip(*found, strict=True) if score > 0])
                for query, *found in zip(batch, rows, scores, strict=True)
            ]

        return retrieve

    return make
