"""A FAISS index on a GPU, and its copy in main memory.

Shapes: q queries, n rows, d dimensions, k results.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from reperio.embeddings import Dense
from reperio.errors import ConfigurationError, UnsupportedOperation
from reperio.extras import load
from reperio.indexes.chosen import Chosen
from reperio.indexes.layers import Layers
from reperio.types import Neighbors

__all__ = ["OnGpu", "check_device"]

_RESULTS, _LISTS = 512, 1024
"""What FAISS can do on a GPU; more is for the copy in main memory. ``IVF…,SQ8`` aborts the process beyond 512."""


def check_device(device: str) -> int | None:
    """The number of the GPU that a name stands for; None for ``"cpu"``.

    Raises
    ------
    ConfigurationError
        Another name, or a GPU that is not there.
    UnsupportedOperation
        If FAISS as installed cannot use GPUs, or finds none.
    """
    if device == "cpu":
        return None
    found = re.fullmatch(r"cuda(?::(\d+))?", device)
    if found is None:
        raise ConfigurationError(f"device is {device!r}.", "Choose 'cpu', 'cuda' or 'cuda:1'.")
    faiss, number = load("faiss", extra="faiss-gpu"), int(found[1] or 0)
    if not hasattr(faiss, "StandardGpuResources"):
        problem = f"FAISS {faiss.__version__}, as installed, is built without GPU support, so device={device!r} is out."
        fix = (
            "Run: pip uninstall -y faiss-cpu && pip install 'reperio[faiss-gpu]'. Both bring the module `faiss` and "
            "overwrite each other's files: keep one of them. `reperio doctor` says which is there."
        )
        raise UnsupportedOperation(problem, fix)
    there = int(faiss.get_num_gpus())
    if not there:
        raise UnsupportedOperation(f"FAISS finds no GPU for device={device!r}.", "Use device='cpu', or see nvidia-smi.")
    if number >= there:
        raise ConfigurationError(f"device is {device!r}, and there are {there} GPUs.", "They are numbered from 0.")
    return number


class OnGpu:
    """A FAISS index that is trained, filled and searched on a GPU.

    What GPUs do not do, or only in part, is done by a copy in main memory that is made when it is asked for: filters
    that keep less than half of the rows, more than 512 results or 1024 lists, scoring of given rows, and saving.
    Searches take turns: a GPU's scratch memory serves one at a time.

    Parameters
    ----------
    index
        In main memory; it is copied.
    number
        Of the GPU.

    Raises
    ------
    RuntimeError
        From FAISS, if it has no such index for GPUs, or there is no room.
    """

    def __init__(self, index: Any, number: int) -> None:
        self._faiss = load("faiss", extra="faiss-gpu")
        self._resources = self._faiss.StandardGpuResources()  # must live as long as the index
        self._lock = threading.Lock()
        self.index = self._faiss.index_cpu_to_gpu(self._resources, number, index)
        self.ahead = False
        """Whether it holds or knows more than the copy in main memory."""

    def train(self, sample: Dense, *, seed: int) -> None:
        """Learn from vectors, ``(m, d)``."""
        clustering = getattr(self.index, "cp", None)
        if clustering is not None:
            clustering.seed, clustering.min_points_per_centroid = seed, 1
        with self._lock:
            self.index.train(sample)
            self.ahead = True

    def add(self, vectors: Dense) -> None:
        """Give the next positions to vectors, ``(m, d)``."""
        with self._lock:
            self.ahead = True
            self.index.add(vectors)

    def to_cpu(self) -> Any:
        """A copy in main memory."""
        with self._lock:
            copy = self._faiss.index_gpu_to_cpu(self.index)
            self.ahead = False
        return copy

    def search(
        self, queries: Dense, k: int, chosen: Chosen | None, options: Mapping[str, int], layers: Layers
    ) -> Neighbors | None:
        """The k best positions; None where the GPU cannot give them all.

        A filter is met by asking for more and leaving out what does not pass.
        """
        held = int(self.index.ntotal) if chosen is None else len(chosen)
        fetch = min(k, held)
        if chosen is not None:
            fetch = min(chosen.total, 2 * fetch + 32) if 2 * held >= chosen.total else _RESULTS + 1
        if not 0 < fetch * options.get("k_factor", 1) <= _RESULTS or options.get("nprobe", 1) > _LISTS:
            return None
        parameters = layers.parameters(options)
        with self._lock:
            scores, ids = self.index.search(queries, fetch, params=parameters)
        if layers.by_distance:
            scores = 0 - scores
        passing = ids >= 0 if chosen is None else (ids >= 0) & chosen.mask[ids]
        if (passing.sum(axis=1) < min(k, held)).any():
            return None
        if passing.all():
            return Neighbors(ids[:, : min(k, held)], scores[:, : min(k, held)])
        order = np.argsort(~passing, axis=1, kind="stable")[:, : min(k, held)]
        return Neighbors(np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1))
