"""Lexical search at scale beside bm25s (numba), tantivy and rank_bm25: equal terms, equal parameters, equal results.

1M generated documents whose words follow Zipf's law, in random order; passages of 60 words of the source files of
installed packages, in the order of the files and shuffled; and medquad, where it is at hand. A time is CPU time of
one query in a batch, from term numbers to the k best rows, on one core; "one by one" calls for each query.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import tantivy
from numpy.typing import NDArray
from rank_bm25 import BM25Okapi

from benchmarks.bm25 import DATA
from benchmarks.measuring import in_turns, one_core, paired, spread, table
from reperio.embeddings import Sparse
from reperio.indexes import BM25Index

K1, B = 1.5, 0.75
GENERATED, VOCABULARY = 1_000_000, 200_000
PASSAGES, WORDS = 600_000, 60
CHUNK = 50_000
"""Documents added at a time, as a collection does: nobody holds a million as arrays."""

RANKED = 100_000
"""Documents for rank_bm25, which keeps a dictionary for each; its time is scaled up from these."""

Ints = NDArray[np.int64]


class Corpus:
    """Documents as term numbers, one after the other."""

    def __init__(self, lengths: Ints, terms: Ints, vocabulary: int) -> None:
        self.lengths, self.terms, self.vocabulary = lengths, terms, vocabulary
        self.starts = np.concatenate([[0], np.cumsum(lengths)])

    def __len__(self) -> int:
        return len(self.lengths)

    def counts(self, start: int, stop: int) -> Sparse:
        """Term counts of some documents."""
        rows = np.repeat(np.arange(stop - start), self.lengths[start:stop])
        keys = np.sort(rows * self.vocabulary + self.terms[self.starts[start] : self.starts[stop]])
        first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        counts = np.diff(np.concatenate([first, [len(keys)]])).astype(np.float32)
        rows, columns = np.divmod(keys[first], self.vocabulary)
        return Sparse(np.searchsorted(rows, np.arange(stop - start + 1)), columns, counts, self.vocabulary)

    def lists(self, count: int | None = None) -> list[list[int]]:
        """Documents as lists."""
        every = self.terms.tolist()
        return [every[a:b] for a, b in zip(self.starts[:-1][:count], self.starts[1:][:count], strict=True)]

    def shuffled(self) -> Corpus:
        """The same documents in random order."""
        order = np.random.default_rng(0).permutation(len(self))
        parts = [self.terms[self.starts[i] : self.starts[i + 1]] for i in order]
        return Corpus(self.lengths[order], np.concatenate(parts), self.vocabulary)

    def queries(self, count: int, fewest: int, most: int, *, skipped: int) -> list[Ints]:
        """Distinct words of random documents, without the ``skipped`` most frequent."""
        rng = np.random.default_rng(1)
        rank = np.empty(self.vocabulary, dtype=np.int64)
        rank[np.argsort(-np.bincount(self.terms, minlength=self.vocabulary))] = np.arange(self.vocabulary)
        out: list[Ints] = []
        while len(out) < count:
            i, size = rng.integers(len(self)), rng.integers(fewest, most + 1)
            words = np.unique(self.terms[self.starts[i] : self.starts[i + 1]])
            words = words[rank[words] >= skipped]
            if len(words) >= size:
                out.append(np.sort(rng.choice(words, size, replace=False)))
        return out


def generated(count: int) -> Corpus:
    """Documents of some 45 words that follow Zipf's law."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, VOCABULARY + 1) ** 1.07
    lengths = np.clip(rng.lognormal(np.log(50) - 0.18, 0.6, count).astype(np.int64), 3, 600)
    drawn = np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(int(lengths.sum())))
    return Corpus(lengths, np.minimum(drawn, VOCABULARY - 1).astype(np.int64), VOCABULARY)


