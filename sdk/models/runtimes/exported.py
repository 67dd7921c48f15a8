"""A model that was exported: its folder read, run and told apart without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from reperio.artifacts import MANIFEST, described, loading, read_folder
from reperio.embeddings import Dense, check_dense
from reperio.errors import ConfigurationError, NotFound, ShapeError
from reperio.models.inputs import ROLES, Role
from reperio.models.runtimes import heads
from reperio.models.runtimes.graphs import PACKAGES, Graph, Runtime, open_graph
from reperio.models.runtimes.plain import PlainInput, open_tokenizer
from reperio.models.runtimes.probe import TEXTS, Probe, compared
from reperio.models.windows import Tokens

__all__ = ["KIND", "VERSION", "Body", "ExportedModel", "is_export"]

KIND = "dense-export"

VERSION = 1
"""Raised when the same model would be exported otherwise."""

BATCH_TOKENS = {"float32": 2048, "bfloat16": 4096, "int8": 2048}
"""Most tokens in a batch, where nobody says: what the processor's cache holds (`python -m benchmarks encode`)."""


def is_export(folder: Path) -> bool:
    """Whether `reperio.models.runtimes.exporting` wrote this folder."""
    try:
        return (folder / MANIFEST).is_file() and described(folder)[0] == KIND
    except NotFound:
        return False


@dataclass(frozen=True, slots=True)
class Body:
    """A graph and what comes after it: rows of tokens → vectors.

    Attributes
    ----------
    graph
        Token ids → token states.
    steps, weights
        See `reperio.models.runtimes.heads`.
    truncate
        How many of a vector's components are kept; all where None.
    """

    graph: Graph
    steps: Sequence[Mapping[str, Any]]
    weights: heads.Weights
    truncate: int | None

    def __call__(self, source: PlainInput, rows: Sequence[Tokens]) -> Dense:
        features = source.features(rows)
        states = self.graph(features)
        if states.ndim != 3 or states.shape[:2] != features["input_ids"].shape:
            problem = f"The graph gives an array of shape {states.shape} for {features['input_ids'].shape} tokens."
            raise ShapeError(problem, "Export the model again.")
        mask = features["attention_mask"]
        vectors = heads.apply(self.steps, self.weights, states, mask, prompt=source.prompt_length)
        return np.ascontiguousarray(vectors[:, : self.truncate])

    def probe_vectors(self, source: PlainInput) -> Dense:
        """Vectors of the probe's texts: together, so that all but one are padded."""
        return self(source, [source.frame.cut(row) for row in source.tokenize(TEXTS)])


class ExportedModel:
    """A model of token states, pooled and normalised in numpy; the same as the `SentenceModel` that it was made from.

    Parameters
    ----------
    folder
        What was exported.
    dtype
        What it computes in.
    normalize, max_tokens
        As `reperio.models.sentence.SentenceModel` has them.

    Attributes
    ----------
    runtime
        ``"openvino"`` or ``"onnx"``.
    probe
        How near it is to torch on the probe's texts, in this precision.

    Raises
    ------
    CorruptArtifact, NewerFormat, NotFound
        If the folder is not whole.
    ConfigurationError
        If the export has no such precision.
    UnsupportedOperation
        If its vectors are too far from torch's, with the number.
    """

    def __init__(
        self, folder: Path, *, dtype: str = "float32", normalize: bool | None = None, max_tokens: int | None = None
    ) -> None:
        self._meta = meta = read_folder(folder, KIND)
        if (dtype == "int8") != (meta["dtype"] == "int8"):
            problem = f"{folder} computes in {meta['dtype']}, and dtype is {dtype!r}."
            raise ConfigurationError(problem, f"Pass dtype={meta['dtype']!r}, or export it again.")
        self.runtime: Runtime = meta["runtime"]
        self.dtype = dtype
        graph = open_graph(folder, self.runtime, dtype)
        with loading(folder, "exported model"):
            tokenizer = open_tokenizer((folder / "tokenizer.json").read_text("utf-8"), extra=self.runtime)
            whole = Body(graph, meta["steps"], _weights(folder), meta["truncate_dim"])
        self.inputs = _inputs(tokenizer, meta, max_tokens)
        self.probe = self._probed(folder, whole, _inputs(tokenizer, meta, None)["document"])
        self._ended = meta["steps"][-1]["type"] == "Normalize"
        self._shortened = self._ended and normalize is False
        self._body = replace(whole, steps=meta["steps"][:-1]) if self._shortened else whole
        self._normalize = bool(normalize)
        kept = self._ended and not self._shortened and whole.truncate is None
        self.normalized = self._normalize or kept
        self.dim: int = meta["dim"]
        self.batch_tokens = BATCH_TOKENS[dtype]

    def forward(self, rows: Sequence[Tokens], role: Role) -> Dense:
        """Embeddings of rows that are short enough, ``(n, d)``, float32.

        Raises
        ------
        ShapeError
            If the model gives NaN or infinity.
        """
        vectors = self._body(self.inputs[role], rows)
        if self._normalize:
            vectors = heads.normalized(vectors)
        return check_dense(vectors, what="The model's output", rows=len(rows))

    def fields(self) -> dict[str, Any]:
        """Everything that its numbers hang on, for a fingerprint.

        In float32 it is what torch's says, where the probe found no difference; else the runtime is named as well.
        """
        limits = {role: self.inputs[role].frame.limit for role in ROLES}
        saved: dict[str, Any] = self._meta["fields"]
        own = {
            **saved,
            "modules": saved["modules"][:-1] if self._shortened else saved["modules"],
            "normalized": self.normalized,
            "dtype": self.dtype,
            "max_tokens": limits["document"] if len(set(limits.values())) == 1 else limits,
        }
        if self.dtype == "float32" and self.probe.equal:
            return own
        # What was quantised, or deviates, is no other's: its numbers are in the graph.
        return {**own, "runtime": self.runtime if self.dtype == "bfloat16" else [self.runtime, self._meta["graph"]]}

    def _probed(self, folder: Path, whole: Body, source: PlainInput) -> Probe:
        """What the export was found to be; found now where it was made without this precision or by another release."""
        known = self._meta["probes"].get(self.dtype)
        package = PACKAGES[self.runtime]
        if known is not None and self._meta["made_with"][package] == version(package):
            probe = Probe(**known)
        else:
            probe = compared(np.load(folder / "reference.npy"), whole.probe_vectors(source))
        probe.check(f"{folder} in {self.dtype}", least=self._meta["least_cosine"])
        return probe


def _inputs(tokenizer: Any, meta: Mapping[str, Any], max_tokens: int | None) -> dict[Role, PlainInput]:
    return {role: PlainInput(tokenizer, meta["roles"][role], meta["padding"], max_tokens=max_tokens) for role in ROLES}


def _weights(folder: Path) -> heads.Weights:
    with np.load(folder / "head.npz", allow_pickle=False) as arrays:
        return dict(arrays)
