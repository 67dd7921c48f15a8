"""States of a text's tokens → one vector: the plain ways."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from reperio import extras
from reperio.errors import ConfigurationError
from reperio.models.states import TokenStates
from reperio.protocols import Spec

__all__ = ["Pooling", "PoolingMode", "Region", "ragged", "region"]

PoolingMode: TypeAlias = Literal["cls", "mean", "weightedmean", "max", "last", "eos"]

Region: TypeAlias = Literal["text", "onward", "unprompted", "row"]
"""Which tokens of a row count.

``"text"``: the text's own. ``"onward"``: these and all that follow them, as LLM2Vec and GritLM do. ``"unprompted"``:
the same after a prompt, the whole row where there is none, as sentence-transformers does with ``include_prompt=False``.
``"row"``: all, prompt and special tokens too, as most checkpoints of BERT's family do.
"""


class Pooling:
    """One vector for each text from the states of its tokens.

    Parameters
    ----------
    mode
        ``"cls"``: the first token of the row. ``"last"``: the last, whatever it is. ``"eos"``: the last, which is
        made to be the end-of-text token, after any cut. ``"mean"``, ``"max"``: over the tokens of a region.
        ``"weightedmean"``: the same, the i-th token weighing i (SGPT, Muennighoff, 2022).
    layer
        Which layer's states: 0 the embeddings, -1 the last.
    over
        The `Region` that mean, max and weighted mean are taken over.

    Raises
    ------
    ConfigurationError
        For an unknown mode or region.
    """

    def __init__(self, mode: PoolingMode = "mean", *, layer: int = -1, over: Region = "text") -> None:
        if mode not in get_args(PoolingMode):
            raise ConfigurationError(f"pooling is {mode!r}.", f"Use one of {', '.join(get_args(PoolingMode))}.")
        if over not in get_args(Region):
            raise ConfigurationError(f"over is {over!r}.", f"Use one of {', '.join(get_args(Region))}.")
        self.mode: PoolingMode = mode
        self.layer = layer
        self.over: Region = over

    @property
    def spec(self) -> Spec:
        """How to build this again."""
        return {"type": "Pooling", "mode": self.mode, "layer": self.layer, "over": self.over}

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer that it reads."""
        return (self.layer,)

    @property
    def ends(self) -> bool:
        """Whether rows must end with the end-of-text token."""
        return self.mode == "eos"

    def __call__(self, batch: TokenStates, /) -> Any:
        """``(b, d)``; sums are taken in float32."""
        return self.of(batch.states, batch)

    def of(self, states: Any, batch: TokenStates) -> Any:
        """The same from one layer's states of a batch, ``(t, d)`` → ``(b, d)``."""
        if self.mode in ("last", "eos"):
            return states[batch.offsets[1:] - 1]
        if self.mode == "cls":
            return states[batch.offsets[:-1]]
        spans = region(batch, self.over)
        if self.mode == "weightedmean":
            return ragged(states, spans, "sum", ramp=True)
        return ragged(states, spans, "max" if self.mode == "max" else "mean")


def region(batch: TokenStates, over: Region) -> NDArray[np.int64]:
    """Where the tokens that count begin and end in each row, ``(b, 2)``."""
    if over == "text":
        return batch.spans
    starts, stops = batch.spans[:, 0], batch.offsets[1:]
    if over == "row":
        starts = batch.offsets[:-1]
    elif over == "unprompted":
        starts = batch.offsets[:-1] + batch.leads
    return np.stack([starts, stops], axis=1)


def ragged(states: Any, spans: NDArray[np.int64], reduce: str, *, ramp: bool = False) -> Any:
    """One vector for each span of tokens, ``(b, d)`` float32, for all spans at once.

    Parameters
    ----------
    states
        ``(t, d)``.
    spans
        Where each begins and ends, ``(b, 2)``.
    reduce
        ``"mean"``, ``"max"`` or ``"sum"``.
    ramp
        Whether the i-th token of a span weighs i, all of them together 1.
    """
    torch = extras.load("torch", extra="models")
    lengths = spans[:, 1] - spans[:, 0]
    firsts = np.cumsum(lengths) - lengths
    at: NDArray[np.int64] = np.arange(int(lengths.sum())) - np.repeat(firsts, lengths)  # a token's place in its span
    kept = states[torch.from_numpy(at + np.repeat(spans[:, 0], lengths)).to(states.device)].float()
    if ramp:
        weights: NDArray[np.float64] = (at + 1) / np.repeat(lengths * (lengths + 1) / 2, lengths)
        kept = kept * torch.from_numpy(weights).to(kept)[:, None]
    return torch.segment_reduce(kept, reduce, lengths=torch.from_numpy(lengths).to(states.device), axis=0)
