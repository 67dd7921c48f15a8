"""`HnswlibIndex` keeps the contract."""

from __future__ import annotations

import pytest

from reperio.indexes import HnswlibIndex
from reperio.testing.index import IndexContract


class TestHnswlibIndex(IndexContract):
    recall_floor = 0.98
    option = "ef"

    @pytest.fixture(params=["ip", "l2"])
    def index(self, request: pytest.FixtureRequest) -> HnswlibIndex:
        return HnswlibIndex(request.param)
