"""What each kind of server is sent, and what it answers.

OpenAI's form is that of its API reference, which vLLM, TEI, Infinity, llama.cpp and most clouds follow; TEI's and
Ollama's own are those of their documentation. These two can be told to refuse a text that is too long: Ollama's
``/v1/embeddings`` cuts it without a word, and so does TEI's as it is set up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar, get_args

from reperio.embeddings import Dense, Sparse
from reperio.encoders.remote_answers import as_list, as_object, check_model, in_order, vectors, weights, whole
from reperio.encoders.remote_client import Answer, Client, Refused
from reperio.errors import ConfigurationError, UnsupportedOperation

__all__ = ["API", "TEI", "Batch", "Fields", "Identity", "Ollama", "OpenAI", "TEISparse", "Wire", "dense_wire"]

API: TypeAlias = Literal["openai", "tei", "ollama"]
Fields: TypeAlias = Mapping[str, Any]
E_co = TypeVar("E_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Identity:
    """Which model a server says it has.

    Attributes
    ----------
    name
        As its owner calls it.
    revision
        Commit or digest of the weights; None where the server does not tell.
    max_tokens, batch_texts
        Most tokens of a text and most texts of a request, where it tells.
    """

    name: str
    revision: str | None = None
    max_tokens: int | None = None
    batch_texts: int | None = None


@dataclass(frozen=True, slots=True)
class Batch(Generic[E_co]):
    """Embeddings of the texts of one request, in their order, and the tokens of them all where told."""

    embeddings: E_co
    tokens: int | None


class Wire(Protocol[E_co]):
    """The form of one kind of server."""

    @property
    def path(self) -> str:
        """Where embeddings are asked for."""
        ...

    @property
    def counts(self) -> bool:
        """Whether the server tells how many tokens each text has."""
        ...

    async def identify(self, client: Client, /) -> Identity:
        """Which model answers."""
        ...

    def body(self, texts: Sequence[str], fields: Fields, /) -> dict[str, Any]:
        """What is sent for these texts; ``fields`` are the role's."""
        ...

    def gives_way(self, refused: Refused, sent: Fields, /) -> bool:
        """Whether what this server does not know is left out from now on, so that it may be asked again."""
        ...

    def read(self, answer: Answer, texts: int, /) -> Batch[E_co]:
        """The embeddings in an answer for so many texts.

        Raises
        ------
        InvalidResponse
            If it is anything else.
        """
        ...

    async def count(self, client: Client, texts: Sequence[str], fields: Fields, /) -> list[int]:
        """The tokens of each text, special ones among them; only where ``counts``."""
        ...


class OpenAI:
    """``/v1/embeddings``: base64 where the server knows it, else numbers."""

    path = "embeddings"
    counts = False

    def __init__(self, model: str, dimensions: int | None) -> None:
        self._model, self._dimensions = model, dimensions
        self._format = "base64"

    async def identify(self, client: Client, /) -> Identity:
        return Identity(self._model)

    def body(self, texts: Sequence[str], fields: Fields, /) -> dict[str, Any]:
        body = {"model": self._model, "input": list(texts), "encoding_format": self._format}
        return _without_none({**body, "dimensions": self._dimensions, **fields})

    def gives_way(self, refused: Refused, sent: Fields, /) -> bool:
        if sent["encoding_format"] == "float" or not any(w in str(refused) for w in ("encoding_format", "base64")):
            return False
        self._format = "float"
        return True

    def read(self, answer: Answer, texts: int, /) -> Batch[Dense]:
        body = as_object(answer.body)
        check_model(body.get("model"), self._model)
        items = [as_object(item, "an embedding") for item in as_list(body.get("data"), "data", texts)]
        usage = as_object(body.get("usage") or {}, "usage")
        return Batch(vectors(in_order(items)), whole(usage.get("prompt_tokens")))

    async def count(self, client: Client, texts: Sequence[str], fields: Fields, /) -> list[int]:
        raise UnsupportedOperation("The server does not count tokens.", "Give reading.tokenizer.")


