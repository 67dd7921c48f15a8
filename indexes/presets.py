"""Which FAISS index to build: six named choices, and the one that reads best in the memory there is.

Shapes: n rows, d dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, TypeAlias, TypeGuard, cast, get_args

from reperio.errors import ConfigurationError

__all__ = ["FEW_ROWS", "PresetName", "Recommendation", "check_recall", "preset", "recommend"]

PresetName: TypeAlias = Literal["exact", "ivf", "graph", "half", "small", "tiny"]
"""Names of `preset`, best recall first."""

FEW_ROWS = 1 << 14
"""Up to so many rows every one is compared: what is learnt from fewer does not last."""

_REFINED = {"ivf": "RFlat", "half": "Refine(SQfp16)", "small": "Refine(SQ8)", "tiny": "Refine(SQ4)"}
"""What re-scores the rows that a scan of four-bit codes proposes."""

_CEILING = {"exact": 1.0, "ivf": 1.0, "graph": 0.999, "half": 0.99, "small": 0.98, "tiny": 0.92}
"""Recall@10 that options can reach: seen on 30,000 passages of real text in 384 dimensions."""

_LINKS = 32
"""Of a graph's row to others, and twice as many where all rows are."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """An index to build.

    Attributes
    ----------
    name
        Of the preset.
    factory
        For `FaissIndex`.
    row_bytes
        Memory that a row takes, its key included.
    ceiling
        The recall@10 that its search options can reach on embeddings of text.
    """

    name: PresetName
    factory: str
    row_bytes: int
    ceiling: float


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_recall(recall: object) -> float:
    """Return ``recall``, or refuse one that is no share."""
    if not _number(recall) or not 0 < recall <= 1:
        raise ConfigurationError(f"recall is {recall!r}.", "Give a share between 0 and 1, such as 0.95.")
    return float(recall)


def _sizes(rows: object, dim: object) -> tuple[int, int]:
    """Return n and d: whole numbers, however they are written, as 1e6 is."""
    for name, value in (("rows", rows), ("dim", dim)):
        if not _number(value) or not 1 <= value < math.inf or value % 1:
            raise ConfigurationError(f"{name} is {value!r}.", "Give a whole number of 1 or more, such as 1_000_000.")
    return int(cast("int", rows)), int(cast("int", dim))


def preset(name: str, rows: int, dim: int) -> Recommendation:
    """A preset for so many rows of so many dimensions.

    Parameters
    ----------
    name
        ``"exact"``: every row is compared. ``"ivf"``: lists of four-bit codes, the best of which are scored again
        by the vectors themselves. ``"half"``, ``"small"``, ``"tiny"``: the same, and what scores again is kept in
        16, 8 or 4 bits a dimension. ``"graph"``: HNSW.
    rows
        n, as it will be; four times more or fewer do no harm. 1e6 is as good as 1_000_000.
    dim
        d.

    Raises
    ------
    ConfigurationError
        An unknown name; rows or dimensions that are no whole number, or none.

    Examples
    --------
    >>> preset("small", 1_000_000, 384).factory
    'IVF1024,PQ96x4fs,Refine(SQ8)'
    """
    if name not in get_args(PresetName):
        raise ConfigurationError(f"There is no preset {name!r}.", f"Choose from: {', '.join(get_args(PresetName))}.")
    rows, dim = _sizes(rows, dim)
    known = cast("PresetName", name)
    key, vector = 9, 4 * dim
    if known == "exact":
        return Recommendation(known, "Flat", vector + key, _CEILING[known])
    if known == "graph":
        links = 4 * (2 * _LINKS + 1) + 8
        return Recommendation(known, f"HNSW{_LINKS}", vector + links + key, _CEILING[known])
    parts = _subspaces(dim)
    lists = 1 << math.ceil(math.log2(max(2.0, math.sqrt(rows))))
    kept = {"ivf": vector, "half": 2 * dim, "small": dim, "tiny": math.ceil(dim / 2)}[known]
    factory = f"IVF{lists},PQ{parts}x4fs,{_REFINED[known]}"
    return Recommendation(known, factory, kept + math.ceil(parts / 2) + 8 + key, _CEILING[known])


def _subspaces(dim: int) -> int:
    """Parts of a vector that share a code: four dimensions each, or the next number that divides d."""
    return next(parts for parts in range(max(1, dim // 4), dim + 1) if dim % parts == 0)


def recommend(rows: int, dim: int, *, recall: float = 0.95, memory: int | None = None) -> Recommendation:
    """The preset that reads best, of those that reach the recall and fit in memory.

    Parameters
    ----------
    rows, dim
        n and d.
    recall
        Share of the ten best rows to be found.
    memory
        Bytes for the index; None for as many as it takes.

    Raises
    ------
    ConfigurationError
        If none that fits reaches the recall: the message says what it takes. If one of these is no such number.

    Examples
    --------
    >>> recommend(10_000, 384).name, recommend(1_000_000, 384).name
    ('exact', 'ivf')
    >>> recommend(1_000_000, 384, memory=600_000_000).name
    'small'
    """
    recall, (rows, dim) = check_recall(recall), _sizes(rows, dim)
    if memory is not None and not _number(memory):
        raise ConfigurationError(f"memory is {memory!r}.", "Give a number of bytes, such as 600_000_000.")
    names: list[PresetName] = ["ivf", "half", "small", "tiny"]
    if rows <= FEW_ROWS or recall == 1:
        names.insert(0, "exact")
    found = [preset(name, rows, dim) for name in names]
    enough = [one for one in found if one.ceiling >= recall]
    fitting = [one for one in enough if memory is None or rows * one.row_bytes <= memory]
    if not fitting:
        least = min(enough, key=lambda one: one.row_bytes)
        problem = f"{rows} rows of {dim} dimensions at recall {recall:g} take {rows * least.row_bytes} bytes or more"
        raise ConfigurationError(
            f"{problem} ({least.name!r}), not {memory}.", "Give more memory, a lower recall, or fewer dimensions."
        )
    return fitting[0]
