"""Which tokens a token may look at: causal, bidirectional, the last layers only, the text twice, summary tokens.

A mode is a word: ``"causal"``, ``"bidirectional"``, ``"echo"``, ``"last-2"``, ``"summary"``; ``"own"`` is what the
checkpoint's configuration says.

>>> AttentionMode.parse("last-2")
AttentionMode(name='last-2', both_ways=2)
>>> AttentionMode.parse("bidirectional").sees_ahead(layer=0, layers=12)
True
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from inspect import signature
from typing import Any, Self

import numpy as np

from reperio import extras
from reperio.errors import ConfigurationError, UnsupportedOperation

__all__ = ["AttentionMode", "apply", "summary_mask"]

_ALL = -1
_FIX = "Use own, causal, bidirectional, echo, summary, or last-K for the last K layers."


@dataclass(frozen=True, slots=True)
class AttentionMode:
    """One way for tokens to look at each other.

    Attributes
    ----------
    name
        The word for it.
    both_ways
        How many layers, counted from the last, look ahead as well as back; -1 for all.
    """

    name: str
    both_ways: int = 0

    @classmethod
    def parse(cls, name: str) -> Self:
        """The mode of this name.

        Raises
        ------
        ConfigurationError
            If there is none.
        """
        if name in ("own", "causal", "echo", "summary"):
            return cls(name)
        if name == "bidirectional":
            return cls(name, _ALL)
        found = re.fullmatch(r"last-([1-9]\d*)", name)
        if found is None:
            raise ConfigurationError(f"attention is {name!r}.", _FIX)
        return cls(name, int(found[1]))

    def sees_ahead(self, layer: int, layers: int) -> bool:
        """Whether the tokens of a layer, counted from 0, look at those after them."""
        return self.both_ways == _ALL or layer >= layers - self.both_ways


def apply(mode: AttentionMode, model: Any, layers: list[Any]) -> None:
    """Switch a model of one's own to a mode, by its configuration and hooks of its layers alone.

    Parameters
    ----------
    mode
        What to switch to.
    model
        A transformers model; ``config.is_causal`` is the one switch that all of them honour.
    layers
        Its layers, first to last.

    Raises
    ------
    ConfigurationError
        If more layers are to look ahead than the model has.
    """
    if mode.both_ways > len(layers):
        raise ConfigurationError(
            f"attention is {mode.name!r}, and the model has {len(layers)} layers.", "Use fewer, or bidirectional."
        )
    if mode.name == "own":
        return
    model.config.is_causal = mode.both_ways != _ALL
    first = len(layers) - max(0, mode.both_ways)
    for index in range(first, len(layers)):
        hook = _BothWays(model.config, window=_window(model.config, index))
        layers[index].register_forward_pre_hook(hook, with_kwargs=True)


def _window(config: Any, layer: int) -> bool:
    """Whether a layer has a sliding window; tells it as transformers' models do."""
    types = getattr(config, "layer_types", None)
    if types is not None:
        return bool(types[layer] == "sliding_attention")
    return getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)


class _BothWays:
    """Gives one layer a mask that looks both ways, whatever the other layers have (BeLLM, Li and Li, 2024)."""

    def __init__(self, config: Any, *, window: bool) -> None:
        self._config = config
        self._name = "create_bidirectional_sliding_window_mask" if window else "create_bidirectional_mask"

    def __call__(self, layer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        if "segments" in named:  # packed rows: their attention knows the layer
            return given, named
        make = getattr(extras.load("transformers.masking_utils", extra="models"), self._name)
        states = given[0] if given else named["hidden_states"]
        if "padding" not in named:
            problem = "This architecture does not tell its layers of padding."
            raise UnsupportedOperation(problem, "Use causal or bidirectional attention.")
        mask = make(config=self._config, inputs_embeds=states, attention_mask=named["padding"])
        place = list(signature(layer.forward).parameters).index("attention_mask")
        if place < len(given):  # some architectures pass it by position
            return (*given[:place], mask, *given[place + 1 :]), {**named, "is_causal": False}
        return given, {**named, "attention_mask": mask, "is_causal": False}


def summary_mask(lengths: Any, starts: Any, stops: Any, *, width: int) -> Any:
    """The mask of GEM (Zhang et al., 2025): what comes after the summary tokens sees the text through them alone.

    Parameters
    ----------
    lengths
        Tokens of each row, ``(b,)``.
    starts, stops
        Where each row's summary tokens begin and end, ``(b,)``.
    width
        Length that the rows are padded to.

    Returns
    -------
    Tensor
        ``(b, 1, width, width)``, bool, True where a token (third axis) may look at another (fourth). Causal; a token
        after the summary does not look at what stands before it.
    """
    torch = extras.load("torch", extra="models")
    at = np.arange(width)
    starts, stops, lengths = (np.asarray(x)[:, None, None] for x in (starts, stops, lengths))
    seen = (at[None, None, :] <= at[None, :, None]) & (at[None, None, :] < lengths)
    hidden = (at[None, :, None] >= stops) & (at[None, None, :] < starts)
    alone = np.eye(width, dtype=np.bool_)[None]  # padding looks at itself: a row of nothing gives NaN
    return torch.from_numpy((seen & ~hidden) | alone)[:, None]