def passages(count: int) -> Corpus:
    """Passages of 60 words of source files, file after file."""
    words: dict[str, int] = {}
    numbers: list[Ints] = []
    held = 0
    for file in sorted(Path(np.__file__).parents[1].rglob("*.py")):
        found = re.findall(r"[a-z]+|\d+", file.read_text(encoding="utf-8", errors="ignore").lower())
        numbers.append(np.array([words.setdefault(word, len(words)) for word in found], dtype=np.int64))
        held += len(found)
        if held >= count * WORDS:
            break
    terms = np.concatenate(numbers)
    lengths = np.full(-(-len(terms) // WORDS), WORDS)
    lengths[-1] -= int(lengths.sum()) - len(terms)
    return Corpus(lengths, terms, len(words))


def medquad() -> Corpus:
    """Answers to medical questions."""
    words: dict[str, int] = {}
    with (DATA / "medquad" / "corpus.jsonl").open(encoding="utf-8") as lines:
        texts = [re.findall(r"[a-z]+|\d+", json.loads(line)["text"].lower()) for line in lines]
    terms = np.array([words.setdefault(word, len(words)) for text in texts for word in text], dtype=np.int64)
    return Corpus(np.array([len(text) for text in texts]), terms, len(words))


CORPORA: dict[str, Callable[[], Corpus]] = {
    "generated": lambda: generated(GENERATED),
    "source files": lambda: passages(PASSAGES),
    "source files, shuffled": lambda: passages(PASSAGES).shuffled(),
    "medquad": medquad,
}


def run() -> dict[str, Any]:
    out: dict[str, Any] = {"build": {name: _builds(name) for name in ("generated", "source files")}}
    for name, make in CORPORA.items():
        if name == "medquad" and not (DATA / name).is_dir():
            print("medquad is not at hand (set REPERIO_DATA), left out")
            continue
        out[name] = _latencies(name, make())
    return out


# Searching


def _ours(corpus: Corpus) -> BM25Index:
    index = BM25Index(k1=K1, b=B)
    for start in range(0, len(corpus), CHUNK):
        stop = min(start + CHUNK, len(corpus))
        index.add(np.arange(start, stop), corpus.counts(start, stop))
    index.compact()
    return index


def _theirs(documents: list[list[int]], vocabulary: int) -> Any:
    model = bm25s.BM25(k1=K1, b=B, backend="numba")
    model.index((documents, {str(i): i for i in range(vocabulary)}), show_progress=False)
    return model


def _tantivy(corpus: Corpus) -> tuple[Any, Any]:
    builder = tantivy.SchemaBuilder()
    schema = builder.add_text_field("text", tokenizer_name="whitespace", index_option="freq").build()
    index = tantivy.Index(schema)
    writer = index.writer(500_000_000, 1)
    for document in corpus.lists():
        writer.add_document(tantivy.Document(text=" ".join(map(str, document))))
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    return schema, index.searcher()


def _asked(queries: Sequence[Ints], vocabulary: int) -> Sparse:
    starts = np.concatenate([[0], np.cumsum([len(q) for q in queries])])
    terms = np.concatenate(list(queries))
    return Sparse(starts, terms, np.ones(len(terms), dtype=np.float32), vocabulary)


def _latencies(name: str, corpus: Corpus) -> dict[str, Any]:
    ours, (schema, searcher) = _ours(corpus), _tantivy(corpus)
    theirs = _theirs(corpus.lists(), corpus.vocabulary)
    few = corpus.lists(RANKED)
    ranked = BM25Okapi(few)
    kinds = {
        "3-8 words": corpus.queries(300, 3, 8, skipped=100),
        "3-8 words, frequent ones too": corpus.queries(200, 3, 8, skipped=0),
        "20-40 words": corpus.queries(100, 20, 40 if name == "generated" else 30, skipped=0),
    }
    out: dict[str, Any] = {"documents": len(corpus), "rank_bm25 documents": len(few)}
    rows: list[dict[str, Any]] = []
    for kind, queries in kinds.items():
        batch = _asked(queries, corpus.vocabulary)
        singles = [_asked([query], corpus.vocabulary) for query in queries]
        lists = [query.tolist() for query in queries]
        texts = [
            tantivy.Query.boolean_query(
                [(tantivy.Occur.Should, tantivy.Query.term_query(schema, "text", str(t))) for t in query]
            )
            for query in lists
        ]
        for k in (10, 100):
            ways: dict[str, Callable[[], object]] = {
                "reperio": lambda batch=batch, k=k: ours.search(batch, k),
                "reperio, one by one": lambda singles=singles, k=k: [ours.search(s, k) for s in singles],
                "bm25s": lambda lists=lists, k=k: theirs.retrieve(lists, k=k, show_progress=False),
                "bm25s, one by one": lambda lists=lists, k=k: [
                    theirs.retrieve([q], k=k, show_progress=False) for q in lists
                ],
                "tantivy, one by one": lambda texts=texts, k=k: [searcher.search(q, k, count=False) for q in texts],
            }
            with one_core():
                times = in_turns(ways, repeats=7, clock=time.process_time)
            scale = len(corpus) / len(few)
            times["rank_bm25"] = _ranked(ranked, lists[:3], k, scale * len(queries) / 3)
            case = f"{kind}, k = {k}"
            each = {way: [s * 1e3 / len(queries) for s in seconds] for way, seconds in times.items()}
            out[case] = {
                "milliseconds": {way: spread(values) for way, values in each.items()},
                "times reperio": {way: paired(values, each["reperio"][: len(values)]) for way, values in each.items()},
                "equal to bm25s": _equal(ours, theirs, batch, lists, k),
            }
            ratio = out[case]["times reperio"]
            rows.append(
                {
                    "queries": case,
                    "reperio ms": out[case]["milliseconds"]["reperio"]["median"],
                    "bm25s": ratio["bm25s"]["median"],
                    "min..max": "{min:.2f}..{max:.2f}".format(**ratio["bm25s"]),
                    "tantivy": ratio["tantivy, one by one"]["median"],
                    "rank_bm25": ratio["rank_bm25"]["median"],
                    "reperio one by one ms": out[case]["milliseconds"]["reperio, one by one"]["median"],
                    "bm25s one by one ms": out[case]["milliseconds"]["bm25s, one by one"]["median"],
                    "equal": out[case]["equal to bm25s"],
                }
            )
    print(f"\n{name}: {len(corpus)} documents; CPU milliseconds a query, and times as many for the others")
    table(rows)
    return out


def _ranked(model: Any, queries: list[list[int]], k: int, scale: float) -> list[float]:
    seconds: list[float] = []
    for _ in range(3):
        start = time.process_time()
        for query in queries:
            np.argpartition(-model.get_scores(query), k)[:k]
        seconds.append((time.process_time() - start) * scale)
    return seconds


def _equal(ours: BM25Index, theirs: Any, batch: Sparse, lists: list[list[int]], k: int) -> float:
    """Share of the queries whose k scores are bm25s's to 1e-4, and so the rows but for ties."""
    found = ours.search(batch, k)
    scores = theirs.retrieve(lists, k=k, show_progress=False).scores
    mine = np.where(found.ids < 0, 0, found.scores)
    return float(np.isclose(mine, scores, atol=1e-4).all(axis=1).mean())


# Building


def _builds(name: str) -> dict[str, Any]:
    """Each in a process of its own, which also tells its memory."""
    out: dict[str, Any] = {}
    for way in ("reperio", "bm25s"):
        runs = [_child(name, way) for _ in range(3)]
        out[way] = {key: spread([r[key] for r in runs]) for key in runs[0]}
    out["seconds, times bm25s"] = out["reperio"]["seconds"]["median"] / out["bm25s"]["seconds"]["median"]
    out["peak, times bm25s"] = out["reperio"]["peak MB"]["median"] / out["bm25s"]["peak MB"]["median"]
    print(f"\n{name}: from term numbers to an index that has answered")
    table([{"way": way, **{key: out[way][key]["median"] for key in out[way]}} for way in ("reperio", "bm25s")])
    return out


def _child(name: str, way: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.lexical", name, way]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _build(name: str, way: str) -> dict[str, float]:
    small = generated(3000)
    _work(small, small.lists(), way)  # compiled, imported
    corpus = CORPORA[name]()
    documents = corpus.lists() if way == "bm25s" else []
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _memory("VmRSS")
    start = time.process_time()
    _work(corpus, documents, way)
    seconds = time.process_time() - start
    return {"seconds": seconds, "peak MB": _memory("VmHWM") - before}


def _memory(name: str) -> float:
    """Megabytes of this process now (``VmRSS``) or at most (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e3


def _work(corpus: Corpus, documents: list[list[int]], way: str) -> object:
    if way == "reperio":
        return _ours(corpus).search(_asked([np.array([0, 1])], corpus.vocabulary), 10)
    return _theirs(documents, corpus.vocabulary).retrieve([[0, 1]], k=10, show_progress=False)


if __name__ == "__main__":
    if len(sys.argv) == 2:  # one corpus alone
        _latencies(sys.argv[1], CORPORA[sys.argv[1]]())
    else:
        print(json.dumps(_build(sys.argv[1], sys.argv[2])))
