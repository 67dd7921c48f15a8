"""The page on costs says what was measured and what follows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import costs

    return costs


@pytest.fixture
def rates() -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / "distributed.json").read_text())["result"]


def test_the_tables_of_the_page_are_those_of_the_last_measurement(costs: Any, rates: Any) -> None:
    text = costs.PAGE.read_text(encoding="utf-8")
    written = text[text.index(costs.BEGIN) + len(costs.BEGIN) : text.index(costs.END)]
    assert written.strip() == costs.page(rates).strip()


def test_ten_times_the_documents_take_ten_times_the_hours_and_bytes(costs: Any, rates: Any) -> None:
    for name in ("core hours", "bytes"):
        assert costs.encoding(rates, 10**9)[name] == pytest.approx(10 * costs.encoding(rates, 10**8)[name])
    for engine in ("Flat", "BM25", "PostgreSQL float16", "Milvus", "IVF1024,SQ8"):
        few, many = costs.index(rates, engine, 10**8), costs.index(rates, engine, 10**9)
        assert many["bytes"] == pytest.approx(10 * few["bytes"], rel=0.01)
        assert many["hours"] >= 9 * few["hours"] or engine.startswith("IVF")  # which learns once


def test_the_engine_that_is_picked_fits_and_a_smaller_one_would_not_have_been_more_exact(
    costs: Any, rates: Any
) -> None:
    order = ["Flat", "HNSW32", "IVF1024,Flat", "IVF1024,SQ8", "IVF1024,PQ48", "Milvus"]
    picked = [next(name for name in order if name in costs.pick(rates, n)[0]) for n in costs.SIZES]
    places = [order.index(name) for name in picked]
    assert places == sorted(places)
    assert picked[0] == "Flat"
    for n, name in zip(costs.SIZES, picked, strict=True):
        if name not in ("Flat", "Milvus"):
            assert costs.index(rates, name, n)["machines"] == 1
