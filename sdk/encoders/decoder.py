"""One vector for each text, from any language model on disk."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from reperio.embeddings import Dense, check_dense
from reperio.encoders.reading import OnTruncation, Reading
from reperio.encoders.texts import check_batch
from reperio.errors import ConfigurationError
from reperio.models.inputs import Role
from reperio.models.language_model import LanguageModel
from reperio.models.pooling import Pooling, PoolingMode
from reperio.models.states import Head, TokenStates
from reperio.models.view import View
from reperio.protocols import Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["DecoderEncoder"]

VERSION = 1
"""Raised whenever the same model would give other vectors here."""


class DecoderEncoder:
    """Encodes texts with a language model: attention × pooling × prompt.

    LLM2Vec is ``attention="bidirectional", pooling="mean"``; E5-Mistral ``pooling="eos"``; BeLLM
    ``attention="last-1", pooling="last"``; echo embeddings ``attention="echo", pooling="mean"``.
    `reperio.encoders.preset` knows the published ones by name.

    Parameters
    ----------
    model
        A `LanguageModel`, which other tasks may share; or a folder or name for one.
    attention
        Which tokens look at which: a mode's name, or a `View` with adapter, depth and temperature as well.
    pooling
        A mode's name, a `Pooling`, or a head of your own that gives ``(b, d)``.
    prompts
        What stands before a text, by role; or a template with ``{text}``. A str is for queries alone.
    normalize
        Whether vectors have length 1.
    dim
        How many leading dimensions are kept (Matryoshka representation learning, Kusupati et al., 2022).
    max_tokens
        Most tokens that are read of a text, prompt and special tokens counted; what the model reads where None.
    on_truncation
        What happens to a longer text: ``"warn"``, ``"error"``, or ``"chunk"`` for the mean of overlapping windows.

    Raises
    ------
    ConfigurationError
        For a setting out of range.

    References
    ----------
    .. [1] LLM2Vec: BehnamGhader et al., 2024. E5-Mistral: Wang et al., 2024. BeLLM: Li and Li, 2024. Echo embeddings:
       Springer et al., 2024.
    """

    def __init__(
        self,
        model: LanguageModel | str | Path,
        *,
        attention: str | View = "own",
        pooling: PoolingMode | Head[Any] = "mean",
        prompts: str | Mapping[Role, str] | None = None,
        normalize: bool = True,
        dim: int | None = None,
        max_tokens: int | None = None,
        on_truncation: OnTruncation = "warn",
    ) -> None:
        if dim is not None and dim <= 0:
            raise ConfigurationError(f"dim is {dim}.", "Use 1 or more.")
        self.model = model if isinstance(model, LanguageModel) else LanguageModel(model)
        self.pooling: Head[Any] = Pooling(pooling) if isinstance(pooling, str) else pooling
        self.normalize = normalize
        self._dim = dim
        self._reading = Reading(
            self.model,
            view=attention if isinstance(attention, View) else View(attention),
            prompts={"query": prompts} if isinstance(prompts, str) else prompts or {},
            max_tokens=max_tokens,
            on_truncation=on_truncation,
            ends=("eos",) if getattr(self.pooling, "ends", False) else (),
        )
        self._lock = threading.Lock()
        self._fingerprint: Fingerprint | None = None

    @property
    def spec(self) -> Spec:
        """How to build this encoder again.

        Raises
        ------
        UnsupportedOperation
            If its model is in memory only.
        """
        reading = self._reading
        return {
            "type": "DecoderEncoder",
            "model": dict(self.model.spec),
            "attention": dict(reading.settings.spec),
            "pooling": dict(getattr(self.pooling, "spec")),  # noqa: B009
            "prompts": reading.prompts,
            "normalize": self.normalize,
            "dim": self._dim,
            "max_tokens": reading.max_tokens,
            "on_truncation": reading.on_truncation,
        }

    @property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two vectors to compare; loads the model."""
        with self._lock:
            if self._fingerprint is None:
                known = (
                    str(self.model.model)
                    if self.model.revision is None
                    else f"{self.model.model}@{self.model.revision}"
                )
                [row] = self._vectors(["a"], "query").embeddings
                fields = {
                    **self._reading.fields(),
                    "pooling": _told(self.pooling),
                    "normalized": self.normalize,
                    "version": VERSION,
                }
                self._fingerprint = Fingerprint.make("dense", known, len(row), **fields)
            return self._fingerprint

    @property
    def dim(self) -> int:
        """d."""
        return self.fingerprint.dim

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Dense]:
        """Vectors of queries, ``(n, d)``, under the prompt for them; see `DenseEncoder.encode_document`."""
        return self._vectors(texts, "query")

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Dense]:
        """Vectors of documents, ``(n, d)``, under the prompt for them; see `DenseEncoder.encode_document`."""
        return self._vectors(texts, "document")

    def encode_stream(
        self, texts: Iterable[str], /, *, role: Role = "document", batch_size: int = 1024
    ) -> Iterator[Encoded[Dense]]:
        """Encode any number of texts, ``batch_size`` at a time; memory is bounded by these."""
        check_batch(texts)
        if batch_size <= 0:
            raise ConfigurationError(f"batch_size is {batch_size}.", "Use 1 or more.")
        waiting, start = iter(texts), 0
        while some := list(islice(waiting, batch_size)):
            yield self._vectors(some, role, start=start)
            start += len(some)

    def _vectors(self, texts: Sequence[str], role: Role, *, start: int = 0) -> Encoded[Dense]:
        read = self._reading.read(texts, role, self._head, start=start)
        if not read.parts:
            return Encoded(np.empty((0, self.dim), dtype=np.float32), read.counts, read.truncated)
        sums = np.add.reduceat(np.stack(read.parts), read.starts[:-1], axis=0)
        vectors = sums / np.diff(read.starts)[:, None]
        if self.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        out = check_dense(vectors, what="The model's output", rows=len(read.counts))
        return Encoded(out, read.counts, read.truncated)

    @property
    def _head(self) -> Head[Any]:
        return _Vectors(self.pooling, dim=self._dim, normalize=self.normalize)


class _Vectors:
    """A pooling's vectors, cut to their leading dimensions and scaled, in numpy."""

    def __init__(self, pooling: Head[Any], *, dim: int | None, normalize: bool) -> None:
        self._pooling = pooling
        self._dim = dim
        self._normalize = normalize
        self.layers = getattr(pooling, "layers", (-1,))
        self.router = bool(getattr(pooling, "router", False))

    def __call__(self, batch: TokenStates, /) -> Dense:
        vectors = self._pooling(batch).float()
        if self._dim is not None and self._dim > vectors.shape[1]:
            raise ConfigurationError(f"dim is {self._dim}, and vectors have {vectors.shape[1]}.", "Use less.")
        vectors = vectors[:, : self._dim]
        if self._normalize:
            vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)
        out: Dense = vectors.cpu().numpy()
        return out


def _told(pooling: Head[Any]) -> Any:
    """A pooling for a fingerprint: by the content of its weights where it has some."""
    fields = getattr(pooling, "fields", None)
    return fields() if callable(fields) else dict(getattr(pooling, "spec"))  # noqa: B009
