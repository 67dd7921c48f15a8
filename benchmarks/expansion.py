"""Words that a frozen model adds to documents, in closed form, in one index with BM25: do they help, on full text?

The constants are those of the study that the method comes from (0.2, the best 64 words, a quarter of BM25's weight);
none was chosen on these queries. In the study it gained on Cranfield, CISI and NPL with texts cut short; here texts
are whole, in windows of 256 tokens, and most collections are others. Each collection is fitted on its own documents,
without queries or judgments. Larger ones are sampled: the documents judged for the sampled queries, then others.

Every document is read by the model once, in bfloat16, and its states serve the fit, the weights and the dense vectors.
``REPERIO_STATES`` names a folder where states are kept from run to run.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import table
from reperio import Document, Query, extras
from reperio.embeddings import Sparse, take
from reperio.encoders import BM25Encoder, ClosedFormEncoder, DenseEncoder, SparseSum, StemStates
from reperio.encoders.closed_form_words import token_terms
from reperio.evaluation import Beir, Run, evaluate
from reperio.evaluation.significance import holm
from reperio.fusion import Convex, combine
from reperio.indexes import BM25Index, InvertedIndex
from reperio.models.language_model import LanguageModel
from reperio.models.states import TokenStates
from reperio.types import Encoded, Fingerprint

DATA = Path(os.environ.get("REPERIO_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
ALL = bool(os.environ.get("REPERIO_ALL_DOCUMENTS"))
"""Whether no collection is sampled."""
COLLECTIONS = {
    "cranfield": ("test", 0),
    "cisi": ("test", 0),
    "med": ("test", 0),
    "adi": ("test", 0),
    "xquad-r": ("mono", 0),
    "nq-open-oracle": ("test", 1000),
    "cosqa": ("dev", 1000),
    "scifact": ("test", 1500),
    "medquad": ("train", 600),
}
"""Split, and how many documents are taken; 0 for all."""
IN_STUDY = {"cranfield", "cisi"}
WEIGHT = 0.25
WINDOW = 256
ASKED = 500
K = 100


def run() -> dict[str, Any]:
    extras.load("torch", extra="models").set_num_threads(1)
    model = LanguageModel("all-MiniLM-L6-v2", dtype="bfloat16", kernel="sdpa")
    out: dict[str, Any] = {}
    for name, (split, most) in COLLECTIONS.items():
        if not (DATA / name).is_dir():
            print(f"{name}: not at hand (set REPERIO_DATA), left out")
            continue
        documents, queries, qrels, all_ = sampled(name, split, 0 if ALL else most)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(os.environ.get("REPERIO_STATES", temporary)) / f"{name}-{len(documents)}"
            out[name] = {"of": all_, **_one(name, model, documents, queries, qrels, folder)}
    return out | {"over all": _over_all(out)}


def sampled(name: str, split: str, most: int) -> tuple[list[Document], list[Query], dict[str, dict[str, int]], int]:
    """Some documents and judged queries, always the same, and how many documents there are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = Beir(DATA / name)
        documents, asked, qrels = list(dataset.documents()), dataset.queries(split), dataset.qrels(split)
    if name == "xquad-r":  # the English part of it
        documents = [d for d in documents if d.id.startswith("en-")]
        asked = [q for q in asked if q.id.startswith("en-")]
    rng, most = random.Random(0), most or len(documents)
    queries, kept = list[Query](), set[str]()
    for query in rng.sample(asked, len(asked)):
        if len(queries) < ASKED and (most >= len(documents) or len(kept | qrels[query.id].keys()) <= most * 2 // 3):
            queries.append(query)
            kept |= qrels[query.id].keys()
    kept &= {d.id for d in documents}  # some collections judge documents that have no text
    others = [d.id for d in documents if d.id not in kept]
    kept.update(rng.sample(others, min(len(others), max(0, most - len(kept)))))
    some = [d for d in documents if d.id in kept]
    return some, queries, {q.id: dict(qrels[q.id]) for q in queries}, len(documents)


@dataclass(frozen=True)
class States:
    """States of all documents' own tokens, window by window, and one dense vector a document."""

    states: Any
    offsets: Any
    starts: Any
    tokens: Any
    keys: Any
    dense: Any

    def window(self, number: int) -> tuple[Any, Any, Any]:
        """States, and the pairs of tokens and stems."""
        first, last = self.offsets[number], self.offsets[number + 1]
        pairs = slice(*np.searchsorted(self.tokens, [first, last]))
        return self.states[first:last], self.tokens[pairs] - first, self.keys[pairs]


class _Keep:
    """A head that gives the states of a row's own tokens, and the mean over the whole row, as MiniLM is used."""

    def __call__(self, batch: TokenStates, /) -> list[tuple[Any, Any]]:
        whole = [batch.states[a:b].float().mean(dim=0).numpy() for a, b in pairwise(batch.offsets.tolist())]
        own = [batch.states[a:b].float().numpy().astype(np.float16) for a, b in batch.spans.tolist()]
        return list(zip(own, whole, strict=True))


def _states(fit: StemStates, documents: Sequence[Document], folder: Path) -> tuple[States, float]:
    """Read the documents, or what is kept of them; and the CPU seconds that the model took, kept too."""
    names = [f.name for f in fields(States)]
    if not folder.is_dir():
        temporary = folder.with_name(folder.name + ".tmp")
        temporary.mkdir(parents=True, exist_ok=True)
        rows: list[Any] = []
        labels: list[Any] = []
        starts, dense, at, begun = [0], [], 0, time.process_time()
        maker = fit.reading.maker("document")
        for first in range(0, len(documents), 64):
            texts = [d.text for d in documents[first : first + 64]]
            read = fit.reading.read(texts, "document", _Keep())
            for number, (text, spans) in enumerate(zip(texts, maker.spans(texts), strict=True)):
                tokens, keys = token_terms(text, spans.tolist(), fit.words.analyzer)
                parts = read.parts[read.starts[number] : read.starts[number + 1]]
                own = maker.own(read.tokens[number], np.arange(len(read.tokens[number])))
                for (states, _), places in zip(parts, own, strict=True):
                    some = slice(*np.searchsorted(tokens, [places[0], places[-1] + 1]))
                    labels.append((tokens[some] - places[0] + at, keys[some]))
                    rows.append(states)
                    at += len(states)
                vectors = [mean / np.linalg.norm(mean) for _, mean in parts]
                dense.append(np.sum(vectors, axis=0) / np.linalg.norm(np.sum(vectors, axis=0)))
                starts.append(len(rows))
        np.save(temporary / "states.npy", np.concatenate(rows))
        np.save(temporary / "offsets.npy", np.cumsum([0, *map(len, rows)]))
        np.save(temporary / "starts.npy", np.array(starts))
        np.save(temporary / "tokens.npy", np.concatenate([tokens for tokens, _ in labels]))
        np.save(temporary / "keys.npy", np.concatenate([keys for _, keys in labels]))
        np.save(temporary / "dense.npy", np.array(dense, dtype=np.float32))
        (temporary / "seconds.json").write_text(json.dumps(time.process_time() - begun))
        temporary.rename(folder)
    kept = {name: np.load(folder / f"{name}.npy", mmap_mode="r" if name == "states" else None) for name in names}
    return States(**kept), json.loads((folder / "seconds.json").read_text())


def _fit(fit: StemStates, documents: Sequence[Document], kept: States) -> None:
    for document, (first, last) in zip(documents, pairwise(kept.starts.tolist()), strict=True):
        for number in range(first, last):
            fit.observe(*kept.window(number))
        fit.name(document.text)
        fit.texts += 1


class _Expanded:
    """The encoder over states that are at hand."""

    def __init__(self, encoder: ClosedFormEncoder, rows: Sparse, texts: Sequence[str]) -> None:
        self.encoder, self.rows = encoder, rows
        self.fingerprint = Fingerprint.make("sparse", "expansion", encoder.dim)
        self.spec = {"type": "Expanded"}
        self.encode_query = encoder.encode_query
        self._places = {text: place for place, text in enumerate(texts)}

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Sparse]:
        rows = take(self.rows, np.array([self._places[text] for text in texts], dtype=np.int64))
        return Encoded(rows, np.ones(len(texts), dtype=np.int64), np.zeros(len(texts), dtype=np.bool_))


