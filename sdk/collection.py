"""What a user opens: a store, its signals, one search."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import numpy as np

from reperio import forks
from reperio.choosing import Given, new_index
from reperio.embeddings import Dense
from reperio.errors import ConfigurationError, InvalidInput, ReadOnly
from reperio.explain import Explanation
from reperio.filters import Filter, from_json, to_json
from reperio.following import Following
from reperio.fusion import Fusion
from reperio.health import CollectionStats as CollectionStats
from reperio.health import VerifyReport as VerifyReport
from reperio.health import gathered, verified
from reperio.ingest import Upsert, UpsertReport
from reperio.locks import SharedLock
from reperio.opening import Place, Signals, attach, chosen, place
from reperio.opening import hybrid as hybrid
from reperio.opening import lexical as lexical
from reperio.pipeline import Step
from reperio.protocols import Spec
from reperio.registry import build
from reperio.retrieval import Options
from reperio.searcher import Request, Searcher
from reperio.signals import LiveSignal, check_home, metric_of
from reperio.stores.rows import Mode
from reperio.types import Document, Query, Ranking
from reperio.upkeep import COMPACT_AT, Upkeep


class Collection:
    """Documents, metadata and embeddings in one durable folder or database, and every way to search them.

    Use `Collection.open`. The folder holds ``store.sqlite``, which is the truth, and ``indexes/``, which is
    derived from it; in a database the truth is a schema. What `upsert` and `delete` have returned from survives a
    crash at any later moment.

    Attributes
    ----------
    path
        The folder; of a collection in a database, this client's cache of what is derived from it.
    """

    def __init__(self, place: Place, signals: dict[str, LiveSignal], *, compact_at: float | None = COMPACT_AT) -> None:
        self.path = place.folder
        self._place = place
        self._store = place.store
        self._signals = signals
        self._closed = False
        self._lock = SharedLock()
        self._following = Following(self._store, signals, self._lock)
        self._searcher = Searcher(self._store, signals, self._following.current)
        every, catch_up = list(signals.values()), self._following.catch_up
        self._upkeep = Upkeep(self._store, every, self._lock, catch_up, compact_at=compact_at)
        self._writer = os.getpid() if self._store.writable else None
        forks.follow(self)

    def after_fork(self) -> None:
        """In a child process it can be read; to change anything, open it there once the parent has closed it."""
        changing = self._lock.held
        self._lock.renew()
        self._upkeep.renew()
        for signal in self._signals.values():
            signal.after_fork(changing=changing)

    def __reduce__(self) -> str | tuple[Any, ...]:
        problem = f"{self!r} cannot be copied, nor sent to another process."
        raise InvalidInput(problem, "Open it there: Collection.open(path, mode='r').")

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        mode: Mode = "rw",
        signals: Signals | None = None,
        collection: str | None = None,
        cache: Path | str | None = None,
        compact_at: float | None = COMPACT_AT,
    ) -> Self:
        """Open a collection, or make it.

        Parameters
        ----------
        path
            Its folder, or the address of a PostgreSQL database: ``postgresql://user@host/database#name``. A password
            that is not in the address comes from ``PGPASSWORD`` or ``~/.pgpass``.
        mode
            ``"rw"`` makes the collection where there is none and holds the writer lease until `close`;
            ``"r"`` changes nothing and sees each commit of a writer at the next search.
        signals
            How documents are found: `hybrid()` where None and the collection is new. An existing collection
            knows its own; signals given for one are checked against it.
        collection
            Its name in the database, where the address does not say it.
        cache
            Of a collection in a database: where this client keeps the indexes that are not in the database. They
            can be deleted at any time. ``~/.cache/reperio`` where None.
        compact_at
            An index of which dead rows, replaced or deleted since it was built, are more than this share is built
            anew in the background, beside searches and commits; never where None. What was replaced stays in the
            store until `compact`, so no result goes stale by it.

        Raises
        ------
        NotFound
            In mode ``"r"``, if there is no collection.
        WriterBusy
            In mode ``"rw"``, if another process or object writes it.
        FingerprintMismatch
            If an encoder is not the one that wrote the collection; the message names the field that differs.
        ServerUnavailable
            If the database cannot be reached.
        NewerFormat, CorruptArtifact, ReadOnly
        """
        if mode == "rw":
            signals = chosen(path, signals)
        opened = place(path, mode=mode, collection=collection, cache=cache)
        try:
            found = cls(opened, attach(opened, signals), compact_at=compact_at)
            if mode == "rw":
                found._recover()
        except BaseException:
            opened.release()
            raise
        return found

    def _recover(self) -> None:
        for signal in self._signals.values():
            signal.check_canaries()
            signal.derived.clean()

    def close(self) -> None:
        """Checkpoint what has changed, release the lease. Safe to call twice."""
        try:
            self._upkeep.stop()
            if not self._closed and self._store.writable:
                self.checkpoint()
            elif not self._closed:
                with self._lock.alone():
                    for signal in self._signals.values():
                        signal.derived.leave()
        finally:
            self._release()

    def _release(self) -> None:
        self._closed = True
        self._upkeep.stop()
        self._place.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:  # what was committed is safe; do not hide the error behind another
            self._release()

    def __len__(self) -> int:
        return self.count()

    def __repr__(self) -> str:
        mode = "rw" if self._store.writable else "r"
        return f"Collection({self.location!r}, mode={mode!r}, signals={list(self._signals)})"

    @property
    def location(self) -> str:
        """Its folder, or the address of its database without a password: what `open` takes."""
        return self._store.location

    @property
    def signals(self) -> list[str]:
        """Names of the signals."""
        return list(self._signals)

    @property
    def seq(self) -> int:
        """Sequence number of the last commit that this object has seen."""
        return self._store.seq

    # Changing

    def upsert(
        self,
        documents: Iterable[Document],
        *,
        embeddings: Mapping[str, Dense] | None = None,
        batch_size: int = 512,
        progress: bool | None = None,
    ) -> UpsertReport:
        """Insert or replace documents by id: an exact diff.

        A document that has not changed is not written, a text that was encoded before is not encoded again.
        Each batch is committed on its own: run it again after a crash and it goes on where it stopped.

        Parameters
        ----------
        documents
            Any number; an iterator is read batch by batch.
        embeddings
            Vectors by signal, ``(n, d)`` each, in the order of ``documents``, in place of encoding.
        batch_size
            Documents in one commit.
        progress
            Whether to show a bar; where None, on a terminal.

        Raises
        ------
        InvalidInput
            `EmptyText`, `DuplicateId`, `ShapeError`, `TruncationError`: a list is refused whole; of an iterator,
            batches before the bad one are committed.
        DiskFull, ReadOnly
        """
        self._check_writable()
        if not isinstance(documents, Iterable):
            fix = "Give a list: upsert([document]); of a source, upsert(source.documents())."
            raise InvalidInput(f"The documents are one {type(documents).__name__}.", fix)
        upsert = Upsert(self._store, list(self._signals.values()), given=embeddings, batch_size=batch_size)
        report = upsert.run(documents, progress=progress)
        self._following.push()
        self._upkeep.consider()
        return report

    def delete(self, ids: Iterable[str]) -> int:
        """Delete documents by id; returns how many were there.

        They are gone from every search at once; their bytes leave the disk with `compact`.
        """
        self._check_writable()
        if isinstance(ids, str):
            raise InvalidInput(f"The ids are the bare string {ids[:40]!r}.", "Give a list: delete([id]).")
        with self._store.writing:
            rows = np.array(sorted(self._store.find(list(ids)).values()), dtype=np.int64)
            if len(rows):
                self._store.commit([], rows)
        self._following.push()
        self._upkeep.consider()
        return len(rows)

    def checkpoint(self) -> None:
        """Write the indexes to disk, so that the next opening need not replay."""
        self._check_writable()
        self._upkeep.checkpoint()
        self._upkeep.consider()

    def reindex(self, signal: str, index: Given) -> None:
        """Fill another, empty index from the store, then switch to it; `rollback` switches back.

        Searches go on in the old index until the switch, which is a rename, and commits of other threads go on too.

        Parameters
        ----------
        signal
            Its name.
        index
            Empty, of the signal's kind; its specification; or the name of its class or a FAISS factory string, with the
            metric of the index in use.

        Raises
        ------
        ConfigurationError
            If it cannot hold the signal's embeddings, takes counts for weights, or has nowhere to keep rows; nothing is
            done then.
        ReadOnly
        """
        self._check_writable()
        live, what = self._named(signal), f"The index for {signal!r}"
        old = live.derived.spec
        metric = old.get("metric") or (metric_of(build(old)) if isinstance(index, str) else None)
        fresh = new_index(index, metric, what, own=True)
        check_home(fresh, what, hosted=self._store.host is not None)
        live.check_weighing(fresh)
        live.check(fresh)
        self._upkeep.reindex(live, fresh)

    def rollback(self, signal: str) -> None:
        """Go back to the index before the last `reindex`; documents committed since are in it too."""
        self._check_writable()
        self._upkeep.rollback(self._named(signal))

    def compact(self) -> int:
        """Rebuild the indexes without replaced and deleted versions, then take these off the disk.

        Searches go on meanwhile. A ranking that was found before, and not looked into, may raise `StaleResult`.

        Returns
        -------
        int
            How many versions were taken away.
        """
        self._check_writable()
        return self._upkeep.compact()

    # Reading

    def get(self, id: str) -> Document | None:  # noqa: A002 - the field's word
        """A document by id, or None."""
        with self._store.snapshot():
            row = self._store.find([id]).get(id)
            return None if row is None else self._store.fetch(np.array([row], dtype=np.int64))[0]

    def documents(self, where: Filter | None = None) -> Iterator[Document]:
        """Live documents, in order of arrival, a chunk at a time."""
        with self._store.snapshot():
            rows = self._store.matching(where)
        for start in range(0, len(rows), 1024):
            yield from self._store.fetch(rows[start : start + 1024])

    def count(self, where: Filter | None = None) -> int:
        """Live documents that pass."""
        with self._store.snapshot():
            return self._store.count() if where is None else len(self._store.matching(where))

    @overload
    def search(  # type: ignore[overload-overlap]  # a str is a Sequence[str]; the first match wins
        self,
        queries: str | Query,
        k: int = 10,
        *,
        where: Filter | None = None,
        signals: Sequence[str] | None = None,
        fusion: Fusion | None = None,
        options: Options | None = None,
        embeddings: Mapping[str, Dense] | None = None,
    ) -> Ranking: ...
    @overload
    def search(
        self,
        queries: Sequence[str | Query],
        k: int = 10,
        *,
        where: Filter | None = None,
        signals: Sequence[str] | None = None,
        fusion: Fusion | None = None,
        options: Options | None = None,
        embeddings: Mapping[str, Dense] | None = None,
    ) -> list[Ranking]: ...
    def search(
        self,
        queries: str | Query | Sequence[str | Query],
        k: int = 10,
        *,
        where: Filter | None = None,
        signals: Sequence[str] | None = None,
        fusion: Fusion | None = None,
        options: Options | None = None,
        embeddings: Mapping[str, Dense] | None = None,
    ) -> Ranking | list[Ranking]:
        """The k best documents for each query.

        Parameters
        ----------
        queries
            One query gives one ranking, a list gives a list.
        k
            Hits for each query; fewer where fewer documents match.
        where
            Only documents that pass; applied inside the search.
        signals
            Which signals to use; all where None.
        fusion
            How several signals are combined; ``Convex()`` (min-max, equal weights) where None. Every candidate
            has its exact score on every signal.
        options
            Search settings of the indexes: ``{"dense": {"nprobe": 32}}``.
        embeddings
            Encoded queries by signal, ``(q, d)`` each, in place of encoding.

        Returns
        -------
        Ranking or list of Ranking
            Documents are read from the store when a ranking is first looked into.

        Raises
        ------
        InvalidInput
            `EmptyText`, `FilterError`, `ConfigurationError`, `ShapeError`.
        """
        request = Request(k, where, signals, fusion, options)
        if isinstance(queries, str | Query):
            return self._searcher.search([queries], request, embeddings or {})[0]
        return self._searcher.search(queries, request, embeddings or {})

    def explain(
        self,
        query: str | Query,
        id: str,  # noqa: A002 - the field's word
        *,
        k: int = 10,
        where: Filter | None = None,
        signals: Sequence[str] | None = None,
        fusion: Fusion | None = None,
        embeddings: Mapping[str, Dense] | None = None,
    ) -> Explanation:
        """Why a document stands where it stands for a query: scores, ranks, terms, filter and plan.

        The other arguments are those of the `search` to be explained: a larger k looks at more candidates.

        Raises
        ------
        NotFound
            If there is no such document.
        """
        return self._searcher.explain(query, id, Request(k, where, signals, fusion), embeddings or {})

    def retriever(
        self,
        k: int = 100,
        *,
        where: Filter | None = None,
        signals: Sequence[str] | None = None,
        fusion: Fusion | None = None,
    ) -> CollectionRetriever:
        """This collection as a stage: ``collection.retriever(k=50) >> reranker >> compressor``."""
        return CollectionRetriever(self, k=k, where=where, signals=signals, fusion=fusion)

    def stats(self) -> CollectionStats:
        """Sizes, fields, and the state of each signal."""
        with self._following.current(list(self._signals.values())), self._store.snapshot():
            return gathered(self._store, self._signals, self._upkeep, writer=self._writer or self._place.writer())

    def verify(self) -> VerifyReport:
        """Check every byte: the database, each checkpoint, and that every index holds exactly the live documents."""
        return verified(self._store, list(self._signals.values()), self._following.current)

    # Inside

    def _named(self, name: str) -> LiveSignal:
        if name not in self._signals:
            raise ConfigurationError(f"There is no signal {name!r}.", f"There are: {', '.join(self._signals)}.")
        return self._signals[name]

    def _check_writable(self) -> None:
        if self._writer not in (None, os.getpid()):
            problem = f"{self.location} was opened for writing before a fork."
            raise ReadOnly(problem, "Open it again in the child.")
        if not self._store.writable:
            raise ReadOnly(f"{self.location} is open for reading.", "Open it with mode='rw'.")


class CollectionRetriever(Step[str | Query, Ranking]):
    """A collection as a retrieval stage.

    Parameters
    ----------
    collection
        Open, or the path of one to open for reading.
    k
        Hits for each query.
    where, signals, fusion
        As in `Collection.search`; ``where`` may be the JSON of a filter.
    """

    def __init__(
        self,
        collection: Collection | str,
        *,
        k: int = 100,
        where: Filter | dict[str, Any] | None = None,
        signals: Sequence[str] | None = None,
        fusion: Fusion | None = None,
    ) -> None:
        self.collection = Collection.open(collection, mode="r") if isinstance(collection, str) else collection
        self.request = Request(k, from_json(where) if isinstance(where, dict) else where, signals, fusion)

    @property
    def spec(self) -> Spec:
        r = self.request
        return {
            "type": "CollectionRetriever",
            "collection": self.collection.location,
            "k": r.k,
            "where": None if r.where is None else to_json(r.where),
            "signals": None if r.signals is None else list(r.signals),
            "fusion": None if r.fusion is None else dict(r.fusion.spec),
        }

    def __call__(self, batch: Sequence[str | Query], /) -> Sequence[Ranking]:
        r = self.request
        return self.collection.search(batch, r.k, where=r.where, signals=r.signals, fusion=r.fusion)
