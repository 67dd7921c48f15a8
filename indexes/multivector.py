"""Several vectors for each row: late interaction, exact or over residual codes.

Shapes: q queries, n rows, t vectors of all rows, d dimensions, k results, m rows asked for.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np

from reperio.artifacts import new_folder
from reperio.embeddings import Dense, Ids, IdSet, MultiVector, check_multi_vector
from reperio.errors import ConfigurationError, ShapeError, UnsupportedOperation
from reperio.indexes.flat import unit
from reperio.indexes.maxsim import Block, longest, nearest, score_documents
from reperio.indexes.multivector_probing import Mask, shortlist
from reperio.indexes.multivector_segments import PlainSegment
from reperio.indexes.multivector_view import View
from reperio.indexes.residual import Codec
from reperio.indexes.rows import check_ids, check_pairs, check_removed, check_search
from reperio.indexes.stored import arguments, reading
from reperio.protocols import Spec
from reperio.types import Neighbors

__all__ = ["MultiVectorIndex"]

_KIND = "multi-vector-index"

_OPTIONS = {"nprobe": 2, "candidates": 512}
"""Search options of residual codes, and their defaults."""

_TRAINING = 4096
"""Rows to learn from, at the least."""

_VALUES = 1 << 24
"""Vector components gathered at a time: 64 MB."""

_SCORED = 1024
"""Rows read at a time to be scored."""


class MultiVectorIndex:
    """Late interaction: a row scores the sum, over the query's vectors, of each one's best match among its own.

    Without codes every row is compared, and scores are exact. With residual codes a vector is kept as its nearest
    centroid and what is left in a few bits; a search looks near the centroids of the query's vectors, judges the rows
    there by their centroids, and reads back the vectors of the best. Until there are enough rows to learn the
    centroids from, such an index is exact too.

    Rows are kept in sealed segments that are merged as they grow and rewritten when most of their rows are dead, so
    that nothing is ever built anew. Searching takes no lock and may go on in other threads while rows are added.

    Parameters
    ----------
    codes
        None, or ``"residual"``.
    bits
        For each dimension of a residual: 2, 4 or 8. A vector takes d * bits / 8 bytes and 8 more.
    centroids
        How many to learn; if not given, the power of two below 8 √t for the t vectors learnt from. Many millions of
        vectors want more: 8 √t for all that will come.
    metric
        ``"cosine"`` (vectors are scaled to length one when added and when asked for) or ``"ip"`` (inner product).
    train_size
        How many rows to learn from; if not given 4096, and at least half as many as there are centroids.
    seed
        Of the sample to learn from and of k-means.
    options
        Search options in place of the defaults: ``nprobe``, the centroids that each query vector looks near (2);
        ``candidates``, the rows whose vectors are read back (512, or four times k).

    Raises
    ------
    ConfigurationError
        Unknown codes, metric or option; a number out of range.

    Notes
    -----
    Khattab and Zaharia: ColBERT. SIGIR 2020. Santhanam et al.: ColBERTv2. NAACL 2022; PLAID. CIKM 2022. Segments
    merge by the logarithmic method of Bentley and Saxe (1980).

    Examples
    --------
    >>> index = MultiVectorIndex()
    >>> vectors = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)
    >>> index.add(np.array([7, 9]), MultiVector(vectors, np.array([0, 2, 3])))
    >>> found = index.search(MultiVector(vectors[:2], np.array([0, 2])), 2)
    >>> found.ids, found.scores.round(3)
    (array([[7, 9]]), array([[2.   , 1.414]], dtype=float32))
    """

    def __init__(
        self,
        codes: Literal["residual"] | None = None,
        *,
        bits: Literal[2, 4, 8] = 4,
        centroids: int | None = None,
        metric: Literal["cosine", "ip"] = "cosine",
        train_size: int | None = None,
        seed: int = 0,
        options: Mapping[str, int] | None = None,
    ) -> None:
        _check("codes", codes, (None, "residual"))
        _check("bits", bits, (2, 4, 8))
        _check("metric", metric, ("cosine", "ip"))
        for name, size in (("centroids", centroids), ("train_size", train_size)):
            if size is not None and size < 1:
                raise ConfigurationError(f"{name} is {size}.", "Give a positive number, or None.")
        self.codes, self.bits, self.centroids, self.metric = codes, bits, centroids, metric
        self.train_size, self.seed = train_size, seed
        self.options = self._checked(options)
        self._view = View()
        self._writing = threading.Lock()

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty."""
        return {
            "type": "MultiVectorIndex",
            "codes": self.codes,
            "bits": self.bits,
            "centroids": self.centroids,
            "metric": self.metric,
            "train_size": self.train_size,
            "seed": self.seed,
            "options": self.options or None,
        }

    @property
    def lossless(self) -> bool:
        """Whether scores are exact: without codes."""
        return self.codes is None

    @property
    def exhaustive(self) -> bool:
        """Whether a search compares every row."""
        return self.codes is None

    @property
    def lowest(self) -> float:
        """``-inf``: a score is a sum over the query's vectors, however many."""
        return -math.inf

    @property
    def segments(self) -> int:
        """How many there are: a search looks into each."""
        return len(self._view.segments)

    def __len__(self) -> int:
        return self._view.rows

    @property
    def ids(self) -> IdSet:
        """Every row key held, ``(n,)``, sorted."""
        held = [segment.ids[segment.alive] for segment in self._view.segments]
        return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *held]))

    @property
    def dim(self) -> int | None:
        """d; None before the first row."""
        return self._view.dim

    def _checked(self, options: Mapping[str, int] | None) -> dict[str, int]:
        known = {} if self.codes is None else _OPTIONS
        for name, value in (options or {}).items():
            if name not in known:
                fix = f"It has: {', '.join(known)}." if known else "It has none without codes."
                raise ConfigurationError(f"MultiVectorIndex has no search option {name!r}.", fix)
            if not isinstance(cast("object", value), int) or value < 1:
                raise ConfigurationError(f"The search option {name} is {value!r}.", "Give a positive whole number.")
        return dict(options or {})

    # Learning

    @property
    def training_size(self) -> int:
        """How many rows `train` wants; 0 where nothing is to be learnt (any more)."""
        if self.codes is None or self._view.codec is not None:
            return 0
        return self.train_size or max(_TRAINING, (self.centroids or 0) // 2)

    def train(self, sample: MultiVector, /) -> None:
        """Learn centroids and levels from a random sample of the rows to be held, then encode the rows that wait.

        Raises
        ------
        UnsupportedOperation
            If there is nothing to be learnt, or it was already.
        ShapeError
            Fewer vectors than centroids, or wrong ones.
        """
        with self._writing:
            view = self._view
            if self.codes is None or view.codec is not None:
                raise UnsupportedOperation("This MultiVectorIndex has nothing to learn.", "Add rows to it.")
            vectors = self._scaled(check_multi_vector(sample, what="sample", dim=view.dim)).vectors
            count = self._count(len(vectors))
            if len(vectors) < count:
                problem = f"The sample has {len(vectors)} vectors, to learn {count} centroids."
                raise ShapeError(problem, "Give more rows, or ask for fewer centroids.")
            self._view = self._encoded(view, vectors, count)

    def _count(self, vectors: int) -> int:
        """How many centroids to learn from so many vectors."""
        most = min(8 * math.sqrt(vectors), vectors / 4)
        return self.centroids or 1 << int(math.log2(max(1, most)))

    def _encoded(self, view: View, sample: Dense, count: int) -> View:
        return view.encoded(Codec.learn(sample, count, bits=self.bits, unit=self.metric == "cosine", seed=self.seed))

    def _learnt(self, view: View) -> View:
        """The view with its rows encoded, once there are enough to learn from."""
        if self.codes is None or view.codec is not None or view.rows < self.training_size:
            return view
        if sum(len(segment.vectors) for segment in view.plain) < (self.centroids or 1):
            return view
        whole = PlainSegment.merge(view.plain)
        chosen = np.random.default_rng(self.seed).choice(len(whole), self.training_size, replace=False)
        sample = whole.pick(np.sort(chosen)).vectors
        if len(sample) < self._count(len(sample)):  # rows shorter than was thought
            sample = whole.vectors
        count = self._count(len(sample))
        view = view._replace(plain=(whole,))
        return view if len(sample) < count else self._encoded(view, sample, count)

    # Rows

    def add(self, ids: Ids, embeddings: MultiVector, /) -> None:
        """Insert or replace rows.

        Raises
        ------
        ShapeError
            Another number of dimensions than before, NaN or infinity, a row without a vector, offsets that do not
            ascend, or not one id for each row.
        InvalidInput
            A negative id, or one that comes twice.
        """
        with self._writing:
            embeddings = check_multi_vector(embeddings, what="embeddings", dim=self._view.dim)
            ids = check_ids(ids, rows=len(embeddings))
            if not len(ids):
                return
            vectors = unit(embeddings.vectors) if self.metric == "cosine" else embeddings.vectors.copy()
            fresh = PlainSegment.sorted(ids.copy(), embeddings.offsets.copy(), [vectors])
            view, _ = self._view.without(ids)
            self._view = self._learnt(view.grown(fresh))

    def remove(self, ids: Ids, /) -> int:
        """Take rows away; returns how many were there."""
        with self._writing:
            self._view, found = self._view.without(check_removed(ids))
        return found

    # Searching

    def search(
        self,
        queries: MultiVector,
        k: int,
        /,
        *,
        allowed: IdSet | None = None,
        options: Mapping[str, int] | None = None,
    ) -> Neighbors:
        """The k best rows for each query, among ``allowed`` if given: always min(k, allowed held) of them.

        Parameters
        ----------
        options
            ``nprobe`` and ``candidates``, with residual codes.

        Raises
        ------
        InvalidInput
            If k is not positive.
        ShapeError
            If the queries have other dimensions than the rows, hold NaN or infinity, or one has no vector.
        ConfigurationError
            For an option that there is not.
        """
        allowed = check_search(k, allowed, options)
        view = self._view
        asked = self._scaled(check_multi_vector(queries, what="queries", dim=view.dim))
        given = self._checked(options)
        passing = allowed
        found = nearest(asked, k, view.blocks(passing, max(1, _VALUES // max(1, asked.vectors.shape[1]))))
        if not view.coded or not len(asked):
            return found
        settings = {**_OPTIONS, "candidates": max(_OPTIONS["candidates"], 4 * k), **self.options, **given}
        masks = [segment.mask(passing) for segment in view.coded]
        each = [self._probed(asked.row(i), k, view, masks, settings) for i in range(len(asked))]
        return Neighbors(np.concatenate([f.ids for f in each]), np.concatenate([f.scores for f in each]))

    def _probed(
        self, query: Dense, k: int, view: View, masks: Sequence[Mask], settings: Mapping[str, int]
    ) -> Neighbors:
        """The k best coded rows for one query."""
        assert view.codec is not None
        probes, count = settings["nprobe"], max(k, settings["candidates"])
        rows = shortlist(query, view.coded, masks, centroids=view.codec.centroids, probes=probes, count=count)
        blocks = (
            Block(segment.ids[run], documents, longest(documents.vectors))
            for segment, some in zip(view.coded, rows, strict=True)
            for run in segment.runs(some, max(1, _VALUES // query.shape[1]))
            for documents in [view.read(segment, run)]
        )
        return nearest(MultiVector(query, np.array([0, len(query)])), k, blocks)

    def score(self, queries: MultiVector, ids: Ids, /) -> Dense:
        """Scores of the given rows, ``(q, m)`` for ids ``(q, m)``; ``-inf`` where an id is -1 or not held.

        Exact where `lossless`; else of the vectors as the codes are read back.
        """
        view = self._view
        asked = self._scaled(check_multi_vector(queries, what="queries", dim=view.dim))
        pairs = check_pairs(ids, queries=len(asked))
        out = np.full(pairs.shape, -np.inf, dtype=np.float32)
        for i, wanted in enumerate(pairs):
            for segment in view.segments:
                found = segment.find(wanted)
                here = np.flatnonzero(found >= 0)
                for start in range(0, len(here), _SCORED):
                    part = here[start : start + _SCORED]
                    out[i, part] = score_documents(asked.row(i), view.read(segment, found[part]))
        return out

    def _scaled(self, embeddings: MultiVector) -> MultiVector:
        return MultiVector(unit(embeddings.vectors), embeddings.offsets) if self.metric == "cosine" else embeddings

    # Disk

    def save(self, path: Path | str, /) -> None:
        """Write a new folder: whole, checksummed and on disk when this returns, or absent."""
        meta: dict[str, Any] = {"spec": dict(self.spec)}
        with new_folder(path, _KIND, meta) as folder:
            meta |= self._view.save(folder)

    @classmethod
    def open(cls, path: Path | str, /, *, mmap: bool = False) -> Self:
        """Read what `save` wrote; large arrays are mapped, not read into memory.

        Parameters
        ----------
        mmap
            Leave checksums and vectors unread, so that opening takes next to no time; sizes are checked always. A
            file that was altered since may go unnoticed, so keep this for disks that you trust.

        Raises
        ------
        NotFound, NewerFormat, CorruptArtifact
        """
        with reading(cls, path, _KIND, verify=not mmap) as (folder, meta):
            index = cls(**arguments(meta))
            unit_length = index.metric == "cosine"
            index._view = View.open(folder, meta, bits=index.bits, unit=unit_length, trusted=mmap)
        return index


def _check(name: str, value: object, known: Sequence[object]) -> None:
    if value not in known:
        raise ConfigurationError(f"{name} is {value!r}.", f"Choose from: {', '.join(map(repr, known))}.")
