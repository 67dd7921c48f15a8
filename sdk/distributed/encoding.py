"""Encode a source on a cluster, piece by piece; whatever dies, each piece is done whole, once."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from reperio.artifacts import new_folder, read_folder
from reperio.distributed.census import census, digest, taken
from reperio.distributed.cluster import Workers, cluster, errors, tables
from reperio.distributed.columns import checked, strings, to_columns, write
from reperio.distributed.encoded import FILE, KIND
from reperio.distributed.loading import INDEX, Target
from reperio.distributed.plan import PARTS, PLAN, Plan, alone, told
from reperio.embeddings import Embeddings, joined
from reperio.errors import ConfigurationError, CorruptArtifact, FingerprintMismatch, InvalidInput, StorageError
from reperio.extras import load
from reperio.protocols import Divisible, Encoder, Index, Spec
from reperio.registry import build as made
from reperio.stores.rows import text_hash
from reperio.types import Document, Fingerprint

BATCH = 1024
"""Texts given to the encoder at a time; the same in every run, so that a piece made again is the same to the byte."""


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """What a job did.

    Attributes
    ----------
    documents
        Embeddings that are there now.
    skipped
        Rows without a text.
    truncated, tokens
        Texts that were cut, and tokens of all texts before they were cut.
    pieces, reused
        Pieces of the source, and how many of them an earlier run had left.
    retries
        Times that a piece was begun and not finished, because its process or machine died, in this run or in the
        one before.
    seconds, encoding
        Of this run on the clock, and of the encoders, all together, over all runs.
    """

    documents: int
    skipped: int
    truncated: int
    tokens: int
    pieces: int
    reused: int
    retries: int
    seconds: float
    encoding: float


def encode(
    source: Divisible,
    output: Path | str,
    *,
    encoder: Spec | Encoder[Any],
    into: Spec | Index[Any] | None = None,
    rows: int = 10_000,
    workers: Workers | None = None,
    progress: bool | None = None,
) -> EncodeReport:
    """Encode every document of a source on a cluster.

    The source is cut into pieces, once, and read whole, once, before anything is encoded: what is wrong with it is
    found then. Each piece is written whole or not at all, under a name that its texts and the encoder make. Run
    again after whatever stopped it, or after it was done: pieces that are there are not done again. A source that
    changed meanwhile, or another encoder, is refused.

    Parameters
    ----------
    source
        `FileSource` over Parquet, `SQLSource`, or any other that is `reperio.protocols.Divisible`.
    output
        A folder that every machine of the cluster sees under this name.
    encoder
        What encodes, or the specification of it.
    into
        An index on a server, or the specification of one: vectors go there, under keys that count documents from 0,
        and no copy of them is kept. `reperio.distributed.load_into` sends there what was kept.
    rows
        In a piece: what is done again where a machine dies, and what a worker holds.
    workers
        Processes that encode.
    progress
        Whether to show a bar; None shows it on a terminal.

    Raises
    ------
    DuplicateId, ConnectorError, InvalidInput
        What is wrong with the source.
    FingerprintMismatch
        If the folder was begun with another encoder, or a machine has another.
    ConfigurationError
        Other settings than the folder was begun with; more workers than the cluster has room for.
    InvalidInput
        If a piece of the source changed since the folder was begun.
    WriterBusy
        If another job runs in this folder.
    MissingDependency
        If Ray is not installed.

    Warns
    -----
    UserWarning
        Of rows without a text, of texts that were cut, and of rows that came since the folder was begun.
    """
    start = time.perf_counter()
    spec = _spec_of(encoder)
    if rows < 1:
        raise ConfigurationError(f"rows is {rows}.", "Use 1 or more.")
    if not isinstance(source, Divisible):
        raise InvalidInput(f"{type(source).__name__} cannot be read in pieces.", "Use FileSource or SQLSource.")
    folder, crew = Path(output).absolute(), workers or Workers()
    with alone(folder), cluster() as ray:
        count = crew.fit(ray)
        fingerprint = _fingerprint(ray, spec, crew)
        plan = _planned(ray, source, folder, rows=rows, encoder=(spec, fingerprint), straight=into is not None)
        target = None if into is None else Target(folder / INDEX, into, fingerprint)
        if target is not None and target.embedded and count > 1:
            count = 1  # one process at a time may open its file
        reused, lost = _tidy(folder, plan)
        job = _Job(folder, plan, source, spec, None if target is None else target.folder)
        _run(ray, job, crew, count, progress)
        if target is not None:
            target.settle()
        lost += _tidy(folder, plan)[1]
        return _report(folder, plan, reused=reused, retries=lost, seconds=time.perf_counter() - start)


def _spec_of(encoder: Spec | Encoder[Any]) -> Spec:
    spec: Any = encoder if isinstance(encoder, Mapping) else getattr(encoder, "spec", None)
    if not isinstance(spec, Mapping):
        raise ConfigurationError(f"encoder is a {type(encoder).__name__}.", "Give an encoder, or its specification.")
    return dict(cast("Spec", spec))


def _fingerprint(ray: Any, spec: Spec, crew: Workers) -> Fingerprint:
    """Asked where the encoder will run: this machine may have neither the model's files nor a GPU."""
    with errors(ray):
        ask = ray.remote(num_cpus=crew.cpus, num_gpus=crew.gpus)(lambda: _encoder(spec).fingerprint)
        found: Fingerprint = ray.get(ask.remote())
    return found


