"""Text → how often each term occurs: the input of a lexical index."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from reperio import meter
from reperio.embeddings import Sparse
from reperio.encoders.analysis import DROPPED, KEYS, VERSION, Analyzer
from reperio.errors import EmptyText, InvalidInput
from reperio.protocols import Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["BM25Encoder"]


class BM25Encoder:
    """Counts the terms of each text.

    A row holds the term frequencies; the weights of BM25 are the index's, which knows the collection. A term's
    column is a hash of the term, so there is no vocabulary to keep and a row depends on its own text only.
    Queries and documents are encoded alike.

    Parameters
    ----------
    language, stopwords, stem, min_length, identifiers
        See `reperio.encoders.analysis.Analyzer`.

    Raises
    ------
    ConfigurationError
        For a language without a stemmer or without a list of stop words.
    MissingDependency
        If the list needs a package that is not installed.

    Examples
    --------
    >>> encoded = BM25Encoder().encode_document(["Merge sorted inputs; merging is lazy.", "the"])
    >>> encoded.embeddings.row(0)[1].tolist(), len(encoded.embeddings.row(1)[1])
    ([2.0, 1.0, 1.0, 1.0], 0)
    """

    weights_below = 0  # every column holds counts

    def __init__(
        self,
        language: str = "english",
        *,
        stopwords: bool | Sequence[str] = True,
        stem: bool = True,
        min_length: int = 2,
        identifiers: bool = False,
    ) -> None:
        self.analyzer = Analyzer(
            language, stopwords=stopwords, stem=stem, min_length=min_length, identifiers=identifiers
        )
        self._stopwords = stopwords if isinstance(stopwords, bool) else list(stopwords)

    @property
    def spec(self) -> Spec:
        """How to build this encoder again."""
        return {
            "type": "BM25Encoder",
            "language": self.analyzer.language,
            "stopwords": self._stopwords,
            "stem": self.analyzer.stem,
            "min_length": self.analyzer.min_length,
            "identifiers": self.analyzer.identifiers,
        }

    @property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two rows to compare: the language, the stemmer, the stop words, the hash.

        A release of Snowball may stem a word anew; that is not told here, since most releases change few words.
        """
        analyzer = self.analyzer
        return Fingerprint.make(
            "sparse",
            f"bm25-{analyzer.language}",
            KEYS,
            analyzer=VERSION,
            hash="blake2b-64 mod 2**63-1",
            identifiers=analyzer.identifiers,
            language=analyzer.language,
            min_length=analyzer.min_length,
            stemmer=f"snowball-{analyzer.language}" if analyzer.stem else None,
            stopwords=_digest(analyzer.stopwords),
        )

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        """Term counts of each query; a repeated word weighs as often as it occurs."""
        return self._encode(texts)

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        """Term counts of each document.

        Returns
        -------
        Encoded[Sparse]
            ``embeddings``: V = 2**63 - 1; a text without an indexed term has an empty row.
            ``token_counts``: the sum of a row's weights, the length that BM25 normalises by: stop words do not
            count. ``truncated``: never.

        Raises
        ------
        EmptyText
            If a text is empty or blank; names its position.
        """
        return self._encode(texts)

    def terms(self, text: str) -> dict[int, str]:
        """Column → the word of ``text`` that stands there (the first of those with one stem), for explanations."""
        words: dict[int, str] = {}
        for word, key in zip(self.analyzer.words(text), self.analyzer.keys(text), strict=True):
            words.setdefault(key, word)
        words.pop(DROPPED, None)
        return words

    def _encode(self, texts: Sequence[str]) -> Encoded[Sparse]:
        _check(texts)
        starts, columns, counts = [0], list[int](), list[int]()
        for text in texts:
            row = Counter(self.analyzer.keys(text))
            row.pop(DROPPED, None)
            ascending = sorted(row)
            columns += ascending
            counts += map(row.__getitem__, ascending)
            starts.append(len(columns))
        indptr = np.array(starts, dtype=np.int64)
        weights = np.array(counts, dtype=np.float32)
        lengths = np.diff(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])[indptr])
        meter.count("tokens", int(lengths.sum()))
        sparse = Sparse(indptr, np.array(columns, dtype=np.int64), weights, KEYS)
        return Encoded(sparse, lengths, np.zeros(len(texts), dtype=np.bool_))


def _check(texts: Sequence[object]) -> None:
    if isinstance(texts, str):
        raise InvalidInput(f"A batch of texts is wanted, not the one text {texts[:40]!r}.", "Pass [text].")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInput(f"texts[{position}] is a {type(text).__name__}.", "Pass a list of str.")
        if not text or text.isspace():
            raise EmptyText(f"texts[{position}] is {text!r}: there is nothing to encode.", "Drop it.")


def _digest(words: frozenset[str]) -> str:
    return hashlib.blake2b("\n".join(sorted(words)).encode(), digest_size=8).hexdigest()
