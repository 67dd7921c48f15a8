"""Which terms of a lexical index each token of a language model is part of."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from reperio.encoders.analysis import DROPPED, Analyzer
from reperio.encoders.wholewords import word_extent

__all__ = ["Labels", "token_terms"]

Labels = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Numbers of tokens, ascending, and beside each the key of a term that it is part of."""


def token_terms(text: str, spans: Iterable[tuple[int, int]], analyzer: Analyzer) -> Labels:
    """The terms of each token: those that the analyzer makes of the whole word around it.

    All tokens of a word share its terms; those of stop words have none. In scripts without spaces, whose terms are
    pairs of characters, a token has the pairs that its characters are part of.

    Parameters
    ----------
    text
        What was tokenised.
    spans
        The characters ``[start, end)`` of each token; empty for one that is not the text's.

    Returns
    -------
    tuple
        Numbers of tokens and keys of terms, ``(m,)`` each; a token may stand in several pairs, or in none.
    """
    tokens, keys = list[int](), list[int]()
    word, terms = (0, 0), list[int]()
    for number, (start, end) in enumerate(spans):
        if start >= end:
            continue
        if not word[0] <= start < end <= word[1]:
            word = word_extent(text, start, end)
            terms = [key for key in dict.fromkeys(_keys(text, *word, analyzer)) if key != DROPPED]
        tokens += [number] * len(terms)
        keys += terms
    return np.array(tokens, dtype=np.int64), np.array(keys, dtype=np.int64)


def _keys(text: str, start: int, end: int, analyzer: Analyzer) -> list[int]:
    if analyzer.pairs(text[start:end]):
        before, after = text[max(0, start - 1) : start], text[end : end + 1]
        start -= analyzer.pairs(before)
        end += analyzer.pairs(after)
    return analyzer.keys(text[start:end])
