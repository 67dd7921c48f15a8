"""Every index keeps the contract."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from reperio.embeddings import Sparse
from reperio.indexes import BM25Index, FaissIndex, FlatIndex
from reperio.indexes.flat import Metric
from reperio.testing.index import QUERIES, ROWS, IndexContract, clustered


class TestFlatIndex(IndexContract):
    @pytest.fixture(params=["cosine", "ip", "l2"])
    def index(self, request: pytest.FixtureRequest) -> FlatIndex:
        return FlatIndex(request.param)


class TestBM25Index(IndexContract):
    returns_only_matches = True

    @pytest.fixture
    def index(self) -> BM25Index:
        return BM25Index()

    @pytest.fixture
    def embeddings(self) -> Sparse:
        """Counts of common terms, and one term for each row of its own."""
        rng = np.random.default_rng(0)
        counts = rng.poisson(0.05, (ROWS + QUERIES, 400)).astype(np.float32)
        counts = np.hstack([counts, 3 * np.eye(ROWS + QUERIES, dtype=np.float32)])
        rows, columns = np.nonzero(counts)
        indptr = np.searchsorted(rows, np.arange(len(counts) + 1))
        return Sparse(indptr, columns, counts[rows, columns], counts.shape[1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Metric], Path]:
    """Where an index lies that has learnt and holds nothing: training takes long, opening does not."""

    @cache
    def folder(factory: str, metric: Metric) -> Path:
        index = FaissIndex(factory, metric=metric, train_size=500)
        if index.training_size:
            index.train(clustered(ROWS + QUERIES, 32)[:500])
        path = tmp_path_factory.mktemp("trained") / "index"
        index.save(path)
        return path

    return folder


class FaissContract(IndexContract):
    factory: str
    metric: Metric

    @pytest.fixture
    def index(self, trained: Callable[[str, Metric], Path]) -> FaissIndex:
        return FaissIndex.open(trained(self.factory, self.metric))


def contract(factory: str, metric: Metric = "cosine", **attributes: Any) -> type[FaissContract]:
    """The contract for one factory string."""
    return type(f"Test{factory}", (FaissContract,), {"factory": factory, "metric": metric, **attributes})


TestFlat, TestFlatIP, TestFlatL2 = (contract("Flat", metric) for metric in get_args(Metric))
TestHNSW, TestHNSWL2 = (contract("HNSW32", metric, recall_floor=0.98, option="efSearch") for metric in ("cosine", "l2"))
TestIVF, TestIVFL2 = (contract("IVF32,Flat", metric, recall_floor=0.9, option="nprobe") for metric in ("cosine", "l2"))
TestIVFHNSW = contract("IVF32_HNSW16,Flat", recall_floor=0.9)
TestRefined = contract("IVF32,PQ8x4fs,RFlat", recall_floor=0.9, option="k_factor")
TestSQ = contract("SQ8", recall_floor=0.9)
TestHNSWSQ = contract("HNSW32,SQ8", recall_floor=0.9)
TestIVFSQ = contract("IVF32,SQ8", recall_floor=0.9)
TestPCA = contract("PCA16,IVF16,Flat", recall_floor=0.4)
TestPQ = contract("PQ8np", recall_floor=0.4)
TestIVFPQ = contract("IVF32,PQ8x4", recall_floor=0.3)
TestOPQ = contract("OPQ8,IVF16,PQ8np", recall_floor=0.4)
TestHNSWPQ = contract("HNSW16,PQ8x4", recall_floor=0.3)
TestFastScan = contract("PQ8x4fs", recall_floor=0.3, score_tolerance=0.02)
TestAdditive = contract("IVF16,RQ4x4", recall_floor=0.2)
TestRaBitQ = contract("IVF32,RaBitQ", recall_floor=0.4, scores_rows=False)
