"""Seismic in sealed segments: nearly exact, and exact for all that is not sealed."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import seismic

from reperio import artifacts
from reperio.embeddings import Ids, Sparse, take
from reperio.errors import ConfigurationError, CorruptArtifact, DiskFull, StorageError
from reperio.indexes import InvertedIndex, SeismicIndex
from reperio.indexes.quiet import quiet
from reperio.testing.faults import file_limit
from reperio.types import Neighbors

ROWS = 6000


def learned(rows: int, *, seed: int, terms: int) -> Sparse:
    """Rows around topics, as texts are; weights as learned-sparse encoders give them."""
    rng = np.random.default_rng(seed)
    topics = np.random.default_rng(0).integers(0, 4000, (60, 50))
    columns = np.where(
        rng.random((rows, terms)) < 0.7,
        topics[rng.integers(0, 60, rows)][:, rng.integers(0, 50, terms)],
        rng.integers(0, 4000, (rows, terms)),
    )
    weights = np.log1p(rng.exponential(2, (rows, terms))).astype(np.float32)
    owner = np.repeat(np.arange(rows), terms)
    matrix = scipy.sparse.coo_array((weights.ravel(), (owner, columns.ravel())), shape=(rows, 4000)).tocsr()
    matrix.sort_indices()
    return Sparse(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data, 4000)


@pytest.fixture(scope="module")
def rows() -> Sparse:
    return learned(ROWS, seed=1, terms=30)


@pytest.fixture(scope="module")
def queries() -> Sparse:
    return learned(40, seed=2, terms=12)


@pytest.fixture
def index(rows: Sparse) -> SeismicIndex:
    index = SeismicIndex(seal_at=2500, summary_energy=0.7)
    for part in np.array_split(np.arange(ROWS), 6):
        index.add(part, take(rows, part))
    return index


def recall(index: SeismicIndex, queries: Sparse) -> float:
    found, best = index.search(queries, 10), index.exact.search(queries, 10)
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(best.ids, found.ids, strict=True)]))


def test_most_of_the_best_are_found_and_scored_exactly(index: SeismicIndex, queries: Sparse) -> None:
    assert index.sealed == ROWS
    assert recall(index, queries) >= 0.9
    found = index.search(queries, 10)
    np.testing.assert_array_equal(found.scores, index.exact.score(queries, found.ids))


def test_rows_that_are_not_sealed_are_found_exactly(index: SeismicIndex, rows: Sparse) -> None:
    new = take(rows, np.arange(100))
    index.add(np.arange(ROWS, ROWS + 100), new)
    assert len(index) - index.sealed == 100
    found, best = index.search(new, 20), index.exact.search(new, 20)
    fresh = best.ids >= ROWS
    assert fresh.sum() > 50
    assert all(np.isin(b[f], a).all() for a, b, f in zip(found.ids, best.ids, fresh, strict=True))


def test_a_term_of_no_weight_matches_nothing() -> None:
    columns = np.concatenate([np.tile([1, 2], 100), np.tile([2, 3], 100)])
    index = SeismicIndex(seal_at=100)
    index.add(np.arange(200), Sparse(np.arange(0, 401, 2), columns, np.ones(400, dtype=np.float32), 8))
    asked = Sparse(np.array([0, 2, 3, 3]), np.array([1, 3, 3]), np.array([1, 0, 0], dtype=np.float32), 8)
    found, wanted = index.search(asked, 200), index.exact.search(asked, 200)
    assert (found.ids >= 0).sum(axis=1).tolist() == [100, 0, 0]
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_array_equal(found.scores, wanted.scores)


def test_rows_that_wait_are_those_of_now_after_each_change(rows: Sparse) -> None:
    """Which they are is kept from one search to the next."""
    index = SeismicIndex(seal_at=1000)
    index.add(np.arange(1000), take(rows, np.arange(1000)))
    for step in range(1000, 1003):
        index.add(np.array([step]), take(rows, np.array([step])))
        assert step in index.search(take(rows, np.array([step])), 3).ids
    index.remove(np.array([1001]))
    index.add(np.array([4]), take(rows, np.array([1001])))
    found = index.search(take(rows, np.array([1001])), 3).ids
    assert 4 in found
    assert 1001 not in found
    assert (index.sealed, index.waiting, index.segments) == (999, 3, 1)


def test_filters_are_answered_exactly(index: SeismicIndex, queries: Sparse) -> None:
    allowed = np.arange(0, ROWS, 9)
    a, b = index.search(queries, 10, allowed=allowed), index.exact.search(queries, 10, allowed=allowed)
    np.testing.assert_array_equal(a.ids, b.ids)


def test_a_replaced_row_leaves_the_segment_it_was_in(index: SeismicIndex, rows: Sparse) -> None:
    index.add(np.array([7]), take(rows, np.array([5000])))
    assert index.sealed == ROWS - 1
    assert set(index.search(take(rows, np.array([5000])), 2).ids[0]) == {7, 5000}


def test_a_mostly_dead_segment_is_let_go(index: SeismicIndex, queries: Sparse) -> None:
    index.remove(np.arange(1600))
    assert index.sealed == ROWS - 3000
    assert len(index) == ROWS - 1600
    assert recall(index, queries) >= 0.9
    assert index.search(queries, 10).ids.min() >= 1600


def test_sealing_takes_every_row_into_one_segment(index: SeismicIndex, queries: Sparse) -> None:
    index.remove(np.arange(100))
    index.seal()
    assert index.sealed == ROWS - 100
    assert recall(index, queries) >= 0.9


def test_a_search_that_looks_further_finds_more(index: SeismicIndex, rows: Sparse, queries: Sparse) -> None:
    def found(cut: int) -> float:
        hits, best = index.search(queries, 10, options={"query_cut": cut}), index.exact.search(queries, 10)
        return float(np.mean([np.isin(a, b).mean() for a, b in zip(best.ids, hits.ids, strict=True)]))

    assert found(1) < found(12)


def test_it_opens_as_it_was_saved(index: SeismicIndex, queries: Sparse, tmp_path: Path) -> None:
    index.remove(np.arange(0, 500, 3))
    index.save(tmp_path / "saved")
    opened = SeismicIndex.open(tmp_path / "saved")
    assert opened.sealed == index.sealed
    np.testing.assert_array_equal(opened.search(queries, 10).ids, index.search(queries, 10).ids)


def test_it_prints_nothing(rows: Sparse, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    index = SeismicIndex(seal_at=100)
    index.add(np.arange(100), take(rows, np.arange(100)))
    index.save(tmp_path / "saved")
    SeismicIndex.open(tmp_path / "saved")
    assert capfd.readouterr().out == ""


def test_a_disk_without_room_for_what_it_prints_is_an_error_of_the_disk(rows: Sparse) -> None:
    """Rust panics there, which Python's programs do not expect."""
    index = SeismicIndex(seal_at=100)
    with file_limit(8), pytest.raises(DiskFull):
        index.add(np.arange(100), take(rows, np.arange(100)))
    index.add(np.arange(100), take(rows, np.arange(100)))
    assert index.segments == 1


