"""An encoder and an index of the same kind, over documents in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from reperio.embeddings import Ids
from reperio.errors import ConfigurationError, DuplicateId, InvalidInput
from reperio.pipeline import Step
from reperio.protocols import Encoder, Index
from reperio.types import Document, Hit, Neighbors, Query, Ranking

E = TypeVar("E")


class Retriever(Step[str | Query, Ranking]):
    """Finds documents held in memory. For many, or to keep them, use a `Collection`.

    Parameters
    ----------
    encoder
        Texts → embeddings of kind ``E``.
    index
        Empty; finds embeddings of the same kind ``E``: another kind is a type error.
    documents
        Encoded and added at once; their ids are each once.
    k
        Hits for each query.
    name
        Name of the signal in ``Hit.signals``.
    """

    def __init__(
        self,
        encoder: Encoder[E],
        index: Index[E],
        *,
        documents: Iterable[Document] = (),
        k: int = 10,
        name: str = "score",
    ) -> None:
        if k <= 0:
            raise ConfigurationError(f"k is {k}.", "Use 1 or more.")
        if len(index):
            raise ConfigurationError(f"The index holds {len(index)} rows already.", "Give an empty index.")
        self.documents: list[Document] = []
        self.k = k
        self._signal = name
        self._ids: set[str] = set()

        # The kind E lives in these two closures only: a Retriever is the same type whatever its embeddings are.
        def add(documents: Sequence[Document], rows: Ids) -> None:
            index.add(rows, encoder.encode_document([d.text for d in documents]).embeddings)

        def find(texts: Sequence[str], k: int) -> Neighbors:
            return index.search(encoder.encode_query(texts).embeddings, k)

        self._add, self._find = add, find
        self.add(documents)

    def add(self, documents: Iterable[Document]) -> None:
        """Encode and add documents whose ids are new."""
        new = list(documents)
        ids: set[str] = set()
        for document in new:
            if document.id in self._ids or document.id in ids:
                raise DuplicateId(f"The id {document.id!r} occurs twice.", "Give each document an id of its own.")
            ids.add(document.id)
        if new:
            start = len(self.documents)
            self._add(new, np.arange(start, start + len(new), dtype=np.int64))
            self.documents += new
            self._ids |= ids

    def __call__(self, batch: Sequence[str | Query], /) -> Sequence[Ranking]:
        if isinstance(batch, str):
            raise InvalidInput(f"The batch is the bare string {batch[:40]!r}.", "Give a list: retriever([text]).")
        queries = [q if isinstance(q, Query) else Query(str(i), q) for i, q in enumerate(batch)]
        found = self._find([query.text for query in queries], self.k)
        return [
            Ranking(query, self._hits(rows, scores))
            for query, rows, scores in zip(queries, found.ids.tolist(), found.scores.tolist(), strict=True)
        ]

    def _hits(self, rows: Sequence[int], scores: Sequence[float]) -> tuple[Hit, ...]:
        pairs = zip(rows, scores, strict=True)
        return tuple(Hit(self.documents[row], score, {self._signal: score}) for row, score in pairs if row >= 0)
