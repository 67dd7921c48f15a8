"""Finding tools: by their descriptions, by the queries that used them, and by what is learnt of both.

MetaTool: 199 tools, queries with one or a few; Seal-Tools: 4,076 tools, most of them without a single query that
could be learnt from. Queries are split by a seeded shuffle: a fifth is asked; of the rest a fifth fits the refiner,
and the others are the usages. No query that is asked is seen by anything that is fitted.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import cached, table
from reperio import Collection, Query
from reperio.encoders import BM25Encoder, DenseEncoder, head_vectors, usage_vectors
from reperio.evaluation import Beir, evaluate
from reperio.indexes import BM25Index, FlatIndex
from reperio.rerankers import ToolRefiner
from reperio.signals import Signal

DATA = Path(os.environ.get("REPERIO_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
COLLECTIONS = {"metatool": "train", "seal-tools": "dev"}
MEASURES = ["R@1", "R@3", "R@5", "R@10"]
SEED = 13
MOST = 2000
"""Most queries that are asked, and that fit the refiner."""
DEPTH = 20
"""Candidates that the refiner orders."""

Judged = Mapping[str, Mapping[str, int]]


def run() -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, split in COLLECTIONS.items():
        if not (DATA / name).is_dir():
            print(f"{name}: not at hand (set REPERIO_DATA), left out")
            continue
        out[name] = _one(Beir(DATA / name), split)
    return out


def _one(dataset: Beir, split: str) -> dict[str, Any]:
    tools, qrels = list(dataset.documents()), dataset.qrels(split)
    asked, fitting, used = _split(dataset.queries(split))
    usages = _usages(used, qrels)
    encoder = cached(DenseEncoder())
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vectors = {
            "tool2vec": usage_vectors(encoder, tools, usages, prior=0),
            "tool2vec-described": usage_vectors(encoder, tools, usages),
            "head": head_vectors(encoder, tools, usages),
        }
        dense = {name: Signal(encoder, FlatIndex()) for name in ("description", *vectors)}
        with Collection.open(Path(folder) / "c", signals={"bm25": Signal(BM25Encoder(), BM25Index()), **dense}) as held:
            held.upsert(tools, embeddings=vectors, progress=False)
            first = held.retriever(DEPTH, signals=["tool2vec-described", "head", "bm25", "description"])
            refiner = ToolRefiner(encoder, usages).fit(first(fitting), {key: set(row) for key, row in qrels.items()})
            systems: dict[str, Any] = {
                "description": held.retriever(DEPTH, signals=["description"]),
                "bm25": held.retriever(DEPTH, signals=["bm25"]),
                "bm25 + description": held.retriever(DEPTH, signals=["bm25", "description"]),
                **{name: held.retriever(DEPTH, signals=[name]) for name in vectors},
                "all signals": first,
                "all signals, refined": first >> refiner,
            }
            report = evaluate(systems, asked, qrels, measures=MEASURES, baseline="description", k=DEPTH)
    found = report.to_dict()
    lacking = [q for q in asked if any(tool not in usages for tool in qrels[q.id])]
    print(f"\n{dataset.name}: {len(tools)} tools, {len(usages)} of them used by {len(used)} queries; ", end="")
    print(f"{len(asked)} asked, {len(lacking)} of them for a tool that no usage is known of")
    table([{"system": run, **measures} for run, measures in found.items()])
    print(report)
    return {
        "tools": len(tools),
        "tools with usages": len(usages),
        "queries": {
            "asked": len(asked),
            "of a tool without usages": len(lacking),
            "fit": len(fitting),
            "used": len(used),
        },
        "seed": SEED,
        "measures": found,
        "details": report.details(),
        "weights of the refiner": refiner.weights,
    }


def _split(queries: Sequence[Query]) -> tuple[list[Query], list[Query], list[Query]]:
    order = np.random.default_rng(SEED).permutation(len(queries)).tolist()
    shuffled = [queries[i] for i in order]
    asked = min(MOST, len(queries) // 5)
    fitting = min(MOST, (len(queries) - asked) // 5)
    return shuffled[:asked], shuffled[asked : asked + fitting], shuffled[asked + fitting :]


def _usages(queries: Sequence[Query], qrels: Judged) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for query in queries:
        for tool in qrels[query.id]:
            out.setdefault(tool, []).append(query.text)
    return out
