"""Products of token states with a large matrix, reduced over the tokens of each row before they are all there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from reperio import extras

__all__ = ["block", "by_row", "pooled"]

Reduce = Callable[[slice, Any], Any]


def block(device: Any) -> tuple[int, int]:
    """Tokens and columns of a block.

    One that stays in the second-level cache of a processor and is large enough for its product to be quick; a GPU wants
    larger ones.
    """
    return (1024, 2048) if device.type == "cpu" else (4096, 16384)


def by_row(values: Any, lengths: Sequence[int], reduce: Callable[[Any], Any]) -> Any:
    """Values of tokens, ``(t, m)`` → of rows, ``(b, m)``.

    Parameters
    ----------
    lengths
        Tokens of each row.
    reduce
        Takes several rows of one length, ``(rows, length, m)``.
    """
    out, at = list[Any](), 0
    for length, run in groupby(lengths):
        rows = sum(1 for _ in run)
        out.append(reduce(values[at : at + rows * length].unflatten(0, (rows, length))))
        at += rows * length
    return out[0] if len(out) == 1 else extras.load("torch", extra="models").cat(out)


def pooled(
    features: Any, weight: Any, lengths: Sequence[int], *, reduce: Reduce, combine: Callable[[Any, Any], Any]
) -> Any:
    """Products of each row's tokens with all columns, reduced over its tokens, ``(b, V)``; block by block.

    Parameters
    ----------
    features
        Tokens of all rows one after the other, ``(t, e)``. More than a block of them are of one row.
    weight
        ``(V, e)``.
    lengths
        Tokens of each row.
    reduce
        Which columns, and a block of products ``(rows, length, columns)`` → ``(rows, columns)``.
    combine
        Two reduced parts of one row → one.
    """
    torch = extras.load("torch", extra="models")
    tokens, columns = block(features.device)
    out: list[Any] = []
    for first in range(0, len(weight), columns):
        place = slice(first, first + columns)
        best = None
        for start in range(0, len(features), tokens):
            product = features[start : start + tokens] @ weight[place].T
            part = by_row(product, lengths if len(lengths) > 1 else [len(product)], partial(reduce, place))
            best = part if best is None else combine(best, part)
        out.append(best)
    return out[0] if len(out) == 1 else torch.cat(out, dim=1)
