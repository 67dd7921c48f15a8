"""Document expansion from a frozen model, in closed form: no training, and no model for queries.

Shapes: t tokens, c stems, d hidden size.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reperio import extras, meter
from reperio.embeddings import Sparse
from reperio.encoders.closed_form_states import FINITE, StemStates
from reperio.encoders.texts import check_texts
from reperio.errors import ConfigurationError, EmptyText, ShapeError, UnsupportedOperation
from reperio.models.language_model import LanguageModel
from reperio.models.states import TokenStates
from reperio.protocols import Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["ClosedFormEncoder", "Discriminant"]

VERSION = 1
"""Raised whenever the same states would give other weights here."""

_CELLS = 1 << 22
"""Most scores of tokens and stems at once: 16 MB."""

_Row: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Discriminant:
    """A linear score of each stem for a state, as Fisher's discriminant analysis has it.

    Attributes
    ----------
    keys
        Columns of the stems for BM25, ``(c,)``, ascending.
    words
        A word for each.
    mean
        Of all states, ``(d,)``.
    weights, bias
        ``(c, d)`` and ``(c,)``: the score is ``weights @ (state - mean) + bias``.
    """

    keys: NDArray[np.int64]
    words: tuple[str, ...]
    mean: NDArray[np.float32]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def of(cls, states: StemStates, *, min_count: int, max_stems: int, ridge: float) -> Discriminant:
        """Solve for it.

        Raises
        ------
        ConfigurationError
            If no stem is as frequent as ``min_count``, or the weights would not be finite.
        """
        counts = states.counts
        common = np.argsort(-counts, kind="stable")[:max_stems]
        kept = np.sort(common[counts[common] >= min_count])
        if not len(kept):
            problem = f"None of {len(states)} stems was seen {min_count} times."
            raise ConfigurationError(problem, "Fit on more text, or lower min_count.")
        covariance = states.within()
        d = len(covariance)
        covariance[np.diag_indices(d)] += ridge * np.trace(covariance) / d
        apart = states.sums[kept] / counts[kept, None] - states.mean
        try:
            weights = np.linalg.solve(covariance, apart.T).T
        except np.linalg.LinAlgError as error:
            fix = "Raise ridge, or fit on more text."
            raise ConfigurationError(f"States of {d} dimensions have no inverse covariance: {error}.", fix) from error
        bias = np.log(counts[kept] / states.tokens) / 2 - np.einsum("cd,cd->c", weights, apart) / 2
        if not (np.isfinite(weights).all() and np.isfinite(bias).all()):  # LAPACK passes NaN on
            raise ConfigurationError("What was seen of the states gives weights that are not finite.", FINITE)
        words = states.shortest
        return cls(
            states.keys[kept],
            tuple(map(words.__getitem__, kept.tolist())),
            states.mean.astype(np.float32),
            np.ascontiguousarray(weights, dtype=np.float32),
            bias.astype(np.float32),
        )


class ClosedFormEncoder:
    """Says which words a text might also have had, as weights in the columns of those words.

    For each stem there is one mean of the states that its tokens had in other texts, and for all of them one
    covariance. A token speaks for every stem whose states are like its own (linear discriminant analysis); a text's
    weight for a stem is what the best of its tokens says. Nothing is trained, and queries are only looked up.

    It is made to stand beside BM25 in one index, at a quarter of its weight, by `SparseSum`.

    Parameters
    ----------
    states
        What was seen of the stems: `StemStates`, or the folder of some.
    model
        The model that they are of, where it is loaded already or has moved.
    min_count
        Stems that were seen less often are no class.
    max_stems
        Most classes, the most frequent ones.
    ridge
        What is added to the covariance, in means of its diagonal.
    scale
        Multiplies scores before ``log(1 + relu(score))``.
    top
        Weights that are kept of each text.
    own
        Whether a text has weights for its own words too. Beside BM25 they cost quality on one collection and gained it
        on another: `benchmarks/expansion.py` measures both.

    Raises
    ------
    ConfigurationError
        For a setting out of range, or where the states are too few.
    NotFound, CorruptArtifact
        If a folder holds no such states.

    References
    ----------
    .. [1] Fisher: The use of multiple measurements in taxonomic problems, 1936. The form of the weights is that of
       SPLADE (Formal et al., 2021); the rest is this project's own.
    """

    def __init__(
        self,
        states: StemStates | str | Path,
        *,
        model: LanguageModel | None = None,
        min_count: int = 3,
        max_stems: int = 30_000,
        ridge: float = 0.01,
        scale: float = 0.2,
        top: int = 64,
        own: bool = False,
    ) -> None:
        for name, count in (("min_count", min_count), ("max_stems", max_stems), ("top", top)):
            if count < 1:
                raise ConfigurationError(f"{name} is {count}.", "Use 1 or more.")
        for name, value in (("ridge", ridge), ("scale", scale)):
            if not 0 < value < float("inf"):
                raise ConfigurationError(f"{name} is {value}.", "Use a positive number.")
        self._folder = None if isinstance(states, StemStates) else Path(states)
        self.states = states if isinstance(states, StemStates) else StemStates.open(states, model=model)
        self.min_count = min_count
        self.max_stems = max_stems
        self.ridge = ridge
        self.scale = scale
        self.top = top
        self.own = own
        self.discriminant = Discriminant.of(self.states, min_count=min_count, max_stems=max_stems, ridge=ridge)
        self._seen = self.states.seen
        self._head = _Head(self.discriminant, self.states.layer, scale)
        self._lock = threading.Lock()
        self._fingerprint: Fingerprint | None = None

    @property
    def spec(self) -> Spec:
        """How to build this encoder again; the states by the whole path of their folder.

        Raises
        ------
        UnsupportedOperation
            If the states are in memory only.
        """
        if self._folder is None:
            raise UnsupportedOperation("States in memory cannot be written down.", "Save them, and give the folder.")
        return {
            "type": "ClosedFormEncoder",
            "states": str(self._folder.resolve()),
            "model": dict(self.states.model.spec),
            "min_count": self.min_count,
            "max_stems": self.max_stems,
            "ridge": self.ridge,
            "scale": self.scale,
            "top": self.top,
            "own": self.own,
        }

    @property
    def dim(self) -> int:
        """How many stems have a column."""
        return len(self.discriminant.keys)

    @property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two rows to compare; loads the model."""
        with self._lock:
            if self._fingerprint is None:
                fields = self.states.fields(self._seen)
                names = ("min_count", "max_stems", "ridge", "scale", "top", "own")
                settings = {name: getattr(self, name) for name in names}
                name = f"closed-form {self.states.model.model}"
                self._fingerprint = Fingerprint.make("sparse", name, self.dim, **fields, **settings, version=VERSION)
            return self._fingerprint

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        """Columns of each query's own stems; no model is run, and a stem that has no column is left out."""
        rows: list[_Row] = []
        lengths: list[int] = []
        known = self.states.words.analyzer
        for text in check_texts(texts):
            counts = Counter(key for key in known.keys(text) if key >= 0)
            lengths.append(sum(counts.values()))
            columns, present = self._columns(np.array(sorted(counts), dtype=np.int64))
            rows.append((columns, np.array([counts[key] for key in present.tolist()], dtype=np.float32)))
        meter.count("tokens", sum(lengths))
        return Encoded(self._sparse(rows), np.array(lengths, dtype=np.int64), np.zeros(len(rows), dtype=np.bool_))

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        """The ``top`` stems that each text speaks for; long texts are read in windows, and nothing is cut.

        Raises
        ------
        EmptyText, InvalidInput
            By position.
        FingerprintMismatch
            If the model is not the one whose states were seen.
        ShapeError
            If it gives states that are not finite.
        """
        self.states.check()
        passed = [self._passed(text) for text in check_texts(texts)]
        read = self.states.reading.read(texts, "document", self._head.keeping(self._enough(passed)))
        windows = [read.parts[start:stop] for start, stop in pairwise(read.starts.tolist())]
        return Encoded(self._sparse(map(self._joined, windows, passed)), read.counts, read.truncated)

    def weigh(self, texts: Sequence[str], states: Iterable[Sequence[NDArray[np.floating[Any]]]], /) -> Sparse:
        """Rows of texts whose states are at hand: for each its windows, for each of these ``(t, d)``."""
        torch = extras.load("torch", extra="models")
        dtype = getattr(torch, self.states.reading.view.dtype)
        passed = [self._passed(text) for text in texts]
        head = self._head.keeping(self._enough(passed))
        windows = ([head.row(torch.tensor(window).to(dtype)) for window in text] for text in states)
        return self._sparse(map(self._joined, windows, passed))

    def expansions(self, text: str, *, top: int = 20) -> list[tuple[str, float]]:
        """The strongest words that a text speaks for, and their weights, the heaviest first."""
        columns, weights = self.encode_document([text]).embeddings.row(0)
        best: list[int] = np.argsort(-weights, kind="stable")[:top].tolist()
        return [(self.discriminant.words[columns[place]], float(weights[place])) for place in best]

    def terms(self, text: str) -> dict[int, str]:
        """Column → the word of ``text`` that stands there, with a tilde before it, for explanations."""
        words = self.states.words.terms(text)
        columns, present = self._columns(np.array(sorted(words), dtype=np.int64))
        return {column: f"~{words[key]}" for column, key in zip(columns.tolist(), present.tolist(), strict=True)}

    def _columns(self, keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Columns of those keys that have one, and these keys."""
        places = np.minimum(np.searchsorted(self.discriminant.keys, keys), self.dim - 1)
        there = self.discriminant.keys[places] == keys
        return places[there], keys[there]

    def _passed(self, text: str) -> NDArray[np.int64]:
        """Columns that a text is to have no weight in."""
        own = set[int]() if self.own else set(self.states.words.analyzer.keys(text))
        return self._columns(np.array(sorted(own), dtype=np.int64))[0]

    def _enough(self, passed: Sequence[NDArray[np.int64]]) -> int:
        """How many of each window are needed, so that the best are among them whichever are passed over."""
        return self.top + max(map(len, passed), default=0)

    def _joined(self, windows: Sequence[_Row], passed: NDArray[np.int64]) -> _Row:
        """The best of a text: what is among them is among the best of its own window."""
        columns, places = np.unique(np.concatenate([columns for columns, _ in windows]), return_inverse=True)
        weights = np.zeros(len(columns), dtype=np.float32)
        np.maximum.at(weights, places, np.concatenate([weights for _, weights in windows]))
        weights[np.isin(columns, passed)] = 0
        best = np.argsort(-weights, kind="stable")[: self.top]
        kept = np.sort(best[weights[best] > 0])
        return columns[kept], weights[kept]

    def _sparse(self, made: Iterable[_Row]) -> Sparse:
        rows = list(made)
        indptr = np.cumsum([0, *(len(columns) for columns, _ in rows)], dtype=np.int64)
        indices = np.concatenate([np.empty(0, dtype=np.int64), *(columns for columns, _ in rows)])
        weights = np.concatenate([np.empty(0, dtype=np.float32), *(weights for _, weights in rows)])
        return Sparse(indptr, indices, weights, self.dim)


class _Head:
    """The best stems of each row, from its own tokens' states."""

    def __init__(self, discriminant: Discriminant, layer: int, scale: float) -> None:
        self.layers = (layer,)
        self._discriminant = discriminant
        self._scale = scale
        self._top = len(discriminant.keys)
        self._tensors: dict[str, tuple[Any, ...]] = {}

    def keeping(self, top: int) -> _Head:
        """The same, for so many of each row."""
        out = copy.copy(self)  # what is on a device is shared
        out._top = top
        return out

    def __call__(self, batch: TokenStates, /) -> list[_Row]:
        return [self.row(batch.states[start:stop]) for start, stop in batch.spans.tolist()]

    def row(self, states: Any) -> _Row:
        """From states ``(t, d)`` of one text."""
        weights, mean, bias = self._on(states)
        chunk = max(1, _CELLS // len(weights))
        best = None
        for part in states.split(chunk):
            scores = ((part.float() - mean).to(weights.dtype) @ weights.T).amax(dim=0).float()
            best = scores if best is None else best.maximum(scores)
        if best is None:
            raise EmptyText("A text has no state.", "Drop it.")
        scores = (best + bias).cpu().numpy()
        if not (np.isfinite(scores).all() and states.isfinite().all()):  # a row of such would be silently empty
            raise ShapeError("The states of a text are not finite.", FINITE)
        return self._kept(scores)

    def _kept(self, scores: NDArray[np.float32]) -> _Row:
        weights = np.log1p(self._scale * np.maximum(scores, 0)).astype(np.float32)
        some = np.flatnonzero(weights)
        best = some[np.argsort(-weights[some], kind="stable")[: self._top]]
        columns = np.sort(best)
        return columns, weights[columns]

    def _on(self, states: Any) -> tuple[Any, ...]:
        """Weights, mean and bias where the states are; weights in bfloat16 where these are, for speed."""
        torch = extras.load("torch", extra="models")
        dtype = torch.bfloat16 if states.dtype == torch.bfloat16 else torch.float32
        place = f"{states.device} {dtype}"
        if place not in self._tensors:
            told = self._discriminant
            weights, mean, bias = map(torch.from_numpy, (told.weights, told.mean, told.bias))
            self._tensors[place] = (weights.to(states.device, dtype), mean.to(states.device), bias.to(states.device))
        return self._tensors[place]
