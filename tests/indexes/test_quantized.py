"""Codes are those of Sentence Transformers, searches are exact over them, and what they cost is told."""

from __future__ import annotations

import resource
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio import Collection, Signal
from reperio.connectors import PythonDocsSource
from reperio.encoders import HashEncoder
from reperio.errors import ConfigurationError, DiskFull, InvalidInput, ShapeError, UnsupportedOperation
from reperio.indexes import FlatIndex, QuantizedIndex, coded, quantization
from reperio.indexes.flat import unit
from reperio.indexes.quantization import CODECS, BinaryCodec, Codec, Float16Codec, Int8Codec, hamming
from reperio.testing.index import clustered

DTYPES: list[Any] = ["float16", "int8", "binary"]
ROWS = 2000


@pytest.fixture(scope="module")
def texts() -> np.ndarray:
    """Vectors of real texts, ``(2100, 128)``, float32: docstrings of the standard library."""
    found = islice(PythonDocsSource().documents(), 2100)
    vectors = HashEncoder(512).encode_document([document.text for document in found]).embeddings
    turned = np.random.default_rng(0).normal(size=(512, 128)).astype(np.float32)
    mixed = np.random.default_rng(1).permutation(vectors)
    return mixed @ turned  # most counts are zero, which has no sign


@pytest.fixture
def rows(texts: np.ndarray) -> np.ndarray:
    return texts[:ROWS]


@pytest.fixture
def queries(texts: np.ndarray) -> np.ndarray:
    return texts[ROWS:]


