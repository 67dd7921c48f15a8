"""Indexes behind transforms keep the contract."""

from __future__ import annotations

import pytest

from reperio.indexes import FaissIndex, FlatIndex, TransformedIndex
from reperio.indexes.transforms import Centre, Normalise, NormCoordinate, Truncate
from reperio.testing.index import QUERIES, ROWS, IndexContract, clustered


class TestExactlyBehind(IndexContract):
    """Exact in front of an exact index, whatever the transforms."""

    @pytest.fixture(params=["centre", "centre-norm", "normalise"])
    def index(self, request: pytest.FixtureRequest) -> TransformedIndex:
        behind, transforms = {
            "centre": (FlatIndex("ip"), [Centre()]),
            "centre-norm": (FlatIndex("l2"), [Centre(), NormCoordinate()]),
            "normalise": (FlatIndex("l2"), [Normalise()]),
        }[request.param]
        return TransformedIndex(behind, transforms, train_size=200)


class TestNothingLearnt(IndexContract):
    """Fewer rows than there must be to learn from: exact, beside an empty index."""

    @pytest.fixture
    def index(self) -> TransformedIndex:
        return TransformedIndex(FlatIndex("l2"), [Centre(), NormCoordinate()])


class TestSomeDoNotFit(IndexContract):
    """What was learnt from is shorter than most of what came: those rows are searched exactly, beside the index."""

    @pytest.fixture
    def index(self) -> TransformedIndex:
        index = TransformedIndex(FlatIndex("l2"), [Centre(), NormCoordinate()])
        index.train(0.98 * clustered(ROWS + QUERIES, 32)[:50])
        return index

    def test_many_do_not_fit(self, filled: TransformedIndex) -> None:
        """Else this class would test the same as another."""
        assert 0.1 * ROWS < filled.waiting < 0.9 * ROWS


class TestHNSWBehind(IndexContract):
    recall_floor = 0.95
    option = "efSearch"

    @pytest.fixture
    def index(self) -> TransformedIndex:
        return TransformedIndex(FaissIndex("HNSW16", metric="l2"), [Centre(), NormCoordinate()], train_size=200)


class TestIVFBehind(IndexContract):
    """The index behind has to learn too."""

    recall_floor = 0.9

    @pytest.fixture
    def index(self) -> TransformedIndex:
        behind = FaissIndex("IVF16,Flat", metric="l2", train_size=500)
        return TransformedIndex(behind, [Centre(), NormCoordinate()], train_size=500)

    def test_both_have_learnt(self, filled: TransformedIndex) -> None:
        """Else this class would test an exact search."""
        assert filled.training_size == 0
        assert len(filled.index) > 0.9 * ROWS


class TestTruncated(IndexContract):
    """Half of the dimensions of vectors that were not made for it."""

    recall_floor = 0.4

    @pytest.fixture
    def index(self) -> TransformedIndex:
        return TransformedIndex(FlatIndex("cosine"), [Truncate(16)])


class TestInsideAnother(IndexContract):
    """Transforms around transforms."""

    @pytest.fixture
    def index(self) -> TransformedIndex:
        inner = TransformedIndex(FlatIndex("l2"), [NormCoordinate()], train_size=200)
        return TransformedIndex(inner, [Centre()], train_size=100)
