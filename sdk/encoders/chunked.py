"""A long text as several vectors, one a chunk, each made with the whole text around it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio import meter
from reperio.embeddings import MultiVector, check_dense
from reperio.encoders.reading import Reading
from reperio.encoders.texts import check_texts
from reperio.errors import ConfigurationError, EmptyText
from reperio.models.inputs import Role
from reperio.models.language_model import LanguageModel
from reperio.models.layouts import read_layout
from reperio.models.rows import Row, RowMaker
from reperio.models.states import TokenStates
from reperio.models.view import View
from reperio.models.windows import Tokens
from reperio.protocols import Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["ChunkEncoder", "owned_windows"]

VERSION = 1
"""Raised whenever the same model would give other vectors here."""

CONTEXT = 1 / 4
"""The part of a window, at each end, that gives context and no states, where windows meet."""


class ChunkEncoder:
    """Reads a text whole, then takes the mean of each chunk's states: late chunking (Günther et al., 2024).

    A chunk's vector knows what was said before it. A text longer than the model reads goes through overlapping
    windows, and each token's state is taken from the window in which it has most context around it (SLED, Ivgi et
    al., 2023), so nothing is cut. A query is one vector. In a `MultiVectorIndex` the score of a document is then that
    of its best chunk; for chunks that are documents of their own, see `reperio.rerankers.ChunkGrouper`.

    Parameters
    ----------
    model
        A `LanguageModel`, or a folder or name for one, whose states are pooled by their mean.
    attention
        Which tokens look at which; what the checkpoint says where None, as in `DecoderEncoder`.
    prompts
        What stands before a text, by role; a str is for queries alone. A role that is not named has the checkpoint's.
    chunk_tokens
        Most tokens in a chunk.
    stride
        Tokens from the start of one chunk to that of the next; ``chunk_tokens`` where None, so that none overlap.
    max_tokens
        Most tokens that are read at once; what the model reads where None.
    normalize
        Whether vectors have length 1.

    Raises
    ------
    ConfigurationError
        For a setting out of range.
    """

    def __init__(
        self,
        model: LanguageModel | str | Path,
        *,
        attention: str | View | None = None,
        prompts: str | Mapping[Role, str] | None = None,
        chunk_tokens: int = 128,
        stride: int | None = None,
        max_tokens: int | None = None,
        normalize: bool = True,
    ) -> None:
        if chunk_tokens < 1:
            raise ConfigurationError(f"chunk_tokens is {chunk_tokens}.", "Use 1 or more.")
        if stride is not None and not 1 <= stride <= chunk_tokens:
            raise ConfigurationError(f"stride is {stride}, a chunk {chunk_tokens} tokens.", "Use 1 to chunk_tokens.")
        self.attention = View(attention) if isinstance(attention, str) else attention
        if self.attention is not None and self.attention.attention in ("echo", "summary"):
            problem = f"attention is {self.attention.attention!r}."
            raise ConfigurationError(problem, "Use one whose tokens are the text's own.")
        self.model = model if isinstance(model, LanguageModel) else LanguageModel(model)
        self.prompts: Mapping[Role, str] | None = {"query": prompts} if isinstance(prompts, str) else prompts
        self.max_tokens = max_tokens
        self.chunk_tokens = chunk_tokens
        self.stride = stride
        self.normalize = normalize
        Reading(self.model, view=View(), prompts=self.prompts or {}, max_tokens=max_tokens)  # refuses what is wrong now
        self._lock = threading.RLock()
        self._read: Reading | None = None
        self._fingerprint: Fingerprint | None = None

    @property
    def _reading(self) -> Reading:
        """How texts are read, by what was given and what the checkpoint says; loads the model."""
        with self._lock:
            if self._read is None:
                asked = self.attention or View()
                adapter = None if asked.adapter is None else self.model.adapters.get(asked.adapter)
                found = read_layout(self.model.folder, adapter=adapter, network=self.model.network)
                mode = None if found.pooling is None else getattr(found.pooling, "mode", type(found.pooling).__name__)
                if mode not in (None, "mean"):
                    warnings.warn(f"{self.model.name} pools by {mode!r}; chunks are means of its states.", stacklevel=4)
                self._read = Reading(
                    self.model,
                    view=asked if asked.attention != "own" else replace(asked, attention=found.attention),
                    prompts={**found.prompts, **(self.prompts or {})},
                    max_tokens=self.max_tokens or found.max_tokens,
                )
            return self._read

    @property
    def spec(self) -> Spec:
        """How to build this encoder again."""
        return {
            "type": "ChunkEncoder",
            "model": dict(self.model.spec),
            "attention": None if self.attention is None else dict(self.attention.spec),
            "prompts": None if self.prompts is None else dict(self.prompts),
            "chunk_tokens": self.chunk_tokens,
            "stride": self.stride,
            "max_tokens": self.max_tokens,
            "normalize": self.normalize,
        }

    @property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two embeddings to compare; loads the model."""
        with self._lock:
            if self._fingerprint is None:
                fields = {
                    **self._reading.fields(),
                    "truncation": {"windows context": CONTEXT},
                    "chunks": [self.chunk_tokens, self.stride or self.chunk_tokens],
                    "normalized": self.normalize,
                    "version": VERSION,
                }
                self._fingerprint = Fingerprint.make("multi-vector", self.model.name, self.model.dim, **fields)
            return self._fingerprint

    def encode_query(self, texts: Sequence[str], /) -> Encoded[MultiVector]:
        """One vector for each query, ``(n, d)``: the mean of all its tokens' states."""
        return self._encode(texts, "query")

    def encode_document(self, texts: Sequence[str], /) -> Encoded[MultiVector]:
        """A vector for each chunk of each text, in order; none is ever cut.

        Raises
        ------
        EmptyText, InvalidInput
            As `DenseEncoder.encode_document`.
        """
        return self._encode(texts, "document")

    def chunks(self, text: str) -> list[tuple[int, int]]:
        """The characters ``[start, end)`` that each vector of a text stands for.

        Raises
        ------
        UnsupportedOperation
            If the tokenizer is written in Python, which cannot tell.
        """
        [checked] = check_texts([text])
        maker = self._reading.maker("document")
        [row], [spans] = maker.tokenize([checked]), maker.spans([checked])
        first = maker.frame.before + maker.prompt_tokens(row)
        own = spans[first : len(row) - maker.frame.after]
        return [(int(own[a:b, 0].min()), int(own[a:b, 1].max())) for a, b in self._chunks(len(own), "document")]

    def _chunks(self, tokens: int, role: Role) -> list[tuple[int, int]]:
        """Where each chunk of a text of so many tokens begins and ends."""
        if role == "query" or tokens <= self.chunk_tokens:
            return [(0, tokens)]
        starts = range(0, tokens, self.stride or self.chunk_tokens)
        out = [(start, min(tokens, start + self.chunk_tokens)) for start in starts]
        return out[: 1 + next(i for i, (_, stop) in enumerate(out) if stop == tokens)]

    def _encode(self, texts: Sequence[str], role: Role) -> Encoded[MultiVector]:
        checked = check_texts(texts)
        maker = self._reading.maker(role)
        rows = maker.tokenize(checked)
        counts = np.array([len(row) for row in rows], dtype=np.int64)
        windows, owners, firsts = list[Row](), list[int](), list[int]()
        chunks = list[list[tuple[int, int]]]()
        for text, row in enumerate(rows):
            own = len(row) - maker.frame.before - maker.prompt_tokens(row) - maker.frame.after
            if own < 1:
                raise EmptyText(f"texts[{text}] is {checked[text][:40]!r}: it has no token.", "Drop it.")
            chunks.append(self._chunks(own, role))
            for window, first in owned_windows(maker, row):
                windows.append(window)
                owners.append(text)
                firsts.append(first)
        offsets = np.cumsum([0, *map(len, chunks)], dtype=np.int64)
        sums = np.zeros((int(offsets[-1]), self.model.dim), dtype=np.float32)
        for batch, states in self._reading.view.run(windows, _own_states, budget=self.model.batch_tokens):
            positions: list[int] = batch.tolist()
            for position, part in zip(positions, states, strict=True):
                _add(sums[offsets[owners[position]] :], chunks[owners[position]], firsts[position], part)
        lengths = np.array([stop - start for some in chunks for start, stop in some], dtype=np.float32)
        vectors = sums / lengths[:, None] if len(lengths) else sums
        if self.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        check_dense(vectors, what="The model's output", rows=int(offsets[-1]))
        meter.count("texts", len(counts))
        meter.count("tokens", sum(map(len, windows)))
        return Encoded(MultiVector(vectors, offsets), counts, np.zeros(len(counts), dtype=np.bool_))


