"""`QuantizedIndex` keeps the contract, in every quantisation."""

from __future__ import annotations

import pytest

from reperio.indexes import QuantizedIndex
from reperio.testing.index import IndexContract


class TestFloat16(IndexContract):
    recall_floor = 0.98
    largest = 65504

    @pytest.fixture
    def index(self) -> QuantizedIndex:
        return QuantizedIndex("float16", metric="ip", train_size=500)


class TestInt8(IndexContract):
    recall_floor = 0.97

    @pytest.fixture(params=["cosine", "l2"])
    def index(self, request: pytest.FixtureRequest) -> QuantizedIndex:
        return QuantizedIndex("int8", metric=request.param, train_size=500)


class TestBinary(IndexContract):
    """32 dimensions leave 32 bits."""

    recall_floor = 0.5

    @pytest.fixture
    def index(self) -> QuantizedIndex:
        return QuantizedIndex("binary", train_size=500)


class TestFull(IndexContract):
    recall_floor = 0.98

    @pytest.fixture
    def index(self) -> QuantizedIndex:
        return QuantizedIndex("binary", rescore="full", oversample=16, train_size=500)


class TestTruncated(IndexContract):
    """Half of the dimensions of vectors that were not made for it."""

    recall_floor = 0.55

    @pytest.fixture
    def index(self) -> QuantizedIndex:
        return QuantizedIndex("int8", dims=16, train_size=500)
