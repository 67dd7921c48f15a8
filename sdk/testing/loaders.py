"""Every class here that reads a folder, each with a small one to damage.

Native formats (FAISS's, usearch's, hnswlib's, Seismic's) are read by those libraries, which trust what they read.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from reperio.artifacts import new_folder, read_folder
from reperio.derived import DerivedIndex, SnapshotTooOld
from reperio.embeddings import Dense, Ids, MultiVector, Sparse
from reperio.indexes.binary import BinaryIndex
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.faiss import FaissIndex
from reperio.indexes.flat import FlatIndex
from reperio.indexes.hnswlib import HnswlibIndex
from reperio.indexes.inverted import InvertedIndex
from reperio.indexes.multivector import MultiVectorIndex
from reperio.indexes.quantization import Quantization
from reperio.indexes.quantized import QuantizedIndex
from reperio.indexes.queryaware import QueryAwareIndex
from reperio.indexes.seismic import SeismicIndex
from reperio.indexes.shards import build_sharded
from reperio.indexes.transformed import TransformedIndex
from reperio.indexes.transforms import Centre, NormCoordinate
from reperio.indexes.usearch import UsearchIndex
from reperio.testing.fuzz import Loader

__all__ = ["NATIVE", "OWN", "loaders"]

_ROWS, _DIM, _QUERIES = 60, 8, 2

OWN = (
    *("read_folder", "Flat", "Inverted", "Inverted compiled", "BM25", "Binary", "MultiVector", "MultiVector coded"),
    *("Quantized float16", "Quantized int8", "Quantized binary", "Quantized full", "QueryAware", "Transformed"),
    "Generations",
)
"""Loaders of formats of our own: nothing but arrays and JSON."""

NATIVE = (
    "Faiss Flat",
    "Faiss HNSW8",
    "Faiss IVF4,Flat",
    "Faiss waiting",
    "Faiss HNSW8 mapped",
    "Faiss IVF4,Flat mapped",
    "Faiss lists on disk",
    "Binary BHNSW8",
    "Seismic",
    "Hnswlib",
    "Usearch",
)


def loaders() -> list[Loader]:
    """All of them."""
    return [
        Loader("read_folder", _save_folder, lambda path: sorted(read_folder(path, "thing").items())),
        _index("Flat", lambda: FlatIndex("l2"), FlatIndex.open, dense),
        _index("Inverted", lambda: InvertedIndex(), InvertedIndex.open, sparse),
        _index("Inverted compiled", lambda: InvertedIndex(), _compiled(InvertedIndex.open), sparse),
        _index("BM25", lambda: BM25Index("okapi"), _compiled(BM25Index.open), sparse),
        _index("Binary", lambda: BinaryIndex("BFlat", calibration="median", train_size=40), BinaryIndex.open, dense),
        _index("Binary BHNSW8", lambda: BinaryIndex("BHNSW8"), BinaryIndex.open, dense),
        _index("MultiVector", lambda: MultiVectorIndex(), MultiVectorIndex.open, several),
        _index("MultiVector coded", _coded, MultiVectorIndex.open, several),
        *(
            _index(f"Quantized {kind}", partial(_quantized, kind), QuantizedIndex.open, dense)
            for kind in get_args(Quantization)
        ),
        _index("Quantized full", lambda: _quantized("int8", rescore="full"), QuantizedIndex.open, dense),
        _index(
            "QueryAware", lambda: QueryAwareIndex(degree=4, batch=40, options={"ef": 2}), QueryAwareIndex.open, dense
        ),
        _index("Transformed", _transformed, TransformedIndex.open, dense),
        Loader("Generations", _save_generations, _ask_generations),
        *(
            _index(f"Faiss {factory}", partial(FaissIndex, factory, train_size=40), FaissIndex.open, dense)
            for factory in ("Flat", "HNSW8", "IVF4,Flat")
        ),
        *(
            _index(f"Faiss {factory} mapped", partial(FaissIndex, factory, train_size=40), _mapped, dense)
            for factory in ("HNSW8", "IVF4,Flat")
        ),
        Loader("Faiss lists on disk", _save_sharded, lambda path: _answers(FaissIndex.open(path), dense)),
        _index("Faiss waiting", lambda: FaissIndex("IVF4,Flat", train_size=1000), FaissIndex.open, dense),
        _index("Seismic", lambda: SeismicIndex(seal_at=40), SeismicIndex.open, sparse),
        _index("Hnswlib", lambda: HnswlibIndex(m=4), HnswlibIndex.open, dense),
        _index("Usearch", lambda: UsearchIndex(connectivity=4), UsearchIndex.open, dense),
    ]


# What is held


def dense(number: int, rows: int) -> Dense:
    """Vectors, the same for the same number."""
    vectors: Dense = np.random.default_rng(number).standard_normal((rows, _DIM)).astype(np.float32)
    return vectors


def sparse(number: int, rows: int) -> Sparse:
    """Counts of 30 terms, one of them in every row; for an odd number halves, which are kept in other arrays."""
    counts = np.random.default_rng(number).poisson(0.2, (rows, 30)).astype(np.float32)
    counts[:, 0] += 1
    counts *= 0.5 if number % 2 else 1
    row, column = np.nonzero(counts)
    return Sparse(np.searchsorted(row, np.arange(rows + 1)), column, counts[row, column], 30)


def several(number: int, rows: int) -> MultiVector:
    """One to three vectors a row."""
    rng = np.random.default_rng(number)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 4, rows))]).astype(np.int64)
    vectors = rng.standard_normal((int(offsets[-1]), _DIM)).astype(np.float32)
    return MultiVector(vectors, offsets)


def _coded() -> MultiVectorIndex:
    index = MultiVectorIndex("residual", centroids=16)
    index.train(several(5, 100))
    return index


def _quantized(kind: Quantization, **settings: Any) -> QuantizedIndex:
    index = QuantizedIndex(kind, **settings)
    index.train(dense(5, 100))
    return index


def _transformed() -> TransformedIndex:
    return TransformedIndex(FlatIndex("l2"), [Centre(), NormCoordinate()], train_size=40)


def _compiled(opened: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Searched by the code for large indexes."""

    def large(path: Path) -> Any:
        index = opened(path)
        index._view.__dict__["compiles"] = True
        return index

    return large


