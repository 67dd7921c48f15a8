"""Which runtime computes a model's vectors, and the exports that are kept for it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

from filelock import FileLock

from reperio import extras
from reperio.artifacts import disk_errors
from reperio.embeddings import Dense
from reperio.errors import ConfigurationError, MissingDependency, ReperioError, UnsupportedOperation
from reperio.models.checkpoint import model_digest
from reperio.models.inputs import Role, TextInput
from reperio.models.runtimes.exported import VERSION, ExportedModel, is_export
from reperio.models.runtimes.graphs import PACKAGES, Runtime
from reperio.models.runtimes.probe import Probe
from reperio.models.runtimes.static import StaticModel
from reperio.models.sentence import SentenceModel, load
from reperio.models.windows import Tokens

__all__ = ["EXPORTS", "DenseModel", "cache_folder", "cached_export", "open_model", "original"]

EXPORTS: tuple[Runtime, ...] = get_args(Runtime)

_SHIPPED: Mapping[Runtime, str] = {"openvino": "openvino/openvino_model.xml", "onnx": "onnx/model.onnx"}
"""Where sentence-transformers lays a graph beside the weights."""


class DenseModel(Protocol):
    """What `DenseEncoder` runs: a model on rows of tokens, whatever computes it."""

    @property
    def inputs(self) -> Mapping[Role, TextInput]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def normalized(self) -> bool: ...
    @property
    def dim(self) -> int: ...
    @property
    def batch_tokens(self) -> int: ...
    @property
    def runtime(self) -> str: ...
    @property
    def probe(self) -> Probe | None: ...
    def forward(self, rows: Sequence[Tokens], role: Role, /) -> Dense: ...
    def fields(self) -> dict[str, Any]: ...


def open_model(
    folder: Path, *, device: str | None, dtype: str, normalize: bool | None, max_tokens: int | None
) -> DenseModel:
    """The model in a folder, run by what ``device`` names.

    Raises
    ------
    ConfigurationError
        If the folder, the device and the precision do not fit together.
    MissingDependency
        If the runtime is not installed; or torch, where an export is still to be made.
    UnsupportedOperation
        If the model cannot be exported, or its export is too far from torch.
    """
    if is_export(folder):
        exported = ExportedModel(folder, dtype=dtype, normalize=normalize, max_tokens=max_tokens)
        if device not in (None, "auto", exported.runtime):
            problem = f"{folder} was exported for {exported.runtime}, and device is {device!r}."
            raise ConfigurationError(problem, "Leave device out, or give the model that it was made from.")
        return exported
    if device == "static":
        if dtype != "float32":
            raise ConfigurationError(f"A table of tokens has no {dtype} here.", "Use dtype='float32'.")
        return StaticModel(folder, normalize=normalize, max_tokens=max_tokens)
    for runtime in EXPORTS:
        if device == runtime:
            export = cached_export(folder, runtime, dtype)
            return ExportedModel(export, dtype=dtype, normalize=normalize, max_tokens=max_tokens)
    if dtype == "int8":
        raise ConfigurationError("torch has no int8 here.", "Use device='onnx', or dtype='bfloat16'.")
    model = load(folder, device=device, dtype=dtype)
    return SentenceModel(model, folder=folder, normalize=normalize, max_tokens=max_tokens)


def original(model: Any, folder: Path | None) -> SentenceModel:
    """A model as it was saved, in torch: what an export is made from and held against."""
    if folder is not None:
        model = load(folder, device="cpu", dtype="float32")
    found = SentenceModel(model, folder=folder)
    if found.dtype != "float32" or not found.on_cpu:
        problem = f"The model given computes in {found.dtype} on {model.device}."
        raise ConfigurationError(problem, "Give it in float32 on the device 'cpu'.")
    return found


def cache_folder() -> Path:
    """Where exports and measurements are kept; each can be deleted at any time."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "reperio" / "runtimes"


def cached_export(folder: Path, runtime: Runtime, dtype: str) -> Path:
    """The export of a model for a runtime, made now if it is not there: this once, torch is needed."""
    extras.load(PACKAGES[runtime], extra=runtime)
    precision = "int8" if dtype == "int8" else "float32"
    home = cache_folder()
    path = home / f"{model_digest(folder)}-{runtime}-{precision}-{VERSION}"
    if not path.exists():
        with disk_errors(home):
            home.mkdir(parents=True, exist_ok=True)
            with FileLock(home / f"{path.name}.lock"):
                if not path.exists():  # another process may have made it meanwhile
                    _make(folder, path, runtime, precision)
    return path


def _make(folder: Path, path: Path, runtime: Runtime, precision: Any) -> None:
    from reperio.models.runtimes.exporting import export

    try:
        model = original(None, folder)
    except MissingDependency as error:
        problem = f"{folder} has no export for {runtime} yet, and torch, which makes it, is not installed."
        fix = "Install reperio[models] this once; or export it elsewhere, by encoder.export(path), and give that."
        raise UnsupportedOperation(problem, fix) from error
    shipped = folder / _SHIPPED[runtime]
    if shipped.is_file() and precision == "float32":
        try:
            export(model, path, runtime=runtime, shipped=shipped)
        except ReperioError as error:
            warnings.warn(f"{shipped} is not used, and the model is exported anew: {error}", stacklevel=2)
        else:
            return
    export(model, path, runtime=runtime, dtype=precision)
