"""Token states → one weight for each word: the strongest score that any token gives it, log-saturated (SPLADE).

The weight of word v is ``log(1 + relu(max over t of logits[t, v]))``. All that comes after the product grows with it,
so that the maximum can be taken first, block by block: there is never a (batch × length × vocabulary) array.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from reperio import extras
from reperio.errors import ConfigurationError, ShapeError
from reperio.models.blockwise import block, pooled
from reperio.models.screening import Screen
from reperio.models.states import TokenStates
from reperio.models.vocabulary import VocabularyHead

__all__ = ["Activation", "Saturation", "Strength", "Weights", "check_saturation", "pruned"]

Strength: TypeAlias = Literal["max", "sum"]
Activation: TypeAlias = Literal["relu", "log1p_relu"]

Weights: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Columns, ascending, and their positive weights: one row."""

# Most weights (rows × vocabulary) that wait to be told which of them count: 32 MB.
_CELLS = 1 << 23
# Where a screen leaves more of the vocabulary than this, it does not pay.
_MOST_LEFT = 0.25


class Saturation:
    """Pools the states of each row into weights of words. A head, as `reperio.models.states.Head`, for one call.

    Parameters
    ----------
    vocabulary
        Scores words.
    pooling
        ``"max"`` over tokens; or ``"sum"``, of what each token gives after the activation.
    activation
        ``"relu"`` is log(1 + relu(x)); ``"log1p_relu"`` is log(1 + log(1 + relu(x))).
    top_n
        How many words are kept of each row, the strongest; all where None.
    screen
        Leaves out words before scores are computed in float32; results are the same.

    Raises
    ------
    ConfigurationError
        For an unknown name.

    References
    ----------
    .. [1] SPLADE: Formal et al., 2021 (sum); SPLADE v2: Formal et al., 2021 (max). The second logarithm: Geng et al.,
       2025 (arXiv 2504.14839).
    """

    def __init__(
        self,
        vocabulary: VocabularyHead,
        *,
        pooling: Strength = "max",
        activation: Activation = "relu",
        top_n: int | None = None,
        screen: Screen | None = None,
    ) -> None:
        check_saturation(pooling, activation, top_n)
        self.vocabulary = vocabulary
        self.pooling: Strength = pooling
        self.activation: Activation = activation
        self.top_n = top_n
        self._screen = screen

    def __call__(self, batch: TokenStates, /) -> list[Weights]:
        """Columns and weights of each row."""
        return list(chain.from_iterable(self._weights(features, lengths) for features, lengths in self._groups(batch)))

    def dense(self, batch: TokenStates, /) -> Any:
        """All weights, ``(b, V)``, in float32; gradients flow where torch records them."""
        torch = extras.load("torch", extra="models")
        return torch.cat([self._of_words(features, lengths) for features, lengths in self._groups(batch)])

    def _groups(self, batch: TokenStates) -> Iterator[tuple[Any, list[int]]]:
        """Features of a block of rows, one row after the other, and how many each has; a long row is alone."""
        torch = extras.load("torch", extra="models")
        spans = self.vocabulary.spans(batch)
        sizes = np.diff(spans, axis=1)[:, 0].tolist()
        most, rows = block(batch.states.device)[0], max(1, _CELLS // self.vocabulary.dim)
        start = 0
        while start < len(sizes):
            stop, tokens = start + 1, sizes[start]
            while stop < min(len(sizes), start + rows) and tokens + sizes[stop] <= most:
                tokens += sizes[stop]
                stop += 1
            states = torch.cat([batch.states[a:b] for a, b in spans[start:stop].tolist()])
            features = self.vocabulary.features(states)
            if not torch.isfinite(features).all():
                raise ShapeError("The model's states hold NaN or infinity.", "Use float32, or other weights.")
            yield features, sizes[start:stop]
            start = stop

    def _weights(self, features: Any, lengths: Sequence[int]) -> list[Weights]:
        torch = extras.load("torch", extra="models")
        if self._screen is None:
            return self._positive(self._of_words(features, lengths))
        left = self._screen(features, lengths, self.top_n if self.pooling == "max" else None)
        if float(left.float().mean()) > _MOST_LEFT:  # of the rows that follow too, most likely
            self._screen = None
            return self._weights(features, lengths)
        out: list[Weights] = []
        for part, row in zip(features.split(list(lengths)), left, strict=True):
            words = torch.nonzero(row)[:, 0]
            if not len(words):
                out.append((np.empty(0, np.int64), np.empty(0, np.float32)))
                continue
            [(columns, weights)] = self._positive(self._of_words(part, [len(part)], words))
            out.append((words.cpu().numpy()[columns], weights))
        return out

    def _of_words(self, features: Any, lengths: Sequence[int], words: Any = None) -> Any:
        """Weights of all words, or of these, ``(b, words)``."""
        torch, head = extras.load("torch", extra="models"), self.vocabulary
        weight = head.weight if words is None else head.weight[words]
        bias = None if head.bias is None else (head.bias if words is None else head.bias[words]).float()
        if self.pooling == "max":
            best = pooled(features, weight, lengths, reduce=_maximum, combine=torch.maximum).float()
            return self._saturated(best if bias is None else best + bias)

        def summed(place: slice, product: Any) -> Any:
            return self._saturated(product.float() if bias is None else product.float() + bias[place]).sum(dim=1)

        return pooled(features, weight, lengths, reduce=summed, combine=torch.add)

    def _saturated(self, scores: Any) -> Any:
        weights = self.vocabulary.capped(scores).relu().log1p()
        return weights.log1p() if self.activation == "log1p_relu" else weights

    def _positive(self, weights: Any) -> list[Weights]:
        out: list[Weights] = []
        for row in weights.cpu().numpy():
            columns = np.flatnonzero(row)
            out.append(pruned((columns, row[columns]), self.top_n))
        return out


def check_saturation(pooling: str | None, activation: str | None, top_n: int | None = None) -> None:
    """Refuse settings out of range; None is for not said.

    Raises
    ------
    ConfigurationError
    """
    for what, value, known in (("pooling", pooling, Strength), ("activation", activation, Activation)):
        if value is not None and value not in get_args(known):
            raise ConfigurationError(f"{what} is {value!r}.", f"Use one of {', '.join(get_args(known))}.")
    if top_n is not None and top_n < 1:
        raise ConfigurationError(f"top_n is {top_n}.", "Use 1 or more, or None to keep all.")


def pruned(row: Weights, top_n: int | None) -> Weights:
    """The strongest ``top_n`` of a row, all where None; of equal ones, the lower column."""
    columns, weights = row
    if top_n is None or len(columns) <= top_n:
        return row
    kept = np.sort(np.argsort(-weights, kind="stable")[:top_n])
    return columns[kept], weights[kept]


def _maximum(place: slice, product: Any) -> Any:
    return product.amax(dim=1)
