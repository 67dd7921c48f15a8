"""Linear layers after a pooling, as sentence-transformers keeps them in its ``Dense`` modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from reperio.errors import ConfigurationError
from reperio.models.states import Head, TokenStates
from reperio.models.trainable import TrainedModule, torch
from reperio.protocols import Spec

__all__ = ["Projected", "Projection", "TokenProjection"]

_PLACES = ("module_input_name", "module_output_name")


class Projection(TrainedModule):
    """One linear layer and its activation, from vectors to vectors.

    Parameters
    ----------
    in_features, out_features
        Sizes before and after.
    bias
        Whether a bias is added.
    activation
        Name of a module of ``torch.nn``.
    use_residual
        Whether what went in is added again, through a linear map of its own where sizes differ.
    folder
        Where it was saved, by this class or by sentence-transformers' ``Dense``; then nothing else is given.
    """

    names = ("in_features", "out_features", "bias", "activation_function", "use_residual")

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        *,
        bias: bool = True,
        activation: str = "Identity",
        use_residual: bool = False,
        folder: str | Path | None = None,
    ) -> None:
        settings = {
            "in_features": in_features,
            "out_features": out_features,
            "bias": bias,
            "activation_function": activation,
            "use_residual": use_residual,
        }
        super().__init__(settings, folder)

    @classmethod
    def understood(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """What ``Dense`` leaves out is what it does then; it may read and write the vectors of texts alone."""
        told = {"bias": True, "activation_function": "torch.nn.modules.activation.Tanh", "use_residual": False}
        told |= settings
        if any(told.pop(place, "sentence_embedding") not in ("sentence_embedding", None) for place in _PLACES):
            raise ConfigurationError("A Dense module changes the states of tokens, not vectors.", "Use DenseEncoder.")
        return told

    def build(
        self, *, in_features: int, out_features: int, bias: bool, activation_function: str, use_residual: bool
    ) -> None:
        """The linear map, by the name that ``Dense`` has for it."""
        nn, name = torch.nn, activation_function.rpartition(".")[2]
        found = getattr(nn, name, None)
        local = activation_function == name or activation_function.startswith("torch.nn.")
        if not (local and isinstance(found, type) and issubclass(found, nn.Module)):
            problem = f"The activation is {activation_function!r}, which is no module of torch.nn."
            raise ConfigurationError(problem, "Use one of torch.nn, as Tanh, GELU or Identity.")
        self.activation = found()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        if use_residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)
        self.settings["activation_function"] = f"{found.__module__}.{found.__name__}"

    def project(self, vectors: Any) -> Any:
        """``(b, in)`` → ``(b, out)``."""
        given = vectors.to(self.linear.weight.dtype)
        out = self.activation(self.linear(given))
        if not self.settings["use_residual"]:
            return out
        return out + (self.residual(given) if hasattr(self, "residual") else given)

    def forward(self, batch: Any) -> Any:
        """Vectors; or the features of sentence-transformers, whose ``sentence_embedding`` is changed."""
        if torch.is_tensor(batch):
            return self.project(batch)
        batch["sentence_embedding"] = self.project(batch["sentence_embedding"])
        return batch


class TokenProjection(Projection):
    """The same over the states of tokens, each by itself: what a late-interaction model has after its transformer.

    Parameters are those of `Projection`.

    Examples
    --------
    >>> projection = TokenProjection.random(384, 128)
    >>> projection.dim, sum(weight.numel() for weight in projection.parameters())
    (128, 49152)
    """

    @classmethod
    def random(cls, in_features: int, out_features: int, *, seed: int = 0) -> Self:
        """Rows that are orthogonal to each other: what there is before any training."""
        if not 0 < out_features <= in_features:
            raise ConfigurationError(f"{out_features} dimensions of {in_features} are asked for.", "Use fewer.")
        drawn = torch.empty(out_features, in_features)
        torch.nn.init.orthogonal_(drawn, generator=torch.Generator().manual_seed(seed))
        return cls.of(drawn)

    @classmethod
    def of(cls, weight: Any, bias: Any = None) -> Self:
        """A layer of this weight, ``(out, in)``, and bias, ``(out,)``."""
        out = cls(weight.shape[1], weight.shape[0], bias=bias is not None)
        out.fill({"linear.weight": weight, **({} if bias is None else {"linear.bias": bias})}, Path("weight"))
        return out

    @classmethod
    def understood(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """What ``Dense`` leaves out is what it does then; whatever it is said to read, it stands after tokens here."""
        rest = {name: value for name, value in settings.items() if name not in _PLACES}
        return super().understood(rest)

    @property
    def dim(self) -> int:
        """Dimensions of its vectors."""
        return int(self.settings["out_features"])

    def forward(self, batch: Any) -> Any:
        """Vectors; or the features of sentence-transformers, whose ``token_embeddings`` are changed."""
        if torch.is_tensor(batch):
            return self.project(batch)
        batch["token_embeddings"] = self.project(batch["token_embeddings"])
        return batch

    def get_config_dict(self) -> dict[str, Any]:
        """The settings as sentence-transformers' ``Dense`` over tokens has them."""
        return {**self.settings, **dict.fromkeys(_PLACES, "token_embeddings")}


class Projected:
    """A pooling and the linear layers that follow it.

    Parameters
    ----------
    pooling
        States of tokens → vectors.
    projections
        First to last.
    """

    def __init__(self, pooling: Head[Any], projections: Sequence[Projection]) -> None:
        self.pooling = pooling
        self.projections = list(projections)
        self.layers: tuple[int, ...] = getattr(pooling, "layers", (-1,))
        self.ends = bool(getattr(pooling, "ends", False))
        self.router = bool(getattr(pooling, "router", False))

    @property
    def spec(self) -> Spec:
        """How to build this again."""
        parts = [dict(part.spec) for part in self.projections]
        return {"type": "Projected", "pooling": dict(getattr(self.pooling, "spec")), "projections": parts}  # noqa: B009

    def fields(self) -> dict[str, Any]:
        """What its vectors hang on, for a fingerprint."""
        own = getattr(self.pooling, "fields", None)
        told = own() if callable(own) else dict(getattr(self.pooling, "spec"))  # noqa: B009
        return {"pooling": told, "projections": [part.fields() for part in self.projections]}

    def to(self, where: Any) -> Projected:
        """Move its weights."""
        for part in (self.pooling, *self.projections):
            move = getattr(part, "to", None)
            if move is not None:
                move(where)
        return self

    def __call__(self, batch: TokenStates, /) -> Any:
        """``(b, d)``."""
        vectors = self.pooling(batch)
        for part in self.projections:
            vectors = part(vectors)
        return vectors
