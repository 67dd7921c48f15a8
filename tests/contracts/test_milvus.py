"""The embedded Milvus keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from reperio.embeddings import Sparse
from reperio.indexes import MilvusIndex
from reperio.testing.index import QUERIES, ROWS, IndexContract

pytest.importorskip("milvus_lite")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = str(tmp_path_factory.mktemp("milvus") / "rows.db")
    yield path
    MilvusIndex(path).close()


class TestMilvusIndex(IndexContract):
    keeps_files = False
    recall_floor = 0.98
    option = "ef"

    @pytest.fixture
    def index(self, uri: str) -> MilvusIndex:
        return MilvusIndex(uri)


class TestMilvusIndexSparse(IndexContract):
    keeps_files = False
    returns_only_matches = True

    @pytest.fixture
    def index(self, uri: str) -> MilvusIndex:
        return MilvusIndex(uri, vectors="sparse")

    @pytest.fixture
    def embeddings(self) -> Sparse:
        """Weights of common columns, and one column for each row of its own."""
        rng = np.random.default_rng(0)
        dense = rng.random((ROWS + QUERIES, 60), dtype=np.float32)
        dense[rng.random(dense.shape) > 0.05] = 0
        dense = np.hstack([dense, 3 * np.eye(ROWS + QUERIES, dtype=np.float32)])
        rows, columns = np.nonzero(dense)
        return Sparse(np.searchsorted(rows, np.arange(len(dense) + 1)), columns, dense[rows, columns], dense.shape[1])
