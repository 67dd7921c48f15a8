"""Weights of clusters of words, as a vector of ordinary size (LENS)."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from reperio.embeddings import Dense, check_dense
from reperio.encoders.reading import OnTruncation, Reading
from reperio.errors import UnsupportedOperation
from reperio.models.clusters import Clusters
from reperio.models.inputs import Role
from reperio.models.language_model import LanguageModel
from reperio.models.saturation import Saturation, check_saturation
from reperio.models.states import TokenStates
from reperio.models.view import View
from reperio.models.vocabulary import VocabularyHead
from reperio.protocols import Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["LexiconEncoder"]

VERSION = 1
"""Raised whenever the same model would give other vectors here."""


class LexiconEncoder:
    """Weighs clusters of a model's vocabulary: ``w = log(1 + relu(max over tokens of C h))``, scaled to length 1.

    The vectors are dense and no longer than a dense encoder's, so that any index for those takes them; beside a dense
    encoder they live in one index by `DenseSum`. A dimension has words for a name: see `expansions`.

    Parameters
    ----------
    model
        A `LanguageModel`, which other tasks may share; or a folder or name for one.
    clusters
        Of this model's vocabulary; or the folder that they were saved in.
    attention
        Which tokens look at which: a mode's name, or a `View` with an adapter as well.
    top_n
        How many clusters a vector keeps, the strongest; the others are 0. All where None.
    prompts
        What stands before a text, by role; a str is for queries. A template where it holds ``{text}``. Its
        tokens are seen, and weigh nothing.
    max_tokens
        Most tokens that are read of a text, prompt and special tokens counted; what the model reads where None.
    on_truncation
        What happens to a longer text: ``"warn"``, ``"error"``, or ``"chunk"`` for the strongest weight in any of the
        overlapping windows.

    Raises
    ------
    ConfigurationError
        For a setting out of range.

    References
    ----------
    .. [1] Enhancing Lexicon-Based Text Embeddings with Large Language Models (LENS): Lei et al., 2025.
    """

    def __init__(
        self,
        model: LanguageModel | str | Path,
        clusters: Clusters | str | Path,
        *,
        attention: str | View = "bidirectional",
        top_n: int | None = None,
        prompts: str | Mapping[Role, str] | None = None,
        max_tokens: int | None = None,
        on_truncation: OnTruncation = "warn",
    ) -> None:
        check_saturation(None, None, top_n)
        self.model = model if isinstance(model, LanguageModel) else LanguageModel(model)
        self.clusters = clusters if isinstance(clusters, Clusters) else Clusters.open(clusters)
        self.top_n = top_n
        self._reading = Reading(
            self.model,
            view=attention if isinstance(attention, View) else View(attention),
            prompts={"query": prompts} if isinstance(prompts, str) else prompts or {},
            max_tokens=max_tokens,
            on_truncation=on_truncation,
        )
        self._lock = threading.Lock()
        self._loaded: VocabularyHead | None = None

    @property
    def spec(self) -> Spec:
        """How to build this encoder again.

        Raises
        ------
        UnsupportedOperation
            If its model or its clusters are in memory only.
        """
        if self.clusters.path is None:
            raise UnsupportedOperation("Clusters in memory cannot be written down.", "Use what clusters.save() gives.")
        reading = self._reading
        return {
            "type": "LexiconEncoder",
            "model": dict(self.model.spec),
            "clusters": str(self.clusters.path.resolve()),
            "attention": dict(reading.settings.spec),
            "top_n": self.top_n,
            "prompts": reading.prompts,
            "max_tokens": reading.max_tokens,
            "on_truncation": reading.on_truncation,
        }

    @property
    def dim(self) -> int:
        """k."""
        return len(self.clusters)

    @property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two vectors to compare; loads the model."""
        fields = {
            **self._reading.fields(),
            "clusters": self.clusters.digest,
            "top_n": self.top_n,
            "version": VERSION,
        }
        return Fingerprint.make("dense", f"{self.model.model}, {self.dim} clusters", self.dim, **fields)

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Dense]:
        """Vectors of queries, ``(n, k)``, under the prompt for them."""
        return self._encode(texts, "query")

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Dense]:
        """Vectors of documents, ``(n, k)``, under the prompt for them; a text that weighs nothing is all 0.

        Raises
        ------
        EmptyText, InvalidInput, TruncationError
            As `DenseEncoder.encode_document`.
        """
        return self._encode(texts, "document")

    def expansions(self, text: str, *, top: int = 20, role: Role = "document") -> list[tuple[str, float]]:
        """The strongest clusters of a text, by the words that name them, and what they weigh."""
        [vector] = self._encode([text], role).embeddings
        best: list[int] = np.argsort(-vector, kind="stable")[:top].tolist()
        return [(", ".join(self.clusters.names[i]), float(vector[i])) for i in best if vector[i] > 0]

    def _encode(self, texts: Sequence[str], role: Role) -> Encoded[Dense]:
        read = self._reading.read(texts, role, _Dense(self._head()))
        if not read.parts:
            return Encoded(np.empty((0, self.dim), dtype=np.float32), read.counts, read.truncated)
        vectors: Dense = np.maximum.reduceat(np.stack(read.parts), read.starts[:-1], axis=0)
        if self.top_n is not None and self.top_n < self.dim:
            weak = np.argsort(-vectors, axis=1, kind="stable")[:, self.top_n :]
            np.put_along_axis(vectors, weak, 0, axis=1)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return Encoded(check_dense(vectors, what="The model's output"), read.counts, read.truncated)

    def _head(self) -> VocabularyHead:
        with self._lock:
            if self._loaded is None:
                self._loaded = self.clusters.head(VocabularyHead.of(self._reading.view))
            return self._loaded


class _Dense:
    """Weights of all clusters, in numpy."""

    def __init__(self, head: VocabularyHead) -> None:
        self._pool = Saturation(head)

    def __call__(self, batch: TokenStates, /) -> list[Dense]:
        return list(self._pool.dense(batch).cpu().numpy())
