"""Flat search over compact codes, whose cost in recall is measured and kept beside them.

Shapes: q queries, n rows, d dimensions, k results, m rows asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Self, cast, get_args

import numpy as np

from reperio.artifacts import new_folder
from reperio.embeddings import Dense, Ids, IdSet, check_dense
from reperio.errors import ConfigurationError, InvalidInput, ShapeError, UnsupportedOperation
from reperio.indexes.chosen import KeyedRows
from reperio.indexes.coded import CodedRows, Rescore, reduced
from reperio.indexes.flat import FlatIndex, Metric, check_metric, nearest
from reperio.indexes.labelled import check_positive
from reperio.indexes.quantization import CODECS, Codec, Int8Codec, Quantization, check_fit
from reperio.indexes.quantization_report import QuantizationReport
from reperio.indexes.rows import Positions, check_ids, check_pairs, check_removed, check_search, merge
from reperio.indexes.shelf import Shelf
from reperio.indexes.stored import arguments, reading, whole
from reperio.protocols import Index, Spec
from reperio.registry import build
from reperio.types import Neighbors

__all__ = ["QuantizationReport", "QuantizedIndex"]

_KIND = "quantized-index"
_LEAST = 100
"""Vectors below which ranges and recall mean little."""
_HELD_OUT = 200
"""Queries of a sample on which recall is measured; one row in ten if that is fewer."""
_DEAD = 1 << 10
"""Removed and replaced rows are let go when there are more of them than of others, and than this."""


class QuantizedIndex:
    """Exhaustive search over half-precision numbers, bytes or signs instead of float32.

    The first ``train_size`` rows wait in full precision and are searched exactly. Then ranges are learnt from them
    (int8), what the codes cost in recall is measured on them, and they become codes, as does every later row. A code
    depends on its vector and on what was learnt, never on the rows beside it. Searches may run in many threads at
    once, as long as none changes the index.

    Parameters
    ----------
    dtype
        ``"float16"``, ``"int8"`` (256 steps between the lowest and highest value that a sample has in each
        dimension), or ``"binary"`` (signs, for cosine only).
    metric
        ``"cosine"`` (vectors are scaled to length one when added and when asked for), ``"ip"`` (inner product), or
        ``"l2"``: the score is the squared Euclidean distance, negated.
    dims
        Keep only so many first dimensions, as Matryoshka embeddings allow; for cosine scaled to length one again.
        All where None.
    rescore
        How the best ``k * oversample`` rows of the scan are scored again. ``"dequantized"``: by the query in full
        precision and the decoded row; only signs are scanned otherwise, so for float16 and int8 it changes nothing.
        ``"full"``: by the vectors themselves, all their dimensions, kept beside the codes. None: not at all.
    oversample
        See ``rescore``; the search option of the same name takes its place.
    train_size
        Rows to learn and to measure on, 100 or more.
    seed
        Of the sample, and of the queries held out of it.

    Raises
    ------
    ConfigurationError
        An unknown or impossible setting.

    Notes
    -----
    The codes are those of ``sentence_transformers.quantize_embeddings``. Kusupati et al.: Matryoshka Representation
    Learning. NeurIPS 2022. Yamada et al.: Efficient Passage Retrieval with Hashing for Open-domain Question
    Answering. ACL 2021, for scoring signs again by queries in full precision.

    Examples
    --------
    >>> index = QuantizedIndex("int8", train_size=100)
    >>> index.add(np.arange(100), np.random.default_rng(0).normal(size=(100, 32)))
    >>> index.report.compression
    4.0
    """

    def __init__(
        self,
        dtype: Quantization = "int8",
        *,
        metric: Metric = "cosine",
        dims: int | None = None,
        rescore: Rescore | None = "dequantized",
        oversample: int = 4,
        train_size: int = 4096,
        seed: int = 0,
    ) -> None:
        self.metric: Metric = check_metric(metric)
        if dtype not in CODECS:
            raise ConfigurationError(f"There is no quantisation {dtype!r}.", f"Choose from: {', '.join(CODECS)}.")
        if dtype == "binary" and metric != "cosine":
            raise ConfigurationError(f"Signs keep no lengths, and metric is {metric!r}.", "Use 'cosine', or int8.")
        if rescore is not None and rescore not in get_args(Rescore):
            raise ConfigurationError(f"rescore is {rescore!r}.", "Choose from: dequantized, full, None.")
        if dims is not None:
            check_positive(dims=dims)
        check_positive(oversample=oversample)
        check_positive(_LEAST, train_size=train_size)
        self.dtype: Quantization = dtype
        self.rescore: Rescore | None = rescore
        self.dims, self.oversample, self.train_size, self.seed = dims, oversample, train_size, seed
        self._report: QuantizationReport | None = None
        self._clipped = 0
        self._dim: int | None = None
        self._tail = FlatIndex(self.metric)
        self._rows, self._coded = KeyedRows(), cast("CodedRows | None", None)

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty."""
        names = ("dtype", "metric", "dims", "rescore", "oversample", "train_size", "seed")
        return {"type": "QuantizedIndex", **{name: getattr(self, name) for name in names}}

    @property
    def lossless(self) -> bool:
        """Whether scores are exact: where rows are scored again in full."""
        return self.rescore == "full"

    @property
    def lowest(self) -> float:
        """-1 for cosine, else ``-inf``."""
        return -1.0 if self.metric == "cosine" else -np.inf

    @property
    def report(self) -> QuantizationReport | None:
        """What quantisation costs, as last measured; None before there are codes."""
        return self._report

    @property
    def clipped(self) -> int:
        """Numbers added since training that lie beyond the ranges which int8 has learnt: many, if the texts change."""
        return self._clipped

    def __len__(self) -> int:
        return len(self._rows) + len(self._tail)

    @property
    def waiting(self) -> int:
        """Rows that are searched exactly, until there are enough to learn from."""
        return len(self._tail)

    @property
    def ids(self) -> IdSet:
        """Every row key held, ``(n,)``, sorted."""
        return np.sort(np.concatenate([self._rows.ids[self._rows.alive], self._tail.ids]))

    # Learning and measuring

    @property
    def training_size(self) -> int:
        """How many vectors `train` wants; 0 once it has learnt."""
        return self.train_size if self._coded is None else 0

    def train(self, sample: Dense, /) -> None:
        """Learn from a random sample of what will be held, measure, then turn the rows that wait into codes.

        Raises
        ------
        UnsupportedOperation, ShapeError, InvalidInput, ConfigurationError
            It has learnt already; fewer than 100 vectors, or some that `add` would refuse.
        """
        vectors = self._storable(sample, what="sample")
        if self._coded is not None:
            raise UnsupportedOperation("This QuantizedIndex has learnt already.", "Add rows to it, or make another.")
        if len(vectors) < _LEAST:
            raise ShapeError(f"The sample has {len(vectors)} vectors.", f"Give {_LEAST} or more.")
        codec = CODECS[self.dtype].fit(reduced(vectors, self.dims, self.metric))
        report, coded = self._tried(codec, vectors), self._empty(codec, vectors.shape[1])
        coded.put(0, self._tail.vectors if len(self._tail) else vectors[:0])
        self._rows.append(self._tail.ids)
        self._coded, self._report, self._dim, self._tail = coded, report, vectors.shape[1], FlatIndex(self.metric)

    def _empty(self, codec: Codec, dim: int) -> CodedRows:
        shelf = Shelf(np.empty((0, dim), dtype=np.float32)) if self.rescore == "full" else None
        return CodedRows(codec, self.metric, rescore=self.rescore, shelf=shelf)

    def _tried(self, codec: Codec, sample: Dense) -> QuantizationReport:
        """Measure an index like this one on a sample, some of whose vectors are held out as queries."""
        order = np.random.default_rng(self.seed).permutation(len(sample))
        held_out = min(_HELD_OUT, len(sample) // 10)
        queries, rows, keys = sample[order[:held_out]], sample[order[held_out:]], np.arange(len(sample) - held_out)
        trial: QuantizedIndex = build(self.spec)
        exact = FlatIndex(self.metric)
        trial._coded = self._empty(codec, sample.shape[1])
        trial.add(keys, rows)
        exact.add(keys, rows)
        return trial.measure(queries, exact=exact)

    def measure(self, queries: Dense, /, *, exact: Index[Dense] | None = None, k: int = 10) -> QuantizationReport:
        """Measure recall for given queries on all rows held, and keep it as `report`.

        Parameters
        ----------
        exact
            An exact index of the same rows. Not needed where the vectors are kept in full (``rescore="full"``).

        Raises
        ------
        UnsupportedOperation, InvalidInput
            No codes yet, or nothing to compare with; no queries, or an ``exact`` with other rows.
        """
        vectors, coded = check_dense(queries, what="queries", dim=self._dim), self._coded
        if coded is None:
            raise UnsupportedOperation("Nothing is quantised yet: searches are exact.", "Train it, or add rows.")
        if not len(vectors) or not len(self):
            raise InvalidInput(f"There are {len(vectors)} queries for {len(self)} rows.", "Give one or more of each.")
        found, wanted = self.search(vectors, k).ids, self._exact(coded, vectors, k, exact).ids
        sizes = {"rows": len(self), "dim": vectors.shape[1], "width": coded.width}
        self._report = QuantizationReport.of(found, wanted, **sizes, beside=coded.shelf is not None)
        return self._report

    def _exact(self, coded: CodedRows, queries: Dense, k: int, exact: Index[Dense] | None) -> Neighbors:
        if exact is not None:
            if not np.array_equal(exact.ids, self.ids):
                raise InvalidInput(f"exact holds {len(exact)} other rows than these {len(self)}.", "Give it the same.")
            return exact.search(queries, k)
        if coded.shelf is None:
            problem = f"QuantizedIndex({self.dtype!r}, rescore={self.rescore!r}) keeps no vectors to compare with."
            raise UnsupportedOperation(problem, "Give an exact index of the same rows as exact=.")
        alive = np.flatnonzero(self._rows.alive)
        asked = reduced(queries, None, self.metric)
        return nearest(asked, k, coded.shelf.blocks(alive, self._rows.ids[alive]), metric=self.metric)

    # Rows

    def add(self, ids: Ids, embeddings: Dense, /) -> None:
        """Insert or replace rows.

        Raises
        ------
        ShapeError
            Another number of dimensions than before, NaN or infinity, or not one id for each row.
        InvalidInput, ConfigurationError
            A negative id, or one that comes twice; numbers that float16 does not hold; fewer dimensions than `dims`.
        """
        vectors = self._storable(embeddings, what="embeddings")
        ids = check_ids(ids, rows=len(vectors))
        if not len(ids):
            return
        if self._coded is None and (sample := self._sample(vectors)) is not None:
            self.train(sample)
        if self._coded is None:
            self._tail.add(ids, vectors)
            self._dim = vectors.shape[1]
            return
        clipped = 0
        if isinstance(self._coded.codec, Int8Codec):
            clipped = self._coded.codec.clipped(reduced(vectors, self.dims, self.metric))
        self._coded.put(len(self._rows.ids), vectors)
        self._rows.append(ids)
        self._clipped += clipped
        self._let_go()

    def _sample(self, vectors: Dense) -> Dense | None:
        """What to learn from, once what waits and what comes are enough."""
        waiting = len(self._tail)
        if waiting + len(vectors) < self.train_size:
            return None
        chosen = np.random.default_rng(self.seed).choice(waiting + len(vectors), self.train_size, replace=False)
        new = vectors[chosen[chosen >= waiting] - waiting]
        return np.concatenate([self._tail.vectors[chosen[chosen < waiting]], new]) if waiting else new

    def remove(self, ids: Ids, /) -> int:
        """Take rows away; returns how many were there."""
        keys = check_removed(ids)
        gone = self._rows.held(keys)  # what can fail comes first
        waiting = self._tail.remove(keys)
        self._rows.kill(gone)
        self._let_go()
        return len(gone) + waiting

    def _let_go(self) -> None:
        """Give back what most positions take, once these are dead; without room for that, at a later change."""
        if len(self._rows.ids) - len(self._rows) > max(_DEAD, len(self._rows)):
            with suppress(MemoryError):
                self.compact()

    def compact(self) -> None:
        """Give back the room of rows that were removed or replaced; this happens by itself once they are the most."""
        if self._coded is not None:
            alive = self._alive()
            self._coded, self._rows = self._coded.kept(alive), KeyedRows(self._rows.ids[alive])

    def _alive(self) -> Positions:
        """Positions of the rows held, in the order of their keys."""
        alive = np.flatnonzero(self._rows.alive)
        return alive[np.argsort(self._rows.ids[alive])]

    # Searching

    def search(
        self, queries: Dense, k: int, /, *, allowed: IdSet | None = None, options: Mapping[str, int] | None = None
    ) -> Neighbors:
        """The k best rows for each query, among ``allowed`` if given: always min(k, allowed held) of them.

        Parameters
        ----------
        options
            ``oversample``, where rows are scored again.

        Raises
        ------
        InvalidInput, ShapeError, ConfigurationError
            A k that is not positive; queries unlike the rows, NaN or infinite; an option that there is not.
        """
        allowed = check_search(k, allowed, options)
        vectors = check_dense(queries, what="queries", dim=self._dim)
        fetch, coded = k * self._oversampled(options or {}), self._coded
        if coded is None:
            return self._tail.search(vectors, k, allowed=allowed)
        fetch = max(k, min(fetch, len(self)))
        chosen = self._rows.chosen(allowed)
        found = coded.scan(vectors, fetch, self._rows.ids, None if chosen is None else chosen.mask)
        if self._rescores:
            asked, column = np.nonzero(found.ids >= 0)
            positions = self._rows.find(found.ids[asked, column])
            found.scores[asked, column] = coded.score(vectors, asked, positions)
            found = merge([found], k)
        return found

    @property
    def _rescores(self) -> bool:
        return self.rescore == "full" or (self.rescore == "dequantized" and not CODECS[self.dtype].decodes)

    def _oversampled(self, options: Mapping[str, int]) -> int:
        """How many times k rows a scan fetches."""
        for name, value in options.items():
            if name != "oversample" or not self._rescores:
                problem = f"QuantizedIndex({self.dtype!r}, rescore={self.rescore!r}) has no search option {name!r}."
                raise ConfigurationError(problem, "It has: oversample." if self._rescores else "It has none.")
            check_positive(oversample=value)
        return options.get("oversample", self.oversample) if self._rescores else 1

    def score(self, queries: Dense, ids: Ids, /) -> Dense:
        """Scores of the given rows as a search gives them, ``(q, m)``; ``-inf`` where an id is -1 or not held."""
        vectors = check_dense(queries, what="queries", dim=self._dim)
        pairs = check_pairs(ids, queries=len(vectors))
        if self._coded is None:
            return self._tail.score(vectors, pairs)
        out = np.full(pairs.shape, -np.inf, dtype=np.float32)
        positions = self._rows.find(pairs.ravel()).reshape(pairs.shape)
        asked, column = np.nonzero(positions >= 0)
        out[asked, column] = self._coded.score(vectors, asked, positions[asked, column])
        return out

    def _storable(self, vectors: object, *, what: str) -> Dense:
        """Vectors for which there are codes."""
        out = check_dense(vectors, what=what, dim=self._dim)
        if self.dims is not None and out.shape[1] < self.dims:
            raise ConfigurationError(f"dims is {self.dims}, and {what} has {out.shape[1]} dimensions.", "Keep fewer.")
        if self.metric != "cosine":
            check_fit(out, self.dtype, what=what)
        return out

    # Disk

    def save(self, path: Path | str, /) -> None:
        """Write a new folder: whole, checksummed and on disk when this returns, or absent."""
        report = None if self._report is None else asdict(self._report)
        meta = {"spec": dict(self.spec), "dim": self._dim, "clipped": self._clipped, "report": report}
        with new_folder(path, _KIND, meta) as folder:
            self._tail.save(folder / "waiting")
            if self._coded is not None:
                alive = self._alive()
                np.save(folder / "ids.npy", self._rows.ids[alive], allow_pickle=False)
                self._coded.write(folder, alive)

    @classmethod
    def open(cls, path: Path | str, /, *, mmap: bool = False) -> Self:
        """Read what `save` wrote. Vectors in full precision stay on the disk, mapped.

        Parameters
        ----------
        mmap
            Leave the codes there too, until rows are added: opening takes no time and no room, and the checksums are
            not read.

        Raises
        ------
        NotFound, NewerFormat, CorruptArtifact
        """
        with reading(cls, path, _KIND, verify=not mmap) as (folder, meta):
            index = cls(**arguments(meta))
            dim = index._dim = None if meta["dim"] is None else whole(meta, "dim", least=1)
            index._clipped = whole(meta, "clipped")
            if meta["report"] is not None:
                index._report = QuantizationReport(**meta["report"])
                index._rows = KeyedRows.read(folder, marked=False)
                codec = CODECS[index.dtype].read(folder, index.dims or whole(meta, "dim"))
                rows = {"rows": len(index._rows.ids), "dim": whole(meta, "dim", least=codec.dim)}
                index._coded = CodedRows.read(folder, codec, index.metric, rescore=index.rescore, mmap=mmap, **rows)
            held = index._rows
            index._tail = FlatIndex.open_waiting(folder / "waiting", metric=index.metric, dim=dim, held=held)
        return index
