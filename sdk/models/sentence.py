"""A sentence-transformers model: loaded safely, run on rows of tokens, told apart by content."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from reperio import extras
from reperio.embeddings import Dense, check_dense
from reperio.errors import ConfigurationError
from reperio.models.checkpoint import tensors_digest, tokenizer_digest, weight_files, weights_digest
from reperio.models.inputs import ROLES, Role, TextInput, prompt_for, text_input
from reperio.models.loading import no_progress_bar
from reperio.models.windows import Tokens

__all__ = ["SentenceModel", "SentenceTransformerLike", "load"]

# On a processor a batch should stay in its cache; a GPU wants to be filled (`python -m benchmarks encode`).
CPU_BATCH_TOKENS = 2048
GPU_BATCH_TOKENS = 65536


@runtime_checkable
class SentenceTransformerLike(Protocol):
    """A ``sentence_transformers.SentenceTransformer``, named without importing it."""

    def get_embedding_dimension(self) -> int | None: ...
    def get_model_kwargs(self) -> list[str]: ...


class SentenceModel:
    """A SentenceTransformer that runs on rows of tokens.

    Parameters
    ----------
    model
        The SentenceTransformer. It is not changed.
    folder
        Where it was loaded from; None for one that was made in memory.
    normalize
        True gives rows of length 1, False leaves out the model's own last normalisation, None changes nothing.
    max_tokens
        Most tokens it reads of a text; as it was saved where None.

    Attributes
    ----------
    inputs
        How texts of each role become rows of tokens.
    dtype
        Precision that it computes in.
    normalized
        Whether rows have length 1.
    dim
        d.
    """

    def __init__(
        self, model: Any, *, folder: Path | None = None, normalize: bool | None = None, max_tokens: int | None = None
    ) -> None:
        self._torch = extras.load("torch", extra="models")
        self._model = model if normalize is not False else _without_normalization(model)
        self._folder = folder
        self._normalize = bool(normalize)
        self.inputs: Mapping[Role, TextInput] = {role: text_input(model, role, max_tokens) for role in ROLES}
        self.dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        self.normalized = self._normalize or (_ends_normalized(self._model) and model.truncate_dim is None)
        [row] = self.inputs["query"].tokenize(["a"])
        self.dim = self.forward([self.inputs["query"].frame.cut(row)], "query").shape[1]

    runtime, probe = "torch", None

    @property
    def batch_tokens(self) -> int:
        """Most tokens in a batch, where nobody says."""
        return CPU_BATCH_TOKENS if self.on_cpu else GPU_BATCH_TOKENS

    @property
    def modules(self) -> Sequence[Any]:
        """What its texts go through, as sentence-transformers has it."""
        return list(self._model)

    @property
    def truncate_dim(self) -> int | None:
        """How many of a vector's components are kept; all where None."""
        return None if self._model.truncate_dim is None else int(self._model.truncate_dim)

    @property
    def on_cpu(self) -> bool:
        """Whether it runs on the processor itself."""
        return bool(self._model.device.type == "cpu")

    def forward(self, rows: Sequence[Tokens], role: Role) -> Dense:
        """Embeddings of rows that are short enough, ``(n, d)``, float32.

        Raises
        ------
        ShapeError
            If the model gives NaN or infinity, as half precision may.
        """
        torch, model = self._torch, self._model
        if model.training:
            model.eval()
        with torch.inference_mode():
            features = self.inputs[role].features(rows)
            moved = {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in features.items()}
            vectors = model(moved, task=role)["sentence_embedding"][:, : model.truncate_dim]
            if self._normalize:
                vectors = torch.nn.functional.normalize(vectors, p=2, dim=1)
            out = vectors.float().cpu().numpy()
        return check_dense(out, what="The model's output", rows=len(rows))

    def fields(self) -> dict[str, Any]:
        """Everything that its numbers hang on, for a fingerprint; nothing of where it lies."""
        limits = {role: self.inputs[role].frame.limit for role in ROLES}
        return {
            **self._contents(),
            "modules": [type(module).__name__ for module in self._model],
            "pooling": [_settings(module) for module in self._model.modules() if hasattr(module, "pooling_mode")],
            "prompts": {role: prompt_for(self._model, role) for role in ROLES},
            "normalized": self.normalized,
            "dtype": self.dtype,
            "max_tokens": limits["document"] if len(set(limits.values())) == 1 else limits,
        }

    def _contents(self) -> dict[str, str]:
        if self._folder is not None:
            return {"weights": weights_digest(self._folder), "tokenizer": tokenizer_digest(self._folder)}
        tokenizers = "\n".join(self.inputs[role].definition() for role in ROLES)
        digest = hashlib.sha256(tokenizers.encode()).hexdigest()
        return {"weights": tensors_digest(self._model.state_dict().items()), "tokenizer": f"memory {digest[:32]}"}


def load(folder: Path, *, device: str | None, dtype: str) -> Any:
    """A SentenceTransformer from a folder: safetensors only, no code of the model's own, no network.

    Raises
    ------
    ConfigurationError
        If sentence-transformers cannot load it; the message has its reason.
    """
    weight_files(folder)  # refuses pickles before anything is loaded
    torch, library = extras.load("torch", extra="models"), extras.load("sentence_transformers", extra="models")
    settings = {"dtype": getattr(torch, dtype), "use_safetensors": True}
    broken = extras.load("safetensors", extra="models").SafetensorError
    try:
        with no_progress_bar():
            model = library.SentenceTransformer(
                str(folder), device=device, trust_remote_code=False, local_files_only=True, model_kwargs=settings
            )
            return model.to(getattr(torch, dtype))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AssertionError, broken) as error:
        where = "" if device is None else f" on the device {device!r}"
        problem = f"{folder} could not be loaded{where}: {error}"
        raise ConfigurationError(problem, "Check the folder, and that the model needs no code of its own.") from error


def _ends_normalized(model: Any) -> bool:
    return isinstance(model[-1], extras.load("sentence_transformers.base.modules", extra="models").Normalize)


def _without_normalization(model: Any) -> Any:
    """The same modules, weights shared, up to the last one that is no normalisation."""
    if not _ends_normalized(model):
        return model
    modules = OrderedDict(model.named_children())
    modules.popitem()
    shorter = type(model)(
        modules=modules,
        device=str(model.device),
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
        truncate_dim=model.truncate_dim,
    )
    shorter.module_kwargs = model.module_kwargs
    return shorter


def _settings(pooling: Any) -> dict[str, Any]:
    return {"mode": pooling.pooling_mode, "prompt": pooling.include_prompt}
