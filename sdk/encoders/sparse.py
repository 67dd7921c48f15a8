"""Learned weights of words, from the head of a language model."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np

from reperio.artifacts import new_folder
from reperio.embeddings import Sparse
from reperio.encoders.reading import ROLES, OnTruncation, Reading
from reperio.encoders.sparse_layouts import SparseLayout, read_layout, write_common, write_model, write_pooling
from reperio.errors import ConfigurationError, UnsupportedOperation
from reperio.models.inputs import Role
from reperio.models.language_model import LanguageModel
from reperio.models.rows import TEXT
from reperio.models.saturation import Activation, Saturation, Strength, Weights, check_saturation, pruned
from reperio.models.screening import Screen
from reperio.models.view import View
from reperio.models.vocabulary import VocabularyHead, word
from reperio.protocols import Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["SparseEncoder"]

VERSION = 1
"""Raised whenever the same model would give other weights here."""


class SparseEncoder:
    """Weighs words of a model's vocabulary, those that a text says and those that it might have said.

    SPLADE is a masked language model with nothing else set; Mistral-SPLADE is a decoder with
    ``attention="echo"``. A column is a token of the model's tokenizer, so that a row can be read by people: see
    `expansions`.

    Parameters
    ----------
    model
        A `LanguageModel`, which other tasks may share; or a folder or name for one, whose files may say what is
        None below, as those of sentence-transformers' `SparseEncoder` do. Where the files say otherwise than an
        argument, the files win, with a warning.
    attention
        Which tokens look at which: a mode's name, or a `View` with an adapter as well.
    pooling
        ``"max"`` or ``"sum"``; the first where nothing says.
    activation
        ``"relu"`` for one logarithm, ``"log1p_relu"`` for two; the first where nothing says.
    top_n
        How many words are kept of a text, the strongest; by role if a mapping.
    prompts
        What stands before a text, by role; a str is for queries. A template where it holds ``{text}``.
    max_tokens
        Most tokens that are read of a text, prompt and special tokens counted; what the model reads where None.
    on_truncation
        What happens to a longer text: ``"warn"``, ``"error"``, or ``"chunk"`` for the strongest weight of each word
        in any of the overlapping windows.

    Raises
    ------
    ConfigurationError
        For a setting out of range.

    References
    ----------
    .. [1] SPLADE v2: Formal et al., 2021. Mistral-SPLADE: Doshi et al., 2024.
    """

    def __init__(
        self,
        model: LanguageModel | str | Path,
        *,
        attention: str | View = "own",
        pooling: Strength | None = None,
        activation: Activation | None = None,
        top_n: int | Mapping[Role, int] | None = None,
        prompts: str | Mapping[Role, str] | None = None,
        max_tokens: int | None = None,
        on_truncation: OnTruncation = "warn",
    ) -> None:
        folder = Path(model.model if isinstance(model, LanguageModel) else model)
        layout = read_layout(folder) if folder.is_dir() else None
        if not isinstance(model, LanguageModel):
            model = (
                LanguageModel(folder if layout is None else layout.model) if folder.is_dir() else LanguageModel(model)
            )
        self.model = model
        self.pooling = pooling
        self.activation = activation
        self.top_n = dict(top_n) if isinstance(top_n, Mapping) else top_n
        prompts = {"query": prompts} if isinstance(prompts, str) else prompts
        self.prompts: dict[str, str] | None = None if prompts is None else {str(r): text for r, text in prompts.items()}
        self.max_tokens = max_tokens
        strange = set[str](self.top_n) - set(ROLES) if isinstance(self.top_n, dict) else set[str]()
        if strange:
            raise ConfigurationError(f"top_n names the role {sorted(strange)[0]!r}.", "Use query and document.")
        for role in ROLES:
            check_saturation(pooling, activation, self.limit(role))
        self._view = attention if isinstance(attention, View) else View(attention)
        self._on_truncation: OnTruncation = on_truncation
        self._lock = threading.RLock()
        self._loaded: tuple[Reading, VocabularyHead, Screen | None] | None = None
        self._fingerprint: Fingerprint | None = None
        self._settled = False
        if folder.is_dir():
            self._settle(layout)
        self._made()  # says at once what is wrong with a setting

    @property
    def spec(self) -> Spec:
        """How to build this encoder again.

        Raises
        ------
        UnsupportedOperation
            If its model is in memory only.
        """
        return {
            "type": "SparseEncoder",
            "model": dict(self.model.spec),
            "attention": dict(self._view.spec),
            "pooling": self.pooling,
            "activation": self.activation,
            "top_n": self.top_n,
            "prompts": self.prompts,
            "max_tokens": self.max_tokens,
            "on_truncation": self._on_truncation,
        }

    @property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two rows to compare; loads the model."""
        with self._lock:
            if self._fingerprint is None:
                reading, head, _ = self._load()
                name, revision = str(self.model.model), self.model.revision
                fields = {
                    **reading.fields(),
                    "pooling": self.pooling,
                    "activation": self.activation,
                    "top_n": [self.limit(role) for role in ("query", "document")],
                    "reads": "the text's own tokens, from one before" if head.shifted else "all tokens",
                    "version": VERSION,
                }
                known = name if revision is None else f"{name}@{revision}"
                self._fingerprint = Fingerprint.make("sparse", known, head.dim, **fields)
            return self._fingerprint

    @property
    def dim(self) -> int:
        """V, the size of the vocabulary that the model scores."""
        return self.fingerprint.dim

    @property
    def weights_below(self) -> int:
        """Columns from here on hold counts: none does."""
        return self.dim

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        """Weights of queries, under the prompt for them; see `encode_document`."""
        return self._encode(texts, "query")

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        """Weights of documents.

        Returns
        -------
        Encoded[Sparse]
            ``embeddings``: one row for each text, V columns; a text that weighs no word has an empty row.
            ``token_counts``: before any cut. ``truncated``: which were cut.

        Raises
        ------
        EmptyText, InvalidInput, TruncationError
            As `DenseEncoder.encode_document`.
        """
        return self._encode(texts, "document")

    def expansions(self, text: str, *, top: int = 20, role: Role = "document") -> list[tuple[str, float]]:
        """The strongest words of a text and what they weigh, strongest first, whether it says them or not."""
        columns, weights = self._encode([text], role).embeddings.row(0)
        best = np.argsort(-weights, kind="stable")[:top]
        return [(self._word(int(columns[i])), float(weights[i])) for i in best]

    def terms(self, text: str) -> dict[int, str]:
        """Column → word, for those that ``text`` weighs as a query; for explanations."""
        columns, _ = self._encode([text], "query").embeddings.row(0)
        return {column: self._word(column) for column in columns.tolist()}

    def save(self, path: Path | str, /) -> None:
        """Write a folder that sentence-transformers' `SparseEncoder`, and this one, opens: whole or not at all.

        Raises
        ------
        UnsupportedOperation
            If the model is no masked language model, or is seen in another way than it would be when opened again;
            or if ``top_n`` differs by role, long texts are read in windows, or a prompt goes on after the text.
        """
        limits = {role: self.limit(role) for role in ROLES}
        if len(set(limits.values())) > 1:
            raise UnsupportedOperation(f"top_n is {limits}, and such a folder has one for both.", "Use one number.")
        with new_folder(path, "sparse-encoder", {}) as folder:
            self.write_model(folder)
            self.write_pooling(folder / "1_SpladePooling")
            modules = {"": "Transformer", "1_SpladePooling": "SpladePooling"}
            write_common(folder, modules, prompts=self.prompts or {}, top_n=self.limit("document"))

    def write_model(self, folder: Path) -> None:
        """The model and its tokenizer, as a part of a larger layout; raises as `save`."""
        reading, head, _ = self._load()
        after = next((prompt for prompt in reading.prompts.values() if TEXT in prompt), None)
        if reading.on_truncation == "chunk" or after is not None:
            what = 'on_truncation="chunk"' if after is None else f"the prompt {after!r}"
            raise UnsupportedOperation(f"Such a folder cannot tell of {what}.", "Keep this encoder by its `spec`.")
        if head.shifted or reading.settings != View() or self.model.adapters:
            problem = f"This {type(self.model.network).__name__}, seen as {reading.settings}, has no such layout."
            raise UnsupportedOperation(problem, "Save a masked language model without adapters; keep others by `spec`.")
        write_model(folder, self.model.network, self.model.tokenizer, self.max_tokens)

    def write_pooling(self, folder: Path) -> None:
        """How it pools, as a part of a larger layout."""
        _, head, _ = self._load()
        pooling, activation = self.pooling or "max", self.activation or "relu"
        write_pooling(folder, pooling=pooling, activation=activation, dim=head.dim)

    def _encode(self, texts: Sequence[str], role: Role) -> Encoded[Sparse]:
        reading, head, screen = self._load()
        top_n = self.limit(role)
        how: dict[str, Any] = {"pooling": self.pooling or "max", "activation": self.activation or "relu"}
        pool = Saturation(head, top_n=top_n, screen=screen, **how)
        read = reading.read(texts, role, pool)
        rows = [pruned(_strongest(read.parts[a:b]), top_n) for a, b in pairwise(read.starts.tolist())]
        indptr = np.cumsum([0, *(len(columns) for columns, _ in rows)], dtype=np.int64)
        columns = np.concatenate([np.empty(0, np.int64), *(columns for columns, _ in rows)])
        weights = np.concatenate([np.empty(0, np.float32), *(weights for _, weights in rows)])
        return Encoded(Sparse(indptr, columns, weights, head.dim), read.counts, read.truncated)

    def _load(self) -> tuple[Reading, VocabularyHead, Screen | None]:
        with self._lock:
            if self._loaded is None:
                if not self._settled:  # of a name, whose files are here only now
                    folder = self.model.folder
                    self._settle(None if folder is None else read_layout(folder))
                reading = self._made()
                head = VocabularyHead.of(reading.view)
                self._loaded = reading, head, Screen.where_it_pays(head)
            return self._loaded

    def _made(self) -> Reading:
        return Reading(
            self.model,
            view=self._view,
            prompts=cast("Mapping[Role, str]", self.prompts or {}),
            max_tokens=self.max_tokens,
            on_truncation=self._on_truncation,
        )

    def _settle(self, layout: SparseLayout | None) -> None:
        """Take from the model's files what nobody has said."""
        if layout is not None and layout.queries is not None:
            problem = f"{self.model.model} weighs queries by a table, without the model."
            raise ConfigurationError(problem, "Use InferenceFreeEncoder, which reads both.")
        told = layout or SparseLayout(Path())
        for name in ("pooling", "activation"):
            given, known = getattr(self, name), getattr(told, name)
            if layout is not None and given not in (None, known):
                warnings.warn(
                    f"{name} is {given!r}, and the model was made for {known!r}, which is used.", stacklevel=4
                )
                given = known
            setattr(self, name, given or known)
        check_saturation(self.pooling, self.activation)
        self.top_n = told.top_n if self.top_n is None else self.top_n
        self.prompts = dict(told.prompts) if self.prompts is None else self.prompts
        self.max_tokens = told.max_tokens if self.max_tokens is None else self.max_tokens
        self._settled = True

    def limit(self, role: Role) -> int | None:
        """How many words are kept of a text of this role; all where None."""
        return self.top_n.get(role) if isinstance(self.top_n, dict) else self.top_n

    def _word(self, column: int) -> str:
        return word(self.model.tokenizer, column)


def _strongest(parts: Sequence[Weights]) -> Weights:
    """The strongest weight of each word in any window of a text."""
    if len(parts) == 1:
        return parts[0]
    columns, place = np.unique(np.concatenate([columns for columns, _ in parts]), return_inverse=True)
    weights = np.zeros(len(columns), dtype=np.float32)
    np.maximum.at(weights, place, np.concatenate([weights for _, weights in parts]))
    return columns, weights
