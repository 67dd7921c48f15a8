"""What a published checkpoint says of itself: attention, pooling, prompts, projections, length; its folder unchanged.

Read are the layouts of sentence-transformers (BGE, E5-Mistral, Qwen3-Embedding, EmbeddingGemma, Nomic, gte and all that
are saved so), LLM2Vec, NV-Embed and GritLM.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reperio import extras
from reperio.errors import ConfigurationError, UnsupportedOperation
from reperio.models.architectures import described, read_json
from reperio.models.checkpoint import adapter_base, weight_files
from reperio.models.inputs import Role
from reperio.models.modules import COMMON, MODULES, Module, read_modules, read_prompts
from reperio.models.pooling import Pooling, PoolingMode, Region
from reperio.models.states import Head

__all__ = ["Layout", "read_layout"]

_SENTENCE: dict[str, PoolingMode] = {
    "cls": "cls",
    "mean": "mean",
    "weightedmean": "weightedmean",
    "max": "max",
    "lasttoken": "last",
}
_LLM2VEC: dict[str, PoolingMode] = {
    "mean": "mean",
    "weighted_mean": "weightedmean",
    "eos_token": "eos",
    "last_token": "last",
    "bos_token": "cls",
}
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# LLM2Vec's names of decoders that look both ways: LlamaBiModel, MistralBiForMNTP, and those its hub code has.
_BOTH_WAYS = re.compile(r"(Llama|Mistral|Gemma2?|Qwen2)(Bi(Model|ForMNTP)|EncoderModel)$")
# What sentence_bert_config.json may say without changing how a text is read.
_PLAIN = {
    "max_seq_length",
    "do_lower_case",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "unpad_inputs",
}
_ELSE = "Use DenseEncoder, which runs it through sentence-transformers."


@dataclass(frozen=True, slots=True)
class Layout:
    """What a checkpoint says of how it is to be used.

    Attributes
    ----------
    source
        Whose layout it is.
    attention
        As in `View`.
    pooling
        None where it says nothing.
    prompts
        What stands before a text, by role.
    normalize
        Whether vectors have length 1.
    dim
        How many leading dimensions are kept; all where None.
    max_tokens
        Most tokens that are read of a text; what the model reads where None.
    """

    source: str = "plain"
    attention: str = "own"
    pooling: Head[Any] | None = None
    prompts: Mapping[Role, str] = field(default_factory=dict[Role, str])
    normalize: bool = True
    dim: int | None = None
    max_tokens: int | None = None


def read_layout(folder: Path | None, *, adapter: Path | None = None, network: Any = None) -> Layout:
    """The layout of a checkpoint.

    Parameters
    ----------
    folder
        The model's; None for one in memory, which says nothing.
    adapter
        Folder of the adapter that is switched on: what it says of pooling comes first.
    network
        The loaded model, whose precision and device a pooling of trained weights takes.

    Raises
    ------
    ConfigurationError
        If a file of it is broken.
    UnsupportedOperation
        If the model cannot be run from states of tokens alone.
    """
    if folder is None:
        return Layout()
    base = adapter_base(folder)
    homes = [home for home in (adapter, folder, base) if home is not None]
    config = described(folder) or ({} if base is None else described(base))
    if config.get("model_type") == "nvembed":
        return _nv_embed(folder, config, network)
    told = next((home for home in homes if (home / "llm2vec_config.json").is_file()), None)
    code: Mapping[str, Any] = config.get("auto_map") or {}
    listed: list[str] = config.get("architectures") or []
    names = [*listed, *map(str, code.values())]
    if told is not None or any(_BOTH_WAYS.search(name) for name in names):
        return _llm2vec({} if told is None else read_json(told / "llm2vec_config.json"))
    if (folder / MODULES).is_file():
        return _sentence(folder, network)
    if any("gritlm" in name.lower() for name in names):
        empty = "<|embed|>\n"
        pooling = Pooling("mean", over="onward")
        return Layout("GritLM", "bidirectional", pooling, {"query": empty, "document": empty})
    return Layout()


def _llm2vec(told: Mapping[str, Any]) -> Layout:
    """LLM2Vec: its instruction is left out of the mean, the text and all after it counts.

    A text is cut at ``max_length`` tokens; its own encoder cuts once more, by words, at about ``doc_max_length``.
    """
    mode = told.get("pooling_mode", "mean")
    if mode not in _LLM2VEC:
        raise ConfigurationError(f"llm2vec_config.json names the pooling {mode!r}.", f"Known: {', '.join(_LLM2VEC)}.")
    over: Region = "onward" if told.get("skip_instruction", True) else "row"
    # Its encoder leaves vectors as long as they are; everyone compares them by cosine.
    pooling = Pooling(_LLM2VEC[mode], over=over)
    return Layout("LLM2Vec", "bidirectional", pooling, max_tokens=told.get("max_length", 512))


def _nv_embed(folder: Path, config: Mapping[str, Any], network: Any) -> Layout:
    from reperio.models.pooling_latent import LatentAttention

    told = config["latent_attention_config"]
    pooling = LatentAttention(
        told["hidden_dim"],
        latents=told["num_latents_value"],
        heads=told["num_cross_heads"],
        head_dim=told["cross_dim_head"],
    )
    opened, prefix = extras.load("safetensors", extra="models").safe_open, "latent_attention_model."
    weights: dict[str, Any] = {}
    for file in weight_files(folder):
        with opened(str(file), "pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118
            weights |= {name.removeprefix(prefix): tensors.get_tensor(name) for name in names}
    pooling.fill(weights, folder)
    if network is not None:
        pooling.to(network.device, network.dtype)
    return Layout("NV-Embed", "bidirectional", pooling, read_prompts(folder))


def _sentence(folder: Path, network: Any) -> Layout:
    modules = read_modules(folder)
    names = [module.name for module in modules]
    if names[0] != "Transformer" or modules[0].path != folder:
        raise UnsupportedOperation(f"{folder} starts with a {modules[0].type}.", _ELSE)
    pooling: Head[Any] | None = None
    projections: list[Any] = []
    for place, (name, module) in enumerate(zip(names[1:], modules[1:], strict=True), 1):
        if name in ("Pooling", "LatentAttention", "MultiLayerPooling") and pooling is None:
            pooling = _pooling(module)
        elif name == "Dense" and pooling is not None:
            from reperio.models.projection import Projection

            projections.append(Projection(folder=module.path))
        elif name == "Dropout" or (name == "Normalize" and place == len(names) - 1):
            continue
        else:
            raise UnsupportedOperation(f"{folder} has a {module.type} at place {place}.", _ELSE)
    if projections:
        from reperio.models.projection import Projected

        pooling = Projected(pooling, projections) if pooling is not None else None
    move = getattr(pooling, "to", None)
    if move is not None and network is not None:
        move(network.device)
    told = read_json(folder / COMMON)
    ends = names[-1] == "Normalize"
    longest = _plain_reading(folder)
    return Layout(
        "sentence-transformers", "own", pooling, read_prompts(folder), ends, told.get("truncate_dim"), longest
    )


def _plain_reading(folder: Path) -> int | None:
    """Most tokens of a text; refuses whatever else would be done to it."""
    told = read_json(folder / "sentence_bert_config.json")
    odd = {name: value for name, value in told.items() if name not in _PLAIN and value}
    if told.get("do_lower_case"):
        odd["do_lower_case"] = True
    if told.get("transformer_task", "feature-extraction") != "feature-extraction":
        odd["transformer_task"] = told["transformer_task"]
    if "message" in (told.get("modality_config") or {}):
        odd["modality_config"] = "message"
    if odd:
        name, value = next(iter(odd.items()))
        raise UnsupportedOperation(f"sentence_bert_config.json of {folder} has {name}={value!r}.", _ELSE)
    longest = told.get("max_seq_length")
    return None if longest is None else int(longest)


def _pooling(module: Module) -> Head[Any]:
    """A pooling as it was saved: sentence-transformers' own, or one of this package."""
    name, folder = module.name, module.path
    if name != "Pooling":
        from reperio.registry import resolve

        found: Head[Any] = resolve(name)(folder=folder)
        return found
    told = read_json(folder / "config.json")
    modes = told.get("pooling_mode") or [mode for flag, mode in _FLAGS.items() if told.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    whole = told.get("include_prompt", True)
    if len(modes) > 1 or modes[0] not in _SENTENCE:
        problem = f"{folder} pools by {' and '.join(modes)}"
        raise UnsupportedOperation(f"{problem}, which no single mode here gives.", _ELSE)
    if not whole and modes[0] in ("cls", "weightedmean"):
        raise UnsupportedOperation(f"{folder} pools by {modes[0]} without the prompt.", _ELSE)
    return Pooling(_SENTENCE[modes[0]], over="row" if whole else "unprompted")
