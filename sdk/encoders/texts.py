"""What every encoder of texts refuses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from reperio.errors import ReperioError
from reperio.models.texts import check_batch, check_texts

__all__ = ["check_batch", "check_texts", "elsewhere"]

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
