"""Embeddings from a server: any OpenAI-compatible one, text-embeddings-inference, or Ollama."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reperio.embeddings import Dense, Sparse
from reperio.encoders.remote_answers import sparse_rows
from reperio.encoders.remote_endpoint import Endpoint, Prompts
from reperio.encoders.remote_limits import Limits
from reperio.encoders.remote_reading import RemoteReading
from reperio.encoders.remote_wire import API, TEISparse, dense_wire
from reperio.errors import ConfigurationError, InvalidResponse
from reperio.protocols import Spec
from reperio.types import Fingerprint

__all__ = ["Limits", "RemoteEncoder", "RemoteReading", "RemoteSparseEncoder"]

_UNIT = 1e-3  # how far a vector's length may be from 1 to count as normalised


class RemoteEncoder(Endpoint[Dense]):
    """Encodes texts on a server, one dense vector for each.

    Requests go out several at once, are repeated where that may help, and keep to the limits that you give; rows
    come back in the order of the texts, all or none. Needs the extra ``remote``.

    Parameters
    ----------
    url
        Where the server is: with ``api="openai"`` as OpenAI's own client takes it, ``https://api.openai.com/v1``
        or ``http://localhost:8000/v1``; with the others without a path.
    model
        Its name there. A TEI server has one only: given, it is compared.
    api
        ``"openai"``: ``/v1/embeddings``, which vLLM, Infinity, llama.cpp and most clouds have. ``"tei"``: ``/embed``
        of text-embeddings-inference. ``"ollama"``: ``/api/embed``. Both of these refuse a text that is too long,
        where their ``/v1/embeddings`` may cut it in silence.
    api_key_env
        Name of the environment variable that holds the API key. The key itself is in no specification, message
        or file.
    prompts
        By role, ``"query"`` or ``"document"``: a text, which is put before each text; or a mapping, whose fields
        are sent beside the texts, as ``{"query": {"input_type": "query"}}`` or, for TEI's own prompts,
        ``{"query": {"prompt_name": "query"}}``.
    dimensions
        How many the server shall give (Matryoshka); the model's own number where None.
    reading
        How texts are counted, and what becomes of one that is too long.
    limits
        How much is asked at once and in a minute, and how long one waits.

    Raises
    ------
    ConfigurationError
        For a setting out of range.

    Examples
    --------
    >>> encoder = RemoteEncoder(
    ...     "https://api.openai.com/v1",
    ...     "text-embedding-3-small",
    ...     api_key_env="OPENAI_API_KEY",
    ...     dimensions=512,
    ...     limits=Limits(requests_per_minute=3000, tokens_per_minute=1_000_000, batch_texts=256),
    ... )
    >>> encoder.fingerprint.model, encoder.fingerprint.dim
    ('text-embedding-3-small', 512)
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api: API = "openai",
        api_key_env: str | None = None,
        prompts: Prompts | None = None,
        dimensions: int | None = None,
        reading: RemoteReading | None = None,
        limits: Limits | None = None,
    ) -> None:
        if dimensions is not None and dimensions < 1:
            raise ConfigurationError(f"dimensions is {dimensions}.", "Use 1 or more.")
        self.model = model
        self.api: API = api
        self.dimensions = dimensions
        self._dim = dimensions
        wire = dense_wire(api, model, dimensions)
        super().__init__(url, wire, api_key_env=api_key_env, prompts=prompts, reading=reading, limits=limits)

    @property
    def spec(self) -> Spec:
        """How to build this encoder again; it holds no key."""
        own = {"url": self.url, "model": self.model, "api": self.api, "dimensions": self.dimensions}
        return {"type": "RemoteEncoder", **own, **self._settings()}

    @property
    def fingerprint(self) -> Fingerprint:
        return self._fingerprint("dense", self._dimension())

    def _dimension(self) -> int:
        """d, for which a text has to be encoded, once."""
        return self._dim or len(self.encode_document(["dimension"]).embeddings[0])

    def _check(self, embeddings: Dense, /) -> None:
        found = embeddings.shape[1]
        if self._dim is None:
            self._dim = found
        if found != self._dim:
            problem = f"The server answered with {found} dimensions, and {self._dim} "
            problem += "were asked for." if self.dimensions else "are what it gave before."
            raise InvalidResponse(problem, "See which model answers, and whether it knows `dimensions`.")

    def _joined(self, parts: Sequence[Dense], /) -> Dense:
        return np.concatenate(parts) if parts else np.empty((0, self._dimension()), dtype=np.float32)

    def _of_texts(self, pieces: Dense, owners: NDArray[np.int64], /) -> Dense:
        """The mean of each text's windows, which are of one length; of length 1 where all of them are."""
        starts, sizes = np.unique(owners, return_index=True, return_counts=True)[1:]
        means = np.add.reduceat(pieces, starts, axis=0) / sizes[:, None]
        normalised = np.abs(np.linalg.norm(pieces, axis=1) - 1) <= _UNIT
        several = np.logical_and.reduceat(normalised, starts) & (sizes > 1)
        lengths = np.linalg.norm(means, axis=1, keepdims=True)
        means[several] /= np.maximum(lengths[several], np.finfo(np.float32).tiny)
        return np.ascontiguousarray(means, dtype=np.float32)


