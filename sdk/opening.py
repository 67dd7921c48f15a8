"""Opening a collection: where it is, who may write it, and how its documents are found."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from reperio.artifacts import disk_errors, replace_text
from reperio.embeddings import Dense
from reperio.errors import ConfigurationError, NotFound, StorageError, WriterBusy
from reperio.postgres import is_url, split_collection
from reperio.protocols import Encoder, Index, Store
from reperio.signals import LiveSignal, Signal, describe
from reperio.stores.rows import SIGNALS, Mode
from reperio.stores.sqlite import SQLiteStore

Signals: TypeAlias = Mapping[str, Signal[Any]]

_OURS = ("store.sqlite", "writer.", "indexes", ".")
"""What may lie in the folder of a collection whose making was cut short, or be put there by a file manager."""


def hybrid(encoder: Encoder[Dense] | None = None, *, index: Index[Dense] | None = None) -> dict[str, Signal[Any]]:
    """The default signals: BM25, and dense vectors in an exact FAISS index.

    Parameters
    ----------
    encoder
        Makes the dense vectors; all-MiniLM-L6-v2 where None.
    index
        Holds them; ``FaissIndex("Flat")`` where None.
    """
    from reperio.encoders.dense import DenseEncoder
    from reperio.indexes.faiss import FaissIndex

    # An empty index is falsy: ask for None by name.
    dense = Signal(DenseEncoder() if encoder is None else encoder, FaissIndex() if index is None else index)
    return {**lexical(), "dense": dense}


def lexical(language: str = "english") -> dict[str, Signal[Any]]:
    """BM25 alone: needs no model."""
    from reperio.encoders.bm25 import BM25Encoder
    from reperio.indexes.bm25 import BM25Index

    # Tokenising again is quicker than reading term counts back, and half the size on disk.
    return {"bm25": Signal(BM25Encoder(language), BM25Index(), stored=False)}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a collection is.

    Attributes
    ----------
    store
        The truth.
    folder
        Holds what is derived from it: the collection's own, or this client's cache of a server's.
    release
        Gives back the right to write and lets go of the store; safe to call twice.
    writer
        The process of this machine that has the right to write, as far as can be told.
    """

    store: Store
    folder: Path
    release: Callable[[], None]
    writer: Callable[[], int | None] = lambda: None


def place(path: Path | str, *, mode: Mode, collection: str | None, cache: Path | str | None) -> Place:
    """Open the store at a path or an address.

    Raises
    ------
    ConfigurationError
        Unknown mode; a name or cache for a folder, or no name for a database.
    NotFound, WriterBusy, NewerFormat, CorruptArtifact, ReadOnly, ServerUnavailable
    """
    if mode not in ("r", "rw"):
        raise ConfigurationError(f"mode is {mode!r}.", "Use 'r' to read or 'rw' to read and write.")
    if isinstance(path, str) and is_url(path):
        return _on_server(path, mode=mode, collection=collection, cache=cache)
    if collection is not None or cache is not None:
        problem = "A collection in a folder has no name and no cache of its own."
        raise ConfigurationError(problem, "Give collection= and cache= with a postgresql:// address only.")
    folder = Path(path)
    lease, owner = _take_lease(folder) if mode == "rw" else None, os.getpid()

    def release() -> None:
        store.close()
        if lease is not None and owner == os.getpid() and lease.is_locked:  # to a child, it is its parent's
            (folder / "writer.pid").unlink(missing_ok=True)
            lease.release()

    try:
        store = SQLiteStore(folder / "store.sqlite", mode=mode)
    except BaseException:
        if lease is not None:
            lease.release()
        raise
    return Place(store, folder, release, lambda: _writer(folder))


