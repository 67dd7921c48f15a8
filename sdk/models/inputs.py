"""Texts → what the first module of a sentence-transformers model reads, without its silent cut."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from reperio import extras
from reperio.errors import ConfigurationError, UnsupportedOperation
from reperio.models.windows import Frame, Tokens, padded

__all__ = ["ROLES", "Role", "StaticInput", "TextInput", "TransformerInput", "prompt_for", "text_input"]

Role: TypeAlias = Literal["query", "document"]
ROLES: tuple[Role, Role] = ("query", "document")

# A text is tokenised once; its ids leave Python's integers, which weigh eight times as much, after so many texts.
_TEXTS_AT_ONCE = 1024
_PROMPT_NAMES: dict[Role, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
_READS = {"input_ids", "attention_mask", "token_type_ids"}


class TextInput(Protocol):
    """How one role's texts become rows of tokens, and rows become features of a batch."""

    @property
    def frame(self) -> Frame:
        """What must stay when a row is cut."""
        ...

    def tokenize(self, texts: Sequence[str], /) -> list[Tokens]:
        """All tokens of each text with its prompt and special tokens, none cut."""
        ...

    def prompt_tokens(self, row: Tokens, /) -> int:
        """How many tokens of a row, after the special ones, are the prompt's."""
        ...

    def features(self, rows: Sequence[Tokens], /) -> dict[str, Any]:
        """What the model's ``forward`` takes for these rows."""
        ...

    def definition(self) -> str:
        """Everything that the tokenizer does, as text."""
        ...


def prompt_for(model: Any, role: Role) -> str:
    """The prompt that sentence-transformers' own ``encode_query`` or ``encode_document`` puts before a text."""
    found = next((name for name in _PROMPT_NAMES[role] if name in model.prompts), model.default_prompt_name)
    return model.prompts.get(found) or ""


def text_input(model: Any, role: Role, max_tokens: int | None = None) -> TextInput:
    """How ``model``, a SentenceTransformer, reads texts of a role.

    Raises
    ------
    UnsupportedOperation
        If its first module reads texts in another way than through a plain tokenizer.
    ConfigurationError
        If ``max_tokens`` is more than the model can read, or leaves no room for a text.
    """
    base = extras.load("sentence_transformers.base.modules", extra="models")
    modules = extras.load("sentence_transformers.sentence_transformer.modules", extra="models")
    module = model[0]
    if isinstance(module, base.Router):
        module = module.sub_modules[module._resolve_route(task=role, modality="text")][0]
    if isinstance(module, modules.StaticEmbedding):
        return StaticInput(module, prompt_for(model, role), max_tokens)
    if not isinstance(module, base.Transformer):
        raise _unsupported(f"starts with a {type(module).__name__}")
    return TransformerInput(module, prompt_for(model, role), role, max_tokens)


