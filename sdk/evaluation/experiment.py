"""Several systems on the same queries."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from reperio.errors import CompositionError, ConfigurationError, DuplicateId, InvalidInput
from reperio.evaluation.measures import MEASURES, measure_run, parse_measures
from reperio.evaluation.qrels import Qrels
from reperio.evaluation.report import Comparison, Report
from reperio.evaluation.run import Run, Scored
from reperio.evaluation.significance import bootstrap_means, holm, interval, sign_flip_test
from reperio.protocols import Stage
from reperio.types import Query, Ranking

_BATCH = 256
"""Queries asked at once: what bounds the documents held in memory."""


def evaluate(
    systems: Mapping[str, Stage[Query, Ranking] | Run],
    queries: Sequence[Query],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    measures: Sequence[str] = MEASURES,
    baseline: str | None = None,
    seed: int = 0,
    k: int = 100,
) -> Report:
    """Run systems over judged queries, measure each, and compare all with the baseline.

    Every query counts in every mean: one that found nothing counts 0. Means have 95 % bootstrap intervals;
    differences from the baseline have one too, and the p of a paired sign-flip test, corrected after Holm for
    the number of systems and measures.

    Parameters
    ----------
    systems
        By name: retrievers and pipelines (any stage from `Query` to `Ranking`), and runs made before.
    queries
        What is asked; all judged. Other judgments are left aside, so a part of the queries will do.
    qrels
        Query id → document id → grade.
    measures
        In the words of ``ir_measures``: ``nDCG@10``, ``RR@10``, ``AP(rel=2)@100``.
    baseline
        The system that the others are compared with; the first where None.
    seed
        Of the test and of the bootstrap.
    k
        How many documents of each ranking are read.

    Raises
    ------
    InvalidInput
        No systems or queries; an unjudged query; a run over other queries; what `Run` refuses.
    ConfigurationError
        Naming the measure, ``k`` or the baseline.
    CompositionError
        If a system does not return one ranking for each query, in order.
    MissingDependency
        Without the extra ``evaluation``.
    """
    if k <= 0:
        raise ConfigurationError(f"k = {k} is less than 1.", "Use 100.")
    parsed = parse_measures(measures, k=k)
    judged = qrels if isinstance(qrels, Qrels) else Qrels(qrels)
    names, ids = _check(systems, queries, judged)
    reference = names[0] if baseline is None else baseline
    if reference not in systems:
        raise ConfigurationError(f"The baseline {reference!r} is no system.", f"Choose from: {', '.join(names)}.")
    for name, system in systems.items():
        if isinstance(system, Run):
            _check_same_queries(name, system, ids)
    runs = [_answer(name, system, queries, k) for name, system in systems.items()]
    values = np.stack([measure_run(run, judged, ids, parsed) for run in runs])
    depth = max((measure.params.get("cutoff", 0) for measure in parsed.values()), default=0)
    means = bootstrap_means(values.reshape(-1, len(ids)).T, seed=seed).reshape(-1, *values.shape[:2])
    return Report(
        systems=names,
        measures=tuple(parsed),
        queries=ids,
        values=values,
        intervals=interval(means),
        comparisons=_compare(names, tuple(parsed), values, means, names.index(reference), seed=seed),
        baseline=reference if len(names) > 1 else None,
        seconds=tuple(run.seconds for run in runs),
        notes=tuple(_notes(runs, judged, ids, depth)),
    )


def _check(
    systems: Mapping[str, Stage[Query, Ranking] | Run], queries: Sequence[Query], qrels: Qrels
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if not systems:
        raise InvalidInput("There is no system to evaluate.", "Give one: {'bm25': retriever}.")
    if not queries:
        raise InvalidInput("There is no query to ask.", "Give at least one.")
    for name, system in systems.items():
        if not isinstance(system, Run) and not callable(system):
            raise InvalidInput(f"System {name!r} is a {type(system).__name__}.", "Give a stage from Query to Ranking.")
    ids = sorted(query.id for query in queries)
    repeated = next((a for a, b in pairwise(ids) if a == b), None)
    if repeated is not None:
        raise DuplicateId(f"Two queries have the id {repeated!r}.", "Give each query an id of its own.")
    unjudged = [query for query in ids if not qrels.get(query)]
    if unjudged:
        problem = f"{len(unjudged)} of {len(ids)} queries are not judged: {', '.join(unjudged[:5])}."
        raise InvalidInput(problem, "Leave them out; Beir.queries() gives judged ones only.")
    return tuple(systems), tuple(ids)


def _check_same_queries(name: str, run: Run, ids: Sequence[str]) -> None:
    extra, missing = sorted(run.keys() - set(ids)), sorted(set(ids) - run.keys())
    if extra:
        raise InvalidInput(f"Run {name!r} answers {len(extra)} other queries, as {extra[0]!r}.", "Evaluate like runs.")
    if missing:
        problem = f"Run {name!r} does not say what it found for {len(missing)} queries, as {missing[0]!r}."
        raise InvalidInput(problem, "If it found nothing: Run.read_trec(path, queries=queries).")


def _answer(name: str, system: Stage[Query, Ranking] | Run, queries: Sequence[Query], k: int) -> Run:
    if isinstance(system, Run):
        return Run(name, system.top(k).results, system.seconds)
    results: dict[str, Sequence[Scored]] = {}
    seconds = 0.0
    for start in range(0, len(queries), _BATCH):
        batch = queries[start : start + _BATCH]
        began = time.perf_counter()
        rankings = system(batch)
        found = Run.from_rankings(name, rankings, k=k)  # a ranking may be lazy: reading it is part of the time
        seconds += time.perf_counter() - began
        if [query.id for query in batch] != list(found):
            problem = f"System {name!r} was asked {len(batch)} queries and returned {len(found)} rankings"
            raise CompositionError(f"{problem}, not one for each in order.", "Return as many, in the same order.")
        results |= found
    return Run(name, results, seconds)


def _compare(
    names: tuple[str, ...],
    measures: tuple[str, ...],
    values: NDArray[np.float64],
    means: NDArray[np.float64],
    base: int,
    *,
    seed: int,
) -> tuple[Comparison, ...]:
    pairs = [(s, m) for s in range(len(names)) if s != base for m in range(len(measures))]
    raw = [sign_flip_test(values[s, m] - values[base, m], seed=seed) for s, m in pairs]
    return tuple(
        Comparison(
            system=names[s],
            measure=measures[m],
            difference=float((values[s, m] - values[base, m]).mean()),
            interval=(float(low), float(high)),
            p=p,
            p_holm=float(corrected),
        )
        for (s, m), p, corrected in zip(pairs, raw, holm(raw), strict=True)
        for low, high in [interval(means[:, s, m] - means[:, base, m])]
    )


def _notes(runs: Sequence[Run], qrels: Qrels, ids: Sequence[str], depth: int) -> Iterator[str]:
    """What distorts the figures, if anything does."""
    absent = {document for query in ids for document, grade in qrels[query].items() if grade > 0} & qrels.absent
    hopeless = [query for query in ids if all(grade <= 0 for grade in qrels[query].values())]
    shallow = {run.name: most for run in runs if (most := max(map(len, run.values()))) < depth}
    if absent:
        yield f"Relevant documents that are not in the corpus, counted as missed: {_listed(sorted(absent))}."
    if hopeless:
        yield f"Queries without a relevant document, counted as 0: {_listed(hopeless)}."
    if shallow:
        found = ", ".join(f"{most} from {name}" for name, most in shallow.items())
        yield f"Measures look at up to {depth} documents; most ever returned: {found}."


def _listed(ids: Sequence[str]) -> str:
    return f"{len(ids)} ({', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''})"
