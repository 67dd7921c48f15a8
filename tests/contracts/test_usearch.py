"""`UsearchIndex` keeps the contract, in every precision."""

from __future__ import annotations

import pytest

from reperio.indexes import UsearchIndex
from reperio.testing.index import IndexContract


class TestFull(IndexContract):
    recall_floor = 0.98
    option = "expansion_search"

    @pytest.fixture(params=["cosine", "l2"])
    def index(self, request: pytest.FixtureRequest) -> UsearchIndex:
        return UsearchIndex(request.param)


class TestHalf(IndexContract):
    recall_floor = 0.98

    @pytest.fixture
    def index(self) -> UsearchIndex:
        return UsearchIndex("ip", dtype="bf16")


class TestBytes(IndexContract):
    recall_floor = 0.95

    @pytest.fixture
    def index(self) -> UsearchIndex:
        return UsearchIndex(dtype="i8")


class TestSigns(IndexContract):
    """32 dimensions leave 32 bits: many rows share a code with a neighbour."""

    recall_floor = 0.5

    @pytest.fixture
    def index(self) -> UsearchIndex:
        return UsearchIndex(dtype="b1")
