"""Poolings with weights of their own: torch modules, saved and opened as sentence-transformers does its own."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from reperio import extras
from reperio.artifacts import disk_errors, replace_bytes, replace_text
from reperio.errors import ConfigurationError, NotFound, UnsupportedOperation
from reperio.models.checkpoint import locate, tensors_digest
from reperio.models.states import TokenStates
from reperio.protocols import Spec

__all__ = ["TrainablePooling", "TrainedModule", "from_features"]

torch: Any = extras.load("torch", extra="models")

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class TrainedModule(torch.nn.Module, ABC):  # type: ignore[misc]
    """A module with parameters, of settings that are kept beside them.

    It reads `TokenStates`, as any head; and the features of a sentence-transformers model, as any module of that
    library, whose trainer trains it and whose ``save`` keeps it. That library must be told to trust this one:
    ``SentenceTransformer(folder, trust_remote_code=True)`` opens it.

    Parameters
    ----------
    settings
        What `build` takes, by name.
    folder
        Where it was saved; then its settings are read there.

    Raises
    ------
    NotFound
        If there is no such folder.
    ConfigurationError
        If the settings are out of range, or the weights are not this module's.
    """

    layers: tuple[int, ...] = (-1,)
    ends: bool = False
    names: tuple[str, ...] = ()

    def __init__(self, settings: Mapping[str, Any], folder: str | Path | None = None) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.settings = dict(settings) if folder is None else _read(type(self), Path(folder))
        self.folder = None if folder is None else Path(folder)
        missing = [name for name, value in self.settings.items() if value is None]
        if missing:
            problem = f"{type(self).__name__} was given neither {missing[0]} nor a folder."
            raise ConfigurationError(problem, f"Give {missing[0]}, or the folder that it was saved in.")
        self._build()
        if self.folder is not None:
            self.fill(_tensors(self.folder / WEIGHTS), self.folder)
        self._kept = None if self.folder is None else self._digest()
        self.eval()

    def _build(self) -> None:
        try:
            self.build(**self.settings)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:  # torch's, for a value of another type
            told = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
            problem = f"{type(self).__name__}({told}) cannot be made: {error!s:.200}"
            raise ConfigurationError(problem, "Give values of the types that it documents.") from error

    @abstractmethod
    def build(self, *args: Any, **settings: Any) -> None:
        """Make the parameters; each subclass its own."""

    @classmethod
    def understood(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings as they were saved, in this module's own words."""
        return settings

    def fill(self, weights: Mapping[str, Any], source: Path) -> None:
        """Take over weights by name, in this module's precision.

        Raises
        ------
        ConfigurationError
            Unless they are exactly this module's.
        """
        own = self.state_dict()
        for name in [*own, *weights]:
            shapes = [None if name not in some else tuple(some[name].shape) for some in (own, weights)]
            if shapes[0] != shapes[1]:
                problem = f"{source}: the weight {name} has the shape {shapes[1]}, and {shapes[0]} is wanted."
                raise ConfigurationError(problem, f"Give the weights of a {type(self).__name__} of these settings.")
        self.load_state_dict(dict(weights))

    @property
    def spec(self) -> Spec:
        """How to build this again.

        Raises
        ------
        UnsupportedOperation
            If its weights are in memory only, or have been trained since they were saved.
        """
        name = type(self).__name__
        if self.folder is None or self._kept != self._digest():
            raise UnsupportedOperation(f"A {name} in memory cannot be written down.", "Call save(folder) first.")
        return {"type": name, "folder": str(self.folder.resolve())}

    def fields(self) -> dict[str, Any]:
        """What its vectors hang on, for a fingerprint: contents, not places."""
        return {"type": type(self).__name__, **self.settings, "weights": self._digest()}

    def save(self, folder: str | Path, *args: Any, **how: Any) -> None:
        """Keep settings and weights in a folder, as sentence-transformers' modules do.

        Each file is there as it was or as it will be, never in part; the folder itself is made by that library first.

        Further arguments are those that its ``save`` gives to every module; nothing here hangs on them.
        """
        where = Path(folder)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        packed = extras.load("safetensors.torch", extra="models").save(weights, {"format": "pt"})
        told = json.dumps(self.get_config_dict(), indent=2)
        with disk_errors(where):
            where.mkdir(parents=True, exist_ok=True)
        replace_bytes(where / WEIGHTS, packed)
        replace_text(where / CONFIG, told)
        self.folder, self._kept = where, self._digest()

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", revision: str | None = None, **how: Any) -> Self:
        """Open it from a sentence-transformers model's folder, as that library asks."""
        return cls(folder=locate(model_name_or_path, revision) / subfolder)  # type: ignore[call-arg]

    def get_config_dict(self) -> dict[str, Any]:
        """The settings as they are saved, by the name that sentence-transformers has for them."""
        return dict(self.settings)

    def _digest(self) -> str:
        return tensors_digest(self.state_dict().items())


class TrainablePooling(TrainedModule):
    """A head with parameters: one vector for each text."""

    @abstractmethod
    def pool(self, batch: TokenStates) -> Any:
        """``(b, d)``; each subclass its own."""

    def forward(self, batch: TokenStates | dict[str, Any]) -> Any:
        """``(b, d)``; or the features, with a ``sentence_embedding`` among them."""
        if isinstance(batch, TokenStates):
            return self.pool(batch)
        batch["sentence_embedding"] = self.pool(from_features(batch, self.layers))
        return batch


def from_features(features: Mapping[str, Any], layers: tuple[int, ...] = (-1,)) -> TokenStates:
    """The states of a sentence-transformers batch, without its padding."""
    seen = features["attention_mask"].bool()
    lengths = seen.sum(dim=1).cpu().numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    prompt = features.get("prompt_length", 0)
    leads = np.full(len(lengths), int(prompt[0]) if torch.is_tensor(prompt) else int(prompt), dtype=np.int64)
    if layers == (-1,):
        states = (features["token_embeddings"],)
    elif "all_layer_embeddings" in features:
        states = tuple(features["all_layer_embeddings"][layer] for layer in layers)
    else:
        problem = f"The layers {layers} are read, and the model gives its last one only."
        raise ConfigurationError(
            problem, 'Make the Transformer module with config_kwargs={"output_hidden_states": True}.'
        )
    spans = np.stack([offsets[:-1] + leads, offsets[1:]], axis=1)
    return TokenStates(features["input_ids"][seen], tuple(x[seen] for x in states), offsets, spans, (), leads)


def _tensors(file: Path) -> dict[str, Any]:
    broken = extras.load("safetensors", extra="models").SafetensorError
    try:
        found: dict[str, Any] = extras.load("safetensors.torch", extra="models").load_file(file)
    except (OSError, broken) as error:
        raise ConfigurationError(f"{file} holds no weights: {error}", "Save the module again.") from error
    return found


def _read(cls: type[Any], folder: Path) -> dict[str, Any]:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise NotFound(f"{folder} holds no {name}.", f"Give a folder that a {cls.__name__} was saved in.")
    try:
        settings: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{folder / CONFIG} is no JSON: {error}", "Save the module again.") from error
    known = set(cls.names)
    if isinstance(settings, dict):
        settings = cls.understood(settings)
    if not isinstance(settings, dict) or set(settings) != known:
        problem = f"{folder / CONFIG} is not of a {cls.__name__}: it holds {settings!r}."
        raise ConfigurationError(problem, f"It wants {', '.join(sorted(known))}.")
    return settings
