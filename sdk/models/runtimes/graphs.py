"""A transformer as a graph that OpenVINO or ONNX Runtime runs: token ids in, token states out."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reperio import extras
from reperio.artifacts import loading
from reperio.errors import ConfigurationError, UnsupportedOperation

__all__ = ["FILES", "PACKAGES", "Graph", "Runtime", "has_bfloat16", "open_graph", "threads"]

Runtime: TypeAlias = Literal["openvino", "onnx"]

FILES: Mapping[Runtime, str] = {"openvino": "model.xml", "onnx": "model.onnx"}
"""The file that each runtime opens."""

PACKAGES: Mapping[Runtime, str] = {"openvino": "openvino", "onnx": "onnxruntime"}
"""The package of each runtime."""

_STATES = ("token_embeddings", "last_hidden_state")
_KNOWN = {"input_ids", "attention_mask", "token_type_ids"}

Features = Mapping[str, NDArray[np.int64]]
States = NDArray[np.float32]


class Graph(Protocol):
    """Token ids and mask of a batch, ``(n, t)`` → token states, ``(n, t, h)``; threads may share it."""

    def __call__(self, features: Features, /) -> States: ...


def open_graph(folder: Path, runtime: Runtime, dtype: str) -> Graph:
    """Open the graph in a folder.

    Parameters
    ----------
    dtype
        What it computes in: a hint for OpenVINO; elsewhere that of the graph itself.

    Raises
    ------
    MissingDependency
        If the runtime is not installed.
    ConfigurationError
        If the processor, or the runtime, has no such precision.
    CorruptArtifact
        If the runtime cannot read it.
    UnsupportedOperation
        If it reads more than token ids.
    """
    file = folder / FILES[runtime]
    if runtime == "openvino":
        return _OpenVINO(file, dtype)
    if dtype not in ("float32", "int8"):
        raise ConfigurationError(f"ONNX Runtime has no {dtype} here.", "Use dtype='float32', or device='openvino'.")
    return _ONNX(file)


def threads() -> int:
    """How many the runtimes use: the cores that this process may run on, or ``OMP_NUM_THREADS``, as torch does."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16, as OpenVINO sees it."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class _OpenVINO:
    def __init__(self, file: Path, dtype: str) -> None:
        hints = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}
        if dtype not in hints:
            raise ConfigurationError(f"OpenVINO has no {dtype} here.", "Use 'float32' or 'bfloat16'.")
        if dtype == "bfloat16" and not has_bfloat16():
            raise ConfigurationError("This processor has no bfloat16.", "Use dtype='float32'.")
        settings = {"INFERENCE_PRECISION_HINT": hints[dtype], "INFERENCE_NUM_THREADS": threads(), "NUM_STREAMS": 1}
        with loading(file, "graph of OpenVINO"):
            self._compiled = _core().compile_model(str(file), "CPU", settings)
        self._names = _checked_names(file, [port.get_any_name() for port in self._compiled.inputs])
        outputs: list[set[str]] = [port.get_names() for port in self._compiled.outputs]
        self._output = next((i for name in _STATES for i, names in enumerate(outputs) if name in names), 0)
        self._own = threading.local()

    def __call__(self, features: Features, /) -> States:
        request = getattr(self._own, "request", None)
        if request is None:  # a request is one thread's
            request = self._own.request = self._compiled.create_infer_request()
        given = _given(self._names, features)
        # What comes out is the request's own memory, good until its next call: the caller reads it before that.
        out: States = request.infer(given, share_inputs=True, share_outputs=True)[self._output]
        return out


class _ONNX:
    def __init__(self, file: Path) -> None:
        library = extras.load("onnxruntime", extra="onnx")
        options = library.SessionOptions()
        options.intra_op_num_threads = threads()
        options.log_severity_level = 3
        with loading(file, "graph of ONNX"):
            self._session = library.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._names = _checked_names(file, [port.name for port in self._session.get_inputs()])
        outputs = [port.name for port in self._session.get_outputs()]
        self._output = next((name for name in _STATES if name in outputs), outputs[0])

    def __call__(self, features: Features, /) -> States:
        out: States = self._session.run([self._output], _given(self._names, features))[0]
        return out


def _given(names: list[str], features: Features) -> dict[str, NDArray[np.int64]]:
    return {name: features[name] if name in features else np.zeros_like(features["input_ids"]) for name in names}


def _checked_names(file: Path, names: list[str]) -> list[str]:
    if strange := sorted(set(names) - _KNOWN):
        raise UnsupportedOperation(f"{file} reads {strange[0]} beside token ids.", "Export the model here: `export`.")
    return names


def _core() -> Any:
    return extras.load("openvino", extra="openvino").Core()
