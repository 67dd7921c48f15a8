"""The whole architecture on one page.

Shapes: q queries, n documents, d dimensions, k results, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

from reperio.embeddings import Dense, Ids, IdSet
from reperio.filters import Filter
from reperio.types import Document, Encoded, Fingerprint, Neighbors, Query, Ranking

if TYPE_CHECKING:
    from reperio.stores.rows import Entry, Known, Vector

E_contra = TypeVar("E_contra", contravariant=True)
E_co = TypeVar("E_co", covariant=True)
A_contra = TypeVar("A_contra", contravariant=True)
B_co = TypeVar("B_co", covariant=True)

Spec: TypeAlias = Mapping[str, Any]
"""A component as JSON: ``{"type": registered name, **constructor arguments}``. See `reperio.registry`."""


@runtime_checkable
class Encoder(Protocol[E_co]):
    """Texts → embeddings of kind ``E``; a text's embedding never depends on its neighbours.

    One whose documents are another's, and only its queries its own, may say ``compares_with``, the other's
    fingerprint: a collection of the other's opens with it.
    """

    @property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two embeddings to compare."""
        ...

    @property
    def spec(self) -> Spec:
        """How to build this encoder again."""
        ...

    def encode_query(self, texts: Sequence[str], /) -> Encoded[E_co]: ...
    def encode_document(self, texts: Sequence[str], /) -> Encoded[E_co]: ...


@runtime_checkable
class Index(Protocol[E_contra]):
    """Embeddings of kind ``E`` → nearest row keys. Derived: never the truth.

    Scores: higher is better; a distance is negated. k larger than the index pads. Ties go to the lower key.
    A mutation that fails leaves the index as it was. One that compares every row says ``exhaustive = True``; one that
    does not say is taken for approximate. A sparse index, and a sparse encoder, may say ``weights_below``, the first
    column that holds counts: where both say, a signal of the two must agree.
    """

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty."""
        ...

    @property
    def lossless(self) -> bool:
        """Whether scores are exact for the vectors that were added (False after quantisation)."""
        ...

    @property
    def lowest(self) -> float:
        """The lowest score that can occur in theory; ``-inf`` where there is none.

        It bounds exact scores, which a collection gives: where an index is not `lossless`, its own may be lower by
        what its codes are off (RaBitQ gave -1.14 for a cosine).
        """
        ...

    def __len__(self) -> int: ...

    @property
    def ids(self) -> IdSet:
        """Every row key held, ``(n,)``, sorted."""
        ...

    def add(self, ids: Ids, embeddings: E_contra, /) -> None:
        """Insert or replace rows; ids are non-negative and each once."""
        ...

    def remove(self, ids: Ids, /) -> int:
        """Take rows away; returns how many were there."""
        ...

    def search(
        self, queries: E_contra, k: int, /, *, allowed: IdSet | None = None, options: Mapping[str, int] | None = None
    ) -> Neighbors:
        """The k best rows for each query, among ``allowed`` if given: always min(k, allowed held) of them.

        ``options`` are this backend's search settings (``nprobe``, ``efSearch``); an unknown one is an error.
        """
        ...

    def score(self, queries: E_contra, ids: Ids, /) -> Dense:
        """Scores of the given rows, ``(q, m)`` for ids ``(q, m)``; ``-inf`` where an id is -1 or not held."""
        ...

    def save(self, path: Path | str, /) -> None:
        """Write a new folder: whole, checksummed and on disk when this returns, or absent."""
        ...

    @classmethod
    def open(cls, path: Path | str, /) -> Self:
        """Read what `save` wrote; raises `CorruptArtifact` on anything else; names another class that saved it."""
        ...


@runtime_checkable
class Trainable(Protocol[E_contra]):
    """An index that learns from a sample before it is fast; untrained, it searches exactly."""

    @property
    def training_size(self) -> int:
        """How many rows `train` wants; 0 where nothing is to be learnt (any more)."""
        ...

    def train(self, sample: E_contra, /) -> None: ...


@runtime_checkable
class Mappable(Protocol):
    """A kind of index whose ``open`` takes ``mmap=True``: checked as ever, and as good as one that is in memory."""

    @staticmethod
    def maps(spec: Spec, /) -> bool:
        """Whether the files of an index with this specification can stay on disk."""
        ...


@runtime_checkable
class Stage(Protocol[A_contra, B_co]):
    """A batch in, a batch out: same length, same order."""

    def __call__(self, batch: Sequence[A_contra], /) -> Sequence[B_co]: ...


@runtime_checkable
class Source(Protocol):
    """Yields documents, in bounded memory, in an order that is the same each time."""

    @property
    def name(self) -> str:
        """What the documents' provenance calls it; never holds a secret."""
        ...

    def documents(self) -> Iterator[Document]: ...


