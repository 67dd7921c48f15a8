"""A sentence-transformers model → a folder that OpenVINO or ONNX Runtime runs, held against torch before it is kept."""

from __future__ import annotations

import hashlib
import inspect
import logging
import pydoc
import shutil
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from reperio import extras
from reperio.artifacts import new_folder, sha256
from reperio.embeddings import Dense
from reperio.errors import ConfigurationError, UnsupportedOperation
from reperio.models.batching import token_batches
from reperio.models.inputs import ROLES, Role, TransformerInput
from reperio.models.runtimes import heads
from reperio.models.runtimes.exported import KIND, Body
from reperio.models.runtimes.graphs import FILES, PACKAGES, Runtime, has_bfloat16, open_graph
from reperio.models.runtimes.plain import PlainInput, open_tokenizer
from reperio.models.runtimes.probe import LEAST_COSINE, TEXTS, Probe, compared, overlap
from reperio.models.sentence import SentenceModel

__all__ = ["Precision", "docstrings", "export"]

Precision: TypeAlias = Literal["float32", "int8"]

_MAKERS = ("torch", "transformers", "sentence-transformers")
_SAMPLE = 200
_BATCH_TOKENS = 2048


def export(
    model: SentenceModel,
    path: Path,
    *,
    runtime: Runtime,
    dtype: Precision = "float32",
    shipped: Path | None = None,
    least_cosine: float = LEAST_COSINE,
    sample: Sequence[str] | None = None,
) -> dict[str, Probe]:
    """Write a folder that `ExportedModel` opens without torch.

    Parameters
    ----------
    model
        Computes in float32, on the processor.
    path
        New folder.
    dtype
        ``"int8"``: weights and activations of the matrix products in eight bits, for ONNX Runtime.
    shipped
        A graph that came with the checkpoint, copied in place of a new one.
    least_cosine
        A graph farther from torch is refused.
    sample
        Texts that the ten nearest are compared on where ``dtype="int8"``; docstrings of Python where None.

    Returns
    -------
    dict
        How near it is to torch, by precision.

    Raises
    ------
    UnsupportedOperation
        If the model has no twin outside of torch, or the graph is too far from it.
    """
    if dtype == "int8" and runtime != "onnx":
        raise UnsupportedOperation("OpenVINO has no int8 here.", "Use runtime='onnx', or bfloat16.")
    definition, roles, padding = _inputs(model)
    steps, weights = heads.describe(model.modules[1:])
    reference = _encoded(model, TEXTS)
    meta: dict[str, Any] = {
        "runtime": runtime,
        "dtype": dtype,
        "made_with": {name: version(name) for name in (*_MAKERS, PACKAGES[runtime])},
        "shipped": shipped is not None,
        "fields": model.fields(),
        "roles": roles,
        "padding": padding,
        "steps": steps,
        "truncate_dim": model.truncate_dim,
        "dim": model.dim,
        "least_cosine": least_cosine,
    }
    with new_folder(path, KIND, meta) as folder:
        (folder / "tokenizer.json").write_text(definition, encoding="utf-8")
        np.savez(folder / "head.npz", allow_pickle=False, **weights)
        np.save(folder / "reference.npy", reference)
        _write_graph(model, folder, runtime, shipped)
        if dtype == "int8":
            _quantise(folder)
        meta["graph"] = _digest(folder)
        source = PlainInput(open_tokenizer(definition, extra=runtime), roles["document"], padding)
        probes: dict[str, Probe] = {}
        for name in _precisions(runtime, dtype):
            body = Body(open_graph(folder, runtime, name), steps, weights, model.truncate_dim)
            probes[name] = _probe(model, body, source, reference, sample if name == "int8" else ())
        probes[dtype].check(f"The export to {runtime} in {dtype}", least=least_cosine)
        meta["probes"] = {name: probe.as_json() for name, probe in probes.items()}
    return probes


def _inputs(model: SentenceModel) -> tuple[str, dict[Role, Any], dict[str, Any]]:
    """The tokenizer as JSON, what each role does with it, and how rows are padded."""
    sources = {role: source for role, source in model.inputs.items() if isinstance(source, TransformerInput)}
    if len(sources) < len(ROLES) or _kind(model.modules[0]) != "Transformer":
        raise _unsupported(f"starts with a {_kind(model.modules[0])}")
    definition = sources["document"].definition()
    if not definition.startswith('{"version"'):
        raise _unsupported("has a tokenizer that is written in Python")
    return definition, {role: sources[role].described() for role in ROLES}, sources["document"].padding


def _precisions(runtime: Runtime, dtype: Precision) -> list[str]:
    """What is probed now; another precision is when it is first opened."""
    return ["float32", "bfloat16"] if runtime == "openvino" and dtype == "float32" and has_bfloat16() else [dtype]


def _probe(
    model: SentenceModel, body: Body, source: PlainInput, reference: Dense, sample: Sequence[str] | None
) -> Probe:
    """Distance from torch on the probe's texts, and where there is a sample on the nearest of its texts."""
    found = compared(reference, body.probe_vectors(source))
    texts = list(docstrings()) if sample is None else list(sample)
    if not texts:
        return found
    if len(texts) <= 10:
        raise ConfigurationError(f"The sample has {len(texts)} texts.", "Give more than ten, or leave it out.")
    rows = [source.frame.cut(row) for row in source.tokenize(texts)]
    got = np.empty((len(rows), model.dim), dtype=np.float32)
    for batch in token_batches([len(row) for row in rows], _BATCH_TOKENS):
        got[batch] = body(source, [rows[int(i)] for i in batch])
    wanted = _encoded(model, texts)
    probe = compared(np.concatenate([reference, wanted]), np.concatenate([body.probe_vectors(source), got]))
    return replace(probe, recall=overlap(wanted, got))


