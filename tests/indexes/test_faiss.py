"""FAISS indexes: equal to FAISS itself, and what it lacks."""

from __future__ import annotations

import resource
import shutil
from itertools import islice, product
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from reperio.connectors import PythonDocsSource
from reperio.encoders import HashEncoder
from reperio.errors import ConfigurationError, CorruptArtifact, DiskFull, ShapeError, UnsupportedOperation
from reperio.indexes import FaissIndex, FlatIndex
from reperio.indexes.factory import FactoryIndex
from reperio.registry import build
from reperio.testing.index import clustered


@pytest.fixture(scope="module")
def texts() -> np.ndarray:
    """Vectors of real texts, ``(2000, 64)``, float32: docstrings of the standard library."""
    found = islice(PythonDocsSource().documents(), 2000)
    return HashEncoder(64).encode_document([document.text for document in found]).embeddings


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean([np.isin(w, f).mean() for f, w in zip(found, wanted, strict=True)]))


# The same as FAISS


BARE = ["Flat", "HNSW32", "IVF16,Flat", "SQ8", "IVF16,SQ8", "IVF16,PQ8x4np", "RR32,Flat"]


@pytest.mark.parametrize(("metric", "factory"), [*product(["ip", "l2"], BARE), ("l2", "PCA32,Flat")])
def test_results_are_those_of_faiss_on_real_texts(texts: np.ndarray, factory: str, metric: str) -> None:
    kind = {"ip": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}[metric]
    bare = faiss.index_factory(64, factory, kind)
    part = faiss.downcast_index(bare)
    if isinstance(part, faiss.IndexIVF):
        part.cp.seed, part.nprobe = 0, 5
    if isinstance(part, faiss.IndexIVFPQ):
        part.pq.cp.seed = 0
    if isinstance(part, faiss.IndexHNSW):
        part.hnsw.efSearch = 64
    if not bare.is_trained:
        bare.train(texts[:1000])
    bare.add(texts)
    index = FaissIndex(factory, metric=metric, train_size=1000)
    if index.training_size:
        index.train(texts[:1000])
    index.add(np.arange(2000) * 2, texts)
    distances, ids = bare.search(texts[::50], 10)
    options = {"nprobe": 5} if "IVF" in factory else None
    found = index.search(texts[::50], 10, options=options)
    np.testing.assert_array_equal(found.scores, distances if metric == "ip" else -distances)
    apart = np.diff(found.scores, axis=1, prepend=np.inf, append=-np.inf) < 0
    apart = apart[:, :-1] & apart[:, 1:]
    np.testing.assert_array_equal(found.ids[apart], 2 * ids[apart])
    assert apart.mean() > 0.8


@pytest.mark.parametrize("factory", ["HNSW32", "IVF16,Flat", "IVF32_HNSW32,Flat", "IVF16,PQ16x4fs,RFlat", "SQ8"])
def test_defaults_find_nearly_everything_on_real_texts(texts: np.ndarray, factory: str) -> None:
    index, exact = FaissIndex(factory, train_size=1000), FlatIndex()
    for each in (index, exact):
        each.add(np.arange(2000), texts)
    wanted = exact.search(texts[::20], 10).ids
    assert recall(index.search(texts[::20], 10).ids, wanted) >= 0.9


def test_a_cosine_is_had_from_distances_where_faiss_knows_no_product(texts: np.ndarray) -> None:
    index = FaissIndex("IMI2x4,Flat", train_size=1000, options={"nprobe": 256})
    index.add(np.arange(2000), 3 * texts)
    found, wanted = index.search(texts[:20], 5), texts[:20] @ texts.T
    np.testing.assert_allclose(found.scores, np.take_along_axis(wanted, found.ids, axis=1), atol=1e-6)
    assert recall(found.ids, np.argsort(-wanted, axis=1)[:, :5]) > 0.9


# Training


