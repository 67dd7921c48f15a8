"""BM25 after any sequence of changes, against a dictionary of rows and the formulas written out in Python."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from reperio.embeddings import Sparse
from reperio.errors import DuplicateId
from reperio.indexes import inverted, postings
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.postings import Precision
from reperio.indexes.weighting import Variant


def sparse(*rows: dict[int, float]) -> Sparse:
    """Rows from column → weight."""
    indptr = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    columns = [column for row in rows for column in sorted(row)]
    weights = [row[column] for row in rows for column in sorted(row)]
    return Sparse(indptr, np.array(columns, np.int64), np.array(weights, np.float32), 50)


def keys(*ids: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(ids, dtype=np.int64)


class Model(RuleBasedStateMachine):
    """The index against a dictionary of rows scored by the formula in the paper."""

    ids = st.lists(st.integers(0, 40), max_size=12, unique=True)
    row = st.dictionaries(st.integers(0, 12), st.integers(1, 300).map(float), max_size=6)

    @initialize(
        variant=st.sampled_from(get_args(Variant)),
        smallest=st.sampled_from([0, 3, 128]),
        compiled_from=st.sampled_from([0, 1 << 60]),
        precision=st.sampled_from(get_args(Precision)),
    )
    def begin(self, variant: Variant, smallest: int, compiled_from: int, precision: Precision) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(inverted, "_SMALLEST", smallest)
        self.patch.setattr(postings, "_COMPILED_FROM", compiled_from)
        self.variant: Variant = variant
        self.index = BM25Index(variant, precision=precision)
        self.rows: dict[int, dict[int, float]] = {}

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()

    @rule(ids=ids, data=st.data())
    def add(self, ids: list[int], data: st.DataObject) -> None:
        rows = [data.draw(self.row) for _ in ids]
        self.index.add(keys(*ids), sparse(*rows))
        self.rows.update(zip(ids, rows, strict=True))

    @rule(ids=ids)
    def remove(self, ids: list[int]) -> None:
        assert self.index.remove(keys(*ids)) == sum(key in self.rows for key in ids)
        for key in ids:
            self.rows.pop(key, None)

    @rule(ids=ids.filter(bool))
    def fail(self, ids: list[int]) -> None:
        with pytest.raises(DuplicateId):
            self.index.add(keys(*ids, ids[0]), sparse(*[{1: 1.0}] * (len(ids) + 1)))

    @rule(query=row, k=st.integers(1, 60), allowed=st.none() | ids)
    def search(self, query: dict[int, float], k: int, allowed: list[int] | None) -> None:
        given = None if allowed is None else np.unique(keys(*allowed))
        found = self.index.search(sparse(query), k, allowed=given)
        wanted = {
            key: naive(self.variant, self.rows, query, row)
            for key, row in self.rows.items()
            if (allowed is None or key in allowed) and query.keys() & row.keys()
        }
        got = [key for key in found.ids[0].tolist() if key >= 0]
        assert len(got) == min(k, len(wanted))
        assert set(got) <= wanted.keys()
        np.testing.assert_allclose(found.scores[0, : len(got)], [wanted[key] for key in got], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            found.scores[0, : len(got)], sorted(wanted.values(), reverse=True)[: len(got)], rtol=1e-5, atol=1e-5
        )

    @rule(query=row)
    def score(self, query: dict[int, float]) -> None:
        ids = [*self.rows, -1, 99]
        got = self.index.score(sparse(query), keys(*ids)[None])[0]
        wanted = [naive(self.variant, self.rows, query, row) for row in self.rows.values()]
        np.testing.assert_allclose(got[:-2], wanted, rtol=1e-5, atol=1e-5)
        assert got[-2:].tolist() == [-math.inf, -math.inf]

    @rule()
    def reopen(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.index.save(Path(folder) / "saved")
            self.index = BM25Index.open(Path(folder) / "saved")

    @rule(query=row)
    def explain(self, query: dict[int, float]) -> None:
        for key in list(self.rows)[:3]:
            parts = self.index.explain(sparse(query), key)
            score = float(self.index.score(sparse(query), keys(key)[None])[0, 0])
            assert sum(part.contribution for part in parts) == pytest.approx(score, rel=1e-6, abs=1e-6)
            assert {part.term: part.value for part in parts if part.value} == {
                term: tf for term, tf in self.rows[key].items() if query.get(term)
            }

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "rows"):
            assert self.index.ids.tolist() == sorted(self.rows)
            assert len(self.index) == len(self.rows)


def naive(variant: str, rows: dict[int, dict[int, float]], query: dict[int, float], row: dict[int, float]) -> float:
    """One row's score, term by term, in Python."""
    k1, b = 1.2, 0.75
    average = sum(sum(r.values()) for r in rows.values()) / len(rows) or 1.0
    relative = 1 - b + b * sum(row.values()) / average
    total = 0.0
    for term, asked in query.items():
        if not any(term in r for r in rows.values()):
            continue
        tf, idf = row.get(term, 0.0), naive_idf(variant, rows, term)
        plain = tf / (tf + k1 * relative) if tf else 0.0
        if variant == "bm25l":
            c = tf / relative + 0.5
            factor = tf * (k1 + 1) * c / (k1 + c)
        else:
            factor = plain if variant in ("lucene", "robertson") else plain * (k1 + 1)
        total += asked * idf * (factor + (variant == "bm25+"))
    return total


def naive_idf(variant: str, rows: dict[int, dict[int, float]], term: int) -> float:
    n, df = len(rows), sum(term in r for r in rows.values())
    odds = math.log((n - df + 0.5) / (df + 0.5))
    if variant == "okapi" and odds < 0:
        frequencies = Counter(t for r in rows.values() for t in r)
        return 0.25 * sum(math.log((n - f + 0.5) / (f + 0.5)) for f in frequencies.values()) / len(frequencies)
    return {
        "lucene": math.log(1 + (n - df + 0.5) / (df + 0.5)),
        "robertson": max(odds, 0.0),
        "atire": math.log(n / df),
        "okapi": odds,
        "bm25l": math.log((n + 1) / (df + 0.5)),
        "bm25+": math.log((n + 1) / df),
    }[variant]


Model.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestModel = Model.TestCase
