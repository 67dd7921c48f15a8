"""Published embedders by name: a preset is a dictionary of `DecoderEncoder`'s settings, and no class.

A checkpoint that is published with files that say how to use it needs none: `DecoderEncoder` reads them. A preset is
for one that is not, and for a plain language model that is to be used in a method's way without training.

>>> preset("bge")["prompts"]["query"]
'Represent this sentence for searching relevant passages: '
>>> preset("e5-mistral", instruction="Find a proof.")["prompts"]["query"]
'Instruct: Find a proof.\\nQuery: '
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reperio.errors import ConfigurationError
from reperio.registry import build

__all__ = ["PRESETS", "preset"]

_INSTRUCTION = "{instruction}"
_TASK = "Given a web search query, retrieve relevant passages that answer the query"


def _pooled(mode: str, over: str = "text") -> dict[str, str]:
    return {"type": "Pooling", "mode": mode, "over": over}


def _both(prompt: str) -> dict[str, str]:
    return {"query": prompt, "document": prompt}


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Decoders, trained to embed
    "llm2vec": {"attention": "bidirectional", "pooling": _pooled("mean", "onward"), "max_tokens": 512},
    "nv-embed": {"attention": "bidirectional", "prompts": {"query": f"Instruct: {_INSTRUCTION}\nQuery: "}},
    "gritlm": {
        "attention": "bidirectional",
        "pooling": _pooled("mean", "onward"),
        "prompts": {"query": f"<|user|>\n{_INSTRUCTION}\n<|embed|>\n", "document": "<|embed|>\n"},
    },
    "e5-mistral": {"pooling": _pooled("eos"), "prompts": {"query": f"Instruct: {_INSTRUCTION}\nQuery: "}},
    "qwen3-embedding": {"pooling": _pooled("last"), "prompts": {"query": f"Instruct: {_INSTRUCTION}\nQuery:"}},
    "embeddinggemma": {
        "pooling": _pooled("mean", "row"),
        "prompts": {"query": "task: search result | query: ", "document": "title: none | text: "},
    },
    # Encoders, trained to embed
    "bge": {
        "pooling": _pooled("cls"),
        "prompts": {"query": "Represent this sentence for searching relevant passages: "},
    },
    "e5": {"pooling": _pooled("mean", "row"), "prompts": {"query": "query: ", "document": "passage: "}},
    "gte": {"pooling": _pooled("mean", "row")},
    "jina-v3": {
        "pooling": _pooled("mean", "row"),
        "prompts": {
            "query": "Represent the query for retrieving evidence documents: ",
            "document": "Represent the document for retrieval: ",
        },
    },
    "modernbert-embed": {
        "pooling": _pooled("mean", "row"),
        "prompts": {"query": "search_query: ", "document": "search_document: "},
    },
    "nomic": {
        "pooling": _pooled("mean", "row"),
        "prompts": {"query": "search_query: ", "document": "search_document: "},
    },
    # Any decoder, without training
    "bellm": {
        "attention": "last-1",
        "pooling": _pooled("last"),
        "prompts": _both('The representative word for sentence {text} is:"'),
    },
    "echo": {"attention": "echo", "pooling": _pooled("mean")},
    "prompteol": {
        "attention": "causal",
        "pooling": _pooled("last"),
        "prompts": _both('This sentence : "{text}" means in one word:"'),
    },
    "sgpt": {"attention": "causal", "pooling": _pooled("weightedmean")},
}
"""Name → settings, as a specification holds them.

References: LLM2Vec, BehnamGhader et al., 2024; NV-Embed, Lee et al., 2024; GritLM, Muennighoff et al., 2024;
E5-Mistral, Wang et al., 2024; Qwen3-Embedding, Zhang et al., 2025; EmbeddingGemma, Vera et al., 2025; BGE, Xiao et al.,
2023; E5, Wang et al., 2022; gte, Li et al., 2023; jina-embeddings-v3, Sturua et al., 2024; Nomic, Nussbaum et al.,
2024; BeLLM, Li and Li, 2024; echo embeddings, Springer et al., 2024; PromptEOL, Jiang et al., 2023; SGPT, Muennighoff,
2022.
"""


def preset(name: str, *, instruction: str | None = None) -> dict[str, Any]:
    """The settings of a published embedder, for ``DecoderEncoder(model, **preset(name))``.

    Parameters
    ----------
    name
        One of `PRESETS`.
    instruction
        What a query asks for, in words, where the method takes such; web search where None.

    Raises
    ------
    ConfigurationError
        If there is no such preset, or it takes no instruction.
    """
    if name not in PRESETS:
        raise ConfigurationError(f"There is no preset {name!r}.", f"Known: {', '.join(sorted(PRESETS))}.")
    out = dict(PRESETS[name])
    prompts: dict[str, str] = dict(out.get("prompts", {}))
    if instruction is not None and not any(_INSTRUCTION in prompt for prompt in prompts.values()):
        taking = [name for name, how in PRESETS.items() if _INSTRUCTION in str(how.get("prompts"))]
        raise ConfigurationError(f"The preset {name!r} takes no instruction.", f"Those that do: {', '.join(taking)}.")
    if prompts:
        asked = _TASK if instruction is None else instruction
        out["prompts"] = {role: prompt.replace(_INSTRUCTION, asked) for role, prompt in prompts.items()}
    if "pooling" in out:  # a pooling, not its name: what is asked for by preset holds against what a checkpoint says
        out["pooling"] = build(out["pooling"])
    return out
