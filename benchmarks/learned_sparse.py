"""Learned-sparse search: exact beside an inverted scipy product, approximate beside bare Seismic.

200k rows of about 120 weights over 30k columns, generated around topics as BERT-sized SPLADE models spread them: a
few columns in a tenth of all rows, most in few. Then rows at random, without topics or frequent columns, where no
bound rules a row out. Both are generated. Times are CPU milliseconds a query, on one core.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import seismic

from benchmarks.measuring import in_turns, one_core, paired, spread, table
from reperio.embeddings import Sparse, take
from reperio.indexes import InvertedIndex, SeismicIndex

ROWS, COLUMNS, TERMS, ASKED = 200_000, 30_000, 120, 28
QUERIES = 200
SETTINGS = {"query_cut": 10, "heap_factor": 0.7}


def rows(count: int, terms: int, *, seed: int) -> Sparse:
    """Weights around 2,000 topics; two thirds of a row's columns are its topic's."""
    world, rng = np.random.default_rng(0), np.random.default_rng(seed)
    frequency = 1 / np.arange(10, COLUMNS + 10) ** 0.8
    frequency = np.cumsum(frequency / frequency.sum())
    topics = np.searchsorted(frequency, world.random((2000, 160)))
    own = rng.random((count, terms)) < 0.67
    chosen = topics[rng.integers(0, 2000, count)[:, None], rng.integers(0, 160, (count, terms))]
    columns = np.where(own, chosen, np.searchsorted(frequency, rng.random((count, terms))))
    weights = np.log1p(rng.exponential(1.5, (count, terms))).astype(np.float32)
    owner = np.repeat(np.arange(count), terms)
    matrix = scipy.sparse.coo_array((weights.ravel(), (owner, columns.ravel())), shape=(count, COLUMNS)).tocsr()
    matrix.sort_indices()
    return Sparse(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data, COLUMNS)


def uniform(count: int, terms: int, *, seed: int) -> Sparse:
    """Weights and columns without any order."""
    rng = np.random.default_rng(seed)
    columns, weights = rng.integers(0, COLUMNS, (count, terms)), rng.random((count, terms)).astype(np.float32)
    owner = np.repeat(np.arange(count), terms)
    matrix = scipy.sparse.coo_array((weights.ravel(), (owner, columns.ravel())), shape=(count, COLUMNS)).tocsr()
    matrix.sort_indices()
    return Sparse(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data, COLUMNS)


def run() -> dict[str, Any]:
    return {"topics": _topics(), "uniform": _uniform()}


def _uniform() -> dict[str, Any]:
    held, asked = uniform(ROWS, TERMS, seed=1), uniform(QUERIES, ASKED, seed=2)
    singles = [take(asked, np.array([i])) for i in range(QUERIES)]
    index = InvertedIndex()
    index.add(np.arange(ROWS), held)
    product = scipy.sparse.csr_array((held.weights, held.indices, held.indptr), shape=(ROWS, COLUMNS)).tocsc()
    out: dict[str, Any] = {"rows": ROWS, "weights a row": len(held.indices) / ROWS}
    report: list[dict[str, Any]] = []
    for k in (10, 100):
        ways: dict[str, Callable[[], object]] = {
            "InvertedIndex": lambda k=k: index.search(asked, k),
            "InvertedIndex, one by one": lambda k=k: [index.search(s, k) for s in singles],
            "scipy CSC": lambda k=k: [_scipy(product, s, k) for s in singles],
        }
        with one_core():
            times = in_turns(ways, repeats=7, clock=time.process_time)
        each = {way: [s * 1e3 / QUERIES for s in seconds] for way, seconds in times.items()}
        found = index.search(asked, k).ids
        out[f"k = {k}"] = {
            "milliseconds": {way: spread(values) for way, values in each.items()},
            "scipy / InvertedIndex": paired(each["scipy CSC"], each["InvertedIndex"]),
            "scipy / one by one": paired(each["scipy CSC"], each["InvertedIndex, one by one"]),
            "recall": _recall(found, np.stack([_scipy(product, s, k) for s in singles])),
        }
        report += [{"uniform, k": k, "way": way, **spread(values)} for way, values in each.items()]
    table(report)
    return out


def _topics() -> dict[str, Any]:
    held, asked = rows(ROWS, TERMS, seed=1), rows(QUERIES, ASKED, seed=2)
    singles = [take(asked, np.array([i])) for i in range(QUERIES)]
    index, approximate = InvertedIndex(), SeismicIndex(seal_at=ROWS, **SETTINGS)
    start = time.process_time()
    index.add(np.arange(ROWS), held)
    built = time.process_time() - start
    start = time.process_time()
    approximate.add(np.arange(ROWS), held)
    sealed = time.process_time() - start
    product = scipy.sparse.csr_array((held.weights, held.indices, held.indptr), shape=(ROWS, COLUMNS)).tocsc()
    engine, ask = _bare(approximate, singles)
    out: dict[str, Any] = {
        "rows": ROWS,
        "weights a row": len(held.indices) / ROWS,
        "build CPU seconds": {"InvertedIndex": built, "SeismicIndex": sealed},
    }
    report: list[dict[str, Any]] = []
    for k in (10, 100):
        ways: dict[str, Callable[[], object]] = {
            "InvertedIndex": lambda k=k: index.search(asked, k),
            "InvertedIndex, one by one": lambda k=k: [index.search(s, k) for s in singles],
            "scipy CSC": lambda k=k: [_scipy(product, s, k) for s in singles],
            "SeismicIndex": lambda k=k: approximate.search(asked, k),
            "bare Seismic": lambda k=k: engine.batch_search(*ask, k, SETTINGS["query_cut"], SETTINGS["heap_factor"]),
        }
        with one_core():
            times = in_turns(ways, repeats=7, clock=time.process_time)
        each = {way: [s * 1e3 / QUERIES for s in seconds] for way, seconds in times.items()}
        best = index.search(asked, k)
        out[f"k = {k}"] = {
            "milliseconds": {way: spread(values) for way, values in each.items()},
            "scipy / InvertedIndex": paired(each["scipy CSC"], each["InvertedIndex"]),
            "scipy / one by one": paired(each["scipy CSC"], each["InvertedIndex, one by one"]),
            "SeismicIndex / bare": paired(each["SeismicIndex"], each["bare Seismic"]),
            "recall of InvertedIndex": _recall(best.ids, np.stack([_scipy(product, s, k) for s in singles])),
            "recall of SeismicIndex": _recall(approximate.search(asked, k).ids, best.ids),
        }
        report += [{"k": k, "way": way, **spread(values)} for way, values in each.items()]
    table(report)
    for k in (10, 100):
        print(k, {name: value for name, value in out[f"k = {k}"].items() if name != "milliseconds"})
    return out


def _scipy(product: Any, query: Sparse, k: int) -> np.ndarray:
    scores = product[:, query.indices] @ query.weights
    lead = np.argpartition(-scores, k)[:k]
    return lead[np.lexsort((lead, -scores[lead]))]


def _bare(index: SeismicIndex, singles: list[Sparse]) -> tuple[Any, tuple[Any, ...]]:
    """Seismic's own index, and the queries in its own form."""
    (sealed,) = index._now.segments
    string = seismic.get_seismic_string()
    names = [np.searchsorted(sealed.columns, s.indices).astype(string) for s in singles]
    return sealed.engine, (np.arange(len(singles)).astype(string), names, [s.weights for s in singles])


def _recall(found: np.ndarray, best: np.ndarray) -> float:
    return float(np.mean([np.isin(b, f).mean() for f, b in zip(found, best, strict=True)]))
