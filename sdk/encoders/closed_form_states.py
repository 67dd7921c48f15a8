"""What a frozen model's states are like for each stem: one pass over texts, in bounded memory, in mergeable parts.

Shapes: t tokens, m pairs of a token and a stem, c stems, d hidden size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from reperio.artifacts import loading, new_folder, read_folder
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.closed_form_words import Labels, token_terms
from reperio.encoders.reading import Reading
from reperio.encoders.texts import check_batch
from reperio.errors import ConfigurationError, FingerprintMismatch, ShapeError
from reperio.models.checkpoint import MINILM
from reperio.models.language_model import LanguageModel
from reperio.models.states import TokenStates
from reperio.models.view import View
from reperio.protocols import Spec
from reperio.registry import build

__all__ = ["FINITE", "StemStates"]

KIND = "stem-states"

FINITE = "Load the model in float32, and look at its weights."
"""What to do about states that are not finite."""

_TEXTS = 64
"""Texts read at once."""


class StemStates:
    """Sums of states for each stem, and one matrix of how they scatter: all that a `ClosedFormEncoder` is made of.

    Stems are the terms of a `BM25Encoder`; every token of a word counts to its stem. What several of these have seen
    adds up, however texts are shared out among them.

    Parameters
    ----------
    model
        A `LanguageModel`, which other tasks may share; or a folder or name for one.
    words
        Whose terms the stems are; English ones where None.
    attention
        Which tokens look at which: a mode's name, or a `View` with adapter, depth and temperature as well.
    layer
        Whose states: 0 the embeddings, -1 the last.
    prompt
        What stands before each text, or a template with ``{text}``.
    max_tokens
        Most tokens of a window; what the model reads where None. Longer texts are read in overlapping windows.
    capacity
        Most stems that are kept. Where there are more, the rarest are left out; from then on the parts of a divided
        corpus no longer add up to the whole exactly.

    Raises
    ------
    ConfigurationError
        For a setting out of range.
    """

    def __init__(
        self,
        model: LanguageModel | str | Path = MINILM,
        *,
        words: BM25Encoder | None = None,
        attention: str | View = "own",
        layer: int = -1,
        prompt: str = "",
        max_tokens: int | None = None,
        capacity: int = 100_000,
    ) -> None:
        if capacity < 2:
            raise ConfigurationError(f"capacity is {capacity}.", "Use 100000, or what memory allows: 8 d bytes a stem.")
        view = attention if isinstance(attention, View) else View(attention)
        if view.summary:
            raise ConfigurationError("Summary tokens are no words.", "Use another attention than 'summary'.")
        self.model = model if isinstance(model, LanguageModel) else LanguageModel(model)
        self.words = BM25Encoder() if words is None else words
        self.layer = layer
        self.capacity = capacity
        self.prompt = prompt
        self.reading = Reading(
            self.model, view=view, prompts={"document": prompt}, max_tokens=max_tokens, on_truncation="chunk"
        )
        self.texts = 0
        """How many texts were read: where to go on with a stream."""
        self.left_out = 0
        """How many stems were forgotten for want of room; one that came again may be among them twice."""
        self._of: dict[str, Any] | None = None  # what tells the model that these states are of
        self._rows: dict[int, int] = {}
        self._words: dict[int, str] = {}
        self._counts = np.zeros(0, dtype=np.int64)
        self._sums = np.zeros((0, 0))
        self._total = np.zeros(0)
        self._seen = 0
        self._second = np.zeros((0, 0))
        self._between = np.zeros((0, 0))  # of stems that were left out

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def spec(self) -> Spec:
        """How to begin anew with the same settings; what was seen is not part of it."""
        view = self.reading.settings
        return {
            "type": "StemStates",
            "model": dict(self.model.spec),
            "words": dict(self.words.spec),
            "attention": dict(view.spec),
            "layer": self.layer,
            "prompt": self.prompt,
            "max_tokens": self.reading.max_tokens,
            "capacity": self.capacity,
        }

    @property
    def keys(self) -> NDArray[np.int64]:
        """Columns of the stems for BM25, ``(c,)``, ascending."""
        return np.sort(np.fromiter(self._rows, dtype=np.int64, count=len(self)))

    @property
    def counts(self) -> NDArray[np.int64]:
        """Tokens of each stem, ``(c,)``, in the order of `keys`."""
        return self._counts[self._order()]

    @property
    def sums(self) -> NDArray[np.float64]:
        """Sum of the states of each stem, ``(c, d)``, in the order of `keys`."""
        return self._sums[self._order()]

    @property
    def shortest(self) -> list[str]:
        """A word for each stem, the shortest that was seen, in the order of `keys`."""
        return [self._words.get(key, str(key)) for key in self.keys.tolist()]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of all states, ``(d,)``."""
        return self._total / max(1, self._seen)

    @property
    def tokens(self) -> int:
        """How many states were seen, stop words not counted."""
        return self._seen

    def within(self) -> NDArray[np.float64]:
        """Covariance of states around the means of their stems, ``(d, d)``.

        Raises
        ------
        ConfigurationError
            Where no stem has been seen twice.
        """
        freedom = self._seen - len(self) - self.left_out
        if freedom < 1:
            problem = f"{self._seen} tokens of {len(self)} stems were seen: nothing says how states of one stem differ."
            raise ConfigurationError(problem, "Fit on more text.")
        scaled = self._sums[: len(self)] / np.sqrt(self._counts[: len(self), None])
        covariance: NDArray[np.float64] = (self._second - self._between - scaled.T @ scaled) / freedom
        return covariance

    def add(self, texts: Iterable[str], /) -> Self:
        """Read texts, any number of them, a few at a time.

        Raises
        ------
        EmptyText, InvalidInput
            By position in the stream; what came before is kept, and counted in ``texts``.
        FingerprintMismatch
            If the model is not the one whose states were seen before.
        ShapeError
            If it gives states that are not finite.
        """
        check_batch(texts)
        waiting, start = iter(texts), 0
        self.check()
        while some := list(islice(waiting, _TEXTS)):
            self._add(some, start)
            start += len(some)
        return self

    def observe(self, states: NDArray[np.floating[Any]], tokens: NDArray[np.int64], keys: NDArray[np.int64]) -> None:
        """Take in states that are at hand.

        Parameters
        ----------
        states
            ``(t, d)``.
        tokens, keys
            Numbers of states, and the key of a stem that each is of, ``(m,)`` each; see `token_terms`.

        Raises
        ------
        ShapeError
            For states of another length than those before, or that are not finite; nothing is taken in.
        """
        own = states[tokens].astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(own).all(axis=1))
        if len(bad):
            problem = f"{len(bad)} of {len(own)} states are not finite; the first is that of token {tokens[bad[0]]}."
            raise ShapeError(problem, FINITE)
        self._begin(own.shape[1])
        order = np.argsort(keys, kind="stable")
        distinct, starts = np.unique(keys[order], return_index=True)
        rows = self._places(distinct)
        if len(rows):
            self._sums[rows] += np.add.reduceat(own[order], starts, axis=0)
            self._counts[rows] += np.diff([*starts, len(keys)])
        self._total += own.sum(axis=0)
        self._second += own.T @ own
        self._seen += len(own)

    def merge(self, other: StemStates, /) -> Self:
        """Add what another has seen of other texts.

        Raises
        ------
        FingerprintMismatch
            If it has other settings, or another model.
        """
        _compare(self._of or self._told(), other._of or other._told())
        self._of = self._of or other._of
        if other._seen:
            self._begin(len(other._total))
            keys = other.keys
            rows, order = self._places(keys), other._order()
            self._sums[rows] += other._sums[order]
            self._counts[rows] += other._counts[order]
            for key, word in other._words.items():
                self._call(key, word)
            self._total += other._total
            self._second += other._second
            self._between += other._between
            self._seen += other._seen
        self.texts += other.texts
        self.left_out += other.left_out
        self._forget()
        return self

    @property
    def seen(self) -> str:
        """What was seen, by its content: SHA-256 of every sum, 32 hexadecimal digits."""
        seen = hashlib.sha256()
        for part in (self.keys, self.counts, self.sums, self._second, self._between, self._total):
            seen.update(np.ascontiguousarray(part).tobytes())
        return seen.hexdigest()[:32]

    def fields(self, seen: str | None = None) -> dict[str, Any]:
        """What a fingerprint tells: the model, how it reads, and what was seen, as it is now or as ``seen`` says."""
        return {**self._told(), "seen": self.seen if seen is None else seen}

    def save(self, path: Path | str, /) -> None:
        """Write a new folder, whole or absent: to go on with, or to make encoders of.

        Raises
        ------
        StorageError
            If ``path`` exists, or the disk refuses.
        """
        meta = {
            "spec": dict(self.spec),
            "of": self._of,
            "texts": self.texts,
            "left_out": self.left_out,
            "tokens": self._seen,
        }
        with new_folder(path, KIND, meta) as folder:
            (folder / "words.json").write_text(json.dumps(self.shortest), encoding="utf-8")
            for name, array in self._arrays().items():
                np.save(folder / f"{name}.npy", array)

    @classmethod
    def open(cls, path: Path | str, /, *, model: LanguageModel | None = None) -> Self:
        """Read what `save` wrote.

        Parameters
        ----------
        model
            The model whose states they are, where it is loaded already or has moved; checked when it is used.

        Raises
        ------
        NotFound, NewerFormat, CorruptArtifact
        """
        folder = Path(path)
        meta = read_folder(folder, KIND)
        with loading(folder, KIND):
            spec = dict(meta["spec"])
            if model is not None:
                spec["model"] = model
            out = cast("Self", build(spec))
            arrays = {name: np.load(folder / f"{name}.npy") for name in out._arrays()}
            out._restore(arrays, json.loads((folder / "words.json").read_text(encoding="utf-8")), meta)
        return out

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "keys": self.keys,
            "counts": self.counts,
            "sums": self.sums,
            "total": self._total,
            "second": self._second,
            "between": self._between,
        }

    def _restore(self, arrays: dict[str, NDArray[Any]], words: list[str], meta: dict[str, Any]) -> None:
        keys, d = arrays["keys"].tolist(), len(arrays["total"])
        c = len(keys)
        shapes = {name: array.shape for name, array in arrays.items()}
        stems = {"keys": (c,), "counts": (c,), "sums": (c, d if c else 0)}
        if shapes != stems | {"total": (d,), "second": (d, d), "between": (d, d)} or len(words) != c:
            raise ValueError(f"its arrays have the shapes {shapes}, and there are {len(words)} words")
        self._rows = {key: row for row, key in enumerate(keys)}
        self._words = dict(zip(keys, words, strict=True))
        self._counts, self._sums = arrays["counts"], arrays["sums"]
        self._total, self._second, self._between = arrays["total"], arrays["second"], arrays["between"]
        self._of, self.texts, self.left_out = meta["of"], int(meta["texts"]), int(meta["left_out"])
        self._seen = int(meta["tokens"])

    def _add(self, texts: list[str], start: int) -> None:
        laid, maker = self.reading.lay_out(texts, "document", start=start), self.reading.maker("document")
        labels: list[Labels] = []
        for text, row, spans in zip(texts, laid.tokens, maker.spans(texts), strict=True):
            tokens, keys = token_terms(text, spans.tolist(), self.words.analyzer)
            for own in maker.own(row, np.arange(len(row))):
                within = slice(*np.searchsorted(tokens, [own[0], own[-1] + 1]))
                labels.append((tokens[within] - own[0], keys[within]))
        # What fails leaves no part of these texts behind.
        new = self._empty()
        for batch, states in self.reading.view.run(laid.rows, _Own(self.layer), budget=self.model.batch_tokens):
            starts = np.cumsum([0, *map(len, states)])
            some: list[Labels] = [labels[row] for row in batch.tolist()]
            numbers = [tokens + first for (tokens, _), first in zip(some, starts[:-1], strict=True)]
            new.observe(np.concatenate(states), np.concatenate(numbers), np.concatenate([keys for _, keys in some]))
        for text in texts:
            new.name(text)
        new.texts = len(texts)
        self.merge(new)

    def name(self, text: str) -> None:
        """Take in by which words a text has stems that were seen."""
        for key, word in self.words.terms(text).items():
            if key in self._rows:
                self._call(key, word)

    def _call(self, key: int, word: str) -> None:
        known = self._words.get(key)
        if known is None or (len(word), word) < (len(known), known):
            self._words[key] = word

    def _empty(self) -> StemStates:
        new = StemStates(self.model, words=self.words, layer=self.layer)
        new.reading, new.prompt, new._of = self.reading, self.prompt, self._of
        return new

    def _order(self) -> NDArray[np.int64]:
        return np.array([self._rows[key] for key in self.keys.tolist()], dtype=np.int64)

    def _places(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where stems are kept; new ones are given a place."""
        rows = [self._rows.setdefault(key, len(self._rows)) for key in keys.tolist()]
        lacking = len(self._rows) - len(self._counts)
        if lacking > 0:
            more = max(lacking, len(self._counts) // 2)
            self._counts = np.pad(self._counts, (0, more))
            self._sums = np.concatenate([self._sums, np.zeros((more, len(self._total)))])
        return np.array(rows, dtype=np.int64)

    def _begin(self, d: int) -> None:
        if not len(self._total):
            self._sums, self._total = np.zeros((len(self._counts), d)), np.zeros(d)
            self._second, self._between = np.zeros((d, d)), np.zeros((d, d))
        if d != len(self._total):
            raise ShapeError(f"States have {d} dimensions, and those before had {len(self._total)}.", "Use one model.")

    def _forget(self) -> None:
        """Leave out the rarest stems if there are too many; how their states scatter stays accounted for."""
        if len(self) <= self.capacity:
            return
        keys, order = self.keys, self._order()
        common = np.argsort(-self._counts[order], kind="stable")[: max(1, self.capacity * 3 // 4)]
        kept = np.sort(common)
        lost = np.delete(order, kept)
        scaled = self._sums[lost] / np.sqrt(self._counts[lost, None])
        self._between += scaled.T @ scaled
        self.left_out += len(lost)
        rows = order[kept]
        self._counts, self._sums = self._counts[rows], self._sums[rows]
        self._rows = {key: row for row, key in enumerate(keys[kept].tolist())}
        self._words = {key: self._words[key] for key in self._rows if key in self._words}

    def check(self) -> None:
        """Refuse a model that is not the one whose states were seen; loads it.

        Raises
        ------
        FingerprintMismatch
            Naming what differs.
        """
        told = self._told()
        self._of = self._of or told
        _compare(self._of, told)

    def _told(self) -> dict[str, Any]:
        told = {**self.reading.fields(), "layer": self.layer, "words": self.words.fingerprint.digest}
        plain: dict[str, Any] = json.loads(json.dumps(told))
        return plain


class _Own:
    """States of each row's own tokens."""

    def __init__(self, layer: int) -> None:
        self.layers = (layer,)

    def __call__(self, batch: TokenStates, /) -> list[NDArray[np.float32]]:
        states = batch.states.float().cpu().numpy()
        return [states[start:stop] for start, stop in batch.spans]


def _compare(before: dict[str, Any], now: dict[str, Any]) -> None:
    differ = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if differ:
        name = differ[0]
        problem = f"The states are of another {name}: {before.get(name)!r:.80}, not {now.get(name)!r:.80}."
        raise FingerprintMismatch(problem, "Use the model and settings that they are of, or begin anew.")
