"""Late interaction: exact against its definition, coded against exact, and through a collection's life."""

from __future__ import annotations

import json
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio import Collection, Document, Field
from reperio.artifacts import MANIFEST, sealed, sha256
from reperio.embeddings import Dense, MultiVector, take
from reperio.errors import (
    ConfigurationError,
    CorruptArtifact,
    DuplicateId,
    InvalidInput,
    ShapeError,
    UnsupportedOperation,
)
from reperio.indexes import MultiVectorIndex, maxsim, multivector_probing, residual
from reperio.indexes.residual import Codec, Codes, kmeans
from reperio.signals import Signal
from reperio.types import Encoded, Fingerprint, Neighbors


def texts(rows: int, *, dim: int = 32, shortest: int = 1, longest: int = 12, seed: int = 0) -> MultiVector:
    """Rows of unit vectors: one of 200 words each, bent by its row's theme and by chance."""
    words = np.random.default_rng(7).standard_normal((200, dim))
    rng = np.random.default_rng(seed)
    counts = rng.integers(shortest, longest + 1, rows)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    vectors = words[rng.integers(0, 200, offsets[-1])] + 0.3 * rng.standard_normal((offsets[-1], dim))
    vectors += 0.3 * np.repeat(rng.standard_normal((rows, dim)), counts, axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return MultiVector(vectors.astype(np.float32), offsets)


def by_definition(queries: MultiVector, documents: MultiVector, *, cosine: bool) -> Dense:
    """MaxSim, one product at a time, in double precision."""

    def rows(embeddings: MultiVector) -> Iterator[Any]:
        for i in range(len(embeddings)):
            row = embeddings.row(i).astype(np.float64)
            yield row / np.linalg.norm(row, axis=1, keepdims=True) if cosine else row

    asked, held = list(rows(queries)), list(rows(documents))
    return np.array([[sum(max(float(x @ y) for y in d) for x in q) for d in held] for q in asked], dtype=np.float32)


def best(scores: Dense, k: int) -> Dense:
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def recall(found: Neighbors, exact: Neighbors) -> float:
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(exact.ids, found.ids, strict=True)]))


def same(a: Neighbors, b: Neighbors) -> None:
    """Equal to the bit."""
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.scores, b.scores)


