"""pgvector keeps the contract of every index, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest

from reperio.embeddings import Ids, Sparse
from reperio.indexes.pgtext import PostgresTextIndex
from reperio.indexes.pgvector import PgvectorIndex
from reperio.indexes.pgvector_table import SCHEMA
from reperio.protocols import Index
from reperio.testing.index import QUERIES, ROWS, IndexContract


@pytest.fixture(scope="module", autouse=True)
def _emptied(server: str) -> Iterator[None]:
    yield
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"SET client_min_messages = error; DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


class PgvectorContract(IndexContract):
    keeps_files = False
    settings: dict[str, Any]

    @pytest.fixture
    def index(self, server: str) -> PgvectorIndex:
        return PgvectorIndex(f"{server}&options=-csynchronous_commit%3Doff", **self.settings)

    @pytest.fixture
    def filled(self, index: PgvectorIndex, keys: Ids, rows: Any) -> PgvectorIndex:
        """With its approximate index, made of most rows and grown by the rest."""
        index.add(keys[:500], rows[:500])
        if index.column.index is not None:
            index.build()
        index.add(keys[500:], rows[500:])
        return index


class TestExact(PgvectorContract):
    settings = {"index": None}  # noqa: RUF012


class TestHNSW(PgvectorContract):
    recall_floor = 0.98
    option = "ef_search"
    settings = {"index": "hnsw"}  # noqa: RUF012


class TestIVFFlat(PgvectorContract):
    recall_floor = 0.9
    largest = 65504
    option = "probes"
    settings = {"index": "ivfflat", "lists": 16, "metric": "l2", "dtype": "float16"}  # noqa: RUF012


class TestBits(PgvectorContract):
    recall_floor = 0.3
    settings = {"index": "hnsw", "dtype": "bit"}  # noqa: RUF012


class TestSparse(IndexContract):
    keeps_files = False
    returns_only_matches = True

    @pytest.fixture
    def index(self, server: str) -> PgvectorIndex:
        return PgvectorIndex(server, metric="ip", dtype="sparse", index=None)

    @pytest.fixture
    def embeddings(self) -> Sparse:
        """Weights of common terms, and one term for each row of its own."""
        rng = np.random.default_rng(0)
        weights = (rng.random((ROWS + QUERIES, 400)) * (rng.random((ROWS + QUERIES, 400)) < 0.05)).astype(np.float32)
        weights = np.hstack([weights, 9 * np.eye(ROWS + QUERIES, dtype=np.float32)])
        rows, columns = np.nonzero(weights)
        indptr = np.searchsorted(rows, np.arange(len(weights) + 1))
        return Sparse(indptr, columns, weights[rows, columns], weights.shape[1])


class TestText(IndexContract):
    keeps_files = False
    returns_only_matches = True

    @pytest.fixture
    def index(self, server: str) -> PostgresTextIndex:
        return PostgresTextIndex(server)

    @pytest.fixture
    def embeddings(self) -> Any:
        """Texts of common words, and one word for each of its own."""
        rng = np.random.default_rng(0)
        words = np.array([f"word{i}" for i in range(60)])
        texts = np.empty(ROWS + QUERIES, dtype=np.object_)
        texts[:] = [" ".join([*rng.choice(words, 8, replace=False), f"own{i}"]) for i in range(len(texts))]
        return texts

    def test_it_finds_what_an_exact_index_finds(self, filled: Index[Any], keys: Ids, rows: Any, queries: Any) -> None:
        """The reference is what the words say: who shares one matches, and no one else."""
        found = filled.search(queries, ROWS)
        for query, ids in zip(queries, found.ids, strict=True):
            wanted = [key for key, text in zip(keys, rows, strict=True) if set(query.split()) & set(text.split())]
            np.testing.assert_array_equal(np.sort(ids[ids >= 0]), wanted)
