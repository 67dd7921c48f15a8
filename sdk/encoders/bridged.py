"""Asking a collection with another encoder than the one that wrote it, and what that costs, told before it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense
from reperio.encoders.texts import check_texts
from reperio.errors import ConfigurationError, InvalidInput
from reperio.protocols import Encoder, Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["BridgedEncoder", "RecallLoss", "expected_loss", "extract", "lost", "recalls"]

FEWEST = 20
"""Questions below which nothing is said of a loss."""

MOST = 500
"""Texts that are asked for where no questions are given."""

_WORDS = 20
"""Most words of an extract."""

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class RecallLoss:
    """What is found by the one encoder's queries and by another's, in documents of the first.

    Attributes
    ----------
    before, after
        Mean recall at ``k`` of the documents' own encoder, and of the other.
    low, high
        Where the share that is lost lies, 1 - after / before, with 95 % confidence (bootstrap over questions). Below
        0, nothing is lost: the other finds more.
    k, questions
        At what depth, and over how many.
    """

    before: float
    after: float
    low: float
    high: float
    k: int
    questions: int

    @property
    def share(self) -> float:
        """The share of recall that is lost, 1 - after / before."""
        return 1 - self.after / self.before

    def __str__(self) -> str:
        bounds = f"{self.low:.0%} to {self.high:.0%}"
        found = f"R@{self.k} {self.before:.3f} → {self.after:.3f}"
        return f"{self.share:.0%} of recall lost ({bounds}; {found} over {self.questions} questions)"


def expected_loss(
    queries: Encoder[Dense],
    documents: Encoder[Dense],
    texts: Sequence[str],
    *,
    asked: Mapping[str, Sequence[int]] | None = None,
    k: int = 10,
    seed: int = 0,
) -> RecallLoss:
    """How much less is found where ``queries`` encodes the questions and ``documents`` the texts.

    Give judged questions where you have some. Without, an extract of some words of a text has to find its text: that
    needs no judgments, ranks encoders alike, and was never lower than the judged loss by more than its interval in
    ``benchmarks/adapters.py``, but is higher where the old encoder is bad at questions.

    Parameters
    ----------
    queries, documents
        Encoders whose vectors have one length; of texts that neither was fitted on.
    texts
        What is searched: the more, the harder, and the closer to a whole collection.
    asked
        Question → positions of the texts that answer it.
    k
        Depth of the search.
    seed
        Of the choice of extracts and of the bootstrap.

    Raises
    ------
    InvalidInput
        Fewer than 20 questions, a position that no text has, or a question that nothing answers.
    ConfigurationError
        For vectors of two lengths, or ``k`` below 1.
    """
    if k < 1:
        raise ConfigurationError(f"k is {k}.", "Use 1 or more.")
    questions, wanted = _questions(check_texts(texts), asked, seed)
    rows = documents.encode_document(texts).embeddings
    own, other = (encoder.encode_query(questions).embeddings for encoder in (documents, queries))
    if own.shape != other.shape:
        problem = f"The queries have {other.shape[1]} dimensions, the documents {rows.shape[1]}."
        raise ConfigurationError(problem, "Give encoders of one space, as ProjectedEncoder makes.")
    return lost(recalls(own, rows, wanted, k=k), recalls(other, rows, wanted, k=k), k=k, seed=seed)


def lost(before: NDArray[np.float64], after: NDArray[np.float64], *, k: int, seed: int) -> RecallLoss:
    """The loss, of each question's recall, ``(q,)``."""
    if not before.any():
        raise InvalidInput("The documents' own encoder finds nothing for any question.", "Give other questions.")
    drawn = np.random.default_rng(seed).integers(0, len(before), size=(_RESAMPLES, len(before)))
    shares = 1 - after[drawn].mean(axis=1) / np.maximum(before[drawn].mean(axis=1), 1e-9)
    low, high = np.quantile(shares, [0.025, 0.975])
    return RecallLoss(float(before.mean()), float(after.mean()), float(low), float(high), k, len(before))


