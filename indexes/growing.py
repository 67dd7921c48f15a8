"""The rows of a FAISS index as they come and go: those that wait, those it holds, and those that are dead.

Shapes: n rows, d dimensions.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

import numpy as np

from reperio.embeddings import Dense, Ids
from reperio.errors import ConfigurationError, CorruptArtifact, ShapeError, UnsupportedOperation
from reperio.indexes.autotune import Tuner
from reperio.indexes.chosen import KeyedRows
from reperio.indexes.factory import FactoryIndex
from reperio.indexes.flat import FlatIndex, Metric, unit
from reperio.indexes.layers import LISTS
from reperio.indexes.presets import FEW_ROWS, preset

__all__ = ["AUTO", "FILE", "GrowingIndex", "check_options", "lists_on_disk"]

FILE = "index.faiss"
"""FAISS's own file in a saved folder."""

AUTO = "auto"
"""The factory that is chosen when there are rows enough to tell."""

_CHUNK = 1 << 16
"""Rows scaled and appended at a time: what adding takes beside the index."""

_WAITING = 1 << 10
"""Rows that wait beside a mapped file, until it is worth reading it into memory: a search compares each of them."""

_TYPICAL = 3840
"""Dimensions that nearly every factory fits, to ask what it is like before the first row tells."""

_UNKNOWN = 1 << 14
"""Training size of a factory that does not fit them: what 256 centroids take."""


def check_options(index: str, options: Mapping[str, int], known: Collection[str]) -> None:
    """Refuse search options that an index does not have, and values that are no positive whole numbers."""
    if not isinstance(cast("object", options), Mapping):
        raise ConfigurationError(f"options is {options!r}.", "Give a mapping: {'nprobe': 16}.")
    for name, value in options.items():
        if name not in known:
            fix = f"It has: {', '.join(known)}." if known else "It has none."
            raise ConfigurationError(f"{index} has no search option {name!r}.", fix)
        if not isinstance(cast("object", value), int) or value < 1:
            raise ConfigurationError(f"The search option {name} is {value!r}.", "Give a positive whole number.")


def lists_on_disk(folder: Path) -> bool:
    """Whether a saved folder has lists that stay on disk."""
    # Path.exists raises where no folder can be, and the reader of the folder has yet to say so.
    return os.path.exists((folder / FILE).with_suffix(LISTS))  # noqa: PTH110