# What is asked


def _index(
    name: str, make: Callable[[], Any], opened: Callable[[Path], Any], rows: Callable[[int, int], Any]
) -> Loader:
    def save(path: Path, number: int) -> None:
        index = make()
        ids = 3 * np.random.default_rng(number).permutation(_ROWS)
        index.add(ids[:50], rows(number, 50))
        index.add(ids[50:], rows(number + 10, 10))
        index.remove(ids[3:8])
        index.save(path)

    def ask(path: Path) -> object:
        return _answers(opened(path), rows)

    return Loader(name, save, ask)


def _answers(index: Any, rows: Callable[[int, int], Any]) -> object:
    """What an index finds and how it scores; AssertionError where that is not well-formed."""
    asked, ids = rows(99, _QUERIES), index.ids
    assert ids.dtype == np.int64, "ids are not whole numbers"
    assert len(ids) == len(index), "ids are not as many as rows"
    assert not len(ids) or (ids[0] >= 0 and (ids[1:] > ids[:-1]).all()), "ids do not ascend from 0"
    found = [index.search(asked, 3), index.search(asked, 2, allowed=ids[::2])]
    for neighbors in found:
        real = neighbors.ids >= 0
        assert np.isin(neighbors.ids[real], ids).all(), "finds a row that is not there"
        assert not np.isnan(neighbors.scores).any(), "a score is no number"
        for some in neighbors.ids:
            assert len(np.unique(some[some >= 0])) == np.count_nonzero(some >= 0), "finds a row twice"
    scores = index.score(asked, np.broadcast_to(ids[:4], (_QUERIES, len(ids[:4]))))
    index.remove(ids[1:2])
    index.add(np.array([7, 500]), rows(98, 2))
    after = index.search(asked, 3)
    return [
        ids.tolist(),
        *(n.ids.tolist() for n in found),
        *(n.scores.tolist() for n in found),
        scores.tolist(),
        after.ids.tolist(),
        after.scores.tolist(),
    ]


def _mapped(path: Path) -> FaissIndex:
    return FaissIndex.open(path, mmap=True)


def _save_sharded(path: Path, number: int) -> None:
    ids, vectors = np.arange(_ROWS), dense(number, _ROWS)
    blocks = [(ids[:30], vectors[:30]), (ids[30:], vectors[30:])]
    build_sharded(blocks, path, factory="IVF4,Flat", memory_budget=1 << 22, sample=dense(5, 200))


def _save_folder(path: Path, number: int) -> None:
    with new_folder(path, "thing", {"number": number, "name": "é", "share": 0.1}) as folder:
        (folder / "data.bin").write_bytes(bytes(range(number, 200)))
        with new_folder(folder / "inner", "inner", {}) as inner:
            (inner / "more.txt").write_text("more")


# Generations


class _Log:
    """A store of a row for each commit; the tenth took the third row away."""

    uuid, floor, writable = "a store", 0, False

    def __init__(self, seq: int) -> None:
        self.seq = seq

    def snapshot(self) -> AbstractContextManager[int]:
        return nullcontext(self.seq)

    def count(self) -> int:
        return len(self.matching(None))

    def matching(self, condition: None, /) -> Ids:
        return np.setdiff1d(np.arange(self.seq), [3] if self.seq >= 10 else [])

    def added_since(self, seq: int, /) -> Ids:
        return self.matching(None)[self.matching(None) >= seq]

    def removed_since(self, seq: int, /) -> Ids:
        return np.array([3] if seq < 10 <= self.seq else [], dtype=np.int64)


def _derived(path: Path, seq: int) -> DerivedIndex:
    vectors, spec = dense(7, 30), {"type": "FlatIndex", "metric": "ip"}
    return DerivedIndex(path, _Log(seq), lambda ids: vectors[ids], spec=spec, fingerprint="f")


def _save_generations(path: Path, number: int) -> None:
    """One to roll back to, after 5 commits, and one after 20 or 12."""
    derived = _derived(path, 5)
    derived.catch_up()
    derived.checkpoint()
    derived = _derived(path, 20 - 8 * number)
    derived.catch_up()
    beside = derived.beside(FlatIndex("ip"))
    derived.advance(beside)
    derived.keep(beside)
    derived.take(beside)


def _ask_generations(path: Path) -> object:
    """The index is a cache: whatever became of it, it must be as the store says."""
    derived = _derived(path, 30)
    try:
        derived.catch_up()
    except SnapshotTooOld:  # as a collection does, whose store has no more commits
        derived.distrust()
        derived.catch_up()
    return derived.seq, derived.index.ids.tolist(), derived.index.search(dense(99, 2), 5).scores.tolist()
