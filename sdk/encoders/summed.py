"""Several encoders of one kind as one, for one index that sums their scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, Sparse
from reperio.encoders.bm25 import BM25Encoder
from reperio.errors import ConfigurationError
from reperio.protocols import Encoder, Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["DenseSum", "SparseSum"]


class DenseSum:
    """Puts the vectors of several dense encoders one after the other: one inner product is their weighted sum.

    Each is scaled by the square root of its weight, on both sides. Of vectors of length 1 the joined ones have length
    1 as well, so that a cosine is the same sum.

    Parameters
    ----------
    encoders
        By name.
    weights
        What each counts, 1 where not given; they are scaled to sum to 1.

    Raises
    ------
    ConfigurationError
        No encoder, one of another kind, or a weight that is not positive or names none.

    Examples
    --------
    >>> from reperio.encoders import HashEncoder
    >>> both = DenseSum({"small": HashEncoder(8), "large": HashEncoder(64)}, weights={"large": 3.0})
    >>> query, document = both.encode_query(["sorted"]), both.encode_document(["merge sorted"])
    >>> parts = [e.encode_query(["sorted"]).embeddings @ e.encode_document(["merge sorted"]).embeddings.T
    ...          for e in both.encoders.values()]
    >>> bool(abs(query.embeddings @ document.embeddings.T - (0.25 * parts[0] + 0.75 * parts[1])) < 1e-6)
    True
    """

    def __init__(self, encoders: Mapping[str, Encoder[Any]], *, weights: Mapping[str, float] | None = None) -> None:
        self.encoders = dict(encoders)
        self.weights = _weights(self.encoders, weights, kind="dense")
        total = sum(self.weights.values())
        self._scales = {name: np.float32((weight / total) ** 0.5) for name, weight in self.weights.items()}

    @property
    def spec(self) -> Spec:
        """How to build this encoder again."""
        encoders = {name: dict(encoder.spec) for name, encoder in self.encoders.items()}
        return {"type": "DenseSum", "encoders": encoders, "weights": self.weights}

    @property
    def dim(self) -> int:
        """d, of all together."""
        return sum(encoder.fingerprint.dim for encoder in self.encoders.values())

    @property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two vectors to compare: every encoder's own, and the weights."""
        parts = {name: encoder.fingerprint.digest for name, encoder in self.encoders.items()}
        model = " + ".join(encoder.fingerprint.model for encoder in self.encoders.values())
        return Fingerprint.make("dense", model, self.dim, parts=parts, weights=self.weights)

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Dense]:
        """Vectors one after the other, weighed."""
        return self._joined([encoder.encode_query(texts) for encoder in self.encoders.values()])

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Dense]:
        """Vectors one after the other, weighed."""
        return self._joined([encoder.encode_document(texts) for encoder in self.encoders.values()])

    def _joined(self, parts: Sequence[Encoded[Any]]) -> Encoded[Dense]:
        scaled = [part.embeddings * scale for part, scale in zip(parts, self._scales.values(), strict=True)]
        tokens = np.max([part.token_counts for part in parts], axis=0)
        cut = np.any([part.truncated for part in parts], axis=0)
        return Encoded(np.ascontiguousarray(np.concatenate(scaled, axis=1)), tokens, cut)


