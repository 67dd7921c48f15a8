"""What every index refuses, with which error: the part of its contract that is about wrong input.

Each entry of a table is a call, the class of its error, and what its message must name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pytest

from reperio.artifacts import new_folder
from reperio.embeddings import LARGEST, Dense, Ids, MultiVector, Sparse, take
from reperio.errors import (
    ConfigurationError,
    CorruptArtifact,
    DuplicateId,
    InvalidInput,
    NotFound,
    ReperioError,
    ShapeError,
    StorageError,
)
from reperio.protocols import Index
from reperio.registry import BUILT_IN, resolve

__all__ = ["BadInputContract", "Wrong", "poisoned", "refused"]

Wrong: TypeAlias = tuple[Callable[[], object], type[ReperioError], str]
"""A call, the class of its error, and a pattern that its message holds."""


def refused(wrong: Iterable[Wrong]) -> None:
    """Every call fails with its class, and says what is wrong and what to do."""
    for call, kind, words in wrong:
        with pytest.raises(kind, match=words) as caught:
            call()
        assert type(caught.value) is kind
        assert caught.value.problem.endswith(".")
        assert caught.value.fix.endswith(".")


class BadInputContract:
    """Laws of an index about what it is given wrong; a part of `reperio.testing.index.IndexContract`.

    Attributes
    ----------
    option
        A search option that the index has, if any.
    scores_rows
        Whether `score` is there.
    """

    option: str | None = None
    scores_rows: bool = True

    def test_bad_rows_are_refused_and_nothing_is_changed(
        self, filled: Index[Any], keys: Ids, rows: Any, queries: Any
    ) -> None:
        """Check everything before the first change: NaN, huge values, another shape or kind, keys that do not fit."""
        before = filled.search(queries, 10)
        two, fresh = take(rows, np.arange(2)), keys[-1] + np.array([1, 2])
        bad_rows = [*_bad_rows(two), _wider(two)]
        add = filled.add
        refused((partial(add, fresh, wrong), ShapeError, ".") for wrong in bad_rows)
        bad_ids: list[tuple[Any, type[InvalidInput], str]] = [
            (fresh[:1], ShapeError, r"1 ids for 2 embeddings"),
            (fresh + 0.5, ShapeError, r"ids has .* dtype float64"),
            (fresh[:, None], ShapeError, r"ids has shape \(2, 1\)"),
            (fresh > 0, ShapeError, r"ids has .* dtype bool"),
            (None, ShapeError, "ids"),
            ("ab", ShapeError, "ids"),
            (fresh[[0, 0]], DuplicateId, f"{fresh[0]}"),
            (fresh - fresh[1], InvalidInput, r"-1"),
            (
                np.array([2**63 + 1, 2**63 + 2], dtype=np.uint64),
                InvalidInput,
                r"9223372036854775810 is above 2\*\*63 - 1",
            ),
        ]
        refused((partial(add, ids, two), error, words) for ids, error, words in bad_ids)
        np.testing.assert_array_equal(filled.ids, keys)
        after = filled.search(queries, 10)
        np.testing.assert_array_equal(after.ids, before.ids)
        np.testing.assert_array_equal(after.scores, before.scores)

    def test_bad_rows_leave_an_empty_index_empty(self, index: Index[Any], keys: Ids, rows: Any) -> None:
        """A refused first row must not fix the number of dimensions."""
        two = take(rows, np.arange(2))
        refused((partial(index.add, keys[:2], wrong), ShapeError, ".") for wrong in _bad_rows(two))
        assert len(index) == 0
        index.add(keys, rows)
        assert len(index) == len(keys)

    def test_bad_searches_are_refused(self, index: Index[Any], keys: Ids, rows: Any, queries: Any) -> None:
        """A wrong k, filter or option says so, while the index is empty too; NaN finds nothing in silence."""
        two = take(queries, np.arange(2))
        for _ in range(2):
            refused(self._bad_searches(index, two))
            index.add(keys, rows)
        refused((partial(index.search, w, 3), ShapeError, ".") for w in (*_bad_rows(two), _wider(two)))

    def _bad_searches(self, index: Index[Any], queries: Any) -> Iterable[Wrong]:
        ks: list[Any] = [0, -1, 2.5, 3.0, "3", None, True, 2**40]
        for k in ks:
            yield partial(index.search, queries, k), InvalidInput, f"k is {re.escape(repr(k))}"
        for allowed, error, words in _bad_sets():
            yield partial(index.search, queries, 3, allowed=allowed), error, words
        for options, words in self._bad_options():
            yield partial(index.search, queries, 3, options=options), ConfigurationError, words

    def _bad_options(self) -> Iterable[tuple[Any, str]]:
        yield {"no_such_option": 3}, "no_such_option"
        yield ["no_such_option"], "option"
        for value in ("3", 2.5, True, None, -1) if self.option else ():
            yield {self.option: value}, f"{self.option}.*{re.escape(repr(value))}"

    def test_a_k_beyond_every_limit_of_the_engine_gives_all(self, filled: Index[Any], keys: Ids, queries: Any) -> None:
        """Servers refuse to give more than some thousands at once, and are asked again."""
        found = filled.search(take(queries, np.arange(2)), 100_000)
        assert found.ids.shape == found.scores.shape == (2, 100_000)
        assert (found.ids[:, len(keys) :] == -1).all()

    def test_bad_keys_are_refused_wherever_keys_are_named(self, filled: Index[Any], keys: Ids, queries: Any) -> None:
        """0.5 is not 0, and a mask is not the keys 0 and 1; a key that is not there is no error."""
        bad: list[Any] = [keys[:2] + 0.5, keys > 0, keys[:2, None], None, "ab"]
        refused((partial(filled.remove, ids), ShapeError, "ids") for ids in bad)
        assert filled.remove(np.array([-1, -7, keys[-1] + 9])) == 0
        np.testing.assert_array_equal(filled.ids, keys)
        if self.scores_rows:
            pairs: list[Any] = [keys[:2], np.full((len(queries), 1), 0.5), np.full((len(queries), 1), True), None]
            refused((partial(filled.score, queries, ids), ShapeError, "ids") for ids in pairs)

    def test_a_wrong_place_is_named_and_nothing_is_overwritten(self, filled: Index[Any], tmp_path: Path) -> None:
        """An index that is mapped elsewhere must not change under its reader."""
        kind, saved, file, empty = type(filled), tmp_path / "saved", tmp_path / "file", tmp_path / "empty"
        filled.save(saved)
        file.write_text("not an index")
        empty.mkdir()
        with new_folder(tmp_path / "other", "another-kind", {}):
            pass
        before = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
        refused(
            [
                (lambda: filled.save(saved), StorageError, "exists"),
                (lambda: filled.save(file), StorageError, "exists"),
                (lambda: filled.save(file / "below"), StorageError, "in the way"),
                (lambda: filled.save(tmp_path / ("x" * 300) / "y"), StorageError, "xxx/y cannot be made"),
                (lambda: kind.open(tmp_path / "never_saved"), NotFound, "never_saved"),
                (lambda: kind.open(file), NotFound, "file"),
                (lambda: kind.open(empty), NotFound, "empty"),
                (lambda: kind.open(tmp_path / ("x" * 300)), NotFound, "xxx cannot be there"),
                (lambda: kind.open(tmp_path / "other"), CorruptArtifact, "another-kind"),
            ]
        )
        assert {path: path.read_bytes() for path in before} == before
        assert file.read_text() == "not an index"
        assert not list(empty.iterdir())

    def test_another_class_tells_which_saved_it(self, filled: Index[Any], tmp_path: Path) -> None:
        """Give ``{"spec": self.spec}`` to `new_folder`: nothing is damaged, and nothing has to be rebuilt."""
        filled.save(tmp_path / "saved")
        own = type(filled)
        others = [kind for name in BUILT_IN if name.endswith("Index") and (kind := resolve(name)) is not own]
        words = f"saved was saved by {own.__name__}, not by "
        refused((partial(kind.open, tmp_path / "saved"), ConfigurationError, words) for kind in others)


def _bad_sets() -> Iterable[tuple[Any, type[InvalidInput], str]]:
    """What is no set of keys, sorted and each once."""
    yield np.array([1.5, 2.5]), ShapeError, "allowed has .* float64"
    yield np.array([False, True]), ShapeError, "allowed has .* bool.*mask"
    yield np.array([[1, 2]]), ShapeError, r"allowed has shape \(1, 2\)"
    yield {1, 2}, ShapeError, "allowed"
    yield "ab", ShapeError, "allowed"
    yield np.array([3, 1, 2]), InvalidInput, r"allowed is not sorted.*np\.unique"
    yield np.array([1, 1, 2]), InvalidInput, r"allowed is not sorted.*np\.unique"
    yield np.array([-1, 2]), InvalidInput, "-1 in allowed"


def _bad_rows(two: Any) -> list[Any]:
    """What no index takes for two rows like these, though it may be empty."""
    flat = np.ones(2, dtype=np.float32)
    another: Any = np.ones((2, 3), dtype=np.float32)
    if isinstance(two, np.ndarray) and cast("Dense", two).dtype.kind == "f":
        another = Sparse(np.array([0, 1, 2]), np.array([0, 1]), flat, 3)
    shapes: list[Any] = [another, flat, flat[0], None, "bare", object(), [["a"], ["b"]]]
    return [*(poisoned(two, value) for value in (np.nan, np.inf, 1.1 * LARGEST, -1.1 * LARGEST)), *shapes]


def poisoned(embeddings: Any, value: float = np.nan) -> Any:
    """The same rows with NaN, or another value, in the first; of texts, a number."""
    if isinstance(embeddings, Sparse):
        return replace(embeddings, weights=_with(embeddings.weights, value))
    if isinstance(embeddings, MultiVector):
        return replace(embeddings, vectors=_with(embeddings.vectors, value))
    return _with(embeddings, value)


def _with(values: Dense, value: float) -> Dense:
    out = values.copy()
    out.ravel()[0] = value
    return out


def _wider(embeddings: Any) -> Any:
    """The same rows in one dimension more."""
    if isinstance(embeddings, Sparse):
        return replace(embeddings, dim=embeddings.dim + 1)
    if isinstance(embeddings, MultiVector):
        return replace(embeddings, vectors=np.pad(embeddings.vectors, ((0, 0), (0, 1))))
    return embeddings[:, None] if embeddings.ndim == 1 else np.pad(embeddings, ((0, 0), (0, 1)))
