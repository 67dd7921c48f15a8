"""One filter, one answer: every store and every index give the ids that plain Python gives.

``REPERIO_FILTER_EXAMPLES=1000 pytest tests/test_filters_everywhere.py`` looks further.
"""

from __future__ import annotations

import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reperio import Collection, Document, Field, Signal
from reperio.embeddings import MultiVector, Sparse
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.hashing import HashEncoder
from reperio.encoders.verbatim import VerbatimEncoder
from reperio.filters import Filter, from_json, to_json
from reperio.indexes import (
    BinaryIndex,
    BM25Index,
    FaissIndex,
    FlatIndex,
    HnswlibIndex,
    InvertedIndex,
    MilvusIndex,
    MultiVectorIndex,
    PgvectorIndex,
    PostgresTextIndex,
    QdrantIndex,
    QuantizedIndex,
    QueryAwareIndex,
    SeismicIndex,
    TransformedIndex,
    UsearchIndex,
)
from reperio.indexes.transforms import Centre
from reperio.protocols import Spec
from reperio.types import Encoded, Fingerprint

for needed in ("milvus_lite", "qdrant_client", "usearch", "hnswlib", "seismic"):
    pytest.importorskip(needed)

EXAMPLES = int(os.environ.get("REPERIO_FILTER_EXAMPLES", "0"))

Tree: TypeAlias = tuple[Any, ...]
"""``("and" | "or", tree, tree)``, ``("not", tree)``, or ``(operator, field, value)``."""

# What a filter means, said once more and without the package


def passes(tree: Tree, row: Mapping[str, Any]) -> bool:
    """Whether a document with this metadata is to be found."""
    word, *rest = tree
    if word == "and":
        return passes(rest[0], row) and passes(rest[1], row)
    if word == "or":
        return passes(rest[0], row) or passes(rest[1], row)
    if word == "not":
        return not passes(rest[0], row)
    name, value = rest
    found = kept(row.get(name))
    if word == "exists":
        return found is not None
    if word == "in":
        return any(comparable(found, kept(v)) and found == kept(v) for v in value)
    value = kept(value)
    if word == "contains":
        if isinstance(found, list):
            return any(comparable(kept(x), value) and kept(x) == value for x in found)
        return isinstance(found, str) and isinstance(value, str) and value in found
    if not comparable(found, value):
        return False
    return {
        "==": lambda: found == value,
        "!=": lambda: found != value,
        "<": lambda: found < value,
        "<=": lambda: found <= value,
        ">": lambda: found > value,
        ">=": lambda: found >= value,
    }[word]()


def kept(value: Any) -> Any:
    """As the store keeps it: dates are text, in UTC where they have a zone."""
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).isoformat()
    return value.isoformat() if isinstance(value, date) else value


def sort_of(value: Any) -> str:
    for kind, name in ((bool, "boolean"), (int | float, "number"), (str, "string"), (list, "list")):
        if isinstance(value, kind):
            return name
    return "nothing to compare"


def comparable(a: Any, b: Any) -> bool:
    return sort_of(a) == sort_of(b) in ("boolean", "number", "string")


def built(tree: Tree) -> Filter:
    """The same, as a user writes it."""
    word, *rest = tree
    if word in ("and", "or"):
        a, b = map(built, rest)
        return a & b if word == "and" else a | b
    if word == "not":
        return ~built(rest[0])
    field, value = Field(rest[0]), rest[1]
    made: dict[str, Callable[[], Filter]] = {
        "==": lambda: field == value,
        "!=": lambda: field != value,
        "<": lambda: field < value,
        "<=": lambda: field <= value,
        ">": lambda: field > value,
        ">=": lambda: field >= value,
        "in": lambda: field.in_(value),
        "contains": lambda: field.contains(value),
        "exists": field.exists,
    }
    return made[word]()


# Documents: the texts stay, and with them every score; their metadata is drawn anew for each example

WORDS = ["merge", "sort", "list", "parse", "json", "text", "open", "socket", "port", "read", "byte", "walk", "graph"]
_choose = random.Random(7)
TEXTS = [" ".join(_choose.choices(WORDS, k=_choose.randint(3, 9))) for _ in range(104)]
ASKED = ["merge sort list", "open socket socket walk", "graph"]

AWKWARD = 'we"ird.$[0] %s {key}'
COMMON: dict[str, Any] = {"n": 0, "at": "", "tags": [0, ""], "on": True, AWKWARD: 0}
"""Every field has been of these kinds once, so that asking for them is no error."""

numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([2**53, 2**53 + 1, 2.0**53, 2**62 + 1, 2.0**62, 0.1, 0.5, -0.0, 1e300, 5e-324]),
)
_unicode = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=3)
strings = st.one_of(
    st.sampled_from(["", "a", "ab", "B", "é", "é", "z", "中", "🎈", "3", "true", "%", "_", "'", '"', "\\", "null"]),
    _unicode,
)
days = st.dates(date(2020, 1, 1), date(2030, 1, 1))
zones = st.sampled_from([None, UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-3))])
moments = st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=zones)
values: dict[str, st.SearchStrategy[Any]] = {
    "n": st.one_of(numbers, st.none()),
    "at": st.one_of(strings, days, moments),
    "tags": st.one_of(st.lists(st.one_of(numbers, strings, st.booleans(), days, st.none()), max_size=3), strings),
    "on": st.one_of(st.booleans(), numbers, strings),
    AWKWARD: st.one_of(numbers, st.dictionaries(st.sampled_from("xy"), numbers, max_size=2)),
}
metadata = st.fixed_dictionaries({}, optional=values)


@st.composite
def leaves(draw: st.DrawFn, rows: list[dict[str, Any]]) -> Tree:
    """A condition on one field: on a value that is there, more often than not."""
    name = draw(st.sampled_from(list(values)))
    there = [row[name] for row in rows if name in row]
    inside = [x for value in there if isinstance(value, list) for x in value]
    word = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "in", "contains", "exists"]))
    if word == "exists":
        return word, name, None
    if word == "contains":
        name = draw(st.sampled_from(["tags", "at"]))
        fresh = st.one_of(numbers, strings, st.booleans()) if name == "tags" else strings
        return (
            word,
            name,
            draw(_drawn(inside, fresh, {"number", "string", "boolean"} if name == "tags" else {"string"})),
        )
    kinds = {"n": {"number"}, "at": {"string"}, "tags": {"string"}, AWKWARD: {"number"}}
    allowed = kinds.get(name, {"boolean", "number", "string"})
    fresh = st.one_of(*(kind for sort, kind in SORTS.items() if sort in allowed))
    one = _drawn(there, fresh, allowed)
    return word, name, draw(st.lists(one, max_size=4) if word == "in" else one)


SORTS = {"number": numbers, "string": st.one_of(strings, days, moments), "boolean": st.booleans()}


def _drawn(there: list[Any], fresh: st.SearchStrategy[Any], allowed: set[str]) -> st.SearchStrategy[Any]:
    usable = [value for value in there if sort_of(kept(value)) in allowed]
    return st.one_of(st.sampled_from(usable), fresh) if usable else fresh


@st.composite
def trees(draw: st.DrawFn, rows: list[dict[str, Any]], depth: int = 3) -> Tree:
    word = draw(st.sampled_from(["one", "and", "or", "not"])) if depth else "one"
    if word == "one":
        return draw(leaves(rows))
    parts = [draw(trees(rows, depth - 1)) for _ in range(1 if word == "not" else 2)]
    return word, *parts


# Signals: an encoder of each kind, and what it scores each text


class Terms:
    """Weights of the words of a small vocabulary, as a learned-sparse encoder gives."""

    fingerprint = Fingerprint.make("sparse", "terms", len(WORDS))
    spec: ClassVar[Spec] = {"type": "BM25Encoder"}

    def encode_document(self, texts: Any) -> Encoded[Sparse]:
        found = sparse(texts)
        rows, columns = np.nonzero(found)
        indptr = np.searchsorted(rows, np.arange(len(found) + 1))
        packed = Sparse(indptr, columns, found[rows, columns], len(WORDS))
        return Encoded(packed, np.diff(indptr), np.zeros(len(found), dtype=np.bool_))

    encode_query = encode_document


class Several:
    """A vector for each word."""

    fingerprint = Fingerprint.make("multi-vector", "words", 16)
    spec: ClassVar[Spec] = {"type": "HashEncoder", "dim": 16}

    def encode_document(self, texts: Any) -> Encoded[MultiVector]:
        lengths = np.array([len(text.split()) for text in texts])
        vectors = np.concatenate([vector_each(text) for text in texts])
        packed = MultiVector(vectors, np.concatenate([[0], np.cumsum(lengths)]))
        return Encoded(packed, lengths, np.zeros(len(lengths), dtype=np.bool_))

    encode_query = encode_document


def sparse(texts: Any) -> np.ndarray:
    weights = 1 + np.arange(len(WORDS)) % 7 / 8
    return np.array([[text.split().count(word) for word in WORDS] for text in texts], dtype=np.float32) * weights


def vector_each(text: str) -> np.ndarray:
    """``(words, 16)``, of length one."""
    rows = [np.random.default_rng(sum(map(ord, word))).standard_normal(16) for word in text.split()]
    return np.array([row / np.linalg.norm(row) for row in rows], dtype=np.float32)


