"""Text → terms: what counts as one word for a lexical index.

>>> Analyzer("english").tokenize("The merging of sorted iterables, v2")
['merg', 'sort', 'iter', 'v2']
>>> Analyzer("english", identifiers=True).tokenize("OrderedDict.move_to_end")
['ordereddict', 'order', 'dict', 'move_to_end', 'move', 'end']
"""

from __future__ import annotations

import hashlib
import re
import threading
import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

from reperio import extras
from reperio.errors import ConfigurationError, InvalidInput

__all__ = ["DROPPED", "KEYS", "VERSION", "Analyzer", "stop_words", "term_key"]

VERSION = 1
"""Raised whenever the same text would give other terms."""

KEYS = 2**63 - 1
"""How many keys there are: at ten million terms, two share one with a chance of 5 in a million."""

DROPPED = -1
"""The key of a word that is not indexed."""

_LUCENE_ENGLISH = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they "
    "this to was will with"
)
# Snowball has two algorithms for some languages.
_LANGUAGE = {"porter": "english", "dutch_porter": "dutch"}

# Letters, digits and the underscore in lower case; a space for the rest: what \w+ finds, four times as fast.
_ASCII_WORDS = "".join(c.lower() if c.isalnum() or c == "_" else " " for c in map(chr, range(128)))

# Scripts written without spaces between words, and Hangul, whose words carry particles.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u30ff"
    "\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+")
_RUN = re.compile(f"[{_UNSPACED}]+|[^{_UNSPACED}]+")
_PLAIN_WORD = re.compile(r"\w+")
_IDENTIFIER_PART = re.compile("[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")


def term_key(term: str) -> int:
    """A term's column, in ``[0, KEYS)``: its 8-byte BLAKE2b digest modulo ``KEYS``."""
    return int.from_bytes(hashlib.blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest()) % KEYS


def stop_words(language: str) -> frozenset[str]:
    """The words that carry no meaning of their own.

    English has the 33 words of Lucene; any other language has the list of the package ``stop-words``.

    Raises
    ------
    ConfigurationError
        If there is no list for ``language``.
    MissingDependency
        If the package with the lists is not installed.
    """
    language = _LANGUAGE.get(language, language)
    if language == "english":
        return frozenset(_LUCENE_ENGLISH.split())
    lists = extras.load("stop_words", extra="languages")
    if language not in lists.AVAILABLE_LANGUAGES:
        known = ", ".join(sorted(lists.AVAILABLE_LANGUAGES))
        problem = f"There is no list of stop words for {language!r} (there is for {known})."
        raise ConfigurationError(problem, "Pass stopwords=False, or the words themselves.")
    return frozenset(_normal(word) for word in lists.get_stop_words(language))