def _best(encoder: ClosedFormEncoder, every: Sparse, texts: Sequence[str]) -> Sparse:
    """What an encoder keeps of the weights for every word."""
    return encoder._sparse(encoder._joined([every.row(i)], encoder._passed(text)) for i, text in enumerate(texts))


def _one(
    name: str,
    model: LanguageModel,
    documents: list[Document],
    queries: list[Query],
    qrels: dict[str, dict[str, int]],
    folder: Path,
) -> dict[str, Any]:
    texts, asked = [d.text for d in documents], [q.text for q in queries]
    fit = StemStates(model, max_tokens=WINDOW)
    kept, model_seconds = _states(fit, documents, folder)
    times = {"model": model_seconds}
    with _timed(times, "fit"):
        _fit(fit, documents, kept)
        encoder = ClosedFormEncoder(fit)
    windows = [[kept.window(n)[0] for n in range(a, b)] for a, b in pairwise(kept.starts.tolist())]
    study = ClosedFormEncoder(fit, own=True)
    with _timed(times, "head"):
        every_word = ClosedFormEncoder(fit, own=True, top=encoder.dim).weigh(texts, windows)
    ways = {"one index": encoder, "one index, own words too": study}
    expanded = {system: _Expanded(way, _best(way, every_word, texts), texts) for system, way in ways.items()}
    rows = expanded["one index"].rows
    indexes: dict[str, Any] = {"bm25": (BM25Index(), BM25Encoder())}
    for system, way in expanded.items():
        one = SparseSum({"bm25": BM25Encoder(), "expansion": way}, weights={"expansion": WEIGHT})
        indexes[system] = (BM25Index(weights_below=one.weights_below), one)
    indexes["expansion alone, own words too"] = (InvertedIndex(), way)
    every = np.broadcast_to(np.arange(len(texts)), (len(asked), len(texts)))
    scores: dict[str, Any] = {}
    for system, (index, way) in indexes.items():
        index.add(np.arange(len(texts)), way.encode_document(texts).embeddings)
        scores[system] = index.score(way.encode_query(asked).embeddings, every)
    dense = DenseEncoder(device="cpu").encode_query(asked).embeddings @ kept.dense.T
    scores |= {"dense": dense, "bm25 + dense": _fused(scores["bm25"], dense)}
    scores["one index + dense"] = _fused(scores["one index"], dense)
    runs = {system: _run(system, found, documents, queries) for system, found in scores.items()}
    report = evaluate(runs, queries, qrels, measures=["nDCG@10", "R@100"], baseline="bm25")
    print(f"\n{name}: {len(documents)} documents, {len(queries)} queries")
    print(report)
    terms = int(np.diff(BM25Encoder().encode_document(texts).embeddings.indptr).sum())
    against = {system: {c.measure: asdict(c) for c in report.comparisons if c.system == system} for system in expanded}
    return {
        "documents": len(documents),
        "queries": len(queries),
        "in the study": name in IN_STUDY,
        "stems": encoder.dim,
        "tokens": int(kept.offsets[-1]),
        "postings a document": {"bm25": terms / len(texts), "expansion": len(rows.indices) / len(texts)},
        "CPU seconds": times,
        "measures": report.to_dict(),
        "minus bm25": against,
    }


