"""Tune a search on the data itself: the cheapest options that reach a recall, measured.

Shapes: q queries, d dimensions, k results.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, Ids, IdSet, check_dense
from reperio.errors import ConfigurationError, InvalidInput, UnsupportedOperation
from reperio.indexes.presets import check_recall
from reperio.indexes.tune_report import OperatingPoint, TuneReport
from reperio.protocols import Index
from reperio.types import Neighbors

__all__ = ["OperatingPoint", "Tunable", "TuneReport", "autotune"]

_STEP = 1.05
"""The chosen value is at most so many times the least that reaches the recall."""

_BETWEEN = (0.625, 0.75, 1.25, 1.5)
"""Of the quickest refinement among the doubled ones: what is tried beside it."""

_SETTLED = 2e-3
"""A recall that rises by less, twice over, has reached what it can."""

_TURNS = 12
"""Times that the best points of each refinement are timed again …"""

_TRIED, _BEHIND = 3, 1.5
"""… of which those take part in all that after so many turns take no more than this many times the least."""

_ASKED = 512
_FEWEST = 64
_TUNED_FROM = 1024
"""Rows held out to tune by, at most and at least, and rows from which there is something to tune."""

_IN_HAND = 0.25
"""Share of what a recall lacks that is added to it while the index grows: for rows still to come."""

_TIE = 1e-5
"""A row whose score is so near the k-th best is as good as it."""


@runtime_checkable
class Tunable(Protocol):
    """An index whose search has options to be tuned."""

    @property
    def tuning(self) -> TuneReport | None: ...

    @tuning.setter
    def tuning(self, report: TuneReport | None, /) -> None: ...

    def __len__(self) -> int: ...

    @property
    def ids(self) -> IdSet: ...

    @property
    def training_size(self) -> int:
        """How many vectors it has still to learn from; until then searches are exact."""
        ...

    @property
    def waiting_ids(self) -> IdSet:
        """Keys of the rows that are compared one by one until they are taken in, ``(w,)``."""
        ...

    @property
    def factory(self) -> str: ...

    @property
    def widest(self) -> dict[str, int]:
        """The search options there are, and the values beyond which nothing more is found."""
        ...

    @property
    def row_bytes(self) -> int: ...

    def exact(self, queries: Dense, k: int, /, *, allowed: IdSet | None = None) -> Neighbors: ...

    def score(self, queries: Dense, ids: Any, /) -> Dense: ...

    def search(
        self, queries: Dense, k: int, /, *, allowed: IdSet | None = None, options: Mapping[str, int] | None = None
    ) -> Neighbors: ...


def autotune(
    index: Tunable, queries: Dense, *, recall: float = 0.95, k: int = 10, exact: Index[Dense] | None = None
) -> TuneReport:
    """Find the quickest search options that reach a recall on these queries, and set them in the index.

    One option is searched by doubling and then by halves, as recall rises with it; of several, the refinement is
    doubled and the others are searched for each. The index keeps the report as ``index.tuning``, in its saved
    folder too; options given to its constructor or to a search go before it.

    Parameters
    ----------
    index
        A `FaissIndex` that holds rows, and has learnt what its factory learns. Rows that wait beside a mapped file
        are found by comparing each: those count neither way.
    queries
        What will be asked, ``(q, d)``: real queries are best; some hundred are enough. Rows that the index holds
        are no fair queries: a graph found 0.98 of their neighbours where it found 0.91 of others'.
    recall
        Share of the k best rows to be found. So that other queries reach it too, these have to pass it by a
        standard error: by 0.001 or so of a thousand, by more the fewer they are and the more they differ.
    k
        Results for each query.
    exact
        An exact index of the same rows to be judged by. If not given, the index is judged by its own rows as it
        keeps them: for one that is not `lossless`, by what its codes can tell.

    Returns
    -------
    TuneReport
        Every point measured, and the one chosen; where none reaches the recall, the one that comes nearest.

    Raises
    ------
    ConfigurationError
        A recall that is no share; an index that has nothing to set.
    UnsupportedOperation
        The index has still to learn, or all its rows wait: searches are exact.
    InvalidInput, ShapeError
        No queries, or an index without rows; queries unlike the rows; an ``exact`` with other rows.

    Examples
    --------
    >>> from reperio.indexes import FaissIndex
    >>> rows = np.random.default_rng(0).standard_normal((500, 8), dtype=np.float32)
    >>> index = FaissIndex("HNSW8")
    >>> index.add(np.arange(400), rows[:400])
    >>> autotune(index, rows[400:], recall=0.9).reached
    True
    """
    return _tuned(index, queries, recall, k, exact=exact)


def _tuned(
    index: Tunable,
    queries: Dense,
    recall: float,
    k: int,
    *,
    exact: Index[Dense] | None = None,
    asked: float | None = None,
) -> TuneReport:
    check_recall(recall)
    asked_for, taken_in = _check(index, queries, exact)
    trial = _Trial(index, asked_for, k, exact)
    limits = index.widest
    if "k_factor" in limits:
        limits["k_factor"] = max(1, limits["k_factor"] // k)
    found = list(_explore(trial, recall, limits))
    enough = [point for point in found if point.reaches(recall)]
    best = trial.quickest(enough) if enough else max(found, key=lambda point: point.recall)
    points = tuple(sorted(trial.points.values(), key=lambda p: tuple(p.options.values())))
    sizes = (taken_in, index.row_bytes, len(asked_for), k)
    report = TuneReport(index.factory, *sizes, recall, best, points, asked)
    index.tuning = report
    return index.tuning


def _check(index: object, queries: Dense, exact: Index[Dense] | None) -> tuple[Dense, int]:
    """Return the queries, and how many rows there are to tune for; refuse an index that has nothing to be tuned."""
    if not isinstance(index, Tunable):
        problem = f"autotune cannot set the search options of {type(index).__name__}: only those of FaissIndex."
        raise ConfigurationError(problem, "Tune a FaissIndex, or give another index its options by hand.")
    vectors = check_dense(queries, what="queries")
    if not len(vectors) or not len(index):
        raise InvalidInput(f"There are {len(vectors)} queries and {len(index)} rows to tune on.", "Add some first.")
    if index.training_size:
        problem = f"This {index.factory!r} is not trained yet: its {len(index)} rows are searched exactly."
        fix = f"Add rows until there are {index.training_size}, train it, or give a smaller train_size."
        raise UnsupportedOperation(f"{problem} There is nothing to tune.", fix)
    if exact is not None and not np.array_equal(exact.ids, index.ids):
        raise InvalidInput(f"exact holds {len(exact)} other rows than these {len(index)}.", "Give it the same.")
    return vectors, len(index) - len(index.waiting_ids)


class Tuner:
    """Tunes an index while it grows, by rows that it does not hold yet.

    Parameters
    ----------
    index
        The index.
    recall
        To be reached.
    seed
        Of the choice of rows.
    """

    def __init__(self, index: Tunable, recall: float, *, seed: int) -> None:
        self._index, self._recall, self._seed = index, recall, seed
        self._last, self._came = 0, 0

    @property
    def target(self) -> float:
        """What is aimed at: more than asked, for rows still to come."""
        return self._recall + _IN_HAND * (1 - self._recall)

    def recognised(self, report: TuneReport) -> TuneReport:
        """A report that was read, which does not say what was asked where this made it."""
        return replace(report, asked=self._recall) if report.target == self.target else report

    def held_back(self, held: int, new: NDArray[np.bool_]) -> int:
        """How many of the rows that come are to wait until the others have been searched; 0 most of the time.

        As often as so many rows have come as there were, whether beside these or in their place; but not before
        enough of them are ``new`` to be asked for, ``(m,)`` of m that come.
        """
        coming = len(new)
        last = 0 if self._index.tuning is None else self._index.tuning.rows
        if last != self._last:
            self._last, self._came = last, max(0, held - last)
        self._came += coming
        if coming < _FEWEST or held + coming < _TUNED_FROM or self._came < last:
            return 0
        size = min(coming, max(_ASKED, (held + coming) // 4))
        return size if np.count_nonzero(new[-size:]) >= _FEWEST else 0

    def tune(self, candidates: Dense) -> None:
        """Ask for some rows that the index does not hold, one or more, and keep what is learnt from it."""
        size = min(_ASKED, len(candidates))
        chosen = np.random.default_rng(self._seed).choice(len(candidates), size, replace=False)
        _tuned(self._index, candidates[chosen], self.target, 10, asked=self._recall)
        self._last, self._came = 0, 0


class _Trial:
    """One set of queries with the rows they should find."""

    def __init__(self, index: Tunable, queries: Dense, k: int, exact: Index[Dense] | None) -> None:
        self.points: dict[tuple[int, ...], OperatingPoint] = {}
        self._index, self._queries, self._k = index, queries, k
        truth = index.exact(queries, k) if exact is None else exact.search(queries, k)
        self._waiting = index.waiting_ids
        self._wanted = self._taken_in(truth.ids)
        if (self._wanted < 0).all():
            problem = f"The {k} best rows of each query wait beside a mapped file, where they are searched exactly."
            raise UnsupportedOperation(f"{problem} There is nothing to tune.", "Open it without mmap, or compact it.")
        self._score: Callable[[Dense, Any], Dense] = index.score if exact is None else exact.score
        held = np.where(truth.ids >= 0, truth.scores, np.inf)
        self._floor = held.min(axis=1, keepdims=True)

    def _taken_in(self, ids: Ids) -> Ids:
        """Without the rows that wait, which any search finds."""
        return np.where(np.isin(ids, self._waiting), -1, ids) if len(self._waiting) else ids

    def __call__(self, options: Mapping[str, int]) -> OperatingPoint:
        """Measure once; the same options again are not."""
        setting = tuple(options.values())
        if setting not in self.points:
            found, seconds = self._timed(options)
            while len(seconds) < 3 and sum(seconds) < 0.2:
                found, again = self._timed(options)
                seconds += again
            milliseconds = min(seconds) / len(self._queries) * 1e3
            recall, error = self._recall(found)
            self.points[setting] = OperatingPoint(dict(options), recall, milliseconds, error)
        return self.points[setting]

    def _timed(self, options: Mapping[str, int]) -> tuple[Neighbors, list[float]]:
        start = time.perf_counter()
        found = self._index.search(self._queries, self._k, options=options)
        return found, [time.perf_counter() - start]

    def quickest(self, points: Sequence[OperatingPoint]) -> OperatingPoint:
        """The one that takes least, all timed in turns, so that what else a machine does falls on each alike."""
        times = [point.milliseconds for point in points]
        racing = list(range(len(points)))
        for turn in range(_TURNS if len(points) > 1 else 0):
            for i in racing:
                start = time.perf_counter()
                self._index.search(self._queries, self._k, options=points[i].options)
                times[i] = min(times[i], (time.perf_counter() - start) / len(self._queries) * 1e3)
            if turn + 1 >= _TRIED:
                racing = [i for i in racing if times[i] <= _BEHIND * min(times)]
        for milliseconds, point in zip(times, points, strict=True):
            self.points[tuple(point.options.values())] = replace(point, milliseconds=milliseconds)
        return self.points[tuple(points[int(np.argmin(times))].options.values())]

    def _recall(self, found: Neighbors) -> tuple[float, float]:
        """Share of the wanted rows found, and its standard error; a row tied with the k-th best is as good."""
        ids, wanted = self._taken_in(found.ids), (self._wanted >= 0).sum(axis=1)
        hits = (ids[:, :, None] == self._wanted[:, None, :]).any(axis=2) & (ids >= 0)
        try:
            scores = self._score(self._queries, ids)
        except UnsupportedOperation:  # codes that cannot be scored: then tied rows are other rows
            pass
        else:
            hits |= (ids >= 0) & (scores >= self._floor - _TIE * np.maximum(1, np.abs(self._floor)))
        asked = wanted > 0
        shares = np.minimum(hits.sum(axis=1)[asked], wanted[asked]) / wanted[asked]
        return float(shares.mean()), float(shares.std() / math.sqrt(max(1, len(shares) - 1)))


def _explore(trial: _Trial, recall: float, limits: Mapping[str, int]) -> Iterator[OperatingPoint]:
    """Points that reach the recall, or are as far as it goes."""
    if not limits:
        yield trial({})
        return
    *outer, last = limits
    if not outer:
        yield _least(trial, recall, {}, last, limits[last])
        return
    name, slower = outer[0], 0
    reached: list[OperatingPoint] = []
    for value in _doubled(limits[name]):
        point = _least(trial, recall, {name: value}, last, limits[last])
        yield point
        if point.reaches(recall):
            slower = slower + 1 if reached and point.milliseconds >= min(p.milliseconds for p in reached) else 0
            reached.append(point)
        if slower == 2:
            break
    if reached:
        near = min(reached, key=lambda point: point.milliseconds).options[name]
        for value in sorted({round(near * share) for share in _BETWEEN} - {near}):
            if 1 <= value <= limits[name]:
                yield _least(trial, recall, {name: value}, last, limits[last])


def _doubled(limit: int) -> Iterator[int]:
    """1, 2, 4, … and the limit."""
    yield from takewhile(lambda value: value < limit, (1 << i for i in range(limit.bit_length())))
    yield limit


def _least(trial: _Trial, recall: float, fixed: Mapping[str, int], name: str, limit: int) -> OperatingPoint:
    """The least value of an option that reaches the recall; if none does, one beyond which it hardly rises."""
    low, flat = 0, 0
    point = trial({**fixed, name: 1})
    for value in _doubled(limit):
        before, point = point, trial({**fixed, name: value})
        if point.reaches(recall):
            return _between(trial, recall, point, name, low)
        flat = flat + 1 if point.recall - before.recall < _SETTLED and value > 1 else 0
        if flat == 2 and fixed:  # what the outer option lets through, this one has found
            break
        low = value
    return point


def _between(trial: _Trial, recall: float, reached: OperatingPoint, name: str, low: int) -> OperatingPoint:
    """Halve the way between a value that is too low and one that reaches the recall."""
    while reached.options[name] > max(low + 1, _STEP * low):
        middle = (low + reached.options[name]) // 2
        point = trial({**reached.options, name: middle})
        if point.reaches(recall):
            reached = point
        else:
            low = middle
    return reached
