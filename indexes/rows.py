"""Row keys: checked, found by position, merged.

Shapes: q queries, n rows, k results, m keys asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeAlias, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, Ids, IdSet
from reperio.errors import ConfigurationError, DuplicateId, InvalidInput, ShapeError
from reperio.indexes.stored import Mapped, read_array
from reperio.types import Neighbors

__all__ = [
    "Positions",
    "Rows",
    "check_ids",
    "check_pairs",
    "check_removed",
    "check_search",
    "grown",
    "in_order",
    "merge",
    "nothing",
    "pad",
]

Positions: TypeAlias = NDArray[np.int64]
"""Places in an index that appends, int64; ``-1`` where there is none."""

_RECENT = 1 << 16
"""Keys that came out of order are looked up one by one until there are this many, or an eighth of all."""

S = TypeVar("S", bound=np.generic)


def check_ids(ids: object, *, rows: int) -> Ids:
    """Return ``ids`` as row keys for ``rows`` embeddings, or say what is wrong with them.

    Raises
    ------
    ShapeError
        Not whole numbers, not one-dimensional, or not one for each embedding.
    InvalidInput
        An id below 0 or above ``2**63 - 1``.
    DuplicateId
        An id that comes twice.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise ShapeError(f"ids has shape {array.shape} and dtype {array.dtype}.", "Give int64 keys in one row, (n,).")
    if len(array) != rows:
        raise ShapeError(f"There are {len(array)} ids for {rows} embeddings.", "Give one id for each row.")
    array = _signed(array)
    if _ascending(array):
        smallest = array[:1]
    else:
        ordered = np.sort(array)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise DuplicateId(f"The id {twice[0]} is there twice.", "Give each id once.")
        smallest = ordered[:1]
    if len(smallest) and smallest[0] < 0:
        raise InvalidInput(f"The id {smallest[0]} is negative.", "Use keys from 0.")
    return array


def _signed(ids: NDArray[Any]) -> Ids:
    if ids.dtype == np.uint64 and ids.size and (largest := ids.max()) > np.iinfo(np.int64).max:
        raise InvalidInput(f"The id {largest} is above 2**63 - 1.", "Use keys from 0 to 2**63 - 1.")
    return ids.astype(np.int64, copy=False)


