"""What a model makes of rows of tokens: hidden states one row after the other, without padding, for a head to read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Head", "TokenStates"]

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class TokenStates:
    """Hidden states of the rows of one batch, ragged: a head never sees padding, so none can change its result.

    Shapes: b rows, t tokens of all of them together, d hidden size, e experts.

    Attributes
    ----------
    ids
        Tokens, tensor ``(t,)``, int64.
    layers
        States of each layer that was asked for, in that order, tensors ``(t, d)``. Layer 0 is the embeddings, layer i
        what the i-th layer gives; the last one is taken after the model's final norm.
    offsets
        Where each row starts, ``(b + 1,)``, int64.
    spans
        Where each row's own tokens begin and end, ``(b, 2)``, int64, counted as ``offsets`` are: without special
        tokens and prompt; of a text that stands twice, the second.
    router
        For each layer with experts, the router's logits, tensors ``(t, e)``; empty unless asked for.
    leads
        How many tokens the prompt of each row has on its own, with the special ones before it; 0 without prompt;
        ``(b,)``, or ``(1,)`` where all have as many.
    """

    ids: Any
    layers: tuple[Any, ...]
    offsets: NDArray[np.int64]
    spans: NDArray[np.int64]
    router: tuple[Any, ...] = ()
    leads: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def states(self) -> Any:
        """States of the last layer that was asked for, ``(t, d)``."""
        return self.layers[-1]


@runtime_checkable
class Head(Protocol[R_co]):
    """Reads the states of a batch, on the model's device, and gives one result for each row.

    It may say ``layers``, the layers it reads (the last one where it does not), and ``router = True``.
    """

    def __call__(self, batch: TokenStates, /) -> R_co: ...
