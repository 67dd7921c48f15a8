"""Two short calls that prove what a model does with the tokens around a token, for this very model, or refuse it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reperio.errors import UnsupportedOperation
from reperio.models.attention import AttentionMode
from reperio.models.rows import Row
from reperio.models.states import TokenStates

__all__ = ["NEAR", "TOLERANCES", "Probe", "probe"]

TOLERANCES = {"float32": 1e-4, "float16": 3e-2, "bfloat16": 6e-2, "float64": 1e-9}
"""How far states may differ between one way to batch rows and another, relative to the largest; by precision."""

_LENGTH = 9
NEAR = 256
"""Windows up to this many tokens are probed beyond their edge."""

Run = Callable[[Sequence[Row]], TokenStates]


@dataclass(frozen=True, slots=True)
class Probe:
    """What was seen.

    Attributes
    ----------
    ahead
        Whether a token looks at those after it, in any layer.
    padding
        Largest relative difference that padding made.
    packing
        Largest relative difference that rows beside it in a pack made; None where the model cannot be packed.
    why_padded
        Why not.
    """

    ahead: bool
    padding: float
    packing: float | None = None
    why_padded: str = ""


def probe(
    mode: AttentionMode,
    padded: Run,
    packed: Run | None,
    *,
    vocabulary: Sequence[int],
    dtype: str,
    window: int | None = None,
) -> Probe:
    """Run a few tokens alone, with another last token, beside a longer row, and packed.

    Parameters
    ----------
    mode
        What the model has been switched to.
    padded, packed
        Run rows in a padded batch, and in a pack; with the layers before those that look both ways first.
    vocabulary
        Ids of ordinary tokens.
    dtype
        Precision that the model computes in.
    window
        How far its layers look, where they have a sliding window.

    Raises
    ------
    UnsupportedOperation
        If a token looks where it should not, or not where it should; or padding changes a state.
    """
    tolerance = TOLERANCES.get(dtype, 6e-2)
    length = _LENGTH if window is None else max(3, min(_LENGTH, window))
    # Where a window is short, the longer row shows what becomes of a token at its edge.
    most = 2 * (length if window is None or window > NEAR else window) + 1
    ids = np.random.default_rng(0).choice(np.array(vocabulary), size=most + 2).astype(np.int32)
    row, longer = _row(ids[:length]), _row(ids)
    other = ids[:length].copy()
    other[-1] = next(token for token in vocabulary if token not in (other[-1], other[0]))
    try:
        alone, changed = padded([row]), padded([_row(other)])
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
        problem = f"The model does not run on rows of tokens: {type(error).__name__}: {error}."
        raise UnsupportedOperation(problem, "Use a text model of transformers with one stack of layers.") from error
    if not all(bool(x.isfinite().all()) for x in alone.layers):
        fix = "Look for weights that are NaN, in the model or its adapter; or use float32."
        raise UnsupportedOperation("The model's states are NaN or infinite.", fix)
    moved = [_far(a[0], b[0]) > tolerance / 10 for a, b in zip(alone.layers, changed.layers, strict=True)]
    _check_sight(mode, moved)
    beside = padded([row, longer])
    padding = max(_far(a, b[:length]) for a, b in zip(alone.layers, beside.layers, strict=True))
    if not padding <= tolerance:
        problem = f"Padding changes this model's states by {padding:.1g} under attention {mode.name!r}."
        raise UnsupportedOperation(problem, "Use another attention, or kernel='eager'.")
    found = Probe(moved[-1], padding)
    if packed is None:
        return found
    try:
        pack = packed([longer, row])
        apart = ((x[length:], x[:length]) for x in beside.layers)
        wanted = [part for parts in apart for part in parts]
        found_in = [part for x in pack.layers for part in (x[: len(longer)], x[len(longer) :])]
        packing = max(_far(a, b) for a, b in zip(wanted, found_in, strict=True))
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
        return Probe(moved[-1], padding, None, f"{type(error).__name__}: {error}")
    if not packing <= tolerance:
        return Probe(moved[-1], padding, None, f"rows in a pack change each other by {packing:.1g}")
    return Probe(moved[-1], padding, packing)


def _row(ids: Any) -> Row:
    return Row(ids, 0, len(ids))


def _far(a: Any, b: Any) -> float:
    """Largest difference, relative to the largest value; NaN where there is one."""
    return float((a.float() - b.float()).abs().max() / a.float().abs().max())


def _check_sight(mode: AttentionMode, moved: Sequence[bool]) -> None:
    """Whether the first token reacts to the last one exactly where it should."""
    if mode.name == "own":
        return
    if mode.both_ways and not moved[-1]:
        problem = f"Under attention {mode.name!r} this model's first token does not see the last one."
        raise UnsupportedOperation(problem, "Its architecture ignores config.is_causal: use causal or echo.")
    if (not mode.both_ways and moved[-1]) or (mode.both_ways > 0 and moved[0]):
        problem = f"Under attention {mode.name!r} this model's first token sees the last one where it should not."
        raise UnsupportedOperation(problem, "Use attention='own' or 'bidirectional'.")
