"""FAISS on a GPU: the same results, and a clear word where there is none."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import faiss
import numpy as np
import pytest

from reperio.errors import ConfigurationError, UnsupportedOperation
from reperio.indexes import FaissIndex
from reperio.indexes.gpu import check_device
from reperio.registry import build
from reperio.testing.index import clustered

BUILT_FOR_GPUS = hasattr(faiss, "StandardGpuResources")
THERE = faiss.get_num_gpus()
on_gpu = pytest.mark.skipif(not THERE, reason="FAISS finds no GPU here")

ROWS = 4000
VECTORS = clustered(ROWS + 40, 32)
KEYS = np.arange(ROWS) * 3
QUERIES = VECTORS[ROWS:]


# Where there is none


@pytest.mark.skipif(BUILT_FOR_GPUS, reason="FAISS is built for GPUs here")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_a_build_without_gpus_says_how_to_swap_it(device: str) -> None:
    with pytest.raises(UnsupportedOperation) as caught:
        FaissIndex("IVF16,Flat", device=device)
    assert f"{faiss.__version__}, as installed, is built without GPU support" in caught.value.problem
    assert repr(device) in caught.value.problem
    assert "pip uninstall -y faiss-cpu && pip install 'reperio[faiss-gpu]'" in caught.value.fix
    assert "overwrite each other" in caught.value.fix


@pytest.mark.skipif(not BUILT_FOR_GPUS or THERE > 0, reason="FAISS is not built for GPUs, or finds one")
def test_a_machine_without_gpus_is_named() -> None:
    with pytest.raises(UnsupportedOperation, match="finds no GPU"):
        FaissIndex("IVF16,Flat", device="cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda0", "CPU", ""])
def test_another_device_is_refused_by_name(device: str) -> None:
    with pytest.raises(ConfigurationError, match=f"device is {device!r}"):
        FaissIndex(device=device)


def test_an_index_from_a_gpu_opens_where_there_is_none(tmp_path: Path) -> None:
    """Its file is one of main memory; only the argument says where it was."""
    index = FaissIndex("IVF16,Flat", train_size=1000)
    index.add(KEYS, VECTORS[:ROWS])
    index.device = "cuda"
    index.save(tmp_path / "index")
    opened = FaissIndex.open(tmp_path / "index", device="cpu")
    np.testing.assert_array_equal(opened.search(QUERIES, 5).ids, index.search(QUERIES, 5).ids)
    assert opened.spec["device"] == "cpu"
    if not THERE:
        with pytest.raises(UnsupportedOperation):
            FaissIndex.open(tmp_path / "index")


def test_the_central_processor_needs_no_gpu() -> None:
    assert check_device("cpu") is None
    assert build({"type": "FaissIndex", "device": "cpu"}).device == "cpu"
    assert find_spec("faiss") is not None


# Where there is one


@on_gpu
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=f"there are {THERE} GPUs"):
        FaissIndex(device=f"cuda:{THERE}")


@on_gpu
@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "IVF16,SQ8", "PCA16,IVF16,Flat"])
def test_a_gpu_finds_what_the_central_processor_finds(factory: str, metric: str, tmp_path: Path) -> None:
    options = {"nprobe": 16} if "IVF" in factory else None
    index = FaissIndex(factory, metric=metric, train_size=1000, options=options, device="cuda")  # type: ignore[arg-type]
    index.add(KEYS, VECTORS[:ROWS])
    index.save(tmp_path / "index")
    twin = FaissIndex.open(tmp_path / "index", device="cpu")
    for removed in (KEYS[:0], KEYS[:500], KEYS[500:3000]):
        index.remove(removed)
        twin.remove(removed)
        for k in (1, 10, 1500):
            for allowed in (None, KEYS[::2], KEYS[-20:]):
                a, b = index.search(QUERIES, k, allowed=allowed), twin.search(QUERIES, k, allowed=allowed)
                np.testing.assert_allclose(a.scores, b.scores, atol=1e-3)
                assert (a.ids == b.ids).mean() > 0.98
    pairs = np.tile(KEYS[:50], (len(QUERIES), 1))
    np.testing.assert_allclose(index.score(QUERIES, pairs), twin.score(QUERIES, pairs), atol=1e-4)


@on_gpu
def test_a_graph_is_refused_on_a_gpu() -> None:
    with pytest.raises(ConfigurationError, match="put on cuda 'HNSW16'"):
        FaissIndex("HNSW16", device="cuda").add(KEYS, VECTORS[:ROWS])


@on_gpu
def test_rows_on_disk_are_not_searched_on_a_gpu(tmp_path: Path) -> None:
    index = FaissIndex("Flat", device="cuda")
    index.add(KEYS, VECTORS[:ROWS])
    index.save(tmp_path / "index")
    with pytest.raises(UnsupportedOperation, match="cannot be searched on cuda"):
        FaissIndex.open(tmp_path / "index", mmap=True)
