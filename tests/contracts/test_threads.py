"""Indexes keep the contract in two threads too: everywhere else, tests work in one."""

from __future__ import annotations

import pytest

from reperio.indexes import FaissIndex, FlatIndex, QuantizedIndex, QueryAwareIndex
from reperio.testing.index import IndexContract

pytestmark = pytest.mark.usefixtures("two_threads")


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
