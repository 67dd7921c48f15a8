"""Programs that are wrong: each line marked `# E:` must be an error, and no other line."""

from reperio import Collection, Document, Field, Query, Retriever, fuse
from reperio.compression import PassageCompressor
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.hashing import HashEncoder
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.faiss import FaissIndex
from reperio.indexes.flat import FlatIndex
from reperio.rerankers import EmbeddingReranker
from reperio.signals import Signal

dense = Retriever(HashEncoder(), FlatIndex())
rerank = EmbeddingReranker(HashEncoder())
compress = PassageCompressor(100)

Retriever(BM25Encoder(), FlatIndex())  # E: a sparse encoder, a dense index
Retriever(HashEncoder(), BM25Index())  # E: a dense encoder, a sparse index
Signal(BM25Encoder(), FaissIndex())  # E: the same in a collection's signal
dense >> compress >> rerank  # E: a reranker cannot follow a compressor
rerank >> dense  # E: a retriever cannot follow a reranker
dense >> dense  # E: nor another retriever
fuse(dense, rerank)  # E: a reranker is no retriever
dense([1, 2])  # E: numbers are no queries
EmbeddingReranker(BM25Encoder())  # E: needs dense vectors


def wrong(collection: Collection) -> None:
    collection.search("a question", where=Field("year"))  # E: a field is no filter
    collection.search(3)  # E: a number is no query
    collection.upsert(["a text"])  # E: strings are no documents
    collection.upsert([Document("1", 2)])  # E: a number is no text
    collection.search("a question", fusion="rrf")  # E: a name is no fusion
    Query("1")  # E: a query needs a text
