"""States of a text's tokens → one vector: the plain ways."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from reperio import extras
from reperio.errors import ConfigurationError
from reperio.models.states import TokenStates
from reperio.protocols import Spec

__all__ = ["Pooling", "PoolingMode", "segment_sums"]

PoolingMode: TypeAlias = Literal["cls", "mean", "weightedmean", "max", "last", "eos"]


class Pooling:
    """One vector for each text from the states of its tokens.

    Parameters
    ----------
    mode
        ``"cls"``: the first token of the row. ``"last"``: the last, whatever it is. ``"eos"``: the last, which is
        made to be the end-of-text token, after any cut. ``"mean"``, ``"max"``: over the text's own tokens, without
        prompt and special tokens. ``"weightedmean"``: the same, the i-th token weighing i (SGPT, Muennighoff, 2022).
    layer
        Which layer's states: 0 the embeddings, -1 the last.
    special
        Whether mean, max and weighted mean count special tokens and the prompt too, as most checkpoints of BERT's
        family do.

    Raises
    ------
    ConfigurationError
        For an unknown mode.
    """

    def __init__(self, mode: PoolingMode = "mean", *, layer: int = -1, special: bool = False) -> None:
        if mode not in get_args(PoolingMode):
            raise ConfigurationError(f"pooling is {mode!r}.", f"Use one of {', '.join(get_args(PoolingMode))}.")
        self.mode: PoolingMode = mode
        self.layer = layer
        self.special = special

    @property
    def spec(self) -> Spec:
        """How to build this again."""
        return {"type": "Pooling", "mode": self.mode, "layer": self.layer, "special": self.special}

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer that it reads."""
        return (self.layer,)

    @property
    def ends(self) -> bool:
        """Whether rows must end with the end-of-text token."""
        return self.mode == "eos"

    def __call__(self, batch: TokenStates, /) -> Any:
        """``(b, d)``, in the states' precision; sums are taken in float32."""
        states = batch.states
        if self.mode in ("last", "eos"):
            return states[batch.offsets[1:] - 1]
        if self.mode == "cls":
            return states[batch.offsets[:-1]]
        spans = np.stack([batch.offsets[:-1], batch.offsets[1:]], axis=1) if self.special else batch.spans
        if self.mode == "max":
            return extras.load("torch", extra="models").stack([states[a:b].amax(dim=0) for a, b in spans])
        return segment_sums(states, spans, ramp=self.mode == "weightedmean")


def segment_sums(states: Any, spans: Any, *, ramp: bool = False) -> Any:
    """Mean of each span of tokens, ``(b, d)``; with ``ramp`` the i-th token of a span weighs i.

    One product with a small matrix of weights: every span at once, and no sum that depends on its neighbours.
    """
    torch = extras.load("torch", extra="models")
    out = []
    for start, stop in spans:
        part = states[start:stop].float()
        if ramp:
            weights = torch.arange(1, stop - start + 1, device=part.device, dtype=part.dtype)
            out.append((weights / weights.sum()) @ part)
        else:
            out.append(part.mean(dim=0))
    return torch.stack(out)
