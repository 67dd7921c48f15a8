"""The text itself, for an index that analyses it where it is searched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio import meter
from reperio.encoders.texts import check_texts
from reperio.protocols import Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["VerbatimEncoder"]


class VerbatimEncoder:
    """Stands where an encoder does, for an index that takes texts: `reperio.indexes.PostgresTextIndex`.

    Its signal is declared with ``stored=False``, since the store has the texts.

    Examples
    --------
    >>> VerbatimEncoder().encode_query(["merge sorted lists"]).embeddings.tolist()
    ['merge sorted lists']
    """

    @property
    def spec(self) -> Spec:
        """How to build this encoder again."""
        return {"type": "VerbatimEncoder"}

    @property
    def fingerprint(self) -> Fingerprint:
        """Texts compare with texts."""
        return Fingerprint.make("text", "verbatim", 0)

    def encode_query(self, texts: Sequence[str], /) -> Encoded[NDArray[np.object_]]:
        """The queries, ``(q,)``, as they are."""
        return self._encode(texts)

    def encode_document(self, texts: Sequence[str], /) -> Encoded[NDArray[np.object_]]:
        """The texts, ``(n,)``, as they are; tokens are not counted.

        Raises
        ------
        EmptyText
            If a text is empty or blank; names its position.
        InvalidInput
            For a bare ``str``; or an element that is no ``str`` or not valid Unicode, by its position.
        """
        return self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> Encoded[NDArray[np.object_]]:
        checked: Any = check_texts(texts)
        meter.count("texts", len(checked))
        out = np.empty(len(checked), dtype=np.object_)
        out[:] = checked
        return Encoded(out, np.zeros(len(out), dtype=np.int64), np.zeros(len(out), dtype=np.bool_))
