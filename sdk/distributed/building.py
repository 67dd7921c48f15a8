"""Build an index from encoded texts, shard by shard, each on whatever machine has room for it."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from reperio.artifacts import new_folder, read_folder
from reperio.distributed.cluster import READER, Workers, cluster, tables
from reperio.distributed.columns import batches, from_columns, strings, write
from reperio.distributed.encoded import FILE, EncodedTexts
from reperio.distributed.plan import alone, settings_of
from reperio.distributed.sharded import KIND, NAMES, PLAN, SHARD
from reperio.embeddings import Embeddings, Ids, example
from reperio.errors import ConfigurationError, StorageError
from reperio.extras import load
from reperio.protocols import Index, Spec, Trainable
from reperio.registry import build as made

SAMPLE = "sample"
_SAMPLE = "training-sample"

_SHARDS = "index.shards"
"""Where an attempt at a shard with lists on disk keeps what is done of it."""

_BEGUN = ".begun"
"""Ends the name of the folder that keeps it once the attempt has ended, for the next one."""


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a job did.

    Attributes
    ----------
    rows
        In all shards.
    shards, reused
        Shards, and how many of them an earlier run had left.
    retries
        Times that a shard was begun and not finished, because its process or machine died, in this run or in the
        one before.
    learnt
        Rows that the index learnt from, the same for every shard; 0 where it learns nothing, or there are too few.
    bytes
        On disk.
    seconds, building
        Of this run on the clock, and of all shards together, over all runs.
    """

    rows: int
    shards: int
    reused: int
    retries: int
    learnt: int
    bytes: int
    seconds: float
    building: float


def build(
    encoded: EncodedTexts | Path | str,
    output: Path | str,
    *,
    index: Spec | Index[Any],
    shards: int = 1,
    memory_budget: int | None = None,
    workers: Workers | None = None,
    progress: bool | None = None,
) -> BuildReport:
    """Build an index over encoded texts, in shards that `ShardedIndex` searches as one.

    What an index has to learn, it learns once, from a random sample of all rows that every shard is given. A shard is
    written whole or not at all, and not built again when the job is run again.

    Parameters
    ----------
    encoded
        What `encode` wrote.
    output
        A folder that every machine of the cluster sees under this name.
    index
        The index of a shard, or its specification. One on a server is filled by `load_into`.
    shards
        How many: pieces of the texts are dealt out in their order. A shard is built in the memory of one worker.
    memory_budget
        Bytes in which a shard is built where it does not fit into memory: only `FaissIndex` with lists, which are
        then on disk, see `reperio.indexes.shards.build_sharded`.
    workers
        Processes that build.
    progress
        Whether to show a bar; None shows it on a terminal.

    Raises
    ------
    ConfigurationError
        An index on a server; more shards than pieces; more than one where a score depends on all rows, as in BM25;
        other settings or other texts than the folder was begun with.
    ShapeError
        If the index cannot hold such embeddings.
    CorruptArtifact
        If what `encode` wrote was altered.
    WriterBusy
        If another job runs in this folder.
    """
    start = time.perf_counter()
    texts = encoded if isinstance(encoded, EncodedTexts) else EncodedTexts(encoded)
    if not 1 <= shards <= len(texts.plan.pieces):
        problem = f"shards is {shards}, and there are {len(texts.plan.pieces)} pieces."
        raise ConfigurationError(problem, "Use 1 to that many, or encode with fewer rows in a piece.")
    empty, size = _tried(index, texts, shards, memory_budget)
    folder, crew = Path(output).absolute(), workers or Workers()
    with alone(folder), cluster() as ray:
        count = crew.fit(ray)
        job = _planned(folder, texts, dict(empty.spec), shards=shards, budget=memory_budget)
        learnt = _draw(ray, job, size)
        lost = _leavings(job)
        missing = [number for number, name in enumerate(job.names) if not (folder / name).exists()]
        hide = None if progress is None else not progress
        with tqdm(total=shards, initial=shards - len(missing), unit="shard", disable=hide) as bar:
            if missing:
                step: dict[str, Any] = {"fn": _Building(job), "num_cpus": crew.cpus, "num_gpus": crew.gpus}
                step["concurrency"] = min(count, len(missing))
                for table in tables(ray, [{"number": number} for number in missing], step):
                    bar.update(table.num_rows)
        lost += _leavings(job)
        done = [read_folder(folder / name, SHARD, checksums=False) for name in job.names]
        used = sum(file.stat().st_size for name in job.names for file in (folder / name).rglob("*") if file.is_file())
        rows, spent = sum(meta["rows"] for meta in done), sum(meta["seconds"] for meta in done)
        seconds = time.perf_counter() - start
        return BuildReport(rows, shards, shards - len(missing), lost, learnt, used, seconds, spent)


