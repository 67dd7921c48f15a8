"""The multi-vector index keeps the contract: exact for either metric, and over residual codes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reperio.embeddings import MultiVector, take
from reperio.indexes import MultiVectorIndex
from reperio.testing.index import QUERIES, ROWS, IndexContract, clustered


def texts(rows: int) -> MultiVector:
    """Rows of two to five vectors; those of a row are near one another, as those of a text are."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(2, 6, rows))])
    themes = np.repeat(clustered(rows, 32, seed=1), np.diff(offsets), axis=0)
    vectors = clustered(int(offsets[-1]), 32, seed=2) + 0.5 * themes
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return MultiVector(vectors.astype(np.float32), offsets)


class MultiVectorContract(IndexContract):
    @pytest.fixture
    def embeddings(self) -> MultiVector:
        return texts(ROWS + QUERIES)


class TestMultiVectorIndex(MultiVectorContract):
    @pytest.fixture(params=["cosine", "ip"])
    def index(self, request: pytest.FixtureRequest) -> MultiVectorIndex:
        return MultiVectorIndex(metric=request.param)


class TestWaitingForCodes(MultiVectorContract):
    """Too few rows to learn from: exact still."""

    @pytest.fixture
    def index(self) -> MultiVectorIndex:
        return MultiVectorIndex("residual")


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any, Any], Path]:
    """Where an index lies that has learnt and holds nothing, by bits and metric."""

    @cache
    def folder(bits: Any, metric: Any) -> Path:
        index = MultiVectorIndex("residual", bits=bits, centroids=64, metric=metric)
        index.train(take(texts(ROWS), np.arange(300)))
        path = tmp_path_factory.mktemp("learnt") / "index"
        index.save(path)
        return path

    return folder


class CodedContract(MultiVectorContract):
    bits: int
    metric: str = "cosine"

    @pytest.fixture
    def index(self, learnt: Callable[[Any, Any], Path]) -> MultiVectorIndex:
        return MultiVectorIndex.open(learnt(self.bits, self.metric))


class TestEightBits(CodedContract):
    bits, recall_floor, option = 8, 0.99, "nprobe"


class TestFourBits(CodedContract):
    bits, metric, recall_floor = 4, "ip", 0.99


class TestTwoBits(CodedContract):
    bits, recall_floor = 2, 0.98
