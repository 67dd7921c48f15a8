"""Run by `test_threads`: indexes keep the contract where BLAS and FAISS share out what they do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import faiss
import pytest

from reperio.indexes import FaissIndex, FlatIndex, QuantizedIndex, QueryAwareIndex
from reperio.testing.index import IndexContract


def test_every_thread_of_a_program_has_two() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(faiss.omp_get_max_threads).result() == 2


class TestFlat(IndexContract):
    @pytest.fixture
    def index(self) -> FlatIndex:
        return FlatIndex()


class TestQuantized(IndexContract):
    recall_floor = 0.97

    @pytest.fixture
    def index(self) -> QuantizedIndex:
        return QuantizedIndex("int8", train_size=500)


class TestQueryAware(IndexContract):
    recall_floor = 0.9

    @pytest.fixture
    def index(self) -> QueryAwareIndex:
        return QueryAwareIndex("cosine", batch=100, options={"ef": 24})


class TestFaiss(IndexContract):
    @pytest.fixture
    def index(self) -> FaissIndex:
        return FaissIndex("Flat")


class TestFaissGraph(IndexContract):
    recall_floor = 0.98

    @pytest.fixture
    def index(self) -> FaissIndex:
        return FaissIndex("HNSW32")