def _on_server(url: str, *, mode: Mode, collection: str | None, cache: Path | str | None) -> Place:
    from reperio.stores.postgres import PostgresStore

    address, named = split_collection(url)
    if collection and named and collection != named:
        problem = f"The address names the collection {named!r}, the argument {collection!r}."
        raise ConfigurationError(problem, "Give the name once.")
    name = collection or named
    if name is None:
        raise ConfigurationError("The address names no collection.", "Write postgresql://…#name, or give collection=.")
    store = PostgresStore(address, collection=name, mode=mode)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reperio"
    return Place(store, (home if cache is None else Path(cache)) / store.uuid, store.close)


def _writer(folder: Path) -> int | None:
    try:
        pid = int((folder / "writer.pid").read_text())
    except (OSError, ValueError):  # none
        return None
    try:
        os.kill(pid, 0)
    except PermissionError:  # another user's
        return pid
    except OSError:  # it was killed
        return None
    return pid


def _take_lease(folder: Path) -> FileLock:
    """The right to write, until released or the process dies: the operating system keeps it."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lease = FileLock(folder / "writer.lock", timeout=0)
        try:
            lease.acquire()
        except Timeout as error:
            owner = folder / "writer.pid"
            who = f" by process {owner.read_text()}" if owner.is_file() else ""
            raise WriterBusy(f"{folder} is being written{who}.", "Close it there, or open it with mode='r'.") from error
        try:
            replace_text(folder / "writer.pid", str(os.getpid()))
        except BaseException:
            lease.release()
            raise
        return lease


def attach(place: Place, given: Signals | None) -> dict[str, LiveSignal]:
    """The collection's signals: declared if it is new, checked against what was given if it is not."""
    store, folder = place.store, place.folder
    known = store.signals()
    if not known:
        if not store.writable:
            raise NotFound(f"{store.location} was not finished being made.", "Open it with mode='rw'.")
        chosen = hybrid() if given is None else given
        _check_names(chosen)
        store.declare({name: describe(signal, hosted=store.host is not None) for name, signal in chosen.items()})
        known, given = store.signals(), chosen
    elif given is not None and set(given) != set(known):
        raise ConfigurationError(f"The signals given are {sorted(given)}.", f"This collection has {sorted(known)}.")
    live = {
        name: LiveSignal(
            name,
            number,
            config=config,
            store=store,
            folder=folder / "indexes" / name,
            given=given[name] if given else None,
        )
        for name, (number, config) in known.items()
    }
    for name, signal in (given or {}).items():
        if dict(signal.index.spec) != dict(live[name].derived.spec):
            problem = (
                f"The index given for {name!r} is {signal.index.spec}, the collection's is {live[name].derived.spec}."
            )
            raise ConfigurationError(problem, f"Switch with collection.reindex({name!r}, index).")
    return live


def chosen(path: Path | str, given: Signals | None) -> Signals | None:
    """The signals of a collection that is to be made in a folder: what is wrong with them is told before it is there.

    Of one that is there, or in a database, what was given.
    """
    if (isinstance(path, str) and is_url(path)) or os.path.lexists(os.path.join(path, "store.sqlite")):  # noqa: PTH118
        return given
    _check_folder(Path(path))
    signals = hybrid() if given is None else given
    _check_names(signals)
    for signal in signals.values():
        describe(signal, hosted=False)
    return signals


def _check_folder(folder: Path) -> None:
    """Refuse to make a collection where something else is."""
    with disk_errors(folder):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise StorageError(f"{folder} is in the way of a folder: it is a file.", "Choose another path.")
        others = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(_OURS))
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        problem = f"{folder} is no collection, and holds {others[0]!r}{more}."
        raise ConfigurationError(problem, f"Give a folder of its own: {folder / 'collection'}.")


def _check_names(signals: Signals) -> None:
    if not 0 < len(signals) <= SIGNALS:
        raise ConfigurationError(f"{len(signals)} signals were given.", f"A collection has 1 to {SIGNALS}.")
    for name in signals:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
            raise ConfigurationError(f"A signal cannot be named {name!r}.", "Use letters, digits, '-' and '_'.")
