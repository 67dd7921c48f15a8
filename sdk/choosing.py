"""Which index each signal gets where a collection is moved to, tried on its own embeddings first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from reperio.embeddings import Ids
from reperio.errors import ConfigurationError
from reperio.protocols import Index, Spec
from reperio.registry import build, registered
from reperio.signals import LiveSignal, homeless, metric_of

Given: TypeAlias = Index[Any] | Spec | str
"""An empty index, its specification, the name of its class, or a FAISS factory string."""


def choose(
    signals: Mapping[str, LiveSignal], given: Mapping[str, Given], without: Sequence[str], *, rows: Ids, hosted: bool
) -> dict[str, Spec]:
    """A specification for each signal that is kept.

    Parameters
    ----------
    signals
        Of the source.
    given
        What the caller wants; a signal that is not named keeps the index it has.
    without
        Signals to leave behind.
    rows
        Documents of the source to try an index with.
    hosted
        Whether the target is in a database, where an index can live too.

    Raises
    ------
    ConfigurationError
        Unknown signal, none left, or an index that cannot hold it.
    """
    if isinstance(without, str):
        raise ConfigurationError(f"The signals to leave are the bare string {without!r}.", "Give a list of names.")
    for name in [*given, *without]:
        if name not in signals:
            raise ConfigurationError(f"There is no signal {name!r}.", f"There are: {', '.join(signals)}.")
        if name in given and name in without:
            raise ConfigurationError(f"The signal {name!r} is to be left behind, and has an index.", "Choose one.")
    kept = {name: signal for name, signal in signals.items() if name not in without}
    if not kept:
        raise ConfigurationError("No signal is left.", "A collection has one at least: leave fewer behind.")
    return {name: _spec(signal, given.get(name), rows, hosted=hosted) for name, signal in kept.items()}


def _spec(signal: LiveSignal, given: Given | None, rows: Ids, *, hosted: bool) -> Spec:
    what = f"The index for {signal.name!r}"
    old: Index[Any] = build(signal.derived.spec)
    fresh = old if given is None else new_index(given, metric_of(old), what)
    if homeless(fresh, hosted=hosted):
        problem = (
            f"{what} is a {type(fresh).__name__} without a url: it lives in PostgreSQL, and the target is a folder."
        )
        fix = f"Choose another ({signal.name}=FaissIndex), give it a url, or leave the signal behind."
        raise ConfigurationError(problem, fix)
    metrics = metric_of(old), metric_of(fresh)
    if None not in metrics and metrics[0] != metrics[1]:
        problem = f"{what} measures by {metrics[1]!r}, the source's by {metrics[0]!r}."
        raise ConfigurationError(problem, f"Give it metric={metrics[0]!r}.")
    if given is not None:
        signal.check_weighing(fresh)
        signal.check(fresh, rows)
    return dict(fresh.spec)


def new_index(given: Given, metric: str | None, what: str, *, own: bool = False) -> Index[Any]:
    """An empty index as it was asked for: a name or a factory gets the metric of the one that it replaces.

    An index that was given is built anew, unless it may be made one's ``own`` with all that it has learnt.

    Raises
    ------
    ConfigurationError
    """
    made: Any
    if isinstance(given, str) and given not in registered():
        made = build({"type": "FaissIndex", "factory": given, "metric": metric or "cosine"})
    elif isinstance(given, str):
        made = build({"type": given})
        if metric is not None and "metric" in getattr(made, "spec", {}):
            made = build({"type": given, "metric": metric})
    elif isinstance(given, Mapping):
        made = build(given)
    elif not _searches(given):
        made = given
    else:
        if len(given):
            raise ConfigurationError(f"{what} holds {len(given)} rows already.", "Give an empty index.")
        made = given if own else build(given.spec)
    if not _searches(made):
        raise ConfigurationError(f"{what} is a {type(made).__name__}.", "Give an index, or a FAISS factory string.")
    index: Index[Any] = made
    return index


def _searches(made: object) -> bool:
    """Asked of the class: what an index holds may be on a server."""
    return hasattr(type(made), "add") and hasattr(type(made), "search")
