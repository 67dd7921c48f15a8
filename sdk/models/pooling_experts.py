"""Which experts a text was sent to, as a part of its vector (MoEE)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from reperio import extras
from reperio.errors import ConfigurationError
from reperio.models.states import TokenStates
from reperio.protocols import Spec

__all__ = ["ExpertRouting"]


class ExpertRouting:
    """State and routing weights of the last token: one vector, whose inner product is a weighted sum of two cosines.

    The routing weights are the softmax of the router's logits in each layer, one layer after the other. With h and r
    the two parts, a vector is ``[h / |h| ; sqrt(alpha) r / |r|]``, so that the inner product of two is
    ``cos(h, h') + alpha cos(r, r')``, which any index of inner products serves. Both parts may be standardised by means
    and deviations that were fitted once (`reperio.encoders.experts.moee`); the paper's own code takes them from each
    batch, and so a text's vector from its neighbours.

    Parameters
    ----------
    alpha
        What the routing weights count beside the state; 0 leaves them out.
    mean, deviation
        Of both parts, ``(d + layers × experts,)``; nothing is standardised where None.

    Raises
    ------
    ConfigurationError
        If ``alpha`` is negative, or one of the two is given without the other.

    References
    ----------
    .. [1] Your Mixture-of-Experts LLM Is Secretly an Embedding Model For Free. Li and Zhou, 2024.
    """

    layers = (-1,)
    router = True

    def __init__(
        self, alpha: float = 1.0, *, mean: Sequence[float] | None = None, deviation: Sequence[float] | None = None
    ) -> None:
        if not 0 <= alpha < float("inf"):
            raise ConfigurationError(f"alpha is {alpha}.", "Use 0 or more; 1 is usual.")
        if (mean is None) != (deviation is None) or (mean is not None and len(mean) != len(deviation or ())):
            raise ConfigurationError("mean and deviation are not of one length.", "Fit both, with moee().")
        self.alpha = alpha
        self._mean = None if mean is None else np.asarray(mean, dtype=np.float32)
        self._deviation = None if deviation is None else np.asarray(deviation, dtype=np.float32)

    @property
    def spec(self) -> Spec:
        """How to build this again."""
        fitted = {"mean": self._mean, "deviation": self._deviation}
        told = {name: None if values is None else values.tolist() for name, values in fitted.items()}
        return {"type": "ExpertRouting", "alpha": self.alpha, **told}

    def fields(self) -> dict[str, Any]:
        """What its vectors hang on, for a fingerprint."""
        known = [x.tobytes() for x in (self._mean, self._deviation) if x is not None]
        return {
            "type": "ExpertRouting",
            "alpha": self.alpha,
            "fitted": hashlib.sha256(b"".join(known)).hexdigest()[:32],
        }

    def parts(self, batch: TokenStates) -> tuple[Any, Any]:
        """State ``(b, d)`` and routing weights ``(b, layers × experts)`` of the last token, as they are."""
        torch = extras.load("torch", extra="models")
        last = batch.offsets[1:] - 1
        routed = [torch.softmax(logits[last].float(), dim=-1) for logits in batch.router]
        return batch.states[last].float(), torch.cat(routed, dim=-1)

    def __call__(self, batch: TokenStates, /) -> Any:
        """``(b, d + layers × experts)``."""
        torch = extras.load("torch", extra="models")
        state, routing = self.parts(batch)
        if self._mean is not None and self._deviation is not None:
            both = torch.cat([state, routing], dim=1)
            if both.shape[1] != len(self._mean):
                problem = f"mean and deviation have {len(self._mean)} values, and vectors {both.shape[1]}."
                raise ConfigurationError(problem, "Fit them on this model.")
            mean, deviation = (torch.from_numpy(x).to(both) for x in (self._mean, self._deviation))
            state, routing = ((both - mean) / deviation).split([state.shape[1], routing.shape[1]], dim=1)
        scaled = [torch.nn.functional.normalize(part, dim=1) for part in (state, routing)]
        return torch.cat([scaled[0], self.alpha**0.5 * scaled[1]], dim=1)
