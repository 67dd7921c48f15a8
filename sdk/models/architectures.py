"""Checkpoints whose architecture transformers has under another name, read without code of the model's own.

Attention that looks both ways is no architecture here: it is a `View`. So ``LlamaBiModel`` is a Llama, and NV-Embed's
body is a Mistral.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from reperio import extras
from reperio.errors import ConfigurationError, UnsupportedOperation

__all__ = ["StandIn", "described", "stand_in"]

_NOMIC = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "rotary_emb_base": "rope_theta",
    "vocab_size": "vocab_size",
    "type_vocab_size": "type_vocab_size",
    "pad_token_id": "pad_token_id",
}


@dataclass(frozen=True, slots=True)
class StandIn:
    """How transformers reads a checkpoint that it does not know.

    Attributes
    ----------
    config
        A configuration of its own.
    names
        What stands at the front of a weight's name, as a regular expression → what it is in its own model.
    """

    config: Any
    names: dict[str, str] = field(default_factory=dict[str, str])


def described(folder: Path) -> dict[str, Any]:
    """A checkpoint's ``config.json``; empty where there is none.

    Raises
    ------
    ConfigurationError
        If it is no JSON object.
    """
    return read_json(folder / "config.json")


def read_json(file: Path) -> dict[str, Any]:
    """An object from a file; empty where the file is not there."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{file} is no JSON: {error}", "Fetch the checkpoint again.") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{file} holds a {type(found).__name__}.", "It must hold an object.")
    return cast("dict[str, Any]", found)


def stand_in(folder: Path) -> StandIn | None:
    """What to read a checkpoint as; None where transformers knows it.

    Raises
    ------
    UnsupportedOperation
        If it needs code of its own.
    """
    config = described(folder)
    if config.get("model_type") == "nvembed":
        return _nv_embed(config)
    if config.get("model_type") == "nomic_bert" and "n_embd" in config:
        return _nomic(folder, config)
    return None


def _nv_embed(config: dict[str, Any]) -> StandIn:
    """NV-Embed's body: a Mistral, whose sliding window its own code does not read."""
    text = {name: value for name, value in config["text_config"].items() if name not in ("model_type", "auto_map")}
    maker = extras.load("transformers", extra="models").MistralConfig
    return StandIn(maker.from_dict({**text, "sliding_window": None}), {r"^embedding_model\.": ""})


def _nomic(folder: Path, config: dict[str, Any]) -> StandIn:
    """Nomic's BERT as it was published, with the names of GPT-2's settings."""
    wanted = {"activation_function": "swiglu", "rotary_emb_fraction": 1.0, "prenorm": False, "qkv_proj_bias": False}
    odd = {name: config[name] for name, value in wanted.items() if config.get(name, value) != value}
    if odd or config.get("moe_every_n_layers", 0) > 0:
        what = ", ".join(f"{name}={value!r}" for name, value in odd.items()) or "experts"
        problem = f"{folder} is a NomicBert with {what}, which transformers has not."
        raise UnsupportedOperation(
            problem, "Read its code, then pin it: LanguageModel(name, revision=the commit, trust_remote_code=True)."
        )
    own = {theirs: config[name] for name, theirs in _NOMIC.items() if name in config}
    maker = extras.load("transformers", extra="models").NomicBertConfig
    return StandIn(maker.from_dict({**own, "architectures": ["NomicBertModel"]}))