def check_removed(ids: object) -> IdSet:
    """Return keys to be taken away, each once: of keys that are not held nothing is said.

    Raises
    ------
    ShapeError
        Not whole numbers, or not one-dimensional.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise ShapeError(f"ids has shape {array.shape} and dtype {array.dtype}.", "Give int64 keys in one row, (n,).")
    return np.unique(array.astype(np.int64, copy=False))


def check_search(
    k: object, allowed: object = None, options: object = None, *, known: IdSet | None = None
) -> IdSet | None:
    """Return ``allowed`` as int64, or say what is wrong with what was asked; names of options are the index's to know.

    ``known`` is a set that was checked before: where ``allowed`` is equal, it is returned itself.

    Raises
    ------
    InvalidInput
        k is no whole number, below 1 or beyond 31 bits; ``allowed`` is out of order, or holds a key twice or below 0.
    ShapeError
        ``allowed`` is no row of whole numbers: a mask, say.
    ConfigurationError
        ``options`` is no mapping to whole numbers.
    """
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k <= 0:
        raise InvalidInput(f"k is {k!r}.", "Ask for a whole number of 1 or more.")
    if k >= 1 << 31:
        raise InvalidInput(f"k is {k}: so many slots for each query fit no memory.", "Ask for len(index) at most.")
    if options is not None:
        _check_options(options)
    return None if allowed is None else _check_allowed(allowed, known)


def _check_options(options: object) -> None:
    if not isinstance(options, Mapping):
        raise ConfigurationError(f"options is a {type(options).__name__}.", "Give a mapping: {name: whole number}.")
    for name, value in cast("Mapping[object, object]", options).items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise ConfigurationError(f"The search option {name} is {value!r}.", "Give a whole number.")


def _check_allowed(allowed: object, known: IdSet | None) -> IdSet:
    array = np.asarray(allowed)
    if known is not None and array.dtype == known.dtype and array.shape == known.shape and (array == known).all():
        return known
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        problem = f"allowed has shape {array.shape} and dtype {array.dtype}."
        raise ShapeError(problem, "Give int64 keys in one row; of a mask, the keys where it is true.")
    array = _signed(array)
    if not _ascending(array):
        raise InvalidInput("allowed is not sorted with each id once.", "Pass np.unique(allowed).")
    if len(array) and array[0] < 0:
        raise InvalidInput(f"The id {array[0]} in allowed is negative.", "Use keys from 0.")
    return array


def check_pairs(ids: object, *, queries: int) -> Ids:
    """Return ``ids`` as ``(q, m)`` row keys, ``-1`` among them for empty slots."""
    array = np.asarray(ids)
    if array.ndim != 2 or len(array) != queries or (array.dtype.kind not in "iu" and array.size):
        problem = f"ids has shape {array.shape} and dtype {array.dtype} for {queries} queries."
        raise ShapeError(problem, "Give int64 keys, one row of them for each query.")
    return array.astype(np.int64, copy=False)


def grown(array: NDArray[S], size: int) -> NDArray[S]:
    """``array`` with room for ``size`` rows: itself, or a copy half as large again, so that n appends cost O(n)."""
    if size <= len(array):
        return array
    out = np.empty((max(size, len(array) * 3 // 2), *array.shape[1:]), dtype=array.dtype)
    out[: len(array)] = array
    return out


def merge(parts: list[Neighbors], k: int) -> Neighbors:
    """The k best of several results for the same queries, best first, ties to the lower id."""
    ids = np.concatenate([part.ids for part in parts], axis=1)
    scores = np.concatenate([part.scores for part in parts], axis=1)
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    row = np.arange(len(ids))[:, None]
    return Neighbors(ids[row, order], scores[row, order])


def pad(ids: Ids, scores: Dense, k: int) -> Neighbors:
    """Fill rows of fewer than k results with ``-1`` and ``-inf``."""
    count = ids.shape[1]
    if count == k:
        return Neighbors(ids, scores)
    found = nothing(len(ids), k)
    found.ids[:, :count], found.scores[:, :count] = ids, scores
    return found


def nothing(queries: int, k: int) -> Neighbors:
    """k empty slots for each query."""
    return Neighbors(np.full((queries, k), -1, np.int64), np.full((queries, k), -np.inf, np.float32))


class Rows:
    """Which row key stands at which position of an index that can only append.

    A position is never used twice: a row removed or replaced leaves a dead one. Keys that arrive in ascending
    order, as a collection's do, are their own map, 9 bytes a row; others cost 16 more.

    Parameters
    ----------
    ids
        Key at each position, ``(n,)``.
    alive
        Which positions are not dead, ``(n,)``; all if not given.
    """

    def __init__(self, ids: Ids | None = None, alive: NDArray[np.bool_] | None = None) -> None:
        self._ids: Ids = np.empty(0, dtype=np.int64) if ids is None else ids
        self._alive: NDArray[np.bool_] = np.ones(len(self._ids), dtype=np.bool_) if alive is None else alive
        self._size = len(self._ids)
        self._live = int(np.count_nonzero(self._alive))
        self._recent: dict[int, int] = {}
        self._keys: Ids | None = None  # sorted, where positions are not in the order of their keys
        self._places: Positions = np.empty(0, dtype=np.int64)
        self._mapped = self._size
        if not _ascending(self._ids):
            self._take(_folded(self._ids, self._alive))

    @classmethod
    def read(cls, folder: Path, *, marked: bool = True, mapped: Mapped = None) -> Self:
        """What was saved as ``ids.npy``, and as ``alive.npy`` where some may be dead.

        Raises
        ------
        ValueError
            If the key of a row is negative, or there twice.
        """
        ids = read_array(folder / "ids.npy", np.int64, (None,), mapped=mapped)
        alive = read_array(folder / "alive.npy", np.bool_, (len(ids),), mapped=mapped) if marked else None
        rows = cls(ids, alive)
        keys = rows.ids if rows._keys is None else rows._keys
        if len(keys) and keys[0] < 0:
            keys = np.sort(rows.ids[rows.alive])
        if (len(keys) and keys[0] < 0) or (keys[1:] <= keys[:-1]).any():
            raise ValueError("the key of a row is negative, or there twice")
        return rows

    def __len__(self) -> int:
        """Rows that are alive."""
        return self._live

    @property
    def ids(self) -> Ids:
        """Key at each position, dead ones too, ``(n,)``."""
        return self._ids[: self._size]

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Which positions are not dead, ``(n,)``."""
        return self._alive[: self._size]

    def find(self, ids: Ids) -> Positions:
        """Position of each key, ``-1`` where it is not held."""
        keys = self._ids[: self._mapped] if self._keys is None else self._keys
        if len(keys):
            at = np.minimum(np.searchsorted(keys, ids), len(keys) - 1)
            found = np.where(keys[at] == ids, at if self._keys is None else self._places[at], -1)
        else:
            found = np.full(len(ids), -1, dtype=np.int64)
        if self._recent:
            recent = np.fromiter((self._recent.get(key, -1) for key in ids.tolist()), dtype=np.int64, count=len(ids))
            found = np.where(recent >= 0, recent, found)
        if self._size:
            found[(found >= 0) & ~self._alive[found]] = -1
        return found

    def append(self, ids: Ids) -> None:
        """Give the next positions to these keys, each once; where they stood before is dead.

        If it fails, as for lack of memory, nothing has changed.
        """
        before = self.find(ids)
        before = before[before >= 0]
        start, size = self._size, self._size + len(ids)
        keys, alive = grown(self._ids, size), grown(self._alive, size)
        keys[start:size], alive[start:size] = ids, True  # which nobody looks at yet
        in_order = self._keys is None and self._mapped == start and _ascending(keys[max(start - 1, 0) : size])
        many = len(self._recent) + len(ids) > max(_RECENT, size // 8)
        recent = {} if in_order or many else dict(zip(ids.tolist(), range(start, size), strict=True))
        folded = None
        if many and not in_order:
            living = alive[:size].copy()
            living[before] = False
            folded = _folded(keys, living)
        alive[before] = False
        self._ids, self._alive, self._size = keys, alive, size
        self._live += len(ids) - len(before)
        if in_order:
            self._mapped = size
        elif folded is not None:
            self._take(folded)
        else:
            self._recent.update(recent)

    def bury(self, size: int) -> None:
        """Make positions up to ``size`` dead that were filled, but never given to a key."""
        keys, alive = grown(self._ids, size), grown(self._alive, size)
        keys[self._size : size], alive[self._size : size] = -1, False
        folded = _folded(keys, alive[:size])
        self._ids, self._alive, self._size = keys, alive, size
        self._take(folded)

    def remove(self, ids: Ids) -> int:
        """Mark the positions of these keys dead; returns how many were alive."""
        found = self.held(ids)
        self.kill(found)
        return len(found)

    def held(self, ids: Ids) -> Positions:
        """The positions of those keys that are held."""
        found = self.find(ids)
        return found[found >= 0]

    def kill(self, positions: Positions) -> None:
        """Mark positions dead, each once and alive until now: this takes no memory, so it does not fail."""
        self._alive[positions] = False
        self._live -= len(positions)

    def mask(self, allowed: IdSet | None) -> NDArray[np.bool_] | None:
        """Which positions may be returned, ``(n,)``; None where every one may."""
        if allowed is None:
            return None if self._live == self._size else self.alive
        found = self.find(np.asarray(allowed, dtype=np.int64))
        out = np.zeros(self._size, dtype=np.bool_)
        out[found[found >= 0]] = True
        return out

    def _take(self, folded: tuple[Ids, Positions]) -> None:
        self._keys, self._places = folded
        self._mapped = self._size
        self._recent.clear()


def _folded(ids: Ids, alive: NDArray[np.bool_]) -> tuple[Ids, Positions]:
    """The live keys in order, and where they stand."""
    live = np.flatnonzero(alive)
    places = live[np.argsort(ids[live])]
    return ids[places], places


def _ascending(ids: Ids) -> bool:
    return bool(np.all(ids[1:] > ids[:-1]))


def in_order(found: Neighbors) -> bool:
    """Whether scores fall along each row, and keys rise among equal ones: FAISS does not always see to it."""
    left, right = found.scores[:, :-1], found.scores[:, 1:]
    falls = right < left
    if np.count_nonzero(falls) == falls.size:  # nearly always, and the quickest to ask
        return True
    falls |= (right == left) & (found.ids[:, 1:] >= found.ids[:, :-1])
    return bool(falls.all())