Part: TypeAlias = Mapping[str, Any]
"""A piece of a source as JSON."""


@runtime_checkable
class Divisible(Source, Protocol):
    """A `Source` that can be read in pieces, by processes that know nothing of each other; it can be pickled."""

    def divide(self, rows: int, /) -> list[Part]:
        """Cut it into pieces of so many rows, one after the other: together they are the whole."""
        ...

    def read(self, part: Part, /) -> Iterator[Document]:
        """The documents of one piece, in the order of `documents`."""
        ...


@runtime_checkable
class Served(Protocol):
    """What an `Index` adds whose rows are on a server: whoever opens it sees the same rows, one writer changes them."""

    @property
    def address(self) -> str:
        """Where the rows are, without a secret: two indexes of one address share them."""
        ...

    def check(self, embeddings: Any, /) -> None:
        """Refuse embeddings that it cannot hold, before anything is on the server."""
        ...

    def settle(self) -> None:
        """Make what was added quick to search, where adding alone does not."""
        ...

    def size(self) -> int:
        """Bytes on the server's disk."""
        ...

    def drop(self) -> None:
        """Take the rows off the server for good."""
        ...


@runtime_checkable
class Housed(Served, Protocol):
    """A `Served` index that can live in the database of a `Store`, where a commit changes both or neither."""

    def move_in(self, database: Any, schema: str, table: str, /) -> None:
        """Keep the rows in this table, which may be there already."""
        ...