class SparseSum:
    """Puts the rows of several sparse encoders side by side: their inner products add up in one index.

    One of them may be a `BM25Encoder`. Its columns are hashes, so the others' come before: give
    ``BM25Index(weights_below=encoder.weights_below)``. Without one, give an `InvertedIndex`.
    An encoder that cannot tell the words of its columns has them told by its name and their number.

    Parameters
    ----------
    encoders
        By name.
    weights
        What each counts, 1 where not given; applied to queries, so that documents need not be encoded anew to
        change it.

    Raises
    ------
    ConfigurationError
        No encoder, one of another kind, two of BM25, or a weight that is not positive or names none.

    Examples
    --------
    >>> encoder = SparseSum({"bm25": BM25Encoder()}, weights={"bm25": 2.0})
    >>> encoder.encode_query(["merge"]).embeddings.row(0)[1].tolist()
    [2.0]
    """

    def __init__(self, encoders: Mapping[str, Encoder[Any]], *, weights: Mapping[str, float] | None = None) -> None:
        self.encoders = dict(encoders)
        self.weights = _weights(self.encoders, weights, kind="sparse")
        counting = [name for name, encoder in self.encoders.items() if isinstance(encoder, BM25Encoder)]
        if len(counting) > 1:
            raise ConfigurationError(f"{counting} all count words.", "Give one BM25Encoder.")
        self._counting = counting[0] if counting else None
        self._offsets: dict[str, int] = {}
        self.weights_below = 0
        for name, encoder in self.encoders.items():
            if name != self._counting:
                self._offsets[name] = self.weights_below
                self.weights_below += encoder.fingerprint.dim

    @property
    def spec(self) -> Spec:
        """How to build this encoder again."""
        encoders = {name: dict(encoder.spec) for name, encoder in self.encoders.items()}
        return {"type": "SparseSum", "encoders": encoders, "weights": self.weights}

    @property
    def dim(self) -> int:
        """V."""
        return self.weights_below if self._counting is None else self.encoders[self._counting].fingerprint.dim

    @property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two rows to compare: every encoder's own."""
        parts = {name: encoder.fingerprint.digest for name, encoder in self.encoders.items()}
        model = " + ".join(encoder.fingerprint.model for encoder in self.encoders.values())
        return Fingerprint.make("sparse", model, self.dim, parts=parts, weights=self.weights)

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        """Rows side by side, weighed."""
        parts = {name: encoder.encode_query(texts) for name, encoder in self.encoders.items()}
        return self._joined(parts, self.weights)

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        """Rows side by side."""
        parts = {name: encoder.encode_document(texts) for name, encoder in self.encoders.items()}
        return self._joined(parts, dict.fromkeys(self.encoders, 1.0))

    def terms(self, text: str) -> dict[int, str]:
        """Column → the word of ``text`` that stands there, from the encoders that can tell."""
        out: dict[int, str] = {}
        for name, encoder in self.encoders.items():
            told: Callable[[str], Mapping[int, str]] | None = getattr(encoder, "terms", None)
            words = _numbered(name, encoder, text) if told is None else told(text)
            columns = self._place(name, np.fromiter(words, dtype=np.int64, count=len(words)))
            out.update(zip(columns.tolist(), words.values(), strict=True))
        return out

    def _place(self, name: str, columns: NDArray[np.int64]) -> NDArray[np.int64]:
        if name != self._counting:
            return columns + self._offsets[name]
        # A hash falls among the weights' columns about once in 2**45 words: it is moved behind them.
        return np.where(columns < self.weights_below, columns + self.weights_below, columns)

    def _joined(self, parts: Mapping[str, Encoded[Any]], weights: Mapping[str, float]) -> Encoded[Sparse]:
        rows = {name: cast("Sparse", part.embeddings) for name, part in parts.items()}
        columns = np.concatenate([self._place(name, r.indices) for name, r in rows.items()])
        values = np.concatenate([r.weights * np.float32(weights[name]) for name, r in rows.items()])
        owner = np.concatenate([np.repeat(np.arange(len(r)), np.diff(r.indptr)) for r in rows.values()])
        order = np.lexsort((columns, owner))
        count = len(next(iter(rows.values())))
        indptr = np.searchsorted(owner[order], np.arange(count + 1)).astype(np.int64)
        tokens = np.max([part.token_counts for part in parts.values()], axis=0)
        cut = np.any([part.truncated for part in parts.values()], axis=0)
        return Encoded(Sparse(indptr, columns[order], values[order], self.dim), tokens, cut)


def _weights(encoders: Mapping[str, Encoder[Any]], given: Mapping[str, float] | None, *, kind: str) -> dict[str, float]:
    """What each encoder counts, once all are known to be of one kind."""
    if not encoders:
        raise ConfigurationError("No encoder was given.", "Give at least one, by name.")
    weights = dict.fromkeys(encoders, 1.0) | dict(given or {})
    for name, weight in weights.items():
        if name not in encoders or not 0 < weight < float("inf"):
            fix = f"Give a positive weight for: {', '.join(encoders)}."
            raise ConfigurationError(f"The weight of {name!r} is {weight}.", fix)
    for name, encoder in encoders.items():
        if encoder.fingerprint.kind != kind:
            problem = f"The encoder {name!r} makes {encoder.fingerprint.kind} embeddings."
            raise ConfigurationError(problem, f"Give {kind} encoders; fuse other kinds as signals of their own.")
    return weights


def _numbered(name: str, encoder: Encoder[Any], text: str) -> dict[int, str]:
    rows: Sparse = encoder.encode_query([text]).embeddings
    return {column: f"{name}:{column}" for column in rows.indices.tolist()}
