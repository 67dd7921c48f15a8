"""An embeddings server for tests, in this process: the requests and answers of real ones, over any encoder here.

>>> from reperio.encoders import HashEncoder, RemoteEncoder
>>> with serving(EmbeddingsApp(HashEncoder(64))) as url, RemoteEncoder(f"{url}/v1", "hashed-words") as encoder:
...     encoder.encode_query(["merge sorted lists"]).embeddings.shape
(1, 64)
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Awaitable, Callable, Generator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

from reperio.embeddings import Dense, Sparse
from reperio.encoders.remote_answers import is_list, is_object
from reperio.protocols import Encoder

__all__ = ["EmbeddingsApp", "Reply", "Request", "serving"]

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_OPENAI_FIELDS = {"model", "input", "encoding_format", "dimensions", "user"}
_TEI_FIELDS = {"inputs", "truncate", "truncation_direction", "prompt_name", "normalize", "dimensions"}
_OLLAMA_FIELDS = {"model", "input", "truncate", "dimensions", "keep_alive", "options"}


@dataclass(frozen=True, slots=True)
class Request:
    """What came in."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes out; ``body`` as it is if it is bytes, else as JSON."""

    status: int
    body: Any
    headers: Mapping[str, str] | None = None


class EmbeddingsApp:
    """An ASGI application that speaks as OpenAI, text-embeddings-inference and Ollama do.

    What these document is answered as they document it, and a request in another form is refused: a field that is not
    known, a type that is wrong, a text that is too long. Unlike Ollama and TEI, ``/v1/embeddings`` refuses it too.

    Parameters
    ----------
    encoder
        Makes the embeddings, dense or sparse; its tokens are the server's.
    model
        The name that it answers to; the encoder's own where None.
    key
        The API key that each request must bring, if any.
    max_tokens
        Most tokens of a text.
    max_texts
        Most texts of a request.
    base64
        Whether it knows ``encoding_format="base64"``.

    Attributes
    ----------
    requests
        All that came in, in order.
    before
        Called with each request first; what it returns, if anything, is the answer.
    """

    def __init__(
        self,
        encoder: Encoder[Dense] | Encoder[Sparse],
        *,
        model: str | None = None,
        key: str | None = None,
        max_tokens: int = 512,
        max_texts: int = 32,
        base64: bool = True,
    ) -> None:
        self.model = model or encoder.fingerprint.model
        self.max_tokens = max_tokens
        self.max_texts = max_texts
        self.revision = encoder.fingerprint.digest
        self.requests: list[Request] = []
        self.before: Callable[[Request], Awaitable[Reply | None]] | None = None
        self._encoder: Encoder[Any] = encoder
        self._key = key
        self._base64 = base64

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        raw = b""
        while True:
            event = await receive()
            raw += event.get("body", b"")
            if not event.get("more_body"):
                break
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        request = Request(scope["method"], scope["path"], headers, json.loads(raw) if raw else None)
        self.requests.append(request)
        reply = await self.before(request) if self.before is not None else None
        reply = reply or self.answer(request)
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        given = {"content-type": "application/json", "content-length": str(len(body)), **(reply.headers or {})}
        pairs = [(name.encode(), value.encode()) for name, value in given.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})

    def answer(self, request: Request) -> Reply:
        """What a server in good order answers."""
        if self._key is not None and request.headers.get("authorization") != f"Bearer {self._key}":
            return Reply(401, {"error": {"message": "Incorrect API key provided.", "code": "invalid_api_key"}})
        answers = {
            ("POST", "/v1/embeddings"): self._openai,
            ("POST", "/embed"): self._tei,
            ("POST", "/embed_sparse"): self._tei,
            ("POST", "/tokenize"): self._tokenize,
            ("GET", "/info"): self._info,
            ("POST", "/api/embed"): self._ollama,
            ("GET", "/api/tags"): self._tags,
        }
        found = answers.get((request.method, request.path))
        return Reply(404, {"detail": "Not Found"}) if found is None else found(request)

    def _openai(self, request: Request) -> Reply:
        body, texts = request.body, _texts(request, "input")
        form = body.get("encoding_format", "float")
        wrong = set(body) - _OPENAI_FIELDS or (None if texts else "input")
        if wrong or form not in ({"float", "base64"} if self._base64 else {"float"}):
            named = wrong or f"encoding_format {form!r}"
            return Reply(400, {"error": {"message": f"Not known: {named}.", "type": "invalid_request_error"}})
        if body["model"] != self.model:
            said = f"The model `{body['model']}` does not exist."
            return Reply(404, {"error": {"message": said, "type": "invalid_request_error", "code": "model_not_found"}})
        if (trouble := self._trouble(texts)) is not None:
            return Reply(400, {"error": {"message": trouble, "type": "invalid_request_error"}})
        vectors, counts = self._dense(texts, body.get("dimensions"))
        rows = [_base64(row) if form == "base64" else row.tolist() for row in vectors]
        data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)]
        usage = {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
        return Reply(200, {"object": "list", "data": data, "model": self.model, "usage": usage})

    def _tei(self, request: Request) -> Reply:
        body, texts = request.body, _texts(request, "inputs")
        if set(body) - _TEI_FIELDS or not texts or not isinstance(body.get("truncate", False), bool):
            return Reply(
                422, b"Failed to deserialize the JSON body into the target type", {"content-type": "text/plain"}
            )
        if (trouble := self._trouble(texts)) is not None:
            return Reply(422, {"error": trouble, "error_type": "Validation"})
        sparse = self._encoder.fingerprint.kind == "sparse"
        if sparse != (request.path == "/embed_sparse"):
            return Reply(424, {"error": "Model is not of this kind", "error_type": "Backend"})
        headers = {"x-compute-tokens": str(sum(self._counts(texts)))}
        if not sparse:
            return Reply(200, self._dense(texts, body.get("dimensions"))[0].tolist(), headers)
        found = self._encoder.encode_document(texts).embeddings
        rows = (found.row(i) for i in range(len(found)))
        pairs = [zip(columns.tolist(), weights.tolist(), strict=True) for columns, weights in rows]
        return Reply(200, [[{"index": c, "value": w} for c, w in row] for row in pairs], headers)

    def _tokenize(self, request: Request) -> Reply:
        if set(request.body) - {"inputs", "add_special_tokens", "prompt_name"} or not _texts(request, "inputs"):
            return Reply(422, {"error": "What is asked?", "error_type": "Tokenizer"})
        token = {"id": 1, "text": "word", "special": False, "start": 0, "stop": 4}
        return Reply(200, [[token] * count for count in self._counts(request.body["inputs"])])

    def _info(self, request: Request) -> Reply:
        told = {"model_id": self.model, "model_sha": self.revision, "model_dtype": "float32"}
        limits = {"max_input_length": self.max_tokens, "max_client_batch_size": self.max_texts}
        return Reply(200, {**told, **limits, "model_type": {"embedding": {"pooling": "mean"}}, "version": "1.8.0"})

    def _ollama(self, request: Request) -> Reply:
        body, texts = request.body, _texts(request, "input")
        if body.get("model") != self.model:
            return Reply(404, {"error": f'model "{body.get("model")}" not found, try pulling it first'})
        if set(body) - _OLLAMA_FIELDS or not texts:
            return Reply(400, {"error": "invalid input"})
        if body.get("truncate") is False and max(self._counts(texts)) > self.max_tokens:
            return Reply(400, {"error": "the input length exceeds the context length"})
        vectors, counts = self._dense(texts, body.get("dimensions"))
        told = {"model": self.model, "total_duration": 1, "load_duration": 1, "prompt_eval_count": sum(counts)}
        return Reply(200, {**told, "embeddings": vectors.tolist()})

    def _tags(self, request: Request) -> Reply:
        return Reply(200, {"models": [{"name": f"{self.model}:latest", "digest": self.revision}]})

    def _dense(self, texts: Sequence[str], dimensions: int | None) -> tuple[Dense, list[int]]:
        encoded = self._encoder.encode_document(texts)
        return encoded.embeddings[:, :dimensions], encoded.token_counts.tolist()

    def _counts(self, texts: Sequence[str]) -> list[int]:
        counts: list[int] = self._encoder.encode_document(texts).token_counts.tolist()
        return counts

    def _trouble(self, texts: Sequence[str]) -> str | None:
        if len(texts) > self.max_texts:
            return f"batch size {len(texts)} > maximum allowed batch size {self.max_texts}"
        longest = max(self._counts(texts))
        return (
            f"`inputs` must have less than {self.max_tokens} tokens. Given: {longest}"
            if longest > self.max_tokens
            else None
        )


def _texts(request: Request, field: str) -> list[str]:
    """The texts of a request; none where it holds something else."""
    found = request.body.get(field) if is_object(request.body) else None
    texts: list[Any] = found if is_list(found) else [found]
    return texts if all(isinstance(text, str) and text for text in texts) else []


def _base64(row: Dense) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()


@contextmanager
def serving(app: Callable[[Mapping[str, Any], Receive, Send], Awaitable[None]]) -> Generator[str]:
    """Serve an ASGI application on a port of this machine, a thread for each connection; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one packet

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

        def answer(self) -> None:
            asyncio.run(self.run_app(self.rfile.read(int(self.headers.get("content-length", 0)))))

        do_GET = do_POST = answer  # noqa: N815

        async def run_app(self, body: bytes) -> None:
            async def receive() -> MutableMapping[str, Any]:
                return {"type": "http.request", "body": body}

            async def send(event: MutableMapping[str, Any]) -> None:
                if event["type"] == "http.response.start":
                    self.send_response(event["status"])
                    for name, value in event["headers"]:
                        self.send_header(name.decode(), value.decode())
                    self.end_headers()
                else:
                    self.wfile.write(event.get("body", b""))
                    self.wfile.flush()

            headers = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
            await app({"type": "http", "method": self.command, "path": self.path, "headers": headers}, receive, send)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
