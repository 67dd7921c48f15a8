"""The query-aware graph keeps the contract."""

from __future__ import annotations

from typing import get_args

import pytest

from reperio.indexes import QueryAwareIndex
from reperio.indexes.flat import Metric
from reperio.testing.index import QUERIES, ROWS, IndexContract, clustered

SMALL = {"ef": 24}
"""So few that 600 rows are walked, not scanned."""


class TestTaught(IndexContract):
    """By queries like those asked."""

    recall_floor = 0.9

    @pytest.fixture(params=get_args(Metric))
    def index(self, request: pytest.FixtureRequest) -> QueryAwareIndex:
        index = QueryAwareIndex(request.param, batch=100, options=SMALL)
        index.learn(clustered(ROWS + QUERIES, 32)[::2])
        return index

    def test_it_walks(self, filled: QueryAwareIndex) -> None:
        """Else this class would test an exact scan."""
        rows = clustered(ROWS + QUERIES, 32)[:100]
        assert filled.learned == "queries"
        assert filled.touched(rows, 10).mean() < 0.8 * ROWS


class TestUntaught(IndexContract):
    """Rows stand in for queries."""

    recall_floor = 0.9
    option = "ef"

    @pytest.fixture
    def index(self) -> QueryAwareIndex:
        return QueryAwareIndex("cosine", batch=100, options=SMALL)


class TestExact(IndexContract):
    """So few rows that none is linked."""

    @pytest.fixture
    def index(self) -> QueryAwareIndex:
        return QueryAwareIndex()