class Ollama:
    """``/api/embed`` of Ollama, which refuses what is too long."""

    path = "api/embed"
    counts = False

    def __init__(self, model: str, dimensions: int | None) -> None:
        self._model, self._dimensions = model, dimensions

    async def identify(self, client: Client, /) -> Identity:
        body = as_object((await client.ask("GET", "api/tags")).body)
        models = [as_object(item, "a model") for item in as_list(body.get("models"), "models")]
        names = (self._model, f"{self._model}:latest")
        digests = (str(item["digest"]) for item in models if item.get("name") in names and item.get("digest"))
        return Identity(self._model, next(digests, None))

    def body(self, texts: Sequence[str], fields: Fields, /) -> dict[str, Any]:
        body = {"model": self._model, "input": list(texts), "truncate": False}
        return _without_none({**body, "dimensions": self._dimensions, **fields})

    def gives_way(self, refused: Refused, sent: Fields, /) -> bool:
        return False

    def read(self, answer: Answer, texts: int, /) -> Batch[Dense]:
        body = as_object(answer.body)
        check_model(body.get("model"), self._model)
        rows = as_list(body.get("embeddings"), "embeddings", texts)
        return Batch(vectors(rows), whole(body.get("prompt_eval_count")))

    async def count(self, client: Client, texts: Sequence[str], fields: Fields, /) -> list[int]:
        raise UnsupportedOperation("The server does not count tokens.", "Give reading.tokenizer.")


class _Inference:
    """What the endpoints of text-embeddings-inference share."""

    counts = True

    def __init__(self, model: str | None, dimensions: int | None = None) -> None:
        self._model, self._dimensions = model, dimensions

    async def identify(self, client: Client, /) -> Identity:
        info = as_object((await client.ask("GET", "info")).body)
        name, revision = str(info.get("model_id")), info.get("model_sha")
        if self._model is not None and self._model not in (name, info.get("served_model_name")):
            problem = f"model is {self._model!r}, and the server has {name!r}."
            raise ConfigurationError(problem, "Give the model that it has, or the url of the right server.")
        told = (whole(info.get(field)) for field in ("max_input_length", "max_client_batch_size"))
        return Identity(name, None if revision is None else str(revision), *told)

    def body(self, texts: Sequence[str], fields: Fields, /) -> dict[str, Any]:
        return _without_none({"inputs": list(texts), "truncate": False, "dimensions": self._dimensions, **fields})

    def gives_way(self, refused: Refused, sent: Fields, /) -> bool:
        return False

    async def count(self, client: Client, texts: Sequence[str], fields: Fields, /) -> list[int]:
        prompt = {name: value for name, value in fields.items() if name == "prompt_name"}
        answer = await client.ask("POST", "tokenize", {"inputs": list(texts), **prompt})
        return [len(as_list(row, "the tokens")) for row in as_list(answer.body, "the answer", len(texts))]


class TEI(_Inference):
    """``/embed`` of text-embeddings-inference."""

    path = "embed"

    def read(self, answer: Answer, texts: int, /) -> Batch[Dense]:
        rows = as_list(answer.body, "the answer", texts)
        return Batch(vectors(rows), whole(answer.headers.get("x-compute-tokens")))


class TEISparse(_Inference):
    """``/embed_sparse`` of text-embeddings-inference."""

    path = "embed_sparse"

    def __init__(self, model: str | None, dim: int) -> None:
        super().__init__(model)
        self._dim = dim

    def read(self, answer: Answer, texts: int, /) -> Batch[Sparse]:
        rows = as_list(answer.body, "the answer", texts)
        return Batch(weights(rows, self._dim), whole(answer.headers.get("x-compute-tokens")))


def dense_wire(api: API, model: str | None, dimensions: int | None) -> Wire[Dense]:
    """The form that a setting names.

    Raises
    ------
    ConfigurationError
        If there is no such form, or no model to ask for.
    """
    if api not in get_args(API):
        raise ConfigurationError(f"api is {api!r}.", f"Use one of {', '.join(get_args(API))}.")
    if api == "tei":
        return TEI(model, dimensions)
    if not model:
        raise ConfigurationError(f"model is {model!r}, and with api={api!r} it is asked for by name.", "Name it.")
    return OpenAI(model, dimensions) if api == "openai" else Ollama(model, dimensions)


def _without_none(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}
