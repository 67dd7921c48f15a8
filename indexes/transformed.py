"""Any dense index, searched through transforms of its vectors.

Shapes: q queries, n rows, d dimensions, k results, m rows asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from reperio.artifacts import loading, new_folder
from reperio.embeddings import Dense, Ids, IdSet, check_dense
from reperio.errors import ConfigurationError, ShapeError, UnsupportedOperation
from reperio.indexes.flat import FlatIndex, Metric, check_metric
from reperio.indexes.labelled import check_positive
from reperio.indexes.rows import check_ids, check_pairs, check_search, merge
from reperio.indexes.stored import finite, read_array, reading, whole
from reperio.indexes.transforms import Transform
from reperio.protocols import Index, Mappable, Spec, Trainable
from reperio.registry import build, resolve
from reperio.types import Neighbors

__all__ = ["TransformedIndex"]

_KIND = "transformed-index"
_LEAST = 4096
"""Rows that teach a mean and a length, where nothing else is said."""


class TransformedIndex:
    """Vectors go through transforms into another index, and its scores come back as if they had not.

    Until the transforms have learnt what they must, rows wait in an exact index; so do later rows that a transform
    cannot take (`Transform.fits`), for as long as this index lives. Both are searched along, so no answer is wrong;
    `waiting` tells how many they are, and a rebuild takes them in.

    Parameters
    ----------
    index
        An empty index of dense vectors; its ``metric`` is what the transformed vectors are searched by.
    transforms
        Applied to rows and queries in this order. They decide the metric seen from outside: ``[Centre()]`` over
        ``"ip"`` is ``"ip"``, ``[Normalise(), Centre()]`` over ``"ip"`` is ``"cosine"``, ``[Centre(),
        NormCoordinate()]`` over ``"l2"`` is ``"ip"``.
    train_size
        How many rows to learn from; if not given 4096, or as many as the index behind wants if that is more.
    seed
        Of the sample to learn from.

    Raises
    ------
    ConfigurationError
        No transform; an index that holds rows, or has no metric; a transform that does not fit the metric behind it.

    Examples
    --------
    >>> from reperio.indexes.transforms import Centre
    >>> index = TransformedIndex(FlatIndex("ip"), [Centre()], train_size=2)
    >>> index.add(np.array([7, 9]), np.array([[5, 1], [5, 2]], dtype=np.float32))
    >>> index.search(np.array([[1, 1]], dtype=np.float32), 2).scores.tolist()
    [[7.0, 6.0]]
    """

    def __init__(
        self,
        index: Index[Dense],
        transforms: Sequence[Transform],
        *,
        train_size: int | None = None,
        seed: int = 0,
    ) -> None:
        if not transforms:
            raise ConfigurationError("TransformedIndex has no transforms.", "Use the index itself.")
        wrong = [type(transform).__name__ for transform in transforms if not isinstance(transform, Transform)]
        if wrong:
            raise ConfigurationError(f"{wrong[0]} is no transform.", "Choose from reperio.indexes.transforms.")
        if train_size is not None:
            check_positive(train_size=train_size)
        if len(index):
            raise ConfigurationError(f"The index holds {len(index)} rows already.", "Give an empty one.")
        self.index, self.transforms = index, list(transforms)
        self.train_size, self.seed = train_size, seed
        metric = getattr(index, "metric", None)
        if metric is None:
            raise ConfigurationError(f"{type(index).__name__} has no metric.", "Give an index of dense vectors.")
        self._metrics: list[Metric] = [check_metric(metric)]
        for transform in reversed(self.transforms):
            self._metrics.insert(0, transform.outer(self._metrics[0]))
        self._dim: int | None = None
        self._waiting = FlatIndex(self.metric)

    @property
    def metric(self) -> Metric:
        """What a search measures, seen from outside."""
        return self._metrics[0]

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty."""
        return {
            "type": "TransformedIndex",
            "index": dict(self.index.spec),
            "transforms": [dict(transform.spec) for transform in self.transforms],
            "train_size": self.train_size,
            "seed": self.seed,
        }

    @property
    def lossless(self) -> bool:
        """Whether scores are exact, up to rounding: of the index behind, and of every transform."""
        return self.index.lossless and all(transform.lossless for transform in self.transforms)

    @property
    def lowest(self) -> float:
        """-1 for cosine, else ``-inf``."""
        return -1.0 if self.metric == "cosine" else -np.inf

    @property
    def waiting(self) -> int:
        """Rows that are searched exactly beside the index: before it has learnt, and those that do not fit it."""
        return len(self._waiting)

    @property
    def _ready(self) -> bool:
        return all(transform.ready for transform in self.transforms)

    def __len__(self) -> int:
        return len(self.index) + len(self._waiting)

    @property
    def ids(self) -> IdSet:
        """Every row key held, ``(n,)``, sorted."""
        return np.sort(np.concatenate([self.index.ids, self._waiting.ids]))

    # Learning

    @property
    def _learner(self) -> Trainable[Dense] | None:
        return self.index if isinstance(self.index, Trainable) else None

    @property
    def training_size(self) -> int:
        """How many vectors `train` wants; 0 where nothing is to be learnt (any more)."""
        behind = 0 if self._learner is None else self._learner.training_size
        return behind if self._ready else max(self.train_size or _LEAST, behind)

    def train(self, sample: Dense, /) -> None:
        """Teach the transforms, and the index behind them, from a random sample; then take in the rows that wait.

        Raises
        ------
        UnsupportedOperation
            If there is nothing to be learnt, or it was already.
        ShapeError
            Too few vectors, or wrong ones.
        """
        vectors = check_dense(sample, what="sample", dim=self._dim)
        if not self.training_size:
            raise UnsupportedOperation("This TransformedIndex has nothing to learn.", "Add rows to it.")
        if not len(vectors):
            raise ShapeError("The sample has no vectors.", f"Give {self.training_size}.")
        dim, learned = vectors.shape[1], list[Transform]()
        for transform in self.transforms:
            learned.append(transform if transform.ready else transform.learn(vectors))
            vectors = learned[-1].rows(vectors)
        if self._learner is not None and self._learner.training_size:
            self._learner.train(vectors)
        self.transforms, self._dim = learned, dim
        if len(self._waiting):
            self._place(self._waiting.ids, self._waiting.vectors)

    def _sample(self, vectors: Dense) -> Dense | None:
        """What to learn from, once what waits and what comes are enough."""
        waiting, size = len(self._waiting), self.training_size
        if waiting + len(vectors) < size:
            return None
        chosen = np.random.default_rng(self.seed).choice(waiting + len(vectors), size, replace=False)
        new = vectors[chosen[chosen >= waiting] - waiting]
        return np.concatenate([self._waiting.vectors[chosen[chosen < waiting]], new]) if waiting else new

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
        if not self._ready and (sample := self._sample(vectors)) is not None:
            self.train(sample)
        if self._ready:
            self._place(ids, vectors)
        else:
            self._waiting.add(ids, vectors)
        self._dim = vectors.shape[1]

    def _place(self, ids: Ids, vectors: Dense) -> None:
        """Rows that fit into the index, the others beside it; the index goes first, for it may refuse.

        Where one has changed when the other fails, a row is as it was or as it comes, never both.
        """
        fits, inside = np.ones(len(ids), dtype=np.bool_), vectors
        for transform in self.transforms:
            fits &= transform.fits(inside)
            inside = transform.rows(inside)
        try:
            if fits.any():
                self.index.add(ids[fits], inside[fits])
            if not fits.all():
                self._waiting.add(ids[~fits], vectors[~fits])
                self.index.remove(ids[~fits])
            self._waiting.remove(ids[fits])
        except BaseException:
            self._waiting.remove(np.intersect1d(self._waiting.ids, self.index.ids, assume_unique=True))
            raise

    def remove(self, ids: Ids, /) -> int:
        """Take rows away; returns how many were there."""
        return self.index.remove(ids) + self._waiting.remove(ids)

    # Searching

    def search(
        self, queries: Dense, k: int, /, *, allowed: IdSet | None = None, options: Mapping[str, int] | None = None
    ) -> Neighbors:
        """The k best rows for each query, among ``allowed`` if given: always min(k, allowed held) of them.

        Parameters
        ----------
        options
            Those of the index behind.

        Raises
        ------
        InvalidInput
            If k is not positive.
        ShapeError
            If the queries have other dimensions than the rows, or hold NaN or infinity.
        ConfigurationError
            For an option that the index behind does not have.
        """
        allowed = check_search(k, allowed, options)
        vectors = check_dense(queries, what="queries", dim=self._dim)
        levels = self._levels(vectors) if self._ready else [vectors[:0]]
        found = self.index.search(levels[-1], k, allowed=allowed, options=options)
        beside = self._waiting.search(vectors, k, allowed=allowed)
        if not self._ready:
            return beside
        scores = self._restored(levels, found.scores, held=found.ids >= 0)
        return merge([Neighbors(found.ids, scores), beside], k)

    def score(self, queries: Dense, ids: Ids, /) -> Dense:
        """Scores of the given rows, ``(q, m)`` for ids ``(q, m)``; ``-inf`` where an id is -1 or not held.

        Raises
        ------
        UnsupportedOperation
            If the index behind cannot.
        """
        vectors = check_dense(queries, what="queries", dim=self._dim)
        pairs = check_pairs(ids, queries=len(vectors))
        out = self._waiting.score(vectors, pairs)
        if self._ready:
            levels = self._levels(vectors)
            scores = self.index.score(levels[-1], pairs)
            out = np.maximum(out, self._restored(levels, scores, held=~np.isneginf(scores)))
        return out

    def _levels(self, queries: Dense) -> list[Dense]:
        """The queries as they are before each transform, and after the last."""
        levels = [queries]
        for transform, inner in zip(self.transforms, self._metrics[1:], strict=True):
            levels.append(transform.queries(levels[-1], inner=inner))
        return levels

    def _restored(self, levels: list[Dense], scores: Dense, *, held: np.ndarray[Any, np.dtype[np.bool_]]) -> Dense:
        """The scores seen from outside; ``-inf`` where nothing is held."""
        out: Dense = np.where(held, scores, np.float32(0))
        steps = list(zip(self.transforms, levels, self._metrics[1:], strict=False))
        for transform, queries, inner in reversed(steps):
            out = transform.scores(queries, out, inner=inner)
        return np.where(held, out, np.float32(-np.inf))

    # Disk

    def save(self, path: Path | str, /) -> None:
        """Write a new folder: whole, checksummed and on disk when this returns, or absent."""
        with new_folder(path, _KIND, {"spec": dict(self.spec), "dim": self._dim}) as folder:
            self.index.save(folder / "index")
            self._waiting.save(folder / "waiting")
            for number, transform in enumerate(self.transforms):
                if transform.learned is not None:
                    np.save(folder / f"learned-{number}.npy", transform.learned, allow_pickle=False)

    @staticmethod
    def maps(spec: Spec, /) -> bool:
        """Whether the files of the index behind can stay on disk."""
        kind = resolve(spec["index"]["type"])
        return isinstance(kind, Mappable) and kind.maps(spec["index"])

    @classmethod
    def open(cls, path: Path | str, /, **options: Any) -> Self:
        """Read what `save` wrote.

        Parameters
        ----------
        options
            Those of the ``open`` of the index behind, such as ``mmap=True``.

        Raises
        ------
        ConfigurationError
            If the index behind does not take them, or another class wrote the folder.
        NotFound, NewerFormat, CorruptArtifact
        """
        with reading(cls, path, _KIND) as (folder, meta):
            index: Self = build(meta["spec"])
        _check_options(index, options)
        with loading(folder, cls.__name__):
            dim = index._dim = None if meta["dim"] is None else whole(meta, "dim", least=1)
            index.transforms = _read_lessons(folder, index.transforms, dim)
            behind: Index[Dense] = resolve(meta["spec"]["index"]["type"]).open(folder / "index", **options)
            metric = getattr(behind, "metric", None)
            if metric != getattr(index.index, "metric", None):
                raise ValueError(f"the index behind measures {metric}")
            index.index = behind
            index._waiting = FlatIndex.open_waiting(folder / "waiting", metric=index.metric, dim=dim)
            if len(np.intersect1d(index._waiting.ids, behind.ids, assume_unique=True)):
                raise ValueError("a row that waits is held as well")
        return index


def _check_options(index: Index[Any], options: Mapping[str, Any]) -> None:
    while isinstance(index, TransformedIndex):
        index = index.index
    known = inspect.signature(type(index).open).parameters
    for name in options.keys() - known.keys():
        takes = "be mapped" if name == "mmap" else f"be opened with {name}"
        raise ConfigurationError(f"The index behind, a {type(index).__name__}, cannot {takes}.", f"Leave {name} away.")


def _read_lessons(folder: Path, transforms: Sequence[Transform], dim: int | None) -> list[Transform]:
    """The transforms with what they have learnt; raises ValueError if that is of other dimensions."""
    out = list[Transform]()
    probe = np.zeros((1, dim or 1), dtype=np.float32)
    for number, transform in enumerate(transforms):
        file = folder / f"learned-{number}.npy"
        if file.exists():
            learned = read_array(file, np.float64)
            if dim is None or not finite(learned) or not transform.takes(learned, probe.shape[1]):
                raise ValueError(f"{file.name} is nothing that {type(transform).__name__} learns of {dim} dimensions")
            out.append(transform.restored(learned))
        else:
            out.append(transform)
        if dim is not None and out[-1].ready:
            probe = out[-1].rows(probe)
    return out
