"""Fewer vectors for each text: one for each whole word that it holds.

Shapes: n texts, t vectors of all texts, w vectors that remain, d dimensions.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, MultiVector, check_multi_vector
from reperio.encoders.analysis import stop_words
from reperio.errors import InvalidInput, ShapeError
from reperio.protocols import Spec

__all__ = ["Reduced", "WholeWords", "kind_of", "whole_words"]

_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR")
"""How the names of characters begin that are written without spaces between words; Hangul's words carry particles."""


@dataclass(frozen=True, slots=True)
class Reduced:
    """What is left, and how much was saved.

    Attributes
    ----------
    embeddings
        The vectors that remain, in the order in which their words first come.
    merged
        How many vectors of each text went into another one of the same word, ``(n,)``, int64.
    dropped
        How many words of each text were left out, ``(n,)``, int64.
    words
        For each text, the word of each vector that remains; None for one that belongs to no word.
    """

    embeddings: MultiVector
    merged: NDArray[np.int64]
    dropped: NDArray[np.int64]
    words: list[list[str | None]]

    @property
    def saved(self) -> float:
        """The share of all vectors that is gone, from 0 to 1."""
        gone = int(self.merged.sum() + self.dropped.sum())
        return gone / max(1, gone + len(self.embeddings.vectors))


class WholeWords:
    """Merges the vectors of each word of a document into one, and leaves out words that say little.

    A word cut into pieces, or used several times, gets one vector: the mean of all of theirs, scaled to length one.
    It is for the documents of late interaction; queries keep their vectors unless ``queries`` is set.

    Parameters
    ----------
    language
        Of the stop words.
    stopwords
        Words to leave out: False for none, True for the language's list (see
        `reperio.encoders.analysis.stop_words`), or the words themselves. Over vectors that were not trained for it,
        the list costs quality: `benchmarks/multivector.py` measures both.
    punctuation
        Whether to keep words without a letter or a digit.
    queries
        Whether an encoder merges the words of queries too, as ColBERTer does.
    normalize
        Whether each vector is scaled to length one; False leaves the plain mean, which ColBERTer's gate reads.

    Raises
    ------
    ConfigurationError
        If there is no list of stop words for the language.
    MissingDependency
        If the list needs a package that is not installed.

    Notes
    -----
    Hofstätter, Khattab, Althammer, Sertkan and Hanbury: Introducing Neural Bag of Whole-Words with ColBERTer. CIKM
    2022. There a gate is trained that leaves words out by their context: `reperio.encoders.WordGate`; here a list does.

    Examples
    --------
    >>> one = MultiVector(np.array([[1, 0], [0, 1], [3, 4], [2, 2]], dtype=np.float32), np.array([0, 4]))
    >>> reduced = WholeWords(stopwords=True).reduce(one, [["merging", "merging", "the", "."]])
    >>> reduced.embeddings.vectors.round(2), reduced.saved
    (array([[0.71, 0.71]], dtype=float32), 0.75)
    """

    def __init__(
        self,
        language: str = "english",
        *,
        stopwords: bool | Sequence[str] = False,
        punctuation: bool = False,
        queries: bool = False,
        normalize: bool = True,
    ) -> None:
        if isinstance(stopwords, str):
            raise InvalidInput(f"stopwords is the text {stopwords!r}.", "Pass True, False or a list of words.")
        self.language, self.punctuation = language, punctuation
        self.queries, self.normalize = queries, normalize
        self._stopwords = stopwords if isinstance(stopwords, bool) else list(stopwords)
        if isinstance(stopwords, bool):
            self.stopwords = stop_words(language) if stopwords else frozenset[str]()
        else:
            self.stopwords = frozenset(map(_normal, stopwords))

    @property
    def spec(self) -> Spec:
        """How to build this again; part of the specification of an encoder that uses it."""
        return {
            "type": "WholeWords",
            "language": self.language,
            "stopwords": self._stopwords,
            "punctuation": self.punctuation,
            "queries": self.queries,
            "normalize": self.normalize,
        }

    def reduce(self, embeddings: MultiVector, words: Sequence[Sequence[str | None]]) -> Reduced:
        """Merge and leave out; a text of which nothing would remain keeps all its words.

        Parameters
        ----------
        embeddings
            Of documents, ``(t, d)``.
        words
            For each text, the word that each of its vectors belongs to, as `whole_words` gives them. A vector of
            None belongs to no word, and stays.

        Returns
        -------
        Reduced
            ``(w, d)``, and what was saved. What a text keeps depends on that text alone.

        Raises
        ------
        ShapeError
            Not one word, or None, for each vector; a text without a vector; NaN or infinity.
        """
        checked = check_multi_vector(embeddings, what="embeddings")
        before = np.diff(checked.offsets)
        _check(words, before)
        places, sizes, dropped = list[NDArray[np.int64]](), [0], list[int]()
        names = list[list[str | None]]()
        for row in words:
            seats = dict[str | int, int]()
            own = [seats.setdefault(i if word is None else word, len(seats)) for i, word in enumerate(row)]
            kept = np.array([isinstance(word, int) or self._keeps(word) for word in seats], dtype=np.bool_)
            if not kept.any():
                kept[:] = True
            seat = np.where(kept, sizes[-1] + np.cumsum(kept) - 1, -1)
            places.append(seat[own])
            sizes.append(sizes[-1] + int(kept.sum()))
            dropped.append(int((~kept).sum()))
            names.append([None if isinstance(word, int) else word for word, k in zip(seats, kept, strict=True) if k])
        offsets, left_out = np.array(sizes, dtype=np.int64), np.array(dropped, dtype=np.int64)
        vectors = _means(checked.vectors, np.concatenate([offsets[:0], *places]), sizes[-1])
        if self.normalize:
            lengths = np.sqrt(np.einsum("wd,wd->w", vectors, vectors))
            lengths[lengths == 0] = 1
            vectors /= lengths[:, None]
        return Reduced(MultiVector(vectors, offsets), before - np.diff(offsets) - left_out, left_out, names)

    def _keeps(self, word: str) -> bool:
        return word not in self.stopwords and (self.punctuation or any(map(str.isalnum, word)))