def test_ten_rows_in_an_index_for_a_million_are_found_exactly() -> None:
    index, rows = FaissIndex("OPQ8_16,IVF1024,PQ8"), clustered(10, 32)
    index.add(np.arange(10), rows)
    found = index.search(rows, 10)
    np.testing.assert_allclose(found.scores, -np.sort(-(rows @ rows.T), axis=1), atol=1e-6)
    assert index.training_size == 64 * 1024


def test_it_trains_itself_when_there_is_enough_and_keeps_every_row() -> None:
    index, rows = FaissIndex("IVF16,SQ8", train_size=300), clustered(400, 32)
    for start in range(0, 400, 80):
        index.add(np.arange(start, start + 80), rows[start : start + 80])
        assert index.training_size == (300 if start + 80 < 300 else 0)
        np.testing.assert_array_equal(index.ids, np.arange(start + 80))
        held = index.search(rows[: start + 80], 1, options={"nprobe": 16})
        assert (held.ids[:, 0] == np.arange(start + 80)).mean() > 0.98
    quantised = index.score(rows[:1], np.array([[0]]))
    assert 0 < abs(quantised[0, 0] - 1) < 0.02


@pytest.mark.parametrize(
    ("factory", "size"),
    [
        ("Flat", 0),
        ("HNSW32", 0),
        ("SQfp16", 0),
        ("SQ8", 4096),
        ("PCA16,Flat", 4096),
        ("IVF4096,Flat", 64 * 4096),
        ("IVF16,PQ8", 64 * 256),
        ("OPQ8,IVF16,PQ8x4", 64 * 256),
        ("IMI2x8,Flat", 64 * 256),
        ("HNSW16,PQ8x10", 64 * 1024),
        ("RQ4x4", 64 * 256),
        ("PQ7x4", 1 << 14),
    ],
)
def test_it_knows_how_much_to_learn_from_before_the_first_row(factory: str, size: int) -> None:
    assert FaissIndex(factory).training_size == size
    if size:
        assert FaissIndex(factory, train_size=2000).training_size == 2000


def test_a_sample_may_come_before_the_rows() -> None:
    index, rows = FaissIndex("IVF16,Flat", metric="l2"), clustered(300, 8)
    index.train(rows[:100])
    assert index.training_size == len(index) == 0
    index.add(np.arange(300), rows)
    found = index.search(rows, 1, options={"nprobe": 16})
    np.testing.assert_array_equal(found.ids[:, 0], np.arange(300))


def test_training_takes_in_the_rows_that_wait() -> None:
    index, rows = FaissIndex("IVF16,Flat", options={"nprobe": 16}), clustered(100, 8)
    index.add(np.arange(100), rows)
    before = index.search(rows, 100)
    index.train(rows)
    np.testing.assert_allclose(index.search(rows, 100).scores, before.scores, atol=1e-6)
    assert index.training_size == 0


def test_training_says_when_there_is_nothing_to_learn_or_too_little() -> None:
    rows = clustered(100, 8)
    with pytest.raises(UnsupportedOperation, match="nothing to learn"):
        FaissIndex("HNSW16").train(rows)
    index = FaissIndex("IVF16,Flat")
    with pytest.raises(ShapeError, match=r"15 vectors.*16 centroids"):
        index.train(rows[:15])
    index.train(rows)
    with pytest.raises(UnsupportedOperation, match="nothing to learn"):
        index.train(rows)
    with pytest.raises(ConfigurationError, match=r"train_size is 9.*learns 16"):
        FaissIndex("IVF16,Flat", train_size=9).add(np.arange(100), rows)


def test_training_is_silent_and_the_same_each_time(capfd: pytest.CaptureFixture[str]) -> None:
    rows, found = clustered(300, 16), []
    for _ in range(2):
        index = FaissIndex("OPQ4,IVF16,PQ4x6np", train_size=280, seed=3)
        index.add(np.arange(300), rows)
        found.append(index.search(rows[:20], 10))
    np.testing.assert_array_equal(found[0].scores, found[1].scores)
    assert capfd.readouterr() == ("", "")


# Options


