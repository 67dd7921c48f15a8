"""Words hashed into a fixed number of dimensions: no model, no training, no surprise.

One encoder for each kind of embedding, for tests and documentation.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from reperio import meter
from reperio.embeddings import Dense, MultiVector, Sparse
from reperio.encoders.texts import check_texts
from reperio.errors import ConfigurationError
from reperio.protocols import Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["HashEncoder", "HashWeights", "HashWords"]

E = TypeVar("E")

_WORD = re.compile(r"\w+")


class HashEncoder:
    """A bag of hashed words, of length 1: two texts are near if they share words.

    For tests, for documentation, and as the floor that a real encoder has to beat. The same on every machine
    and in every process. Two words may share a dimension (Weinberger et al., Feature Hashing for Large Scale
    Multitask Learning, 2009); no sign is hashed, so no text becomes zero and similarities lie in [0, 1].

    Parameters
    ----------
    dim
        d.

    Raises
    ------
    ConfigurationError
        If ``dim`` is not positive.

    Examples
    --------
    >>> encoder = HashEncoder()
    >>> a, b, c = encoder.encode_document(["Merge sorted inputs.", "merge: sorted!", "A red fox"]).embeddings
    >>> round(float(a @ b), 3), float(a @ c)
    (0.816, 0.0)
    """

    def __init__(self, dim: int = 256) -> None:
        self.dim = _checked(dim, usual=256)

    @property
    def spec(self) -> Spec:
        """How to build this encoder again."""
        return {"type": "HashEncoder", "dim": self.dim}

    @property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two rows to compare: the hash and d."""
        return Fingerprint.make("dense", "hashed-words", self.dim, hash="crc32", words=_WORD.pattern)

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Dense]:
        """Queries, encoded as documents are."""
        return self._encode(texts)

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Dense]:
        """Texts → ``(n, d)``, float32, rows of length 1; tokens are words, none is ever cut.

        Raises
        ------
        EmptyText
            If a text is empty or blank; names its position.
        InvalidInput
            For a bare ``str``; or an element that is no ``str`` or not valid Unicode, by its position.
        """
        return self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> Encoded[Dense]:
        checked = check_texts(texts)
        out = np.zeros((len(checked), self.dim), dtype=np.float32)
        counts = np.zeros(len(checked), dtype=np.int64)
        for i, text in enumerate(checked):
            words = _words(text)
            counts[i] = len(words)
            np.add.at(out[i], [zlib.crc32(word.encode()) % self.dim for word in words], 1)
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        return _encoded(out, counts)


class HashWeights:
    """Sparse weights of hashed words: what a learned-sparse encoder gives, without learning.

    Parameters
    ----------
    dim
        V, the number of columns.

    Raises
    ------
    ConfigurationError
        If ``dim`` is not positive.

    Examples
    --------
    >>> columns, weights = HashWeights().encode_document(["merge, merge: sorted!"]).embeddings.row(0)
    >>> sorted(round(weight, 3) for weight in weights.tolist())
    [0.693, 1.099]
    """

    def __init__(self, dim: int = 4096) -> None:
        self.dim = _checked(dim, usual=4096)

    @property
    def spec(self) -> Spec:
        """How to build this encoder again."""
        return {"type": "HashWeights", "dim": self.dim}

    @property
    def weights_below(self) -> int:
        """Columns from here on hold counts: none does."""
        return self.dim

    @property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two rows to compare: the hash and V."""
        return Fingerprint.make("sparse", "hashed-weights", self.dim, hash="crc32", words=_WORD.pattern)

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        """Queries, encoded as documents are."""
        return self.encode_document(texts)

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        """Texts → rows of log(1 + how often) by hashed word; raises as `HashEncoder.encode_document`."""
        said = [_words(text) for text in check_texts(texts)]
        rows = [sorted(Counter(zlib.crc32(word.encode()) % self.dim for word in words).items()) for words in said]
        indptr = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        columns, counts = (np.array([pair[i] for row in rows for pair in row], dtype=np.int64) for i in (0, 1))
        weights = np.log1p(counts).astype(np.float32)
        return _encoded(Sparse(indptr, columns, weights, self.dim), np.array([len(w) for w in said], dtype=np.int64))


class HashWords:
    """One vector of length 1 for each word of a text, from its hash: what late interaction gives, without a model.

    Parameters
    ----------
    dim
        d.

    Raises
    ------
    ConfigurationError
        If ``dim`` is not positive.

    Examples
    --------
    >>> embeddings = HashWords().encode_document(["merge sorted inputs", "a red fox"]).embeddings
    >>> embeddings.vectors.shape, embeddings.offsets.tolist()
    ((6, 64), [0, 3, 6])
    """

    def __init__(self, dim: int = 64) -> None:
        self.dim = _checked(dim, usual=64)

    @property
    def spec(self) -> Spec:
        """How to build this encoder again."""
        return {"type": "HashWords", "dim": self.dim}

    @property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two rows to compare: the hash and d."""
        return Fingerprint.make("multi-vector", "hashed-word-vectors", self.dim, hash="shake128", words=_WORD.pattern)

    def encode_query(self, texts: Sequence[str], /) -> Encoded[MultiVector]:
        """Queries, encoded as documents are."""
        return self.encode_document(texts)

    def encode_document(self, texts: Sequence[str], /) -> Encoded[MultiVector]:
        """Texts → a row of d signs, scaled, for each word; raises as `HashEncoder.encode_document`."""
        said = [_words(text) for text in check_texts(texts)]
        counts = np.array([len(words) for words in said], dtype=np.int64)
        width = -(-self.dim // 8)
        hashed = b"".join(hashlib.shake_128(word.encode()).digest(width) for words in said for word in words)
        bits = np.unpackbits(np.frombuffer(hashed, np.uint8).reshape(-1, width), axis=1, count=self.dim)
        vectors = ((2 * bits.astype(np.float32) - 1) / np.sqrt(self.dim)).astype(np.float32)
        return _encoded(MultiVector(vectors, np.cumsum([0, *counts], dtype=np.int64)), counts)


def _checked(dim: int, *, usual: int) -> int:
    if dim <= 0:
        raise ConfigurationError(f"dim is {dim}.", f"Use 1 or more; {usual} is usual.")
    return dim


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower()) or [text]  # a text of signs alone is a word of its own


def _encoded(embeddings: E, counts: NDArray[np.int64]) -> Encoded[E]:
    meter.count("texts", len(counts))
    meter.count("tokens", int(counts.sum()))
    return Encoded(embeddings, counts, np.zeros(len(counts), dtype=np.bool_))
