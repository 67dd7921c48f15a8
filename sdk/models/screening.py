"""Which words can have a weight at all, told by a product in bfloat16 whose error is bounded.

A processor with AMX, or a GPU, multiplies many times faster in bfloat16 than in float32. With f = f' + r and
w = w' + s, where f' and w' are rounded, ``|f w - f' w'| <= |r| |w| + |f'| |s|`` by Cauchy and Schwarz. A word whose
best score stays below zero by more than that has no weight; the others, a few in a hundred, are multiplied again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any, Self

from reperio import extras
from reperio.models.blockwise import by_row, pooled
from reperio.models.vocabulary import VocabularyHead

__all__ = ["Screen"]

# bfloat16 has 8 significant bits: a rounded value is off by at most this part of it.
_ROUNDED = 2.0**-8
# Sums are taken in float32: each addition is off by at most half of this part.
_ADDED = 2.0**-23
_PAYS = 2.0


class Screen:
    """Leaves out words that have no weight. Keeps a copy of the head's weights in bfloat16.

    Parameters
    ----------
    head
        Its weights are in float32.
    """

    def __init__(self, head: VocabularyHead) -> None:
        weight = head.weight.detach()
        self._bias = head.bias
        self._weight = weight.bfloat16()
        rest = weight - self._weight.float()
        self._length = weight.norm(dim=1)
        self._lost = rest.norm(dim=1) + weight.shape[1] * _ADDED * self._length

    @classmethod
    def where_it_pays(cls, head: VocabularyHead) -> Self | None:
        """One if weights are in float32 and bfloat16 is at least twice as quick on their device; else None."""
        torch = extras.load("torch", extra="models")
        if head.weight.dtype != torch.float32:
            return None
        return cls(head) if _gain(str(head.weight.device)) >= _PAYS else None

    def __call__(self, features: Any, lengths: Sequence[int], top_n: int | None = None) -> Any:
        """Whether a word may have a weight, ``(b, V)``, bool: True for every one that has.

        Parameters
        ----------
        features
            ``(t, e)``, float32.
        lengths
            Tokens of each row.
        top_n
            How many words are to be kept of each row, where not all are.
        """
        torch = extras.load("torch", extra="models")
        rounded = features.bfloat16()
        lost = (features - rounded.float()).norm(dim=1, keepdim=True)
        kept = rounded.float().norm(dim=1, keepdim=True)
        best = pooled(rounded, self._weight, lengths, reduce=_maximum, combine=torch.maximum).float()
        worst = by_row(torch.cat([lost, kept], dim=1), lengths, _most)
        error = worst[:, :1] * self._length + worst[:, 1:] * self._lost + best.abs() * _ROUNDED
        if self._bias is not None:
            best += self._bias
        highest = best + error
        left = highest > 0
        if top_n is not None and top_n < best.shape[1]:
            certain = torch.topk(best - error, top_n, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
            left &= highest >= certain
        return left


def _maximum(place: slice, product: Any) -> Any:
    return product.amax(dim=1)


def _most(values: Any) -> Any:
    return values.amax(dim=1)


@cache
def _gain(device: str) -> float:
    """How many times quicker a product is in bfloat16 than in float32, measured once."""
    torch = extras.load("torch", extra="models")
    a, b = torch.randn(512, 512, device=device), torch.randn(2048, 512, device=device)
    full, half = (min(_seconds(x, y) for _ in range(5)) for x, y in ((a, b), (a.bfloat16(), b.bfloat16())))
    return full / half


def _seconds(a: Any, b: Any) -> float:
    start = time.perf_counter()
    float((a @ b.T)[0, 0])  # a GPU is waited for
    return time.perf_counter() - start
