"""Every index of sparse rows keeps the contract."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from reperio.embeddings import Sparse
from reperio.indexes import InvertedIndex, SeismicIndex
from reperio.indexes.postings import Precision
from reperio.testing.index import QUERIES, ROWS, IndexContract


class SparseContract(IndexContract):
    returns_only_matches = True

    @pytest.fixture
    def embeddings(self) -> Sparse:
        """Weights of common terms, and one heavy term for each row of its own."""
        rng = np.random.default_rng(0)
        weights = rng.exponential(1, (ROWS + QUERIES, 300)) * (rng.random((ROWS + QUERIES, 300)) < 0.1)
        weights = np.hstack([weights, 9 * np.eye(ROWS + QUERIES)]).astype(np.float32)
        rows, columns = np.nonzero(weights)
        indptr = np.searchsorted(rows, np.arange(len(weights) + 1))
        return Sparse(indptr, columns, weights[rows, columns], weights.shape[1])


class TestInvertedIndex(SparseContract):
    @pytest.fixture(params=get_args(Precision))
    def index(self, request: pytest.FixtureRequest) -> InvertedIndex:
        return InvertedIndex(precision=request.param)


class TestSeismicIndex(SparseContract):
    recall_floor = 0.9
    option = "query_cut"

    @pytest.fixture
    def index(self) -> SeismicIndex:
        return SeismicIndex(seal_at=400, query_cut=40, heap_factor=0.4)