def _questions(
    texts: Sequence[str], asked: Mapping[str, Sequence[int]] | None, seed: int
) -> tuple[list[str], list[Sequence[int]]]:
    if asked is None:
        chosen: list[int] = np.random.default_rng(seed).permutation(len(texts))[:MOST].tolist()
        found = {i: some for i in chosen if (some := extract(texts[i], seed + i)) is not None}
        questions, wanted = list(found.values()), [[i] for i in found]
    else:
        questions, wanted = list(asked), [list(rows) for rows in asked.values()]
        for question, rows in zip(questions, wanted, strict=True):
            if not rows or not 0 <= min(rows) <= max(rows) < len(texts):
                fix = f"Give positions from 0 to {len(texts) - 1}, at least one."
                raise InvalidInput(f"The question {question[:40]!r} is answered by the texts {rows}.", fix)
    if len(questions) < FEWEST:
        fix = f"Give {FEWEST} or more questions, or texts of at least 8 words."
        raise InvalidInput(f"There are {len(questions)} questions to measure with.", fix)
    return questions, cast("list[Sequence[int]]", wanted)


def extract(text: str, seed: int) -> str | None:
    """A few words in a row out of a text; None out of one of fewer than 8."""
    words = text.split()
    length = min(_WORDS, len(words) // 2)
    if length < 4:
        return None
    start = int(np.random.default_rng(seed).integers(0, len(words) - length + 1))
    return " ".join(words[start : start + length])


def recalls(queries: Dense, rows: Dense, wanted: Sequence[Sequence[int]], *, k: int) -> NDArray[np.float64]:
    """Of each question, by inner product."""
    out = np.empty(len(queries))
    for start in range(0, len(queries), 128):
        scores = queries[start : start + 128] @ rows.T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        for i, found in enumerate(best, start):
            out[i] = np.isin(wanted[i], found).mean()
    return out


class BridgedEncoder:
    """Encodes queries with one encoder and documents with another, whose collections it may search and add to.

    A collection that ``documents`` wrote opens with it: no row is encoded anew, and documents that are added are
    encoded by ``documents``, so that all rows stay of one encoder. What that costs is asked for, and a loss that may
    be higher than ``max_loss`` is refused.

    Parameters
    ----------
    queries
        Gives vectors in the space of ``documents``: a `ProjectedEncoder`, or two `RelativeEncoder` of the same anchors.
    documents
        The encoder that wrote the collection.
    loss
        What `expected_loss` or `Projection.fit` measured; or that, as a specification holds it.
    max_loss
        Largest share of recall that may be lost, by the upper end of its interval.

    Raises
    ------
    ConfigurationError
        If more may be lost, or the vectors are of two lengths.

    Examples
    --------
    >>> from reperio.encoders import HashEncoder
    >>> old = HashEncoder()
    >>> BridgedEncoder(old, old, RecallLoss(0.8, 0.6, 0.2, 0.3, 10, 500), max_loss=0.1)
    Traceback (most recent call last):
        ...
    reperio.errors.ConfigurationError: 25% of recall lost (20% to 30%; R@10 0.800 → 0.600 over 500 questions): \
more than max_loss=0.1. Encode the collection anew, or allow more.
    """

    def __init__(
        self,
        queries: Encoder[Dense],
        documents: Encoder[Dense],
        loss: RecallLoss | Mapping[str, Any],
        *,
        max_loss: float = 0.1,
    ) -> None:
        loss = loss if isinstance(loss, RecallLoss) else RecallLoss(**loss)
        if not loss.high <= max_loss:
            raise ConfigurationError(
                f"{loss}: more than max_loss={max_loss}.", "Encode the collection anew, or allow more."
            )
        self.queries = queries
        self.documents = documents
        self.loss = loss
        self.max_loss = max_loss

    @property
    def spec(self) -> Spec:
        """How to build this encoder again, the measured loss with it."""
        return {
            "type": "BridgedEncoder",
            "queries": dict(self.queries.spec),
            "documents": dict(self.documents.spec),
            "loss": asdict(self.loss),
            "max_loss": self.max_loss,
        }

    @property
    def compares_with(self) -> Fingerprint:
        """Whose embeddings its queries are compared with: a collection of theirs opens with it."""
        return self.documents.fingerprint

    @property
    def fingerprint(self) -> Fingerprint:
        """Of both encoders; not that of ``documents``, whose queries are other vectors."""
        asked, held = self.queries.fingerprint, self.documents.fingerprint
        if (asked.kind, asked.dim) != (held.kind, held.dim):
            problem = f"Queries are {asked.kind} of {asked.dim} dimensions, documents {held.kind} of {held.dim}."
            raise ConfigurationError(problem, "Give encoders of one space, as ProjectedEncoder makes.")
        return Fingerprint.make(
            held.kind, f"{asked.model} for {held.model}", held.dim, queries=asked.digest, documents=held.digest
        )

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Dense]:
        """As ``queries`` does."""
        return self.queries.encode_query(texts)

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Dense]:
        """As ``documents`` does."""
        return self.documents.encode_document(texts)
