"""Retrieval and embeddings: typed, durable, explained.

Every public name is loaded when it is first used, so ``import reperio`` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reperio.api import search as search
    from reperio.collection import Collection as Collection
    from reperio.collection import hybrid as hybrid
    from reperio.collection import lexical as lexical
    from reperio.evaluation import evaluate as evaluate
    from reperio.filters import Field as Field
    from reperio.fusion import fuse as fuse
    from reperio.migration import migrate as migrate
    from reperio.models.language_model import LanguageModel as LanguageModel
    from reperio.pipeline import Pipeline as Pipeline
    from reperio.retriever import Retriever as Retriever
    from reperio.signals import Signal as Signal
    from reperio.types import Answer as Answer
    from reperio.types import Context as Context
    from reperio.types import Document as Document
    from reperio.types import Hit as Hit
    from reperio.types import Query as Query
    from reperio.types import Ranking as Ranking
    from reperio.types import Span as Span

__version__ = "0.1.0"

_EXPORTS = {
    "Answer": "reperio.types",
    "Collection": "reperio.collection",
    "Context": "reperio.types",
    "Document": "reperio.types",
    "Field": "reperio.filters",
    "Hit": "reperio.types",
    "LanguageModel": "reperio.models.language_model",
    "Pipeline": "reperio.pipeline",
    "Query": "reperio.types",
    "Ranking": "reperio.types",
    "Retriever": "reperio.retriever",
    "Signal": "reperio.signals",
    "Span": "reperio.types",
    "evaluate": "reperio.evaluation",
    "fuse": "reperio.fusion",
    "hybrid": "reperio.collection",
    "lexical": "reperio.collection",
    "migrate": "reperio.migration",
    "search": "reperio.api",
}

__all__ = [
    "Answer",
    "Collection",
    "Context",
    "Document",
    "Field",
    "Hit",
    "LanguageModel",
    "Pipeline",
    "Query",
    "Ranking",
    "Retriever",
    "Signal",
    "Span",
    "evaluate",
    "fuse",
    "hybrid",
    "lexical",
    "migrate",
    "search",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_EXPORTS[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