def _fused(words: Any, dense: Any) -> Any:
    """Min-max in equal parts, over the 100 best of each."""
    out = np.full(words.shape, -np.inf, dtype=np.float32)
    for row, (a, b) in enumerate(zip(words, dense, strict=True)):
        some = np.union1d(np.argsort(-a, kind="stable")[:K], np.argsort(-b, kind="stable")[:K])
        out[row, some] = combine(Convex(), {"words": a[some], "dense": b[some]}, lowest={})
    return out


def _run(name: str, scores: Any, documents: Sequence[Document], queries: Sequence[Query]) -> Run:
    results = {}
    for query, found in zip(queries, scores, strict=True):
        best = np.argsort(-found, kind="stable")[:K]
        # A document without any of the query's words is no match.
        results[query.id] = [(documents[i].id, float(found[i])) for i in best if found[i] > -np.inf and found[i] != 0]
    return Run(name, results)


def _over_all(out: dict[str, Any]) -> dict[str, Any]:
    """Gains side by side, with p of nDCG@10 corrected for the number of collections."""
    told: dict[str, Any] = {}
    for system in ("one index", "one index, own words too"):
        gains = {name: result["minus bm25"][system] for name, result in out.items()}
        corrected = holm([gain["nDCG@10"]["p"] for gain in gains.values()]).tolist()
        told[system] = [
            {
                "collection": name,
                "bm25": out[name]["measures"]["bm25"]["nDCG@10"],
                "nDCG@10": round(gain["nDCG@10"]["difference"], 4),
                "p": gain["nDCG@10"]["p"],
                "p (Holm)": p,
                "R@100": round(gain["R@100"]["difference"], 4),
                "p of R@100": gain["R@100"]["p"],
            }
            for (name, gain), p in zip(gains.items(), corrected, strict=True)
        ]
        print(f"\n{system} minus bm25")
        table(told[system])
    return told


@contextmanager
def _timed(times: dict[str, float], name: str) -> Iterator[None]:
    start = time.process_time()
    yield
    times[name] = time.process_time() - start
