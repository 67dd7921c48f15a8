"""What every index must do.

Give a fresh, empty index as a fixture, and rows of its kind if they are not dense::

    class TestMyIndex(IndexContract):
        @pytest.fixture
        def index(self) -> MyIndex:
            return MyIndex()
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reperio.embeddings import LARGEST, Dense, Ids, MultiVector, kind_of, take
from reperio.errors import (
    CorruptArtifact,
    ShapeError,
    UnsupportedOperation,
)
from reperio.indexes.flat import FlatIndex, check_metric
from reperio.protocols import Index
from reperio.registry import build
from reperio.signals import metric_of
from reperio.testing.bad_input import BadInputContract
from reperio.types import Neighbors

__all__ = ["QUERIES", "ROWS", "IndexContract", "clustered"]

ROWS, QUERIES = 600, 20
K = 10


def clustered(rows: int, dim: int, *, seed: int = 0) -> Dense:
    """Unit vectors around a few centres, ``(rows, dim)``, as those of texts are."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, dim))
    vectors = centres[rng.integers(0, len(centres), rows)] + 0.7 * rng.standard_normal((rows, dim))
    out: Dense = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return out


class IndexContract(BadInputContract):
    """Laws of `reperio.protocols.Index`, for any kind of embedding.

    Attributes
    ----------
    recall_floor
        Share of the exact results that a search must find; 1 where it is exact.
    score_tolerance
        Largest difference between the score that a search gives and what `score` gives for the same row.
    returns_only_matches
        Whether rows may be left out of a result though there is room: those that share no term with the query.
    scores_rows
        Whether `score` is there; if not, it must say so.
    option
        A search option that the index has, if any, to be given wrong values.
    largest
        The largest component of a vector that it takes.
    keeps_files
        Whether what was saved stays as it was while the index goes on. Not where the rows are on a server: a folder
        then only names them, and opening it finds them as they are now.
    """

    recall_floor: float = 1.0
    score_tolerance: float = 1e-5
    returns_only_matches: bool = False
    keeps_files: bool = True
    largest: float = LARGEST

    @pytest.fixture
    def index(self) -> Index[Any]:
        """The empty index under test; each subclass brings its own."""
        pytest.fail(f"{type(self).__name__} must define the fixture `index`")

    @pytest.fixture
    def embeddings(self) -> Any:
        """``ROWS + QUERIES`` rows, the last to be asked for; each is nearest to itself."""
        return clustered(ROWS + QUERIES, 32)

    @pytest.fixture
    def rows(self, embeddings: Any) -> Any:
        """What is added, under the keys `keys`."""
        return take(embeddings, np.arange(ROWS))

    @pytest.fixture
    def queries(self, embeddings: Any) -> Any:
        """What is asked for, and is not there."""
        return take(embeddings, np.arange(ROWS, ROWS + QUERIES))

    @pytest.fixture
    def keys(self) -> Ids:
        """Ascending, with gaps."""
        return np.cumsum(np.random.default_rng(1).integers(1, 5, ROWS))

    @pytest.fixture
    def filled(self, index: Index[Any], keys: Ids, rows: Any) -> Index[Any]:
        """The index with all rows."""
        index.add(keys, rows)
        return index

    # What it is

    def test_it_has_the_methods_of_an_index(self, index: Index[Any]) -> None:
        """A name or property of `reperio.protocols.Index` is missing."""
        assert isinstance(index, Index)

    def test_its_specification_is_json_and_builds_an_equal_empty_one(self, filled: Index[Any]) -> None:
        """`spec` must hold every constructor argument under its own name, as JSON keeps it."""
        again: Index[Any] = build(json.loads(json.dumps(dict(filled.spec))))
        assert type(again) is type(filled)
        assert dict(again.spec) == dict(filled.spec)
        assert len(again) == 0

    def test_what_it_declares_of_its_scores_does_not_depend_on_its_rows(
        self, index: Index[Any], keys: Ids, rows: Any
    ) -> None:
        """A collection asks `lossless` before it adds a row."""
        before = index.lossless
        index.add(keys, rows)
        assert index.lossless == before

    def test_an_empty_index_finds_nothing(self, index: Index[Any], queries: Any) -> None:
        """Search before the first row, when even the dimensions are unknown, must pad."""
        found = index.search(queries, K)
        assert len(index) == len(index.ids) == 0
        assert (found.ids == -1).all()
        assert np.isneginf(found.scores).all()

    def test_its_ids_are_sorted_and_each_once(self, index: Index[Any], keys: Ids, rows: Any) -> None:
        """`ids` is an `IdSet`, whatever the order of adding."""
        order = np.random.default_rng(2).permutation(ROWS)
        index.add(keys[order], take(rows, order))
        assert index.ids.dtype == np.int64
        np.testing.assert_array_equal(index.ids, keys)
        assert len(index) == ROWS

    # Searching

    def test_a_row_finds_itself_first(self, filled: Index[Any], keys: Ids, rows: Any) -> None:
        """Rows are under other keys than they were given, or the metric is wrong."""
        found = filled.search(rows, 1)
        assert (found.ids[:, 0] == keys).mean() >= self.recall_floor

    def test_results_have_the_promised_form(self, filled: Index[Any], queries: Any) -> None:
        """``(q, k)`` int64 and float32, best first, scores finite where there is an id and not below `lowest`."""
        found = filled.search(queries, K)
        assert found.ids.shape == found.scores.shape == (QUERIES, K)
        assert found.ids.dtype == np.int64
        assert found.scores.dtype == np.float32
        self._check_form(filled, found)

    def test_more_than_there_are_gives_all_and_pads(self, filled: Index[Any], keys: Ids, queries: Any) -> None:
        """An approximate search that stops short must look further, until it has every row."""
        found = filled.search(queries, ROWS + 5)
        self._check_form(filled, found)
        assert (found.ids[:, ROWS:] == -1).all()
        if not self.returns_only_matches:
            np.testing.assert_array_equal(np.sort(found.ids[:, :ROWS], axis=1), np.tile(keys, (QUERIES, 1)))

    def test_no_queries_give_no_results(self, filled: Index[Any], queries: Any) -> None:
        """An empty batch is a batch."""
        assert filled.search(take(queries, np.arange(0)), K).ids.shape == (0, K)

    def test_a_batch_gives_what_its_queries_give_one_by_one(self, filled: Index[Any], queries: Any) -> None:
        """A score depends on the batch, or state is carried from query to query."""
        together = filled.search(queries, K)
        alone = [filled.search(take(queries, np.array([i])), K) for i in range(QUERIES)]
        self._same(together, _stacked(alone))

    def test_threads_may_search_at_once(self, filled: Index[Any], keys: Ids, queries: Any) -> None:
        """A search must not write to what others read: pass settings along, do not set them."""
        parts: list[Ids | None] = [
            None,
            *(np.sort(np.random.default_rng(i).choice(keys, 40 * i, replace=False)) for i in range(1, 6)),
        ]
        wanted = [filled.search(queries, K, allowed=part) for part in parts]
        with ThreadPoolExecutor(4) as pool:

            def search(part: Ids | None) -> Neighbors:
                return filled.search(queries, K, allowed=part)

            found = list(pool.map(search, parts * 4))
        for i, result in enumerate(found):
            self._same(result, wanted[i % len(parts)])

    def test_it_finds_what_scoring_every_row_finds(self, filled: Index[Any], keys: Ids, queries: Any) -> None:
        """A lossless index that is not exact has a `recall_floor`; one that is must rank as `score` does."""
        if not self.scores_rows:
            with pytest.raises(UnsupportedOperation):
                filled.score(queries, np.tile(keys, (QUERIES, 1)))
            return
        scores = filled.score(queries, np.tile(keys, (QUERIES, 1)))
        order = np.lexsort((np.tile(keys, (QUERIES, 1)), -scores), axis=1)[:, :K]
        self._check_recall(filled.search(queries, K), keys[order])

    def test_it_finds_what_an_exact_index_finds(self, filled: Index[Any], keys: Ids, rows: Any, queries: Any) -> None:
        """For dense rows, `FlatIndex` of the same metric is the reference; by cosine, if it has no choice of one."""
        if kind_of(rows) != "dense":
            assert not isinstance(filled, FlatIndex)
            return
        exact = FlatIndex(check_metric(metric_of(filled) or "cosine"))
        exact.add(keys, rows)
        self._check_recall(filled.search(queries, K), exact.search(queries, K).ids)

    def test_the_length_of_a_vector_is_nothing_to_a_cosine(
        self, filled: Index[Any], keys: Ids, rows: Any, queries: Any
    ) -> None:
        """Squares of what is below 1e-19 are no floats, and give wrong lengths: `reperio.indexes.flat.unit` knows."""
        if metric_of(filled) != "cosine":
            pytest.skip("it does not measure cosines")
        wanted = filled.search(queries, K)
        filled.add(keys, _stretched(rows))
        found = filled.search(_stretched(queries), K)
        self._check_form(filled, found)
        self._check_recall(found, wanted.ids)

    def test_values_as_large_as_may_be_have_finite_scores(
        self, index: Index[Any], keys: Ids, rows: Any, queries: Any
    ) -> None:
        """No row may be lost because a distance of it is no float."""
        if not isinstance(rows, MultiVector) and getattr(rows, "dtype", None) != np.float32:
            return
        index.add(keys, _stretched(rows, np.float32(0.9 * self.largest)))
        found = index.search(_stretched(queries, np.float32(-0.9 * self.largest)), ROWS)
        self._check_form(index, found)
        assert (found.ids >= 0).all()

    # Filters

    @pytest.mark.parametrize("count", [1, 3, 12, 60, 300, ROWS])
    def test_a_filter_gives_the_best_of_what_passes(
        self, filled: Index[Any], keys: Ids, queries: Any, count: int
    ) -> None:
        """Always min(k, rows that pass), however few pass: filter inside the search, then look further, then scan."""
        allowed = np.sort(np.random.default_rng(count).choice(keys, count, replace=False))
        found = filled.search(queries, K, allowed=np.append(allowed, keys[-1] + 1000))
        self._check_form(filled, found)
        assert np.isin(found.ids[found.ids >= 0], allowed).all()
        if not self.returns_only_matches:
            assert ((found.ids >= 0).sum(axis=1) == min(K, count)).all()
        everything = filled.search(queries, ROWS)
        passing = [row[np.isin(row, allowed)][:K] for row in everything.ids]
        self._check_recall(found, passing)

    def test_a_filter_that_nothing_passes_finds_nothing(self, filled: Index[Any], keys: Ids, queries: Any) -> None:
        """An empty set is not the absence of a filter."""
        for allowed in (keys[:0], keys[-1:] + 1):
            assert (filled.search(queries, K, allowed=allowed).ids == -1).all()

    def test_a_removed_row_does_not_pass_a_filter(self, filled: Index[Any], keys: Ids, queries: Any) -> None:
        """The filter and what was removed must both hold."""
        filled.remove(keys[:20])
        found = filled.search(queries, ROWS, allowed=keys[:40])
        assert np.isin(found.ids[found.ids >= 0], keys[20:40]).all()
        if not self.returns_only_matches:
            assert ((found.ids >= 0).sum(axis=1) == 20).all()

    # Changing

    def test_adding_a_key_again_replaces_its_row(self, filled: Index[Any], keys: Ids, rows: Any) -> None:
        """The old row must neither be found nor counted."""
        filled.add(keys[[0, 1]], take(rows, np.array([5, 6])))
        assert len(filled) == ROWS
        np.testing.assert_array_equal(filled.ids, keys)
        everything = filled.search(take(rows, np.array([5])), ROWS)
        first, fifth = (float(everything.scores[0, everything.ids[0] == keys[i]][0]) for i in (0, 5))
        assert first == pytest.approx(fifth, abs=self.score_tolerance)
        assert np.unique(everything.ids[everything.ids >= 0]).size == (everything.ids >= 0).sum()

    def test_removed_rows_are_never_found(self, filled: Index[Any], keys: Ids, rows: Any, queries: Any) -> None:
        """`remove` counts what was there, each key once, and leaves the others findable."""
        gone, kept = keys[::3], np.setdiff1d(keys, keys[::3])
        assert filled.remove(np.append(gone, [keys[-1] + 7, gone[0]])) == len(gone)
        assert filled.remove(gone) == 0
        assert len(filled) == len(kept)
        np.testing.assert_array_equal(filled.ids, kept)
        found = filled.search(queries, ROWS)
        assert np.isin(found.ids[found.ids >= 0], kept).all()
        self._check_form(filled, found)
        if not self.returns_only_matches:
            assert ((found.ids >= 0).sum(axis=1) == len(kept)).all()

    def test_a_removed_key_can_be_added_again(self, filled: Index[Any], keys: Ids, rows: Any, queries: Any) -> None:
        """A key is not spent by removing it."""
        before = filled.search(queries, ROWS)
        filled.remove(keys[:50])
        filled.add(keys[:50], take(rows, np.arange(50)))
        assert len(filled) == ROWS
        self._same(filled.search(queries, ROWS), before)

    def test_the_last_row_can_be_removed(self, filled: Index[Any], keys: Ids, rows: Any, queries: Any) -> None:
        """An index that was emptied is an empty index, and can be filled again."""
        assert filled.remove(keys) == ROWS
        assert len(filled) == 0
        assert (filled.search(queries, K).ids == -1).all()
        filled.add(keys, rows)
        self._check_recall(filled.search(rows, 1), keys[:, None])

    def test_the_order_of_adding_does_not_matter(
        self, index: Index[Any], keys: Ids, rows: Any, queries: Any, tmp_path: Path
    ) -> None:
        """Neither does it matter whether rows come one by one or at once."""
        other = _twin(index, tmp_path)
        index.add(keys, rows)
        order = np.random.default_rng(3).permutation(ROWS)
        for part in np.split(order, [1, 2, 5, 100, ROWS - 1]):
            other.add(keys[part], take(rows, part))
        self._check_recall(other.search(queries, K), index.search(queries, K).ids)

    def test_adding_nothing_changes_nothing(self, filled: Index[Any], keys: Ids, rows: Any) -> None:
        """An empty batch is a batch."""
        filled.add(keys[:0], take(rows, np.arange(0)))
        assert filled.remove(keys[:0]) == 0
        assert len(filled) == ROWS

    # Scoring

    def test_a_row_scores_what_a_search_says(self, filled: Index[Any], queries: Any) -> None:
        """Searching and scoring must measure alike; where they cannot, declare ``scores_rows = False``."""
        found = filled.search(queries, K)
        if not self.scores_rows:
            with pytest.raises(UnsupportedOperation):
                filled.score(queries, found.ids)
            return
        scores = filled.score(queries, found.ids)
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, found.scores, rtol=0, atol=self.score_tolerance)

    def test_what_is_not_there_scores_nothing(self, filled: Index[Any], keys: Ids, queries: Any) -> None:
        """-1, keys never held and keys removed all score ``-inf``."""
        if not self.scores_rows:
            with pytest.raises(UnsupportedOperation):
                filled.score(queries, np.full((QUERIES, 1), keys[0]))
            return
        filled.remove(keys[:1])
        ids = np.tile(np.array([-1, keys[0], keys[1], keys[-1] + 1]), (QUERIES, 1))
        scores = filled.score(queries, ids)
        assert np.isneginf(scores[:, [0, 1, 3]]).all()
        assert np.isfinite(scores[:, 2]).all()
        assert filled.score(queries, ids[:, :0]).shape == (QUERIES, 0)
        with pytest.raises(ShapeError):
            filled.score(queries, ids[1:])

    # Disk

    def test_it_opens_as_it_was_saved(self, filled: Index[Any], keys: Ids, queries: Any, tmp_path: Path) -> None:
        """Results must be equal to the bit, removed rows stay removed, and the saved index goes on."""
        filled.remove(keys[::4])
        filled.save(str(tmp_path / "saved"))
        opened = type(filled).open(str(tmp_path / "saved"))
        assert dict(opened.spec) == dict(filled.spec)
        np.testing.assert_array_equal(opened.ids, filled.ids)
        for k in (1, K, ROWS):
            a, b = opened.search(queries, k), filled.search(queries, k)
            np.testing.assert_array_equal(a.ids, b.ids)
            np.testing.assert_array_equal(a.scores, b.scores)

    def test_an_opened_index_goes_on(self, filled: Index[Any], keys: Ids, rows: Any, tmp_path: Path) -> None:
        """It can be added to, removed from and saved again; the folder it came from stays as it is."""
        filled.save(tmp_path / "saved")
        opened = type(filled).open(tmp_path / "saved")
        opened.remove(keys[:10])
        opened.add(keys[5:10], take(rows, np.arange(5, 10)))
        opened.save(tmp_path / "again")
        again = type(filled).open(tmp_path / "again")
        np.testing.assert_array_equal(again.ids, keys[5:])
        before = keys if self.keeps_files else keys[5:]
        np.testing.assert_array_equal(type(filled).open(tmp_path / "saved").ids, before)

    def test_an_empty_index_can_be_saved(self, index: Index[Any], keys: Ids, rows: Any, tmp_path: Path) -> None:
        """Before the first row there may be no arrays at all."""
        opened = _twin(index, tmp_path)
        assert len(opened) == 0
        opened.add(keys, rows)
        assert len(opened) == ROWS

    def test_every_altered_file_is_noticed(self, filled: Index[Any], tmp_path: Path) -> None:
        """Save with `reperio.artifacts.new_folder` and open with `read_folder`: they keep checksums."""
        filled.save(tmp_path / "saved")
        files = sorted(path for path in (tmp_path / "saved").rglob("*") if path.is_file())
        for file in files:
            for damage in (_flip, _truncate):
                shutil.copytree(tmp_path / "saved", tmp_path / "damaged")
                damage(tmp_path / "damaged" / file.relative_to(tmp_path / "saved"))
                with pytest.raises(CorruptArtifact):
                    type(filled).open(tmp_path / "damaged")
                shutil.rmtree(tmp_path / "damaged")

    # How results are compared

    def _check_form(self, index: Index[Any], found: Neighbors) -> None:
        held = found.ids >= 0
        assert np.isfinite(found.scores[held]).all()
        assert not index.lossless or (found.scores[held] >= index.lowest - self.score_tolerance).all()
        assert np.isneginf(found.scores[~held]).all()
        assert (held[:, :-1] >= held[:, 1:]).all()
        assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
        tied = held[:, 1:] & (found.scores[:, :-1] == found.scores[:, 1:])
        assert (found.ids[:, :-1] < found.ids[:, 1:])[tied].all()

    def _check_recall(self, found: Neighbors, wanted: Iterable[Ids]) -> None:
        """Share of the wanted rows that were found; what is no match is not wanted."""
        shares: list[float] = []
        for ids, best in zip(found.ids, wanted, strict=True):
            best = best[best >= 0]
            if self.returns_only_matches:
                best = best[: (ids >= 0).sum()]
            if len(best):
                shares.append(float(np.isin(best, ids).mean()))
        assert not shares or np.mean(shares) >= self.recall_floor

    def _same(self, a: Neighbors, b: Neighbors) -> None:
        """Equal scores to the tolerance, and equal ids but for rows that are tied to it."""
        np.testing.assert_allclose(a.scores, b.scores, rtol=0, atol=self.score_tolerance)
        with np.errstate(invalid="ignore"):
            close = np.abs(np.diff(a.scores, axis=1)) <= 2 * self.score_tolerance
        edge = np.ones((len(a.scores), 1), dtype=np.bool_)
        tied = np.hstack([edge & False, close]) | np.hstack([close, edge])
        assert (a.ids == b.ids)[~tied].all()


def _stacked(parts: list[Neighbors]) -> Neighbors:
    return Neighbors(np.concatenate([p.ids for p in parts]), np.concatenate([p.scores for p in parts]))


def _stretched(embeddings: Any, lengths: Any = None) -> Any:
    """Vectors made longer or shorter, by 36 orders of magnitude down and 14 up where nothing is said."""
    if isinstance(embeddings, MultiVector):
        return MultiVector(_stretched(embeddings.vectors, lengths), embeddings.offsets)
    orders = np.random.default_rng(4).uniform(-36, 14, (len(embeddings), 1)) if lengths is None else 0
    return (embeddings * (10.0**orders if lengths is None else lengths)).astype(np.float32)


def _twin(index: Index[Any], folder: Path) -> Index[Any]:
    """Another index like this one, by way of the disk."""
    index.save(folder / "twin")
    return type(index).open(folder / "twin")


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])
