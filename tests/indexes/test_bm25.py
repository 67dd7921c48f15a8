"""BM25: equal to the peers on real text, and exact after any sequence of changes."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, get_args

import bm25s
import ir_measures
import numpy as np
import pytest
import rank_bm25

from reperio import registry
from reperio.embeddings import Sparse, take
from reperio.encoders.bm25 import BM25Encoder
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
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.weighting import Variant
from reperio.protocols import Index

Data = Callable[[str], Path]

VARIANTS: tuple[Variant, ...] = get_args(Variant)
DIM = 50


class Collection(NamedTuple):
    tokens: list[list[str]]
    queries: list[list[str]]
    rows: Sparse
    asked: Sparse


def read(folder: Path, *, documents: int, queries: int) -> Collection:
    encoder = BM25Encoder()
    corpus = [json.loads(line) for line in (folder / "corpus.jsonl").open(encoding="utf-8")]
    texts = [text for d in corpus if (text := f"{d['title']} {d['text']}").strip()][:documents]
    asked = [json.loads(line)["text"] for line in (folder / "queries.jsonl").open(encoding="utf-8")][:queries]
    return Collection(
        [encoder.analyzer.tokenize(text) for text in texts],
        [encoder.analyzer.tokenize(text) for text in asked],
        encoder.encode_document(texts).embeddings,
        encoder.encode_query(asked).embeddings,
    )


@pytest.fixture(scope="module")
def scifact(data: Data) -> Collection:
    return read(data("scifact"), documents=1200, queries=20)


@pytest.fixture(scope="module")
def cisi(data: Data) -> Collection:
    return read(data("cisi"), documents=1200, queries=20)


def sparse(*rows: dict[int, float]) -> Sparse:
    """Rows from column → weight."""
    indptr = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    columns = [column for row in rows for column in sorted(row)]
    weights = [row[column] for row in rows for column in sorted(row)]
    return Sparse(indptr, np.array(columns, np.int64), np.array(weights, np.float32), DIM)


def keys(*ids: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(ids, dtype=np.int64)


def filled(rows: Sparse, variant: Variant = "lucene", *, batch: int = 10**6) -> BM25Index:
    index = BM25Index(variant)
    for start in range(0, len(rows), batch):
        ids = np.arange(start, min(start + batch, len(rows)))
        index.add(ids, take(rows, ids))
    return index


def every(index: BM25Index, queries: Sparse) -> np.ndarray[Any, np.dtype[np.float32]]:
    return index.score(queries, np.tile(index.ids, (len(queries), 1)))


# Peers


@pytest.mark.parametrize("name", ["scifact", "cisi"])
@pytest.mark.parametrize("variant", ["lucene", "robertson", "atire", "bm25+"])
def test_scores_equal_bm25s(variant: Variant, name: str, request: pytest.FixtureRequest) -> None:
    collection: Collection = request.getfixturevalue(name)
    peer = bm25s.BM25(method=variant, k1=1.2, b=0.75, delta=1.0, dtype="float64")
    peer.index(collection.tokens, show_progress=False)
    mine = every(filled(collection.rows, variant), collection.asked)
    for query, scores in zip(collection.queries, mine, strict=True):
        np.testing.assert_allclose(scores, peer.get_scores(query), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", ["scifact", "cisi"])
@pytest.mark.parametrize(
    ("variant", "peer"),
    [("okapi", rank_bm25.BM25Okapi), ("bm25l", rank_bm25.BM25L), ("bm25+", rank_bm25.BM25Plus)],
)
def test_scores_equal_rank_bm25(variant: Variant, peer: Any, name: str, request: pytest.FixtureRequest) -> None:
    collection: Collection = request.getfixturevalue(name)
    theirs = peer(collection.tokens, k1=1.2, b=0.75)
    mine = every(filled(collection.rows, variant), collection.asked)
    for query, scores in zip(collection.queries, mine, strict=True):
        np.testing.assert_allclose(scores, theirs.get_scores(query), rtol=1e-6, atol=1e-5)


def test_okapi_takes_the_floor_of_rank_bm25_for_frequent_terms() -> None:
    tokens = [["a", "b"], ["a", "c", "c"], ["a", "d"], ["a", "e"], ["f"]]
    column = {word: number for number, word in enumerate("abcdef")}
    index = filled(sparse(*[{column[w]: n for w, n in Counter(row).items()} for row in tokens]), "okapi")
    theirs = rank_bm25.BM25Okapi(tokens, k1=1.2, b=0.75)
    np.testing.assert_allclose(every(index, sparse({0: 1, 2: 1}))[0], theirs.get_scores(["a", "c"]), atol=1e-6)
    assert index.lowest == 0


def test_okapi_has_no_lowest_score_while_most_terms_are_in_most_rows() -> None:
    index = filled(sparse({0: 1}, {0: 1}, {0: 1}), "okapi")
    assert index.lowest == -math.inf
    found = index.search(sparse({0: 1}), 5)
    assert found.ids.tolist() == [[0, 1, 2, -1, -1]]
    assert found.scores[0, 0] < 0


def quality(folder: Path, qrels: str, encoder: BM25Encoder, prefix: str = "") -> float:
    """nDCG@10 on a folder in BEIR layout, of the documents and queries whose names start with ``prefix``."""
    lines = (folder / "qrels" / qrels).read_text(encoding="utf-8").splitlines()[1:]
    judged = [line.split("\t") for line in lines if line.startswith(prefix)]
    documents = [json.loads(line) for line in (folder / "corpus.jsonl").open(encoding="utf-8")]
    texts = {d["_id"]: f"{d['title']} {d['text']}" for d in documents if d["_id"].startswith(prefix)}
    names = [name for name, text in texts.items() if text.strip()]
    queries = [json.loads(line) for line in (folder / "queries.jsonl").open(encoding="utf-8")]
    asked = {q["_id"]: q["text"] for q in queries if q["_id"].startswith(prefix)}
    index = BM25Index()
    index.add(np.arange(len(names)), encoder.encode_document([texts[name] for name in names]).embeddings)
    found = index.search(encoder.encode_query(list(asked.values())).embeddings, 10)
    run = [
        ir_measures.ScoredDoc(query, names[i], float(score))
        for query, ids, scores in zip(asked, found.ids.tolist(), found.scores, strict=True)
        for i, score in zip(ids, scores, strict=True)
        if i >= 0
    ]
    grades = [ir_measures.Qrel(query, document, int(float(grade))) for query, document, grade in judged]
    return float(ir_measures.calc_aggregate([ir_measures.nDCG @ 10], grades, run)[ir_measures.nDCG @ 10])


@pytest.mark.parametrize(("name", "published"), [("cranfield", 0.512), ("cisi", 0.396), ("med", 0.699)])
def test_a_real_collection_is_ranked_as_well_as_bm25s_does(data: Data, name: str, published: float) -> None:
    assert quality(data(name), "test.tsv", BM25Encoder()) == pytest.approx(published, abs=0.002)


@pytest.mark.parametrize(
    ("prefix", "language", "published"),
    [("en-", "english", 0.841), ("de-", "german", 0.775), ("ru-", "russian", 0.814), ("el-", "greek", 0.785)],
)
def test_real_text_in_other_languages_is_ranked_as_well(
    data: Data, prefix: str, language: str, published: float
) -> None:
    assert quality(data("xquad-r"), "mono.tsv", BM25Encoder(language), prefix) == pytest.approx(published, abs=0.01)


# Search


@pytest.mark.parametrize("variant", VARIANTS)
def test_search_returns_the_best_of_the_scores_and_the_lower_id_first(scifact: Collection, variant: Variant) -> None:
    index = filled(scifact.rows, variant, batch=170)
    scores = every(index, scifact.asked)
    held = [set(scifact.rows.row(j)[0].tolist()) for j in range(len(index))]
    for k in (1, 10, 300):
        found = index.search(scifact.asked, k)
        for i in range(len(scifact.asked)):
            columns = set(scifact.asked.row(i)[0].tolist())
            matching = [j for j in range(len(index)) if columns & held[j]]
            wanted = sorted(matching, key=lambda j: (-scores[i, j], j))[:k]
            assert found.ids[i, : len(wanted)].tolist() == wanted
            assert found.ids[i, len(wanted) :].tolist() == [-1] * (k - len(wanted))
            assert np.array_equal(found.scores[i, : len(wanted)], scores[i, wanted])


@pytest.mark.parametrize("size", [1, 20, 200, 800, 1200])
def test_allowed_rows_get_the_scores_they_have_without_a_filter(scifact: Collection, size: int) -> None:
    index = filled(scifact.rows, batch=500)
    allowed = np.sort(np.random.default_rng(size).permutation(1200)[:size])
    free, found = index.search(scifact.asked, 1200), index.search(scifact.asked, 50, allowed=allowed)
    for i in range(len(scifact.asked)):
        wanted = [(j, s) for j, s in zip(free.ids[i], free.scores[i], strict=True) if j >= 0 and j in set(allowed)][:50]
        got = [(j, s) for j, s in zip(found.ids[i], found.scores[i], strict=True) if j >= 0]
        assert got == wanted


def test_no_allowed_row_is_no_hit(scifact: Collection) -> None:
    index = filled(scifact.rows)
    for allowed in (keys(), keys(5000)):
        assert (index.search(scifact.asked, 3, allowed=allowed).ids == -1).all()


def test_rows_without_a_word_of_the_query_are_no_match_but_have_a_score() -> None:
    index = filled(sparse({1: 2}, {2: 1}, {}))
    found = index.search(sparse({1: 1}, {9: 1}, {}), 3)
    assert found.ids.tolist() == [[0, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert found.scores[0, 1:].tolist() == [-math.inf, -math.inf]
    assert index.score(sparse({1: 1}), keys(1, 2)[None])[0].tolist() == [0, 0]


def test_a_word_in_every_row_still_matches_where_it_weighs_nothing() -> None:
    for variant in ("atire", "robertson"):
        index = filled(sparse({1: 1}, {1: 2}, {1: 1, 2: 1}), variant)
        found = index.search(sparse({1: 1}), 5)
        assert sorted(found.ids[0].tolist()) == [-1, -1, 0, 1, 2]
        assert found.scores[0, :3].tolist() == [0, 0, 0]


def test_removed_and_excluded_rows_stay_away_where_the_words_weigh_nothing() -> None:
    index = filled(sparse(*[{1: 1}] * 8), "atire")
    index.remove(keys(3, 4))
    assert index.search(sparse({1: 1}), 9).ids[0, :7].tolist() == [0, 1, 2, 5, 6, 7, -1]
    assert index.search(sparse({1: 1}), 9, allowed=keys(0, 1, 2, 3, 5, 6)).ids[0, :6].tolist() == [0, 1, 2, 5, 6, -1]


def test_a_word_asked_for_twice_counts_twice(scifact: Collection) -> None:
    index = filled(scifact.rows)
    twice = Sparse(scifact.asked.indptr, scifact.asked.indices, scifact.asked.weights * 2, scifact.asked.dim)
    np.testing.assert_allclose(every(index, twice), 2 * every(index, scifact.asked), rtol=1e-6)


def test_equal_rows_tie_to_the_lower_id_in_any_number_of_segments() -> None:
    index = BM25Index()
    for row in (7, 3, 900, 5):
        index.add(keys(row), sparse({1: 2, 4: 1}))
    found = index.search(sparse({1: 1, 4: 1}), 3)
    assert found.ids.tolist() == [[3, 5, 7]]


def test_threads_search_while_rows_come_and_go(scifact: Collection) -> None:
    index = filled(scifact.rows)
    wanted = index.search(scifact.asked, 10)

    def change(_: int) -> None:
        for i in range(1200, 1240):
            index.add(keys(i), sparse_like(scifact.rows))
            index.remove(keys(i))

    with ThreadPoolExecutor(3) as pool:
        writer = pool.submit(change, 0)
        results = list(pool.map(lambda _: index.search(scifact.asked, 10), range(30)))
        writer.result()
    assert all((result.ids >= 0).all() for result in results)
    assert np.array_equal(index.search(scifact.asked, 10).ids, wanted.ids)


def sparse_like(rows: Sparse) -> Sparse:
    return Sparse(np.array([0, 1]), keys(12345), np.ones(1, np.float32), rows.dim)


# Changes


@pytest.mark.parametrize("variant", VARIANTS)
def test_real_rows_in_any_order_and_number_of_steps_score_as_in_one(scifact: Collection, variant: Variant) -> None:
    generator = np.random.default_rng(3)
    index = BM25Index(variant)
    order = generator.permutation(1200)
    for part in np.array_split(order, 37):
        index.add(part, take(scifact.rows, (part + 1) % 1200))
    index.remove(order[:500])
    for part in np.array_split(np.sort(order)[100:], 5):
        index.add(part, take(scifact.rows, part))
    index.remove(np.setdiff1d(index.ids, np.arange(100, 1000)))
    fresh = BM25Index(variant)
    fresh.add(np.arange(100, 1000), take(scifact.rows, np.arange(100, 1000)))
    np.testing.assert_allclose(every(index, scifact.asked), every(fresh, scifact.asked), rtol=1e-6, atol=1e-6)
    assert np.array_equal(index.search(scifact.asked, 50).ids, fresh.search(scifact.asked, 50).ids)


def test_rows_one_at_a_time_make_few_segments(scifact: Collection) -> None:
    index = filled(scifact.rows, batch=1)
    assert len(index._view.segments) <= 5
    assert sum(len(segment) for segment in index._view.segments) == 1200


def test_mostly_dead_segments_are_rewritten(scifact: Collection) -> None:
    index = filled(scifact.rows)
    index.remove(np.arange(0, 1000))
    assert sum(len(segment) for segment in index._view.segments) == 200


@pytest.mark.parametrize("weight", [0.5, 255, 256, 70_000.25])
def test_any_weight_is_kept(weight: float) -> None:
    index = filled(sparse({1: 1}, {1: weight, 2: 3}), batch=1)
    assert {part.term: part.value for part in index.explain(sparse({1: 1, 2: 1}), 1)} == {1: weight, 2: 3}


def test_a_weight_of_nothing_is_no_word() -> None:
    index = filled(sparse({1: 0, 2: 1}, {1: 1}))
    assert index.search(sparse({1: 1}), 2).ids.tolist() == [[1, -1]]
    assert index.search(sparse({1: 0, 2: 1}), 2).ids.tolist() == [[0, -1]]
    assert np.array_equal(every(index, sparse({1: 1})), every(filled(sparse({2: 1}, {1: 1})), sparse({1: 1})))


def test_an_empty_index_answers() -> None:
    for variant in VARIANTS:
        index = BM25Index(variant)
        index.add(keys(), sparse())
        assert (len(index), len(index.ids), index.remove(keys(1)), index.lowest) == (0, 0, 0, 0.0)
        assert index.search(sparse({1: 1}), 2).ids.tolist() == [[-1, -1]]
        assert index.score(sparse({1: 1}), keys(0)[None]).tolist() == [[-math.inf]]
        index.add(keys(1, 2), sparse({}, {}))
        assert index.search(sparse({1: 1}), 2).ids.tolist() == [[-1, -1]]
        assert index.score(sparse({1: 1}), keys(1)[None]).tolist() == [[0]]


# Explanations


@pytest.mark.parametrize("variant", VARIANTS)
def test_explanations_of_real_hits_sum_to_their_scores(scifact: Collection, variant: Variant) -> None:
    index = filled(scifact.rows, variant, batch=400)
    found = index.search(scifact.asked, 5)
    for i in range(len(scifact.asked)):
        query = take(scifact.asked, keys(i))
        for row, score in zip(found.ids[i].tolist(), found.scores[i].tolist(), strict=True):
            parts = index.explain(query, row)
            assert sum(part.contribution for part in parts) == pytest.approx(score, rel=1e-6)
            assert [p.contribution for p in parts] == sorted((p.contribution for p in parts), reverse=True)


def test_explaining_an_absent_row_or_two_queries_is_an_error() -> None:
    index = filled(sparse({1: 1}))
    with pytest.raises(NotFound, match="no row 8"):
        index.explain(sparse({1: 1}), 8)
    with pytest.raises(ShapeError, match="not 2"):
        index.explain(sparse({1: 1}, {2: 1}), 0)


# Disk


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_index_opens_bit_equal_and_goes_on(tmp_path: Path, scifact: Collection, variant: Variant) -> None:
    index = filled(scifact.rows, variant, batch=500)
    index.remove(np.arange(0, 1200, 7))
    index.save(tmp_path / "saved")
    again = BM25Index.open(tmp_path / "saved")
    assert dict(again.spec) == dict(index.spec)
    assert np.array_equal(again.ids, index.ids)
    mine, theirs = index.search(scifact.asked, 20), again.search(scifact.asked, 20)
    assert np.array_equal(mine.ids, theirs.ids)
    assert np.array_equal(mine.scores, theirs.scores)
    for one in (index, again):
        one.remove(np.arange(0, 1200, 5))
        one.add(np.arange(1000, 1400), take(scifact.rows, np.arange(400)))
    assert np.array_equal(every(index, scifact.asked), every(again, scifact.asked))


def test_large_arrays_are_mapped_not_read(tmp_path: Path, scifact: Collection) -> None:
    filled(scifact.rows).save(tmp_path / "saved")
    (segment,) = BM25Index.open(tmp_path / "saved")._view.segments
    assert isinstance(segment.codes.base, np.memmap)


def test_an_empty_index_is_saved_too(tmp_path: Path) -> None:
    BM25Index("okapi", epsilon=0.5).save(tmp_path / "saved")
    again = BM25Index.open(tmp_path / "saved")
    assert len(again) == 0
    assert again.spec["epsilon"] == 0.5


def test_any_altered_or_missing_file_is_noticed(tmp_path: Path) -> None:
    filled(sparse({1: 1}, {2: 3})).save(tmp_path / "saved")
    for number, file in enumerate(sorted((tmp_path / "saved").glob("*.npy"))):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if number % 2 else whole[:-1])
        with pytest.raises(CorruptArtifact, match=file.name):
            BM25Index.open(tmp_path / "saved")
        file.write_bytes(whole)
    assert len(BM25Index.open(tmp_path / "saved")) == 2


def test_a_folder_is_not_overwritten_and_an_absent_one_not_found(tmp_path: Path) -> None:
    index = filled(sparse({1: 1}))
    index.save(tmp_path / "saved")
    with pytest.raises(StorageError, match="exists already"):
        index.save(tmp_path / "saved")
    with pytest.raises(NotFound):
        BM25Index.open(tmp_path / "absent")


# Settings and bad input


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_an_index_that_its_spec_builds_again(variant: Variant) -> None:
    index = BM25Index(variant, k1=0.9, b=0.4)
    again = registry.build(json.loads(json.dumps(dict(index.spec))))
    assert isinstance(index, Index)
    assert dict(again.spec) == dict(index.spec)
    assert again.weighting == index.weighting
    assert index.lossless


@pytest.mark.parametrize(
    ("variant", "arguments", "named"),
    [
        ("bm25", {}, "'bm25'"),
        ("lucene", {"k1": -1}, "k1 is -1"),
        ("lucene", {"k1": math.nan}, "k1 is nan"),
        ("lucene", {"k1": "1.2"}, "k1 is '1.2'"),
        ("lucene", {"b": None}, "b is None"),
        ("bm25+", {"delta": "1"}, "delta is '1'"),
        ("lucene", {"weights_below": "5"}, "weights_below is '5'"),
        ("lucene", {"b": 1.5}, "b is 1.5"),
        ("lucene", {"delta": 0.5}, "no delta"),
        ("bm25+", {"delta": -0.5}, "delta is -0.5"),
        ("bm25l", {"epsilon": 0.5}, "no epsilon"),
    ],
)
def test_a_wrong_setting_is_named(variant: Any, arguments: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        BM25Index(variant, **arguments)


def broken(indptr: Sequence[int], indices: Sequence[int], weights: Sequence[float], dim: int = DIM) -> Sparse:
    return Sparse(np.array(indptr), np.array(indices, np.int64), np.array(weights, np.float32), dim)


@pytest.mark.parametrize(
    ("ids", "rows", "error"),
    [
        ([1, 1], sparse({1: 1}, {2: 1}), DuplicateId),
        ([-1], sparse({1: 1}), InvalidInput),
        ([1, 2], sparse({1: 1}), ShapeError),
        ([1.5], sparse({1: 1}), ShapeError),
        ([[1]], sparse({1: 1}), ShapeError),
        ([1], np.ones((1, 3), np.float32), ShapeError),
        ([1], broken([0, 1], [1], [math.nan]), ShapeError),
        ([1], broken([0, 1], [1], [-1]), ShapeError),
        ([1], broken([0, 1], [1], [math.inf]), ShapeError),
        ([1], broken([0, 1], [DIM], [1]), ShapeError),
        ([1], broken([0, 1], [-2], [1]), ShapeError),
        ([1], broken([0, 2], [2, 1], [1, 1]), ShapeError),
        ([1], broken([0, 2], [2, 2], [1, 1]), ShapeError),
        ([1], broken([0, 1], [1, 2], [1, 1]), ShapeError),
        ([1, 2], broken([0, 2, 1], [1, 2], [1, 1]), ShapeError),
        ([1], broken([0, 1], [1], [1], dim=7), ShapeError),
    ],
)
def test_a_bad_row_is_refused_and_changes_nothing(ids: list[Any], rows: Any, error: type[ReperioError]) -> None:
    index = filled(sparse({1: 2}, {3: 1}))
    before = every(index, sparse({1: 1, 3: 1}))
    with pytest.raises(error):
        index.add(np.array(ids), rows)
    assert np.array_equal(every(index, sparse({1: 1, 3: 1})), before)


def test_a_bad_search_is_refused() -> None:
    index = filled(sparse({1: 2}))
    for k in (0, -3):
        with pytest.raises(InvalidInput, match=f"k is {k}"):
            index.search(sparse({1: 1}), k)
    with pytest.raises(ConfigurationError, match="'nprobe'"):
        index.search(sparse({1: 1}), 1, options={"nprobe": 3})
    with pytest.raises(InvalidInput, match="sorted"):
        index.search(sparse({1: 1}), 1, allowed=keys(2, 1))
    with pytest.raises(ShapeError):
        index.search(broken([0, 1], [1], [1], dim=7), 1)
    with pytest.raises(ShapeError, match="for 1 queries"):
        index.score(sparse({1: 1}), keys(0))
