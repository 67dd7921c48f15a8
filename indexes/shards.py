"""Build an index of more rows than memory holds: shard by shard, then merged into lists on disk.

Shapes: n rows, d dimensions.
"""

from __future__ import annotations

import shutil
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from reperio.artifacts import disk_errors, new_folder, read_folder
from reperio.embeddings import Dense, Ids, check_dense
from reperio.errors import ConfigurationError, CorruptArtifact, InvalidInput, NotFound, StorageError
from reperio.extras import load
from reperio.indexes.factory import FactoryIndex
from reperio.indexes.faiss import KIND, FaissIndex
from reperio.indexes.flat import FlatIndex, Metric, unit
from reperio.indexes.growing import FILE
from reperio.indexes.layers import LISTS
from reperio.indexes.rows import check_ids

__all__ = ["ShardedBuild", "build_sharded"]

Blocks: TypeAlias = Iterator[tuple[Ids, Dense]]

_CHUNK = 4096
"""Rows added at a time: what adding takes beside the shard."""

_COPIES = 4
"""Of a sample while it is learnt from: scaled, and as FAISS turns and encodes it."""

_LEAST = 1024
"""Rows that a shard must have room for."""


@dataclass(frozen=True, slots=True)
class ShardedBuild:
    """What a build did.

    Attributes
    ----------
    rows
        All that came, those replaced by a later one of the same key among them.
    shards, reused
        Shards merged, and how many of them an earlier build had left.
    """

    rows: int
    shards: int
    reused: int


def build_sharded(
    blocks: Iterable[tuple[Ids, Dense]],
    path: Path | str,
    *,
    factory: str,
    memory_budget: int,
    metric: Metric = "cosine",
    sample: Dense | None = None,
    train_size: int | None = None,
    seed: int = 0,
) -> ShardedBuild:
    """Build an index with lists on disk in bounded memory, as a folder that `FaissIndex.open` reads.

    It learns from a sample, fills one shard after the other, and keeps each in ``<path>.shards``. A build that was
    stopped goes on from there: what is there is checked, not done again, and the rows that it holds are read
    from ``blocks`` only to see that their keys are the same. What was damaged is told in a warning and done again, with
    all that came after it. At last the shards are merged list by list, in the
    order of their rows: the index finds what one built at once from the same sample finds.

    Parameters
    ----------
    blocks
        Row keys and vectors, in an order that is the same each time; a key that comes again replaces its row.
    path
        Folder to write; must not exist.
    factory
        ``"IVF4096,SQ8"``, ``"OPQ32,IVF65536_HNSW32,PQ32"``: lists, not refined and not with four-bit codes.
    memory_budget
        Bytes to be taken beside what the process and the blocks take already. Merging takes 9 for each row of the
        whole index, and about 33 where keys do not ascend.
    metric
        As in `FaissIndex`.
    sample
        Vectors to learn from. If not given, a random choice of the first rows that a third of the budget holds:
        fair only where rows come in no order.
    train_size
        How many to choose; if not given 64 for each list, and at least 4096. No more than the memory allows.
    seed
        Of the sample and of k-means.

    Raises
    ------
    ConfigurationError
        A factory that cannot be merged; a budget too small, or no number of bytes; shards of another build, or of
        other rows, in the way; a setting that `FaissIndex` refuses.
    InvalidInput
        No rows, or wrong ones.
    StorageError
        If ``path`` exists, or the disk refuses; what is done stays.

    Examples
    --------
    >>> import tempfile
    >>> rng = np.random.default_rng(0)
    >>> blocks = [(np.arange(i, i + 500), rng.standard_normal((500, 8), dtype=np.float32)) for i in (0, 500)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "index"
    ...     built = build_sharded(blocks, path, factory="IVF4,SQ8", memory_budget=1_000_000, train_size=400)
    ...     len(FaissIndex.open(path))
    1000
    """
    path = Path(path)
    if path.exists():
        raise StorageError(f"{path} exists already.", "Build into a new folder.")
    if not isinstance(cast("object", memory_budget), int | np.integer) or memory_budget < 1:
        raise ConfigurationError(f"memory_budget is {memory_budget!r}.", "Give a whole number of bytes: 3_000_000_000.")
    FaissIndex(factory, metric=metric, train_size=train_size, seed=seed)  # which refuses what it cannot be
    settings = {"factory": factory, "metric": metric, "train_size": train_size, "seed": seed}
    build = _Build(path, settings, budget=memory_budget)
    stream = build.train(iter(blocks), sample)
    del sample
    reused = build.fill(stream)
    rows = build.merge()
    build.check()
    shutil.rmtree(build.work)
    return ShardedBuild(rows, len(build.shards), reused)