def _encoder(spec: Spec) -> Encoder[Any]:
    encoder: Encoder[Any] = made(spec)
    if not isinstance(encoder, Encoder):
        raise ConfigurationError(f"{spec.get('type')} is no encoder.", "Name one, as DenseEncoder.")
    return encoder


# Planning


def _planned(
    ray: Any, source: Divisible, folder: Path, *, rows: int, encoder: tuple[Spec, Fingerprint], straight: bool
) -> Plan:
    """The plan that is written down, found to be true still, or a new one."""
    spec, fingerprint = encoder
    parts = source.divide(rows)
    if (folder / PLAN).exists():
        plan = Plan.read(folder)
        plan.same_job(folder, rows=rows, fingerprint=fingerprint, straight=straight)
        _same_source(ray, source, plan)
        if parts != [piece.part for piece in plan.pieces]:
            warnings.warn(
                f"{source.name} has rows that came after {folder} was begun: they are left out.", stacklevel=3
            )
        return plan
    plan = Plan(source.name, rows, spec, fingerprint, straight, tuple(census(ray, source, parts, rows=rows)))
    plan.write(folder)
    return plan


def _same_source(ray: Any, source: Divisible, plan: Plan) -> None:
    for old, new in zip(plan.pieces, census(ray, source, [p.part for p in plan.pieces], rows=plan.rows), strict=True):
        if old.digest != new.digest:
            what = (
                f"{new.documents} documents, and held {old.documents}" if new.documents != old.documents else "others"
            )
            raise InvalidInput(f"{source.name} changed: {told(old.part)} holds {what}.", "Encode into a new folder.")


# Running


@dataclass(frozen=True, slots=True)
class _Job:
    """What each process has to know."""

    folder: Path
    plan: Plan
    source: Divisible
    encoder: Spec
    target: Path | None


def _run(ray: Any, job: _Job, crew: Workers, count: int, progress: bool | None) -> None:
    missing = [n for n in range(len(job.plan.pieces)) if not (job.folder / PARTS / job.plan.name(n)).exists()]
    hide = None if progress is None else not progress
    done = job.plan.documents - sum(job.plan.pieces[number].documents for number in missing)
    with tqdm(total=job.plan.documents, initial=done, unit="doc", disable=hide) as bar:
        if not missing:
            return
        count = min(count, len(missing))
        reading = {"fn": _Reading(job), "num_cpus": 0, "concurrency": count}
        pool = ray.data.ActorPoolStrategy(size=count)
        encoding: dict[str, Any] = {"fn": _Encoding, "fn_constructor_args": (job,), "compute": pool}
        encoding |= {"num_cpus": crew.cpus, "num_gpus": crew.gpus}
        for table in tables(ray, [{"number": number} for number in missing], reading, encoding):
            bar.update(sum(table.column("documents").to_pylist()))


class _Reading:
    """Number of a piece → its documents, as one row."""

    def __init__(self, job: _Job) -> None:
        self._job = job

    def __call__(self, table: Any) -> Any:
        arrow = load("pyarrow", extra="ray")
        number: int = table.column("number")[0].as_py()
        piece = self._job.plan.pieces[number]
        documents, _ = taken(self._job.source, piece.part)
        if digest(documents) != piece.digest:
            problem = f"{self._job.source.name} changed while the job ran: {told(piece.part)}."
            raise InvalidInput(problem, "Encode into a new folder, from what stays as it is.")
        listed = arrow.large_list(arrow.large_string())
        ids = arrow.array([[document.id for document in documents]], type=listed)
        texts = arrow.array([[document.text for document in documents]], type=listed)
        return arrow.table({"number": [number], "ids": ids, "texts": texts})