class TransformerInput:
    """Input of a ``Transformer`` module: token ids, padded to the longest row of a batch."""

    def __init__(self, module: Any, prompt: str, role: Role, max_tokens: int | None) -> None:
        _check_plain(module)
        # A copy, since whoever else calls the model's own one switches it to cut and to pad.
        self._tokenizer = copy.deepcopy(module.tokenizer)
        self._prompt = prompt
        self._positions = _positions(module)
        before, after = self._special()
        limit = _limit(module, role, max_tokens)
        if limit is not None and limit <= before + after:
            problem = f"max_tokens is {limit}, and {before + after} special tokens stand around each text."
            raise ConfigurationError(problem, f"Use {before + after + 1} or more.")
        self.frame = Frame(before, after, limit, from_left=self._tokenizer.truncation_side == "left")
        self._prompt_ids = np.array(self._ids([prompt], special=False)[0] if prompt else [], dtype=np.int32)
        self._prompt_length = self._pooled_prompt()

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """All tokens of each text with its prompt and special tokens, none cut."""
        rows: list[Tokens] = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            some = [self._prompt + text for text in texts[start : start + _TEXTS_AT_ONCE]]
            rows += [np.array(ids, dtype=np.int32) for ids in self._ids(some)]
        return rows

    def prompt_tokens(self, row: Tokens) -> int:
        """How many tokens of a row, after the special ones, are the prompt's (the last may melt into the text)."""
        return self.frame.prompt_in(row, self._prompt_ids)

    def features(self, rows: Sequence[Tokens]) -> dict[str, Any]:
        """Ids and attention mask, ``(n, longest)``, int64."""
        torch = extras.load("torch", extra="models")
        arrays = padded(rows, pad=self.padding["id"], left=self.padding["left"])
        out = {name: torch.from_numpy(array) for name, array in arrays.items()} | {"modality": "text"}
        if "token_type_ids" in self._tokenizer.model_input_names:
            out["token_type_ids"] = torch.zeros_like(out["input_ids"])
        if self._prompt:
            out["prompt_length"] = self._prompt_length
        return out

    @property
    def padding(self) -> dict[str, Any]:
        """The ``id`` that fills a row, and whether it stands on the ``left``."""
        return {"id": self._tokenizer.pad_token_id or 0, "left": self._tokenizer.padding_side == "left"}

    def described(self) -> dict[str, Any]:
        """Prompt, lengths and special tokens, as `reperio.models.runtimes.plain.PlainInput` takes them."""
        frame = self.frame
        return {
            "prompt": self._prompt,
            "prompt_length": self._prompt_length,
            "before": frame.before,
            "after": frame.after,
            "limit": frame.limit,
            "positions": self._positions,
            "from_left": frame.from_left,
        }

    def definition(self) -> str:
        """The tokenizer as JSON; the sorted vocabulary of one that is written in Python."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return backend.to_str() if backend is not None else json.dumps(self._tokenizer.get_vocab(), sort_keys=True)

    def _ids(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        encoded = self._tokenizer(
            texts,
            add_special_tokens=special,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _special(self) -> tuple[int, int]:
        """How many special tokens stand before and after a text."""
        [plain], [full] = self._ids(["retrieval"], special=False), self._ids(["retrieval"])
        extra = len(full) - len(plain)
        before = next((i for i in range(extra + 1) if full[i : i + len(plain)] == plain), None)
        if before is None:
            raise _unsupported("puts special tokens inside a text")
        types = self._tokenizer("retrieval", return_token_type_ids=True).get("token_type_ids")
        if types is not None and any(types) and "token_type_ids" in self._tokenizer.model_input_names:
            raise _unsupported(f"marks a single text with the token types {sorted(set(types))}")
        return before, extra - before

    def _pooled_prompt(self) -> int:
        """Tokens that a pooling without the prompt leaves out, counted as sentence-transformers does."""
        if not self._prompt:
            return 0
        [row] = self._ids([self._prompt])
        return len(row) - (row[-1] in self._tokenizer.all_special_ids)


class StaticInput:
    """Input of a ``StaticEmbedding`` module: a bag of token ids for each text, of any length."""

    def __init__(self, module: Any, prompt: str, max_tokens: int | None) -> None:
        self._tokenizer = copy.deepcopy(module.tokenizer)
        self._prompt = prompt
        saved = self._tokenizer.truncation
        self._tokenizer.no_truncation()
        self.frame = Frame(limit=max_tokens or (saved and saved["max_length"]))

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """All tokens of each text with its prompt, none cut."""
        rows: list[Tokens] = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            some = [self._prompt + text for text in texts[start : start + _TEXTS_AT_ONCE]]
            encodings = self._tokenizer.encode_batch(some, add_special_tokens=False)
            rows += [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        return rows

    def prompt_tokens(self, row: Tokens) -> int:
        """None: a window of a bag of words needs no prompt of its own."""
        return 0

    def features(self, rows: Sequence[Tokens]) -> dict[str, Any]:
        """All ids in one row, and where each text starts."""
        torch = extras.load("torch", extra="models")
        starts = np.cumsum([0, *map(len, rows[:-1])], dtype=np.int64)
        ids = np.concatenate(rows).astype(np.int64)
        return {"input_ids": torch.from_numpy(ids), "offsets": torch.from_numpy(starts)}

    def definition(self) -> str:
        """The tokenizer as JSON."""
        text: str = self._tokenizer.to_str()
        return text


def _check_plain(module: Any) -> None:
    """Refuse a module whose texts take another way than prompt + text through the tokenizer."""
    if "text" not in module.modality_config:
        raise _unsupported("reads no text")
    if "message" in module.modality_config:
        raise _unsupported("reads texts through a chat template")
    if module.processor is not module.tokenizer:
        raise _unsupported(f"reads texts through a {type(module.processor).__name__}")
    if module.query_expansion is not None:
        raise _unsupported("expands its queries with mask tokens")
    other = set(module.processing_kwargs) - {"text"} | set(module.processing_kwargs.get("text", {})) - {"max_length"}
    if other:
        raise _unsupported(f"changes its tokenizer's {', '.join(sorted(other))}")
    more = set(module.tokenizer.model_input_names) - _READS
    if more:
        raise _unsupported(f"reads {', '.join(sorted(more))} beside token ids")


def _limit(module: Any, role: Role, max_tokens: int | None) -> int | None:
    """Most tokens a row may have: as asked for, else as the model was saved."""
    positions = _positions(module)
    if max_tokens is not None:
        if positions is not None and max_tokens > positions:
            problem = f"max_tokens is {max_tokens}, and the model has {positions} positions."
            raise ConfigurationError(problem, f"Use {positions} or less.")
        return max_tokens
    of_role = module.query_length if role == "query" else module.document_length
    saved = module.processing_kwargs.get("text", {}).get("max_length") or of_role or module.max_seq_length
    known = [int(limit) for limit in (saved, positions) if limit is not None and limit < 2**31]
    return min(known) if known else None


def _positions(module: Any) -> int | None:
    tables = (getattr(part, "position_embeddings", None) for part in module.model.modules())
    table: Any = next((table for table in tables if hasattr(table, "num_embeddings")), None)
    if table is not None:
        # The family of RoBERTa counts its positions from the one after the padding's.
        return int(table.num_embeddings) - (0 if table.padding_idx is None else int(table.padding_idx) + 1)
    positions: int = getattr(module.config, "max_position_embeddings", None) or 0
    return positions if positions > 0 else None


def _unsupported(how: str) -> UnsupportedOperation:
    fix = "Use a model that starts with a text Transformer or a StaticEmbedding; or encode yourself, with GivenVectors."
    return UnsupportedOperation(f"The model {how}, and its cut could not be reported.", fix)
