"""One vector for each text, from any language model on disk."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
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
from reperio.models.layouts import Layout, read_layout
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

    What is not given is taken from the checkpoint, whose folder is read as it was published: sentence-transformers,
    LLM2Vec, NV-Embed, GritLM. Where it says nothing, attention is the model's own, pooling the mean, and vectors have
    length 1. LLM2Vec is ``attention="bidirectional", pooling="mean"``; E5-Mistral ``pooling="eos"``; BeLLM
    ``attention="last-1", pooling="last"``; echo embeddings ``attention="echo", pooling="mean"``.
    `reperio.encoders.presets` knows the published ones by name.

    Parameters
    ----------
    model
        A `LanguageModel`, which other tasks may share; or a folder or name for one.
    attention
        Which tokens look at which: a mode's name, or a `View` with adapter, depth and temperature as well. By role
        where they differ, as with the adapters of jina-embeddings-v3.
    pooling
        A mode's name; where the checkpoint names another, its own is used, with a warning. A `Pooling`, or a head of
        your own with a ``spec`` that gives ``(b, d)``, is used whatever the checkpoint says.
    prompts
        What stands before a text, by role; or a template with ``{text}``. A str is for queries alone. A role that is
        not named has the checkpoint's.
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
        attention: str | View | Mapping[Role, str | View] | None = None,
        pooling: PoolingMode | Head[Any] | None = None,
        prompts: str | Mapping[Role, str] | None = None,
        normalize: bool | None = None,
        dim: int | None = None,
        max_tokens: int | None = None,
        on_truncation: OnTruncation = "warn",
    ) -> None:
        if dim is not None and dim <= 0:
            raise ConfigurationError(f"dim is {dim}.", "Use 1 or more.")
        if pooling is not None and not isinstance(pooling, str) and not hasattr(pooling, "spec"):
            problem = f"pooling is a {type(pooling).__name__} without a `spec`, which tells what vectors hang on."
            raise ConfigurationError(problem, 'Give it one: {"type": its registered name, **its arguments}.')
        self.model = model if isinstance(model, LanguageModel) else LanguageModel(model)
        self.attention = _views(attention)
        self.pooling = pooling
        self.prompts: Mapping[Role, str] | None = {"query": prompts} if isinstance(prompts, str) else prompts
        self.normalize = normalize
        self.max_tokens = max_tokens
        self.on_truncation: OnTruncation = on_truncation
        self._dim = dim
        self._named = Pooling(pooling) if isinstance(pooling, str) else None
        self._reads(
            Layout(prompts=self.prompts or {}, max_tokens=max_tokens), "query"
        )  # what is wrong now is refused now
        self._lock = threading.RLock()
        self._resolved: tuple[Layout, Head[Any], Mapping[Role, Reading]] | None = None
        self._fingerprint: Fingerprint | None = None

    @property
    def spec(self) -> Spec:
        """How to build this encoder again.

        Raises
        ------
        UnsupportedOperation
            If its model is in memory only.
        """
        asked = self.pooling
        return {
            "type": "DecoderEncoder",
            "model": dict(self.model.spec),
            "attention": _told_views(self.attention),
            "pooling": asked if asked is None or isinstance(asked, str) else dict(getattr(asked, "spec")),  # noqa: B009
            "prompts": None if self.prompts is None else dict(self.prompts),
            "normalize": self.normalize,
            "dim": self._dim,
            "max_tokens": self.max_tokens,
            "on_truncation": self.on_truncation,
        }

    @property
    def layout(self) -> Layout:
        """Everything that was settled, by what was given and what the checkpoint says; loads the model."""
        return self._settled[0]

    @property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two vectors to compare; loads the model."""
        with self._lock:
            if self._fingerprint is None:
                [row] = self._vectors(["a"], "query").embeddings
                fields = {
                    **self._read_fields(),
                    "pooling": _told(self._settled[1]),
                    "normalized": self.layout.normalize,
                    "version": VERSION,
                }
                self._fingerprint = Fingerprint.make("dense", self.model.name, len(row), **fields)
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
        layout, pooling, readings = self._settled
        head = _head(pooling, layout)
        read = readings[role].read(texts, role, head, start=start)
        if not read.parts:
            return Encoded(np.empty((0, self.dim), dtype=np.float32), read.counts, read.truncated)
        sums = np.add.reduceat(np.stack(read.parts), read.starts[:-1], axis=0)
        vectors = sums / np.diff(read.starts)[:, None]
        if layout.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        out = check_dense(vectors, what="The model's output", rows=len(read.counts))
        return Encoded(out, read.counts, read.truncated)

    @property
    def _settled(self) -> tuple[Layout, Head[Any], Mapping[Role, Reading]]:
        with self._lock:
            if self._resolved is None:
                view = self._view("document")
                adapter = None if view.adapter is None else self.model.adapters.get(view.adapter)
                found = read_layout(self.model.folder, adapter=adapter, network=self.model.network)
                pooling = self._chosen(found)
                layout = replace(
                    found,
                    attention=found.attention if view.attention == "own" else view.attention,
                    pooling=pooling,
                    prompts={**found.prompts, **(self.prompts or {})},
                    normalize=found.normalize if self.normalize is None else self.normalize,
                    dim=self._dim or found.dim,
                    max_tokens=self.max_tokens or _least(found.max_tokens, self.model.max_tokens),
                )
                same = isinstance(self.attention, View | None)
                document = self._reads(layout, "document")
                query = document if same else self._reads(replace(layout, attention=found.attention), "query")
                self._resolved = layout, pooling, {"query": query, "document": document}
            return self._resolved

    def _chosen(self, found: Layout) -> Head[Any]:
        """The pooling: a head that was given, else the checkpoint's, else the one that was named, else the mean."""
        own, named = found.pooling, self._named
        if named is None:
            given = self.pooling if self.pooling is None or not isinstance(self.pooling, str) else None
            head = given or own or Pooling()
            move = getattr(head, "to", None)
            if move is not None:
                move(self.model.network.device)
            return head
        if own is None:
            return named
        mode = getattr(own, "mode", type(own).__name__)
        if mode != named.mode:
            warnings.warn(
                f"pooling={named.mode!r} was asked for, and {self.model.folder} says {mode!r} ({found.source}), which "
                f"is used. Give Pooling({named.mode!r}) to have yours.",
                stacklevel=6,
            )
        return own

    def _view(self, role: Role) -> View:
        """How the model is seen for a role."""
        asked = self.attention
        return (asked if isinstance(asked, View) else (asked or {}).get(role)) or View()

    def _read_fields(self) -> dict[str, Any]:
        """How texts are read, for the fingerprint; of both roles where they differ."""
        query, document = (self._settled[2][role] for role in ("query", "document"))
        return document.fields() if query is document else {**document.fields(), "of queries": query.fields()}

    def _reads(self, layout: Layout, role: Role) -> Reading:
        view = self._view(role)
        return Reading(
            self.model,
            view=view if view.attention != "own" else replace(view, attention=layout.attention),
            prompts=layout.prompts,
            max_tokens=layout.max_tokens,
            on_truncation=self.on_truncation,
            ends=("eos",) if getattr(layout.pooling, "ends", False) else (),
        )


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


def _head(pooling: Head[Any], layout: Layout) -> Head[Any]:
    return _Vectors(pooling, dim=layout.dim, normalize=layout.normalize)


def _told(pooling: Head[Any]) -> Any:
    """A pooling for a fingerprint: by the content of its weights where it has some."""
    fields = getattr(pooling, "fields", None)
    return fields() if callable(fields) else dict(getattr(pooling, "spec"))  # noqa: B009


def _least(*limits: int | None) -> int | None:
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _views(attention: str | View | Mapping[Role, str | View] | None) -> View | Mapping[Role, View] | None:
    if isinstance(attention, str):
        return View(attention)
    if attention is None or isinstance(attention, View):
        return attention
    strange = set(attention) - {"query", "document"}
    if strange:
        raise ConfigurationError(f"attention names the role {min(strange)!r}.", "Use query and document.")
    return {role: View(view) if isinstance(view, str) else view for role, view in attention.items()}


def _told_views(views: View | Mapping[Role, View] | None) -> Any:
    if views is None or isinstance(views, View):
        return None if views is None else dict(views.spec)
    return {role: dict(view.spec) for role, view in views.items()}