class _Encoding:
    """Documents of a piece → their embeddings, written."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._encoder = _encoder(job.encoder)
        mine = self._encoder.fingerprint
        if mine.digest != job.plan.fingerprint.digest:
            differ = "; ".join(job.plan.fingerprint.differences(mine))
            raise FingerprintMismatch(f"This machine has another encoder: {differ}.", "Give all the same model.")
        self._index = None if job.target is None else Target.opened(job.target)

    def __call__(self, table: Any) -> Any:
        number = table.column("number")[0].as_py()
        path = self._job.folder / PARTS / self._job.plan.name(number)
        names, texts = (table.column(name)[0].as_py() for name in ("ids", "texts"))
        if not path.exists():  # an attempt whose answer was lost may have left it
            documents = [Document(name, text) for name, text in zip(names, texts, strict=True)]
            try:
                self._write(path, number, documents)
            except (OSError, StorageError):
                if not path.exists():  # else another was quicker with the same
                    raise
        return load("pyarrow", extra="ray").table({"number": [number], "documents": [len(names)]})

    def _write(self, path: Path, number: int, documents: list[Document]) -> None:
        meta: dict[str, Any] = {}
        with new_folder(path, KIND, meta) as folder:  # a process that is killed leaves it behind, to be counted
            start = time.perf_counter()
            embeddings, tokens, truncated = self._encoded([document.text for document in documents])
            meta |= {"documents": len(documents), "skipped": self._job.plan.pieces[number].skipped}
            meta |= {"tokens": int(tokens.sum()), "truncated": int(truncated.sum())}
            meta["seconds"] = time.perf_counter() - start
            keys = np.arange(len(documents), dtype=np.int64) + self._job.plan.pieces[number].first
            if self._index is not None:
                self._index.add(keys, embeddings)
                Target.let_go(self._index)
            arrow = load("pyarrow", extra="ray")
            hashes = [text_hash(document.text) for document in documents]
            columns = {
                "key": arrow.array(keys),
                "id": strings([document.id for document in documents]),
                "text_hash": arrow.array(hashes, type=arrow.binary(16)),
                "tokens": arrow.array(tokens),
                "truncated": arrow.array(truncated),
            }
            write(folder / FILE, arrow.table(columns if self._index is not None else columns | to_columns(embeddings)))

    def _encoded(self, texts: list[str]) -> tuple[Embeddings, Any, Any]:
        fingerprint, parts = self._job.plan.fingerprint, list[Any]()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*texts were cut")  # counted, and told once for the whole job
            for at in range(0, len(texts), BATCH):
                parts.append(self._encoder.encode_document(texts[at : at + BATCH]))
        sizes = [len(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
        rows = [checked(part.embeddings, fingerprint, rows=n) for part, n in zip(parts, sizes, strict=True)]
        tokens = np.concatenate([np.empty(0, np.int64), *(part.token_counts for part in parts)])
        truncated = np.concatenate([np.empty(0, np.bool_), *(part.truncated for part in parts)])
        return joined(rows, fingerprint.kind, dim=fingerprint.dim), tokens, truncated


# Reporting


def _tidy(folder: Path, plan: Plan) -> tuple[int, int]:
    """Pieces that are there; and how many attempts died, whose leavings are taken away."""
    parts = folder / PARTS
    parts.mkdir(exist_ok=True)
    left = list(parts.glob(".*.tmp"))
    for attempt in left:
        shutil.rmtree(attempt, ignore_errors=True)
    return sum((parts / plan.name(number)).exists() for number in range(len(plan.pieces))), len(left)


def _report(folder: Path, plan: Plan, *, reused: int, retries: int, seconds: float) -> EncodeReport:
    totals = {"documents": 0, "skipped": 0, "truncated": 0, "tokens": 0, "seconds": 0.0}
    for number, piece in enumerate(plan.pieces):
        meta = read_folder(folder / PARTS / plan.name(number), KIND, checksums=False)
        if meta["documents"] != piece.documents:
            problem = (
                f"{folder / PARTS / plan.name(number)} holds {meta['documents']} documents, not {piece.documents}."
            )
            raise CorruptArtifact(problem, "Remove it, and run the job again.")
        for name in totals:
            totals[name] += meta[name]
    if totals["skipped"]:
        warnings.warn(f"{plan.source}: {totals['skipped']} rows skipped: they have no text.", stacklevel=3)
    if totals["truncated"]:
        told_of = f"{totals['truncated']} of {totals['documents']} texts were cut; on_truncation='chunk' loses nothing."
        warnings.warn(told_of, stacklevel=3)
    encoding = totals.pop("seconds")
    return EncodeReport(
        **{name: int(value) for name, value in totals.items()},
        pieces=len(plan.pieces), reused=reused, retries=retries, seconds=seconds, encoding=encoding,
    )  # fmt: skip
