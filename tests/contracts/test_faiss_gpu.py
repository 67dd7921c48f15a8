"""FAISS on a GPU keeps the contract that it keeps in main memory."""

from __future__ import annotations

import faiss
import pytest

from reperio.indexes import FaissIndex
from reperio.testing.index import IndexContract


@pytest.mark.skipif(not faiss.get_num_gpus(), reason="FAISS finds no GPU here")
class GpuContract(IndexContract):
    factory: str
    score_tolerance = 1e-3

    @pytest.fixture
    def index(self) -> FaissIndex:
        return FaissIndex(self.factory, train_size=500, device="cuda")


class TestFlatOnGpu(GpuContract):
    factory = "Flat"


class TestIVFOnGpu(GpuContract):
    factory = "IVF32,Flat"
    recall_floor = 0.9


class TestIVFSQOnGpu(GpuContract):
    factory = "IVF32,SQ8"
    recall_floor = 0.9