def test_a_segment_that_cannot_be_made_leaves_everything_as_it_was(rows: Sparse, queries: Sparse) -> None:
    index = SeismicIndex(seal_at=100)
    for start in (0, 100):
        index.add(np.arange(start, start + 100), take(rows, np.arange(100)))
    index.remove(np.arange(5))
    before = index.search(queries, 9)
    with file_limit(8):
        for change in (index.seal, lambda: index.add(np.arange(150, 300), take(rows, np.arange(150, 300)))):
            with pytest.raises(DiskFull):
                change()
            assert (len(index), index.sealed, index.segments) == (195, 195, 2)
            after = index.search(queries, 9)
            np.testing.assert_array_equal(after.ids, before.ids)
            np.testing.assert_array_equal(after.scores, before.scores)


@pytest.mark.parametrize(
    ("raised", "wanted", "text"),
    [
        (OSError("it failed (code: 28)"), DiskFull, "No room"),
        (OSError("half a file"), DiskFull, "No room"),
        (OSError(errno.EMFILE, "too many"), StorageError, "Too many open files"),
        (StorageError("The disk failed.", "Check it."), StorageError, "The disk failed"),
    ],
)
def test_what_keeps_seismic_from_saving_is_told_as_it_is(
    rows: Sparse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, wanted: type[Exception], text: str
) -> None:
    class Refused:
        @staticmethod
        def build_from_dataset(*_: Any, **__: Any) -> Refused:
            return Refused()

        def save(self, path: str) -> None:
            raise raised

    monkeypatch.setattr(seismic, "SeismicIndex", Refused)
    index = SeismicIndex(seal_at=100)
    index.add(np.arange(100), take(rows, np.arange(100)))
    with pytest.raises(wanted, match=text):
        index.save(tmp_path / "saved")


