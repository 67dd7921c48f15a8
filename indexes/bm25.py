"""BM25 over rows of term counts, exact at every moment."""

from __future__ import annotations

import math
from typing import cast

from reperio.errors import ConfigurationError
from reperio.indexes.inverted import InvertedIndex, TermScore
from reperio.indexes.postings import Precision
from reperio.indexes.weighting import Variant, Weighting
from reperio.protocols import Spec

__all__ = ["BM25Index", "TermScore"]


class BM25Index(InvertedIndex):
    """Ranks rows of term counts by BM25: an inverted index whose impacts follow the rows' statistics.

    `search` returns rows that share a term with the query, and no others; `score` gives the others 0 (under
    ``"bm25+"``, as in rank_bm25, the weight of the absent terms).

    The number of rows, document frequencies and average length are exact after any sequence of additions and
    removals: what is kept of a row is its counts.

    Parameters
    ----------
    variant
        ``"lucene"``, ``"robertson"``, ``"atire"`` (equal to bm25s), ``"okapi"``, ``"bm25l"`` or ``"bm25+"``
        (equal to rank_bm25); formulas in `reperio.indexes.weighting`.
    k1
        How slowly repeated terms saturate; 0 counts presence only.
    b
        How much long rows are marked down, from 0 to 1.
    delta
        Lower bound of a term's weight in long rows: 0.5 for ``"bm25l"`` and 1 for ``"bm25+"`` if not given.
    epsilon
        For ``"okapi"``, 0.25 if not given: a term in more than half of the rows weighs this times the mean idf.
    precision
        Of the posting lists, as in `reperio.indexes.InvertedIndex`.
    weights_below
        Columns below this hold weights, as of a learned-sparse encoder, that are added to the BM25 of the others:
        two signals in one index.

    Raises
    ------
    ConfigurationError
        Unknown variant; a parameter out of range, or one that the variant does not have.

    Notes
    -----
    Robertson and Zaragoza: The Probabilistic Relevance Framework: BM25 and Beyond. FnTIR 2009. Kamphuis,
    de Vries, Boytsov and Lin: Which BM25 Do You Mean? ECIR 2020. Lv and Zhai: Lower-bounding term frequency
    normalization. CIKM 2011.
    """

    def __init__(
        self,
        variant: Variant = "lucene",
        *,
        k1: float = 1.2,
        b: float = 0.75,
        delta: float | None = None,
        epsilon: float | None = None,
        precision: Precision = "uint8",
        weights_below: int = 0,
    ) -> None:
        if not isinstance(cast("object", weights_below), int) or weights_below < 0:
            raise ConfigurationError(f"weights_below is {weights_below!r}.", "Give the first column that holds counts.")
        self._begin(Weighting(variant, k1, b, delta, epsilon, weights_below), precision)

    @property
    def spec(self) -> Spec:
        """How to build this index again, empty."""
        return {
            "type": "BM25Index",
            "variant": self.weighting.variant,
            **self.weighting.parameters,
            "precision": self.precision,
            "weights_below": self.weighting.weights_below,
        }

    @property
    def lowest(self) -> float:
        """0; ``-inf`` for ``"okapi"`` while most terms are in over half of the rows, as only in tiny collections."""
        return -math.inf if self._view.mean_idf < 0 else 0.0