def _tried(index: Spec | Index[Any], texts: EncodedTexts, shards: int, budget: int | None) -> tuple[Index[Any], int]:
    """The index with one row such as will come, and how many it wants to learn from."""
    empty: Index[Any] = made(index) if isinstance(index, Mapping) else made(index.spec)
    kind = type(empty).__name__
    if hasattr(empty, "address"):
        raise ConfigurationError(f"{kind} is on a server.", "Use reperio.distributed.load_into.")
    if not isinstance(empty, Index):
        raise ConfigurationError(f"{kind} is no index.", "Name one, as FaissIndex.")
    if shards > 1 and kind == "BM25Index":
        problem = "BM25 weighs a term by how many of all rows have it, which no shard of several knows."
        raise ConfigurationError(problem, "Use shards=1.")
    if budget is not None and kind != "FaissIndex":
        raise ConfigurationError(f"{kind} cannot be built within a memory_budget.", "Use more shards.")
    if budget is not None and (empty.spec["options"] or empty.spec["recall"] or empty.spec["device"] != "cpu"):
        fix = "Leave them out; give options when searching."
        raise ConfigurationError("memory_budget goes without options, recall and another device.", fix)
    empty.add(np.zeros(1, dtype=np.int64), example(texts.fingerprint.kind, dim=texts.fingerprint.dim))
    size = empty.training_size if isinstance(empty, Trainable) else 0
    return empty, size if size <= len(texts) else 0


# Planning


@dataclass(frozen=True, slots=True)
class _Job:
    """What each process has to know."""

    folder: Path
    encoded: Path
    spec: Spec
    names: tuple[str, ...]
    pieces: tuple[tuple[int, ...], ...]
    budget: int | None


def _planned(folder: Path, texts: EncodedTexts, spec: Spec, *, shards: int, budget: int | None) -> _Job:
    dealt = np.array_split(np.arange(len(texts.plan.pieces)), shards)
    pieces = tuple(tuple(int(number) for number in some) for some in dealt)
    names = tuple(_name(i, [texts.plan.name(number) for number in some], spec) for i, some in enumerate(pieces))
    settings = {"index": json.loads(json.dumps(dict(spec))), "shards": shards, "encoded": texts.plan.digest}
    settings["memory_budget"] = budget
    if (folder / PLAN).exists():
        settings_of(read_folder(folder / PLAN, KIND), settings, folder)
    else:
        meta = {**settings, "names": list(names), "fingerprint": asdict(texts.fingerprint)}
        with new_folder(folder / PLAN, KIND, meta):
            pass
    return _Job(folder, texts.folder.absolute(), spec, names, pieces, budget)


def _name(number: int, parts: Sequence[str], spec: Spec) -> str:
    """Folder of a shard: other rows or another index is another name."""
    what = json.dumps([list(parts), dict(spec)], sort_keys=True)
    return f"shard-{number:05d}-{hashlib.blake2b(what.encode(), digest_size=8).hexdigest()}"


def _leavings(job: _Job) -> int:
    """How many attempts died, whose leavings are taken away, but for what the next one can go on from."""
    died = 0
    for name in job.names:
        begun = job.folder / f"{name}{_BEGUN}"
        for attempt in job.folder.glob(f".{name}.*.tmp"):
            died += 1
            with suppress(OSError):  # none, or another attempt has left some
                (attempt / _SHARDS).rename(begun)
            shutil.rmtree(attempt, ignore_errors=True)
        if (job.folder / name).exists():
            shutil.rmtree(begun, ignore_errors=True)
    return died


# Learning


def _draw(ray: Any, job: _Job, size: int) -> int:
    """Rows to learn from, chosen at random from all of them and kept in a file."""
    path = job.folder / SAMPLE
    if not size or path.exists():
        return size
    texts = EncodedTexts(job.encoded)
    chosen = np.sort(np.random.default_rng(0).choice(len(texts), size, replace=False))
    firsts = np.array([piece.first for piece in texts.plan.pieces])
    numbers = np.searchsorted(firsts, chosen, side="right") - 1
    items = [{"number": int(number), "keys": chosen[numbers == number].tolist()} for number in np.unique(numbers)]
    found = list(tables(ray, items, {"fn": _Drawing(job.encoded), "num_cpus": READER}))
    table = load("pyarrow", extra="ray").concat_tables(found).sort_by("key")
    with new_folder(path, _SAMPLE, {"rows": size}) as folder:
        write(folder / FILE, table)
    return size


