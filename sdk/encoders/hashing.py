"""Words hashed into a fixed number of dimensions: no model, no training, no surprise."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

from reperio import meter
from reperio.embeddings import Dense
from reperio.encoders.texts import check_texts
from reperio.errors import ConfigurationError
from reperio.protocols import Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["HashEncoder"]

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
        if dim <= 0:
            raise ConfigurationError(f"dim is {dim}.", "Use 1 or more; 256 is usual.")
        self.dim = dim

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
            words = _WORD.findall(text.lower()) or [text]  # a text of signs alone is a word of its own
            counts[i] = len(words)
            np.add.at(out[i], [zlib.crc32(word.encode()) % self.dim for word in words], 1)
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        meter.count("texts", len(checked))
        meter.count("tokens", int(counts.sum()))
        return Encoded(out, counts, np.zeros(len(checked), dtype=np.bool_))
