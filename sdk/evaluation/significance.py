"""Whether a difference between two systems is real, or luck with these queries.

Shapes: q queries, c columns of paired values, b resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reperio.errors import ConfigurationError, ShapeError

RESAMPLES = 10_000
"""Sign flips of the test and resamples of the bootstrap."""

_BLOCK = 1 << 21
"""Most numbers drawn at once: 16 MB, however many queries there are."""


def sign_flip_test(differences: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Two-sided p of Fisher's paired randomisation test, on the mean of per-query differences.

    If the systems were alike, each difference could as well have had the other sign. p is the share of all
    2^q flips whose mean is at least as far from 0 as the one observed: counted one by one where there are no
    more than ``resamples``, else estimated from that many as ``(hits + 1) / (resamples + 1)``, which is never
    too small (Phipson & Smyth 2010). It depends neither on the order of queries nor on which system is first.

    Parameters
    ----------
    differences
        Of the two systems on each query, ``(q,)``.
    resamples
        Most flips to try.
    seed
        Of the random flips.

    References
    ----------
    Fisher, The Design of Experiments, 1935.
    Smucker, Allan & Carterette, A Comparison of Statistical Significance Tests for IR Evaluation, CIKM 2007.
    """
    values = _finite(differences, "differences", ndim=1)
    _check_resamples(resamples)
    # A zero has no sign. Sizes in sorted order make the outcome the same for any order of the queries.
    sizes = np.sort(np.abs(values[values != 0]))
    if not len(sizes):
        return 1.0
    total = math.fsum(sizes)
    observed = abs(math.fsum(values)) - 1e-10 * total  # the same sum in another order must not look smaller
    exact = len(sizes) < 63 and 2 ** len(sizes) <= resamples
    hits = count = 0
    for negative in _all_signs(len(sizes)) if exact else _random_signs(len(sizes), resamples, seed):
        hits += int(np.count_nonzero(np.abs(total - 2 * (negative @ sizes)) >= observed))
        count += len(negative)
    return hits / count if exact else (hits + 1) / (count + 1)


def _all_signs(m: int) -> Iterator[NDArray[np.uint8]]:
    rows = max(1, _BLOCK // m)
    for start in range(0, 2**m, rows):
        codes = np.arange(start, min(start + rows, 2**m))
        yield (codes[:, None] >> np.arange(m) & 1).astype(np.uint8)


def _random_signs(m: int, resamples: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // m)
    for start in range(0, resamples, rows):
        packed = rng.integers(0, 256, size=(min(rows, resamples - start), -(-m // 8)), dtype=np.uint8)
        yield np.unpackbits(packed, axis=1, count=m)


def bootstrap_means(values: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Means over queries drawn with replacement, ``(b, c)``: the same draw for every column.

    Quantiles of a column are a percentile interval of its mean; quantiles of the difference of two columns
    are one of the paired difference.

    Parameters
    ----------
    values
        One row for each query, ``(q, c)``.
    resamples
        b.
    seed
        Of the draws.

    References
    ----------
    Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    Sakai, Evaluating Evaluation Metrics based on the Bootstrap, SIGIR 2006.
    """
    matrix = _finite(values, "values", ndim=2)
    _check_resamples(resamples)
    q, c = matrix.shape
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, c))
    rows = max(1, _BLOCK // q)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(0, q, size=(size, q)) + np.arange(size)[:, None] * q
        times = np.bincount(drawn.ravel(), minlength=size * q).reshape(size, q)
        means[start : start + size] = times @ matrix / q
    return means


def interval(samples: NDArray[np.float64], *, level: float = 0.95) -> NDArray[np.float64]:
    """The central range that holds ``level`` of the samples along the first axis, ``(..., 2)``."""
    tail = (1 - level) / 2
    return np.moveaxis(np.quantile(samples, [tail, 1 - tail], axis=0), 0, -1)


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Adjusted p of m tests, ``(m,)``: of those below 0.05, not one is luck in at least 95 % of experiments.

    References
    ----------
    Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics, 1979.
    """
    raw = _finite(p, "p", ndim=1, least=0)
    order = np.argsort(raw, kind="stable")
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(np.maximum.accumulate((len(raw) - np.arange(len(raw))) * raw[order]), 1.0)
    return adjusted


def _finite(values: ArrayLike, what: str, *, ndim: int, least: int = 1) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or len(array) < least or not np.isfinite(array).all():
        problem = f"{what} has shape {array.shape}, or holds NaN or infinity."
        raise ShapeError(problem, f"Give {ndim} dimension{'s' if ndim > 1 else ''} of finite numbers, one row a query.")
    return array


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ConfigurationError(f"resamples = {resamples} is less than 1.", f"Use {RESAMPLES:,}.")