class RemoteSparseEncoder(Endpoint[Sparse]):
    """Encodes texts on a text-embeddings-inference server with a SPLADE model: ``/embed_sparse``.

    Needs the extra ``remote``.

    Parameters
    ----------
    url
        Where the server is.
    model
        Compared with the one that it has, where given.
    dim
        V, the size of the model's vocabulary, which the server does not tell: 30,522 for BERT's.
    api_key_env, prompts, reading, limits
        See `RemoteEncoder`.

    Raises
    ------
    ConfigurationError
        For a setting out of range.

    Examples
    --------
    >>> encoder = RemoteSparseEncoder("http://localhost:8080", dim=30_522)
    >>> encoder.spec["dim"]
    30522
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        dim: int,
        api_key_env: str | None = None,
        prompts: Prompts | None = None,
        reading: RemoteReading | None = None,
        limits: Limits | None = None,
    ) -> None:
        if dim < 1:
            raise ConfigurationError(f"dim is {dim}.", "Give the size of the model's vocabulary.")
        self.model = model
        self.dim = dim
        self.weights_below = dim  # no column holds counts
        wire = TEISparse(model, dim)
        super().__init__(url, wire, api_key_env=api_key_env, prompts=prompts, reading=reading, limits=limits)

    @property
    def spec(self) -> Spec:
        """How to build this encoder again; it holds no key."""
        own = {"url": self.url, "model": self.model, "dim": self.dim}
        return {"type": "RemoteSparseEncoder", **own, **self._settings()}

    @property
    def fingerprint(self) -> Fingerprint:
        return self._fingerprint("sparse", self.dim)

    def _check(self, embeddings: Sparse, /) -> None:
        """Nothing: columns were compared with ``dim`` as they were read."""

    def _joined(self, parts: Sequence[Sparse], /) -> Sparse:
        lengths = np.concatenate([np.zeros(1, np.int64), *(np.diff(part.indptr) for part in parts)])
        indices = np.concatenate([np.empty(0, np.int64), *(part.indices for part in parts)])
        weights = np.concatenate([np.empty(0, np.float32), *(part.weights for part in parts)])
        return Sparse(np.cumsum(lengths), indices, weights, self.dim)

    def _of_texts(self, pieces: Sparse, owners: NDArray[np.int64], /) -> Sparse:
        """The largest weight of each text's windows in each column: SPLADE's own pooling, over all of them."""
        rows = np.repeat(owners, np.diff(pieces.indptr))
        return sparse_rows(rows, pieces.indices, pieces.weights, rows=int(owners[-1]) + 1, dim=self.dim)