@pytest.fixture(params=["numba", "numpy", "numpy 1"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the ways in which codes are compared."""
    if request.param != "numba":
        monkeypatch.setattr(quantization, "installed", lambda module: False)
    if request.param == "numpy 1":
        monkeypatch.delattr(np, "bitwise_count", raising=False)
    return request.param


def made(dtype: Any, rows: np.ndarray, **arguments: Any) -> QuantizedIndex:
    index = QuantizedIndex(dtype, train_size=len(rows), **arguments)
    index.add(np.arange(len(rows)), rows)
    assert index.training_size == 0
    return index


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean([np.isin(w, f).mean() for f, w in zip(found, wanted, strict=True)]))


def best(scores: np.ndarray, k: int = 10) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


# The codes of Sentence Transformers


def test_bytes_are_those_of_sentence_transformers(texts: np.ndarray) -> None:
    peer = pytest.importorskip("sentence_transformers.util.quantization")
    codec = Int8Codec.fit(texts[:1000])
    np.testing.assert_array_equal(codec.ranges, [texts[:1000].min(axis=0), texts[:1000].max(axis=0)])
    codes = codec.encode(texts)  # some beyond the ranges
    assert codec.clipped(texts) > codec.clipped(texts[:1000]) == 0
    np.testing.assert_array_equal(codes, peer.quantize_embeddings(texts, "int8", ranges=codec.ranges))
    steps = (codec.ranges[1] - codec.ranges[0]) / 255
    decoded = peer._dequantize_embeddings(codes, "int8", codec.ranges)
    np.testing.assert_allclose(codec.decode(codes), decoded + steps / 2, rtol=0, atol=1e-6)
    assert np.abs(codec.decode(codes) - texts)[:1000].max() <= steps.max() * 0.501


def test_signs_are_those_of_sentence_transformers(texts: np.ndarray) -> None:
    peer = pytest.importorskip("sentence_transformers.util.quantization")
    for dim in (128, 60, 3):
        vectors = np.ascontiguousarray(texts[:, :dim])
        codes = BinaryCodec(dim).encode(vectors).view(np.uint8)
        wanted = peer.quantize_embeddings(vectors, "ubinary")
        np.testing.assert_array_equal(codes[:, : wanted.shape[1]], wanted)
        assert not codes[:, wanted.shape[1] :].any()


@pytest.mark.parametrize(("dtype", "precision"), [("int8", "uint8"), ("binary", "ubinary")])
def test_as_many_are_found_as_by_sentence_transformers(
    dtype: Any, precision: str, rows: np.ndarray, queries: np.ndarray
) -> None:
    peer = pytest.importorskip("sentence_transformers.util.quantization")
    index, exact = made(dtype, rows), FlatIndex()
    exact.add(np.arange(ROWS), rows)
    index.add(np.arange(ROWS), rows)
    units, asked = unit(rows), unit(queries)
    ranges = np.stack([units.min(axis=0), units.max(axis=0)])
    corpus = peer.quantize_embeddings(units, precision, ranges=ranges)
    hits = peer.semantic_search_faiss(
        asked, corpus_embeddings=corpus, corpus_precision=precision, top_k=10, ranges=ranges, rescore_multiplier=4
    )[0]
    theirs = np.array([[hit["corpus_id"] for hit in row] for row in hits])
    ours, wanted = index.search(queries, 10), exact.search(queries, 10).ids
    assert recall(ours.ids, wanted) >= recall(theirs, wanted) - 0.002
    if dtype == "int8":  # they add up bytes that stand for different steps, to choose what they score again
        scores = (
            np.array([[hit["score"] for hit in row] for row in hits]) + asked @ ((ranges[1] - ranges[0]) / 510)[:, None]
        )
        np.testing.assert_allclose(scores, index.score(queries, theirs), rtol=0, atol=1e-5)
    else:
        assert recall(ours.ids, theirs) > 0.97  # which of those that differ in as many bits are scored again


# Codes


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_code_never_depends_on_its_batch(dtype: Any, data: st.DataObject) -> None:
    dim, count = data.draw(st.integers(1, 130)), data.draw(st.integers(2, 40))
    vectors = clustered(120, dim, seed=data.draw(st.integers(0, 99)))
    codec = CODECS[dtype].fit(vectors[:100])
    chosen = np.array(data.draw(st.lists(st.integers(0, 119), min_size=count, max_size=count)))
    together = codec.encode(vectors[chosen])
    alone = np.concatenate([codec.encode(vectors[i : i + 1]) for i in chosen])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(codec.decode(together), codec.decode(codec.encode(vectors))[chosen])


def test_every_half_is_decoded_to_itself() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)[None, :]
    halves = np.ascontiguousarray(halves[:, np.isfinite(halves[0])])
    decoded, wanted = Float16Codec(halves.shape[1]).decode(halves), halves.astype(np.float32)
    np.testing.assert_array_equal(decoded.view(np.uint32), wanted.view(np.uint32))


def test_a_dimension_that_never_varies_is_decoded_to_what_it_was() -> None:
    vectors = clustered(200, 8)
    vectors[:, 3], vectors[:, 5] = 0.25, 0
    codec = Int8Codec.fit(vectors)
    np.testing.assert_array_equal(codec.decode(codec.encode(vectors))[:, [3, 5]], vectors[:, [3, 5]])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_approximate_products_are_as_near_as_they_say(data: st.DataObject) -> None:
    """Of what they are near to depends whether a search is exact."""
    dim, scale = data.draw(st.sampled_from([1, 2, 33, 384, 1500])), 10.0 ** data.draw(st.integers(-6, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    vectors = (scale * (rng.normal(size=(60, dim)) + rng.normal(0, 3, dim))).astype(np.float32)
    queries = (rng.normal(size=(5, dim)) * 10.0 ** rng.integers(-5, 5, (5, 1))).astype(np.float32)
    codec: Codec = Int8Codec.fit(vectors) if abs(np.log10(scale)) > 3 else Float16Codec(dim)
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):
            patch.setattr(quantization, "installed", lambda module: False)
        codec = data.draw(st.sampled_from([codec, Int8Codec.fit(vectors[:30])]))
        codes = codec.encode(vectors)
        about, slack = codec.products(queries, codes)
    asked, positions = np.indices(about.shape).reshape(2, -1)
    scores = codec.score(queries, asked, codes, positions, metric="ip").reshape(about.shape)
    assert (np.abs(about - scores) <= slack[:, None]).all()
    sure = queries.astype(np.float64) @ codec.decode(codes).astype(np.float64).T
    assert (np.abs(about - sure) <= slack[:, None]).all()


@pytest.mark.parametrize("dim", [1, 64, 65, 384])
def test_differing_bits_are_counted(dim: int, arithmetic: str) -> None:
    vectors = np.random.default_rng(dim).normal(size=(100, dim)).astype(np.float32)
    codes = BinaryCodec(dim).encode(vectors)
    wanted = ((vectors[:7, None] > 0) != (vectors[None] > 0)).sum(axis=2)
    np.testing.assert_array_equal(hamming(codes[:7], codes), wanted)


# Searching


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_scan_is_exact_over_what_the_codes_stand_for(
    dtype: Any, metric: Any, rows: np.ndarray, queries: np.ndarray, arithmetic: str
) -> None:
    index = made(dtype, 3 * rows, metric=metric)
    exact = FlatIndex("l2" if metric == "l2" else "ip")
    exact.add(np.arange(ROWS), index._coded.decode(np.arange(ROWS)))
    found = index.search(queries, 10)
    wanted = exact.search(unit(queries) if metric == "cosine" else queries, 10)
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-6, atol=1e-6)
    assert (found.ids == wanted.ids).mean() > 0.999


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_result_is_the_same_to_the_bit_in_all_arithmetics_batches_and_blocks(
    dtype: Any, rows: np.ndarray, queries: np.ndarray, arithmetic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = made(dtype, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "installed", lambda module: False)
        wanted = index.search(queries, 10)
    monkeypatch.setattr(coded, "_BLOCK", 300)
    monkeypatch.setattr(coded, "_QUERIES", 7)
    for found in (index.search(queries, 10), index.search(queries[5:6], 10)):
        part = slice(None) if len(found.ids) > 1 else slice(5, 6)
        np.testing.assert_array_equal(found.ids, wanted.ids[part])
        np.testing.assert_array_equal(found.scores, wanted.scores[part])


@pytest.mark.parametrize("rescore", [None, "dequantized"])
def test_signs_are_compared_with_signs_then_with_the_whole_query(
    rescore: Any, rows: np.ndarray, queries: np.ndarray
) -> None:
    index = made("binary", rows, rescore=rescore, oversample=3)
    differ = ((queries > 0)[:, None] != (rows > 0)[None]).sum(axis=2)
    cosines = (1 - 2 * differ / 128).astype(np.float32)
    if rescore is None:
        wanted = cosines
    else:
        near = np.zeros_like(cosines, dtype=np.bool_)
        np.put_along_axis(near, best(cosines, 30), values=True, axis=1)
        signs = np.where(rows > 0, 1, -1) / np.sqrt(128)
        wanted = np.where(near, unit(queries) @ signs.T, -np.inf)
    found = index.search(queries, 10)
    np.testing.assert_allclose(found.scores, np.take_along_axis(wanted, best(wanted), axis=1), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.scores, np.take_along_axis(wanted, found.ids, axis=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_the_lower_key_whatever_the_order(dtype: Any) -> None:
    keys = np.random.default_rng(0).permutation(300)
    index = QuantizedIndex(dtype, train_size=300)
    index.add(keys, np.repeat(clustered(30, 32), 10, axis=0)[keys])
    found = index.search(clustered(30, 32), 12)
    assert (np.diff(found.ids, axis=1) > 0)[found.scores[:, 1:] == found.scores[:, :-1]].all()
    np.testing.assert_array_equal(found.ids[:, :10] // 10, np.repeat(np.arange(30)[:, None], 10, axis=1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.01, 0.5])
def test_a_filter_gives_the_best_of_what_passes_exactly(
    dtype: Any, share: float, rows: np.ndarray, queries: np.ndarray
) -> None:
    index = made(dtype, rows, rescore=None)
    allowed = np.sort(np.random.default_rng(0).choice(ROWS, int(share * ROWS), replace=False))
    everything = index.search(queries, ROWS)
    wanted = np.stack([row[np.isin(row, allowed)][:10] for row in everything.ids])
    np.testing.assert_array_equal(index.search(queries, 10, allowed=allowed).ids, wanted)


# Scoring again


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_scored_again_in_full_the_results_are_exact_where_enough_are_fetched(
    dtype: Any, rows: np.ndarray, queries: np.ndarray
) -> None:
    index, exact = made(dtype, rows, rescore="full"), FlatIndex()
    exact.add(np.arange(ROWS), rows)
    found, wanted = index.search(queries, 10), exact.search(queries, 10)
    np.testing.assert_array_equal(found.scores, exact.score(queries, found.ids))
    more = index.search(queries, 10, options={"oversample": 200})
    np.testing.assert_array_equal(more.ids, wanted.ids)
    np.testing.assert_array_equal(more.scores, wanted.scores)
    assert index.lossless
    least = recall(index.search(queries, 10, options={"oversample": 1}).ids, wanted.ids)
    assert least <= recall(found.ids, wanted.ids)


def test_full_vectors_stay_in_the_file_that_was_opened(rows: np.ndarray, queries: np.ndarray, tmp_path: Path) -> None:
    index = made("binary", rows, rescore="full")
    index.remove(np.arange(0, ROWS, 5))
    index.save(tmp_path / "first")
    opened = QuantizedIndex.open(tmp_path / "first")
    shutil.rmtree(tmp_path / "first")  # what is mapped stays until it is let go
    assert isinstance(opened._coded.shelf._first.base, np.memmap)
    opened.add(np.array([0, 1, 9000]), rows[[5, 0, 3]])
    index.add(np.array([0, 1, 9000]), rows[[5, 0, 3]])
    for again in (opened, _copied(opened, tmp_path / "second")):
        for allowed in (None, np.arange(50)):
            a, b = again.search(queries, 10, allowed=allowed), index.search(queries, 10, allowed=allowed)
            np.testing.assert_array_equal(a.ids, b.ids)
            np.testing.assert_array_equal(a.scores, b.scores)


def _copied(index: QuantizedIndex, path: Path) -> QuantizedIndex:
    index.save(path)
    return QuantizedIndex.open(path)


def test_a_mapped_index_stays_out_of_memory(tmp_path: Path) -> None:
    def private() -> int:
        """Kilobytes of memory that no file backs."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    vectors = np.random.default_rng(0).normal(size=(40_000, 128)).astype(np.float32)
    index = QuantizedIndex("int8", rescore="full", train_size=1000)
    index.add(np.arange(40_000), vectors)
    index.save(tmp_path / "index")
    wanted = index.search(vectors[:2], 3)
    before = private()
    mapped = QuantizedIndex.open(tmp_path / "index", mmap=True)
    found = mapped.search(vectors[:2], 3)
    assert private() - before < 40_000 * 128 / 1024
    np.testing.assert_array_equal(found.ids, wanted.ids)
    mapped.add(np.array([40_000]), vectors[:1])
    assert mapped.search(vectors[:1], 2).ids.tolist() == [[0, 40_000]]


# Matryoshka


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_kept_dimensions_are_searched_as_if_there_were_no_others(
    dtype: Any, metric: Any, rows: np.ndarray, queries: np.ndarray
) -> None:
    index = made(dtype, rows, metric=metric, dims=48)
    short = made(dtype, np.ascontiguousarray(rows[:, :48]), metric=metric)
    found, wanted = index.search(queries, 10), short.search(np.ascontiguousarray(queries[:, :48]), 10)
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_array_equal(found.scores, wanted.scores)
    assert index.report.bytes_per_vector == short.report.bytes_per_vector
    assert index.report.recall < short.report.recall
    with pytest.raises(ShapeError, match="128"):
        index.search(queries[:, :48], 10)


def test_kept_dimensions_scored_again_in_full_are_as_exact_as_all(rows: np.ndarray, queries: np.ndarray) -> None:
    index, exact = made("int8", rows, dims=32, rescore="full"), FlatIndex()
    exact.add(np.arange(ROWS), rows)
    found = index.search(queries, 10, options={"oversample": 200})
    np.testing.assert_array_equal(found.ids, exact.search(queries, 10).ids)


# What it costs


@pytest.mark.parametrize(("dtype", "size", "floor"), [("float16", 256, 0.99), ("int8", 128, 0.97), ("binary", 16, 0.5)])
def test_the_report_says_what_was_measured(
    dtype: Any, size: int, floor: float, rows: np.ndarray, queries: np.ndarray
) -> None:
    index, exact = made(dtype, rows), FlatIndex()
    first = index.report
    assert (first.bytes_per_vector, first.compression, first.bytes_beside) == (size, 512 / size, 0)
    assert (first.k, first.queries, first.rows) == (10, 200, ROWS - 200)
    assert first.recall >= floor
    exact.add(np.arange(ROWS), rows)
    measured = index.measure(queries, exact=exact)
    assert measured.recall == pytest.approx(recall(index.search(queries, 10).ids, exact.search(queries, 10).ids))
    assert (measured.queries, measured.rows) == (100, ROWS)
    assert index.report == measured
    assert abs(first.recall - measured.recall) < 0.1


def test_the_report_is_kept_on_the_disk(rows: np.ndarray, tmp_path: Path) -> None:
    index = made("int8", rows, rescore="full")
    assert _copied(index, tmp_path / "index").report == index.report
    assert index.report.bytes_beside == 512


def test_full_vectors_are_their_own_yardstick(rows: np.ndarray, queries: np.ndarray) -> None:
    index, exact = made("binary", rows, rescore="full", oversample=2), FlatIndex()
    index.remove(np.arange(100))
    exact.add(np.arange(100, ROWS), rows[100:])
    assert index.measure(queries).recall == index.measure(queries, exact=exact).recall < 1
    everything = made("binary", rows, rescore="full", oversample=ROWS)
    assert everything.measure(queries).recall == 1


def test_measuring_against_nothing_or_other_rows_is_refused(rows: np.ndarray, queries: np.ndarray) -> None:
    index, exact = made("int8", rows), FlatIndex()
    with pytest.raises(UnsupportedOperation, match="exact="):
        index.measure(queries)
    with pytest.raises(InvalidInput, match="other rows"):
        index.measure(queries, exact=exact)
    with pytest.raises(InvalidInput, match="0 queries"):
        index.measure(queries[:0], exact=exact)
    with pytest.raises(UnsupportedOperation, match="exact"):
        QuantizedIndex().measure(queries)


# Learning


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_exact_until_there_is_enough_to_learn_from(dtype: Any, rows: np.ndarray, queries: np.ndarray) -> None:
    index, exact = QuantizedIndex(dtype, train_size=500), FlatIndex()
    for start in range(0, 600, 120):
        keys = np.arange(start, start + 120)
        for each in (index, exact):
            each.add(keys, rows[keys])
        trained = start + 120 >= 500
        assert (index.training_size == 0) is trained is (index.report is not None)
        same = np.array_equal(index.search(queries, 10).scores, exact.search(queries, 10).scores)
        assert same is not trained
    np.testing.assert_array_equal(index.ids, np.arange(600))


def test_ranges_are_learnt_from_the_sample_and_then_stay(rows: np.ndarray) -> None:
    index = QuantizedIndex("int8", metric="ip")
    index.add(np.arange(50), rows[:50])
    index.train(rows[:1000])
    ranges = index._coded.codec.ranges.copy()
    np.testing.assert_array_equal(ranges, [rows[:1000].min(axis=0), rows[:1000].max(axis=0)])
    codes = index._coded.codec.encode(rows[:50])
    assert index.clipped == 0
    index.add(np.arange(2000, 2100), 3 * rows[1000:1100])
    np.testing.assert_array_equal(index._coded.codec.ranges, ranges)
    np.testing.assert_array_equal(index._coded.codec.encode(rows[:50]), codes)
    assert index.clipped == int(((3 * rows[1000:1100] < ranges[0]) | (3 * rows[1000:1100] > ranges[1])).sum()) > 0


def test_it_learns_once_and_from_enough(rows: np.ndarray) -> None:
    index = QuantizedIndex("int8", dims=100)
    assert index.training_size == 4096
    with pytest.raises(ShapeError, match="99"):
        index.train(rows[:99])
    with pytest.raises(ConfigurationError, match="dims is 100"):
        index.train(rows[:500, :64])
    assert index.training_size == 4096
    index.train(rows[:100])
    with pytest.raises(UnsupportedOperation, match="already"):
        index.train(rows[:100])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dtype": "int4"}, "int4.*float16, int8, binary"),
        ({"metric": "dot"}, "dot"),
        ({"dtype": "binary", "metric": "l2"}, "l2"),
        ({"rescore": "again"}, "rescore.*again"),
        ({"oversample": 0}, "oversample is 0"),
        ({"dims": 0}, "dims is 0"),
        ({"train_size": 99}, "train_size is 99"),
        ({"train_size": None}, "train_size is None"),
        ({"oversample": "4"}, "oversample is '4'"),
        ({"dims": 1.5}, r"dims is 1\.5"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        QuantizedIndex(**arguments)


@pytest.mark.parametrize(("dtype", "rescore"), [("int8", "dequantized"), ("binary", None)])
def test_there_is_no_option_where_nothing_is_scored_again(dtype: Any, rescore: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"oversample.*none"):
        QuantizedIndex(dtype, rescore=rescore).search(clustered(1, 8), 1, options={"oversample": 2})
    with pytest.raises(ConfigurationError, match="oversample is 0"):
        QuantizedIndex(dtype, rescore="full").search(clustered(1, 8), 1, options={"oversample": 0})


def test_a_collection_trains_it_and_keeps_its_report(tmp_path: Path) -> None:
    documents = list(PythonDocsSource(["email", "http", "statistics", "unittest"]).documents())
    signals = {"dense": Signal(HashEncoder(64), QuantizedIndex("int8", train_size=200))}
    with Collection.open(tmp_path / "docs", signals=signals) as collection:
        collection.upsert(documents)
        collection.checkpoint()
        before = collection.search([documents[7].text], 5)[0].ids
    with Collection.open(tmp_path / "docs") as collection:
        assert collection.search([documents[7].text], 5)[0].ids == before
        assert before[0] == documents[7].id
        index = collection._signals["dense"].index
        assert isinstance(index, QuantizedIndex)
        assert len(index) == len(documents) > 400
        assert index.report.recall > 0.9


# Changing


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_a_number_beyond_half_precision_is_refused_and_nothing_is_changed(metric: Any) -> None:
    rows = clustered(200, 8)
    for held in (0, 150):
        index = QuantizedIndex("float16", metric=metric, train_size=100)
        index.add(np.arange(held), rows[:held])
        with pytest.raises(InvalidInput, match=r"row 7.*65504"):
            index.add(np.arange(50), np.concatenate([rows[:7], 1e6 * rows[7:8], rows[8:50]]))
        assert len(index) == held
        assert index.training_size == (0 if held else 100)


@pytest.mark.parametrize("rescore", ["dequantized", "full"])
def test_rows_replaced_again_and_again_do_not_pile_up(rescore: Any, rows: np.ndarray) -> None:
    index = made("int8", rows[:500], rescore=rescore)
    for turn in range(30):
        index.add(np.arange(200, 500), rows[turn * 10 : turn * 10 + 300])
    assert len(index._rows.ids) <= 500 + 1024 + 300
    index.compact()
    assert len(index._rows.ids) == len(index) == 500
    fresh = made("int8", rows[:500], rescore=rescore)
    fresh.add(np.arange(200, 500), rows[290:590])
    np.testing.assert_array_equal(index.search(rows, 5).ids, fresh.search(rows, 5).ids)


def test_codes_that_could_not_be_made_are_not_there(rows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    index = made("int8", rows[:500], rescore="full", metric="l2")
    before, encode, calls = index.search(rows, 500), Int8Codec.encode, []

    def fail_at_the_second(self: Int8Codec, vectors: np.ndarray) -> np.ndarray:
        calls.append(len(vectors))
        if len(calls) == 2:
            raise MemoryError
        return encode(self, vectors)

    monkeypatch.setattr(Int8Codec, "encode", fail_at_the_second)
    monkeypatch.setattr(coded, "_CHUNK", 100)
    with pytest.raises(MemoryError):
        index.add(np.arange(400, 700), rows[400:700])
    np.testing.assert_array_equal(index.ids, np.arange(500))
    np.testing.assert_array_equal(index.search(rows, 500).ids, before.ids)
    index.add(np.arange(500, 700), rows[500:700])
    np.testing.assert_array_equal(index.search(rows[:700], 1).ids[:, 0], np.arange(700))


def test_a_full_disk_is_named_and_leaves_nothing(rows: np.ndarray, tmp_path: Path) -> None:
    index = made("int8", rows, rescore="full")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1000, 20_000, 300_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(DiskFull):
                index.save(tmp_path / "index")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    FlatIndex().save(tmp_path / "flat")
    with pytest.raises(ConfigurationError, match="saved by FlatIndex, not by QuantizedIndex"):
        QuantizedIndex.open(tmp_path / "flat")
