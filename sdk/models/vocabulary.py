"""The head that turns a token's state into a score for each word of the vocabulary, taken out of any model.

A head is features, then one product: ``logits = cap(features(h) @ weight.T + bias)``. Apart, the product can be taken
for a few words, or block by block, and no (tokens × vocabulary) array is ever there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from reperio import extras
from reperio.errors import ConfigurationError, UnsupportedOperation
from reperio.models.probe import TOLERANCES
from reperio.models.states import TokenStates
from reperio.models.view import ModelView, sharing_copy

__all__ = ["VocabularyHead", "word"]

_FIX = "Use a model with a masked-language or causal-language head."


class VocabularyHead:
    """Scores of all words from the states of tokens.

    Parameters
    ----------
    features
        States ``(t, d)`` → what is multiplied, ``(t, e)``.
    weight
        One row for each word, tensor ``(V, e)``.
    bias
        Tensor ``(V,)``, or None.
    cap
        Where logits level off, ``cap * tanh(logits / cap)``; None where they do not.
    shifted
        Whether the state of a token scores the token after it, as in every decoder.
    """

    def __init__(
        self,
        features: Callable[[Any], Any],
        weight: Any,
        bias: Any = None,
        *,
        cap: float | None = None,
        shifted: bool = False,
    ) -> None:
        self.features = features
        self.weight = weight
        self.bias = bias
        self.cap = cap
        self.shifted = shifted

    @classmethod
    def of(cls, view: ModelView) -> Self:
        """The head of a model, proved equal to the model's own on a few states.

        Raises
        ------
        ConfigurationError
            If the model has no such head, or its checkpoint lacks the weights.
        UnsupportedOperation
            If the model does more with its features than multiply, add and cap.
        """
        model, linear = view.model, view.model.get_output_embeddings()
        name = type(model).__name__
        if linear is None or not hasattr(linear, "weight"):
            raise ConfigurationError(f"{name} has no head that scores the vocabulary.", _FIX)
        lacking = [key for key in getattr(model, "reperio_lacks", ()) if "pooler" not in key]
        if lacking:
            problem = (
                f"The checkpoint has no weights for the head that scores the vocabulary: {lacking[0]} is not in it."
            )
            raise ConfigurationError(problem, "Use a checkpoint that was saved with its head.")
        shifted = not name.endswith("ForMaskedLM")
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        found = cls(
            _unchanged if shifted else _features(model, linear),
            linear.weight,
            getattr(linear, "bias", None),
            cap=cap,
            shifted=shifted,
        )
        found._prove(model)
        return found

    @property
    def dim(self) -> int:
        """V."""
        return int(self.weight.shape[0])

    def capped(self, logits: Any) -> Any:
        """What the model makes of a product."""
        if self.cap is None:
            return logits
        return self.cap * extras.load("torch", extra="models").tanh(logits / self.cap)

    def logits(self, states: Any) -> Any:
        """States ``(t, d)`` → scores ``(t, V)``: everything at once, which is for a few tokens only."""
        product = self.features(states) @ self.weight.T
        return self.capped(product if self.bias is None else product + self.bias)

    def spans(self, batch: TokenStates) -> NDArray[np.int64]:
        """Which tokens' states are read, ``(b, 2)``.

        Of a masked-language head, the whole row, special tokens among them, as such models are trained. Of a decoder,
        those that score the text's own tokens: each stands one before the token that it scores (LENS, Lei et al.,
        2025), so that the last one, which scores what is not there, is left out.
        """
        whole = np.stack([batch.offsets[:-1], batch.offsets[1:]], axis=1)
        if not self.shifted:
            return whole
        starts = np.maximum(batch.spans[:, 0] - 1, whole[:, 0])
        stops = np.maximum(batch.spans[:, 1] - 1, starts + 1)  # one token with nothing before it is read itself
        return np.stack([starts, stops], axis=1)

    def _prove(self, model: Any) -> None:
        torch = extras.load("torch", extra="models")
        size = int(model.base_model.config.hidden_size)
        states = torch.from_numpy(np.random.default_rng(0).normal(size=(5, size))).to(self.weight)
        whole = _headed(model)
        with torch.inference_mode():
            wanted = whole(inputs_embeds=states[None]).logits[0].float()
            given = self.logits(states).float()
        tolerance = TOLERANCES.get(str(self.weight.dtype).removeprefix("torch."), 6e-2)
        if given.shape != wanted.shape or not (given - wanted).abs().max() <= tolerance * wanted.abs().max():
            problem = f"The head of {type(model).__name__} is no product of features and words."
            raise UnsupportedOperation(problem, "Use another model, or another adapter.")


def _unchanged(states: Any) -> Any:
    return states


def _headed(model: Any) -> Any:
    """The model without what comes before its head: states go in as ``inputs_embeds``."""
    out = sharing_copy(model)
    given = extras.load("transformers.modeling_outputs", extra="models").MoeModelOutputWithPast  # every field there is

    def passed(*_: Any, inputs_embeds: Any = None, **__: Any) -> Any:
        return given(last_hidden_state=inputs_embeds)

    out.base_model.forward = passed
    return out


def _features(model: Any, linear: Any) -> Callable[[Any], Any]:
    """What a masked-language head does before its product, whatever the architecture."""
    headed = _headed(model)
    name = next(name for name, part in model.named_modules() if part is linear)
    headed.get_submodule(name).forward = _unchanged
    return lambda states: headed(inputs_embeds=states[None]).logits[0]


def word(tokenizer: Any, token: int) -> str:
    """A token as people read it; as the tokenizer keeps it where it is part of a character, or a space."""
    plain = str(tokenizer.decode([token])).strip()
    return plain if plain and "\N{REPLACEMENT CHARACTER}" not in plain else str(tokenizer.convert_ids_to_tokens(token))
