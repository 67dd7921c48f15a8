"""Mixture-of-experts models as encoders, without training: where a text is routed is a part of what it means (MoEE)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio import extras
from reperio.encoders.decoder import DecoderEncoder
from reperio.errors import InvalidInput
from reperio.models.inputs import Role
from reperio.models.language_model import LanguageModel
from reperio.models.pooling_experts import ExpertRouting
from reperio.models.states import TokenStates
from reperio.models.view import View

__all__ = ["PROMPT", "moee"]

PROMPT = 'This sentence : "{text}" means in one word:"'
"""What asks a model for one word (PromptEOL, Jiang et al., 2023): MoEE's own prompt."""

_LEAST = 1e-6  # a value that is the same for all texts stays what it is, near 0


def moee(
    model: LanguageModel | str,
    sample: Iterable[str],
    *,
    alpha: float = 1.0,
    attention: str | View = "own",
    prompts: str | Mapping[Role, str] = PROMPT,
    max_tokens: int | None = None,
) -> DecoderEncoder:
    """An encoder of a mixture-of-experts model: its last token's state and its routing weights in one vector.

    Each value is standardised by mean and deviation over a sample of texts, which are fitted here, once, and are part
    of the encoder's fingerprint: index and queries must have the same. Vectors are compared by inner product, which is
    ``cos + alpha cos``; they all have the length ``sqrt(1 + alpha)``.

    Parameters
    ----------
    model
        Mixtral, Qwen3-MoE, OLMoE, or any other whose router transformers can tell.
    sample
        Texts of the kind that will be searched, a few hundred; they are read one after the other.
    alpha
        What the routing weights count beside the state.
    attention
        As in `DecoderEncoder`.
    prompts
        A str is for both roles.
    max_tokens
        Most tokens that are read of a text.

    Returns
    -------
    DecoderEncoder
        Which can be saved as any other: its specification holds what was fitted.

    Raises
    ------
    InvalidInput
        If the sample has fewer than 2 texts.
    ConfigurationError
        If the model has no experts.
    """
    both: Mapping[Role, str] = {"query": prompts, "document": prompts} if isinstance(prompts, str) else prompts
    loaded = model if isinstance(model, LanguageModel) else LanguageModel(model)
    how: dict[str, Any] = {"attention": attention, "prompts": both, "normalize": False, "max_tokens": max_tokens}
    mean, deviation = _fitted(DecoderEncoder(loaded, pooling=_Parts(), **how), sample)
    fitted = ExpertRouting(alpha, mean=mean.tolist(), deviation=deviation.tolist())
    return DecoderEncoder(loaded, pooling=fitted, **how)


class _Parts(ExpertRouting):
    """Both parts as they are."""

    def __call__(self, batch: TokenStates, /) -> Any:
        return extras.load("torch", extra="models").cat(self.parts(batch), dim=1)


def _fitted(encoder: DecoderEncoder, sample: Iterable[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and deviation of every value, in one pass (Welford's, batch by batch)."""
    seen, mean, squares = 0, np.zeros(1), np.zeros(1)
    for encoded in encoder.encode_stream(sample, batch_size=256):
        values = encoded.embeddings.astype(np.float64)
        added, own = len(values), values.mean(axis=0)
        shift = own - mean
        squares = squares + ((values - own) ** 2).sum(axis=0) + shift**2 * seen * added / (seen + added)
        mean, seen = mean + shift * added / (seen + added), seen + added
    if seen < 2:
        raise InvalidInput(f"The sample has {seen} texts.", "Give a few hundred.")
    deviation = np.sqrt(squares / (seen - 1))
    return mean.astype(np.float32), np.maximum(deviation, _LEAST).astype(np.float32)
