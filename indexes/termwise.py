"""Scoring the rows of a segment of one window term by term, compiled: what was added is at hand in that order too.

A list's postings lie one after the other, where rows lie apart and are long; so where a query's lists are short for
the rows to be scored, to go through them once more is quicker than to read the rows.

Shapes: t terms of a query, m rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio.extras import compiled
from reperio.indexes.asked import Lists, first_at_least
from reperio.indexes.inverting import impact
from reperio.indexes.lists import Positions
from reperio.indexes.weighting import Formula
from reperio.indexes.windows import Terms

__all__ = ["pays", "score_all"]

_POSTINGS = 200
"""To read a row costs about what going through this many postings does."""

_LOOKED_UP = 24
"""Postings for each row from which a list is not gone through but looked into."""


@compiled
def pays(lists: Lists, terms: Terms, count: int) -> bool:
    """Whether this way is the quicker one for ``count`` rows of the window that ``terms`` entered."""
    return len(lists.values) == len(lists.codes) and (terms.end - terms.begin).sum() < _POSTINGS * count


@compiled
def score_all(
    lists: Lists,
    relative: NDArray[np.float64],
    formula: Formula,
    asked: tuple[Positions, NDArray[np.float64], NDArray[np.bool_]],
    terms: Terms,
    rows: Positions,
    numbers: NDArray[np.uint16],
) -> NDArray[np.float64]:
    """Scores of rows without baseline, ``(m,)``, as `reperio.indexes.rowwise.score_row` gives them.

    ``numbers`` is zeros, ``(WINDOW,)``.
    """
    scores = np.zeros(len(rows))
    for i in range(len(rows)):
        numbers[rows[i]] = i + 1
    for term in range(len(terms.sizes)):
        if terms.end[term] - terms.begin[term] > _LOOKED_UP * len(rows):
            _look_into(lists, relative, formula, asked, terms, term, rows, scores)
            continue
        first, last = terms.places_from[term] + terms.begin[term], terms.places_from[term] + terms.end[term]
        codes_from = terms.codes_from[term] - terms.places_from[term]
        values = lists.values[codes_from + first : codes_from + last]
        weight = (asked[1][term], asked[2][term])
        if terms.number[term] >= 0:
            _go_through(lists.long_places[first:last], values, weight, relative, formula, numbers, scores)
        else:
            _go_through(lists.short_positions[first:last], values, weight, relative, formula, numbers, scores)
    for row in rows:
        numbers[row] = 0
    return scores


@compiled
def _go_through(
    places: NDArray[Any],
    values: NDArray[Any],
    weight: tuple[Any, Any],
    relative: NDArray[np.float64],
    formula: Formula,
    numbers: NDArray[np.uint16],
    scores: NDArray[np.float64],
) -> None:
    """Add what a term of this weight, linear or not, gives to the numbered rows."""
    for j in range(len(values)):
        row = np.uint64(places[j])
        number = np.uint64(numbers[row])
        if number > 0:
            given = impact(np.float64(values[j]), relative[row], weight[1], formula)
            scores[number - np.uint64(1)] += weight[0] * given


@compiled
def _look_into(
    lists: Lists,
    relative: NDArray[np.float64],
    formula: Formula,
    asked: tuple[Positions, NDArray[np.float64], NDArray[np.bool_]],
    terms: Terms,
    term: int,
    rows: Positions,
    scores: NDArray[np.float64],
) -> None:
    """As `_go_through`, for a list that is long for so few rows."""
    before, first, last = terms.places_from[term], terms.begin[term], terms.end[term]
    for i in range(len(rows)):
        row = rows[i]
        if terms.number[term] >= 0:
            place = first_at_least(lists.long_places, before + first, before + last, row)
            found = place < before + last and lists.long_places[place] == row
        else:
            place = first_at_least(lists.short_positions, before + first, before + last, row)
            found = place < before + last and lists.short_positions[place] == row
        if found:
            value = np.float64(lists.values[place - before + terms.codes_from[term]])
            scores[i] += asked[1][term] * impact(value, relative[row], asked[2][term], formula)