def whole_words(text: str, spans: Sequence[tuple[int, int]]) -> list[str | None]:
    """The word of a text that each of its tokens is a part of, in lower case and Unicode form NFKC.

    A word is a run of letters, digits, underscores and combining marks around the token; in scripts without spaces,
    and for punctuation, it is the token itself.

    Parameters
    ----------
    text
        What was tokenised.
    spans
        The characters ``[start, end)`` of each token, as a tokenizer's offsets give them; empty for tokens that the
        tokenizer has added, whose word is None.

    Examples
    --------
    >>> whole_words("Reranking, twice", [(0, 0), (0, 2), (2, 9), (9, 10), (11, 16)])
    [None, 'reranking', 'reranking', ',', 'twice']
    """
    return [_word(text, start, end) for start, end in spans]


def _word(text: str, start: int, end: int) -> str | None:
    while start < end and text[start].isspace():  # some tokenizers count the space before a word to it
        start += 1
    if start >= end:
        return None
    if kind_of(text[start]) == "spaced":
        end = start
        while start > 0 and kind_of(text[start - 1]) == "spaced":
            start -= 1
        while end < len(text) and kind_of(text[end]) == "spaced":
            end += 1
    return _normal(text[start:end])


@lru_cache(maxsize=1 << 16)
def kind_of(character: str) -> Literal["spaced", "unspaced", "sign"]:
    """Whether words with this character have spaces around them, or it is in no word."""
    if not (character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"):
        return "sign"
    return "unspaced" if unicodedata.name(character, "").startswith(_UNSPACED) else "spaced"


def _normal(word: str) -> str:
    return unicodedata.normalize("NFKC", word).lower()


def _check(words: Sequence[Sequence[object]], counts: NDArray[np.int64]) -> None:
    if len(words) != len(counts):
        raise ShapeError(f"There are words of {len(words)} texts, and {len(counts)} texts.", "Give one row for each.")
    for i, (row, count) in enumerate(zip(words, counts.tolist(), strict=True)):
        if isinstance(row, str) or len(row) != count:
            problem = f"words[{i}] has {len(row)} words for {count} vectors."
            raise ShapeError(problem, "Give a list with one word, or None, for each vector.")


def _means(vectors: Dense, places: NDArray[np.int64], count: int) -> Dense:
    """The mean of the vectors for each place, ``(count, d)``; -1 is left out."""
    kept = np.flatnonzero(places >= 0)
    kept = kept[np.argsort(places[kept], kind="stable")]
    starts = np.searchsorted(places[kept], np.arange(count))
    sums: Dense = np.add.reduceat(vectors[kept], starts, axis=0) if count else vectors[:0]
    sums /= np.bincount(places[kept], minlength=count).astype(np.float32)[:, None]
    return sums