class GrowingIndex:
    """Rows wait in an exact index until there are enough to train on; then FAISS takes them in.

    Parameters
    ----------
    factory
        What ``faiss.index_factory`` reads, or ``"auto"``.
    metric
        What a score is.
    train_size
        Vectors to train on; None for as many as the factory wants.
    seed
        Of the sample to train on and of k-means.
    device
        Where FAISS's index is.
    options
        Search options that it must have.

    Attributes
    ----------
    main
        FAISS's index, once its dimensions are known.
    rows
        Keys of its positions.
    tail
        The rows that wait.
    mapped
        Whether ``main`` is on disk, so that what comes must wait.
    dim
        d; None before the first row.
    """

    def __init__(
        self,
        factory: str,
        metric: Metric,
        *,
        train_size: int | None,
        seed: int,
        device: str,
        options: Mapping[str, int],
    ) -> None:
        self._factory, self._train_size = factory, train_size
        self._metric: Metric = metric
        self._seed, self._device, self._options = seed, device, options
        self.main: FactoryIndex | None = None
        self.rows = KeyedRows()
        self.tail = FlatIndex(metric)
        self.mapped = False
        self.dim: int | None = None

    def __len__(self) -> int:
        return len(self.rows) + len(self.tail)

    @property
    def ready(self) -> FactoryIndex | None:
        """FAISS's index, once it has learnt."""
        return self.main if self.main is not None and self.main.trained else None

    def typical(self) -> FactoryIndex | None:
        """The index, or before the first row one like it; None for a factory that fits few dimensions."""
        if self.main is not None:
            return self.main
        factory = preset("ivf", FEW_ROWS, _TYPICAL).factory if self._factory == AUTO else self._factory
        try:
            return FactoryIndex(factory, self._metric, _TYPICAL)
        except ConfigurationError:
            return None

    def built(self, dim: int, *, factory: str, saved: bool = False) -> FactoryIndex:
        """An empty index for d dimensions; of one that was ``saved``, whatever it measures."""
        main = FactoryIndex(factory, self._metric, dim, seed=self._seed, device=self._device, saved=saved)
        check_options(f"FaissIndex({factory!r})", self._options, main.defaults(1))
        if self._train_size is not None and self._train_size < main.centroids:
            problem = f"train_size is {self._train_size}, and {factory!r} learns {main.centroids} centroids."
            raise ConfigurationError(problem, f"Give {main.centroids} or more, {39 * main.centroids} to learn well.")
        return main

    def _fresh(self, dim: int, rows: int) -> FactoryIndex:
        """An empty index for so many rows, known to take them."""
        factory = preset("ivf", rows, dim).factory if self._factory == AUTO else self._factory
        main = self.built(dim, factory=factory)
        if main.trained:
            main.check()
        return main

    # Training

    @property
    def training_size(self) -> int:
        """How many vectors `train` wants; 0 where nothing is to be learnt (any more)."""
        if self.ready is not None:
            return 0
        kind = self.typical()
        if kind is not None and kind.trained:
            return 0
        return self._train_size or (_UNKNOWN if kind is None else kind.training_size)

    def train(self, sample: Dense, tuner: Tuner | None) -> None:
        """Learn from a sample, then take in the rows that wait."""
        main = self._fresh(sample.shape[1], max(len(sample), len(self.tail)))
        if main.trained or self.ready is not None:
            raise UnsupportedOperation(f"FaissIndex({self._factory!r}) has nothing to learn.", "Add rows to it.")
        if len(sample) < main.centroids:
            problem = f"The sample has {len(sample)} vectors, {main.factory!r} learns {main.centroids} centroids."
            raise ShapeError(problem, f"Give {self.training_size}.")
        main.train(self.scaled(sample))
        self.main, self.dim = main, main.dim
        self._absorb(main, tuner)

    def _sample(self, size: int, vectors: Dense) -> Dense | None:
        """What to train on, once what waits and what comes are enough."""
        waiting = len(self.tail)
        if waiting + len(vectors) < size:
            return None
        chosen = np.random.default_rng(self._seed).choice(waiting + len(vectors), size, replace=False)
        new = vectors[chosen[chosen >= waiting] - waiting]
        return np.concatenate([self.tail.vectors[chosen[chosen < waiting]], new]) if waiting else new

    # Rows

    def add(self, ids: Ids, vectors: Dense, tuner: Tuner | None) -> None:
        """Insert or replace rows."""
        if self.ready is None:
            self._prepare(vectors, tuner)
        main = self.ready
        if main is not None and self.mapped and not main.on_disk and len(self.tail) + len(ids) > _WAITING:
            main.unmap()
            self.mapped = False
        if main is None or self.mapped:
            held = self.rows.find(ids)
            held = held[held >= 0]  # before the tail has them: what can fail comes first
            self.tail.add(ids, vectors)
            self.rows.kill(held)
        else:
            if len(self.tail):
                self._absorb(main, tuner)
            self._take_in(main, ids, vectors, tuner)
        self.dim = vectors.shape[1]

    def _prepare(self, vectors: Dense, tuner: Tuner | None) -> None:
        """Build the index when the first row tells d, and train it when there is enough to train on."""
        main = self.main or (None if self._factory == AUTO else self._fresh(vectors.shape[1], len(vectors)))
        if main is None or not main.trained:
            size = self._train_size or (self.training_size if main is None else main.training_size)
            if (sample := self._sample(size, vectors)) is not None:
                self.train(sample, tuner)
                return
        self.main = main

    def _take_in(self, main: FactoryIndex, ids: Ids, vectors: Dense, tuner: Tuner | None) -> None:
        """Give positions to rows; the last of them may first be asked for, to tune the search while it lacks them."""
        if tuner is None or not main.defaults(1):
            self._append(main, ids, vectors)
            return
        new = self.rows.find(ids) < 0
        start = len(ids) - tuner.held_back(len(self.rows), new)
        if start == len(ids):
            self._append(main, ids, vectors)
            return
        before = KeyedRows(self.rows.ids.copy(), self.rows.alive.copy())
        try:
            self._append(main, ids[:start], vectors[:start])
            tuner.tune(vectors[start:][new[start:]])
            self._append(main, ids[start:], vectors[start:])
        except BaseException:
            self.rows = before
            self.rows.bury(main.total)
            raise

    def _append(self, main: FactoryIndex, ids: Ids, vectors: Dense) -> None:
        """Fill positions that no row has yet; if it fails they stay dead."""
        if main.total != len(self.rows.ids):  # once they could not even be told to be
            self.rows.bury(main.total)
        try:
            for i in range(0, len(vectors), _CHUNK):
                main.append(self.scaled(vectors[i : i + _CHUNK]))
            self.rows.append(ids)
        except BaseException:
            self.rows.bury(main.total)
            raise

    def _absorb(self, main: FactoryIndex, tuner: Tuner | None) -> None:
        """Take in the rows that wait."""
        tail, self.tail = self.tail, FlatIndex(self._metric)
        try:
            self._take_in(main, tail.ids, tail.vectors, tuner)
        except BaseException:
            self.tail = tail
            raise

    def remove(self, ids: Ids) -> int:
        """Take rows away; returns how many were there."""
        gone = self.rows.held(ids)  # what can fail comes first
        waiting = self.tail.remove(ids)
        self.rows.kill(gone)
        return len(gone) + waiting

    def compact(self, tuner: Tuner | None) -> None:
        """Give back dead positions, and take in what waits."""
        main = self.ready
        if main is None:
            return
        if not main.lossless:
            problem = f"FaissIndex({self._factory!r}) does not keep the vectors themselves."
            raise UnsupportedOperation(problem, "Build it again from where they are kept.")
        alive = np.flatnonzero(self.rows.alive)
        alive = alive[np.argsort(self.rows.ids[alive])]
        fresh = self._emptied(main, alive)
        for start in range(0, len(alive), _CHUNK):
            fresh.append(main.decode(alive[start : start + _CHUNK]))
        self.main, self.rows, self.mapped = fresh, KeyedRows(self.rows.ids[alive]), False
        self._absorb(fresh, tuner)

    def _emptied(self, main: FactoryIndex, alive: Ids) -> FactoryIndex:
        """A copy that has learnt the same, or where the rows are far more or fewer now, another that has anew."""
        if self._factory == AUTO and len(alive) + len(self.tail) >= FEW_ROWS:
            fresh = self._fresh(main.dim, len(alive) + len(self.tail))
            if fresh.factory != main.factory and fresh.training_size <= len(alive):
                chosen = np.random.default_rng(self._seed).choice(alive, fresh.training_size, replace=False)
                fresh.train(main.decode(chosen))
                return fresh
        return main.emptied()

    # Disk

    def write(self, folder: Path) -> None:
        """Write keys, what waits and FAISS's own files."""
        np.save(folder / "ids.npy", self.rows.ids, allow_pickle=False)
        np.save(folder / "alive.npy", self.rows.alive, allow_pickle=False)
        self.tail.save(folder / "waiting")
        if self.ready is not None:
            self.ready.write(folder / FILE)

    def read(self, folder: Path, *, dim: int | None, factory: str, mapped: bool) -> None:
        """Take what `write` wrote.

        Raises
        ------
        CorruptArtifact
            If the files do not belong together.
        """
        self.rows, self.dim = KeyedRows.read(folder, mapped="c" if mapped else None), dim
        self.tail = FlatIndex.open_waiting(folder / "waiting", metric=self._metric, dim=dim, held=self.rows)
        if dim is None or factory == AUTO:
            return
        main = self.main = self.built(dim, factory=factory, saved=True)
        if (folder / FILE).exists():
            main.read(folder / FILE, mapped=mapped)
            self.mapped = mapped or main.on_disk
        if main.total != len(self.rows.ids):
            raise CorruptArtifact(f"{folder} has {len(self.rows.ids)} keys for other rows.", "Rebuild it.")

    def scaled(self, vectors: Dense) -> Dense:
        """As FAISS is to see them: of length one for a cosine."""
        return unit(vectors) if self._metric == "cosine" else vectors
