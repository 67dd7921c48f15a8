"""What an index has whose engine only appends labelled vectors and proposes some of them.

A backend gives an `Engine` and its settings; keys, upsert, delete, filters, exact scores and files are here.

Shapes: q queries, n labels, d dimensions, k results, m labels asked for.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from reperio.artifacts import new_folder
from reperio.embeddings import Dense, Ids, IdSet, check_dense
from reperio.errors import ConfigurationError
from reperio.indexes.chosen import KEPT, Chosen, KeyedRows
from reperio.indexes.flat import Block, Metric, check_metric, nearest, score_pairs, squared, unit
from reperio.indexes.rows import Positions, check_ids, check_pairs, check_removed, check_search, merge, nothing, pad
from reperio.indexes.stored import arguments, reading, whole
from reperio.protocols import Spec
from reperio.types import Neighbors

__all__ = ["FEW", "Engine", "LabelledIndex", "check_positive"]

FEW = 1 << 10
"""Fewer rows than this, given at once, are linked by one thread: always in the same way."""

_CHUNK = 1 << 14
"""Rows scaled, appended or decoded at a time."""

_LABELS = 1 << 22
"""Labels proposed at a time, for several queries: 32 MB."""

_KEPT = 0.02
"""What scoring a row takes, where following one candidate of a walk is 1, once rows of a filter are kept."""

_WIDER = 2
"""A filter that keeps a share s of the rows lets a search fetch this many times k / s labels, if that is more."""


class Engine(Protocol):
    """Vectors under the labels 0, 1, 2, …; none is ever replaced or taken away.

    Where taking some was interrupted, it lacks labels below those that it has: these are dead.
    """

    ranks: bool
    """Whether `propose` gives labels in the order of their scores; if not, all that it gives are scored."""

    looking: float
    """What scoring a row takes that is decoded for it, where following one candidate of a walk is 1."""

    def __len__(self) -> int: ...

    def has(self, labels: Positions) -> NDArray[np.bool_]:
        """Whether it has a vector under each label, ``(m,)``."""
        ...

    def append(self, start: int, vectors: Dense) -> None:
        """Take vectors, ``(m, d)``, under the labels from ``start``."""
        ...

    def propose(self, queries: Dense, count: int) -> Positions:
        """About the best ``count`` labels for each query, ``(q, count)``, best first; ``-1`` where it found fewer."""
        ...

    def decode(self, labels: Positions) -> Dense:
        """The vectors under labels, as they are kept, ``(m, d)``."""
        ...

    def write(self, folder: Path) -> None:
        """Write its files; raises OSError if the disk refuses."""
        ...


class LabelledIndex(ABC):
    """An approximate index whose engine proposes labels; what it returns is scored here.

    A row replaced or removed leaves a dead label, which is left out of every search, until `compact`. A search
    returns min(k, rows allowed) rows: it fetches more labels than k where some do not pass, then more again, and
    at last looks at every row. It scores what it returns from the vectors that the engine keeps, so a score does not
    depend on the engine's arithmetic. Searches may run in many threads at once, as long as none changes the index.

    Parameters
    ----------
    metric
        ``"cosine"``, ``"ip"`` or ``"l2"``.
    expansion
        Labels that a search fetches at the least; 64, or twice k if that is more, where None.

    Notes
    -----
    Engines that test a filter at each step of their walk were no quicker than fetching more and testing it
    afterwards (hnswlib 0.8 and a Python callable: 0.62 against 0.47 ms at 50 %, 1.7 against 1.5 ms at 10 %).
    Where a filter keeps few rows, each is compared. Their vectors are read back from the engine when it is first asked
    for (usearch takes 0.9 µs for each), and kept up to 16 MB while it is the last: 10 % of 100,000 rows of 128
    dimensions then took 44 µs a query in a batch, where to fetch more labels took 470.
    """

    option: ClassVar[str]
    """What the engine calls the number of candidates that a search keeps."""

    def __init__(self, metric: Metric, expansion: int | None) -> None:
        self.metric: Metric = check_metric(metric)
        if expansion is not None:
            check_positive(**{self.option: expansion})
        self._expansion = expansion
        self._engine: Engine | None = None
        self._dim: int | None = None
        self._rows = KeyedRows()
        self._tried = 0  # labels that the engine may have

    @property
    @abstractmethod
    def spec(self) -> Spec:
        """How to build this index again, empty."""

    @property
    @abstractmethod
    def lossless(self) -> bool:
        """Whether the engine keeps the vectors as they are."""

    @abstractmethod
    def _made(self, dim: int) -> Engine:
        """An empty engine for d dimensions; raises ConfigurationError if there can be none."""

    @abstractmethod
    def _read(self, folder: Path, dim: int) -> Engine:
        """The engine that `Engine.write` wrote."""

    def _default(self, k: int) -> int:
        """Candidates that a search for k rows keeps."""
        return self._expansion or max(64, 2 * k)

    @property
    def lowest(self) -> float:
        """-1 for cosine, else ``-inf``."""
        return -1.0 if self.metric == "cosine" else -np.inf

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def ids(self) -> IdSet:
        """Every row key held, ``(n,)``, sorted."""
        return np.sort(self._rows.ids[self._rows.alive])

    # Rows

    def add(self, ids: Ids, embeddings: Dense, /) -> None:
        """Insert or replace rows.

        Raises
        ------
        ShapeError
            Another number of dimensions than before, NaN or infinity, or not one id for each row.
        InvalidInput
            A negative id, or one that comes twice.
        """
        vectors = check_dense(embeddings, what="embeddings", dim=self._dim)
        ids = check_ids(ids, rows=len(vectors))
        if not len(ids):
            return
        engine = self._made(vectors.shape[1]) if self._engine is None else self._engine
        if self._tried > len(self._rows.ids):  # once they could not even be told to be dead
            self._rows.bury(self._tried)
        parts = (self._scaled(vectors[at : at + _CHUNK]) for at in range(0, len(vectors), _CHUNK))
        try:
            _append(engine, len(self._rows.ids), parts)
            self._rows.append(ids)
        except BaseException:
            if self._engine is not None:  # labels that the engine may have by now stay dead
                self._tried = len(self._rows.ids) + len(ids)
                self._rows.bury(self._tried)
            raise
        self._engine, self._dim = engine, vectors.shape[1]

    def remove(self, ids: Ids, /) -> int:
        """Take rows away; returns how many were there."""
        return self._rows.remove(check_removed(ids))

    def compact(self) -> None:
        """Build the engine anew, without the rows that were removed or replaced."""
        if self._engine is None or self._dim is None:
            return
        old, fresh = self._engine, self._made(self._dim)
        alive = np.flatnonzero(self._rows.alive)
        alive = alive[np.argsort(self._rows.ids[alive])]
        _append(fresh, 0, (old.decode(alive[at : at + _CHUNK]) for at in range(0, len(alive), _CHUNK)))
        self._engine, self._rows, self._tried = fresh, KeyedRows(self._rows.ids[alive]), 0

    # Searching

    def search(
        self, queries: Dense, k: int, /, *, allowed: IdSet | None = None, options: Mapping[str, int] | None = None
    ) -> Neighbors:
        """The k best rows for each query, among ``allowed`` if given: always min(k, allowed held) of them.

        Parameters
        ----------
        options
            The one option of the engine: how many candidates it keeps.

        Raises
        ------
        InvalidInput
            If k is not positive.
        ShapeError
            If the queries have other dimensions than the rows, or hold NaN or infinity.
        ConfigurationError
            For an option that the engine does not have.
        """
        allowed = check_search(k, allowed, options, known=self._rows.asked)
        vectors = self._scaled(check_dense(queries, what="queries", dim=self._dim))
        expansion = self._checked(options or {}) or self._default(k)
        chosen = self._rows.chosen(allowed)
        total = len(self._rows.ids)
        held = total if chosen is None else len(chosen)
        want = min(k, held)
        if want == 0 or self._engine is None or not len(vectors):
            return nothing(len(vectors), k)
        fetch = max(expansion, want if held == total else math.ceil(_WIDER * want * total / held))
        step = max(1, _LABELS // fetch)
        parts = [
            self._found(self._engine, vectors[at : at + step], want, chosen, fetch=fetch)
            for at in range(0, len(vectors), step)
        ]
        found = parts[0]
        if len(parts) > 1:
            found = Neighbors(np.concatenate([p.ids for p in parts]), np.concatenate([p.scores for p in parts]))
        return found if want == k else pad(found.ids, found.scores, k)

    def _checked(self, options: Mapping[str, int]) -> int | None:
        for name, value in options.items():
            if name != self.option:
                what = f"{type(self).__name__} has no search option {name!r}."
                raise ConfigurationError(what, f"It has: {self.option}.")
            check_positive(**{name: value})
        return options.get(self.option)

    def _found(self, engine: Engine, queries: Dense, want: int, chosen: Chosen | None, *, fetch: int) -> Neighbors:
        """The ``want`` best rows of each query: proposed by the engine, or, where that is quicker, by a scan.

        Which of the two does not depend on the number of queries, so that a batch gives what its queries give.
        """
        total = len(self._rows.ids)
        held = total if chosen is None else len(chosen)
        looking = _KEPT if self._keeps(chosen) else engine.looking
        if fetch >= min(total, looking * held):
            return self._scan(engine, queries, want, chosen)
        labels = engine.propose(queries, fetch)
        if chosen is not None:
            labels[~chosen.mask[labels]] = -1  # where the label is -1 already, so it stays
        if engine.ranks and labels[:, :want].min() < 0:  # the first that pass
            labels = np.take_along_axis(labels, np.argsort(labels < 0, axis=1, kind="stable"), axis=1)
        labels = labels[:, :want] if engine.ranks else labels
        found = merge([self._scored(engine, queries, labels)], want)
        short = np.flatnonzero(found.ids[:, -1] < 0)
        if len(short):
            again = self._found(engine, queries[short], want, chosen, fetch=4 * fetch)
            found.ids[short], found.scores[short] = again.ids, again.scores
        return found

    def _scored(self, engine: Engine, queries: Dense, labels: Positions) -> Neighbors:
        asked, column = np.nonzero(labels >= 0)
        ids = np.full(labels.shape, -1, dtype=np.int64)
        scores = np.full(labels.shape, -np.inf, dtype=np.float32)
        chosen = labels[asked, column]
        ids[asked, column] = self._rows.ids[chosen]
        scores[asked, column] = score_pairs(queries, asked, engine.decode, chosen, metric=self.metric)
        return Neighbors(ids, scores)

    def _scan(self, engine: Engine, queries: Dense, want: int, chosen: Chosen | None) -> Neighbors:
        """Exactly the best of these labels, by looking at each; few are kept for the next search among them."""
        labels = np.arange(len(self._rows.ids)) if chosen is None else chosen.positions

        def blocks() -> Iterator[Block]:
            for start in range(0, len(labels), _CHUNK):
                part = labels[start : start + _CHUNK]
                vectors = engine.decode(part)
                yield Block(self._rows.ids[part], vectors, squared(vectors))

        if chosen is None or not self._keeps(chosen):
            return nearest(queries, want, blocks(), metric=self.metric)
        if "blocks" not in chosen.made:
            chosen.made["blocks"] = list(blocks())
        return nearest(queries, want, chosen.made["blocks"], metric=self.metric)

    def _keeps(self, chosen: Chosen | None) -> bool:
        """Whether vectors of these labels are kept side by side, once a search has looked at each."""
        return chosen is not None and len(chosen) * (self._dim or 0) <= KEPT

    def score(self, queries: Dense, ids: Ids, /) -> Dense:
        """Scores of the given rows, ``(q, m)`` for ids ``(q, m)``; ``-inf`` where an id is -1 or not held."""
        vectors = self._scaled(check_dense(queries, what="queries", dim=self._dim))
        pairs = check_pairs(ids, queries=len(vectors))
        labels = self._rows.find(pairs.ravel()).reshape(pairs.shape)
        if self._engine is None:
            return np.full(pairs.shape, -np.inf, dtype=np.float32)
        return self._scored(self._engine, vectors, labels).scores

    def _scaled(self, vectors: Dense) -> Dense:
        return unit(vectors) if self.metric == "cosine" else vectors

    # Disk

    def save(self, path: Path | str, /) -> None:
        """Write a new folder: whole, checksummed and on disk when this returns, or absent."""
        with new_folder(path, type(self).__name__, {"spec": dict(self.spec), "dim": self._dim}) as folder:
            np.save(folder / "ids.npy", self._rows.ids, allow_pickle=False)
            np.save(folder / "alive.npy", self._rows.alive, allow_pickle=False)
            if self._engine is not None:
                self._engine.write(folder)

    @classmethod
    def open(cls, path: Path | str, /) -> Self:
        """Read what `save` wrote.

        Raises
        ------
        NotFound, NewerFormat, CorruptArtifact
        """
        with reading(cls, path, cls.__name__) as (folder, meta):
            index = cls(**arguments(meta))
            index._rows = KeyedRows.read(folder)
            index._dim = None if meta["dim"] is None else whole(meta, "dim", least=1)
            if index._dim is not None:
                index._engine = index._read(folder, index._dim)
                index._check_held(index._engine)
            elif len(index._rows.ids):
                raise ValueError(f"it has {len(index._rows.ids)} keys and no rows")
        return index

    def _check_held(self, engine: Engine) -> None:
        total = len(self._rows.ids)
        if len(engine) > total:
            raise ValueError(f"its engine has {len(engine)} rows, and there are {total} keys")
        if len(engine) < total:  # taking some was interrupted once
            alive = np.flatnonzero(self._rows.alive)
            lacking = alive[~engine.has(alive)]
            if len(lacking):
                raise ValueError(f"its engine lacks {len(lacking)} rows, of label {lacking[0]} the first")


def check_positive(least: int = 1, /, **settings: int) -> None:
    """Refuse settings that are not whole numbers, or below ``least``, by name."""
    for name, value in settings.items():
        if not isinstance(cast("object", value), int) or value < least:
            fix = "Give a positive whole number." if least == 1 else f"Give a whole number of {least} or more."
            raise ConfigurationError(f"{name} is {value!r}.", fix)


def _append(engine: Engine, start: int, parts: Iterable[Dense]) -> None:
    for vectors in parts:
        engine.append(start, vectors)
        start += len(vectors)