class _Build:
    """One build, in the folder that keeps what is done of it."""

    def __init__(self, path: Path, settings: dict[str, Any], *, budget: int) -> None:
        self.path, self.work = path, path.with_name(f"{path.name}.shards")
        self.shards: list[Path] = []
        self._settings, self._budget = settings, budget
        self._faiss = load("faiss", extra="faiss")

    # Learning

    def train(self, stream: Blocks, sample: Dense | None) -> Blocks:
        """Learn, or find that it was done before; gives all the blocks again."""
        if (self.work / "trained").exists():
            try:
                self._index()
            except (CorruptArtifact, NotFound) as error:
                self._drop(0, error)
                shutil.rmtree(self.work / "trained")
            else:
                return stream
        if sample is None:
            sample, stream = self._drawn(stream)
        vectors = check_dense(sample, what="sample")
        main = self._empty(vectors.shape[1])
        if len(vectors) < main.centroids:
            problem = f"There are {len(vectors)} vectors to learn {main.centroids} lists from."
            raise ConfigurationError(problem, "Give more rows, a sample, or fewer lists.")
        if len(vectors) > self._affordable(main.dim):
            least = _COPIES * 4 * main.dim * len(vectors)
            problem = (
                f"memory_budget is {self._budget}; to learn from {len(vectors)} vectors takes {least} bytes or more."
            )
            raise ConfigurationError(problem, "Give more, or a smaller sample.")
        main.train(self._scaled(vectors))
        with new_folder(self.work / "trained", "faiss-trained", {**self._settings, "dim": main.dim}) as folder:
            main.write(folder / FILE)
        return stream

    def _empty(self, dim: int) -> FactoryIndex:
        main = FactoryIndex(self._settings["factory"], self._settings["metric"], dim, seed=self._settings["seed"])
        layers, faiss = main.layers, self._faiss
        lists = layers.kinds[-1] == "lists" and "refine" not in layers.kinds
        if not lists or not isinstance(faiss.downcast_InvertedLists(layers.core.invlists), faiss.ArrayInvertedLists):
            problem = f"{main.factory!r} cannot be merged on disk."
            raise ConfigurationError(problem, "Choose lists of whole codes, as 'IVF4096,SQ8', not refined.")
        return main

    def _affordable(self, dim: int) -> int:
        """Vectors that may be learnt from."""
        return self._budget // (_COPIES * 4 * dim)

    def _drawn(self, stream: Blocks) -> tuple[Dense, Blocks]:
        """A random choice of the first rows, and the blocks they came in once more."""
        kept: deque[tuple[Ids, Dense]] = deque()
        rows, dim = 0, 0
        for ids, vectors in stream:
            checked = check_dense(vectors, what="blocks", dim=dim or None)
            kept.append((ids, checked))
            rows, dim = rows + len(checked), checked.shape[1]
            if rows * dim * 4 > self._budget // 3:
                break
            kept[-1] = (np.array(ids), checked.copy())  # the next may come in the same arrays
        if not rows:
            raise InvalidInput("blocks gave no rows.", "Give some.")
        size = self._settings["train_size"] or self._empty(dim).training_size
        size = min(size, rows, max(1, self._affordable(dim) // 2))  # the blocks are still there
        chosen = np.sort(np.random.default_rng(self._settings["seed"]).choice(rows, size, replace=False))
        starts = np.cumsum([0, *(len(vectors) for _, vectors in kept)])
        places = np.searchsorted(starts, chosen, side="right") - 1
        drawn = np.stack([kept[place][1][row - starts[place]] for row, place in zip(chosen, places, strict=True)])
        return drawn, chain(_emptying(kept), stream)

    def _scaled(self, vectors: Dense) -> Dense:
        return unit(vectors) if self._settings["metric"] == "cosine" else vectors

    def _index(self) -> FactoryIndex:
        """An empty index that has learnt."""
        meta = read_folder(self.work / "trained", "faiss-trained")
        dim = meta.pop("dim")
        if meta != self._settings:
            other = next(name for name, value in meta.items() if value != self._settings[name])
            problem = f"{self.work} was begun with {other} {meta[other]!r}, not {self._settings[other]!r}."
            raise ConfigurationError(problem, "Go on with that, or remove the folder.")
        main = self._empty(dim)
        main.read(self.work / "trained" / FILE, mapped=False)
        main.layers.core.set_direct_map_type(self._faiss.DirectMap.NoMap)
        return main

    # Filling

    def fill(self, stream: Blocks) -> int:
        """Write the shards that are not there, or not as they were written; gives how many were."""
        rows = _Rows(stream, self._index().dim)
        while (shard := self._shard(len(self.shards))).exists():
            try:
                read_folder(shard, "faiss-shard")
            except (CorruptArtifact, NotFound) as error:
                self._drop(len(self.shards), error)
                break
            held = np.load(shard / "ids.npy", allow_pickle=False)
            given = [np.empty(0, dtype=np.int64), *(ids for ids, _ in rows.take(len(held)))]
            if not np.array_equal(held, np.concatenate(given)):
                raise ConfigurationError(f"{shard} holds other rows than blocks gives.", "Give the same, or remove it.")
            self.shards.append(shard)
        reused = len(self.shards)
        while self._write(rows):
            pass
        return reused

    def _drop(self, first: int, why: StorageError | NotFound) -> None:
        """Take away a shard and those after it: with another budget, one that is filled anew ends at another row."""
        warnings.warn(f"What was begun is damaged, and done again from there: {why.problem}", stacklevel=4)
        for shard in sorted(self.work.glob("shard-*"), reverse=True):  # the last first: what is left has no gap
            if shard.name >= self._shard(first).name:
                shutil.rmtree(shard)

    def _shard(self, number: int) -> Path:
        return self.work / f"shard-{number:05d}"

    def _write(self, rows: _Rows) -> bool:
        """Fill one shard up to the budget; False where no rows are left."""
        main, ids = self._index(), list[Ids]()
        for keys, vectors in rows.take(self._shard_rows(main)):
            main.append(self._scaled(vectors))
            ids.append(keys)
        if not ids:
            return False
        shard = self._shard(len(self.shards))
        with new_folder(shard, "faiss-shard", {}) as folder:
            np.save(folder / "ids.npy", np.concatenate(ids), allow_pickle=False)
            main.write(folder / FILE)
        self.shards.append(shard)
        return True

    def _shard_rows(self, main: FactoryIndex) -> int:
        """Rows that fit: a list is as large again while it grows, keys are there twice while they are written."""
        trained = (self.work / "trained" / FILE).stat().st_size
        fixed = 2 * trained + 4 * _CHUNK * main.dim * 4
        row = 2 * (main.layers.core.code_size + 8) + 16
        rows = int((self._budget - fixed) // row)
        if rows < _LEAST:
            problem = f"memory_budget is {self._budget}; {main.factory!r} takes {fixed + _LEAST * row} bytes or more."
            raise ConfigurationError(problem, "Give more, or fewer lists.")
        return rows

    # Merging

    def merge(self) -> int:
        """Write the index; gives its rows, those replaced among them."""
        if not self.shards:
            raise InvalidInput("blocks gave no rows.", "Give some.")
        main, settings = self._index(), self._settings
        ids = np.concatenate([np.load(s / "ids.npy", mmap_mode="r", allow_pickle=False) for s in self.shards])
        index = FaissIndex(settings["factory"], metric=settings["metric"], seed=settings["seed"])
        meta = {"spec": dict(index.spec), "dim": main.dim, "faiss": self._faiss.__version__}
        with new_folder(self.path, KIND, {**meta, "factory": main.factory, "tuning": None}) as folder:
            np.save(folder / "ids.npy", ids, allow_pickle=False)
            np.save(folder / "alive.npy", _last_of_each(ids), allow_pickle=False)
            FlatIndex(settings["metric"]).save(folder / "waiting")
            self._merge_lists(main, (folder / FILE).with_suffix(LISTS))
            main.write(folder / FILE)
        return len(ids)

    def check(self) -> None:
        """Open the index, before the shards that it was made of go; one that cannot be opened is taken away."""
        try:
            FaissIndex.open(self.path, verify=False)  # its files were read for their checksums a moment ago
        except BaseException:
            shutil.rmtree(self.path)
            raise

    def _merge_lists(self, main: FactoryIndex, path: Path) -> None:
        """Write the lists of all shards one after the other, each list's codes before its numbers."""
        faiss, first, parts = self._faiss, 0, list[tuple[FactoryIndex, Any, int]]()
        for shard in self.shards:
            part = self._empty(main.dim)
            part.read(shard / FILE, mapped=True)
            parts.append((part, faiss.downcast_InvertedLists(part.layers.core.invlists), first))
            first += part.total
        width = int(parts[0][1].code_size)
        sizes = np.zeros(main.layers.lists, dtype=np.uint64)
        with disk_errors(path), path.open("wb") as file:
            for number in range(main.layers.lists):
                every = [(lists, int(lists.list_size(number)), start) for _, lists, start in parts]
                held = [one for one in every if one[1]]
                for lists, size, _ in held:
                    file.write(faiss.rev_swig_ptr(lists.get_codes(number), size * width).data)
                for lists, size, start in held:
                    file.write((faiss.rev_swig_ptr(lists.get_ids(number), size) + start).data)
                sizes[number] = sum(size for _, size, _ in held)
        lists = faiss.OnDiskInvertedLists(main.layers.lists, width, str(path))
        lists.set_all_lists_sizes(faiss.swig_ptr(sizes))
        lists.totsize = path.stat().st_size
        main.layers.attach(lists, first)


class _Rows:
    """Blocks cut to the number of rows that is asked for."""

    def __init__(self, stream: Blocks, dim: int) -> None:
        self._stream, self._dim = stream, dim
        self._rest: tuple[Ids, Dense] | None = None

    def take(self, count: int) -> Blocks:
        """The next ``count`` rows, or as many as there are, at most 4096 at a time."""
        while count:
            block = self._rest or next(self._stream, None)
            if block is None:
                return
            vectors = check_dense(block[1], what="blocks", dim=self._dim)
            ids = check_ids(block[0], rows=len(vectors))
            size = min(count, len(ids), _CHUNK)
            self._rest = (ids[size:], vectors[size:]) if size < len(ids) else None
            count -= size
            if size:
                yield ids[:size].copy(), vectors[:size]  # keys are kept, and the next may come in the same array


def _last_of_each(ids: Ids) -> NDArray[np.bool_]:
    """Where each key stands for the last time, ``(n,)``."""
    if (ids[1:] > ids[:-1]).all():
        return np.ones(len(ids), dtype=np.bool_)
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    out = np.zeros(len(ids), dtype=np.bool_)
    out[order[np.append(ordered[1:] != ordered[:-1], True)]] = True
    return out


def _emptying(blocks: deque[tuple[Ids, Dense]]) -> Blocks:
    """Each in turn, held no longer."""
    while blocks:
        yield blocks.popleft()
