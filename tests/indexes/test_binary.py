"""Binary codes: their distance, their calibration, and what they are good for."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio.errors import ConfigurationError, CorruptArtifact, ShapeError, UnsupportedOperation
from reperio.indexes import BinaryIndex, FlatIndex, binary
from reperio.indexes.chosen import KeyedRows
from reperio.registry import build
from reperio.testing.index import clustered

ROWS = 2000
VECTORS = clustered(ROWS + 50, 64)
KEYS = np.arange(ROWS) * 2
QUERIES = VECTORS[ROWS:]


def filled(factory: str = "BFlat", **arguments: object) -> BinaryIndex:
    index = BinaryIndex(factory, **arguments)  # type: ignore[arg-type]
    index.add(KEYS, VECTORS[:ROWS])
    return index


def signs(vectors: np.ndarray) -> np.ndarray:
    return np.where(vectors > 0, 1, -1)


# What a score is


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(0, 1 << 30))
def test_a_score_is_the_cosine_of_signs_in_any_number_of_dimensions(dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, queries = rng.standard_normal((30, dim)).astype(np.float32), rng.standard_normal((3, dim)).astype(np.float32)
    index = BinaryIndex()
    index.add(np.arange(30), rows)
    found, wanted = index.search(queries, 30), signs(queries) @ signs(rows).T / dim
    np.testing.assert_allclose(found.scores, np.take_along_axis(wanted, found.ids, axis=1), atol=1e-6)
    np.testing.assert_array_equal(found.scores, index.score(queries, found.ids))
    order = np.lexsort((np.tile(np.arange(30), (3, 1)), -wanted.round(6)), axis=1)
    np.testing.assert_array_equal(found.ids, order)


def test_codes_are_those_of_faiss() -> None:
    bare = faiss.IndexBinaryFlat(64)
    bare.add(np.packbits(VECTORS[:ROWS] > 0, axis=1))
    distances, _ = bare.search(np.packbits(QUERIES > 0, axis=1), 10)
    np.testing.assert_allclose(filled().search(QUERIES, 10).scores, 1 - distances / 32, atol=1e-6)


@pytest.mark.parametrize("factory", ["BFlat", "BHNSW16", "BIVF16"])
def test_of_rows_that_are_tied_the_first_are_found(factory: str) -> None:
    index = BinaryIndex(factory, train_size=100, options={"nprobe": 16} if factory == "BIVF16" else None)
    index.add(np.arange(200), np.repeat(VECTORS[:2], 100, axis=0))
    for allowed in (None, np.arange(50, 200)):
        if factory == "BFlat" or allowed is not None:
            first = 0 if allowed is None else 50
            assert index.search(VECTORS[:1], 5, allowed=allowed).ids[0].tolist() == list(range(first, first + 5))
        assert (index.search(VECTORS[:1], 5, allowed=allowed).ids < 100).all()


@pytest.mark.parametrize("factory", ["BHNSW4", "BIVF32"])
def test_a_graph_and_lists_find_nearly_what_comparing_every_code_finds(factory: str) -> None:
    index = filled(factory, train_size=1500)
    found, wanted = index.search(QUERIES, 10), index.exact(QUERIES, 10)
    np.testing.assert_array_equal(wanted.scores, filled().search(QUERIES, 10).scores)
    assert (found.scores >= wanted.scores[:, -1:]).mean() > 0.95
    narrow = index.search(QUERIES, 10, options={"nprobe": 1} if factory == "BIVF32" else {"efSearch": 1})
    assert (narrow.scores >= wanted.scores[:, -1:]).mean() < (found.scores >= wanted.scores[:, -1:]).mean()


def test_a_hundred_codes_hold_most_of_the_ten_nearest_vectors() -> None:
    exact = FlatIndex()
    exact.add(KEYS, VECTORS[:ROWS])
    wanted = exact.search(QUERIES, 10).ids
    shares = [
        np.mean([np.isin(w, f).mean() for w, f in zip(wanted, filled().search(QUERIES, k).ids, strict=True)])
        for k in (10, 100)
    ]
    assert shares[0] > 0.25
    assert shares[1] > 0.75


# Calibration


def test_medians_tell_rows_apart_where_signs_cannot() -> None:
    shifted = VECTORS + np.float32(0.5)  # hardly a component below zero
    exact = FlatIndex("l2")
    exact.add(KEYS, shifted[:ROWS])
    wanted = exact.search(shifted[ROWS:], 10).ids
    shares = {}
    for calibration in ("sign", "median"):
        index = BinaryIndex(calibration=calibration, train_size=1000)
        index.add(KEYS, shifted[:ROWS])
        found = index.search(shifted[ROWS:], 10).ids
        shares[calibration] = np.mean([np.isin(w, f).mean() for w, f in zip(wanted, found, strict=True)])
    assert shares["sign"] < 0.1
    assert shares["median"] > 0.25


def test_half_of_the_sample_lies_on_each_side_of_a_median() -> None:
    index = BinaryIndex(calibration="median")
    assert index.training_size == 4096
    index.train(VECTORS[:999] + np.arange(64, dtype=np.float32))
    assert index.training_size == 0
    index.add(np.arange(999), VECTORS[:999] + np.arange(64, dtype=np.float32))
    against = index.score(VECTORS[:1] * 0 + np.float32(1e9), np.arange(999)[None])  # all bits set
    assert abs(against.mean()) < 0.01


def test_rows_wait_for_the_sample_and_are_found_meanwhile(tmp_path: Path) -> None:
    index = BinaryIndex("BIVF16", calibration="median", train_size=1000)
    for start in range(0, ROWS, 250):
        index.add(KEYS[start : start + 250], VECTORS[start : start + 250])
        assert index.training_size == (1000 if start + 250 < 1000 else 0)
        np.testing.assert_array_equal(index.ids, KEYS[: start + 250])
        own = index.search(VECTORS[: start + 250], 1, options={"nprobe": 16})
        assert (own.scores == 1).all()
        if start == 500:
            index.remove(KEYS[:3])
            assert index.search(VECTORS[:1], 800).ids.max() == KEYS[749]
            index.save(tmp_path / "waiting")
            index = BinaryIndex.open(tmp_path / "waiting")
            index.add(KEYS[:3], VECTORS[:3])


def test_training_says_when_there_is_nothing_to_learn_or_too_little() -> None:
    with pytest.raises(UnsupportedOperation, match="nothing to learn"):
        BinaryIndex().train(VECTORS)
    index = BinaryIndex("BIVF64")
    assert index.training_size == 4096
    with pytest.raises(ShapeError, match=r"10 vectors.*64 lists"):
        index.train(VECTORS[:10])
    index.train(VECTORS)
    with pytest.raises(UnsupportedOperation, match="nothing to learn"):
        index.train(VECTORS)


@pytest.mark.parametrize("calibration", ["sign", "median"])
@pytest.mark.parametrize("factory", ["BFlat", "BHNSW16", "BIVF16"])
def test_rows_that_cannot_be_taken_in_leave_all_as_it_was(
    factory: str, calibration: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise MemoryError

    changing = [(KeyedRows, "append"), (FlatIndex, "add"), (binary, "KeyedRows"), (binary, "encoded")]
    changing += [(kind, name) for kind in (faiss.IndexBinaryIVF, faiss.IndexBinaryHNSW) for name in ("add", "train")]
    failed = 0
    for (where, name), part in product(changing, (np.arange(5), np.arange(60, 130))):  # too few to learn from, enough
        index = BinaryIndex(factory, calibration=calibration, train_size=100)  # type: ignore[arg-type]
        index.add(KEYS[:90], VECTORS[:90])
        before, waiting, wanted = index.search(QUERIES, 200), index.waiting, index.training_size
        with monkeypatch.context() as patched:
            patched.setattr(where, name, refused)
            try:
                index.add(KEYS[part], -VECTORS[part])
            except MemoryError:
                failed += 1
            else:  # what is patched had no part in it
                continue
        after = index.search(QUERIES, 200)
        np.testing.assert_array_equal(after.ids, before.ids)
        np.testing.assert_array_equal(after.scores, before.scores)
        assert (index.waiting, index.training_size) == (waiting, wanted)
        index.add(KEYS[part], VECTORS[part])
        np.testing.assert_array_equal(index.ids, np.union1d(KEYS[:90], KEYS[part]))
    assert failed >= 4


# Changing and keeping


@pytest.mark.parametrize("factory", ["BFlat", "BHNSW16", "BIVF16"])
def test_compacting_gives_back_dead_positions(factory: str, tmp_path: Path) -> None:
    index = filled(factory, train_size=1000)
    index.remove(KEYS[:1500])
    before = index.exact(QUERIES, 50)
    index.save(tmp_path / "before")
    index.compact()
    index.save(tmp_path / "after")
    sizes = [(tmp_path / name / "codes.npy").stat().st_size for name in ("before", "after")]
    assert sizes[1] < 0.3 * sizes[0]
    np.testing.assert_array_equal(index.exact(QUERIES, 50).scores, before.scores)
    assert (index.search(QUERIES, 600).ids >= 0).sum() == 500 * len(QUERIES)
    index.add(KEYS[:10], VECTORS[:10])
    assert (index.search(VECTORS[:10], 1, options=None).scores == 1).all()


@pytest.mark.parametrize(("factory", "kind"), [("BHNSW16", faiss.IndexBinaryHNSW), ("BIVF16", faiss.IndexBinaryIVF)])
def test_compacting_that_fails_changes_nothing(factory: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    index = filled(factory, train_size=1000)
    index.remove(KEYS[:500])
    before = index.search(QUERIES, 50)

    def refused(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(kind, "add", refused)
        with pytest.raises(MemoryError):
            index.compact()
    after = index.search(QUERIES, 50)
    np.testing.assert_array_equal(after.ids, before.ids)
    np.testing.assert_array_equal(after.scores, before.scores)


@pytest.mark.parametrize("factory", ["BFlat", "BHNSW16"])
def test_mapped_codes_can_be_searched_and_changed(factory: str, tmp_path: Path) -> None:
    index = filled(factory)
    index.save(tmp_path / "index")
    mapped = BinaryIndex.open(tmp_path / "index", mmap=True)
    shutil.rmtree(tmp_path / "index")
    np.testing.assert_array_equal(mapped.search(QUERIES, 10).scores, index.search(QUERIES, 10).scores)
    mapped.add(np.array([1]), QUERIES[:1])
    mapped.remove(KEYS[:1])
    assert mapped.search(QUERIES[:1], 1).ids[0, 0] == 1
    mapped.save(tmp_path / "again")
    np.testing.assert_array_equal(BinaryIndex.open(tmp_path / "again").ids, np.sort([1, *KEYS[1:]]))


def test_a_folder_whose_parts_do_not_belong_together_is_refused(tmp_path: Path) -> None:
    from reperio.artifacts import new_folder

    filled().save(tmp_path / "index")
    with new_folder(
        tmp_path / "mixed", "binary-index", {"spec": dict(BinaryIndex().spec), "dim": 64, "learnt": False}
    ) as to:
        for name in ("ids.npy", "alive.npy", "codes.npy"):
            shutil.copy(tmp_path / "index" / name, to / name)
        np.save(to / "codes.npy", np.zeros((3, 8), dtype=np.uint8))
        shutil.copytree(tmp_path / "index" / "waiting", to / "waiting")
    with pytest.raises(CorruptArtifact, match=r"codes\.npy holds uint8"):
        BinaryIndex.open(tmp_path / "mixed")


# Arguments


def test_its_specification_keeps_every_argument() -> None:
    given = {"factory": "BIVF16", "calibration": "median", "train_size": 99, "seed": 4, "options": {"nprobe": 3}}
    index = BinaryIndex(**given)  # type: ignore[arg-type]
    assert index.spec == {"type": "BinaryIndex", **given}
    assert build(index.spec).spec == index.spec


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"factory": "Flat"}, "Flat"),
        ({"factory": "BHash16"}, "BHash16"),
        ({"calibration": "mean"}, "mean"),
        ({"train_size": 0}, "train_size"),
        ({"train_size": "9"}, "train_size is '9'"),
        ({"factory": 5}, "FAISS cannot build 5"),
        ({"options": 5}, "options is 5"),
        ({"factory": "BIVF64", "train_size": 63}, r"train_size is 63, and 'BIVF64' learns 64 lists.*64 or more"),
        ({"options": {"nprobe": 3}}, r"BinaryIndex\('BFlat'\) has no search option 'nprobe'. It has none"),
        ({"factory": "BIVF8", "options": {"efSearch": 3}}, "It has: nprobe"),
        ({"factory": "BHNSW8", "options": {"efSearch": 0}}, "positive"),
    ],
)
def test_a_wrong_argument_is_refused_at_once(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        BinaryIndex(**arguments)  # type: ignore[arg-type]


def test_an_index_that_has_learnt_and_holds_nothing_opens(tmp_path: Path) -> None:
    index = BinaryIndex("BIVF8")
    index.train(np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32))
    index.save(tmp_path / "index")
    assert len(BinaryIndex.open(tmp_path / "index")) == 0
