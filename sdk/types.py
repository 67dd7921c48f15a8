"""Data that flow between stages: frozen, slotted, cheap.

Shapes: q queries, n documents, d dimensions, k results.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Generic, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, Ids, IdSet, MultiVector, Sparse, joined
from reperio.errors import InvalidInput, ShapeError

__all__ = [
    "Answer",
    "Context",
    "Dense",
    "Document",
    "Encoded",
    "FieldSpan",
    "Fingerprint",
    "Hit",
    "IdSet",
    "Ids",
    "MultiVector",
    "Neighbors",
    "Origin",
    "Provenance",
    "Query",
    "Ranking",
    "Scalar",
    "Span",
    "Sparse",
    "Value",
]

Scalar: TypeAlias = str | int | float | bool | date | datetime
"""What a filter compares with."""

Value: TypeAlias = Scalar | Sequence["Value"] | Mapping[str, "Value"] | None
"""What metadata holds: anything JSON holds, and dates (kept as ISO 8601 text)."""

E_co = TypeVar("E_co", covariant=True)


@dataclass(frozen=True, slots=True)
class FieldSpan:
    """Characters ``[start, end)`` of a document's text, and the field they came from.

    Attributes
    ----------
    field
        Column, JSON key or part of the source.
    start, end
        Half-open range in the document's text, in characters.
    offset
        Where in the field's own text the range starts, in characters.
    """

    field: str
    start: int
    end: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a document came from.

    Attributes
    ----------
    source
        Database (without secrets), file or service.
    table
        Table, view or sheet, where there is one.
    key
        Primary key, line number or qualified name inside the source.
    fields
        Which characters of the text came from which field, in order.
    line
        First line in the file, counted from 1, where there is one.
    """

    source: str
    table: str | None = None
    key: str | None = None
    fields: tuple[FieldSpan, ...] = ()
    line: int | None = None

    def field_at(self, position: int) -> FieldSpan | None:
        """The field that the character at ``position`` came from; None for template text between fields."""
        return next((f for f in self.fields if f.start <= position < f.end), None)

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        inside = "".join(part for part in (self.table and f" {self.table}", self.key and f"[{self.key}]") if part)
        return where + inside


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its name, its metadata and where it came from."""

    id: str
    text: str
    metadata: Mapping[str, Value] = field(default_factory=dict[str, Value])
    provenance: Provenance | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """One retrieved document.

    Attributes
    ----------
    document
        The document.
    score
        Higher is better, always; finite.
    signals
        The score of each signal behind ``score``, by name, on that signal's own scale.
    """

    document: Document
    score: float
    signals: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Ranking(Sequence[Hit]):
    """Hits of one query, best first.

    ``hits`` may be a lazy sequence that reads its documents on first use.
    """

    query: Query
    hits: Sequence[Hit]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    @overload
    def __getitem__(self, i: int) -> Hit: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Hit]: ...
    def __getitem__(self, i: int | slice) -> Hit | Sequence[Hit]:
        return self.hits[i]

    @property
    def ids(self) -> list[str]:
        """Document ids, best first."""
        return [hit.document.id for hit in self.hits]

    @property
    def scores(self) -> Dense:
        """Scores, ``(k,)``, float32, non-increasing."""
        return np.array([hit.score for hit in self.hits], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``[start, end)`` of a document's text."""

    document_id: str
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one character of a context came from."""

    document: Document
    position: int
    field: FieldSpan | None

    @property
    def provenance(self) -> Provenance | None:
        """Source, table and key of the document."""
        return self.document.provenance


@dataclass(frozen=True, slots=True)
class Context:
    """What a reader reads: spans of documents, joined by ``separator``.

    Attributes
    ----------
    query
        What is asked.
    spans
        Ranges of the documents' texts, in reading order.
    documents
        Every document that a span names, by id.
    separator
        Written between two spans; it has no origin.
    tokens
        Length of ``text`` in the tokens that the budget was counted in.
    """

    query: Query
    spans: tuple[Span, ...]
    documents: Mapping[str, Document]
    separator: str = "\n\n"
    tokens: int = 0

    def __post_init__(self) -> None:
        for span in self.spans:
            document = self.documents.get(span.document_id)
            if document is None:
                raise InvalidInput(f"{span} names a document that the context does not hold.", "Add it to `documents`.")
            if not 0 <= span.start <= span.end <= len(document.text):
                raise InvalidInput(f"{span} leaves its text of {len(document.text)} characters.", "Mend the range.")

    @property
    def text(self) -> str:
        """The spans' characters, verbatim, joined by ``separator``."""
        return self.separator.join(self.documents[s.document_id].text[s.start : s.end] for s in self.spans)

    def source(self, i: int) -> Origin | None:
        """Document, position and field of the character ``text[i]``; None inside a separator.

        Raises
        ------
        InvalidInput
            If ``i`` is not a position of ``text``.
        """
        start = 0
        for number, span in enumerate(self.spans):
            if number:
                if 0 <= i - start < len(self.separator):
                    return None
                start += len(self.separator)
            if 0 <= i - start < len(span):
                document = self.documents[span.document_id]
                position = span.start + i - start
                where = document.provenance
                return Origin(document, position, where.field_at(position) if where else None)
            start += len(span)
        raise InvalidInput(f"Position {i} is outside a context of {start} characters.", f"Use 0 to {start - 1}.")

    def to_original(self, i: int) -> tuple[str, int] | None:
        """Document id and position there of the character ``text[i]``; None inside a separator."""
        origin = self.source(i)
        return None if origin is None else (origin.document.id, origin.position)

    def from_original(self, document_id: str, position: int) -> int | None:
        """Where a document's character stands in ``text``; None if it was not kept."""
        start = 0
        for span in self.spans:
            if span.document_id == document_id and span.start <= position < span.end:
                return start + position - span.start
            start += len(span) + len(self.separator)
        return None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reader wrote, and what it had read."""

    query: Query
    text: str
    context: Context


@dataclass(frozen=True, slots=True)
class Encoded(Generic[E_co]):
    """Embeddings, and what it took to make them.

    Attributes
    ----------
    embeddings
        One row for each text.
    token_counts
        Tokens of each text before any cut, ``(n,)``, int64; -1 where a server encoded it that does not tell.
    truncated
        Which texts were cut, ``(n,)``, bool.
    """

    embeddings: E_co
    token_counts: NDArray[np.int64]
    truncated: NDArray[np.bool_]

    @staticmethod
    def joined(parts: Sequence[Encoded[Any]], kind: str, *, dim: int) -> Encoded[Any]:
        """All texts' embeddings, one part after the other; of no parts, none."""
        return Encoded(
            joined([part.embeddings for part in parts], kind, dim=dim),
            np.concatenate([np.empty(0, np.int64), *(part.token_counts for part in parts)]),
            np.concatenate([np.empty(0, np.bool_), *(part.truncated for part in parts)]),
        )


