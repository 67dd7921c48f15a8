"""Texts → rows of tokens → arrays, through the library ``tokenizers`` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio import extras
from reperio.errors import ConfigurationError, InvalidInput
from reperio.models.windows import Frame, Tokens, padded

__all__ = ["PlainInput", "open_tokenizer", "tokenized"]

_TEXTS_AT_ONCE = 1024


def open_tokenizer(definition: str, *, extra: str) -> Any:
    """A tokenizer from its JSON, that neither cuts nor pads."""
    tokenizer = extras.load("tokenizers", extra=extra).Tokenizer.from_str(definition)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenized(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[Tokens]:
    """All tokens of each text.

    Raises
    ------
    InvalidInput
        If the tokenizer has no token for a part of a text, and none for what it does not know.
    """
    rows: list[Tokens] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = list(texts[start : start + _TEXTS_AT_ONCE])
        try:
            encodings = tokenizer.encode_batch_fast(some, add_special_tokens=special)
        except Exception as error:  # the library's own type, which is no other
            problem = f"The tokenizer cannot read one of texts[{start}:{start + len(some)}]: {error}."
            raise InvalidInput(problem, "Give it a token for what it does not know, or drop the text.") from error
        rows += [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
    return rows


class PlainInput:
    """Input of an export, as `reperio.models.inputs.TransformerInput` has it for the same model.

    Parameters
    ----------
    tokenizer
        Of the library ``tokenizers``; neither cuts nor pads.
    role
        What an export keeps of a role: ``prompt``, ``prompt_length``, ``before``, ``after``, ``limit``,
        ``positions``, ``from_left``.
    padding
        ``id``, and whether it stands on the ``left``.
    max_tokens
        Most tokens of a row; as it was saved where None.

    Raises
    ------
    ConfigurationError
        If ``max_tokens`` is more than the model can read, or leaves no room for a text.
    """

    def __init__(
        self, tokenizer: Any, role: Mapping[str, Any], padding: Mapping[str, Any], *, max_tokens: int | None = None
    ) -> None:
        positions, around = role["positions"], role["before"] + role["after"]
        if max_tokens is not None and positions is not None and max_tokens > positions:
            problem = f"max_tokens is {max_tokens}, and the model has {positions} positions."
            raise ConfigurationError(problem, f"Use {positions} or less.")
        limit = role["limit"] if max_tokens is None else max_tokens
        if limit is not None and limit <= around:
            problem = f"max_tokens is {limit}, and {around} special tokens stand around each text."
            raise ConfigurationError(problem, f"Use {around + 1} or more.")
        self.frame = Frame(role["before"], role["after"], limit, from_left=role["from_left"])
        self.prompt_length: int = role["prompt_length"]
        self._tokenizer, self._prompt, self._padding = tokenizer, role["prompt"], padding
        [self._prompt_ids] = tokenized(tokenizer, [self._prompt], special=False)

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """All tokens of each text with its prompt and special tokens, none cut."""
        return tokenized(self._tokenizer, [self._prompt + text for text in texts], special=True)

    def prompt_tokens(self, row: Tokens) -> int:
        """How many tokens of a row, after the special ones, are the prompt's."""
        return self.frame.prompt_in(row, self._prompt_ids)

    def features(self, rows: Sequence[Tokens]) -> dict[str, NDArray[np.int64]]:
        """Ids and attention mask, ``(n, longest)``."""
        return padded(rows, pad=self._padding["id"], left=self._padding["left"])

    def definition(self) -> str:
        """The tokenizer as JSON."""
        text: str = self._tokenizer.to_str()
        return text
