"""hnswlib: equal to hnswlib itself, and what it lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import pytest

from reperio.errors import ConfigurationError
from reperio.indexes import HnswlibIndex
from reperio.testing.index import clustered


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_results_are_those_of_hnswlib_on_the_same_graph(metric: Any, tmp_path: Path) -> None:
    rows, queries = 3 * clustered(2000, 32), clustered(50, 32, seed=1)
    index = HnswlibIndex(metric)
    index.add(np.arange(2000) * 2, rows)
    index.save(tmp_path / "index")
    bare = hnswlib.Index("l2" if metric == "l2" else "ip", 32)
    bare.load_index(str(tmp_path / "index" / "graph.hnsw"))
    bare.set_ef(64)
    labels, distances = bare.knn_query(queries, 10)
    found = index.search(queries, 10)
    scores = -distances if metric == "l2" else 1 - distances
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=2e-5)
    assert (found.ids == 2 * labels.astype(np.int64)).mean() > 0.98


@pytest.mark.parametrize("argument", ["m", "ef_construction", "ef"])
@pytest.mark.parametrize("value", [0, -1, "16"])
def test_a_wrong_argument_is_refused_by_name(argument: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{argument} is {value!r}"):
        HnswlibIndex(**{argument: value})


def test_its_copy_of_the_vectors_stays_on_the_disk_until_rows_are_added(tmp_path: Path) -> None:
    index, rows = HnswlibIndex(), clustered(500, 16)
    index.add(np.arange(500), rows)
    index.save(tmp_path / "index")
    opened = HnswlibIndex.open(tmp_path / "index")
    assert isinstance(opened._engine._vectors.base, np.memmap)
    np.testing.assert_array_equal(opened.search(rows, 3).ids, index.search(rows, 3).ids)
    opened.add(np.array([500]), -rows[:1])
    assert opened.search(-rows[:1], 1).ids.tolist() == [[500]]


def test_a_search_for_more_than_it_reaches_does_not_spoil_that_of_others() -> None:
    """hnswlib refuses the whole batch where one query reaches fewer rows than asked for."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1500, 8)).astype(np.float32) * rng.lognormal(0, 2, (1500, 1)).astype(np.float32)
    index = HnswlibIndex("ip", m=2, ef_construction=4)
    index.add(np.arange(1500), rows)
    together = index.search(rows[:40], 60)
    for i in range(40):
        np.testing.assert_array_equal(index.search(rows[i : i + 1], 60).ids[0], together.ids[i])
