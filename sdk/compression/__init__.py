"""Rankings in, contexts out: never over budget, every character traceable."""

from __future__ import annotations

from reperio.compression.passages import PassageCompressor

__all__ = ["PassageCompressor"]
