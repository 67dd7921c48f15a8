"""One vector for each text, from any sentence-transformers model."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from reperio import meter
from reperio.embeddings import Dense
from reperio.encoders.texts import OnTruncation, check_batch, check_texts, tell_cuts
from reperio.errors import ConfigurationError, EmptyText, InvalidInput, UnsupportedOperation
from reperio.models.batching import Rows, run_halving, token_batches
from reperio.models.checkpoint import MINILM, locate
from reperio.models.inputs import Role
from reperio.models.runtimes.choosing import Measured, RuntimeReport, measured
from reperio.models.runtimes.exported import is_export
from reperio.models.runtimes.graphs import Runtime
from reperio.models.runtimes.opening import EXPORTS, DenseModel, open_model, original
from reperio.models.runtimes.probe import LEAST_COSINE, Probe
from reperio.models.sentence import SentenceModel, SentenceTransformerLike
from reperio.models.windows import OVERLAP, Tokens
from reperio.protocols import Spec
from reperio.types import Encoded, Fingerprint

if TYPE_CHECKING:
    from reperio.models.runtimes.exporting import Precision

__all__ = ["DenseEncoder", "OnTruncation", "RuntimeReport"]

DType: TypeAlias = Literal["float32", "float16", "bfloat16", "int8"]

VERSION = 1
"""Raised whenever the same model would give other vectors here."""


class DenseEncoder:
    """Encodes texts with a sentence-transformers model, or a table of token vectors.

    Vectors are those of the model's own ``encode_query`` and ``encode_document``, prompts included. What that
    hides is told: every text is tokenised whole, its tokens are counted, and it is cut here, by the policy that
    you choose. A text's vector does not depend on the texts beside it: in float32 to 1e-6 for vectors of length
    1 (in half precision to 5e-3). The model is loaded on first use, from safetensors only, and runs no code
    of its own.

    Parameters
    ----------
    model
        A folder, also one that `export` wrote; a name on the Hugging Face hub; or a ``SentenceTransformer``. The
        default comes with the extra ``minilm`` and needs no network.
    revision
        Commit, tag or branch on the hub.
    device
        Where it is computed, as torch names it; the best one there is where None. Or what computes it on the
        processor, without torch: ``"openvino"`` or ``"onnx"``, through an export that is made once and held against
        torch (`runtime` says how near it is); ``"static"``, for tables of token vectors. ``"auto"`` measures torch,
        OpenVINO and ONNX Runtime once on this machine, and takes the fastest.
    dtype
        Precision that the model computes in: ``"bfloat16"`` is several times faster through OpenVINO where the
        processor has it, and ``"int8"`` is for ONNX Runtime. Vectors are float32 always.
    normalize
        True gives vectors of length 1, False leaves out the model's own last normalisation, None changes nothing.
    max_tokens
        Most tokens that are read of a text, prompt and special tokens counted; what the model was saved with
        where None.
    on_truncation
        What happens to a longer text. ``"warn"``: it is cut, and a warning says how many were. ``"error"``:
        `TruncationError`, before anything is encoded. ``"chunk"``: it is read in overlapping windows of one
        length, and the mean of their vectors is its vector, so that nothing is lost.
    batch_tokens
        Most tokens in a batch with its padding: a matter of speed and memory only. Where memory runs out, the
        batch is halved.

    Raises
    ------
    ConfigurationError
        For a setting out of range.
    InvalidInput
        If ``model`` is something else.

    Examples
    --------
    >>> encoder = DenseEncoder(on_truncation="error")
    >>> found = encoder.encode_query(["merge sorted lists"]).embeddings @ encoder.encode_document(
    ...     ["Merge multiple sorted inputs into one.", "Return the current time."]).embeddings.T
    >>> int(found.argmax())
    0
    """

    def __init__(
        self,
        model: str | Path | SentenceTransformerLike = MINILM,
        *,
        revision: str | None = None,
        device: str | None = None,
        dtype: DType = "float32",
        normalize: bool | None = None,
        max_tokens: int | None = None,
        on_truncation: OnTruncation = "warn",
        batch_tokens: int | None = None,
    ) -> None:
        _check_model(model, revision=revision, device=device)
        _check_choice("dtype", dtype, get_args(DType))
        _check_choice("on_truncation", on_truncation, get_args(OnTruncation))
        _check_positive(max_tokens=max_tokens, batch_tokens=batch_tokens)
        self.model = model
        self.revision = revision
        self.device = device
        self.dtype: DType = dtype
        self.normalize = normalize
        self.max_tokens = max_tokens
        self.on_truncation: OnTruncation = on_truncation
        self.batch_tokens = batch_tokens
        self._lock = threading.Lock()
        self._loaded: DenseModel | None = None
        self._measured = Measured()
        self._fingerprint: Fingerprint | None = None

    @property
    def spec(self) -> Spec:
        """How to build this encoder again; a folder by its whole path.

        Raises
        ------
        UnsupportedOperation
            If it was given a model in memory.
        """
        if not isinstance(self.model, str | Path):
            problem = f"A {type(self.model).__name__} in memory cannot be written down."
            raise UnsupportedOperation(problem, "Save it with model.save(path), and give the path.")
        return {
            "type": "DenseEncoder",
            "model": str(Path(self.model).resolve()) if Path(self.model).is_dir() else str(self.model),
            "revision": self.revision,
            "device": self.device,
            "dtype": self.dtype,
            "normalize": self.normalize,
            "max_tokens": self.max_tokens,
            "on_truncation": self.on_truncation,
            "batch_tokens": self.batch_tokens,
        }

    @property
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two vectors to compare; loads the model.

        Weights and tokenizer are told by the content of their files, so the folder or the name does not matter;
        name and revision stand in ``model``, for people. A model in memory is told by its tensors, and so
        differs from the same model in a folder.
        """
        model = self._load()
        with self._lock:
            if self._fingerprint is None:
                name = str(self.model) if isinstance(self.model, str | Path) else type(self.model).__name__
                known = name if self.revision is None else f"{name}@{self.revision}"
                cut = {"windows overlap": OVERLAP} if self.on_truncation == "chunk" else "cut"
                fields = {**model.fields(), "truncation": cut, "version": VERSION}
                self._fingerprint = Fingerprint.make("dense", known, model.dim, **fields)
            return self._fingerprint

    @property
    def runtime(self) -> RuntimeReport:
        """What computes the vectors, and how near they are to torch's; loads the model."""
        model = self._load()
        return RuntimeReport(model.runtime, model.dtype, model.probe, self._measured)

    def export(
        self,
        path: Path | str,
        /,
        *,
        runtime: Runtime = "openvino",
        dtype: Precision = "float32",
        least_cosine: float = LEAST_COSINE,
        sample: Sequence[str] | None = None,
    ) -> Mapping[str, Probe]:
        """Write the model to a new folder that is opened without torch: ``DenseEncoder(path)``.

        Needs torch now. Settings of this encoder are not kept there; they are given again.

        Parameters
        ----------
        runtime
            What is to run it. An export for OpenVINO computes in bfloat16 as well.
        dtype
            ``"int8"``, for ONNX Runtime, is small and quick, and farther from the model: see what is returned.
        least_cosine
            Where a text of the probe has a lower cosine with its vector by torch, nothing is written.
        sample
            Texts of your own, more than ten, for ``recall`` of ``"int8"``; documentation of Python where None.

        Returns
        -------
        Mapping
            How near it is to torch, by precision.

        Raises
        ------
        UnsupportedOperation
            If the model has parts that run in torch only, or the export is too far from it.
        StorageError
            If the folder exists, or cannot be written.
        """
        from reperio.models.runtimes.exporting import export

        _check_choice("runtime", runtime, EXPORTS)
        _check_choice("dtype", dtype, ("float32", "int8"))
        given = isinstance(self.model, str | Path)
        folder = locate(self.model, self.revision) if isinstance(self.model, str | Path) else None
        return export(
            original(None if given else self.model, folder),
            Path(path),
            runtime=runtime,
            dtype=dtype,
            least_cosine=least_cosine,
            sample=sample,
        )

    def encode_query(self, texts: Sequence[str], /) -> Encoded[Dense]:
        """Vectors of queries, under the model's prompt for them; see `encode_document`."""
        return self._encode(texts, "query")

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Dense]:
        """Vectors of documents, under the model's prompt for them.

        Returns
        -------
        Encoded[Dense]
            ``embeddings`` ``(n, d)``, float32, in the order of ``texts``. ``token_counts`` are those the model
            would read of the whole text, its prompt and special tokens among them.

        Raises
        ------
        EmptyText
            If a text is empty, blank, or has no token; names its position.
        InvalidInput
            For a bare ``str``, an element that is no ``str``, or one that is not valid Unicode.
        TruncationError
            For a text that is too long, where ``on_truncation="error"``.
        NotFound, ConfigurationError, MissingDependency
            At the first use, if the model cannot be had or loaded.

        Warns
        -----
        UserWarning
            Once, if texts were cut.
        """
        return self._encode(texts, "document")

    def encode_stream(
        self, texts: Iterable[str], /, *, role: Role = "document", batch_size: int = 1024
    ) -> Iterator[Encoded[Dense]]:
        """Encode any number of texts, ``batch_size`` at a time; memory is bounded by these.

        Errors name the position in the whole stream; what was given before stays good.
        """
        check_batch(texts)
        _check_positive(batch_size=batch_size)
        _check_choice("role", role, get_args(Role))
        return self._stream(iter(texts), role, batch_size)

    def _stream(self, texts: Iterator[str], role: Role, size: int) -> Iterator[Encoded[Dense]]:
        start = 0
        while some := list(islice(texts, size)):
            yield self._encode(some, role, start=start)
            start += len(some)

    def _encode(self, texts: Sequence[str], role: Role, *, start: int = 0) -> Encoded[Dense]:
        checked = check_texts(texts, start=start)
        model = self._load()
        source = model.inputs[role]
        rows = source.tokenize(checked)
        counts = np.array([len(row) for row in rows], dtype=np.int64)
        if not counts.all():
            position = int(counts.argmin())
            raise EmptyText(f"texts[{start + position}] is {checked[position][:40]!r}: it has no token.", "Drop it.")
        too_long = counts > (source.frame.limit or np.inf)
        if too_long.any():
            tell_cuts(self.on_truncation, counts, too_long, limit=source.frame.limit, start=start)
        if too_long.any() and self.on_truncation == "chunk":
            vectors, read = self._read_windows(model, role, rows)
            too_long = np.zeros_like(too_long)
        else:
            vectors, read = self._run(model, role, [source.frame.cut(row) for row in rows])
        meter.count("texts", len(rows))
        meter.count("tokens", read)
        meter.count("truncated", int(too_long.sum()))
        return Encoded(vectors, counts, too_long)

    def _read_windows(self, model: DenseModel, role: Role, rows: Sequence[Tokens]) -> tuple[Dense, int]:
        """Mean of each row's windows, which are of one length and so weigh the same."""
        source = model.inputs[role]
        windows = [source.frame.windows(row, source.prompt_tokens(row)) for row in rows]
        parts, read = self._run(model, role, [window for row in windows for window in row])
        numbers = np.array([len(row) for row in windows])
        sums = np.add.reduceat(parts, np.concatenate([[0], np.cumsum(numbers)[:-1]]), axis=0)
        if model.normalized:
            sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        else:
            sums /= numbers[:, None]
        return sums.astype(np.float32), read

    def _run(self, model: DenseModel, role: Role, rows: Sequence[Tokens]) -> tuple[Dense, int]:
        """Vectors of rows that are short enough, in their order, and how many tokens were read."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        budget = self.batch_tokens or model.batch_tokens

        def forward(batch: Rows) -> Dense:
            return model.forward([rows[int(i)] for i in batch], role)

        out = np.empty((len(rows), model.dim), dtype=np.float32)
        for batch, vectors in run_halving(token_batches(lengths, budget), forward):
            out[batch] = vectors
        return out, int(lengths.sum())

    def _load(self) -> DenseModel:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._opened()
            return self._loaded

    def _opened(self) -> DenseModel:
        how: Any = {"normalize": self.normalize, "max_tokens": self.max_tokens}
        if not isinstance(self.model, str | Path):
            given = SentenceModel(self.model, **how)
            if given.dtype != self.dtype:
                problem = f"The model given computes in {given.dtype}, and dtype is {self.dtype!r}."
                raise ConfigurationError(problem, f"Pass dtype={given.dtype!r}, or convert the model.")
            return given
        folder = locate(self.model, self.revision)
        device = self.device
        if device == "auto" and not is_export(folder):
            self._measured = measured(folder, self.dtype)
            device = self._measured.fastest
        return open_model(folder, device=None if device == "torch" else device, dtype=self.dtype, **how)


def _check_model(model: object, *, revision: str | None, device: str | None) -> None:
    if not isinstance(model, str | Path | SentenceTransformerLike):
        raise InvalidInput(f"model is a {type(model).__name__}.", "Give a name, a folder or a SentenceTransformer.")
    if not isinstance(model, str | Path) and (revision is not None or device is not None):
        raise ConfigurationError("A SentenceTransformer object has its revision and device.", "Leave them out.")


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigurationError(f"{name} is {value!r}.", f"Use one of {', '.join(known)}.")


def _check_positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number <= 0:
            raise ConfigurationError(f"{name} is {number}.", "Use 1 or more.")
