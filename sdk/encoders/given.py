"""For vectors that were made elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from reperio.embeddings import Dense
from reperio.errors import ConfigurationError, UnsupportedOperation
from reperio.protocols import Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["GivenVectors"]


class GivenVectors:
    """Stands where an encoder does, for a collection whose vectors the caller always brings.

    Parameters
    ----------
    dim
        d of the vectors.
    name
        What made them. A collection opened under another name is refused.

    Raises
    ------
    ConfigurationError
        If ``dim`` is not positive.

    Examples
    --------
    >>> GivenVectors(384, name="my service, 2026-11").fingerprint.dim
    384
    """

    def __init__(self, dim: int, *, name: str = "given") -> None:
        if dim <= 0:
            raise ConfigurationError(f"dim is {dim}.", "Use the number of columns of your vectors.")
        self.dim = dim
        self.name = name

    @property
    def spec(self) -> Spec:
        """How to build this again."""
        return {"type": "GivenVectors", "dim": self.dim, "name": self.name}

    @property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two vectors to compare: d, and the name of what made them."""
        return Fingerprint.make("dense", self.name, self.dim, made_by=self.name)

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Dense]:
        """Not possible: raises UnsupportedOperation."""
        self._refuse()

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Dense]:
        """Not possible: raises UnsupportedOperation."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        problem = f"The vectors of {self.name!r} are given, not made from text here."
        raise UnsupportedOperation(problem, f"Pass them as `embeddings=`, {self.dim} numbers for each text.")
