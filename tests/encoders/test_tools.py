"""Tools found by what they were used for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reperio import Collection, Document
from reperio.encoders import HashEncoder, head_vectors, usage_vectors
from reperio.errors import ConfigurationError, EmptyText, InvalidInput
from reperio.indexes import FlatIndex
from reperio.signals import Signal

TOOLS = [Document("weather", "Meteorological service"), Document("money", "Finance"), Document("idle", "Nothing yet")]
USAGES = {"weather": ["will it rain today", "is it cold"], "money": ["price of gold", "is it cold"]}


def test_a_tools_vector_is_the_mean_of_its_usages_and_its_description() -> None:
    encoder = HashEncoder(128)
    for prior in (0, 2.5):
        found = usage_vectors(encoder, TOOLS, USAGES, prior=prior)
        for row, tool in zip(found, TOOLS, strict=True):
            said = encoder.encode_document([tool.text]).embeddings[0]
            used = [encoder.encode_query([query]).embeddings[0] for query in USAGES.get(tool.id, [])]
            wanted = np.sum(used, axis=0) + prior * said if used else said
            np.testing.assert_allclose(row, wanted / np.linalg.norm(wanted), atol=1e-6)
    assert found.dtype == np.float32


def test_the_order_of_tools_and_usages_changes_no_vector() -> None:
    plain = usage_vectors(HashEncoder(128), TOOLS, USAGES)
    turned = usage_vectors(HashEncoder(128), TOOLS[::-1], {k: v[::-1] for k, v in reversed(USAGES.items())})
    np.testing.assert_allclose(plain, turned[::-1], atol=1e-6)


def test_the_head_tells_apart_what_means_cannot_and_leaves_unused_tools_alone() -> None:
    # "please" is in most usages of one tool, and the word that decides in one of each.
    rng = np.random.default_rng(0)
    fill = [f"please{i}" for i in range(4)]
    usages = {
        "weather": [f"{' '.join(rng.permutation(fill))} rain {i}" for i in range(30)],
        "money": [f"gold {' '.join(rng.permutation(fill)[:1])} {i}" for i in range(30)],
    }
    encoder = HashEncoder(512)
    asked = encoder.encode_query([f"{' '.join(fill)} gold", f"rain {fill[0]}"]).embeddings
    means, head = (make(encoder, TOOLS, usages, prior=0) for make in (usage_vectors, head_vectors))

    def margins(vectors: Any) -> Any:
        scores = asked @ vectors.T
        return np.array([scores[0, 1] - scores[0, 0], scores[1, 0] - scores[1, 1]])

    assert margins(means).min() < 0
    assert margins(head).min() > margins(means).min()
    np.testing.assert_array_equal(head[2], means[2])
    np.testing.assert_allclose(np.linalg.norm(head, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(head, head_vectors(encoder, TOOLS, usages, prior=0))


def test_a_collection_finds_a_tool_by_what_it_was_used_for(tmp_path: Path) -> None:
    encoder = HashEncoder(256)
    signals = {"usage": Signal(encoder, FlatIndex())}
    with Collection.open(tmp_path / "tools", signals=signals) as collection:
        collection.upsert(TOOLS, embeddings={"usage": usage_vectors(encoder, TOOLS, USAGES)})
        assert collection.search("will it rain tomorrow").ids[0] == "weather"
        more = {**USAGES, "idle": ["sing me a song"]}
        report = collection.upsert(TOOLS, embeddings={"usage": usage_vectors(encoder, TOOLS, more)})
        assert (report.updated, report.unchanged) == (1, 2)
        assert collection.search("a song").ids[0] == "idle"


@pytest.mark.parametrize(
    ("usages", "how", "error", "named"),
    [
        ({"other": ["a"]}, {}, InvalidInput, "'other'"),
        ({"money": "price"}, {}, InvalidInput, "bare string 'price'"),
        ({"money": ["price", " "]}, {}, EmptyText, r"texts\[1\]"),
        (USAGES, {"prior": -1}, ConfigurationError, "prior is -1"),
        (USAGES, {"prior": float("nan")}, ConfigurationError, "prior is nan"),
        (USAGES, {"epochs": 0}, ConfigurationError, "epochs is 0"),
    ],
)
def test_bad_input_is_named(usages: Any, how: Any, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        head_vectors(HashEncoder(), TOOLS, usages, **how)


def test_without_usages_all_vectors_are_of_descriptions() -> None:
    wanted = HashEncoder().encode_document([tool.text for tool in TOOLS]).embeddings
    for make in (usage_vectors, head_vectors):
        np.testing.assert_allclose(make(HashEncoder(), TOOLS, {}), wanted, atol=1e-6)
