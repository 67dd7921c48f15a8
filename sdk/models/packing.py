"""Rows one after the other in place of a padded rectangle: no token is computed that is not there.

Prepacking (Zhao et al., 2024) does it with a block mask, which costs the square of the whole pack. Here each row has
its own attention, through transformers' registry of attention functions, so that a pack costs what its rows cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reperio import extras
from reperio.errors import ConfigurationError
from reperio.models.batching import Rows

__all__ = ["RAGGED", "Segments", "pack_batches", "register"]

RAGGED = "reperio_ragged"
"""Name of the attention function in transformers' registry."""


def pack_batches(lengths: ArrayLike, budget: int) -> list[Rows]:
    """Batches of rows alike in length, longest first, each at most ``budget`` tokens, for there is no padding.

    Raises
    ------
    ConfigurationError
        If ``budget`` is not positive.

    Examples
    --------
    >>> [batch.tolist() for batch in pack_batches([3, 9, 4, 1], budget=9)]
    [[1], [2, 0, 3]]
    """
    if budget <= 0:
        raise ConfigurationError(f"The budget of a batch is {budget} tokens.", "Use 1 or more.")
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    batches: list[list[int]] = []
    room = 0
    for row in order.tolist():
        if not batches or sizes[row] > room:
            batches.append([])
            room = budget
        batches[-1].append(row)
        room -= int(sizes[row])
    return [np.array(batch, dtype=np.int64) for batch in batches]


@dataclass(frozen=True, slots=True)
class Segments:
    """The rows of a pack, as its attention needs them.

    Attributes
    ----------
    runs
        How many rows of which length follow each other, in order.
    ahead
        For each layer, whether its tokens look at those after them.
    edge
        Whether a layer with a sliding window that looks both ways sees the token at its very edge: transformers'
        common mask does, those of architectures that look both ways by themselves (ModernBERT, Gemma 3) do not.
    """

    runs: tuple[tuple[int, int], ...]
    ahead: tuple[bool, ...]
    edge: bool = True

    @classmethod
    def of(cls, lengths: Sequence[int] | NDArray[np.int64], ahead: Sequence[bool], *, edge: bool = True) -> Segments:
        """From the length of each row."""
        runs = tuple((sum(1 for _ in rows), length) for length, rows in groupby(int(length) for length in lengths))
        return cls(runs, tuple(ahead), edge)


@cache
def register() -> str:
    """Make the attention of packs known to transformers; gives its name."""
    extras.load("transformers", extra="models").AttentionInterface.register(RAGGED, _attend)
    return RAGGED


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *, segments: Segments, **how: Any
) -> tuple[Any, None]:
    """Attention of each row of a pack to itself: ``(1, heads, t, d)`` → ``(1, t, heads, d)``.

    Rows of one length are computed together. It is told nothing of padding, so it accepts no mask.
    """
    torch = extras.load("torch", extra="models")
    if attention_mask is not None:
        raise ConfigurationError("A pack of rows has no padding, and a mask was given.", "Leave it out.")
    ahead = segments.ahead[int(module.layer_idx)]
    out = torch.empty_like(query[0].transpose(0, 1))  # (t, heads, d)
    at = 0
    for rows, length in segments.runs:
        part = slice(at, at + rows * length)
        q, k, v = (x[0, :, part].unflatten(1, (rows, length)).transpose(0, 1) for x in (query, key, value))
        mask = _window(length, how.get("sliding_window"), ahead, query.device, edge=segments.edge)
        done = _scores(q, k, v, mask, ahead=ahead, scaling=how.get("scaling"), softcap=how.get("softcap"))
        out[part] = done.transpose(1, 2).flatten(0, 1)
        at = part.stop
    return out[None], None


def _window(length: int, window: int | None, ahead: bool, device: Any, *, edge: bool) -> Any:
    """Who sees whom in a layer with a sliding window; None where the window holds the whole row."""
    if window is None or length <= window:
        return None
    torch = extras.load("torch", extra="models")
    at = torch.arange(length, device=device)
    back = at[:, None] - at[None, :]  # how far before the one who looks
    return (back.abs() < window + edge) if ahead else (back >= 0) & (back < window)


def _scores(q: Any, k: Any, v: Any, mask: Any, *, ahead: bool, scaling: float | None, softcap: float | None) -> Any:
    torch = extras.load("torch", extra="models")
    if softcap is None:
        causal = not ahead and mask is None
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
    groups, length = q.shape[1] // k.shape[1], q.shape[2]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None and not ahead:
        mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ v
