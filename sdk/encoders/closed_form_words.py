"""Which terms of a lexical index each token of a language model is part of."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from reperio.encoders.analysis import DROPPED, Analyzer
from reperio.encoders.wholewords import kind_of

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
    around, terms = (0, 0), list[int]()
    for number, (start, end) in enumerate(spans):
        if start >= end:
            continue
        if not around[0] <= start < end <= around[1] or kind_of(text[start]) == "unspaced":
            around = _around(text, start, end)
            terms = [key for key in dict.fromkeys(analyzer.keys(text[slice(*around)])) if key != DROPPED]
        tokens += [number] * len(terms)
        keys += terms
    return np.array(tokens, dtype=np.int64), np.array(keys, dtype=np.int64)


def _around(text: str, start: int, end: int) -> tuple[int, int]:
    """The whole words around a token; of a script without spaces, one character more on either side."""
    first, last = kind_of(text[start]), kind_of(text[end - 1])
    while start > 0 and first != "sign" and kind_of(text[start - 1]) == first:
        start -= 1
        if first == "unspaced":
            break
    while end < len(text) and last != "sign" and kind_of(text[end]) == last:
        end += 1
        if last == "unspaced":
            break
    return start, end