@pytest.mark.parametrize(
    ("factory", "names"),
    [
        ("Flat", "It has none."),
        ("IVF16,Flat", "It has: nprobe."),
        ("HNSW16", "It has: efSearch."),
        ("PCA8,IVF16,SQ8", "It has: nprobe."),
        ("OPQ4,HNSW16,RFlat", "It has: k_factor, efSearch."),
        ("IVF16,PQ4x4fs,RFlat", "It has: k_factor, nprobe."),
    ],
)
def test_an_unknown_option_is_answered_with_those_there_are(factory: str, names: str) -> None:
    for options in ({"ef_search": 3}, {"nprobe": 3, "k_factor": 2, "efSearch": 4}):
        with pytest.raises(ConfigurationError, match=names):
            FaissIndex(factory).search(clustered(1, 16), 1, options=options)
    with pytest.raises(ConfigurationError, match=names):
        FaissIndex(factory, options={"nprobe": 3, "k_factor": 2, "efSearch": 4}).add(np.arange(1), clustered(1, 16))


def test_an_option_must_be_a_positive_whole_number() -> None:
    for value in (0, -1, 2.5, "8"):
        with pytest.raises(ConfigurationError, match="nprobe"):
            FaissIndex("IVF16,Flat", options={"nprobe": value})
        with pytest.raises(ConfigurationError, match="nprobe"):
            FaissIndex("IVF16,Flat").search(clustered(1, 8), 1, options={"nprobe": value})


@pytest.mark.parametrize("factory", ["IVF64,Flat", "PCA16,IVF64,Flat", "IVF64,PQ8x4fs,RFlat"])
def test_probing_more_lists_finds_more(factory: str) -> None:
    rows, keys = clustered(3000, 32), np.arange(3000)
    index, exact = FaissIndex(factory, train_size=2000, options={"nprobe": 1}), FlatIndex()
    index.add(keys, rows)
    exact.add(keys, rows)
    wanted = exact.search(rows[::30], 10).ids
    shares = [recall(index.search(rows[::30], 10, options={"nprobe": n}).ids, wanted) for n in (1, 4, 64)]
    assert shares[0] < shares[1] <= shares[2]
    assert shares[0] == recall(index.search(rows[::30], 10).ids, wanted)


def test_refining_more_rows_finds_more() -> None:
    rows, keys = clustered(2000, 32), np.arange(2000)
    index, exact = FaissIndex("PQ4x4fs,RFlat", train_size=1000), FlatIndex()
    index.add(keys, rows)
    exact.add(keys, rows)
    wanted = exact.search(rows[::30], 10).ids
    shares = [recall(index.search(rows[::30], 10, options={"k_factor": n}).ids, wanted) for n in (1, 8, 200)]
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.99


# Never fewer than there are


def test_a_single_probe_still_finds_k_rows() -> None:
    index, rows = FaissIndex("IVF64,Flat", train_size=500), clustered(1000, 16)
    index.add(np.arange(1000), rows)
    found = index.search(rows[:50], 200, options={"nprobe": 1})
    assert (found.ids >= 0).all()


@pytest.mark.parametrize("factory", ["HNSW8", "IVF64,Flat", "HNSW8,SQ8", "PQ8x4fs"])
def test_a_filter_far_from_the_query_still_gives_k_rows(factory: str) -> None:
    """What passes lies where a walk towards the query never comes."""
    rng = np.random.default_rng(0)
    near, far = rng.normal(5, 1, (1900, 16)), rng.normal(-5, 1, (100, 16))
    index = FaissIndex(factory, metric="l2", train_size=1500, options={"nprobe": 1} if "IVF" in factory else None)
    index.add(np.arange(2000), np.concatenate([near, far]).astype(np.float32))
    queries = near[:20].astype(np.float32)
    for k in (1, 30, 100, 150):
        found = index.search(queries, k, allowed=np.arange(1900, 2000))
        assert ((found.ids >= 1900).sum(axis=1) == min(k, 100)).all()


