"""Which runtime is the fastest on this machine: measured once, and kept."""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from reperio.artifacts import disk_errors, replace_text, sealed, unsealed
from reperio.errors import ConfigurationError, MissingDependency, UnsupportedOperation
from reperio.models.batching import token_batches
from reperio.models.checkpoint import model_digest
from reperio.models.runtimes.graphs import threads
from reperio.models.runtimes.opening import EXPORTS, DenseModel, cache_folder, open_model
from reperio.models.runtimes.probe import TEXTS, Probe

__all__ = ["Measured", "RuntimeReport", "measured"]

_ROUNDS = 3
_REPEATS = 4
_PACKAGES = ("torch", "transformers", "sentence-transformers", "openvino", "onnxruntime", "reperio")


@dataclass(frozen=True, slots=True)
class Measured:
    """What each runtime was measured at.

    Attributes
    ----------
    tokens_a_second
        Median of a few rounds in turns, by runtime.
    left_out
        Why a runtime was not measured, by runtime.
    """

    tokens_a_second: Mapping[str, float] = field(default_factory=dict[str, float])
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def fastest(self) -> str:
        """The runtime with the most tokens a second."""
        return max(self.tokens_a_second, key=self.tokens_a_second.__getitem__)


@dataclass(frozen=True, slots=True)
class RuntimeReport:
    """What computes an encoder's vectors, and how near they are to torch's.

    Attributes
    ----------
    runtime
        ``"torch"``, ``"openvino"``, ``"onnx"`` or ``"static"``.
    dtype
        Precision that it computes in.
    probe
        How near an export is to torch in float32; None for torch itself, and for a table of tokens.
    measured
        What each runtime was measured at, where it was chosen by that.
    """

    runtime: str
    dtype: str
    probe: Probe | None = None
    measured: Measured = field(default_factory=Measured)


def measured(folder: Path, dtype: str) -> Measured:
    """Tokens a second of each runtime for a model: from the cache, or measured now and kept there.

    Measured again when a package, the processor, the number of threads or the model changes.

    Raises
    ------
    ConfigurationError
        For another precision than float32, in which runtimes give vectors that do not compare: what is chosen must not
        hang on the machine.
    MissingDependency
        If there is no runtime at all.
    """
    if dtype != "float32":
        problem = f"device is 'auto' and dtype is {dtype!r}, in which two runtimes' vectors do not compare."
        raise ConfigurationError(problem, "Name the device, as in device='openvino'; or use dtype='float32'.")
    machine = {"model": model_digest(folder), "processor": _processor(), "threads": threads(), "versions": _versions()}
    name = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:32]
    file = cache_folder() / f"{name}.json"
    try:
        kept = unsealed(file.read_text("utf-8"))
        return Measured(kept["tokens_a_second"], kept["left_out"])
    except (OSError, ValueError, KeyError):  # none yet, or damaged
        found = _measure(folder)
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, sealed({**machine, **asdict(found)}))
    return found


def _measure(folder: Path) -> Measured:
    models: dict[str, DenseModel] = {}
    left_out: dict[str, str] = {}
    for name in ("torch", *EXPORTS):
        device = None if name == "torch" else name
        try:
            models[name] = open_model(folder, device=device, dtype="float32", normalize=None, max_tokens=None)
        except (MissingDependency, UnsupportedOperation) as error:
            left_out[name] = str(error)
    if not models:
        raise MissingDependency("openvino", "openvino")
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(_ROUNDS + 1):
        for name, model in models.items():
            speed = _speed(model)
            if round_:  # the first warms up
                speeds[name].append(speed)
    return Measured({name: statistics.median(some) for name, some in speeds.items()}, left_out)


def _speed(model: DenseModel) -> float:
    source = model.inputs["document"]
    rows = [source.frame.cut(row) for row in source.tokenize(TEXTS * _REPEATS)]
    start = time.perf_counter()
    for batch in token_batches([len(row) for row in rows], model.batch_tokens):
        model.forward([rows[int(i)] for i in batch], "document")
    return sum(map(len, rows)) / (time.perf_counter() - start)


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _versions() -> dict[str, str]:
    out: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out
