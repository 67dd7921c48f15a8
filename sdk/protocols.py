"""The whole architecture on one page.

Shapes: q queries, n documents, d dimensions, k results, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

from reperio.embeddings import Dense, Ids, IdSet
from reperio.filters import Filter
from reperio.types import Document, Encoded, Fingerprint, Neighbors, Query, Ranking

E_contra = TypeVar("E_contra", contravariant=True)
E_co = TypeVar("E_co", covariant=True)
A_contra = TypeVar("A_contra", contravariant=True)
B_co = TypeVar("B_co", covariant=True)

Spec: TypeAlias = Mapping[str, Any]
"""A component as JSON: ``{"type": registered name, **constructor arguments}``. See `reperio.registry`."""


@runtime_checkable
class Encoder(Protocol[E_co]):
    """Texts → embeddings of kind ``E``; a text's embedding never depends on its neighbours."""

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
    A mutation that fails leaves the index as it was.
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
        """The lowest score that can occur in theory; ``-inf`` where there is none."""
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

    def save(self, path: Path, /) -> None:
        """Write a new folder: whole, checksummed and on disk when this returns, or absent."""
        ...

    @classmethod
    def open(cls, path: Path, /) -> Self:
        """Read what `save` wrote; raises `CorruptArtifact` on anything else."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """An index that learns from a sample before it is fast; untrained, it searches exactly."""

    @property
    def training_size(self) -> int:
        """How many vectors `train` wants; 0 where nothing is to be learnt (any more)."""
        ...

    def train(self, sample: Dense, /) -> None: ...


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


class Store(Protocol):
    """Documents and embeddings under one sequence number: the truth. A commit is the acknowledgement."""

    @property
    def seq(self) -> int:
        """Sequence number of the last commit."""
        ...

    @property
    def writable(self) -> bool: ...

    def fetch(self, rows: Ids, /) -> list[Document]:
        """Documents by row key; raises `StaleResult` if one is gone."""
        ...

    def find(self, ids: Sequence[str], /) -> dict[str, int]:
        """Row keys of live documents by id; absent ids are left out."""
        ...

    def matching(self, condition: Filter | None, /) -> IdSet:
        """Row keys of live documents that pass."""
        ...

    def embeddings(self, signal: str, rows: Ids, /) -> Any:
        """Stored embeddings of these rows, in this order, of the signal's kind."""
        ...

    def added_since(self, seq: int, /) -> Ids:
        """Live rows committed after ``seq``."""
        ...

    def removed_since(self, seq: int, /) -> Ids:
        """Rows removed after ``seq`` that were there at ``seq``."""
        ...

    def close(self) -> None: ...


Retrieve: TypeAlias = Stage[Query, Ranking]
Rerank: TypeAlias = Stage[Ranking, Ranking]