@pytest.mark.parametrize("factory", ["HNSW16", "IVF64,Flat"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_a_filter_does_not_cost_recall(factory: str, share: float) -> None:
    rows, keys = clustered(4000, 32), np.arange(4000)
    index, exact = FaissIndex(factory, train_size=3000), FlatIndex()
    index.add(keys, rows)
    exact.add(keys, rows)
    allowed = np.sort(np.random.default_rng(1).choice(keys, int(share * 4000), replace=False))
    queries = clustered(60, 32, seed=5)
    free = recall(index.search(queries, 10).ids, exact.search(queries, 10).ids)
    kept = recall(index.search(queries, 10, allowed=allowed).ids, exact.search(queries, 10, allowed=allowed).ids)
    assert kept >= free - 0.02


def test_rows_that_a_graph_does_not_reach_are_found_when_all_are_asked_for() -> None:
    """HNSW under inner product leaves short vectors without a way in."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1500, 8)).astype(np.float32) * rng.lognormal(0, 2, (1500, 1)).astype(np.float32)
    index = FaissIndex("HNSW4", metric="ip")
    index.add(np.arange(1500), rows)
    found = index.search(rows[:5], 1500)
    np.testing.assert_array_equal(np.sort(found.ids, axis=1), np.tile(np.arange(1500), (5, 1)))


# Bad factories


@pytest.mark.parametrize(
    ("factory", "metric", "words"),
    [
        ("Flatt", "cosine", "build 'Flatt' with 16 dimensions.*could not parse"),
        ("PQ7", "cosine", "multiple of the number of subquantizers"),
        ("LSH", "l2", "build 'LSH'"),
        ("LSH", "cosine", "build 'LSH'"),
        ("HNSW16,PQ4x4", "ip", "measures something else"),
        ("L2norm,Flat", "ip", "L2norm scales .* measures a cosine"),
        ("L2norm,IVF4,Flat", "l2", "L2norm scales"),
        ("PCA8,L2norm,Flat", "cosine", "L2norm scales"),
        ("PCA8,IVF4,Flat", "ip", "PCA takes the mean away"),
        ("PCAW8,Flat", "l2", "whitening"),
        ("ITQ8,Flat", "cosine", "ITQ"),
        ("IMI2x4,Flat", "ip", "inner prod"),
    ],
)
def test_a_factory_that_cannot_work_is_refused_before_a_row_is_taken(factory: str, metric: str, words: str) -> None:
    index = FaissIndex(factory, metric=metric)
    with pytest.raises(ConfigurationError, match=words):
        index.add(np.arange(3), clustered(3, 16))
    assert len(index) == 0
    assert index.dim is None


KEEPING = [*product(["OPQ4_16,Flat", "RR16,Flat", "HR16,Flat"], ["cosine", "ip", "l2"]), ("L2norm,Flat", "cosine")]
KEEPING += product(["PCA16,Flat", "PCAR16,Flat"], ["cosine", "l2"])


@pytest.mark.parametrize(("factory", "metric"), KEEPING)
def test_a_transform_that_keeps_all_dimensions_changes_no_ranking(factory: str, metric: Any) -> None:
    rows = clustered(660, 16) * np.random.default_rng(0).uniform(0.5, 2, (660, 1)).astype(np.float32) + 0.3
    index, exact = FaissIndex(factory, metric=metric, train_size=600), FlatIndex(metric)
    for each in (index, exact):
        each.add(np.arange(600), rows[:600])
    wanted, found = exact.search(rows[600:], 5), index.search(rows[600:], 5)
    assert (wanted.ids == found.ids).mean() > 0.99
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "value"), [("train_size", "5"), ("train_size", 0), ("seed", "1"), ("seed", -1), ("options", "nprobe")]
)
def test_a_setting_of_another_kind_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is {value!r}"):
        FaissIndex("IVF4,Flat", **{name: value})


@pytest.mark.parametrize("factory", ["NSG16", "NSG32,Flat", "PCA8,NSG16", "IDMap,NSG16"])
def test_a_graph_that_cannot_grow_is_refused_at_once(factory: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"'{factory}' is an NSG graph.*HNSW32"):
        FaissIndex(factory)
    with pytest.raises(ConfigurationError, match="factory is 5"):
        FaissIndex(5)  # type: ignore[arg-type]


def test_centroids_in_a_graph_that_cannot_grow_can_be_searched() -> None:
    index, rows = FaissIndex("IVF128_NSG16,Flat", train_size=600), clustered(660, 16)
    index.add(np.arange(600), rows[:600])
    exact = index.exact(rows[600:], 5).ids
    np.testing.assert_array_equal(index.search(rows[600:], 5, options={"nprobe": 128}).ids, exact)


def test_a_factory_that_fails_in_training_loses_no_row() -> None:
    index, rows = FaissIndex("IVF4,FlatDedup", train_size=50), clustered(60, 8)
    index.add(np.arange(40), rows[:40])
    with pytest.raises(ConfigurationError, match=r"fill 'IVF4,FlatDedup'.*Dedup"):
        index.add(np.arange(40, 60), rows[40:])
    np.testing.assert_array_equal(index.ids, np.arange(40))
    np.testing.assert_array_equal(index.search(rows[:40], 1).ids[:, 0], np.arange(40))


@pytest.mark.parametrize("factory", ["IDMap,Flat", "IDMap2,HNSW8", "Flat,IDMap"])
def test_an_id_map_of_faiss_is_left_out(factory: str) -> None:
    index, rows = FaissIndex(factory), clustered(50, 8)
    index.add(np.arange(50) + 900, rows)
    np.testing.assert_array_equal(index.search(rows, 1).ids[:, 0], np.arange(50) + 900)


@pytest.mark.parametrize("arguments", [{"metric": "dot"}, {"train_size": 0}, {"options": {"ef": 1}}])
def test_a_wrong_argument_is_refused_at_once(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(arguments)).rstrip("s")):
        FaissIndex(**arguments)


@pytest.mark.parametrize(
    ("factory", "lossless"),
    [
        ("Flat", True),
        ("HNSW32,Flat", True),
        ("IVF16,Flat", True),
        ("IVF16,PQ8,RFlat", True),
        ("SQ8", False),
        ("HNSW32,SQ8", False),
        ("IVF16,PQ8", False),
        ("PCA16,Flat", False),
        ("IVF16,PQ8,Refine(SQ8)", False),
        ("PQ7", False),
    ],
)
def test_it_declares_whether_scores_are_exact(factory: str, lossless: bool) -> None:
    assert FaissIndex(factory).lossless is lossless


def test_its_specification_keeps_every_argument() -> None:
    given = {"factory": "IVF16,Flat", "metric": "l2", "train_size": 99, "seed": 4, "options": {"nprobe": 3}}
    given |= {"recall": 0.9, "device": "cpu"}
    index = FaissIndex(**given)
    assert index.spec == {"type": "FaissIndex", **given}
    assert build(index.spec).spec == index.spec


# Failures half way


def test_a_row_that_faiss_fails_to_take_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = clustered(500, 8)
    index = FaissIndex("Flat")
    index.add(np.arange(200), rows[:200])
    before, append, calls = index.search(rows, 200), FactoryIndex.append, []

    def fail_at_the_second(self: FactoryIndex, vectors: np.ndarray) -> None:
        calls.append(len(vectors))
        if len(calls) == 2:
            raise MemoryError
        append(self, vectors)

    monkeypatch.setattr(FactoryIndex, "append", fail_at_the_second)
    monkeypatch.setattr("reperio.indexes.growing._CHUNK", 100)
    with pytest.raises(MemoryError):
        index.add(np.arange(100, 400), rows[100:400])
    np.testing.assert_array_equal(index.ids, np.arange(200))
    after = index.search(rows, 200)
    np.testing.assert_array_equal(after.ids, before.ids)
    index.add(np.arange(200, 500), rows[200:])
    np.testing.assert_array_equal(index.search(rows, 1).ids[:, 0], np.arange(500))


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    index = FaissIndex("Flat")
    index.add(np.arange(5000), clustered(5000, 32))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DiskFull):
            index.save(tmp_path / "index")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    index.save(tmp_path / "index")


# Mapped from disk

MAPPED = ["Flat", "HNSW16", "IVF16,Flat", "IVF16,SQ8", "PCA8,IVF16,Flat", "IVF16,PQ4x4fs,RFlat", "PQ4x4fs"]


@pytest.mark.parametrize("factory", MAPPED)
def test_a_mapped_index_gives_the_same_results_and_can_be_changed(factory: str, tmp_path: Path) -> None:
    rows, keys = clustered(600, 16), np.arange(600)
    index = FaissIndex(factory, train_size=500)
    index.add(keys, rows)
    index.remove(keys[::7])
    index.save(tmp_path / "first")
    mapped = FaissIndex.open(tmp_path / "first", mmap=True)
    shutil.rmtree(tmp_path / "first")  # what is mapped stays until it is let go
    for allowed in (None, keys[:100]):
        a, b = mapped.search(rows[:30], 20, allowed=allowed), index.search(rows[:30], 20, allowed=allowed)
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.scores, b.scores)
    mapped.add(np.array([0, 1, 1000]), rows[[0, 2, 3]])
    assert mapped.remove(np.array([5, 1000])) == 2
    assert set(mapped.ids) == (set(keys) - set(keys[::7]) - {5}) | {0}
    assert 1 in mapped.search(rows[[2]], 5).ids[0]
    mapped.save(tmp_path / "second")
    again, wanted = FaissIndex.open(tmp_path / "second"), mapped.search(rows[:30], 20)
    found = again.search(rows[:30], 20)
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_array_equal(found.scores, wanted.scores)


def test_a_mapped_index_stays_out_of_memory(tmp_path: Path) -> None:
    def private() -> int:
        """Kilobytes of memory that no file backs."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    index = FaissIndex("Flat")
    index.add(np.arange(60_000), clustered(60_000, 128))
    index.save(tmp_path / "index")
    before = private()
    mapped = FaissIndex.open(tmp_path / "index", mmap=True)
    mapped.search(clustered(2, 128), 3)
    assert private() - before < 60_000 * 128 * 4 / 1024 / 4


def test_a_mapped_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    index = FaissIndex("Flat")
    index.add(np.arange(10), clustered(10, 8))
    index.save(tmp_path / "index")
    file = tmp_path / "index" / "index.faiss"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(CorruptArtifact, match="FAISS cannot read"):
        FaissIndex.open(tmp_path / "index", mmap=True, verify=False)


# Compacting


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF16,Flat", "IVF16,PQ4x4fs,RFlat"])
def test_compacting_gives_back_what_was_removed(factory: str, tmp_path: Path) -> None:
    rows, keys = clustered(600, 16), np.random.default_rng(0).permutation(600)
    index = FaissIndex(factory, metric="l2", train_size=500)
    index.add(keys, rows)
    index.remove(np.arange(400))
    index.save(tmp_path / "before")
    index.compact()
    index.save(tmp_path / "after")
    size = {name: (tmp_path / name / "index.faiss").stat().st_size for name in ("before", "after")}
    assert size["after"] < 0.6 * size["before"]
    assert not index.spec["options"]
    np.testing.assert_array_equal(index.ids, np.arange(400, 600))
    held = rows[np.argsort(keys)[400:]]
    found = index.search(held, 1)
    np.testing.assert_array_equal(found.ids[:, 0], np.arange(400, 600))
    np.testing.assert_array_equal(index.score(held, found.ids), np.zeros((200, 1)))


def test_compacting_takes_in_what_was_added_to_a_mapped_index(tmp_path: Path) -> None:
    rows = clustered(600, 16)
    index = FaissIndex("IVF16,Flat", train_size=500)
    index.add(np.arange(500), rows[:500])
    index.save(tmp_path / "index")
    mapped = FaissIndex.open(tmp_path / "index", mmap=True)
    mapped.add(np.arange(500, 600), rows[500:])
    mapped.compact()
    mapped.save(tmp_path / "again")
    index.save(tmp_path / "alone")
    size = {name: (tmp_path / name / "index.faiss").stat().st_size for name in ("again", "alone")}
    assert size["again"] > 1.1 * size["alone"]
    np.testing.assert_array_equal(mapped.search(rows, 1, options={"nprobe": 16}).ids[:, 0], np.arange(600))


def test_compacting_codes_is_refused_because_they_are_not_the_vectors() -> None:
    index, rows = FaissIndex("IVF16,SQ8", train_size=100), clustered(100, 8)
    index.compact()
    index.add(np.arange(100), rows)
    index.remove(np.arange(50))
    with pytest.raises(UnsupportedOperation, match=r"IVF16,SQ8.*vectors"):
        index.compact()
    assert len(index) == 50


def test_codes_that_do_not_decode_say_how_to_score() -> None:
    index, rows = FaissIndex("IVF4,RaBitQ", train_size=50), clustered(60, 16)
    index.add(np.arange(60), rows)
    assert (index.search(rows, 60).ids >= 0).all()
    with pytest.raises(UnsupportedOperation, match=r"IVF4,RaBitQ,RFlat"):
        index.score(rows[:1], np.array([[0]]))


# Any sequence of changes

GRID = clustered(40, 6)
KEYS = st.lists(st.integers(0, 50), min_size=1, max_size=12, unique=True)


class Changes(RuleBasedStateMachine):
    """An index against a dictionary, whatever is done to both."""

    factories = Bundle("factories")
    folder: Path

    @initialize(factory=st.sampled_from(["Flat", "HNSW16", "IVF8,Flat", "IVF8,PQ3x4fs,RFlat"]))
    def begin(self, factory: str) -> None:
        options = {"nprobe": 8} if "IVF" in factory else {}
        if "RFlat" in factory:
            options["k_factor"] = 60
        self.index = FaissIndex(factory, metric="l2", train_size=20, options=options)
        self.truth: dict[int, int] = {}
        self.saved = 0

    @rule(keys=KEYS, start=st.integers(0, 39))
    def add(self, keys: list[int], start: int) -> None:
        values = [(start + i) % 40 for i in range(len(keys))]
        self.index.add(np.array(keys), GRID[values])
        self.truth.update(zip(keys, values, strict=True))

    @rule(keys=KEYS)
    def remove(self, keys: list[int]) -> None:
        assert self.index.remove(np.array(keys)) == sum(key in self.truth for key in keys)
        for key in keys:
            self.truth.pop(key, None)

    @rule(mmap=st.booleans())
    def reopen(self, mmap: bool) -> None:
        path = self.folder / f"{id(self)}-{self.saved}"
        self.saved += 1
        self.index.save(path)
        self.index = FaissIndex.open(path, mmap=mmap)
        shutil.rmtree(path)

    @rule()
    def compact(self) -> None:
        self.index.compact()

    @rule(query=st.integers(0, 39), k=st.integers(1, 60), allowed=st.none() | KEYS)
    def search(self, query: int, k: int, allowed: list[int] | None) -> None:
        passing = sorted(self.truth if allowed is None else self.truth.keys() & set(allowed))
        only = None if allowed is None else np.sort(np.array(allowed))
        found = self.index.search(GRID[[query]], k, allowed=only)
        exact = FlatIndex("l2")
        exact.add(np.array(passing, dtype=np.int64), GRID[[self.truth[key] for key in passing]].reshape(-1, 6))
        wanted = exact.search(GRID[[query]], k)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
        held = found.ids[found.ids >= 0]
        assert np.isin(held, passing).all()
        assert np.unique(held).size == held.size == min(k, len(passing))
        np.testing.assert_allclose(self.index.score(GRID[[query]], found.ids), wanted.scores, atol=1e-5)

    @invariant()
    def it_holds_the_same_keys(self) -> None:
        if hasattr(self, "truth"):
            assert len(self.index) == len(self.truth)
            np.testing.assert_array_equal(self.index.ids, sorted(self.truth))


class TestChanges(Changes.TestCase):
    settings = settings(max_examples=40, stateful_step_count=20, deadline=None)

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        Changes.folder = tmp_path