@dataclass(frozen=True, slots=True)
class Neighbors:
    """Result of a nearest-neighbour search.

    Attributes
    ----------
    ids
        Row keys, ``(q, k)``, int64; ``-1`` where fewer than k exist.
    scores
        ``(q, k)``, float32, non-increasing along a row; ``-inf`` where ``ids`` is -1.
    """

    ids: Ids
    scores: Dense

    def __post_init__(self) -> None:
        if self.ids.shape != self.scores.shape:
            raise ShapeError(f"ids {self.ids.shape} and scores {self.scores.shape} differ.", "Give one score an id.")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What made an embedding: two embeddings compare only where this is equal.

    Attributes
    ----------
    kind
        ``"dense"``, ``"sparse"`` or ``"multi-vector"``.
    model
        Name or path that a person reads.
    dim
        d, or V for sparse embeddings.
    fields
        Everything else that changes the numbers: content hash or revision, pooling, prompts,
        normalisation, dtype, tokenizer, truncation. Sorted pairs of name and value.
    """

    kind: str
    model: str
    dim: int
    fields: tuple[tuple[str, str], ...] = ()

    @classmethod
    def make(cls, kind: str, model: str, dim: int, **fields: object) -> Fingerprint:
        """Build one from keyword arguments, each kept as canonical JSON."""
        pairs = ((name, json.dumps(value, sort_keys=True)) for name, value in fields.items())
        return cls(kind, model, dim, tuple(sorted(pairs)))

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that change with any field but ``model``, which is only a name."""
        plain = json.dumps([self.kind, self.dim, self.fields])
        return hashlib.blake2b(plain.encode(), digest_size=16).hexdigest()

    def differences(self, other: Fingerprint) -> list[str]:
        """One line for each field that differs, mine first."""
        mine, theirs = dict(self.fields), dict(other.fields)
        pairs = [("kind", self.kind, other.kind), ("dim", self.dim, other.dim)]
        pairs += [(name, mine.get(name), theirs.get(name)) for name in sorted(mine.keys() | theirs.keys())]
        return [f"{name}: {a} != {b}" for name, a, b in pairs if a != b]
