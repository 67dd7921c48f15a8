"""How much a term counts: the variants of BM25, as two published libraries compute them.

With tf the term's frequency in a row, df the number of rows that hold it, N the number of rows, and
L = 1 - b + b * length / average length:

========== ================================================ =====================================================
variant    idf                                              weight of a term in a row
========== ================================================ =====================================================
lucene     log(1 + (N - df + 0.5) / (df + 0.5))             idf * tf / (tf + k1 L)
robertson  max(0, log((N - df + 0.5) / (df + 0.5)))         idf * tf / (tf + k1 L)
atire      log(N / df)                                      idf * tf (k1 + 1) / (tf + k1 L)
okapi      log((N - df + 0.5) / (df + 0.5)); if negative,   idf * tf (k1 + 1) / (tf + k1 L)
           epsilon * the mean idf of all terms
bm25l      log((N + 1) / (df + 0.5))                        idf * tf (k1 + 1) (c + delta) / (k1 + c + delta),
                                                            c = tf / L
bm25+      log((N + 1) / df)                                idf * (delta + tf (k1 + 1) / (tf + k1 L)),
                                                            also where tf = 0
========== ================================================ =====================================================

A column that holds weights already, as learned-sparse encoders make, has the weight that it holds, and no part in
lengths: one index sums both kinds.

lucene, robertson and atire equal bm25s; okapi, bm25l and bm25+ equal rank_bm25. bm25s has the same bm25+;
its bm25l lacks the factor tf and gives rows without the term the weight of tf = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray

from reperio.errors import ConfigurationError

__all__ = ["ALL", "Formula", "Variant", "Weighting"]

Variant: TypeAlias = Literal["lucene", "robertson", "atire", "okapi", "bm25l", "bm25+"]

Floats: TypeAlias = NDArray[np.float64]

ALL: Final = 2**63 - 1
"""As `Weighting.weights_below`: no column holds counts."""

_DELTA: Final[dict[str, float]] = {"bm25l": 0.5, "bm25+": 1.0}
_EPSILON: Final = 0.25


class Formula(NamedTuple):
    """A count's part of its term's weight: ``tf**power * (alpha tf + beta L) / (tf + gamma L)``."""

    alpha: float
    beta: float
    gamma: float
    power: int


@dataclass(frozen=True, slots=True)
class Weighting:
    """One variant with its parameters, every one checked; see the module for the formulas.

    Columns below ``weights_below`` hold weights, the others counts.

    Raises
    ------
    ConfigurationError
        Unknown variant; a parameter out of range, or one that the variant does not have.
    """

    variant: Variant
    k1: float
    b: float
    delta: float | None = None
    epsilon: float | None = None
    weights_below: int = 0

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            known = ", ".join(get_args(Variant))
            raise ConfigurationError(f"BM25 has no variant {self.variant!r}.", f"Use one of {known}.")
        self._default("delta", _DELTA.get(self.variant))
        self._default("epsilon", _EPSILON if self.variant == "okapi" else None)
        for name, value in {"k1": self.k1, "b": self.b, **self.parameters}.items():
            number = isinstance(cast("object", value), Real) and math.isfinite(value)
            if not (number and value >= 0 and (name != "b" or value <= 1)):
                fix = "Use a value from 0 to 1." if name == "b" else "Use a finite value of 0 or more."
                raise ConfigurationError(f"{name} is {value!r} (BM25, variant {self.variant}).", fix)

    def _default(self, name: str, value: float | None) -> None:
        given = cast("float | None", getattr(self, name))
        if given is not None and value is None:
            raise ConfigurationError(f"The variant {self.variant!r} has no {name}.", f"Leave {name} out.")
        if given is None:
            object.__setattr__(self, name, value)

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters this variant has, by name."""
        named = {"k1": self.k1, "b": self.b, "delta": self.delta, "epsilon": self.epsilon}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def absent(self) -> float:
        """What a term that a row lacks counts, as a factor of its idf."""
        return self.delta or 0.0 if self.variant == "bm25+" else 0.0

    def idf(self, df: NDArray[np.int64], rows: int, *, mean: float = 0.0) -> Floats:
        """Weight of terms that ``df`` of ``rows`` hold, df >= 1; ``mean`` is `mean_idf`, for okapi only."""
        half = df + 0.5
        odds: Floats = (rows + 1 - half) / half
        if self.variant == "lucene":
            return np.log1p(odds)
        if self.variant == "robertson":
            return np.log(np.maximum(odds, 1.0))
        if self.variant == "atire":
            return np.log(rows / df)
        if self.variant == "bm25l":
            return np.log((rows + 1) / half)
        if self.variant == "bm25+":
            return np.log((rows + 1) / df)
        raw = np.log(odds)
        return np.where(raw < 0, (self.epsilon or 0.0) * mean, raw)

    @staticmethod
    def mean_idf(df: NDArray[np.int64], rows: int) -> float:
        """Mean over all terms of okapi's idf before its floor."""
        return float(np.log((rows - df + 0.5) / (df + 0.5)).mean()) if len(df) else 0.0

    def relative(self, lengths: NDArray[np.float32], average: float) -> Floats:
        """L of each row."""
        out = lengths.astype(np.float64)
        out *= self.b / (average or 1.0)
        out += 1 - self.b
        return out

    @property
    def formula(self) -> Formula:
        """What `saturate` computes, for compiled code."""
        if self.variant == "bm25l":
            delta = self.delta or 0.0
            return Formula(self.k1 + 1, (self.k1 + 1) * delta, self.k1 + delta, 1)
        return Formula(1.0 if self.variant in ("lucene", "robertson") else self.k1 + 1, 0.0, self.k1, 0)

    def saturate(self, tf: NDArray[Any], relative: Floats) -> Floats:
        """What a term that a row holds counts, as a factor of its idf, without `absent`."""
        alpha, beta, gamma, power = self.formula
        counts = tf.astype(np.float64)
        out: Floats = gamma * relative
        out += counts
        np.divide(alpha * counts + beta * relative if beta else alpha * counts, out, out=out)
        return out * counts if power else out

    def impacts(self, values: NDArray[Any], relative: Floats, columns: NDArray[np.int64]) -> Floats:
        """What each posting counts, as a factor of its term's weight; one value, L and column each."""
        if self.weights_below >= ALL:
            return values.astype(np.float64)
        out = self.saturate(values, relative)
        if self.weights_below:
            given = columns < self.weights_below
            out[given] = values[given]
        return out
