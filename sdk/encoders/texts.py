"""What every encoder of texts refuses."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from inspect import currentframe
from typing import Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from reperio.errors import ReperioError, TruncationError
from reperio.models.texts import check_batch, check_texts

__all__ = ["OnTruncation", "check_batch", "check_texts", "elsewhere", "tell_cuts"]

OnTruncation: TypeAlias = Literal["warn", "error", "chunk"]
"""What happens to a text that is longer than the model reads."""

E = TypeVar("E", bound=ReperioError)


def elsewhere(error: E, places: Sequence[int]) -> E:
    """The error of an encoder that was given some of the texts, with their positions among all of them.

    Parameters
    ----------
    places
        Where each text that was given stands among all.
    """

    def place(found: re.Match[str]) -> str:
        position = int(found[1])
        return f"texts[{places[position]}]" if position < len(places) else found[0]

    return type(error)(re.sub(r"texts\[(\d+)\]", place, error.problem), error.fix)


def tell_cuts(
    policy: OnTruncation, counts: NDArray[np.int64], too_long: NDArray[np.bool_], *, limit: int | None, start: int = 0
) -> None:
    """Refuse texts that are too long, or warn whoever called this package, as the policy has it.

    Raises
    ------
    TruncationError
        For the first of them, where the policy is ``"error"``.
    """
    if policy == "error":
        first = int(too_long.argmax())
        problem = f"texts[{start + first}] has {counts[first]} tokens; the model reads {limit}."
        raise TruncationError(problem, "Split it, raise max_tokens, or use on_truncation='chunk'.")
    if policy == "warn":
        warnings.warn(
            f"{too_long.sum()} of {len(counts)} texts were cut to {limit} tokens; the longest has {counts.max()}. "
            "Use on_truncation='chunk' to lose nothing.",
            stacklevel=_outside(),
        )


def _outside() -> int:
    """How many calls back, from the one that asks, the first one outside of this package is."""
    level, frame = -1, currentframe()
    package = __name__.partition(".")[0]
    while frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    return level + 1
