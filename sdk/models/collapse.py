"""Whether a model's vectors of long texts are all alike, and what a temperature in its attention does about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reperio import extras
from reperio.errors import ConfigurationError, InvalidInput
from reperio.models.language_model import LanguageModel
from reperio.models.pooling import Pooling
from reperio.models.states import Head
from reperio.models.texts import check_batch, read_rows
from reperio.models.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CollapseReport", "length_collapse"]

_AT_ONCE = 256


@dataclass(frozen=True, slots=True, eq=False)
class CollapseReport:
    """Mean cosine between texts of one length. Shapes: b buckets, τ temperatures.

    Attributes
    ----------
    edges
        Least tokens of each bucket, ``(b,)``.
    temperatures
        What was tried, ``(τ,)``.
    cosines
        Mean cosine of all pairs of a bucket, ``(τ, b)``; NaN where it has fewer than 2 texts.
    counts
        Texts in each bucket, ``(b,)``.
    """

    edges: tuple[int, ...]
    temperatures: tuple[float, ...]
    cosines: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def collapse(self) -> NDArray[np.float64]:
        """How much more alike the longest texts are than the shortest, for each temperature, ``(τ,)``."""
        filled = np.flatnonzero(self.counts > 1)
        return self.cosines[:, filled[-1]] - self.cosines[:, filled[0]]

    def table(self) -> str:
        """One line a bucket, one column a temperature."""
        lines = ["tokens   texts  " + "  ".join(f"τ={t:<5}" for t in self.temperatures)]
        for place, (edge, count) in enumerate(zip(self.edges, self.counts, strict=True)):
            lines.append(f"{edge:5}+  {count:6}  " + "  ".join(f"{c:7.3f}" for c in self.cosines[:, place]))
        return "\n".join(lines)

    def plot(self) -> Figure:
        """A ``matplotlib`` figure, one curve a temperature, made without ``pyplot``.

        Raises
        ------
        MissingDependency
            Without the extra ``plot``.
        """
        figure: Figure = extras.load("matplotlib.figure", extra="plot").Figure(figsize=(5, 3.2), layout="constrained")
        axes: Any = figure.subplots()
        for temperature, cosines in zip(self.temperatures, self.cosines, strict=True):
            axes.plot(self.edges, cosines, marker="o", markersize=4, label=f"τ = {temperature}")
        axes.set_xlabel("tokens, at least")
        axes.set_ylabel("mean cosine of two texts")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        return figure


def length_collapse(
    model: LanguageModel,
    texts: Iterable[str],
    *,
    edges: Sequence[int] = (1, 32, 64, 128, 256),
    temperatures: Sequence[float] = (1.0, 0.9, 0.8),
    view: View | str = "own",
    pooling: Head[Any] | None = None,
    max_tokens: int | None = None,
) -> CollapseReport:
    """Mean cosine between the vectors of texts of one length, with and without TempScale [1]_.

    Attention is a low-pass filter, and the more so the longer a text is: vectors of long texts gather in a narrow cone,
    away from those of short ones. A temperature below 1 in its softmax (``View(temperature=0.9)``) works against it.

    Parameters
    ----------
    texts
        Of all lengths; each temperature reads them once, and keeps a sum for each bucket.
    edges
        Least tokens of each bucket, ascending.
    temperatures
        To be tried; 1 is the model as it is.
    view
        How the model is seen otherwise.
    pooling
        Gives ``(b, d)``; the mean where None.
    max_tokens
        Most tokens that are read of a text; what the model reads where None.

    Raises
    ------
    ConfigurationError
        If ``edges`` do not ascend, or there is no temperature.
    InvalidInput
        If fewer than two buckets have two texts: then nothing can be compared; for a bare ``str``, or a text that is
        none, by its position.
    EmptyText
        If a text is blank or has no token; names its position.

    References
    ----------
    .. [1] Length-Induced Embedding Collapse in Transformer-based Models. Zhou et al., 2024.
    """
    check_batch(texts)
    bounds = np.asarray(edges, dtype=np.int64)
    if not len(bounds) or (np.diff(bounds) <= 0).any():
        raise ConfigurationError(f"edges are {list(edges)}.", "Give numbers of tokens that ascend.")
    if not temperatures:
        raise ConfigurationError("There is no temperature.", "Give 1.0 and some below it.")
    asked = View(view) if isinstance(view, str) else view
    views = [model.view(replace(asked, temperature=t)) for t in temperatures]
    head, limits = pooling or Pooling(), [n for n in (max_tokens, model.max_tokens) if n is not None]
    maker = model.rows(limit=min(limits) if limits else None)
    sums: Any = 0
    counts, read = np.zeros(len(bounds), dtype=np.int64), 0
    waiting = iter(texts)
    while some := list(islice(waiting, _AT_ONCE)):
        rows, read = read_rows(maker, some, start=read), read + len(some)
        buckets = np.searchsorted(bounds, [len(row) for row in rows], side="right") - 1
        counts += np.bincount(buckets[buckets >= 0], minlength=len(bounds))
        runs = (seen.run(rows, head, budget=model.batch_tokens) for seen in views)
        sums = sums + np.stack([_sums(run, buckets, len(bounds)) for run in runs])
    if (counts > 1).sum() < 2:
        raise InvalidInput(f"Texts by length are {counts.tolist()}.", "Give two or more in two buckets or more.")
    with np.errstate(invalid="ignore", divide="ignore"):  # a bucket of one text has no pair
        pairs = (counts * (counts - 1)).astype(np.float64)
        cosines = np.where(counts > 1, ((sums**2).sum(axis=2) - counts) / pairs, np.nan)
    return CollapseReport(tuple(bounds.tolist()), tuple(temperatures), cosines, counts)


def _sums(results: Iterable[tuple[Any, Any]], buckets: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Sum of the vectors of each bucket, each of length 1: its square tells the cosines of all pairs, ``(b, d)``."""
    out: Any = 0
    for batch, vectors in results:
        values = vectors.double().cpu().numpy()
        unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        inside = buckets[batch] >= 0
        out = out + np.eye(size)[:, buckets[batch][inside]] @ unit[inside]
    return np.asarray(out, dtype=np.float64)
