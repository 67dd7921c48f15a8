"""usearch: equal to usearch itself, in every precision."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from usearch.index import Index

from reperio.errors import ConfigurationError
from reperio.indexes import FlatIndex, UsearchIndex
from reperio.testing.index import clustered


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return clustered(2000, 64)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return clustered(60, 64, seed=1)


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean([np.isin(w, f).mean() for f, w in zip(found, wanted, strict=True)]))


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_results_are_those_of_usearch_on_the_same_graph(
    metric: Any, dtype: Any, rows: np.ndarray, queries: np.ndarray, tmp_path: Path
) -> None:
    index = UsearchIndex(metric, dtype=dtype)
    index.add(np.arange(2000) * 2, rows)
    index.save(tmp_path / "index")
    bare = Index.restore(tmp_path / "index" / "graph.usearch", expansion_search=64)
    assert bare.specs["dtype"] == index._engine.graph.dtype
    matches, found = bare.search(queries, 10), index.search(queries, 10)
    scores = -matches.distances if metric == "l2" else 1 - matches.distances
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol={"f32": 1e-6, "bf16": 1e-2, "f16": 1e-3}[dtype])
    assert recall(found.ids, 2 * matches.keys.astype(np.int64)) == 1


@pytest.mark.parametrize(("dtype", "error"), [("f32", 0), ("bf16", 2e-3), ("f16", 3e-4), ("i8", 1e-2)])
def test_recall_and_scores_are_as_good_as_the_precision(
    dtype: Any, error: float, rows: np.ndarray, queries: np.ndarray
) -> None:
    index, exact = UsearchIndex(dtype=dtype), FlatIndex()
    for each in (index, exact):
        each.add(np.arange(2000), rows)
    found = index.search(queries, 10, options={"expansion_search": 200})
    assert recall(found.ids, exact.search(queries, 10).ids) >= (0.98 if dtype != "i8" else 0.95)
    apart = float(np.abs(found.scores - exact.score(queries, found.ids)).max())
    assert apart <= error
    assert (apart == 0) is index.lossless


def test_signs_are_ranked_again_by_the_whole_query(rows: np.ndarray, queries: np.ndarray) -> None:
    index, exact = UsearchIndex(dtype="b1"), FlatIndex()
    for each in (index, exact):
        each.add(np.arange(2000), rows)
    found, wanted = index.search(queries, 10), exact.search(queries, 10).ids
    signs = np.where(rows > 0, 1, -1) / 8
    np.testing.assert_allclose(found.scores, np.take_along_axis(queries @ signs.T, found.ids, axis=1), atol=1e-6)
    by_bits = np.argsort(((rows > 0)[None] != (queries > 0)[:, None]).sum(axis=2), axis=1, kind="stable")[:, :10]
    assert recall(found.ids, wanted) > recall(by_bits, wanted) + 0.05


@pytest.mark.parametrize("dim", [1, 7, 8, 60])
def test_signs_need_not_fill_whole_bytes(dim: int) -> None:
    index, rows = UsearchIndex(dtype="b1"), clustered(300, dim)
    index.add(np.arange(300), rows)
    found = index.search(rows[:10], 300)
    np.testing.assert_array_equal(np.sort(found.ids, axis=1), np.tile(np.arange(300), (10, 1)))
    signs = np.where(rows > 0, 1, -1).astype(np.float32) / np.sqrt(dim)
    np.testing.assert_allclose(found.scores[:, 0], (rows[:10] @ signs.T).max(axis=1), atol=1e-6)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "i8", "b1"])
def test_compacting_rounds_nothing_again(dtype: Any, rows: np.ndarray, queries: np.ndarray) -> None:
    index, keys = UsearchIndex(dtype=dtype), np.arange(2000)
    index.add(keys, rows)
    index.remove(keys[::2])
    pairs = np.tile(keys, (60, 1))
    before = index.score(queries, pairs)
    index.compact()
    np.testing.assert_array_equal(index.score(queries, pairs), before)


@pytest.mark.parametrize("dtype", ["i8", "b1"])
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_codes_without_lengths_are_for_cosine_only(dtype: Any, metric: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"{dtype}.*{metric}"):
        UsearchIndex(metric, dtype=dtype)


@pytest.mark.parametrize("argument", ["connectivity", "expansion_add", "expansion_search"])
def test_a_wrong_argument_is_refused_by_name(argument: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{argument} is 0"):
        UsearchIndex(**{argument: 0})
    with pytest.raises(ConfigurationError, match=r"'f64'.*f32, bf16, f16, i8, b1"):
        UsearchIndex(dtype="f64")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("from reperio.indexes import *\nUsearchIndex().add(k, v); FaissIndex().add(k, v)", "fine"),
        ("import usearch\nfrom reperio.indexes import *\nFaissIndex().add(k, v)", "import faiss"),
    ],
)
def test_faiss_and_usearch_live_in_one_process(code: str, says: str) -> None:
    """FAISS crashes the interpreter when usearch was imported before it: it is imported first, or refused."""
    script = f"import numpy as np\nk, v = np.arange(2), np.eye(2, dtype=np.float32)\n{code}\nprint('fine')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode >= 0
    assert says in done.stdout + done.stderr