class _Drawing:
    """Number of a piece and keys in it → these rows."""

    def __init__(self, encoded: Path) -> None:
        self._encoded = encoded

    def __call__(self, table: Any) -> Any:
        arrow = load("pyarrow", extra="ray")
        texts = EncodedTexts(self._encoded)
        keys = table.column("keys").combine_chunks().flatten().to_numpy()
        kept = list[Any]()
        for batch in texts.batches(table.column("number")[0].as_py()):
            wanted = arrow.table(batch.columns, names=batch.schema.names)
            kept.append(wanted.filter(arrow.array(np.isin(batch.column("key").to_numpy(), keys))))
        return arrow.concat_tables(kept).drop_columns(["id", "text_hash", "tokens", "truncated"])


# Building


class _Building:
    """Number of a shard → the shard, written."""

    def __init__(self, job: _Job) -> None:
        self._job = job

    def __call__(self, table: Any) -> Any:
        number: int = table.column("number")[0].as_py()
        path = self._job.folder / self._job.names[number]
        if not path.exists():  # an attempt whose answer was lost may have left it
            try:
                self._write(path, number)
            except (OSError, StorageError):
                if not path.exists():  # else another was quicker with the same
                    raise
        return load("pyarrow", extra="ray").table({"number": [number]})

    def _write(self, path: Path, number: int) -> None:
        start = time.perf_counter()
        texts = EncodedTexts(self._job.encoded)
        first = texts.plan.pieces[self._job.pieces[number][0]].first
        meta: dict[str, Any] = {"first": first}
        with new_folder(path, SHARD, meta) as folder:
            if self._job.budget is None:
                meta["rows"] = self._in_memory(folder, texts, number)
            else:
                meta["rows"] = self._on_disk(folder, texts, number)
            meta["seconds"] = time.perf_counter() - start

    def _in_memory(self, folder: Path, texts: EncodedTexts, number: int) -> int:
        index: Index[Any] = made(self._job.spec)
        learnt = self._sample(texts)
        if learnt is not None and isinstance(index, Trainable):
            cast("Trainable[Any]", index).train(learnt)
        for keys, embeddings in self._rows(folder, texts, number):
            index.add(keys, embeddings)
        index.save(folder / "index")
        return len(index)

    def _on_disk(self, folder: Path, texts: EncodedTexts, number: int) -> int:
        from reperio.indexes.shards import build_sharded

        # Another attempt may be at work on the same shard: what an earlier one has done of it, only one can take.
        begun = self._job.folder / f"{self._job.names[number]}{_BEGUN}"
        with suppress(FileNotFoundError):
            begun.rename(folder / _SHARDS)
        spec = self._job.spec
        try:
            built = build_sharded(
                cast("Iterator[tuple[Ids, Any]]", self._rows(folder, texts, number)),
                folder / "index",
                factory=spec["factory"],
                memory_budget=cast("int", self._job.budget),
                metric=spec["metric"],
                sample=cast("Any", self._sample(texts)),
                train_size=spec["train_size"],
                seed=spec["seed"],
            )
        except BaseException:
            with suppress(OSError):
                (folder / _SHARDS).rename(begun)
            raise
        return built.rows

    def _sample(self, texts: EncodedTexts) -> Embeddings | None:
        path = self._job.folder / SAMPLE
        if not path.exists():
            return None
        read_folder(path, _SAMPLE)
        arrow = load("pyarrow", extra="ray")
        return from_columns(arrow.Table.from_batches(list(batches(path / FILE))), texts.fingerprint)

    def _rows(self, folder: Path, texts: EncodedTexts, number: int) -> Iterator[tuple[Ids, Embeddings]]:
        """Keys and embeddings of a shard; its ids go into a file that is mapped, not read, when it is opened."""
        arrow, ipc = load("pyarrow", extra="ray"), load("pyarrow.ipc", extra="ray")
        schema = arrow.schema([("id", arrow.large_string())])
        with ipc.new_file(str(folder / NAMES), schema) as file:
            for block in texts.blocks(self._job.pieces[number]):
                file.write_batch(arrow.record_batch([strings(block.ids)], schema=schema))
                yield block.keys, block.embeddings