def bm25() -> np.ndarray:
    """Of every text for each query, by the formula (Lucene's), ``-inf`` without a common word."""
    counts = [Counter(text.split()) for text in TEXTS]
    mean = sum(map(Counter.total, counts)) / len(counts)
    out = np.full((len(ASKED), len(TEXTS)), -np.inf)
    for q, query in enumerate(ASKED):
        for i, held in enumerate(counts):
            shared = [word for word in query.split() if word in held]
            parts = [
                math.log(1 + (len(counts) - df + 0.5) / (df + 0.5))
                * (held[word] / (held[word] + 1.2 * (0.25 + 0.75 * held.total() / mean)))
                for word in shared
                for df in [sum(word in row for row in counts)]
            ]
            out[q, i] = sum(parts) if shared else -np.inf
    return out


def dense() -> np.ndarray:
    encode = HashEncoder(32).encode_document
    return encode(ASKED).embeddings.astype(np.float64) @ encode(TEXTS).embeddings.T.astype(np.float64)


def weighed() -> np.ndarray:
    products = sparse(ASKED).astype(np.float64) @ sparse(TEXTS).T
    return np.where(products > 0, products, -np.inf)


def maxsim() -> np.ndarray:
    return np.array([[(vector_each(q) @ vector_each(t).T).max(axis=1).sum() for t in TEXTS] for q in ASKED])


def shared() -> np.ndarray:
    """Only who matches: the order is PostgreSQL's own."""
    return np.where([[set(q.split()) & set(t.split()) != set() for t in TEXTS] for q in ASKED], np.nan, -np.inf)


@dataclass(frozen=True)
class Backend:
    """A signal, what it scores, and whether an index finds the very best."""

    signal: Signal[Any]
    scores: np.ndarray
    exact: bool


def of_kind(encoder: Any, scores: np.ndarray, indexes: Mapping[str, Any], *exact: str, stored: bool = True) -> Any:
    return {name: Backend(Signal(encoder, index, stored), scores, name in exact) for name, index in indexes.items()}


def local(uri: str) -> dict[str, Backend]:
    """What a folder can hold, and servers that need none."""
    dense_indexes = {
        "flat": FlatIndex(),
        "faiss_flat": FaissIndex("Flat"),
        "faiss_hnsw": FaissIndex("HNSW8", options={"efSearch": 4}),
        "faiss_ivf": FaissIndex("IVF4,Flat", train_size=40, options={"nprobe": 1}),
        "usearch": UsearchIndex(),
        "hnswlib": HnswlibIndex(),
        "quantized": QuantizedIndex("int8", train_size=100),
        "binary": BinaryIndex(),
        "transformed": TransformedIndex(FlatIndex("ip"), [Centre()], train_size=40),
        "query_aware": QueryAwareIndex("cosine", batch=8),
        "milvus_flat": MilvusIndex(uri, index_type="FLAT"),
        "milvus_hnsw": MilvusIndex(uri),
        "qdrant": QdrantIndex(":memory:"),
    }
    sparse_indexes = {
        "inverted": InvertedIndex(),
        "seismic": SeismicIndex(seal_at=20),
        "milvus_sparse": MilvusIndex(uri, vectors="sparse"),
        "qdrant_sparse": QdrantIndex(":memory:", vectors="sparse"),
    }
    several = {"several": MultiVectorIndex(), "several_codes": MultiVectorIndex("residual", centroids=8, train_size=40)}
    plain = BM25Encoder(stopwords=[], stem=False)
    return {
        **of_kind(HashEncoder(32), dense(), dense_indexes, "flat", "faiss_flat", "milvus_flat", "qdrant"),
        **of_kind(Terms(), weighed(), sparse_indexes, "inverted", "milvus_sparse", "qdrant_sparse"),
        **of_kind(Several(), maxsim(), several, "several"),
        **of_kind(plain, bm25(), {"bm25": BM25Index()}, "bm25", stored=False),
    }


def hosted() -> dict[str, Backend]:
    """What a database can hold, and what a client of it keeps."""
    dense_indexes = {
        "pg_flat": PgvectorIndex(index=None),
        "pg_hnsw": PgvectorIndex(),
        "pg_ivf": PgvectorIndex(index="ivfflat", lists=4, dtype="float16", options={"probes": 1}),
        "pg_bit": PgvectorIndex(dtype="bit"),
        "faiss_hnsw": FaissIndex("HNSW8", options={"efSearch": 4}),
    }
    indexes = {"pg_sparse": PgvectorIndex(metric="ip", dtype="sparse", index=None)}
    text = {"pg_text": PostgresTextIndex(language="simple")}
    plain = BM25Encoder(stopwords=[], stem=False)
    return {
        **of_kind(HashEncoder(32), dense(), dense_indexes, "pg_flat"),
        **of_kind(Terms(), weighed(), indexes, "pg_sparse"),
        **of_kind(VerbatimEncoder(), shared(), text, stored=False),
        **of_kind(plain, bm25(), {"bm25": BM25Index()}, "bm25", stored=False),
    }


