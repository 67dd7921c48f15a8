"""A figure of means and intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio.extras import load

# Okabe & Ito: told apart also by those who do not see all colours.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"


def draw(
    systems: Sequence[str], measures: Sequence[str], means: NDArray[np.float64], intervals: NDArray[np.float64]
) -> Any:
    """A ``matplotlib`` figure: one group a measure, one point a system, its interval as a bar.

    It is made without ``pyplot``: no window, no global state, any thread.

    Parameters
    ----------
    systems, measures
        s and m names.
    means
        ``(s, m)``.
    intervals
        ``(s, m, 2)``.

    Raises
    ------
    MissingDependency
        Without the extra ``plot``.
    """
    Figure = load("matplotlib.figure", extra="plot").Figure  # noqa: N806
    figure = Figure(figsize=(1.6 + 1.5 * len(measures), 3.4), layout="constrained")
    axes = figure.subplots()
    step = 0.6 / max(len(systems), 2)
    for s, system in enumerate(systems):
        where = np.arange(len(measures)) + (s - (len(systems) - 1) / 2) * step
        axes.errorbar(
            where,
            means[s],
            # A percentile interval need not hold the mean: the bar then starts at the point.
            yerr=np.maximum([means[s] - intervals[s, :, 0], intervals[s, :, 1] - means[s]], 0),
            fmt=_MARKERS[s % len(_MARKERS)],
            color=_COLOURS[s % len(_COLOURS)],
            markersize=6,
            linewidth=1.6,
            capsize=0,
            label=system,
        )
    axes.set_xticks(range(len(measures)), measures)
    axes.set_xlim(-0.5, len(measures) - 0.5)
    axes.set_ylabel("mean over queries, 95 % interval")
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=min(len(systems), 4), frameon=False)
    return figure
