"""Measures of one run, query by query, through ``ir_measures``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio.errors import ConfigurationError
from reperio.evaluation.run import Run
from reperio.extras import load

MEASURES = ("nDCG@10", "RR@10", "AP@100", "R@100")
"""What is measured where nothing else is asked for."""


def parse_measures(names: Sequence[str], *, k: int) -> dict[str, Any]:
    """Measures of ``ir_measures``, by the names that were given.

    Raises
    ------
    ConfigurationError
        Naming the measure that is unknown, given twice, deeper than ``k``, no mean over queries, or that no
        installed package computes.
    """
    if isinstance(names, str) or not names:
        raise ConfigurationError(f"measures = {names!r} is not a list of names.", f"Give a list: {list(MEASURES)}.")
    ir_measures = load("ir_measures", extra="evaluation")
    measures: dict[str, Any] = {}
    for name in names:
        try:
            measure = ir_measures.parse_measure(name)
            measure.validate_params()
        except (NameError, ValueError, TypeError, KeyError, AssertionError) as error:
            fix = "Write, for example: nDCG@10, RR@10, AP(rel=2)@100, R@100, P@5, Success@1."
            raise ConfigurationError(f"{name!r} is not a measure: {error}.", fix) from error
        if measure in measures.values():
            raise ConfigurationError(f"{name!r} is there twice.", "Give each measure once.")
        if measure.params.get("cutoff", 0) > k:
            raise ConfigurationError(f"{name} looks at more than k = {k} documents.", "Raise k, or lower the cutoff.")
        if not isinstance(measure.aggregator(), ir_measures.measures.MeanAgg):
            raise ConfigurationError(f"{name} is a sum, not a mean over queries.", "Choose another measure.")
        if not ir_measures.DefaultPipeline.supports(measure):
            fix = f"See ir_measures.evaluator([{name}], ()) for the package to install."
            raise ConfigurationError(f"No installed package computes {name}.", fix)
        measures[name] = measure
    return measures


def measure_run(
    run: Run, qrels: Mapping[str, Mapping[str, int]], queries: Sequence[str], measures: Mapping[str, Any]
) -> NDArray[np.float64]:
    """The value of each measure for each query, ``(measures, queries)``; 0 where a query found nothing."""
    ir_measures = load("ir_measures", extra="evaluation")
    judged = {query: dict(qrels[query]) for query in queries}
    # trec_eval sorts by score again, in single precision, and puts the higher id first where scores are equal.
    # Minus the rank is exact and has no ties: what is measured is the order that the system returned.
    ranked = {query: {d: -float(rank) for rank, (d, _) in enumerate(run[query])} for query in queries if run[query]}
    column = {query: i for i, query in enumerate(queries)}
    row = {measure: i for i, measure in enumerate(measures.values())}
    values = np.zeros((len(row), len(column)))
    for metric in ir_measures.iter_calc(list(row), judged, ranked):
        values[row[metric.measure], column[metric.query_id]] = metric.value
    return values
