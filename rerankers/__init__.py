"""Rankings in, better rankings out: always a permutation."""

from __future__ import annotations

from reperio.rerankers.embedding import EmbeddingReranker

__all__ = ["EmbeddingReranker"]