class Analyzer:
    """Cuts text into words, drops stop words, stems the rest.

    A word is a run of letters, digits, underscores and combining marks, at least ``min_length`` long, in lower
    case: on ASCII text exactly the pattern ``\\w\\w+`` that scikit-learn and bm25s use. Text beyond ASCII is
    first brought to Unicode form NFKC, so that ``ﬁ`` is ``fi`` and accents are composed. Runs of scripts
    without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese; Korean too) become overlapping pairs of
    characters; a single character stays a word.

    Parameters
    ----------
    language
        Algorithm of the Snowball stemmer: ``"english"``, ``"german"``, …; see `Analyzer.languages`. With
        ``stem=False``, any name.
    stopwords
        True for the language's list (see `stop_words`), False for none, or the words themselves.
    stem
        Whether to reduce words to stems.
    min_length
        Shortest word kept, in characters.
    identifiers
        Whether a programmer's name (``snake_case``, ``CamelCase``, ``sha256``) is indexed by its parts too.

    Raises
    ------
    ConfigurationError
        For a language without a stemmer or without a list of stop words.
    MissingDependency
        If the list needs a package that is not installed.
    """

    CACHE_SIZE = 200_000

    def __init__(
        self,
        language: str = "english",
        *,
        stopwords: bool | Sequence[str] = True,
        stem: bool = True,
        min_length: int = 2,
        identifiers: bool = False,
    ) -> None:
        if isinstance(stopwords, str):
            raise InvalidInput(f"stopwords is the text {stopwords!r}.", "Pass True, False or a list of words.")
        if min_length < 1:
            raise ConfigurationError(f"min_length is {min_length}.", "Use 1 or more; 2 is usual.")
        if stem and language not in self.languages():
            known = ", ".join(self.languages())
            raise ConfigurationError(f"No stemmer is named {language!r}.", f"Use one of {known}; or stem=False.")
        self.language = language
        self.stem = stem
        self.min_length = min_length
        self.identifiers = identifiers
        if isinstance(stopwords, bool):
            self.stopwords = stop_words(language) if stopwords else frozenset[str]()
        else:
            self.stopwords = frozenset(_normal(word) for word in stopwords)
        self._stemmer = _Stemmer(language) if stem else None
        self._turkish = language == "turkish"
        self._keys = _Keys(self)

    @staticmethod
    def languages() -> tuple[str, ...]:
        """Every language with a stemmer."""
        return _algorithms()

    def tokenize(self, text: str) -> list[str]:
        """The terms of ``text``, in order, repeated as they occur."""
        return [term for word in self.words(text) if (term := self.term(word)) is not None]

    def keys(self, text: str) -> list[int]:
        """`term_key` of each word of ``text``, in order; ``DROPPED`` for one that is not indexed."""
        return list(map(self._keys.__getitem__, self.words(text)))

    def words(self, text: str) -> list[str]:
        """Every word of ``text`` in lower case, those that are not indexed among them."""
        if self.identifiers:
            return self._identifiers(text)
        if text.isascii() and not self._turkish:
            return text.translate(_ASCII_WORDS).split()
        return _split(_normal(text, turkish=self._turkish))

    def term(self, word: str) -> str | None:
        """What ``word`` is indexed as; None if it is a stop word or too short."""
        if word in self.stopwords or (len(word) < self.min_length and not _UNSPACED_RUN.match(word)):
            return None
        return word if self._stemmer is None else self._stemmer(word) or word

    def _identifiers(self, text: str) -> list[str]:
        words: list[str] = []
        for name in _split(text if text.isascii() else unicodedata.normalize("NFKC", text)):
            words.append(_normal(name, turkish=self._turkish))
            parts: list[str] = _IDENTIFIER_PART.findall(name) if name.isascii() else []
            if len(parts) > 1:
                words += map(str.lower, parts)
        return words


class _Keys(dict[str, int]):
    """Word → key, filled when asked; emptied when full, so that it stays small whatever is read."""

    def __init__(self, analyzer: Analyzer) -> None:
        super().__init__()
        self.analyzer = analyzer

    def __missing__(self, word: str) -> int:
        term = self.analyzer.term(word)
        key = DROPPED if term is None else term_key(term)
        if len(self) >= self.analyzer.CACHE_SIZE:
            self.clear()
        self[word] = key
        return key


class _Stemmer:
    """A Snowball stemmer that several threads may share."""

    def __init__(self, algorithm: str) -> None:
        self._stemmer: Any = import_module("Stemmer").Stemmer(algorithm, 0)
        self._lock = threading.Lock()

    def __call__(self, word: str) -> str:
        with self._lock:
            stem: str = self._stemmer.stemWord(word)
        return stem


@cache
def _algorithms() -> tuple[str, ...]:
    return tuple(import_module("Stemmer").algorithms())


@cache
def _marked_word() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What finds a combining mark or a joiner, which Python's ``\\w`` leaves out, and what finds a word with them."""
    points = [p for p in range(0x300, 0x10000) if unicodedata.category(chr(p))[0] == "M"] + [0x200C, 0x200D]
    marks = "".join(map(chr, points))
    return re.compile(f"[{marks}]"), re.compile(rf"\w[\w{marks}]*")


def _split(text: str) -> list[str]:
    """Words as they stand in ``text``; runs of scripts without spaces as pairs of characters."""
    mark, marked_word = _marked_word()
    found: list[str] = (marked_word if mark.search(text) else _PLAIN_WORD).findall(text)
    if not _UNSPACED_RUN.search(text):
        return found
    return [piece for word in found for run in _RUN.findall(word) for piece in _pieces(run)]


def _pieces(run: str) -> list[str]:
    if not _UNSPACED_RUN.match(run):
        return [run]
    return [run[i : i + 2] for i in range(len(run) - 1)] or [run]


def _normal(text: str, *, turkish: bool = False) -> str:
    """NFKC in lower case; a dotted capital I becomes i, and in Turkish a plain one becomes dotless."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).replace("İ", "i")
    return (text.replace("I", "ı") if turkish else text).lower()