class Store(Protocol):
    """Documents and embeddings under one sequence number: the truth. A commit is the acknowledgement.

    A row key names one version of one document for ever; a changed document is a new row.
    """

    uuid: str
    """Tells this collection from every other."""

    @property
    def writing(self) -> AbstractContextManager[Any]:
        """Held from looking at what is known to committing what differs; reentrant."""
        ...

    @property
    def location(self) -> str:
        """Where it is, as `Collection.open` takes it; never holds a secret."""
        ...

    @property
    def writable(self) -> bool: ...

    @property
    def seq(self) -> int:
        """Sequence number of the last commit seen, or of the snapshot that this thread is in."""
        ...

    @property
    def floor(self) -> int:
        """What came before it cannot be replayed: `purge` took it away."""
        ...

    @property
    def host(self) -> Host | None:
        """Keeps which index each signal uses, where many clients must agree on it."""
        ...

    def transaction(self) -> AbstractContextManager[Any]:
        """Everything inside is committed, on disk, or undone."""
        ...

    def snapshot(self) -> AbstractContextManager[int]:
        """Everything that this thread reads inside is of one commit; gives its sequence number."""
        ...

    def refresh(self) -> bool:
        """See what others have committed; True if there was anything."""
        ...

    def signals(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """Number and configuration of each signal, by name, in the order in which they were declared."""
        ...

    def declare(self, signals: Mapping[str, Mapping[str, Any]], /) -> None:
        """Write the signals' configurations, once, when the collection is made."""
        ...

    def count(self) -> int:
        """Live documents."""
        ...

    def dead(self) -> int:
        """Versions that were replaced or deleted and not yet purged."""
        ...

    def fetch(self, rows: Ids, /) -> list[Document]:
        """Documents by row key; raises `StaleResult` if one is gone."""
        ...

    def held(self, rows: Ids, /) -> IdSet:
        """Those of the rows that are here, live or not, sorted."""
        ...

    def texts(self, rows: Ids, /) -> list[str]:
        """Texts by row key; raises `StaleResult` if one is gone."""
        ...

    def find(self, ids: Sequence[str], /) -> dict[str, int]:
        """Row keys of live documents by id; absent ids are left out."""
        ...

    def known(self, ids: Sequence[str], /) -> dict[str, Known]:
        """What is held of each live document by id; absent ids are left out."""
        ...

    def matching(self, condition: Filter | None, /, *, at: int | None = None) -> IdSet:
        """Row keys of live documents that pass; raises `FilterError` on a field or type that no document has.

        Of the commit ``at``, where given, as long as no purge has come after it: else `StaleResult`.
        """
        ...

    def fields(self) -> dict[str, set[str]]:
        """Every metadata field that a document has had, and the kinds of its values."""
        ...

    def vectors(self, signal: int, rows: Ids, /) -> dict[int, Vector]:
        """Stored embeddings of a signal by row key, to the byte; rows without one are left out."""
        ...

    def reusable(self, signal: int, hashes: Iterable[bytes], /) -> dict[bytes, Vector]:
        """Embeddings that the encoder made before, by the hash of their text."""
        ...

    def truncated(self, signal: int) -> int:
        """Live documents whose text was cut for this signal."""
        ...

    def added_since(self, seq: int, /) -> Ids:
        """Live rows committed after ``seq``, in order."""
        ...

    def removed_since(self, seq: int, /) -> Ids:
        """Rows removed after ``seq``, also those added after it."""
        ...

    def check(self, entry: Entry, /) -> None:
        """Refuse a document that this store cannot hold, naming what is wrong with it."""
        ...

    def commit(self, entries: Sequence[Entry], removed: Ids) -> int:
        """Add new versions and remove old ones at once; on disk when this returns their sequence number."""
        ...

    def purge(self, until: int | None = None, /) -> int:
        """Drop the versions that were replaced or deleted by the commit ``until``, by any where None, with their
        embeddings; returns how many. Reading goes on meanwhile."""
        ...

    def problems(self) -> Iterable[str]:
        """What is not as it was written; nothing where all is sound."""
        ...

    def size(self) -> int:
        """Bytes on disk."""
        ...

    def close(self) -> None:
        """Let go of the file or server. Safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class Generation:
    """One index that a signal has or had, as a `Host` keeps it.

    Attributes
    ----------
    signal, number
        Which.
    spec
        What builds it, empty.
    """

    signal: int
    number: int
    spec: Spec


class Host(Protocol):
    """What a `Store` on a server has as ``host``: which index each signal uses is part of the truth, for all alike."""

    followers: list[Callable[[], None]]
    """Called inside each commit, before it is acknowledged."""

    def current(self, signal: int, /) -> Generation:
        """The index in use."""
        ...

    def previous(self, signal: int, /) -> Generation | None:
        """The index to roll back to."""
        ...

    def start(self, signal: int, spec: Spec, /) -> Generation:
        """A new generation, not yet in use."""
        ...

    def house(self, index: Any, generation: Generation, /) -> bool:
        """Give an index its place in the store's own database; False if it is not one that lives there."""
        ...

    def seq(self, generation: Generation, /) -> int:
        """Sequence number that the rows on the server have reached."""
        ...

    def reached(self, generation: Generation, seq: int, /) -> None:
        """The rows on the server have come to ``seq``."""
        ...

    def switch(self, signal: int, current: int, previous: int | None, /) -> None:
        """Use these generations."""
        ...

    def unused(self, signal: int, /) -> list[Generation]:
        """Generations that are neither in use nor to roll back to."""
        ...

    def forget(self, generation: Generation, /) -> None:
        """Keep no record of it any more."""
        ...


Retrieve: TypeAlias = Stage[Query, Ranking]
Rerank: TypeAlias = Stage[Ranking, Ranking]
