"""Embeddings into an index on a server; done twice, a row is there once."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from reperio.artifacts import MANIFEST, new_folder
from reperio.distributed.cluster import Workers, cluster, tables
from reperio.distributed.encoded import EncodedTexts
from reperio.distributed.plan import alone, settings_of
from reperio.embeddings import example
from reperio.errors import ConfigurationError, CorruptArtifact, StorageError
from reperio.extras import load
from reperio.protocols import Index, Spec
from reperio.registry import build as made
from reperio.registry import resolve
from reperio.types import Fingerprint

INDEX = "index"
LOADED = "loaded"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a job did.

    Attributes
    ----------
    documents
        Rows that the server has now.
    pieces, reused
        Pieces of the encoded texts, and how many of them an earlier run had sent.
    retries
        Times that a piece was begun and not acknowledged, because its process or machine died.
    seconds
        Of this run.
    """

    documents: int
    pieces: int
    reused: int
    retries: int
    seconds: float


class Target:
    """The index on a server that a job fills: its table is made first, and named in a folder that every process reads.

    Parameters
    ----------
    folder
        Where it is named.
    index
        It, or its specification.
    fingerprint
        Of the embeddings that will come.

    Raises
    ------
    ConfigurationError
        If it is not on a server, or another than the folder names.
    ShapeError
        If it cannot hold such embeddings.
    """

    def __init__(self, folder: Path, index: Spec | Index[Any], fingerprint: Fingerprint) -> None:
        given: Any = made(index) if isinstance(index, Mapping) else index
        if not all(hasattr(given, name) for name in ("address", "drop", "settle")):
            kind = type(given).__name__
            raise ConfigurationError(f"{kind} is not on a server.", "Give PgvectorIndex, MilvusIndex or QdrantIndex.")
        self.folder = folder
        self.embedded = _embedded(given)
        if folder.exists():
            saved = self.opened(folder).spec
            settings_of(saved, given.spec, folder)
        else:
            one = example(fingerprint.kind, dim=fingerprint.dim)
            given.add(np.zeros(1, dtype=np.int64), one)  # so that no two processes make the table
            given.remove(np.zeros(1, dtype=np.int64))
            given.save(folder)
        self.let_go(given)

    @staticmethod
    def opened(folder: Path) -> Any:
        """The index that a folder names."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            kind = manifest["meta"]["spec"]["type"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptArtifact(f"{folder} names no index: {error}.", "Remove it, and run the job again.") from error
        return resolve(kind).open(folder)

    def settle(self) -> None:
        """Let the server make what came quick to search."""
        index = self.opened(self.folder)
        index.settle()
        self.let_go(index)

    def count(self) -> int:
        """Rows that the server has."""
        index = self.opened(self.folder)
        rows = len(index)
        self.let_go(index)
        return rows

    @staticmethod
    def let_go(index: Any) -> None:
        """Close an embedded file, which one process at a time may open; the next call opens it again."""
        if _embedded(index):
            index.close()


def _embedded(index: Any) -> bool:
    return bool(getattr(index, "embedded", False))


def load_into(
    encoded: EncodedTexts | Path | str,
    output: Path | str,
    *,
    index: Spec | Index[Any],
    workers: Workers | None = None,
    progress: bool | None = None,
) -> LoadReport:
    """Send encoded texts to an index on a server, from several machines at once.

    A piece is noted down when the server has acknowledged all of it, and sent again where that was not reached;
    rows replace those with their key, so none is there twice.

    Parameters
    ----------
    encoded
        What `encode` wrote.
    output
        Folder that names the index in ``index`` and keeps what was acknowledged.
    index
        An index on a server, or its specification. Passwords are not written down: each machine takes them
        from its environment (``PGPASSWORD``, ``~/.pgpass``, ``MILVUS_TOKEN``).
    workers
        Processes that send; one for an embedded file.
    progress
        Whether to show a bar; None shows it on a terminal.

    Raises
    ------
    ConfigurationError
        If the index is not on a server, or not the one that the folder was begun with.
    ShapeError
        If the index cannot hold such embeddings.
    ServerUnavailable
        Run it again.
    WriterBusy
        If another job runs in this folder.
    """
    start = time.perf_counter()
    texts = encoded if isinstance(encoded, EncodedTexts) else EncodedTexts(encoded)
    folder, crew = Path(output).absolute(), workers or Workers()
    with alone(folder), cluster() as ray:
        count = crew.fit(ray)
        target = Target(folder / INDEX, index, texts.fingerprint)
        notes = folder / LOADED
        notes.mkdir(exist_ok=True)
        lost = _leavings(notes)
        names = [texts.plan.name(number) for number in range(len(texts.plan.pieces))]
        missing = [number for number, name in enumerate(names) if not (notes / name).exists()]
        hide = None if progress is None else not progress
        with tqdm(total=len(names), initial=len(names) - len(missing), unit="piece", disable=hide) as bar:
            if missing:
                pool = ray.data.ActorPoolStrategy(size=1 if target.embedded else min(count, len(missing)))
                sending: dict[str, Any] = {
                    "fn": _Sending,
                    "fn_constructor_args": (folder, texts.folder),
                    "compute": pool,
                }
                sending |= {"num_cpus": crew.cpus, "num_gpus": crew.gpus}
                for table in tables(ray, [{"number": number} for number in missing], sending):
                    bar.update(table.num_rows)
        target.settle()
        lost += _leavings(notes)
        reused = len(names) - len(missing)
        return LoadReport(target.count(), len(names), reused, lost, time.perf_counter() - start)


class _Sending:
    """Number of a piece → its rows are on the server."""

    def __init__(self, folder: Path, encoded: Path) -> None:
        self._notes, self._texts = folder / LOADED, EncodedTexts(encoded)
        self._index = Target.opened(folder / INDEX)
        Target.let_go(self._index)

    def __call__(self, table: Any) -> Any:
        number = table.column("number")[0].as_py()
        note = self._notes / self._texts.plan.name(number)
        try:
            if not note.exists():
                with new_folder(note, "loaded-piece", {}):
                    for block in self._texts.blocks([number]):
                        self._index.add(block.keys, block.embeddings)
                    Target.let_go(self._index)
        except (OSError, StorageError):
            if not note.exists():
                raise
        return load("pyarrow", extra="ray").table({"number": [number]})


def _leavings(notes: Path) -> int:
    left = list(notes.glob(".*.tmp"))
    for attempt in left:
        shutil.rmtree(attempt, ignore_errors=True)
    return len(left)
