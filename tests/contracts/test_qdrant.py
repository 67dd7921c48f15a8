"""Qdrant keeps the contract, in the client's memory mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reperio.embeddings import Ids, Sparse, take
from reperio.indexes import QdrantIndex
from reperio.protocols import Index
from reperio.testing.index import QUERIES, ROWS, IndexContract

pytest.importorskip("qdrant_client")


class TestQdrantIndex(IndexContract):
    keeps_files = False
    option = "hnsw_ef"

    @pytest.fixture
    def index(self) -> QdrantIndex:
        return QdrantIndex(":memory:", metric="l2")


class TestQdrantIndexSparse(IndexContract):
    keeps_files = False
    returns_only_matches = True
    option = "exact"

    @pytest.fixture
    def index(self) -> QdrantIndex:
        return QdrantIndex(":memory:", vectors="sparse")

    @pytest.fixture
    def embeddings(self) -> Sparse:
        """Weights of common columns, and one column for each row of its own."""
        rng = np.random.default_rng(0)
        dense = rng.random((ROWS + QUERIES, 60), dtype=np.float32)
        dense[rng.random(dense.shape) > 0.05] = 0
        dense = np.hstack([dense, 3 * np.eye(ROWS + QUERIES, dtype=np.float32)])
        rows, columns = np.nonzero(dense)
        return Sparse(np.searchsorted(rows, np.arange(len(dense) + 1)), columns, dense[rows, columns], dense.shape[1])

    # The client's memory mode compares a sparse query with every row in Python, so some laws are held to fewer.

    def test_a_row_finds_itself_first(self, filled: Index[Any], keys: Ids, rows: Any) -> None:
        some = np.arange(0, len(keys), 20)
        np.testing.assert_array_equal(filled.search(take(rows, some), 1).ids[:, 0], keys[some])

    def test_threads_may_search_at_once(self, filled: Index[Any], keys: Ids, queries: Any) -> None:
        super().test_threads_may_search_at_once(filled, keys, take(queries, np.arange(4)))

    def test_the_last_row_can_be_removed(self, filled: Index[Any], keys: Ids, rows: Any, queries: Any) -> None:
        assert filled.remove(keys) == len(keys)
        assert len(filled) == 0
        assert (filled.search(queries, 5).ids == -1).all()
        filled.add(keys, rows)
        assert len(filled) == len(keys)
