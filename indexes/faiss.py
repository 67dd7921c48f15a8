"""FAISS: any factory string, with row keys, upsert, delete and filters on all of them.

Shapes: q queries, n rows, d dimensions, k results, m rows asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self, cast

import numpy as np

from reperio.artifacts import new_folder
from reperio.embeddings import Dense, Ids, IdSet, check_dense
from reperio.errors import ConfigurationError
from reperio.extras import load
from reperio.indexes.autotune import Tuner
from reperio.indexes.factory import FactoryIndex, check_factory
from reperio.indexes.flat import Metric, check_metric
from reperio.indexes.gpu import check_device
from reperio.indexes.growing import GrowingIndex, check_options, lists_on_disk
from reperio.indexes.labelled import check_positive
from reperio.indexes.layers import OPTIONS
from reperio.indexes.presets import check_recall, preset
from reperio.indexes.ranges import Ranges, check_threshold, ordered, within
from reperio.indexes.rows import check_ids, check_pairs, check_removed, check_search, in_order, merge
from reperio.indexes.stored import arguments, reading, whole
from reperio.indexes.tune_report import TuneReport
from reperio.protocols import Spec
from reperio.types import Neighbors

__all__ = ["KIND", "FaissIndex"]

KIND = "faiss-index"
"""Kind of the folder that `FaissIndex.save` writes."""


class FaissIndex:
    """Search through any index that FAISS can build, never less than exact before it is trained.

    Rows wait in an exact index until there are enough of them to train on; then FAISS takes them in. Any factory
    can replace and remove rows: their old positions are dead and left out of every search, until `compact`.
    A search returns min(k, rows allowed) rows, however few lists it was to probe: where FAISS stops short, it is
    asked again to look further, and at last every row is looked at. Searches may run in many threads at once, as
    long as none changes the index.

    Parameters
    ----------
    factory
        Any string for ``faiss.index_factory``: ``"Flat"``, ``"HNSW32"``, ``"IVF1024,SQ8"``, ``"OPQ16,IVF256,PQ16"``,
        ``"IVF4096,PQ32x4fs,RFlat"``; not an NSG graph, which cannot grow. It is tried on the first rows, before any is
        taken, and refused where it measures something else than the metric. ``"auto"`` compares every row until there
        are 16,384, then is the `preset` ``"ivf"`` for as many as there are; `compact` chooses again.
    metric
        ``"cosine"`` (vectors are scaled to length one when added and when asked for), ``"ip"`` (inner product), or
        ``"l2"``: the score is the squared Euclidean distance, negated.
    train_size
        How many vectors to train on; if not given 64 for each centroid, and at least 4096.
    seed
        Of the sample to train on, of k-means and of the rows held out to tune by.
    options
        Search options in place of the defaults: ``nprobe``, the lists that an IVF index looks into (3√nlist, at
        least 16); ``efSearch``, the candidates that HNSW keeps (128, or twice k); ``k_factor``, how many times k
        rows a refined index scores again (8, and at least 80 rows). A filter widens them: see `FilteredSearch`.
    recall
        Share of the ten best rows to be found: the options are tuned to it by `autotune`. Each time that the rows
        have doubled, some of those that are being added are first asked for, while the index does not hold them
        (in batches of 64 or more). The outcome is `tuning`, kept in the saved folder; the options given go first.
    device
        ``"cpu"``, or a GPU, ``"cuda"`` or ``"cuda:1"``: there it is trained, filled and searched. Selective filters,
        more than 512 results, `score` and `save` are served by a copy in main memory, made when it is needed.

    Raises
    ------
    ConfigurationError
        Unknown metric, option or device; a number that is out of range; a factory that is no string, or an NSG.
    UnsupportedOperation
        A GPU where FAISS as installed cannot use one.

    Notes
    -----
    Douze et al.: The Faiss library. 2024. Ties go to the lower id within the k rows returned; which of several
    rows tied at the k-th place is among them, FAISS decides. Changing it while another thread searches needs a lock.

    Examples
    --------
    >>> index = FaissIndex("HNSW16", metric="l2", options={"efSearch": 128})
    >>> index.add(np.array([7, 9]), np.array([[1, 0], [0, 1]], dtype=np.float32))
    >>> index.search(np.array([[1, 0]], dtype=np.float32), 2).scores.tolist()
    [[0.0, -2.0]]
    """

    def __init__(
        self,
        factory: str = "Flat",
        *,
        metric: Metric = "cosine",
        train_size: int | None = None,
        seed: int = 0,
        options: Mapping[str, int] | None = None,
        recall: float | None = None,
        device: str = "cpu",
    ) -> None:
        if train_size is not None:
            check_positive(train_size=train_size)
        if not isinstance(cast("object", seed), int) or not 0 <= seed < 1 << 31:
            raise ConfigurationError(f"seed is {seed!r}.", "Give a whole number of 0 or more, below 2**31.")
        self.metric: Metric = check_metric(metric)
        self.recall = None if recall is None else check_recall(recall)
        check_device(device)
        self.train_size, self.seed, self.device = train_size, seed, device
        self._tuning: TuneReport | None = None
        self._declared = check_factory(factory)
        check_options(f"FaissIndex({factory!r})", options or {}, OPTIONS.values())
        self._options = dict(options or {})
        self._tuner = None if self.recall is None else Tuner(self, self.recall, seed=seed)
        self._held = GrowingIndex(
            factory, self.metric, train_size=train_size, seed=seed, device=device, options=self._options
        )

    @classmethod
    def preset(cls, name: str, *, rows: int, dim: int, metric: Metric = "cosine", recall: float | None = 0.95) -> Self:
        """A named index for so many rows of so many dimensions, tuned to a recall: see `reperio.indexes.presets`."""
        return cls(preset(name, rows, dim).factory, metric=metric, recall=recall)

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty. What was tuned is not part of it: another will tune itself."""
        return {
            "type": "FaissIndex",
            "factory": self._declared,
            "metric": self.metric,
            "train_size": self.train_size,
            "seed": self.seed,
            "options": self._options or None,
            "recall": self.recall,
            "device": self.device,
        }

    @property
    def factory(self) -> str:
        """The factory string; ``"auto"`` until one is chosen."""
        main = self._held.main
        return self._declared if main is None else main.factory

    @property
    def options(self) -> dict[str, int]:
        """The search options in force beside the defaults: those tuned, for as many results, and those given."""
        return dict(self._options) if self.tuning is None else self.tuning.in_use

    @property
    def tuning(self) -> TuneReport | None:
        """What `autotune` measured and chose, and in `TuneReport.in_use` what `options` are of it."""
        report = self._tuning
        return None if report is None else report.now(self._taken_in, self._options)

    @tuning.setter
    def tuning(self, report: TuneReport | None, /) -> None:
        # What it may say of the rows and options of another index is not true of this.
        self._tuning = None if report is None else replace(report, held=None, given={})

    @property
    def _taken_in(self) -> int:
        return len(self._held.rows)

    def _tuned(self, k: int) -> dict[str, int]:
        return {} if self._tuning is None else self._tuning.options_for(k, self._taken_in)

    def _keep_tuning(self, report: TuneReport | None) -> None:
        """Let go of what was measured before it had learnt, or with another factory."""
        main = self._held.ready
        fits = report is not None and main is not None and report.fits(main.factory, main.defaults(1))
        self._tuning = report if fits else None

    @property
    def lossless(self) -> bool:
        """Whether scores are exact: not after quantisation or projection, unless refined by the vectors themselves."""
        kind = self._held.typical()
        return kind is not None and kind.lossless

    @property
    def exhaustive(self) -> bool:
        """Whether a search compares every row."""
        return self._declared == "Flat"

    @property
    def lowest(self) -> float:
        """-1 for cosine, else ``-inf``."""
        return -1.0 if self.metric == "cosine" else -np.inf

    def __len__(self) -> int:
        return len(self._held)

    @property
    def waiting(self) -> int:
        """Rows that are searched exactly until FAISS takes them in."""
        return len(self._held.tail)

    @property
    def waiting_ids(self) -> IdSet:
        """Keys of the rows that wait, ``(w,)``, sorted."""
        return self._held.tail.ids

    @property
    def ids(self) -> IdSet:
        """Every row key held, ``(n,)``, sorted."""
        rows = self._held.rows
        return np.sort(np.concatenate([rows.ids[rows.alive], self._held.tail.ids]))

    @property
    def dim(self) -> int | None:
        """d; None before the first row."""
        return self._held.dim

    @property
    def row_bytes(self) -> int:
        """Memory that a row takes in FAISS."""
        main = self._held.main
        return 0 if main is None else main.row_bytes

    @property
    def widest(self) -> dict[str, int]:
        """The search options there are, and the values beyond which nothing more is found."""
        main = self._held.ready
        return {} if main is None else main.largest

    # Changing

    @property
    def training_size(self) -> int:
        """How many vectors `train` wants; 0 where nothing is to be learnt (any more)."""
        return self._held.training_size

    def train(self, sample: Dense, /) -> None:
        """Learn from a random sample of what will be held, then take in the rows that wait.

        Raises
        ------
        UnsupportedOperation
            If there is nothing to be learnt, or it was already.
        ShapeError, ConfigurationError
            Too few vectors, or wrong ones; a factory that FAISS cannot build or train.
        """
        self._held.train(check_dense(sample, what="sample", dim=self.dim), self._tuner)

    def add(self, ids: Ids, embeddings: Dense, /) -> None:
        """Insert or replace rows.

        Raises
        ------
        ShapeError
            Another number of dimensions than before, NaN or infinity, or not one id for each row.
        InvalidInput
            A negative id, or one that comes twice.
        ConfigurationError
            If FAISS cannot build or train this factory for these dimensions.
        """
        vectors = check_dense(embeddings, what="embeddings", dim=self.dim)
        ids = check_ids(ids, rows=len(vectors))
        if len(ids):
            self._held.add(ids, vectors, self._tuner)

    def remove(self, ids: Ids, /) -> int:
        """Take rows away; returns how many were there."""
        return self._held.remove(check_removed(ids))

    def compact(self) -> None:
        """Give back the positions of rows removed or replaced, and take in rows added to a mapped index.

        Where ``"auto"`` chooses another factory, what was tuned for the one before is let go.

        Raises
        ------
        UnsupportedOperation
            If the vectors cannot be had back exactly from the index, or its lists are on disk.
        """
        try:
            self._held.compact(self._tuner)
        finally:
            self._keep_tuning(self._tuning)

    # Searching

    def search(
        self, queries: Dense, k: int, /, *, allowed: IdSet | None = None, options: Mapping[str, int] | None = None
    ) -> Neighbors:
        """The k best rows for each query, among ``allowed`` if given: always min(k, allowed held) of them.

        Parameters
        ----------
        options
            ``nprobe``, ``efSearch``, ``k_factor``: those that the factory has.

        Raises
        ------
        InvalidInput
            If k is not positive.
        ShapeError
            If the queries have other dimensions than the rows, or hold NaN or infinity.
        ConfigurationError
            For an option that the factory does not have.
        """
        held, main = self._held, self._held.ready
        allowed = check_search(k, allowed, options, known=held.rows.asked)
        vectors = check_dense(queries, what="queries", dim=self.dim)
        self._check(options, k)
        if main is None:
            return held.tail.search(vectors, k, allowed=allowed)
        chosen, settings = held.rows.chosen(allowed), self._settings(main, k, options)
        return self._keyed(main.search(held.scaled(vectors), k, chosen, settings), vectors, k, allowed)

    def exact(self, queries: Dense, k: int, /, *, allowed: IdSet | None = None) -> Neighbors:
        """The twin of `search` that compares every row, as it is kept: what an approximate search is measured by."""
        allowed = check_search(k, allowed)
        vectors = check_dense(queries, what="queries", dim=self.dim)
        held, main = self._held, self._held.ready
        if main is None:
            return held.tail.search(vectors, k, allowed=allowed)
        found = main.exact(held.scaled(vectors), k, held.rows.chosen(allowed))
        return self._keyed(found, vectors, k, allowed)

    def search_range(
        self,
        queries: Dense,
        threshold: float,
        /,
        *,
        allowed: IdSet | None = None,
        options: Mapping[str, int] | None = None,
        exact: bool = False,
    ) -> Ranges:
        """Every row whose score is ``threshold`` or more, among ``allowed`` if given.

        Parameters
        ----------
        threshold
            A score: for ``"l2"`` a squared distance, negated.
        options
            As for `search`: a graph or lists may miss rows that lie where it does not look.
        exact
            Whether to compare every row instead. A refined index always does.

        Raises
        ------
        InvalidInput
            A threshold that is no finite number.
        UnsupportedOperation
            If FAISS has no range search for this index, or cannot compare its rows one by one.
        """
        threshold, allowed = check_threshold(threshold), check_search(1, allowed, options)
        vectors = check_dense(queries, what="queries", dim=self.dim)
        self._check(options, 1)
        held, main = self._held, self._held.ready
        waiting = within(held.tail, vectors, threshold, allowed)
        if main is None or not main.total:
            return ordered(len(vectors), waiting)
        settings = None if exact else self._settings(main, 1, options)
        chosen = held.rows.chosen(allowed)
        asked, found, scores = main.search_range(held.scaled(vectors), threshold, chosen, settings)
        return ordered(len(vectors), (asked, held.rows.ids[found], scores), waiting)

    def _check(self, options: Mapping[str, int] | None, k: int) -> None:
        if options:
            kind = self._held.typical()
            known = OPTIONS.values() if kind is None else kind.defaults(k)
            check_options(f"FaissIndex({self.factory!r})", options, known)

    def _settings(self, main: FactoryIndex, k: int, options: Mapping[str, int] | None) -> dict[str, int]:
        return {**main.defaults(k), **self._tuned(k), **self._options, **(options or {})}

    def _keyed(self, found: Neighbors, queries: Dense, k: int, allowed: IdSet | None) -> Neighbors:
        """Row keys for positions, equal scores in the order of their keys; and the rows that wait."""
        held = self._held
        ids = held.rows.ids[found.ids] if len(held.rows.ids) else found.ids
        if ids.size and found.ids[:, -1].min() < 0:
            ids[found.ids < 0] = -1
        found = Neighbors(ids, found.scores)
        if len(held.tail):
            return merge([found, held.tail.search(queries, k, allowed=allowed)], k)
        return found if in_order(found) else merge([found], k)

    def score(self, queries: Dense, ids: Ids, /) -> Dense:
        """Scores of the given rows, ``(q, m)`` for ids ``(q, m)``; ``-inf`` where an id is -1 or not held.

        Exact where `lossless`; else of the vectors as the index keeps them.

        Raises
        ------
        UnsupportedOperation
            For RaBitQ that is not refined.
        """
        vectors = check_dense(queries, what="queries", dim=self.dim)
        pairs = check_pairs(ids, queries=len(vectors))
        held, main = self._held, self._held.ready
        out = held.tail.score(vectors, pairs)
        if main is not None:
            positions = held.rows.find(pairs.ravel())
            here = np.flatnonzero(positions >= 0)
            asked = here // max(1, pairs.shape[1])
            out.ravel()[here] = main.score(held.scaled(vectors), asked, positions[here])
        return out

    # Disk

    def save(self, path: Path | str, /) -> None:
        """Write a new folder: whole, checksummed and on disk when this returns, or absent."""
        meta = {
            "spec": dict(self.spec),
            "dim": self.dim,
            "faiss": load("faiss", extra="faiss").__version__,
            "factory": self.factory,
            "tuning": None if self.tuning is None else self.tuning.as_json(),
        }
        with new_folder(path, KIND, meta) as folder:
            self._held.write(folder)

    @staticmethod
    def maps(spec: Spec, /) -> bool:
        """Whether its file can stay on disk: not for a GPU."""
        return bool(spec.get("device", "cpu") == "cpu")

    @classmethod
    def open(cls, path: Path | str, /, *, mmap: bool = False, verify: bool = True, device: str | None = None) -> Self:
        """Read what `save` wrote.

        Parameters
        ----------
        mmap
            Leave FAISS's file on disk and map it into memory: opening takes little time and room. What is added
            then waits in memory, searched exactly; once that is more than 1024 rows, or `compact` is called, the file
            is read into memory and takes them in. An index whose lists are on disk (`build_sharded`) is always
            opened so, and what is added to it always waits. A collection opens its checkpoints mapped.
        verify
            Whether to read the checksums; sizes are checked always. A mapped folder is read once a process, and
            again when a file has changed: see `read_verified`.
        device
            Another than it was saved with.

        Raises
        ------
        NotFound, NewerFormat, CorruptArtifact
        UnsupportedOperation
            If this release of FAISS cannot map, or use this device.
        """
        with reading(cls, path, KIND, verify=verify, once=mmap or lists_on_disk(Path(path))) as (folder, meta):
            told = arguments(meta)
            if device is not None:
                told["device"] = device
            index = cls(**told)
            dim = None if meta["dim"] is None else whole(meta, "dim", least=1)
            index._held.read(folder, dim=dim, factory=meta.get("factory", index.factory), mapped=mmap)
            if meta.get("tuning") is not None:
                report = TuneReport.from_json(meta["tuning"])
                index._keep_tuning(report if index._tuner is None else index._tuner.recognised(report))
        return index
