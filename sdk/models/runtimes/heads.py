"""What sentence-transformers' modules do after the transformer, in numpy: pooling, dense layers, normalisation.

A head is a list of steps as JSON, and the weights that they name; `describe` reads both off a model, `apply` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense
from reperio.errors import UnsupportedOperation

__all__ = ["Weights", "apply", "describe", "normalized"]

Weights = Mapping[str, NDArray[np.float32]]
Mask = NDArray[np.int64]
States = NDArray[np.float32]

_MODES = {"cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"}


_ACTIVATIONS: dict[str, Callable[[Dense], Dense]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: np.reciprocal(1 + np.exp(-x), dtype=np.float32),
}


def describe(modules: Sequence[Any]) -> tuple[list[dict[str, Any]], dict[str, NDArray[np.float32]]]:
    """Steps and weights of the modules after the transformer.

    Raises
    ------
    UnsupportedOperation
        For a module, a pooling or an activation that has no twin here.
    """
    steps: list[dict[str, Any]] = []
    weights: dict[str, NDArray[np.float32]] = {}
    for number, module in enumerate(modules):
        kind = type(module).__name__
        if kind not in _DESCRIBED:
            raise _unsupported(f"has a module {kind}")
        steps.append({"type": kind, **_DESCRIBED[kind](module)})
        if kind in ("Dense", "LayerNorm"):
            for name, tensor in module.state_dict().items():
                weights[f"{number}.{name}"] = tensor.detach().float().cpu().numpy()
    if not steps or steps[0]["type"] != "Pooling" or any(step["type"] == "Pooling" for step in steps[1:]):
        raise _unsupported(f"has the modules {[step['type'] for step in steps]} after its transformer")
    return steps, weights


def apply(
    steps: Sequence[Mapping[str, Any]], weights: Weights, states: States, mask: Mask, *, prompt: int = 0
) -> Dense:
    """Vectors ``(n, d)`` of token states ``(n, t, h)``.

    Parameters
    ----------
    mask
        1 where there is a token, ``(n, t)``.
    prompt
        Tokens at the beginning that a pooling without the prompt leaves out.
    """
    vectors = _pooled(steps[0], states, mask, prompt)
    for number, step in enumerate(steps[1:], start=1):
        own = {name.partition(".")[2]: value for name, value in weights.items() if name.startswith(f"{number}.")}
        vectors = _STEPS[step["type"]](step, own, vectors)
    return np.ascontiguousarray(vectors, dtype=np.float32)


def normalized(vectors: Dense) -> Dense:
    """The rows scaled to length 1; zeros stay."""
    out: Dense = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    return out


def _pooled(step: Mapping[str, Any], states: States, mask: Mask, prompt: int) -> Dense:
    starts = mask.argmax(axis=1)[:, None]  # of the text: behind padding on the left
    places = np.broadcast_to(np.arange(mask.shape[1], dtype=np.int64), mask.shape) - starts
    kept: Mask = mask if step["include_prompt"] else mask * (places >= prompt)
    rows, parts = np.arange(len(states)), list[Dense]()
    some: NDArray[np.bool_] = np.any(kept, axis=1)
    for mode in step["modes"]:
        if mode == "cls":
            parts.append(states[rows, kept.argmax(axis=1)])
        elif mode == "lasttoken":
            last = mask.shape[1] - 1 - kept[:, ::-1].argmax(axis=1)
            # Where the prompt leaves nothing, the library takes the first place, and its mask makes it zero.
            parts.append(states[rows, np.where(some, last, 0)] * some[:, None])
        elif mode == "max":
            parts.append(np.where(kept[..., None] != 0, states, -np.inf).max(axis=1))
        else:
            parts.append(_mean(mode, states, kept, places))
    return np.concatenate(parts, axis=1)


def _mean(mode: str, states: States, kept: Mask, places: NDArray[np.int64]) -> Dense:
    shares = (kept * (places + 1) if mode == "weightedmean" else kept).astype(np.float32)
    # One product a row: quicker than a product with the mask and a sum, and no array of the size of the states.
    sums = np.matmul(shares[:, None], states)[:, 0]
    total = np.maximum(shares.sum(axis=1, keepdims=True), 1e-9)
    out: Dense = sums / (np.sqrt(total) if mode == "mean_sqrt_len_tokens" else total)
    return out


def _dense(step: Mapping[str, Any], weights: Weights, x: Dense) -> Dense:
    out = x @ weights["linear.weight"].T + weights.get("linear.bias", np.float32(0))
    out = _ACTIVATIONS[step["activation"]](out)
    if step["residual"]:
        out = out + (x @ weights["residual.weight"].T if "residual.weight" in weights else x)
    return out


def _normalized(step: Mapping[str, Any], weights: Weights, x: Dense) -> Dense:
    return normalized(x)


def _layer_norm(step: Mapping[str, Any], weights: Weights, x: Dense) -> Dense:
    centred = x - x.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + step["eps"])
    out: Dense = scaled * weights["norm.weight"] + weights["norm.bias"]
    return out


_STEPS: dict[str, Callable[[Mapping[str, Any], Weights, Dense], Dense]] = {
    "Dense": _dense,
    "Dropout": lambda step, weights, x: x,
    "LayerNorm": _layer_norm,
    "Normalize": _normalized,
}


def _describe_pooling(module: Any) -> dict[str, Any]:
    modes = [module.pooling_mode] if isinstance(module.pooling_mode, str) else list(module.pooling_mode)
    if strange := [mode for mode in modes if mode not in _MODES]:
        raise _unsupported(f"pools by {strange[0]!r}")
    return {"modes": modes, "include_prompt": bool(module.include_prompt)}


def _describe_dense(module: Any) -> dict[str, Any]:
    activation = type(module.activation_function).__name__
    if activation not in _ACTIVATIONS:
        raise _unsupported(f"has a Dense with the activation {module.activation_function}")
    names = {module.module_input_name, module.module_output_name}
    if names != {"sentence_embedding"}:
        raise _unsupported(f"has a Dense from {module.module_input_name!r} to {module.module_output_name!r}")
    return {"activation": activation, "residual": bool(getattr(module, "use_residual", False))}


def _describe_normalize(module: Any) -> dict[str, Any]:
    if {module.module_input_name, module.module_output_name} != {"sentence_embedding"}:
        raise _unsupported("normalises something else than its vectors")
    return {}


_DESCRIBED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "Dense": _describe_dense,
    "Dropout": lambda module: {},
    "LayerNorm": lambda module: {"eps": float(module.norm.eps)},
    "Normalize": _describe_normalize,
    "Pooling": _describe_pooling,
}


def _unsupported(how: str) -> UnsupportedOperation:
    return UnsupportedOperation(f"The model {how}, which runs in torch only.", "Leave device out, or name a torch one.")