Place: TypeAlias = tuple[Collection, dict[str, Backend]]


@pytest.fixture(scope="module")
def in_a_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("filters")
    uri = str(folder / "rows.db")
    yield from opened(folder / "collection", local(uri))
    MilvusIndex(uri).close()


@pytest.fixture(scope="module")
def in_a_database(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    address = f"{server}&options=-csynchronous_commit%3Doff#filters_everywhere"
    yield from opened(address, hosted(), cache=tmp_path_factory.mktemp("cache"))
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("SET client_min_messages = error; DROP SCHEMA filters_everywhere CASCADE")


def opened(path: Path | str, backends: dict[str, Backend], **settings_: Any) -> Iterator[Place]:
    """The collection, with every approximate index made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reperio.indexes.pgvector.BUILT_FROM", 1)
        signals = {name: backend.signal for name, backend in backends.items()}
        with Collection.open(path, signals=signals, **settings_) as collection:
            collection.upsert([Document("past", TEXTS[0], COMMON), Document("past2", TEXTS[0], {"on": 0, "tags": ""})])
            collection.upsert([Document("past2", TEXTS[0], {"on": ""})])
            collection.upsert(Document(str(i), text) for i, text in enumerate(TEXTS))
            collection.delete(["past", "past2"])
            collection.checkpoint()
            yield collection, backends


# The law

WALKED = {
    "reperio.retrieval.EXACT_SCAN": 0,
    "reperio.indexes.filtered._MISSES": 0,
    "reperio.indexes.pgvector._REACH": 1,
    "reperio.indexes.tables.FEW": 0,
}
"""So low that no filter is answered by a scan beside the index: every graph and every list is walked."""


def check(place: Place, data: st.DataObject) -> None:
    collection, backends = place
    rows = data.draw(st.lists(metadata, min_size=1, max_size=8), label="rows")
    assigned = random.Random(data.draw(st.integers(0, 99), label="assigned")).choices(rows, k=len(TEXTS))
    documents = [Document(str(i), text, row) for i, (text, row) in enumerate(zip(TEXTS, assigned, strict=True))]
    collection.upsert(documents)
    for _ in range(3):
        tree = data.draw(trees(rows), label="filter")
        k = data.draw(st.one_of(st.integers(1, 12), st.integers(1, len(TEXTS) + 5)), label="k")
        where = built(tree)
        wanted = np.array([i for i, row in enumerate(assigned) if passes(tree, row)], dtype=np.int64)
        assert sorted(int(d.id) for d in collection.documents(from_json(to_json(where)))) == wanted.tolist()
        assert collection.count(where) == len(wanted)
        limits = data.draw(st.sampled_from([WALKED, WALKED, {}]), label="limits")
        with pytest.MonkeyPatch.context() as patch:
            for limit, value in limits.items():
                patch.setattr(limit, value)
            for name, backend in backends.items():
                found = collection.search(ASKED, k, where=where, signals=[name])
                for ranking, scores in zip(found, backend.scores, strict=True):
                    check_ranking(name, ranking, scores, wanted, k, exact=backend.exact)
            fused = collection.search(ASKED[0], k, where=where)
        assert len(fused) == min(k, len(wanted))
        assert {int(id_) for id_ in fused.ids} <= set(wanted.tolist())


def check_ranking(name: str, ranking: Any, scores: np.ndarray, wanted: np.ndarray, k: int, *, exact: bool) -> None:
    """All pass; as many as there are, k at most; each with its own score; the best where the index is exact."""
    matches = wanted[~np.isneginf(scores[wanted])]
    ids = np.array([int(id_) for id_ in ranking.ids], dtype=np.int64)
    assert len(ids) == len(set(ids.tolist())) == min(k, len(matches)), name
    assert np.isin(ids, matches).all(), name
    if not np.isnan(scores[matches]).any():
        np.testing.assert_allclose(ranking.scores, scores[ids], atol=1e-5, err_msg=name)
        best = -np.sort(-scores[matches])[:k]
        assert not exact or np.allclose(ranking.scores, best, atol=1e-5), name


@settings(max_examples=EXAMPLES or 20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_filter_gives_the_same_ids_on_every_index_of_a_folder(in_a_folder: Place, data: st.DataObject) -> None:
    check(in_a_folder, data)


@settings(max_examples=EXAMPLES or 20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_filter_gives_the_same_ids_on_every_index_of_a_database(in_a_database: Place, data: st.DataObject) -> None:
    check(in_a_database, data)