def test_a_search_beside_a_removal_finds_rows_that_score_and_those_that_wait(
    rows: Sparse, queries: Sparse, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = SeismicIndex(seal_at=200)
    index.add(np.arange(200), take(rows, np.arange(200)))
    index.add(np.arange(200, 250), take(rows, np.arange(200, 250)))
    remove, found = InvertedIndex.remove, list[Neighbors]()

    def beside(self: InvertedIndex, ids: Ids, /) -> int:
        for step in (False, True):
            if step:
                removed = remove(self, ids)
            found.append(index.search(queries, 250))
        return removed

    monkeypatch.setattr(InvertedIndex, "remove", beside)
    assert index.remove(np.arange(60)) == 60
    for answers in found:
        assert np.isfinite(answers.scores[answers.ids >= 0]).all()
        assert (answers.ids >= 200).any()


def test_blank_lines_of_others_are_kept_while_it_builds(
    rows: Sparse, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It begins with a blank line of its own, which is not told from theirs by itself."""
    build = seismic.SeismicIndex.build_from_dataset

    def beside(*arguments: Any, **settings: Any) -> Any:
        os.write(1, b"mine\n\n")
        built = build(*arguments, **settings)
        os.write(1, b"\n\nmine again\n\n")
        return built

    class Beside:
        build_from_dataset = staticmethod(beside)

    monkeypatch.setattr(seismic, "SeismicIndex", Beside)
    SeismicIndex(seal_at=100).add(np.arange(100), take(rows, np.arange(100)))
    assert capfd.readouterr().out == "mine\n\n\n\nmine again\n\n"


def test_what_others_print_meanwhile_is_kept_and_all_if_it_fails(capfd: pytest.CaptureFixture[str]) -> None:
    def work(*, fails: bool) -> None:
        with quiet(re.compile(rb"step \d+")):
            os.write(1, b"step 1\nmine\nstep 2\n")
            if fails:
                raise ValueError("full")

    work(fails=False)
    assert capfd.readouterr().out == "mine\n"
    with pytest.raises(ValueError, match="full"):
        work(fails=True)
    assert capfd.readouterr().out == "step 1\nmine\nstep 2\n"


def test_checksums_are_read_once_and_again_after_a_change(
    index: SeismicIndex, queries: Sparse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.save(tmp_path / "saved")
    SeismicIndex.open(tmp_path / "saved")
    read: list[Path] = []
    monkeypatch.setattr(artifacts, "sha256", lambda file: read.append(file) or "")
    opened = SeismicIndex.open(tmp_path / "saved")
    assert not read
    np.testing.assert_array_equal(opened.search(queries, 5).ids, index.search(queries, 5).ids)
    monkeypatch.undo()
    file = tmp_path / "saved" / "exact" / "0-codes.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptArtifact, match=r"0-codes\.npy was altered"):
        SeismicIndex.open(tmp_path / "saved")


@pytest.mark.parametrize(
    "wrong",
    [
        {"seal_at": 0},
        {"query_cut": 0},
        {"heap_factor": 0.0},
        {"summary_energy": 1.5},
        {"seal_at": "9"},
        {"heap_factor": "1"},
    ],
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        SeismicIndex(**wrong)  # type: ignore[arg-type]
