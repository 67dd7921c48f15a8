"""Several vectors for each text, from any language model on disk: late interaction."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from reperio import extras, meter
from reperio.artifacts import disk_errors
from reperio.embeddings import Dense, MultiVector, check_dense
from reperio.encoders.multivector_layout import Checkpoint, ColbertLayout, read_checkpoint, write_modules
from reperio.encoders.reading import ROLES, Around, OnTruncation, Read, Reading
from reperio.encoders.wholewords import WholeWords, whole_words
from reperio.encoders.wordgate import WordGate
from reperio.errors import ConfigurationError, StorageError, UnsupportedOperation
from reperio.models.checkpoint import locate
from reperio.models.inputs import Role
from reperio.models.language_model import LanguageModel
from reperio.models.projection import TokenProjection
from reperio.models.states import TokenStates
from reperio.models.view import View
from reperio.protocols import Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["Bags", "MultiVectorEncoder"]

VERSION = 1
"""Raised whenever the same model would give other vectors here."""


@dataclass(frozen=True, slots=True)
class Bags:
    """Vectors of texts, and what each stands for.

    Attributes
    ----------
    embeddings
        The vectors.
    words
        For each text, the whole word of each of its vectors, None for one of no word; empty where words are not
        merged.
    read
        What the model read.
    """

    embeddings: MultiVector
    words: list[list[str | None]]
    read: Read


@dataclass(frozen=True, slots=True)
class _Opened:
    """The checkpoint with what was given in its place, how texts are read, and ids of tokens without a vector."""

    checkpoint: Checkpoint
    reading: Reading
    skip: dict[Role, NDArray[np.int64]]


class MultiVectorEncoder:
    """Encodes texts with one vector for each token, or for each whole word: ColBERT and what came of it.

    Checkpoints of the original ColBERT, of PyLate and of sentence-transformers' ``MultiVectorEncoder`` are read
    unchanged: their markers, lengths, query expansion, skip list and projection are taken from the folder. Any other
    model of transformers serves too; without a projection its states are the vectors.

    Parameters
    ----------
    model
        A `LanguageModel`, which other tasks may share; or a folder or name for one.
    layout
        What stands around texts and which tokens have vectors, in place of the checkpoint's.
    projection
        Layers over the states, in place of the checkpoint's; ``()`` for none.
    attention
        Which tokens look at which: a mode's name, or a `View`.
    dim
        How many leading dimensions are kept (Matryoshka representation learning, Kusupati et al., 2022).
    words
        Merges vectors by whole word, as ColBERTer does; in place of the checkpoint's.
    gate
        Removes words of documents by their merged vectors, in place of the checkpoint's; needs ``words``.
    on_truncation
        What happens to a text longer than its role's length: ``"warn"``, ``"error"``, or ``"chunk"`` for the vectors
        of all of its tokens, read in overlapping windows.

    Raises
    ------
    ConfigurationError
        For a setting out of range.

    References
    ----------
    .. [1] ColBERT: Khattab and Zaharia, SIGIR 2020. ColBERTv2: Santhanam et al., NAACL 2022. ColBERTer: Hofstätter et
       al., CIKM 2022.
    """

    def __init__(
        self,
        model: LanguageModel | str | Path,
        *,
        layout: ColbertLayout | None = None,
        projection: TokenProjection | Sequence[TokenProjection] | None = None,
        attention: str | View = "own",
        dim: int | None = None,
        words: WholeWords | None = None,
        gate: WordGate | None = None,
        on_truncation: OnTruncation = "warn",
    ) -> None:
        if dim is not None and dim <= 0:
            raise ConfigurationError(f"dim is {dim}.", "Use 1 or more.")
        self._given = model
        self._layout, self._words, self._gate = layout, words, gate
        self._projections = (projection,) if isinstance(projection, TokenProjection) else projection
        self._view = attention if isinstance(attention, View) else View(attention)
        self._dim = dim
        self.on_truncation: OnTruncation = on_truncation
        self._lock = threading.RLock()
        self._open_: _Opened | None = None
        self._fingerprint: Fingerprint | None = None

    @property
    def spec(self) -> Spec:
        """How to build this encoder again: what was given, a folder by its whole path.

        Raises
        ------
        UnsupportedOperation
            If its model, projection or gate is in memory only.
        """
        given = self._given
        return {
            "type": "MultiVectorEncoder",
            "model": dict(given.spec) if isinstance(given, LanguageModel) else _place(given),
            "layout": None if self._layout is None else dict(self._layout.spec),
            "projection": None if self._projections is None else [dict(one.spec) for one in self._projections],
            "attention": dict(self._view.spec),
            "dim": self._dim,
            "words": None if self._words is None else dict(self._words.spec),
            "gate": None if self._gate is None else dict(self._gate.spec),
            "on_truncation": self.on_truncation,
        }

    @property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two vectors to compare; loads the model. Weights that are trained change it."""
        with self._lock:
            if self._fingerprint is None:
                found, reading = self._opened.checkpoint, self._opened.reading
                fields = {
                    **reading.fields(),
                    "projection": [one.fields() for one in found.projections],
                    "skip": {role: sorted(ids.tolist()) for role, ids in self._opened.skip.items()},
                    "special": found.layout.special,
                    "normalized": found.layout.normalize,
                    "words": None if found.words is None else dict(found.words.spec),
                    "gate": None if found.gate is None else found.gate.fields(),
                    "version": VERSION,
                }
                name = self._given.model if isinstance(self._given, LanguageModel) else self._given
                self._fingerprint = Fingerprint.make("multi-vector", str(name), self._width(), **fields)
            return self._fingerprint

    @property
    def model(self) -> LanguageModel:
        """The model, which other tasks may share."""
        return self._opened.reading.model

    @property
    def layout(self) -> ColbertLayout:
        """What stands around texts and which tokens have vectors; as it was given or as the checkpoint says."""
        return self._opened.checkpoint.layout

    @property
    def projections(self) -> tuple[TokenProjection, ...]:
        """The layers over the states, first to last; training may change them in place."""
        return self._opened.checkpoint.projections

    @property
    def words(self) -> WholeWords | None:
        """What merges vectors by whole word."""
        return self._opened.checkpoint.words

    @property
    def gate(self) -> WordGate | None:
        """What removes words; training may change it in place."""
        return self._opened.checkpoint.gate

    @property
    def dim(self) -> int:
        """d."""
        return self.fingerprint.dim

    def parameters(self) -> Iterable[Any]:
        """The weights of the projection and the gate, for an optimiser; the model has its own."""
        gates = () if self.gate is None else (self.gate,)
        return [weight for part in (*self.projections, *gates) for weight in part.parameters()]

    def encode_query(self, texts: Sequence[str], /) -> Encoded[MultiVector]:
        """Vectors of queries, with what the layout says of them: marker, expansion, length."""
        return self._encode(texts, "query")

    def encode_document(self, texts: Sequence[str], /) -> Encoded[MultiVector]:
        """Vectors of documents, but for the tokens that the layout skips.

        Returns
        -------
        Encoded
            ``embeddings``: ``(t, d)``, in the order of the tokens, or of the words by their first token. A text of
            skipped tokens only keeps them. ``token_counts``: with marker, prompt and special tokens, before any cut.

        Raises
        ------
        InvalidInput
            For a bare ``str``; or an element that is no ``str`` or not valid Unicode, by its position.
        EmptyText
            If a text is blank or has no token; names its position.
        TruncationError
            If a text is too long and ``on_truncation`` is ``"error"``.
        ShapeError
            If the model gives NaN or infinity.
        """
        return self._encode(texts, "document")

    def bags(self, texts: Sequence[str], role: Role = "document", /) -> Bags:
        """The vectors before any gate and final normalisation, and the words they stand for; raises as encoding.

        What a gate is learnt from, and one-dimension weights.
        """
        found, reading = self._opened.checkpoint, self._opened.reading
        read = reading.read(texts, role, _Projected(found.projections, dim=self._dim))
        where = [self._kept(read, text, role) for text in range(len(read.counts))]
        parts = [part[kept] for part, (kept, _) in zip(read.parts, (w for some in where for w in some), strict=True)]
        sizes = [sum(int(kept.sum()) for kept, _ in some) for some in where]
        vectors = np.concatenate([np.empty((0, self._width()), np.float32), *parts])
        checked = check_dense(vectors, what="The model's output")
        embeddings = MultiVector(checked, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
        if found.words is None or (role == "query" and not found.words.queries):
            return Bags(embeddings, [], read)
        spans = reading.maker(role).spans(texts)
        words = [
            [word for kept, tokens in some for word in _words(text, told, kept, tokens)]
            for text, told, some in zip(texts, spans, where, strict=True)
        ]
        reduced = found.words.reduce(embeddings, words)
        meter.count("vectors", len(embeddings.vectors))
        meter.count("words_merged", int(reduced.merged.sum()))
        meter.count("words_removed", int(reduced.dropped.sum()))
        return Bags(reduced.embeddings, reduced.words, read)

    def save(self, folder: Path | str) -> None:
        """Write model, tokenizer and all else to a new folder, in the layout of sentence-transformers.

        sentence-transformers opens it and gives the same vectors, unless words are merged or special tokens have no
        vectors, which it cannot do: then it refuses.

        Raises
        ------
        UnsupportedOperation
            If attention or depth are not the checkpoint's own, which the layout cannot say.
        StorageError
            If the folder is there already, or cannot be written.
        """
        if self._view != View():
            raise UnsupportedOperation(f"The layout cannot say {self._view}.", "Save with attention='own'.")
        found, reading = self._opened.checkpoint, self._opened.reading
        projections = found.projections
        if self._dim is not None:  # as one more layer, which keeps the leading dimensions
            eye = extras.load("torch", extra="models").eye(self._dim, self._width(cut=False))
            projections = (*projections, TokenProjection.of(eye))
        whole = Checkpoint(found.model, found.layout, projections, found.words, found.gate)
        with _new(Path(folder)) as place:
            reading.model.network.base_model.save_pretrained(place)
            reading.model.tokenizer.save_pretrained(place)
            write_modules(place, whole)

    def _encode(self, texts: Sequence[str], role: Role) -> Encoded[MultiVector]:
        bags = self.bags(texts, role)
        found = self._opened.checkpoint
        embeddings = bags.embeddings
        if bags.words and found.gate is not None and role == "document":
            before = len(embeddings.vectors)
            embeddings, _ = found.gate.apply(embeddings)
            meter.count("words_removed", before - len(embeddings.vectors))
        if found.layout.normalize:
            embeddings = MultiVector(_unit(embeddings.vectors), embeddings.offsets)
        return Encoded(embeddings, bags.read.counts, bags.read.truncated)

    @property
    def _opened(self) -> _Opened:
        with self._lock:
            if self._open_ is None:
                given = self._given
                if isinstance(given, LanguageModel):
                    folder, model = given.folder, given
                    found = Checkpoint(Path(), ColbertLayout()) if folder is None else read_checkpoint(folder)
                else:
                    found = read_checkpoint(locate(given))
                    model = LanguageModel(found.model)
                kept = Checkpoint(
                    found.model,
                    self._layout or found.layout,
                    found.projections if self._projections is None else tuple(self._projections),
                    self._words or found.words,
                    self._gate or found.gate,
                )
                _check(kept, model.dim)
                for part in (*kept.projections, *(() if kept.gate is None else (kept.gate,))):
                    part.to(model.network.device)
                skip: dict[Role, NDArray[np.int64]] = {
                    role: _skipped(kept.layout, role, model.tokenizer) for role in ROLES
                }
                self._open_ = _Opened(kept, self._read_with(kept.layout, model), skip)
            return self._open_

    def _read_with(self, layout: ColbertLayout, model: LanguageModel) -> Reading:
        starts = {role: (_token(model.tokenizer, marker),) for role, marker in layout.markers.items()}
        expansions = {"query": layout.expansion}
        return Reading(
            model,
            view=self._view,
            prompts=layout.prompts,
            max_tokens=layout.limits,
            on_truncation=self.on_truncation,
            around={role: Around(starts.get(role, ()), expansions.get(role)) for role in ROLES},
        )

    def _width(self, *, cut: bool = True) -> int:
        found, reading = self._opened.checkpoint, self._opened.reading
        width = found.projections[-1].dim if found.projections else reading.model.dim
        if self._dim is not None and self._dim > width:
            raise ConfigurationError(f"dim is {self._dim}, and vectors have {width}.", "Use less.")
        return self._dim if cut and self._dim is not None else width

    def _kept(self, read: Read, text: int, role: Role) -> list[tuple[NDArray[np.bool_], NDArray[np.int64]]]:
        """For each window of a text: which tokens have a vector; and which token of the text each is, -1 for none."""
        found, reading = self._opened.checkpoint, self._opened.reading
        maker, row = reading.maker(role), read.tokens[text]
        numbers = np.arange(len(row), dtype=np.int32)
        windows = read.rows[read.starts[text] : read.starts[text + 1]]
        if len(windows) > 1:
            own = maker.own(row, numbers)
        else:
            first = maker.frame.before + maker.prompt_tokens(row)
            cut = maker.frame.cut(numbers)
            own = [cut[first : len(cut) - maker.frame.after]]
        out, last = list[tuple[NDArray[np.bool_], NDArray[np.int64]]](), -1
        for window, mine in zip(windows, own, strict=True):
            tokens = np.full(len(window), -1, dtype=np.int64)
            tokens[window.start : window.stop] = mine
            kept = (tokens > last) | ((tokens < 0) & found.layout.special)  # once, where windows overlap
            out.append((kept, tokens))
            last = int(mine[-1])
        skipped = [np.isin(window.ids, self._opened.skip[role]) for window in windows]
        left = [kept & ~skip for (kept, _), skip in zip(out, skipped, strict=True)]
        if not any(kept.any() for kept in left):
            return out
        return [(kept, tokens) for kept, (_, tokens) in zip(left, out, strict=True)]


class _Projected:
    """States through the layers, cut to their leading dimensions: for each row its vectors, in numpy."""

    def __init__(self, projections: Sequence[TokenProjection], *, dim: int | None) -> None:
        self._projections = projections
        self._dim = dim

    def __call__(self, batch: TokenStates, /) -> list[Dense]:
        vectors = batch.states
        for projection in self._projections:
            vectors = projection(vectors)
        whole: Dense = vectors[:, : self._dim].float().cpu().numpy()
        return np.split(whole, batch.offsets[1:-1])


@contextmanager
def _new(folder: Path) -> Generator[Path]:
    """A folder that is there, whole, once all is written; else it is not."""
    if folder.exists():
        raise StorageError(f"{folder} is there already.", "Give a new folder.")
    beside = folder.with_name(f".{folder.name}.{uuid4().hex}.tmp")
    with disk_errors(folder):
        try:
            beside.mkdir(parents=True)
            yield beside
            beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _place(model: str | Path) -> str:
    return str(Path(model).resolve()) if Path(model).is_dir() else str(model)


def _unit(vectors: Dense) -> Dense:
    out: Dense = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return out


def _words(text: str, spans: NDArray[np.int32], kept: NDArray[np.bool_], tokens: NDArray[np.int64]) -> list[str | None]:
    """The word of each token that is kept."""
    places = tokens[kept]
    known: list[tuple[int, int]] = [(0, 0) if at < 0 else (int(spans[at][0]), int(spans[at][1])) for at in places]
    return whole_words(text, known)


def _check(found: Checkpoint, width: int) -> None:
    """Refuse parts that contradict each other."""
    for projection in found.projections:
        if projection.settings["in_features"] != width:
            problem = f"A projection takes {projection.settings['in_features']} dimensions, and is given {width}."
            raise ConfigurationError(problem, "Use the model that it was trained with.")
        width = projection.dim
    if found.gate is not None and found.words is None:
        raise ConfigurationError("A gate removes words, and words are not merged.", "Give words=WholeWords().")
    if found.gate is not None and found.gate.scales and found.layout.normalize:
        problem = "The gate scales vectors, and the layout's normalize makes all of length 1."
        raise ConfigurationError(problem, "Use normalize=False, or a gate that does not scale.")


def _skipped(layout: ColbertLayout, role: Role, tokenizer: Any) -> NDArray[np.int64]:
    """Ids of tokens without a vector; what is no token of the tokenizer skips nothing."""
    known = tokenizer.get_vocab()
    words = layout.skip if role in layout.skip_roles else ()
    return np.array([known[word] for word in words if word in known], dtype=np.int64)


def _token(tokenizer: Any, marker: str) -> str:
    """The marker as the tokenizer knows it, with the space after it or without."""
    known = tokenizer.get_vocab()
    return marker if marker in known else marker.strip()
