"""Sparse and dense rows of one server, fused, find what the exact indexes of this process find."""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import statistics
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from reperio import Collection, Document, Field, Signal
from reperio.encoders.hashing import HashEncoder, HashWeights
from reperio.fusion import Convex
from reperio.indexes import FlatIndex, InvertedIndex, MilvusIndex, PgvectorIndex, QdrantIndex
from reperio.types import Ranking

MODULES = (argparse, json, logging, statistics, subprocess, textwrap)
QUERIES = ["parse the arguments of a command line", "mean and variance of data", "wrap text to lines", "log a message"]
ENGINES = ("pgvector", "pgvector in the database", "milvus", "qdrant")


def passages() -> list[Document]:
    """Docstrings of the standard library: real text, here wherever Python is."""
    found: dict[str, Document] = {}
    for module in MODULES:
        for name, member in inspect.getmembers(module):
            for inner, part in [(name, member), *(inspect.getmembers(member) if inspect.isclass(member) else ())]:
                text = inspect.getdoc(part)
                if text and getattr(part, "__module__", None) == module.__name__:
                    key = f"{module.__name__}.{name}.{inner}"
                    found[key] = Document(key, text, {"module": module.__name__, "n": len(found)})
    return list(found.values())


def hybrid(sparse: Any, dense: Any) -> dict[str, Signal[Any]]:
    return {"sparse": Signal(HashWeights(2048), sparse), "dense": Signal(HashEncoder(64), dense)}


@pytest.fixture(params=ENGINES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, dict[str, Signal[Any]]]]:
    """Where a collection is, and its signals, on each engine."""
    place, uri = str(tmp_path / "served"), str(tmp_path / "rows.db")
    if request.param.startswith("pgvector"):
        server = request.getfixturevalue("server")
        inside = request.param.endswith("database")
        where = () if inside else (server,)
        sparse, dense = (
            PgvectorIndex(*where, metric="ip", dtype="sparse", index=None),
            PgvectorIndex(*where, index=None),
        )
        yield f"{server}#hybrids" if inside else place, hybrid(sparse, dense)
        if inside:
            with psycopg.connect(server, autocommit=True) as connection:
                connection.execute("SET client_min_messages = error; DROP SCHEMA IF EXISTS hybrids CASCADE")
    elif request.param == "milvus":
        pytest.importorskip("milvus_lite")
        yield place, hybrid(MilvusIndex(uri, vectors="sparse"), MilvusIndex(uri, index_type="FLAT"))
        MilvusIndex(uri).close()
    else:
        pytest.importorskip("qdrant_client")
        yield place, hybrid(QdrantIndex(":memory:", vectors="sparse"), QdrantIndex(":memory:"))


def same(found: Ranking, wanted: Ranking) -> None:
    """The same scores in the same order, of every signal too; of equal scores, either document."""
    assert len(found) == len(wanted)
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-4, atol=1e-5)
    last = wanted.scores[-1] + 1e-4
    parts = [{hit.document.id: hit.signals for hit in ranking if hit.score > last} for ranking in (found, wanted)]
    assert parts[0].keys() == parts[1].keys()
    for name, signals in parts[0].items():
        assert signals == pytest.approx(parts[1][name], rel=1e-4, abs=1e-5)


def test_a_hybrid_on_a_server_finds_what_the_exact_indexes_find(pair: Any, tmp_path: Path) -> None:
    place, signals = pair
    documents = passages()
    assert len(documents) > 150
    exact = hybrid(InvertedIndex(precision="float32"), FlatIndex())
    cache = {"cache": tmp_path / "cache"} if "#" in place else {}

    some = Field("module").in_(["argparse", "logging"]) & (Field("n") >= 20)
    weights = {"sparse": 2.0, "dense": 1.0}
    asked: list[dict[str, Any]] = [
        {"k": 1000, "fusion": Convex(weights=weights)},
        {"k": 1000, "fusion": Convex("z-score"), "where": some},
        # Of equal scores at the end of a signal's candidates, a server chooses: these sums do not depend on it.
        {"k": 10, "fusion": Convex("theoretical", weights=weights)},
        {"k": 3, "fusion": Convex("theoretical", weights=weights), "where": some},
        {"k": 10, "signals": ["sparse"]},
        {"k": 10, "signals": ["dense"], "where": some},
    ]

    def compare(there: Collection, here: Collection) -> None:
        for how in asked:
            for found, wanted in zip(there.search(QUERIES, **how), here.search(QUERIES, **how), strict=True):
                same(found, wanted)

    with (
        Collection.open(place, signals=signals, **cache) as there,
        Collection.open(tmp_path / "exact", signals=exact) as here,
    ):
        for c in (there, here):
            c.upsert(documents, progress=False)
        compare(there, here)
        for c in (there, here):
            c.upsert([Document(d.id, f"{d.text} once more", d.metadata) for d in documents[::7]], progress=False)
            c.delete([d.id for d in documents[::11]])
        compare(there, here)
        compare(there, here)
        for c in (there, here):
            c.compact()
        assert there.verify().problems == ()
    with Collection.open(place, mode="r", **cache) as there, Collection.open(tmp_path / "exact", mode="r") as here:
        compare(there, here)
