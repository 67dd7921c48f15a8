"""Reranking gives a permutation, ordered by cosine."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reperio import Document, Hit, Query, Ranking
from reperio.encoders.hashing import HashEncoder
from reperio.registry import build
from reperio.rerankers import EmbeddingReranker

texts = st.lists(st.sampled_from(["merge lists", "merge sorted lists", "open a socket", "parse text", "x"]), max_size=5)


def ranking(query: str, texts: list[str]) -> Ranking:
    hits = (Hit(Document(str(i), t), 9.0 - i, {"bm25": 9.0 - i}) for i, t in enumerate(texts))
    return Ranking(Query("q", query), tuple(hits))


@given(st.lists(texts, max_size=3))
def test_the_result_is_an_ordered_permutation(batch: list[list[str]]) -> None:
    rankings = [ranking("merge sorted lists", texts) for texts in batch]
    encoder = HashEncoder(64)
    found = EmbeddingReranker(encoder)(rankings)
    assert [sorted(r.ids) for r in found] == [sorted(r.ids) for r in rankings]
    query = encoder.encode_query(["merge sorted lists"]).embeddings[0]
    for before, after in zip(rankings, found, strict=True):
        assert (np.diff(after.scores) <= 0).all()
        first = {hit.document.id: hit for hit in before}
        for hit in after:
            vector = encoder.encode_document([hit.document.text]).embeddings[0]
            np.testing.assert_allclose(hit.score, vector @ query, atol=1e-6)
            assert hit.signals == {"bm25": first[hit.document.id].score, "embedding": hit.score}


def test_equal_scores_keep_their_order_and_a_batch_is_its_parts() -> None:
    rerank = EmbeddingReranker(HashEncoder(64))
    same = ranking("merge", ["parse text", "parse text", "merge"])
    assert rerank([same])[0].ids == ["2", "0", "1"]
    other = ranking("socket", ["open a socket", "x"])
    assert rerank([same, other]) == [*rerank([same]), *rerank([other])]


def test_it_is_built_again_from_its_specification() -> None:
    rerank = EmbeddingReranker(HashEncoder(64), signal="again")
    again = build(rerank.spec)
    assert again.spec == rerank.spec
    assert again([ranking("merge", ["x", "merge"])]) == rerank([ranking("merge", ["x", "merge"])])
