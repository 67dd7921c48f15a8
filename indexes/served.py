"""What indexes have in common whose rows are on a server.

Shapes: q queries, n rows, d dimensions, k results, m keys asked for.
"""

from __future__ import annotations

import json
import re
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self
from uuid import uuid4

import numpy as np

from reperio.artifacts import new_folder
from reperio.embeddings import Dense, Ids, IdSet, check_dense, take, to_bytes
from reperio.errors import ConfigurationError, CorruptArtifact, NotFound, ShapeError
from reperio.indexes.abandoned import drop_when_gone
from reperio.indexes.flat import Metric, unit
from reperio.indexes.rows import check_ids, check_pairs, check_removed, check_search, pad
from reperio.indexes.sparse_rows import check_sparse, drop_zeros
from reperio.indexes.stored import reading
from reperio.indexes.tables import BYTES, State, Table, TableSearch, fetched, split
from reperio.indexes.weighting import ALL
from reperio.protocols import Spec
from reperio.types import Neighbors

__all__ = ["ServedIndex"]

_FILE = "table.json"

_SAMPLE = 256
"""Rows looked at to tell how large they are."""

_ENTRIES = 1024
"""Entries of a sparse row, at a guess: twice those of a long text."""


class ServedIndex(ABC):
    """An index over a table on a server. The table is made when the first rows come, under a name of its own.

    The index itself is little more than that name: whoever opens a saved one sees the rows as they are by then.
    One process changes them, others search. Everything that changes rows may be done twice, so a collection brings
    a table up to date by replaying what it has committed, whatever was cut short.

    A table keeps a token and whether it has changed since it was saved; with them, `open` tells it from another of
    the same name, from an old backup, and from one that lost rows.
    """

    kind: ClassVar[str]
    weights_below = ALL

    def __init__(self, *, sparse: bool, metric: Metric, prefix: str) -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,199}", prefix):
            raise ConfigurationError(f"prefix is {prefix!r}.", "Use letters, digits and '_', 200 at most.")
        self.metric: Metric = metric
        self.prefix = prefix
        self.returns_only_matches = sparse
        self._sparse = sparse
        self._writing = threading.RLock()
        self._start()

    def _start(self) -> None:
        self._name, self._token = f"{self.prefix}_{uuid4().hex}", uuid4().hex
        self._dim: int | None = None  # known when the table is there
        self._saves = 0
        self._known = False  # whether a saved index names the table, so that another process may have made it
        self._top: int | None = -1  # highest key so far; None where others may have added
        self._about = 0  # rows, near enough to plan a search
        self._unsettled = 0
        self._dropping: weakref.finalize[[], Any] | None = None

    # What each backend brings

    @property
    @abstractmethod
    def spec(self) -> Spec:
        """How to build this index again, empty."""

    @property
    @abstractmethod
    def lossless(self) -> bool:
        """Whether scores are exact for the vectors that were added."""

    @property
    @abstractmethod
    def _layout(self) -> dict[str, Any]:
        """What must be equal for a table to serve this index."""

    @property
    @abstractmethod
    def _patience(self) -> float:
        """How many added rows may wait for `settle` when a search comes."""

    @abstractmethod
    def _at(self, name: str) -> Table:
        """The table of this name."""

    @abstractmethod
    def _settings(self, options: Mapping[str, int]) -> dict[str, int]:
        """Search options, completed; an unknown one is refused."""

    @abstractmethod
    def _widest(self) -> dict[str, int]:
        """The options that look furthest; none where a search is exact."""

    @abstractmethod
    def _check_dim(self, dim: int) -> None:
        """Refuse rows of more dimensions or columns than the server takes."""

    # What it is

    @property
    def _table(self) -> Table:
        return self._at(self._name)

    @property
    def address(self) -> str:
        """Server and name of the table, without a secret: two indexes of one address share their rows."""
        return self._table.address

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    @property
    def lowest(self) -> float:
        """0 for sparse rows, -1 for cosine, else ``-inf``."""
        return 0.0 if self._sparse else -1.0 if self.metric == "cosine" else -np.inf

    def __len__(self) -> int:
        if not self._there():
            return 0
        self._about = self._table.count()
        return self._about

    @property
    def ids(self) -> IdSet:
        """Every row key held, ``(n,)``, sorted; the server is asked for all of them."""
        return np.sort(self._table.keys()) if self._there() else np.empty(0, dtype=np.int64)

    def size(self) -> int:
        """Bytes that the rows take at least: servers do not tell what they keep on disk. Sparse ones by a sample."""
        if not self._sparse:
            return len(self) * self._width // (2 if self._layout["vectors"] == "float16" else 1)
        keys = self.ids
        sample = keys[:: max(1, len(keys) // _SAMPLE)]
        parts = [to_bytes(rows) for _, rows in fetched(self._table, sample, width=self._width)]
        return sum(len(row) for part in parts for row in part) * len(keys) // max(1, len(sample))

    @property
    def _width(self) -> int:
        """Bytes of a row, at a guess where it is sparse."""
        return 8 * _ENTRIES if self._sparse else 4 * (self._dim or 1)

    # The table

    def _there(self) -> bool:
        """Whether the table was made, here or where another process follows the same saved index."""
        if self._dim is None and self._known:
            state = self._table.state()
            if state is not None:
                self._adopt(state)
        return self._dim is not None

    def _adopt(self, state: State) -> None:
        if state.token != self._token:
            raise NotFound(f"{self.address} is another table than the one that was saved.", "Rebuild it.")
        if state.layout != self._layout:
            problem = f"{self.address} is {dict(state.layout)}, not {self._layout}."
            raise CorruptArtifact(problem, "Rebuild it.")
        self._dim, self._top = state.dim, None

    def _state(self) -> State:
        state = self._table.state()
        if state is None or state.token != self._token:
            problem = f"{self.address} is gone: someone dropped it, or put another in its place."
            raise NotFound(problem, "Open the collection again: it builds the index anew from its store.")
        return state

    def _changing(self, dim: int) -> Table:
        """The table, made if there is none, marked as no longer what was saved."""
        table = self._table
        if not self._there():
            try:
                table.create(State(self._token, self._layout, dim))
            except BaseException:
                table.abandon()
                raise
            self._dim = dim
            if not self._known:
                # Not at exit: too late to ask a server that may live in this very process.
                self._dropping = drop_when_gone(self, table.abandon, at_exit=False)
        else:
            if dim != self._dim:
                raise ShapeError(f"embeddings has {dim} dimensions, the table {self._dim}.", "Use the same encoder.")
            state = self._state()
            if state.rows is not None:
                table.mark(replace(state, rows=None))
        return table

    # Changing

    def check(self, embeddings: Any, /) -> None:
        """Refuse embeddings that it cannot hold; the server is not asked.

        Raises
        ------
        ShapeError
        """
        self._checked(embeddings, what="embeddings")

    def _checked(self, embeddings: Any, *, what: str) -> Any:
        """Rows or queries as the table takes them."""
        if self._sparse:
            rows = drop_zeros(check_sparse(embeddings, what=what, dim=self._dim))
            self._check_dim(rows.dim)
            return rows
        vectors = check_dense(embeddings, what=what, dim=self._dim)
        self._check_dim(vectors.shape[1])
        return unit(vectors) if self.metric == "cosine" else vectors

    def add(self, ids: Ids, embeddings: Any, /) -> None:
        """Insert or replace rows.

        Raises
        ------
        ShapeError
            Another number of dimensions than before, NaN or infinity, or not one id for each row.
        InvalidInput
            A negative id, or one that comes twice.
        ServerUnavailable
            Some of the rows may be in: add them again.
        """
        rows = self._checked(embeddings, what="embeddings")
        ids = check_ids(ids, rows=len(rows))
        if not len(ids):
            return
        width = 16 * len(rows.indices) // len(ids) if self._sparse else 4 * rows.shape[1]
        with self._writing:
            table = self._changing(rows.dim if self._sparse else rows.shape[1])
            fresh = self._top is not None and int(ids.min()) > self._top
            if self._top is not None:
                self._top = max(self._top, int(ids.max()))
            for part in split(np.arange(len(ids)), max(1, BYTES // max(1, width))):
                table.upsert(ids[part], take(rows, part), fresh=fresh)
            self._about += len(ids)
            self._unsettled += len(ids)

    def remove(self, ids: Ids, /) -> int:
        """Take rows away; returns how many were there.

        Raises
        ------
        ServerUnavailable
            Some of the rows may be gone: remove them again.
        """
        wanted = check_removed(ids)
        with self._writing:
            if not len(wanted) or not self._there() or self._dim is None:
                return 0
            gone = np.concatenate([self._table.keys(part) for part in split(wanted, self._table.listed)])
            if len(gone):
                table = self._changing(self._dim)
                for part in split(gone, table.listed):
                    table.delete(part)
            self._about -= len(gone)
            return len(gone)

    def settle(self) -> None:
        """Make what was added quick to search: some servers are slow over rows that they have not sealed."""
        with self._writing:
            if self._unsettled:
                self._table.settle()
                self._unsettled = 0

    def drop(self) -> None:
        """Take the rows off the server for good; the index is empty then, with a new name."""
        with self._writing:
            if self._there():
                self._table.drop()
            if self._dropping is not None:
                self._dropping.detach()
            self._start()

    # Searching

    def search(
        self, queries: Any, k: int, /, *, allowed: IdSet | None = None, options: Mapping[str, int] | None = None
    ) -> Neighbors:
        """The k best rows for each query, among ``allowed`` if given: always min(k, allowed held) of them.

        Of sparse rows those that share a column with the query, and no others.

        Raises
        ------
        InvalidInput
            If k is not positive.
        ShapeError
            If the queries have other dimensions than the rows, or hold NaN or infinity.
        ConfigurationError
            For an option that the index does not have.
        ServerUnavailable
        """
        allowed = check_search(k, allowed, options)
        settings = self._settings(options or {})
        there = self._there()
        asked = self._checked(queries, what="queries")
        only = allowed
        if not there or self._dim is None or not len(asked) or (only is not None and not len(only)):
            return pad(np.empty((len(asked), 0), dtype=np.int64), np.empty((len(asked), 0), dtype=np.float32), k)
        if self._unsettled > self._patience:
            self.settle()
        depth = min(k, max(1, len(self))) if k > self._table.deepest else k
        found = self._searching(settings).best(asked, depth, only)
        return pad(found.ids, found.scores, k)

    def _searching(self, settings: Mapping[str, int]) -> TableSearch:
        # What the table keeps for cosine is of length one already.
        metric: Metric | None = None if self._sparse else "ip" if self.metric == "cosine" else self.metric
        return TableSearch(self._table, self._about, settings, self._widest(), metric, self._width)

    def score(self, queries: Any, ids: Ids, /) -> Dense:
        """Scores of the given rows, ``(q, m)`` for ids ``(q, m)``; ``-inf`` where an id is -1 or not held.

        Computed here from the rows as the server keeps them, past any index over them.

        Raises
        ------
        ServerUnavailable
        """
        there = self._there()
        asked = self._checked(queries, what="queries")
        pairs = check_pairs(ids, queries=len(asked))
        if not there:
            return np.full(pairs.shape, -np.inf, dtype=np.float32)
        return self._searching({}).score(asked, pairs)

    # Disk

    def save(self, path: Path | str, /) -> None:
        """Write a new folder that names the table, and mark the table as saved: the rows stay where they are.

        Raises
        ------
        StorageError
            If ``path`` exists, the disk refuses, or the server does not answer.
        """
        with self._writing, new_folder(path, self.kind, {"spec": dict(self.spec)}) as folder:
            self._known = True  # asks the server even where there are no rows: none must be promised that is not there
            if self._there():
                self.settle()
                state = self._state()
                self._saves = state.saves + 1
                self._table.mark(replace(state, saves=self._saves, rows=len(self)))
            saved = {"spec": dict(self.spec), "name": self._name, "token": self._token, "saves": self._saves}
            (folder / _FILE).write_text(json.dumps({**saved, "made": self._dim is not None}), encoding="utf-8")
        if self._dropping is not None:
            self._dropping.detach()

    @classmethod
    def open(cls, path: Path | str, /) -> Self:
        """Find the table that `save` named, with the rows that it has by now.

        Raises
        ------
        NotFound
            If the table is gone, or another has its name.
        CorruptArtifact
            If the folder was altered; if the table has another layout, was put back to before this was saved, or
            lost rows since it was saved last.
        NewerFormat, ServerUnavailable
        """
        with reading(cls, path, cls.kind) as (folder, _):
            saved = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            arguments: dict[str, Any] = dict(saved["spec"])
            del arguments["type"]
            index = cls(**arguments)
            index._name, index._token, index._saves = saved["name"], saved["token"], saved["saves"]
            made = bool(saved["made"])
        index._known = True
        if index._there() or made:
            index._verify()
        return index

    def _verify(self) -> None:
        state = self._state()
        if state.saves < self._saves:
            raise CorruptArtifact(f"{self.address} was put back to before this index was saved.", "Rebuild it.")
        held = len(self)
        if state.rows is not None and state.rows != held:
            problem = f"{self.address} holds {held} rows, and held {state.rows} when it was saved."
            raise CorruptArtifact(problem, "Rebuild it.")
