"""Change a collection at random for as long as is asked, and compare all that it says with a dictionary.

What a search must find is worked out from the dictionary by NumPy, apart from any index. Everything is decided by a
seed: a failure names it and the step, and happens again.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reperio import memory
from reperio.collection import Collection
from reperio.encoders.bm25 import BM25Encoder
from reperio.encoders.hashing import HashEncoder
from reperio.errors import MissingDependency, NotFound
from reperio.filters import Field, Filter
from reperio.indexes.bm25 import BM25Index
from reperio.indexes.flat import FlatIndex
from reperio.protocols import Index
from reperio.registry import build
from reperio.signals import Signal
from reperio.testing.kinds import KINDS
from reperio.types import Document, Ranking

__all__ = ["Soak", "SoakReport"]

_IDS, _WORDS, _DIM, _K1, _B = 250, 60, 32, 1.2, 0.75
_RECALL = 0.5
"""Share of the best that an approximate kind must find on average; each has its own tests for more."""


@dataclass(slots=True)
class SoakReport:
    """What was done.

    Attributes
    ----------
    steps, checks
        Changes and questions, and answers compared.
    operations
        Steps by kind.
    kinds
        Index kinds that searches were compared on, and how often.
    recall
        Of approximate kinds: the share of the best that was found.
    memory
        Resident bytes after a tenth of the time, and at the end.
    """

    seed: int
    steps: int = 0
    checks: int = 0
    operations: Counter[str] = field(default_factory=Counter[str])
    kinds: Counter[str] = field(default_factory=Counter[str])
    recall: dict[str, float] = field(default_factory=dict[str, float])
    memory: tuple[int, int] = (0, 0)


class Soak:
    """One collection and the dictionary beside it.

    Parameters
    ----------
    folder
        Where the collection is made.
    seed
        Decides everything.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._random = folder / "soaked", random.Random(seed)
        self._lexical, self._dense = BM25Encoder(), HashEncoder(_DIM)
        self._seen: dict[str, tuple[dict[int, float], np.ndarray[Any, Any]]] = {}
        self._found: dict[str, list[float]] = {}
        self.report = SoakReport(seed)
        signals: dict[str, Signal[Any]] = {
            "bm25": Signal(self._lexical, BM25Index(), stored=False),
            "dense": Signal(self._dense, FlatIndex()),
        }
        self._collection = Collection.open(self._folder, signals=signals)
        first = Document(
            "d0", "word0", {"n": 0, "share": 0.0, "tag": "a", "on": True}
        )  # a filter's fields must be known
        self._collection.upsert([first], progress=False)
        self._documents = {"d0": first}
        self._beside = Collection.open(self._folder, mode="r")
        self._steps: dict[Callable[[], None], int] = {
            self._upsert: 20,
            self._delete: 6,
            self._search: 40,
            self._read_beside: 8,
            self._explain: 4,
            self._get: 4,
            self._checkpoint: 4,
            self._reopen: 2,
            self._reindex: 3,
            self._rollback: 1,
            self._compact: 1,
            self._verify: 1,
        }

    def run(self, seconds: float) -> SoakReport:
        """Go on for so long; an AssertionError says where an answer differs."""
        begun, report = time.monotonic(), self.report
        warm = 0
        try:
            while (past := time.monotonic() - begun) < seconds:
                self.step()
                if not warm and past > seconds / 10:
                    warm = _resident()
            self._verify()
        finally:
            self.close()
        report.memory = (warm, _resident())
        report.recall = {kind: round(float(np.mean(shares)), 3) for kind, shares in sorted(self._found.items())}
        low = {kind: share for kind, share in report.recall.items() if share < _RECALL}
        assert not low, f"seed {report.seed}: too little is found by {low}"
        return report

    def step(self) -> None:
        """One change or question."""
        (work,) = self._random.choices(list(self._steps), list(self._steps.values()))
        self.report.steps += 1
        self.report.operations[work.__name__.strip("_")] += 1
        try:
            work()
        except Exception as error:
            error.add_note(f"seed {self.report.seed}, step {self.report.steps}, {work.__name__}")
            raise

    def close(self) -> None:
        """Let go of the collection."""
        self._beside.close()
        self._collection.close()

    # Changes

    def _document(self, name: str) -> Document:
        """A new document, or the one that is there: as it is, or with other metadata."""
        there, kind = self._documents.get(name), self._random.randrange(4)
        if there is not None and kind == 0:
            return there
        metadata: dict[str, Any] = {
            "n": self._random.randrange(20),
            "share": self._random.randrange(8) / 8,
            "tag": self._random.choice(["a", "b", "é"]),
            "on": self._random.random() < 0.5,
        }
        for absent in self._random.sample(sorted(metadata), self._random.randrange(2)):
            del metadata[absent]
        if there is not None and kind == 1:
            return Document(name, there.text, metadata)
        return Document(name, self._text(self._random.randint(1, 12)), metadata)

    def _text(self, words: int) -> str:
        return " ".join(f"word{min(int(self._random.expovariate(0.08)), _WORDS)}" for _ in range(words))

    def _names(self, most: int) -> list[str]:
        return [f"d{n}" for n in self._random.sample(range(_IDS), self._random.randint(1, most))]

    def _upsert(self) -> None:
        documents = [self._document(name) for name in self._names(self._random.choice((1, 5, 60)))]
        report = self._collection.upsert(documents, batch_size=self._random.choice((7, 512)), progress=False)
        fresh = sum(document.id not in self._documents for document in documents)
        same = sum(self._documents.get(document.id) == document for document in documents)
        self._equal((report.added, report.unchanged), (fresh, same), "upsert's report")
        self._documents.update((document.id, document) for document in documents)

    def _delete(self) -> None:
        names = self._names(12)
        gone = self._collection.delete(names)
        self._equal(gone, sum(self._documents.pop(name, None) is not None for name in names), "how many were deleted")

    def _checkpoint(self) -> None:
        self._collection.checkpoint()

    def _reopen(self) -> None:
        self._collection.close()
        self._collection = Collection.open(self._folder)
        if self._random.random() < 0.3:
            self._beside.close()
            self._beside = Collection.open(self._folder, mode="r")

    def _reindex(self) -> None:
        signal = self._random.choice(("bm25", "dense", "dense"))
        try:
            index: Index[Any] = build(self._random.choice(KINDS[signal]))
        except MissingDependency:
            return
        self._collection.reindex(signal, index)

    def _rollback(self) -> None:
        try:
            self._collection.rollback(self._random.choice(("bm25", "dense")))
        except NotFound:
            return

    def _compact(self) -> None:
        self._collection.compact()

    # Questions

    def _verify(self) -> None:
        report = self._collection.verify()
        self._equal((report.documents, report.problems), (len(self._documents), ()), "verify")

    def _get(self) -> None:
        (name,) = self._names(1)
        self._equal(self._collection.get(name), self._documents.get(name), f"document {name}")
        self._equal(self._collection.count(), len(self._documents), "the number of documents")
        held = {document.id: document for document in self._collection.documents()}
        self._equal(held, self._documents, "the documents")

    def _search(self) -> None:
        self._ask(self._collection)

    def _read_beside(self) -> None:
        self._ask(self._beside)

    def _explain(self) -> None:
        if self._documents:
            name, query = self._random.choice(sorted(self._documents)), self._text(3)
            told = self._collection.explain(query, name, signals=["bm25"])
            wanted = self._lexical_scores(query).get(name, 0.0)
            score = told.signals["bm25"].score
            self._close(score, wanted, 1e-4, f"explain's score of {name} for {query!r}")
            self._close(math.fsum(t.contribution for t in told.signals["bm25"].terms), wanted, 1e-4, "explain's terms")

    def _ask(self, collection: Collection) -> None:
        signal, k = self._random.choice(("bm25", "dense")), self._random.choice((1, 3, 10, 400))
        queries = [self._text(self._random.randint(1, 5)) for _ in range(self._random.choice((1, 1, 4)))]
        where, passes = self._filter()
        found = collection.search(queries, k, where=where, signals=[signal])
        if len(queries) == 1 and self._random.random() < 0.5:
            found = [collection.search(queries[0], k, where=where, signals=[signal])]
        index = collection.stats().signals[signal]["index"]
        for query, ranking in zip(queries, found, strict=True):
            self._compare(ranking, query, k, signal, index, passes)

    def _compare(
        self,
        ranking: Ranking,
        query: str,
        k: int,
        signal: str,
        index: Mapping[str, Any],
        passes: Callable[[Document], bool],
    ) -> None:
        scores = self._lexical_scores(query) if signal == "bm25" else self._dense_scores(query)
        wanted = {name: score for name, score in scores.items() if passes(self._documents[name])}
        what = f"{signal} {dict(index)} for {query!r}, k={k}"
        self._equal(len(set(ranking.ids)), len(ranking), f"ids there once: {what}")
        self._equal(len(ranking), min(k, len(wanted)), f"how many are found: {what}")
        self._equal(set(ranking.ids) - wanted.keys(), set[str](), f"found and not to be: {what}")
        best = sorted(wanted.values(), reverse=True)[: len(ranking)]
        exact = index["type"] in ("FlatIndex", "BM25Index") or index.get("factory") == "Flat"
        kind = str(index.get("factory") or index.get("dtype") or index["type"])
        self.report.kinds[f"{signal} {kind}"] += 1
        for hit in ranking:
            self._equal(hit.document, self._documents[hit.document.id], f"a hit's document: {what}")
        if exact:
            for hit, score in zip(ranking, best, strict=True):
                self._close(hit.signals[signal], score, 1e-4 if signal == "bm25" else 1e-5, what)
                self._close(hit.signals[signal], wanted[hit.document.id], 1e-4 if signal == "bm25" else 1e-5, what)
        elif best:
            enough = sum(wanted[hit.document.id] >= best[-1] - 1e-5 for hit in ranking)
            self._found.setdefault(kind, []).append(enough / len(best))

    # The dictionary

    def _vectors(self, text: str) -> tuple[dict[int, float], np.ndarray[Any, Any]]:
        """What a text is, term by term and as a vector."""
        if text not in self._seen:
            if len(self._seen) > 3000:
                self._seen.clear()
            counts, vector = self._lexical.encode_document([text]).embeddings, self._dense.encode_document([text])
            terms = dict(zip(counts.indices.tolist(), counts.weights.tolist(), strict=True))
            self._seen[text] = terms, np.asarray(vector.embeddings[0], dtype=np.float64)
        return self._seen[text]

    def _lexical_scores(self, query: str) -> dict[str, float]:
        """BM25 as Lucene has it, of the documents that hold a term of the query."""
        rows = {name: self._vectors(document.text)[0] for name, document in self._documents.items()}
        lengths = {name: sum(row.values()) for name, row in rows.items()}
        average = sum(lengths.values()) / max(1, len(rows))
        scores: dict[str, float] = {}
        for term, weight in self._vectors(query)[0].items():
            held = [name for name, row in rows.items() if term in row]
            idf = math.log(1 + (len(rows) - len(held) + 0.5) / (len(held) + 0.5))
            for name in held:
                tf = rows[name][term]
                part = tf / (tf + _K1 * (1 - _B + _B * lengths[name] / average))
                scores[name] = scores.get(name, 0.0) + weight * idf * part
        return scores

    def _dense_scores(self, query: str) -> dict[str, float]:
        """Cosines of all documents."""
        asked = np.asarray(self._dense.encode_query([query]).embeddings[0], dtype=np.float64)
        return {name: _cosine(asked, self._vectors(d.text)[1]) for name, d in self._documents.items()}

    def _filter(self) -> tuple[Filter | None, Callable[[Document], bool]]:
        """A filter, or none, and what it means."""
        kind, n, share = self._random.randrange(7), self._random.randrange(20), self._random.randrange(8) / 8
        if kind == 0:
            return Field("n") >= n, lambda d: _number(d, "n") >= n
        if kind == 1:
            return Field("tag") == "é", lambda d: d.metadata.get("tag") == "é"
        if kind == 2:
            return (Field("n") < n) & (
                Field("share") >= share
            ), lambda d: "n" in d.metadata and _number(d, "n") < n and _number(d, "share") >= share
        if kind == 3:
            return (Field("on") == True) | (Field("n") == n), lambda d: (  # noqa: E712 - a filter, not a test
                d.metadata.get("on") is True or d.metadata.get("n") == n
            )
        return None, lambda d: True

    def _equal(self, found: object, wanted: object, what: str) -> None:
        self.report.checks += 1
        assert found == wanted, f"{what}: {found!r:.300}, and not {wanted!r:.300}"

    def _close(self, found: float, wanted: float, tolerance: float, what: str) -> None:
        self.report.checks += 1
        assert abs(found - wanted) <= tolerance * max(1, abs(wanted)), f"{what}: {found}, and not {wanted}"


def _number(document: Document, name: str) -> float:
    value: Any = document.metadata.get(name, -math.inf)
    return float(value)


def _cosine(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    lengths = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / lengths if lengths else 0.0


def _resident() -> int:
    gc.collect()
    return memory.resident() or 0