def owned_windows(maker: RowMaker, row: Tokens) -> list[tuple[Row, int]]:
    """Windows over all tokens of a row, each with the tokens whose states are taken from it, every token once.

    Returns
    -------
    list of tuple
        A window, whose ``start`` and ``stop`` are what it owns, and where that begins among the text's own tokens.
    """
    frame, head = maker.frame, maker.frame.before + maker.prompt_tokens(row)
    own = len(row) - head - frame.after
    room = own if frame.limit is None else min(own, frame.limit - head - frame.after)
    if room < 1:
        problem = f"A prompt of {head - frame.before} tokens leaves no room in windows of {frame.limit}."
        raise ConfigurationError(problem, "Raise max_tokens.")
    context = int(room * CONTEXT)
    count = 1 if own == room else -(-(own - 2 * context) // (room - 2 * context))
    starts = [i * (own - room) // max(1, count - 1) for i in range(count)]
    # Where two windows overlap, each owns the half that is farther from its edge.
    borders = [0, *((starts[i] + room + starts[i + 1]) // 2 for i in range(count - 1)), own]
    out: list[tuple[Row, int]] = []
    for i, start in enumerate(starts):
        ids = np.concatenate([row[:head], row[head + start : head + start + room], row[len(row) - frame.after :]])
        out.append((Row(ids, head + borders[i] - start, head + borders[i + 1] - start), borders[i]))
    return out


def _own_states(batch: TokenStates, /) -> list[NDArray[np.float32]]:
    """States of each row's own tokens, on the host."""
    return [batch.states[start:stop].float().cpu().numpy() for start, stop in batch.spans]


def _add(sums: NDArray[np.float32], chunks: Sequence[tuple[int, int]], first: int, states: Any) -> None:
    """Add a window's states to the chunks that their tokens are in."""
    last = first + len(states)
    for number, (start, stop) in enumerate(chunks):
        a, b = max(start, first), min(stop, last)
        if a < b:
            sums[number] += states[a - first : b - first].sum(axis=0)
