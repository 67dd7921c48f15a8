"""Late interaction over MiniLM's states, which were not trained for it: tokens, whole words, a gate, one dimension.

nDCG@10 beside BM25 and MiniLM's own vectors, all of one pass over the same texts in bfloat16, cut at 256 tokens. The
gate and the weights of words are learnt in closed form on Cranfield and Med, from texts and queries without their
judgements; scifact is not seen before it is measured.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import table
from reperio import Document, Hit, Query, Ranking, Retriever
from reperio.embeddings import MultiVector, Sparse
from reperio.encoders import BM25Encoder, ColbertLayout, MultiVectorEncoder, WholeWords, WordGate, WordWeights
from reperio.encoders.multivector import Bags
from reperio.encoders.wholewords import whole_words
from reperio.encoders.wordgate import linear_fit, winners
from reperio.evaluation import Beir, Run, evaluate
from reperio.fusion import Convex, combine
from reperio.indexes import BM25Index, InvertedIndex, MultiVectorIndex
from reperio.models.checkpoint import MINILM
from reperio.models.language_model import LanguageModel
from reperio.models.projection import TokenProjection

DATA = Path(os.environ.get("REPERIO_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
LEARNT_FROM, HELD_OUT = ("cranfield", "med"), ("scifact",)
TOKENS, AT_ONCE, K = 256, 256, 100
KEEP = (0.7, 0.5)


@dataclass(frozen=True, slots=True)
class Part:
    """Some documents: the vectors of their tokens, and of their words before and after they are made equally long."""

    tokens: MultiVector
    signs: MultiVector
    bags: Bags
    words: MultiVector
    dense: np.ndarray[Any, Any]


def run() -> dict[str, Any]:
    model = LanguageModel(MINILM, dtype="bfloat16")
    known: dict[str, list[Part]] = {}
    asked: dict[str, Part] = {}
    out: dict[str, Any] = {"encoding": {}}
    for name in LEARNT_FROM + HELD_OUT:
        if not (DATA / name).is_dir():
            print(f"{name}: not at hand (set REPERIO_DATA), left out")
            return out
        queries = [query.text for query in Beir(DATA / name).queries("test")]
        [asked[name]] = _parts(model, queries, at_once=len(queries))
    for name in LEARNT_FROM:
        known[name] = list(_parts(model, [document.text for document in Beir(DATA / name).documents()]))
    gates, weigh = _learnt(known, asked)
    for name in LEARNT_FROM + HELD_OUT:
        dataset = Beir(DATA / name)
        documents = list(dataset.documents())
        start = time.process_time()
        parts = known.pop(name, None) or _parts(model, [document.text for document in documents])
        out[name] = _measured(dataset, documents, parts, asked[name], gates, weigh)
        out["encoding"][name] = time.process_time() - start
    return out


def _parts(model: LanguageModel, texts: Sequence[str], *, at_once: int = AT_ONCE) -> Iterator[Part]:
    """Everything from one pass over the texts."""
    layout = ColbertLayout(lengths={"query": TOKENS, "document": TOKENS}, normalize=False)
    words = WholeWords(punctuation=True, normalize=False)
    encoder = MultiVectorEncoder(model, layout=layout)
    maker = model.rows()
    for start in range(0, len(texts), at_once):
        some = texts[start : start + at_once]
        bags = encoder.bags(some)
        lengths = np.diff(bags.embeddings.offsets)
        dense = np.add.reduceat(bags.embeddings.vectors, bags.embeddings.offsets[:-1], axis=0) / lengths[:, None]
        inner = np.ones(len(bags.embeddings.vectors), dtype=np.bool_)
        inner[[*bags.embeddings.offsets[:-1], *(bags.embeddings.offsets[1:] - 1)]] = False
        tokens = _kept(bags.embeddings, inner)
        told = [
            _named(text, spans, count)
            for text, spans, count in zip(some, maker.spans(some), np.diff(tokens.offsets), strict=True)
        ]
        plain = np.array([any(map(str.isalnum, word or "")) for row in told for word in row])
        reduced = words.reduce(tokens, told)
        merged = Bags(reduced.embeddings, reduced.words, bags.read)
        signs = _kept(tokens, plain)
        yield Part(_unit(tokens), _unit(signs), merged, _unit(reduced.embeddings), _rows(dense))


def _named(text: str, spans: Any, count: int) -> list[str | None]:
    return whole_words(text, [(int(a), int(b)) for a, b in spans[1 : 1 + count]])


def _learnt(
    known: Mapping[str, Sequence[Part]], asked: Mapping[str, Part]
) -> tuple[dict[float, WordGate], TokenProjection]:
    """Gates from the words that win, and weights of words from their inverse document frequency."""
    vectors, wins, idfs = list[Any](), list[Any](), list[Any]()
    for name, parts in known.items():
        words = _joined([part.words for part in parts])
        won, looked = winners(asked[name].tokens, words, k=50)
        plain = np.concatenate([part.bags.embeddings.vectors for part in parts])
        rows = [row for part in parts for row in part.bags.words]
        held = Counter(word for row in rows for word in row)
        idf = np.array([np.log(len(rows) / held[word]) for row in rows for word in row])
        vectors.append(plain[looked])
        wins.append(np.minimum(won[looked], 3))
        idfs.append(idf[looked])
    stacked = np.concatenate(vectors)
    gates = {keep: WordGate.fit(stacked, np.concatenate(wins), keep=keep) for keep in KEEP}
    weight, bias = linear_fit(stacked, np.concatenate(idfs))
    return gates, TokenProjection.of(torch.from_numpy(weight)[None], torch.tensor([bias]))


def _measured(
    dataset: Beir,
    documents: Sequence[Document],
    parts: Any,
    asked: Part,
    gates: Mapping[float, WordGate],
    weigh: TokenProjection,
) -> dict[str, Any]:
    queries, qrels = dataset.queries("test"), dataset.qrels("test")
    found: dict[str, np.ndarray[Any, Any]] = {}
    vectors: Counter[str] = Counter()
    one = WordWeights(MultiVectorEncoder(MINILM, words=WholeWords(queries=True, normalize=False)), weigh)
    weighed = one.weigh_bags(asked.bags, "query")
    start = 0
    for part in parts:
        n = len(part.tokens)
        rows = slice(start, start + n)

        def put(way: str, scores: Any, rows: slice = rows) -> None:
            whole = found.setdefault(way, np.full((len(queries), len(documents)), -np.inf, dtype=np.float32))
            whole[:, rows] = scores

        forms: dict[str, MultiVector] = {"tokens": part.tokens, "no punctuation": part.signs, "words": part.words}
        for keep, gate in gates.items():
            forms[f"words, gate at {keep}"] = _unit(gate.apply(part.bags.embeddings)[0])
        lists = WholeWords(punctuation=False, stopwords=True).reduce(part.bags.embeddings, part.bags.words)
        forms["words, list of stop words"] = lists.embeddings
        for way, form in forms.items():
            vectors[way] += len(form.vectors)
            put(way, _maxsim(asked.tokens, form))
        put("dense", asked.dense @ part.dense.T)
        put("one dimension", _sparse(weighed, one.weigh_bags(part.bags, "document")))
        vectors["one dimension"] += len(part.bags.embeddings.vectors)
        start += n
    found["dense + words"] = _fused(found, {"dense": 0.5, "words": 0.5})
    return _report(dataset.name, documents, queries, qrels, found, vectors)


def _maxsim(asked: MultiVector, documents: MultiVector) -> Any:
    index = MultiVectorIndex()
    rows = np.arange(len(documents))
    index.add(rows, documents)
    return index.score(asked, np.tile(rows, (len(asked), 1)))


def _sparse(asked: Sparse, documents: Sparse) -> Any:
    index = InvertedIndex()
    rows = np.arange(len(documents))
    index.add(rows, documents)
    return index.score(asked, np.tile(rows, (len(asked), 1)))


def _fused(found: Mapping[str, Any], weights: Mapping[str, float]) -> Any:
    fusion = Convex("min-max", weights=weights)
    columns = [{way: found[way][i] for way in weights} for i in range(len(found["words"]))]
    return np.array([combine(fusion, column, lowest={}) for column in columns])


def _report(
    name: str,
    documents: Sequence[Document],
    queries: Sequence[Query],
    qrels: Any,
    found: Mapping[str, Any],
    vectors: Mapping[str, int],
) -> dict[str, Any]:
    bm25 = Retriever(BM25Encoder(), BM25Index(), documents=documents, name="bm25", k=K)
    runs: dict[str, Any] = {"bm25": bm25}
    for way, scores in found.items():
        rankings = [_ranking(query, documents, row) for query, row in zip(queries, scores, strict=True)]
        runs[way] = Run.from_rankings(way, rankings)
    report = evaluate(runs, queries, qrels, measures=["nDCG@10"], baseline="tokens")
    told = report.to_dict()
    out = {
        way: {
            **told[way],
            "vectors a document": vectors[way] / len(documents) if way in vectors else float(way == "dense"),
            "times fewer": vectors["tokens"] / vectors[way] if way in vectors else 0.0,
        }
        for way in runs
    }
    print(f"\n{name}: {len(documents)} documents, {len(queries)} queries")
    table([{"way": way, **row} for way, row in out.items()])
    return {"documents": len(documents), "queries": len(queries), "ways": out, "details": report.details()}


def _ranking(query: Query, documents: Sequence[Document], scores: Any) -> Ranking:
    best = np.argsort(-scores, kind="stable")[:K]
    return Ranking(query, tuple(Hit(documents[i], float(scores[i])) for i in best))


def _kept(embeddings: MultiVector, kept: Any) -> MultiVector:
    """The vectors marked, and all of a text of which none is."""
    lengths = np.diff(embeddings.offsets)
    counts = np.add.reduceat(kept.astype(np.int64), embeddings.offsets[:-1])
    kept = kept | np.repeat(counts == 0, lengths)
    counts = np.where(counts == 0, lengths, counts)
    return MultiVector(embeddings.vectors[kept], np.concatenate([[0], np.cumsum(counts)]))


def _unit(embeddings: MultiVector) -> MultiVector:
    return replace(embeddings, vectors=_rows(embeddings.vectors))


def _rows(vectors: Any) -> Any:
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _joined(parts: Sequence[MultiVector]) -> MultiVector:
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return MultiVector(np.concatenate([part.vectors for part in parts]), np.concatenate([[0], np.cumsum(lengths)]))
