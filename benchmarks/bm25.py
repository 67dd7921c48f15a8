"""BM25 beside bm25s and rank_bm25: latency, indexing, quality; every library gets the same terms.

Texts are the documents of real collections; the largest set cuts all of them into passages of 40 words. A time
is for one query from its terms to its 10 best; "text to hits" adds cutting the text into terms.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import bm25s
import ir_measures
import numpy as np
import rank_bm25
from ir_measures import nDCG

from benchmarks.measuring import in_turns, paired, spread, table
from reperio.embeddings import Sparse, take
from reperio.encoders import BM25Encoder
from reperio.indexes import BM25Index

DATA = Path(os.environ.get("REPERIO_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
PUBLISHED = {"scifact": 0.679, "cranfield": 0.512, "cisi": 0.396, "med": 0.699}
"""nDCG@10: scifact as published with BEIR, the others measured with bm25s."""
QUERIES, K, PASSAGE, CHUNK = 100, 10, 40, 4096


def run() -> dict[str, Any]:
    if not (DATA / "scifact").is_dir():
        print("the collections are not at hand (set REPERIO_DATA), left out")
        return {}
    return {"latency": _latencies(), "indexing": _indexing(), "quality": _quality()}


def _records(name: str, file: str) -> Iterator[dict[str, Any]]:
    with (DATA / name / f"{file}.jsonl").open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _documents(name: str) -> dict[str, str]:
    texts = {d["_id"]: f"{d.get('title', '')} {d['text']}" for d in _records(name, "corpus")}
    return {key: text for key, text in texts.items() if text.strip()}


def _passages() -> list[str]:
    names = sorted(folder.parent.name for folder in DATA.glob("*/corpus.jsonl"))
    words = [word for name in names for text in _documents(name).values() for word in text.split()]
    return [" ".join(words[i : i + PASSAGE]) for i in range(0, len(words), PASSAGE)]


def _filled(rows: Sparse) -> BM25Index:
    index = BM25Index()
    for start in range(0, len(rows), CHUNK):
        ids = np.arange(start, min(start + CHUNK, len(rows)))
        index.add(ids, take(rows, ids))
    return index


def _bm25s(tokens: Sequence[Sequence[str]], backend: str) -> Any:
    model = bm25s.BM25(k1=1.2, b=0.75, backend=backend)
    model.index(list(tokens), show_progress=False)
    return model


def _latencies() -> dict[str, Any]:
    out = {}
    for name in ("scifact", "medquad"):
        queries = [record["text"] for record in _records(name, "queries")][:QUERIES]
        out[name] = _latency(name, list(_documents(name).values()), queries)
    queries = [r["text"] for name in ("scifact", "medquad") for r in list(_records(name, "queries"))[: QUERIES // 2]]
    out["passages"] = _latency("passages", _passages(), queries)
    return out


def _latency(name: str, texts: list[str], queries: list[str]) -> dict[str, Any]:
    encoder = BM25Encoder()
    tokenize = encoder.analyzer.tokenize
    tokens, asked = [tokenize(text) for text in texts], [tokenize(text) for text in queries]
    rows, columns = encoder.encode_document(texts).embeddings, encoder.encode_query(queries).embeddings
    single = [take(columns, np.array([i])) for i in range(len(queries))]
    index, plain, compiled = _filled(rows), _bm25s(tokens, "numpy"), _bm25s(tokens, "numba")
    okapi, some = rank_bm25.BM25Okapi(tokens), asked[:3]

    def text_to_hits() -> None:
        for query in queries:
            index.search(encoder.encode_query([query]).embeddings, K)

    def rank() -> None:
        for query in some:
            np.argsort(okapi.get_scores(query))[: -K - 1 : -1]

    ways: dict[str, Callable[[], object]] = {
        "reperio": lambda: [index.search(query, K) for query in single],
        "reperio, one batch": lambda: index.search(columns, K),
        "reperio, text to hits": text_to_hits,
        "bm25s numpy": lambda: [plain.retrieve([query], k=K, show_progress=False) for query in asked],
        "bm25s numpy, one batch": lambda: plain.retrieve(asked, k=K, show_progress=False),
        "bm25s numba": lambda: [compiled.retrieve([query], k=K, show_progress=False) for query in asked],
        "rank_bm25": rank,
    }
    times = in_turns(ways, repeats=7)
    counts = {way: len(some) if way == "rank_bm25" else len(queries) for way in ways}
    each = {way: [seconds * 1e3 / counts[way] for seconds in times[way]] for way in ways}
    print(f"\n{name}: {len(texts)} documents, milliseconds a query, k = {K}")
    table([{"way": way, **spread(each[way])} for way in ways])
    return {
        "documents": len(texts),
        "milliseconds": {way: spread(each[way]) for way in ways},
        "times reperio": {way: paired(each[way], each["reperio"]) for way in ways},
    }


def _indexing() -> dict[str, Any]:
    texts = list(_documents("medquad").values())
    encoder = BM25Encoder()
    tokens = [encoder.analyzer.tokenize(text) for text in texts]
    rows = encoder.encode_document(texts).embeddings
    words = sum(map(len, map(str.split, texts))) / len(texts)
    ways: dict[str, Callable[[], object]] = {
        "reperio encode": lambda: BM25Encoder().encode_document(texts),
        "reperio add": lambda: _filled(rows),
        "bm25s index": lambda: _bm25s(tokens, "numba"),
        "rank_bm25 index": lambda: rank_bm25.BM25Okapi(tokens),
    }
    rates = {way: [len(texts) / s for s in seconds] for way, seconds in in_turns(ways, repeats=5).items()}
    print(f"\nmedquad: documents a second, {words:.0f} words each")
    table([{"way": way, **spread(rates[way])} for way in ways])

    index, after = _filled(rows), iter(range(len(texts), 10**9))
    one = take(rows, np.array([5]))
    steps: dict[str, Callable[[], object]] = {
        "add one": lambda: index.add(np.array([next(after)]), one),
        "replace one": lambda: index.add(np.array([7]), one),
        "add one, remove it": lambda: (index.add(np.array([10**9]), one), index.remove(np.array([10**9]))),
    }
    changes = {way: [s * 1e3 for s in seconds] for way, seconds in in_turns(steps, repeats=7, calls=100).items()}
    print(f"\nmedquad, {len(index)} documents held: milliseconds a change")
    table([{"change": way, **spread(changes[way])} for way in steps])
    return {
        "words a document": words,
        "documents a second": {way: spread(rates[way]) for way in ways},
        "milliseconds a change": {way: spread(changes[way]) for way in steps},
    }


def _quality() -> dict[str, Any]:
    out = {}
    for name, published in PUBLISHED.items():
        documents, queries = _documents(name), {r["_id"]: r["text"] for r in _records(name, "queries")}
        lines = (DATA / name / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]
        judged = [line.split("\t") for line in lines]
        qrels = [ir_measures.Qrel(query, document, int(float(grade))) for query, document, grade in judged]
        asked = {key: queries[key] for key in dict.fromkeys(query for query, _, _ in judged)}
        ours, theirs = _ndcg(qrels, _ours(documents, asked)), _ndcg(qrels, _theirs(documents, asked))
        out[name] = {"reperio": ours, "bm25s": theirs, "difference": ours - theirs, "published": published}
    print("\nnDCG@10, variant lucene, k1 1.2, b 0.75")
    table([{"collection": name, **row} for name, row in out.items()])
    return out


def _ndcg(qrels: list[Any], run: list[Any]) -> float:
    return float(ir_measures.calc_aggregate([nDCG @ K], qrels, run)[nDCG @ K])


def _ours(documents: dict[str, str], queries: dict[str, str]) -> list[Any]:
    encoder, names = BM25Encoder(), list(documents)
    index = _filled(encoder.encode_document(list(documents.values())).embeddings)
    found = index.search(encoder.encode_query(list(queries.values())).embeddings, K)
    return [
        ir_measures.ScoredDoc(query, names[row], float(score))
        for query, ids, scores in zip(queries, found.ids.tolist(), found.scores.tolist(), strict=True)
        for row, score in zip(ids, scores, strict=True)
        if row >= 0
    ]


def _theirs(documents: dict[str, str], queries: dict[str, str]) -> list[Any]:
    tokenize, names = BM25Encoder().analyzer.tokenize, list(documents)
    model = _bm25s([tokenize(text) for text in documents.values()], "numpy")
    asked = [tokenize(text) for text in queries.values()]
    rows, scores = model.retrieve(asked, k=K, show_progress=False)
    return [
        ir_measures.ScoredDoc(query, names[int(row)], float(score))
        for query, found, values in zip(queries, rows, scores, strict=True)
        for row, score in zip(found, values, strict=True)
    ]