@pytest.fixture
def in_numpy(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, numba is not installed."""

    def forget() -> None:
        for module in (maxsim, multivector_probing, residual):
            monkeypatch.setattr(module, "installed", lambda name: name != "numba")

    return forget


@pytest.fixture(scope="module")
def corpus() -> MultiVector:
    return texts(3000)


@pytest.fixture(scope="module")
def asked() -> MultiVector:
    return texts(30, shortest=4, seed=50)


@pytest.fixture(scope="module")
def coded(corpus: MultiVector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an index of the corpus lies, over codes of 4 bits, in several segments."""
    index = MultiVectorIndex("residual", train_size=1000)
    for part in np.split(np.arange(len(corpus)), [1200, 2100, 2700]):
        index.add(part, take(corpus, part))
    folder = tmp_path_factory.mktemp("coded") / "index"
    index.save(folder)
    return folder


# Exact search


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_a_score_is_what_the_definition_says(metric: Any) -> None:
    documents, queries = texts(40, dim=7), texts(6, dim=7, seed=9)
    documents.vectors[:] *= np.random.default_rng(0).uniform(0.1, 9, (len(documents.vectors), 1))
    index = MultiVectorIndex(metric=metric)
    index.add(np.arange(40), documents)
    wanted = by_definition(queries, documents, cosine=metric == "cosine")
    found = index.search(queries, 40)
    np.testing.assert_array_equal(found.ids, best(wanted, 40))
    np.testing.assert_allclose(np.sort(wanted, axis=1)[:, ::-1], found.scores, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(index.score(queries, np.tile(np.arange(40), (6, 1))), wanted, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_history_finds_what_a_fresh_index_finds_to_the_bit(data: st.DataObject) -> None:
    """Neither batches, nor segments, nor the order of adding, nor dead rows change a score."""
    pool, queries = texts(60, dim=8, longest=4), texts(5, dim=8, seed=3)
    index, held = MultiVectorIndex(), dict[int, int]()
    for _ in range(data.draw(st.integers(1, 6))):
        keys = np.array(data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=30, unique=True)))
        if data.draw(st.booleans()):
            rows = np.array(data.draw(st.lists(st.integers(0, 59), min_size=len(keys), max_size=len(keys))))
            index.add(keys, take(pool, rows))
            held.update(zip(keys.tolist(), rows.tolist(), strict=True))
        else:
            assert index.remove(keys) == sum(held.pop(key, None) is not None for key in keys.tolist())
    np.testing.assert_array_equal(index.ids, sorted(held))
    fresh = MultiVectorIndex()
    fresh.add(np.array(sorted(held), dtype=np.int64), take(pool, np.array([held[k] for k in sorted(held)], np.int64)))
    allowed = np.array(sorted(data.draw(st.sets(st.integers(0, 45)))), dtype=np.int64)
    for k in (1, 7, 50):
        together = index.search(queries, k)
        same(together, fresh.search(queries, k))
        for i in range(5):
            alone = index.search(take(queries, np.array([i])), k)
            same(alone, Neighbors(together.ids[[i]], together.scores[[i]]))
        same(index.search(queries, k, allowed=allowed), fresh.search(queries, k, allowed=allowed))


def test_equal_rows_come_in_the_order_of_their_keys() -> None:
    rows = take(texts(3), np.array([1, 1, 1, 0, 1]))
    index = MultiVectorIndex()
    index.add(np.array([9, 4, 30, 1, 6]), rows)
    assert index.search(take(rows, np.array([0])), 3).ids.tolist() == [[4, 6, 9]]


def test_many_blocks_give_what_one_gives(monkeypatch: pytest.MonkeyPatch, corpus: MultiVector, asked: Any) -> None:
    index = MultiVectorIndex()
    index.add(np.arange(len(corpus)), corpus)
    some = np.arange(0, len(corpus), 7)
    wanted, filtered = index.search(asked, 10), index.search(asked, 10, allowed=some)
    monkeypatch.setattr("reperio.indexes.multivector._VALUES", 32 * 50)
    monkeypatch.setattr(maxsim, "_PRODUCTS", 300)
    monkeypatch.setattr(maxsim, "_ASKED", 17)
    same(index.search(asked, 10), wanted)
    same(index.search(asked, 10, allowed=some), filtered)


def test_without_numba_exact_results_are_the_same_to_the_bit(
    corpus: MultiVector, asked: MultiVector, in_numpy: Callable[[], None]
) -> None:
    index = MultiVectorIndex()
    index.add(np.arange(len(corpus)), corpus)
    wanted = index.search(asked, 20)
    in_numpy()
    same(index.search(asked, 20), wanted)


# Codes


@pytest.mark.parametrize("dim", [1, 7, 32, 50])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_are_the_same_with_and_without_numba(bits: Any, dim: int, in_numpy: Callable[[], None]) -> None:
    vectors = texts(300, dim=dim).vectors
    codec = Codec.learn(vectors, 16, bits=bits, unit=dim > 1)
    codes = codec.encode(vectors)
    read = codec.decode(codes)
    assert codes.residuals.shape == (len(vectors), -(-dim * bits // 8))
    in_numpy()
    again = codec.encode(vectors)
    np.testing.assert_array_equal(again.centroids, codes.centroids)
    np.testing.assert_array_equal(again.residuals, codes.residuals)
    np.testing.assert_allclose(codec.decode(codes), read, rtol=0, atol=1e-6)


def test_each_bit_more_reads_back_nearer_and_a_vector_alone_as_in_a_batch() -> None:
    vectors = texts(2000).vectors
    errors = []
    for bits in (2, 4, 8):
        codec = Codec.learn(vectors, 64, bits=bits, unit=True)
        codes = codec.encode(vectors)
        read = codec.decode(codes)
        errors.append(float(((read - vectors) ** 2).sum(axis=1).mean()))
        np.testing.assert_allclose(np.linalg.norm(read, axis=1), 1, atol=1e-6)
        few = codec.decode(Codes(codes.centroids[5:9], codes.residuals[5:9]))
        np.testing.assert_array_equal(few, read[5:9])
    plain = float(((vectors - codec.centroids[codes.centroids]) ** 2).sum(axis=1).mean())
    # A Gaussian's best scalar quantiser leaves 0.1175 and 0.0095 of the variance at 2 and 4 bits (Max 1960).
    assert errors[0] < 0.13 * plain
    assert errors[1] < 0.013 * plain
    assert errors[2] < 0.0005 * plain


def test_levels_follow_each_dimension() -> None:
    """Dimensions of very different spread, as after a projection on principal components."""
    spread = np.array([100, 1, 0.01, 0], dtype=np.float32)
    vectors = np.random.default_rng(0).standard_normal((4000, 4), dtype=np.float32) * spread
    codec = Codec.learn(vectors, 1, bits=4, unit=False)
    error = ((codec.decode(codec.encode(vectors)) - vectors) ** 2).mean(axis=0)
    assert (error <= 0.015 * spread**2).all()


def test_k_means_is_as_good_as_that_of_faiss() -> None:
    faiss = pytest.importorskip("faiss")
    vectors = texts(3000, dim=16).vectors

    def error(centres: Dense) -> float:
        return float(((vectors[:, None, :] - centres) ** 2).sum(axis=2).min(axis=1).mean())

    own = kmeans(vectors, 50, spherical=False, rng=np.random.default_rng(0))
    peer = faiss.Kmeans(16, 50, niter=6, seed=0)
    peer.train(vectors)
    assert error(own) <= 1.03 * error(peer.centroids)


def test_k_means_gives_every_centre_a_vector_where_there_are_enough() -> None:
    """Ten places, most vectors at one of them: a start that draws that place often must spread."""
    places = np.eye(10, dtype=np.float32)
    vectors = places[np.concatenate([np.zeros(500, dtype=np.int64), np.arange(10)])]
    centres = kmeans(vectors, 10, spherical=True, rng=np.random.default_rng(0))
    assert {int(row.argmax()) for row in centres if np.isclose(row.max(), 1)} == set(range(10))


# Coded search


def test_it_is_exact_until_it_has_learnt_and_learns_when_there_are_enough(
    corpus: MultiVector, asked: MultiVector
) -> None:
    index, exact = MultiVectorIndex("residual", centroids=200, train_size=1000), MultiVectorIndex()
    assert (index.training_size, exact.training_size) == (1000, 0)
    first, rest = np.arange(999), np.arange(999, 3000)
    for each in (index, exact):
        each.add(first, take(corpus, first))
    same(index.search(asked, 10), exact.search(asked, 10))
    for each in (index, exact):
        each.add(rest, take(corpus, rest))
    assert index.training_size == 0
    assert not index.lossless
    np.testing.assert_array_equal(index.ids, exact.ids)
    found = index.search(asked, 10)
    assert 0.9 <= recall(found, exact.search(asked, 10)) < 1 or (found.scores != exact.search(asked, 10).scores).any()
    with pytest.raises(UnsupportedOperation, match="nothing to learn"):
        index.train(corpus)
    with pytest.raises(UnsupportedOperation, match="nothing to learn"):
        exact.train(corpus)


@pytest.mark.parametrize(("bits", "floor"), [(2, 0.85), (4, 0.94), (8, 0.97)])
def test_codes_find_what_exact_search_finds(corpus: MultiVector, asked: MultiVector, bits: Any, floor: float) -> None:
    index, exact = MultiVectorIndex("residual", bits=bits, train_size=2000), MultiVectorIndex()
    for each in (index, exact):
        each.add(np.arange(len(corpus)), corpus)
    assert recall(index.search(asked, 10), exact.search(asked, 10)) >= floor


def test_more_effort_finds_more(monkeypatch: pytest.MonkeyPatch, coded: Path, corpus: MultiVector) -> None:
    monkeypatch.setattr(multivector_probing, "_SCANNED", 0)
    asked, index = texts(25, shortest=4, seed=50), MultiVectorIndex.open(coded)
    everything = index.search(asked, 10, options={"nprobe": 10**6, "candidates": 10**6})
    np.testing.assert_allclose(index.score(asked, everything.ids), everything.scores, rtol=0, atol=1e-6)
    efforts = [(1, 10), (1, 40), (4, 40), (4, 400), (64, 3000)]
    shares = [recall(index.search(asked, 10, options={"nprobe": p, "candidates": c}), everything) for p, c in efforts]
    assert shares == sorted(shares)
    assert shares[0] < 0.8
    assert shares[-1] >= 0.999


@pytest.mark.parametrize("scanned", [0, 10**6])
def test_a_filter_gets_all_it_lets_pass(monkeypatch: pytest.MonkeyPatch, coded: Path, scanned: int) -> None:
    """However few centroids are probed, whether or not rows are scanned."""
    monkeypatch.setattr(multivector_probing, "_SCANNED", scanned)
    asked, index = texts(10, shortest=4, seed=50), MultiVectorIndex.open(coded)
    everything = index.search(asked, 3000, options={"nprobe": 10**6})
    for count in (1, 5, 40, 400, 2900):
        allowed = np.sort(np.random.default_rng(count).choice(3000, count, replace=False))
        found = index.search(asked, 30, allowed=allowed, options={"nprobe": 1, "candidates": 60})
        assert ((found.ids >= 0).sum(axis=1) == min(30, count)).all()
        wanted = [row[np.isin(row, allowed)][:30] for row in everything.ids]
        assert np.mean([np.isin(w, f).mean() for w, f in zip(wanted, found.ids, strict=True)]) >= 0.8


def test_segments_do_not_change_what_codes_find(coded: Path, corpus: MultiVector, asked: MultiVector) -> None:
    """One segment or many, once learnt: the same centroids, the same candidates, the same scores."""
    index = MultiVectorIndex.open(coded)
    found = index.search(asked, 10)
    order = np.random.default_rng(0).permutation(len(corpus))
    index.remove(order)
    assert len(index) == 0
    for part in np.array_split(order, 9):
        index.add(part, take(corpus, part))
    same(index.search(asked, 10), found)


def test_without_numba_codes_find_the_same(coded: Path, asked: MultiVector, in_numpy: Callable[[], None]) -> None:
    index = MultiVectorIndex.open(coded)
    wanted = index.search(asked, 10)
    in_numpy()
    found = index.search(asked, 10)
    assert recall(found, wanted) >= 0.99
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=0, atol=1e-5)


def test_a_sample_of_too_few_vectors_is_refused(corpus: MultiVector) -> None:
    index = MultiVectorIndex("residual", centroids=100)
    with pytest.raises(ShapeError, match="to learn 100 centroids"):
        index.train(take(corpus, np.arange(3)))
    with pytest.raises(ShapeError, match="0 vectors"):
        MultiVectorIndex("residual").train(take(corpus, np.arange(0)))
    assert index.training_size == 4096
    index.train(take(corpus, np.arange(500)))
    assert index.training_size == 0


def test_rows_wait_until_there_are_vectors_for_all_centroids(corpus: MultiVector) -> None:
    """The size of the sample counts rows; how many vectors these have, only they tell."""
    index = MultiVectorIndex("residual", centroids=500, train_size=10)
    index.add(np.arange(40), take(corpus, np.arange(40)))
    assert index.training_size == 10
    index.add(np.arange(40, 400), take(corpus, np.arange(40, 400)))
    assert index.training_size == 0
    tiny = MultiVectorIndex("residual", train_size=1)
    tiny.add(np.array([3]), take(corpus, np.array([0])))
    assert tiny.training_size == 0
    assert tiny.search(take(corpus, np.array([0])), 2).ids.tolist() == [[3, -1]]


def test_reading_back_in_many_runs_gives_what_one_gives(monkeypatch: pytest.MonkeyPatch, coded: Path) -> None:
    index, asked = MultiVectorIndex.open(coded), texts(4, shortest=4, seed=50)
    wanted = index.search(asked, 200)
    monkeypatch.setattr("reperio.indexes.multivector._VALUES", 32 * 50)
    same(index.search(asked, 200), wanted)


# Segments


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_the_callers_arrays_are_not_held(metric: Any) -> None:
    """A buffer that is filled again must not change what was added from it."""
    index, keys, rows = MultiVectorIndex(metric=metric), np.arange(20), texts(20)
    index.add(keys, rows)
    queries = texts(4, seed=2)
    before = index.search(queries, 5)
    keys += 1
    rows.vectors[:] = 0
    rows.offsets[1:-1] += 1
    same(index.search(queries, 5), before)
    np.testing.assert_array_equal(index.ids, np.arange(20))


def test_rows_added_one_by_one_make_few_segments() -> None:
    pool, index = texts(600, dim=4, longest=2), MultiVectorIndex()
    for i in range(600):
        index.add(np.array([i]), take(pool, np.array([i])))
    assert len(index._view.segments) <= 4
    whole = MultiVectorIndex()
    whole.add(np.arange(600), pool)
    same(index.search(pool, 3), whole.search(pool, 3))


@pytest.mark.parametrize("codes", [None, "residual"])
def test_dead_rows_take_no_more_room_than_live_ones(codes: Any, tmp_path: Path) -> None:
    pool = texts(1000)
    index = MultiVectorIndex(codes, centroids=32, train_size=500)
    index.add(np.arange(1000), pool)
    index.save(tmp_path / "full")
    for part in np.array_split(np.arange(950), 19):
        index.remove(part)
    index.save(tmp_path / "thin")

    def size(name: str) -> int:
        return sum(file.stat().st_size for file in (tmp_path / name).glob("[0-9]*"))

    assert size("thin") <= 0.15 * size("full")
    np.testing.assert_array_equal(index.ids, np.arange(950, 1000))


@pytest.mark.parametrize("codes", [None, "residual"])
def test_searches_go_on_while_rows_come_and_go(codes: Any) -> None:
    """A search sees one state: never a removed and a new version of one row, never a half-made segment."""
    pool, queries = texts(400, longest=5), texts(5, longest=5, seed=8)
    index = MultiVectorIndex(codes, centroids=32, train_size=200)
    index.add(np.arange(300), take(pool, np.arange(300)))
    stop, problems = threading.Event(), list[BaseException]()

    def read() -> None:
        try:
            while not stop.is_set():
                found = index.search(queries, 320)
                for row in found.ids:
                    held = row[row >= 0]
                    assert len(np.unique(held)) == len(held) >= 280
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    rng = np.random.default_rng(0)
    for _ in range(40):
        keys = np.sort(rng.choice(300, 20, replace=False))
        if rng.random() < 0.5:
            index.remove(keys)
        index.add(keys, take(pool, keys + 100))
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems
    assert len(index) == 300


# Disk


def test_a_mapped_index_opens_at_once_and_answers_alike(coded: Path, asked: MultiVector, tmp_path: Path) -> None:
    plain = MultiVectorIndex()
    big = texts(3000, dim=64, longest=30)
    plain.add(np.arange(3000), big)
    plain.save(tmp_path / "plain")
    for path, queries in ((coded, asked), (tmp_path / "plain", take(big, np.arange(5)))):
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            mapped = MultiVectorIndex.open(path, mmap=True)
            seconds.append(time.perf_counter() - start)
        assert min(seconds) < 0.05
        same(mapped.search(queries, 10), MultiVectorIndex.open(path).search(queries, 10))
        column = max(mapped._view.segments[0].columns, key=lambda column: column.nbytes)
        assert isinstance(column.base, np.memmap)


def test_a_mapped_index_goes_on_and_leaves_its_files_alone(coded: Path, corpus: MultiVector) -> None:
    before = {file.name: file.read_bytes() for file in coded.iterdir()}
    mapped = MultiVectorIndex.open(coded, mmap=True)
    mapped.remove(np.arange(2500))
    mapped.add(np.arange(10), take(corpus, np.arange(10)))
    assert len(mapped) == 510
    assert mapped.search(take(corpus, np.arange(10)), 1).ids[:, 0].tolist() == list(range(10))
    assert {file.name: file.read_bytes() for file in coded.iterdir()} == before


def test_mapping_checks_sizes_and_leaves_the_bytes_to_a_full_opening(coded: Path, tmp_path: Path) -> None:
    shutil.copytree(coded, tmp_path / "c")
    file = tmp_path / "c" / "0-residuals.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    MultiVectorIndex.open(tmp_path / "c", mmap=True)
    with pytest.raises(CorruptArtifact, match="SHA-256"):
        MultiVectorIndex.open(tmp_path / "c")
    file.write_bytes(data[:-1])
    with pytest.raises(CorruptArtifact, match="bytes long"):
        MultiVectorIndex.open(tmp_path / "c", mmap=True)


def sealed_again(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change an array and the checksums with it, as only a program that goes wrong, or an attacker, does."""
    np.save(folder / name, change(np.load(folder / name)))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
    (folder / MANIFEST).write_text(sealed(manifest))


def raised(place: int, by: int) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array[place] += by
        return array

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("0-ids.npy", raised(3, 5)),
        ("0-ids.npy", lambda array: array.astype(np.float64)),
        ("0-alive.npy", lambda array: array[:-1]),
        ("0-offsets.npy", raised(-1, 8)),
        ("0-offsets.npy", raised(7, 10**6)),
        ("0-centroids.npy", raised(11, 10**6)),
        ("0-centroids.npy", raised(11, -(10**6))),
        ("0-centroids.npy", lambda array: array[:-1]),
        ("0-residuals.npy", lambda array: array[:, 1:]),
        ("0-members.npy", raised(0, 10**6)),
        ("0-lists.npy", raised(-1, 10**6)),
        ("0-starts.npy", raised(2, 10**6)),
        ("codec-centroids.npy", lambda array: array[:, 1:]),
        ("codec-centroids.npy", lambda array: array[:5]),
        ("codec-levels.npy", lambda array: array[:, :4]),
        ("codec-cuts.npy", lambda array: array.astype(np.float64)),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_compiled_code_reads_them(
    coded: Path, tmp_path: Path, name: str, change: Any
) -> None:
    shutil.copytree(coded, tmp_path / "c")
    sealed_again(tmp_path / "c", name, change)
    with pytest.raises(CorruptArtifact, match="no MultiVectorIndex"):
        MultiVectorIndex.open(tmp_path / "c")


@pytest.mark.parametrize("name", ["0-offsets.npy", "0-vectors.npy", "0-bound.npy"])
def test_exact_arrays_that_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    index = MultiVectorIndex()
    index.add(np.arange(50), texts(50))
    index.save(tmp_path / "c")
    sealed_again(tmp_path / "c", name, lambda array: np.concatenate([array, array]))
    for mmap in (False, True):
        with pytest.raises(CorruptArtifact, match="no MultiVectorIndex"):
            MultiVectorIndex.open(tmp_path / "c", mmap=mmap)


# Bad input


def two(vectors: object = ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)), offsets: object = (0, 2, 3)) -> MultiVector:
    return MultiVector(np.array(vectors, dtype=np.float32), np.array(offsets))


BAD = {
    "a matrix": (np.eye(2, dtype=np.float32), "is a ndarray, not a MultiVector"),
    "NaN": (two([[1, 0], [0, np.nan], [1, 1]]), "row 1, holds NaN or infinity"),
    "infinity": (two([[1, 0], [0, 1], [np.inf, 1]]), "row 2, holds NaN or infinity"),
    "an empty row": (two(offsets=[0, 3, 3]), "row 1, has no vector"),
    "descending offsets": (two(offsets=[0, 4, 3]), "descends after row 1"),
    "too few offsets": (two(offsets=[0, 3]), "(1 ids|2 ids|1 rows)"),
    "offsets that start late": (two(offsets=[1, 2, 3]), "goes from 1 to 3"),
    "offsets that end early": (two(offsets=[0, 1, 2]), "goes from 0 to 2, and there are 3 vectors"),
    "no offsets": (two(offsets=[]), "offsets has shape"),
    "fractional offsets": (two(offsets=[0.0, 2.0, 3.0]), "float64"),
    "another dimension": (two([[1, 0, 0]] * 3), "3 dimensions, expected 2"),
    "one long vector": (two([1.0, 2.0, 3.0]), "not \\(n, d\\)"),
    "texts": (MultiVector(np.array([["a"]] * 3), np.array([0, 2, 3])), "not a number"),
}


@pytest.mark.parametrize("codes", [None, "residual"])
@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named_and_nothing_is_changed(name: str, codes: Any) -> None:
    wrong, message = BAD[name]
    index = MultiVectorIndex(codes)
    index.add(np.array([1, 2]), two())
    with pytest.raises(ShapeError, match=message):
        index.add(np.array([2, 3]), wrong)  # type: ignore[arg-type]
    np.testing.assert_array_equal(index.ids, [1, 2])
    if name != "too few offsets":
        for call in (lambda: index.search(wrong, 1), lambda: index.score(wrong, np.array([[1], [2]]))):  # type: ignore[arg-type]
            with pytest.raises(ShapeError, match=message):
                call()
    assert index.search(two(), 1).ids.tolist() == [[1], [2]]


def test_bad_keys_and_counts_are_refused() -> None:
    index = MultiVectorIndex()
    with pytest.raises(DuplicateId):
        index.add(np.array([3, 3]), two())
    with pytest.raises(InvalidInput, match="negative"):
        index.add(np.array([-1, 3]), two())
    with pytest.raises(ShapeError, match="1 ids for 2"):
        index.add(np.array([3]), two())
    with pytest.raises(InvalidInput, match="k is 0"):
        index.search(two(), 0)
    assert len(index) == 0
    assert index.dim is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"codes": "pq"}, "codes is 'pq'"),
        ({"bits": 3}, "bits is 3"),
        ({"metric": "l2"}, "metric is 'l2'"),
        ({"centroids": 0}, "centroids is 0"),
        ({"train_size": -5}, "train_size is -5"),
        ({"options": {"nprobe": 2}}, "no search option 'nprobe'"),
        ({"codes": "residual", "options": {"nprobe": 0}}, "nprobe is 0"),
        ({"codes": "residual", "options": {"candidates": 1.5}}, "candidates is 1.5"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MultiVectorIndex(**arguments)


# In a collection


class WordVectors:
    """One vector for each word, the same wherever it stands."""

    fingerprint = Fingerprint.make("multi-vector", "word-vectors", 16)
    spec = {"type": "WordVectors"}  # noqa: RUF012 - a test's encoder

    def encode_query(self, texts: Sequence[str], /) -> Encoded[MultiVector]:
        return self._encode(texts)

    def encode_document(self, texts: Sequence[str], /) -> Encoded[MultiVector]:
        return self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> Encoded[MultiVector]:
        words = [text.split() for text in texts]
        seeds = [zlib.crc32(word.encode()) for row in words for word in row]
        vectors = [np.random.default_rng(seed).standard_normal(16) for seed in seeds]
        counts = np.array([len(row) for row in words])
        offsets = np.concatenate([[0], np.cumsum(counts)])
        values = np.array(vectors, dtype=np.float32).reshape(-1, 16)
        return Encoded(MultiVector(values, offsets), counts, np.zeros(len(texts), dtype=np.bool_))


WORDS = ["heap", "merge", "sort", "parse", "json", "file", "socket", "thread", "lock", "time", "date", "zone"]


def documents(count: int) -> list[Document]:
    rng = np.random.default_rng(0)
    return [Document(f"d{i}", " ".join(rng.choice(WORDS, 6)) + f" note{i}", {"n": i}) for i in range(count)]


@pytest.mark.parametrize("lossy", [False, True])
def test_a_collection_keeps_searches_and_recovers_a_multi_vector_signal(lossy: bool, tmp_path: Path) -> None:
    index = MultiVectorIndex("residual", bits=2, centroids=64, train_size=300) if lossy else MultiVectorIndex()
    signals = {"late": Signal(WordVectors(), index)}
    docs = documents(500)
    with Collection.open(tmp_path / "c", signals=signals) as c:
        c.upsert(docs, batch_size=200)
        assert c.search([docs[42].text], 5)[0].ids[0] == "d42"
        few = c.search("parse json note42", 3, where=Field("n") > 495)
        assert len(few.ids) == 3
        c.checkpoint()
        c.upsert([Document("d42", "zone path"), Document("new", "socket json note42 lock")])
        assert c.delete(["d7", "d8"]) == 2
        assert "d7" not in c.search("note7", 20).ids
        assert c.search("note42", 1).ids == ["new"]
        before = c.search("parse json socket", 10)
        assert c.explain("parse json socket", before.ids[0]).rank == 1
    with Collection.open(tmp_path / "c", signals=signals) as c:
        after = c.search("parse json socket", 10)
        assert (after.ids, after.scores.tolist()) == (before.ids, before.scores.tolist())
        encoder = WordVectors()
        texts = {d.id: d.text for d in c.documents()}
        query = encoder.encode_query(["parse json socket"]).embeddings
        every = by_definition(query, encoder.encode_document(list(texts.values())).embeddings, cosine=True)[0]
        exact = dict(zip(texts, every.tolist(), strict=True))
        for hit in after:  # a lossy index only proposes: scores are those of the vectors themselves
            assert hit.score == pytest.approx(exact[hit.document.id], abs=1e-5)
        assert after.scores[0] == pytest.approx(max(every), abs=1e-5)
        assert not c.verify().problems
        assert c.compact() == 3
        assert c.search("parse json socket", 10).ids == before.ids


def test_a_collection_learns_codes_while_it_fills_and_reindexes_from_exact_to_coded(tmp_path: Path) -> None:
    signals = {"late": Signal(WordVectors(), MultiVectorIndex())}
    with Collection.open(tmp_path / "c", signals=signals) as c:
        c.upsert(documents(400))
        wanted = c.search("heap merge", 5)
        c.reindex("late", MultiVectorIndex("residual", centroids=32, train_size=200))
        assert c._signals["late"].index.training_size == 0  # type: ignore[attr-defined]
        found = c.search("heap merge", 5)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
        c.rollback("late")
        assert c.search("heap merge", 5).ids == wanted.ids


class Broken(WordVectors):
    """Gives NaN for one word, and nothing for another."""

    def _encode(self, texts: Sequence[str]) -> Encoded[MultiVector]:
        encoded = super()._encode(["" if text == "silence" else text for text in texts])
        if "poison" in texts:
            encoded.embeddings.vectors[:] = np.nan
        return encoded


@pytest.mark.parametrize(("text", "message"), [("poison", "NaN"), ("silence", "has no vector")])
def test_an_encoders_bad_vectors_are_refused_before_they_are_stored(text: str, message: str, tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c", signals={"late": Signal(Broken(), MultiVectorIndex())}) as c:
        c.upsert(documents(5))
        with pytest.raises(ShapeError, match=message):
            c.upsert([Document("bad", text)])
        assert c.count() == 5
        assert not c.verify().problems