def _encoded(model: SentenceModel, texts: Sequence[str]) -> Dense:
    source = model.inputs["document"]
    rows = [source.frame.cut(row) for row in source.tokenize(texts)]
    out = np.empty((len(rows), model.dim), dtype=np.float32)
    for batch in token_batches([len(row) for row in rows], _BATCH_TOKENS):
        out[batch] = model.forward([rows[int(i)] for i in batch], "document")
    return out


def docstrings() -> list[str]:
    """Some documentation of Python's own functions: texts that are on every machine."""
    modules = [import_module(name) for name in ("builtins", "collections", "datetime", "itertools", "math", "textwrap")]
    members = [member for module in modules for _, member in inspect.getmembers(module, callable)]
    found = sorted({text for member in members if len(text := pydoc.getdoc(member)) > 40})
    return found[:: max(1, len(found) // _SAMPLE)]


def _write_graph(model: SentenceModel, folder: Path, runtime: Runtime, shipped: Path | None) -> None:
    if shipped is not None:
        for file in shipped.parent.glob(f"{shipped.stem}.*"):
            shutil.copyfile(file, folder / f"model{file.suffix}")
        return
    torch = extras.load("torch", extra="models")
    first = model.modules[0]
    inner = _states_of(torch, first, types="token_type_ids" in first.tokenizer.model_input_names).eval()
    features = model.inputs["document"].features([np.arange(5, 12, dtype=np.int32), np.arange(5, 9, dtype=np.int32)])
    example = features["input_ids"], features["attention_mask"]
    write = _write_openvino if runtime == "openvino" else _write_onnx
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        write(torch, inner, example, folder / FILES[runtime])
    if any(module.training for module in first.modules()):  # a tracer that leaves dropout on makes noise of vectors
        raise UnsupportedOperation("The model was switched to training by its export.", "Use another runtime.")


def _states_of(torch: Any, transformer: Any, *, types: bool) -> Any:
    """A module from ids and mask to token states, as sentence-transformers computes them."""

    class States(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.transformer = transformer

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            features = {"input_ids": input_ids, "attention_mask": attention_mask, "modality": "text"}
            if types:
                features["token_type_ids"] = torch.zeros_like(input_ids)
            return self.transformer(features)["token_embeddings"]

    return States()


def _write_openvino(torch: Any, module: Any, example: tuple[Any, Any], file: Path) -> None:
    # By OpenVINO's own reader of traced modules: `convert_model` does the same, and reports it to its maker.
    extras.load("openvino", extra="openvino")
    decoders = extras.load("openvino.frontend.pytorch.ts_decoder", extra="openvino")
    frontends = extras.load("openvino.frontend", extra="openvino")
    reader = frontends.FrontEndManager().load_by_framework("pytorch")
    try:
        decoder = decoders.TorchScriptPythonDecoder(module, example_input=example)  # must outlive the conversion
        graph = reader.convert(reader.load(decoder))
    except Exception as error:  # whatever a tracer meets in a stranger's model
        raise _untraced("OpenVINO", error) from error
    for port, name in zip(graph.inputs, ("input_ids", "attention_mask"), strict=True):
        port.get_tensor().set_names({name})
    extras.load("openvino", extra="openvino").save_model(graph, str(file), compress_to_fp16=False)


def _write_onnx(torch: Any, module: Any, example: tuple[Any, Any], file: Path) -> None:
    extras.load("onnx", extra="onnx")
    names = ["input_ids", "attention_mask"]
    axes = {name: {0: "texts", 1: "tokens"} for name in [*names, "token_embeddings"]}
    try:
        torch.onnx.export(
            module,
            example,
            str(file),
            input_names=names,
            output_names=["token_embeddings"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    except Exception as error:  # whatever a tracer meets in a stranger's model
        raise _untraced("ONNX", error) from error


def _quantise(folder: Path) -> None:
    quantization = extras.load("onnxruntime.quantization", extra="onnx")
    plain, file = folder / "plain.onnx", folder / FILES["onnx"]
    file.rename(plain)
    with _quiet():
        quantization.quantize_dynamic(plain, file, per_channel=True, weight_type=quantization.QuantType.QInt8)
    plain.unlink()


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(folder.glob("model*")):
        total.update(f"{file.name} {sha256(file)}\n".encode())
    return total.hexdigest()[:32]


@contextmanager
def _quiet() -> Generator[None]:
    """Tracers warn of every branch that a model takes; the probe tells whether one mattered."""
    loggers = [logging.getLogger(), logging.getLogger("transformers")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _kind(module: Any) -> str:
    return type(module).__name__


def _untraced(runtime: str, error: Exception) -> UnsupportedOperation:
    reason = str(error).strip().partition("\n")[0][:300]
    return UnsupportedOperation(
        f"The model cannot be written for {runtime}: {reason}", "Use torch, or another runtime."
    )


def _unsupported(how: str) -> UnsupportedOperation:
    return UnsupportedOperation(f"The model {how}, which runs in torch only.", "Leave device out, or name a torch one.")
