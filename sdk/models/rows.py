"""Texts → rows of tokens for a language model: prompt, text, what follows, all told apart, none cut in silence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio.errors import ConfigurationError, UnsupportedOperation
from reperio.models.windows import Frame, Tokens

__all__ = ["TEXT", "Fill", "Row", "RowMaker"]

TEXT = "{text}"
"""Where the text stands in a prompt that goes on after it; a prompt without it stands before the text."""

# A text is tokenised once; its ids leave Python's integers, which weigh eight times as much, after so many texts.
_TEXTS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """What a model reads of one text, or of one window of it.

    Attributes
    ----------
    ids
        All tokens, ``(t,)``, int32.
    start, stop
        Which of them are the text's own: not special, not the prompt's; of a text that stands twice, the second; the
        summary tokens, where there are any.
    unseen
        How many of the last tokens no token looks at, though they look at the others.
    lead
        How many tokens the prompt has on its own, with the special ones before it; 0 without prompt.
    """

    ids: Tokens
    start: int
    stop: int
    unseen: int = 0
    lead: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Fill:
    """What rows that are too short are filled with at their end: ColBERT's query expansion.

    Attributes
    ----------
    token
        Its id.
    length
        Tokens that a row has at the least.
    seen
        Whether the other tokens look at it.
    """

    token: int
    length: int
    seen: bool = False


class RowMaker:
    """How the texts of one role become rows.

    Parameters
    ----------
    tokenizer
        A transformers tokenizer; it is not changed.
    prompt
        Stands before the text; or a template with ``{text}`` in it.
    limit
        Most tokens of a row; None where there is no end.
    ends
        Ids that stand at the end of every row, after what the tokenizer puts there: an end-of-text token. Never cut.
    summary
        Ids of summary tokens, which stand right after the text and are pooled in its place. Never cut.
    twice
        Whether a text stands twice, one after the other (echo embeddings, Springer et al., 2024).
    starts
        Ids that stand before the prompt in every row, after what the tokenizer puts there: ColBERT's markers.
    fill
        What rows that are too short are filled with.

    Attributes
    ----------
    frame
        What must stay when a row is cut.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        prompt: str = "",
        limit: int | None = None,
        ends: Sequence[int] = (),
        summary: Sequence[int] = (),
        twice: bool = False,
        starts: Sequence[int] = (),
        fill: Fill | None = None,
    ) -> None:
        if prompt.count(TEXT) > 1:
            raise ConfigurationError(f"The prompt {prompt!r} names {TEXT} more than once.", "Name it once.")
        self._tokenizer = tokenizer
        self._before, _, suffix = prompt.partition(TEXT)
        self._twice = twice
        self._ends = list(ends)
        tail: list[int] = tokenizer("retrieval")["input_ids"][-len(ends) :] if ends else []
        if tail == self._ends:  # the tokenizer puts them there itself
            self._ends = []
        self._starts = list(starts)
        self._fill = fill
        self._special, last = _special(tokenizer)
        self._first = self._special + len(self._starts)
        self._suffix = self._after(suffix) if suffix else []
        self._last = last
        self._summary = list(summary)
        self._tail = len(self._summary) + len(self._suffix) + last + len(self._ends)
        self._prompt = np.array(self._ids([self._before], special=False)[0] if self._before else [], dtype=np.int32)
        room = None if limit is None else limit - self._first - len(self._prompt) - self._tail
        if room is not None and room < (2 if twice else 1):
            problem = f"max_tokens is {limit}: the prompt and {self._first + self._tail} other tokens leave no room."
            raise ConfigurationError(problem, "Raise max_tokens, or shorten the prompt.")
        if fill is not None and limit is not None and fill.length > limit:
            problem = f"Rows are filled up to {fill.length} tokens, and max_tokens is {limit}."
            raise ConfigurationError(problem, "Raise max_tokens, or fill up to less.")
        if limit is not None and room is not None and twice:
            limit -= room - room // 2  # a row is laid out with its text once, and cut so that it fits twice
        self.frame = Frame(self._first, self._tail, limit, from_left=tokenizer.truncation_side == "left")

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """All tokens of each text with all that stands around it, the text once, none cut."""
        rows: list[Tokens] = []
        around = [*self._summary, *self._suffix]
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            for ids in self._ids([self._before + text for text in texts[start : start + _TEXTS_AT_ONCE]]):
                first, middle = ids[: self._special], ids[self._special : len(ids) - self._last]
                last = ids[len(ids) - self._last :]
                rows.append(np.array([*first, *self._starts, *middle, *around, *last, *self._ends], dtype=np.int32))
        return rows

    def spans(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The characters ``[start, end)`` of each token of `tokenize`, ``(t, 2)``; empty for one that is no text's.

        Raises
        ------
        UnsupportedOperation
            If the tokenizer is written in Python, which cannot tell.
        """
        if not getattr(self._tokenizer, "is_fast", False):
            what = f"{type(self._tokenizer).__name__} cannot tell which characters a token stands for."
            raise UnsupportedOperation(what, "Use a model with a tokenizer.json.")
        if not texts:
            return []
        told = self._encoded([self._before + text for text in texts], offsets=True)["offset_mapping"]
        extra, shift = self._tail - self._last, len(self._before)
        out: list[NDArray[np.int32]] = []
        for spans in told:
            middle = len(spans) - self._last
            whole = np.zeros((len(spans) + len(self._starts) + extra, 2), dtype=np.int32)
            whole[self._first : middle + len(self._starts)] = spans[self._special : middle]
            out.append(np.maximum(whole - shift, 0))
        return out

    def own(self, row: Tokens, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Of values beside the tokens of a row, those of each window's own tokens, ``start`` to ``stop``."""
        prompt = self.prompt_tokens(row)
        parts = self.frame.windows(values, prompt)
        return [part[self.frame.before + prompt : len(part) - self.frame.after] for part in parts]

    def prompt_tokens(self, row: Tokens) -> int:
        """How many tokens of a row, after the special ones, are the prompt's (the last may melt into the text)."""
        width = min(len(self._prompt), len(row) - self.frame.before - self.frame.after)
        same = row[self.frame.before : self.frame.before + width] == self._prompt[:width]
        return int(np.logical_and.accumulate(same).sum())

    def whole(self, row: Tokens) -> Row:
        """A row that is cut to fit, as the model reads it."""
        prompt = self.prompt_tokens(row)
        frame = self.frame if not self.frame.from_left else replace(self.frame, before=self.frame.before + prompt)
        return self._finished(frame.cut(row), prompt)

    def windows(self, row: Tokens) -> list[Row]:
        """The row as overlapping windows that hold all of its tokens; each has the prompt before it."""
        prompt = self.prompt_tokens(row)
        return [self._finished(window, prompt) for window in self.frame.windows(row, prompt)]

    def definition(self) -> str:
        """The tokenizer as JSON; the sorted vocabulary of one that is written in Python."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return backend.to_str() if backend is not None else json.dumps(self._tokenizer.get_vocab(), sort_keys=True)

    def _finished(self, row: Tokens, prompt: int) -> Row:
        start, stop = self.frame.before + prompt, len(row) - self.frame.after
        lead = min(self.frame.before + len(self._prompt), len(row) - 1) if len(self._prompt) else 0
        if self._summary:
            return Row(row, stop, stop + len(self._summary), lead=lead)
        if self._twice:
            text = row[start:stop]
            return Row(np.concatenate([row[:stop], text, row[stop:]]), stop, stop + len(text), lead=lead)
        lacking = 0 if self._fill is None else self._fill.length - len(row)
        if self._fill is None or lacking <= 0:
            return Row(row, start, stop, lead=lead)
        filled = np.concatenate([row, np.full(lacking, self._fill.token, dtype=np.int32)])
        return Row(filled, start, stop, 0 if self._fill.seen else lacking, lead)

    def _after(self, suffix: str) -> list[int]:
        """Tokens of what follows a text, as they are where something stands before them."""
        alone, [full, lead] = self._ids([suffix], special=False)[0], self._ids([f"a{suffix}", "a"], special=False)
        return full[len(lead) :] if full[: len(lead)] == lead else alone

    def _ids(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        ids: list[list[int]] = self._encoded(texts, special=special)["input_ids"]
        return ids

    def _encoded(self, texts: Sequence[str], *, special: bool = True, offsets: bool = False) -> Any:
        return self._tokenizer(
            texts,
            add_special_tokens=special,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=offsets,
            verbose=False,
        )


def _special(tokenizer: Any) -> tuple[int, int]:
    """How many special tokens the tokenizer puts before and after a text."""
    plain, full = (
        tokenizer("retrieval", add_special_tokens=special, padding=False, truncation=False)["input_ids"]
        for special in (False, True)
    )
    extra = len(full) - len(plain)
    before = next((i for i in range(extra + 1) if full[i : i + len(plain)] == plain), None)
    if before is None:
        raise UnsupportedOperation("The tokenizer puts special tokens inside a text.", "Use another model.")
    return before, extra - before
