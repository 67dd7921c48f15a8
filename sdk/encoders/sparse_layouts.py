"""Learned-sparse models as sentence-transformers' `SparseEncoder` keeps them in a folder: read, and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reperio.artifacts import new_folder
from reperio.errors import ConfigurationError
from reperio.models.architectures import read_json as settings_of
from reperio.models.modules import COMMON, MODULES, Module, read_modules, read_prompts, read_routes

__all__ = [
    "TYPES",
    "SparseLayout",
    "read_json",
    "read_layout",
    "write_common",
    "write_json",
    "write_model",
    "write_pooling",
]

_BASE = "sentence_transformers.base.modules"
_SPARSE = "sentence_transformers.sparse_encoder.modules"
_POOLING = "SpladePooling"

TYPES = {
    "Transformer": f"{_BASE}.transformer.Transformer",
    "Router": f"{_BASE}.router.Router",
    "SpladePooling": f"{_SPARSE}.splade_pooling.SpladePooling",
    "SparseStaticEmbedding": f"{_SPARSE}.sparse_static_embedding.SparseStaticEmbedding",
}
"""Where sentence-transformers has each module."""


@dataclass(frozen=True, slots=True)
class SparseLayout:
    """What a folder says of a learned-sparse model.

    Attributes
    ----------
    model
        Folder of the transformers model.
    pooling, activation
        As in `reperio.models.saturation.Saturation`.
    top_n
        How many words are kept of each text; all where None.
    max_tokens
        Most tokens that are read; what the model reads where None.
    prompts
        By role, where there are some.
    queries
        Folder of the table that weighs queries; None where queries are encoded as documents are.
    """

    model: Path
    pooling: str = "max"
    activation: str = "relu"
    top_n: int | None = None
    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    queries: Path | None = None


def read_layout(folder: Path) -> SparseLayout | None:
    """What is in a folder; None for one that holds a transformers model alone.

    Raises
    ------
    ConfigurationError
        If its modules make no learned-sparse encoder that is known here.
    """
    if not (folder / MODULES).is_file():
        return None
    modules = read_modules(folder)
    queries: Path | None = None
    if [module.name for module in modules] == ["Router"]:
        modules, queries = _routes(modules[0].path)
    if [module.name for module in modules] not in (["Transformer", _POOLING], ["MLMTransformer", _POOLING]):
        found = ", ".join(module.name for module in modules)
        problem = f"{folder} is made of {found or 'nothing'}: it gives no weights of words."
        raise ConfigurationError(problem, "Use a model of Transformer and SpladePooling, or DenseEncoder.")
    model, pooling = (module.path for module in modules)
    file, reader = pooling / "config.json", model / "sentence_bert_config.json"
    if not file.is_file():
        raise ConfigurationError(f"{file} is missing.", "Fetch the model again.")
    told = settings_of(file)
    return SparseLayout(
        model,
        told.get("pooling_strategy", "max"),
        told.get("activation_function", "relu"),
        _number(folder / COMMON, "max_active_dims"),
        _number(reader, "max_seq_length"),
        {role: text for role, text in read_prompts(folder).items() if text},
        queries,
    )


def _number(file: Path, name: str) -> int | None:
    """A number that a file gives; None where it does not."""
    found = settings_of(file).get(name)
    if found is not None and (not isinstance(found, int) or found < 1):
        raise ConfigurationError(f"{file} has {name}={found!r}.", "It is a number, 1 or more.")
    return found


def _routes(folder: Path) -> tuple[list[Module], Path]:
    """Modules of the documents' route, and the folder of the queries' table."""
    ways = read_routes(folder)
    query = ways.get("query", [])
    if set(ways) != {"query", "document"} or [module.name for module in query] != ["SparseStaticEmbedding"]:
        problem = f"{folder} routes {sorted(ways)}, queries through {[module.name for module in query]}."
        raise ConfigurationError(problem, "Use one whose queries go through SparseStaticEmbedding, documents not.")
    return ways["document"], query[0].path


def read_json(file: Path) -> Any:
    """What a JSON file of a model says.

    Raises
    ------
    ConfigurationError
        If it is not there or no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}", "Fetch the model again.") from error


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file of a model."""
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_model(folder: Path, model: Any, tokenizer: Any, max_tokens: int | None) -> None:
    """A masked language model and its tokenizer, and that its scores of words are what is read."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reads = {"text": {"method": "forward", "method_output_name": "logits"}}
    told = {"transformer_task": "fill-mask", "modality_config": reads, "module_output_name": "token_embeddings"}
    limit = {} if max_tokens is None else {"max_seq_length": max_tokens}
    write_json(folder / "sentence_bert_config.json", told | limit)


def write_pooling(folder: Path, *, pooling: str, activation: str, dim: int) -> None:
    """The folder of a `SpladePooling`, as a part of another."""
    told = {"pooling_strategy": pooling, "activation_function": activation, "embedding_dimension": dim}
    with new_folder(folder, "splade-pooling", {}) as inside:
        write_json(inside / "config.json", told)


def write_common(folder: Path, modules: Mapping[str, str], *, prompts: Mapping[str, str], top_n: int | None) -> None:
    """The files at the top: the modules, path → type, and what is common to them."""
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": TYPES[kind]} for i, (path, kind) in enumerate(modules.items())
    ]
    write_json(folder / MODULES, entries)
    told: dict[str, Any] = {"model_type": "SparseEncoder", "default_prompt_name": None, "similarity_fn_name": "dot"}
    limit = {} if top_n is None else {"max_active_dims": top_n}
    write_json(folder / COMMON, {**told, "prompts": dict(prompts), **limit})
