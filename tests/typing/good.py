"""Compositions that fit, and the types they must have: no error anywhere in this file."""

from collections.abc import Sequence
from pathlib import Path
from typing import assert_type

from reperio import Collection, Context, Field, Pipeline, Query, Ranking, Retriever, fuse
from reperio.compression import PassageCompressor
from reperio.embeddings import Dense
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.hashing import HashEncoder
from reperio.filters import Filter
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.faiss import FaissIndex
from reperio.indexes.flat import FlatIndex
from reperio.protocols import Index, Source, Stage
from reperio.rerankers import EmbeddingReranker
from reperio.signals import Signal

dense = Retriever(HashEncoder(), FlatIndex())
lexical = Retriever(BM25Encoder(), BM25Index())
assert_type(dense(["a question"]), Sequence[Ranking])
assert_type(dense([Query("1", "a question")]), Sequence[Ranking])

rerank = EmbeddingReranker(HashEncoder())
compress = PassageCompressor(100)
assert_type(dense >> rerank >> compress, Pipeline[str | Query, Context])
assert_type(fuse(dense, lexical) >> rerank, Pipeline[str | Query, Ranking])
assert_type((dense >> rerank).run(["a question"]).outputs, Sequence[Ranking])


def shorten(batch: Sequence[Ranking]) -> Sequence[Ranking]:
    return [Ranking(ranking.query, ranking.hits[:3]) for ranking in batch]


assert_type(dense >> shorten >> compress, Pipeline[str | Query, Context])
stage: Stage[Query, Ranking] = dense

Signal(HashEncoder(), FaissIndex())
Signal(BM25Encoder(), BM25Index(), stored=False)
condition = (Field("year") >= 2020) & ~Field("lang").in_(["de"])
assert_type(condition, Filter)


def searches(collection: Collection, source: Source, folder: Path) -> None:
    assert_type(collection.search("a question", 5, where=condition), Ranking)
    assert_type(collection.search(["a question", Query("2", "another")]), list[Ranking])
    assert_type(collection.retriever() >> rerank >> compress, Pipeline[str | Query, Context])
    collection.upsert(source.documents())


def saved(index: Index[Dense], folder: Path) -> Index[Dense]:
    for path in (folder, "folder"):
        index.save(path)
    return FaissIndex.open("folder")
