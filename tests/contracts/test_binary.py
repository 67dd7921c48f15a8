"""Binary codes keep the contract; their recall is what one bit a dimension can give."""

from __future__ import annotations

import numpy as np
import pytest

from reperio.embeddings import Dense
from reperio.indexes import BinaryIndex
from reperio.testing.index import QUERIES, ROWS, IndexContract, clustered


class BinaryContract(IndexContract):
    recall_floor = 0.45

    @pytest.fixture
    def embeddings(self) -> Dense:
        """Wide enough for codes to tell rows apart."""
        return clustered(ROWS + QUERIES, 512)


class TestBFlat(BinaryContract):
    @pytest.fixture
    def index(self) -> BinaryIndex:
        return BinaryIndex()


class TestBFlatMedian(BinaryContract):
    @pytest.fixture
    def index(self) -> BinaryIndex:
        return BinaryIndex(calibration="median", train_size=500)


class TestBFlatUncalibrated(BinaryContract):
    """Before there is a sample to learn from."""

    @pytest.fixture
    def index(self) -> BinaryIndex:
        return BinaryIndex(calibration="median", train_size=5000)


class TestBHNSW(BinaryContract):
    option = "efSearch"

    @pytest.fixture
    def index(self) -> BinaryIndex:
        return BinaryIndex("BHNSW32")


class TestBIVF(BinaryContract):
    @pytest.fixture
    def index(self) -> BinaryIndex:
        return BinaryIndex("BIVF16", train_size=300)


class TestOddDimensions(BinaryContract):
    """No whole number of bytes."""

    @pytest.fixture
    def index(self) -> BinaryIndex:
        return BinaryIndex("BHNSW16")

    @pytest.fixture
    def embeddings(self) -> Dense:
        return np.ascontiguousarray(clustered(ROWS + QUERIES, 509))
