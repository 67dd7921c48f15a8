"""One number for each whole word of a text: late interaction in one dimension, which an inverted index scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio import extras
from reperio.embeddings import MultiVector, Sparse
from reperio.encoders.analysis import KEYS, term_key
from reperio.encoders.multivector import Bags, MultiVectorEncoder
from reperio.errors import ConfigurationError
from reperio.models.inputs import Role
from reperio.models.projection import TokenProjection
from reperio.protocols import Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["WordWeights"]

VERSION = 1
"""Raised whenever the same model would give other weights here."""


class WordWeights:
    """ColBERTer's one-dimension mode: a word of a query meets the same word of a document alone, weight by weight.

    The score is the sum, over the words of the query, of the product of their two weights where it is above 0: that
    is MaxSim in one dimension with an exact match of words. A word has two columns, keyed by `term_key`, one for each
    sign of its weight; so `InvertedIndex` gives this very score, and explains it word by word.

    Parameters
    ----------
    encoder
        Merges the words, with ``WholeWords(queries=True)``; its gate removes words of documents.
    weigh
        A layer from its vectors to one dimension.

    Raises
    ------
    ConfigurationError
        If the encoder does not merge words of queries and documents, or the layer gives more than one dimension.

    References
    ----------
    .. [1] Hofstätter et al.: Introducing Neural Bag of Whole-Words with ColBERTer (Uni-ColBERTer). CIKM 2022.
    """

    def __init__(self, encoder: MultiVectorEncoder, weigh: TokenProjection) -> None:
        if weigh.dim != 1:
            raise ConfigurationError(f"weigh gives {weigh.dim} dimensions.", "Give a layer to one.")
        self.encoder = encoder
        self.weigh = weigh

    @property
    def spec(self) -> Spec:
        """How to build this encoder again.

        Raises
        ------
        UnsupportedOperation
            If a model or a layer is in memory only.
        """
        return {"type": "WordWeights", "encoder": dict(self.encoder.spec), "weigh": dict(self.weigh.spec)}

    @property
    def weights_below(self) -> int:
        """Columns from here on hold counts: none does."""
        return KEYS

    @property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two rows to compare; loads the model."""
        self._check()
        told = self.encoder.fingerprint
        fields = {"encoder": told.digest, "weigh": self.weigh.fields(), "version": VERSION}
        return Fingerprint.make("sparse", told.model, KEYS, hash="blake2b-64 mod 2**63-1", **fields)

    def parameters(self) -> Any:
        """The weights of the layer, for an optimiser; the encoder has its own."""
        return self.weigh.parameters()

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        """Weights of the words of queries; see `MultiVectorEncoder.encode_document`."""
        return self._encode(texts, "query")

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        """Weights of the words of documents; see `MultiVectorEncoder.encode_document`.

        Returns
        -------
        Encoded
            ``embeddings``: V = 2**63 - 1; a text without a word that weighs anything has an empty row.
        """
        return self._encode(texts, "document")

    def terms(self, text: str) -> dict[int, str]:
        """Column → the word of ``text`` that stands there, for explanations; negative weights with a minus."""
        [words] = self.encoder.bags([text], "query").words
        plain = {term_key(word): word for word in words if word is not None}
        return {**plain, **{_negative(word): f"-{word}" for word in plain.values()}}

    def weigh_bags(self, bags: Bags, role: Role, /) -> Sparse:
        """The rows of texts whose words were merged already, by `MultiVectorEncoder.bags` of this encoder."""
        kept = np.ones(len(bags.embeddings.vectors), dtype=np.bool_)
        scaled = bags.embeddings.vectors
        gate = self.encoder.gate
        if gate is not None and role == "document":
            staying, kept = gate.apply(bags.embeddings)
            scaled = np.zeros_like(scaled)
            scaled[kept] = staying.vectors
        weights = self._weights(scaled)
        rows = [self._row(words, weights, kept, bags.embeddings, i) for i, words in enumerate(bags.words)]
        indptr = np.cumsum([0, *(len(columns) for columns, _ in rows)], dtype=np.int64)
        columns = np.concatenate([np.empty(0, np.int64), *(columns for columns, _ in rows)])
        values = np.concatenate([np.empty(0, np.float32), *(values for _, values in rows)])
        return Sparse(indptr, columns, values, KEYS)

    def _encode(self, texts: Sequence[str], role: Role) -> Encoded[Sparse]:
        self._check()
        bags = self.encoder.bags(texts, role)
        return Encoded(self.weigh_bags(bags, role), bags.read.counts, bags.read.truncated)

    def _weights(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        torch = extras.load("torch", extra="models")
        with torch.inference_mode():
            out: NDArray[np.float32] = self.weigh(torch.from_numpy(vectors)).squeeze(-1).cpu().numpy()
        return out

    def _row(
        self,
        words: Sequence[str | None],
        weights: NDArray[np.float32],
        kept: NDArray[np.bool_],
        embeddings: MultiVector,
        text: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Columns of one text, ascending, and their weights, which are above 0."""
        first = int(embeddings.offsets[text])
        held = {
            (term_key(word) if weights[at] > 0 else _negative(word)): abs(float(weights[at]))
            for at, word in enumerate(words, first)
            if word is not None and kept[at] and weights[at] != 0
        }
        columns = np.array(sorted(held), dtype=np.int64)
        return columns, np.array([held[column] for column in columns.tolist()], dtype=np.float32)

    def _check(self) -> None:
        words = self.encoder.words
        if words is None or not words.queries:
            problem = "The encoder does not merge the words of queries and documents."
            raise ConfigurationError(problem, "Give it words=WholeWords(queries=True, normalize=False).")


def _negative(word: str) -> int:
    """The column of a word's negative weight: no word has a null character."""
    return term_key(f"\0{word}")
