"""Vectors that tell where a text lies among others, and so mean the same in every encoder's space.

Shapes: n texts, a anchors.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense
from reperio.encoders.texts import check_texts
from reperio.errors import ConfigurationError
from reperio.protocols import Encoder, Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["RelativeEncoder"]

_DAMPING = 0.1
"""Added to the anchors' cosines with themselves before they are whitened."""


class RelativeEncoder:
    """A text's cosines to fixed anchor texts, of length 1: neither a rotation nor a scaling of the space changes them.

    Two encoders that were trained apart, given the same anchors, make vectors that compare, with nothing learnt: one's
    queries find the other's documents, through a `BridgedEncoder`. `expected_loss` tells how well. Cosines to anchors
    that are alike say the same thing many times; whitening takes that out, by the anchors' cosines with each other.

    Parameters
    ----------
    encoder
        Dense.
    anchors
        Texts of the kind that is searched; 256 to 1024 of them.
    whitened
        False gives the cosines themselves, as in the paper.

    Raises
    ------
    ConfigurationError
        For fewer than 2 anchors, one that is there twice, or an encoder that is not dense.

    References
    ----------
    Moschella et al., Relative representations enable zero-shot latent space communication, ICLR 2023.

    Examples
    --------
    >>> from reperio.encoders import HashEncoder
    >>> anchors = ["merge sorted lists", "split a text", "count words"]
    >>> plain = RelativeEncoder(HashEncoder(), anchors, whitened=False)
    >>> plain.encode_query(["merge lists"]).embeddings.round(3).tolist()
    [[1.0, 0.0, 0.0]]
    """

    def __init__(self, encoder: Encoder[Dense], anchors: Sequence[str], *, whitened: bool = True) -> None:
        self.encoder = encoder
        self.anchors = check_texts(anchors)
        self.whitened = whitened
        if len(self.anchors) < 2:
            raise ConfigurationError(f"There are {len(self.anchors)} anchors.", "Give 256 or more.")
        if len(set(self.anchors)) < len(self.anchors):
            raise ConfigurationError("An anchor is there twice.", "Give each once: list(dict.fromkeys(anchors)).")
        self._lock = threading.Lock()
        self._basis: NDArray[np.float64] | None = None

    @property
    def spec(self) -> Spec:
        """How to build this encoder again."""
        return {
            "type": "RelativeEncoder",
            "encoder": dict(self.encoder.spec),
            "anchors": self.anchors,
            "whitened": self.whitened,
        }

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the encoder and the anchors; `BridgedEncoder` says which documents it is for."""
        inner = self.encoder.fingerprint
        if inner.kind != "dense":
            raise ConfigurationError(f"The encoder is {inner.kind}.", "Give a dense one.")
        return Fingerprint.make(
            "dense",
            f"{inner.model}, relative",
            len(self.anchors),
            encoder=inner.digest,
            anchors=self.anchors,
            whitened=_DAMPING if self.whitened else None,
        )

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Dense]:
        """Queries among the anchors, ``(n, a)``."""
        return self._placed(self.encoder.encode_query(texts))

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Dense]:
        """Documents among the anchors, ``(n, a)``, float32, rows of length 1; raises what the encoder raises."""
        return self._placed(self.encoder.encode_document(texts))

    def _placed(self, encoded: Encoded[Dense]) -> Encoded[Dense]:
        out = _unit(_unit(encoded.embeddings.astype(np.float64)) @ self._anchored()).astype(np.float32)
        return Encoded(np.ascontiguousarray(out), encoded.token_counts, encoded.truncated)

    def _anchored(self) -> NDArray[np.float64]:
        """What a vector of length 1 is multiplied with, ``(d, a)``."""
        with self._lock:
            if self._basis is None:
                anchors = _unit(self.encoder.encode_document(self.anchors).embeddings.astype(np.float64))
                self._basis = anchors.T
                if self.whitened:
                    values, vectors = np.linalg.eigh(anchors @ anchors.T)
                    # The inverse square root that is symmetric: it does not depend on the axes of the encoder's space.
                    root = (vectors / np.sqrt(np.maximum(values, 0) + _DAMPING)) @ vectors.T
                    self._basis = anchors.T @ root
            return self._basis


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    out: NDArray[np.float64] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return out
