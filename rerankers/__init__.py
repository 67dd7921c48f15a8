"""Rankings in, better rankings out: a permutation, or one hit for each of the documents whose chunks they are."""

from __future__ import annotations

from reperio.rerankers.chunks import ChunkGrouper
from reperio.rerankers.embedding import EmbeddingReranker
from reperio.rerankers.tools import ToolRefiner

__all__ = ["ChunkGrouper", "EmbeddingReranker", "ToolRefiner"]
