"""Small language models of random weights, with a real tokenizer: right for laws, not for quality."""

from __future__ import annotations

import inspect
import pydoc
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from reperio import extras

__all__ = ["ARCHITECTURES", "MASKED", "byte_pairs", "decoder", "masked", "save_decoder", "save_masked"]

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 6},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Gemma": {"head_dim": 8},
    "Gemma2": {"head_dim": 8, "sliding_window": 6},
    "Gemma3Text": {"head_dim": 8, "sliding_window": 6},
    "Phi3": {},
    "Mixtral": {"num_local_experts": 4, "sliding_window": None},
    "Qwen3Moe": {"head_dim": 8, **_EXPERTS},
    "Olmoe": _EXPERTS,
}
"""Names of transformers' decoders, and what each needs to be small."""

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_MODULES = ("heapq", "itertools", "textwrap", "collections", "functools")


@cache
def byte_pairs(size: int = 600) -> Any:
    """A byte-pair tokenizer of transformers, learnt from Python's documentation: ``<s>`` text, ``</s>`` at hand."""
    tokenizers = extras.load("tokenizers", extra="models")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<sum>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    texts = [pydoc.getdoc(thing) for name in _MODULES for _, thing in inspect.getmembers(import_module(name))]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    fast = extras.load("transformers", extra="models").PreTrainedTokenizerFast
    return fast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )


def decoder(architecture: str, *, head: bool = True, seed: int = 0, **settings: Any) -> Any:
    """A model of `ARCHITECTURES` in evaluation mode, with random weights.

    Parameters
    ----------
    head
        Whether it has a language-model head.
    settings
        Of its configuration, in place of the usual ones.
    """
    torch, transformers = extras.load("torch", extra="models"), extras.load("transformers", extra="models")
    tokenizer = byte_pairs()
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **{**_SIZES, **ARCHITECTURES[architecture], **settings},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        maker = transformers.AutoModelForCausalLM if head else transformers.AutoModel
        return maker.from_config(config).eval()


MASKED: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Roberta": {"pad_token_id": 0},
    "DistilBert": {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48},
    "ModernBert": {"cls_token_id": 1, "sep_token_id": 2},
    "Electra": {"embedding_size": 16},
}
"""Names of transformers' masked language models, and what each needs to be small."""


def masked(architecture: str, *, bias: float = -2.0, seed: int = 0, **settings: Any) -> Any:
    """A model of `MASKED` in evaluation mode, with random weights.

    Parameters
    ----------
    bias
        Mean of the bias of its head, below 0 so that most words score below it, as in a trained sparse model.
    settings
        Of its configuration, in place of the usual ones.
    """
    torch, transformers = extras.load("torch", extra="models"), extras.load("transformers", extra="models")
    tokenizer = byte_pairs()
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {name: size for name, size in _SIZES.items() if name != "num_key_value_heads"}
    scale = {"initializer_range": 0.25, "init_std": 0.25, "initializer_cutoff_factor": 4.0, "decoder_bias": True}
    given = {**sizes, **ids, **scale, **MASKED[architecture], **settings}
    config = getattr(transformers, f"{architecture}Config")(vocab_size=len(tokenizer), **given)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForMaskedLM.from_config(config).eval()
        torch.nn.init.normal_(model.get_output_embeddings().bias, bias, 1.0)
    return model


def save_masked(folder: Path, architecture: str, **how: Any) -> Path:
    """`masked` and its tokenizer in a folder."""
    masked(architecture, **how).save_pretrained(folder)
    byte_pairs().save_pretrained(folder)
    return folder


def save_decoder(folder: Path, architecture: str, **how: Any) -> Path:
    """`decoder` and its tokenizer in a folder."""
    decoder(architecture, **how).save_pretrained(folder)
    byte_pairs().save_pretrained(folder)
    return folder
