"""What remote encoders share: the settings, the connections, and every way to call them."""

from __future__ import annotations

import asyncio
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Self, TypeAlias, TypeVar, get_args
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from reperio import forks, meter
from reperio.encoders.remote_client import Client
from reperio.encoders.remote_job import Job, prepare
from reperio.encoders.remote_limits import Limits
from reperio.encoders.remote_loop import Background
from reperio.encoders.remote_reading import RemoteReading, Tokenizer
from reperio.encoders.remote_sending import Sending
from reperio.encoders.remote_wire import Wire
from reperio.encoders.texts import check_batch
from reperio.errors import ConfigurationError, ReperioError, ServerUnavailable
from reperio.models.inputs import Role
from reperio.models.windows import OVERLAP
from reperio.protocols import Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["Endpoint", "Prompts"]

E = TypeVar("E")

Prompts: TypeAlias = Mapping[Role, str | Mapping[str, Any]]
"""By role: what is put before each text, or what is sent beside the texts."""

VERSION = 1
"""Raised whenever the same server would give other numbers here."""

_AHEAD = 2  # parts of a stream that are under way while another is looked at


@dataclass(frozen=True, slots=True)
class _Session:
    client: Client
    loop: Background
    finaliser: weakref.finalize[..., Any]


class Endpoint(ABC, Generic[E]):
    """An encoder on a server.

    Attributes
    ----------
    transport
        An ``httpx.AsyncBaseTransport`` that carries the requests in place of the network, as tests want it. Set it
        before the first request; it is no part of ``spec``.
    """

    def __init__(
        self,
        url: str,
        wire: Wire[E],
        *,
        api_key_env: str | None,
        prompts: Prompts | None,
        reading: RemoteReading | None,
        limits: Limits | None,
    ) -> None:
        self.url = _checked_url(url)
        self.api_key_env = api_key_env
        self.prompts = _checked_prompts(prompts)
        self.reading = reading or RemoteReading()
        self.limits = limits or Limits()
        self.transport: Any = None
        self._sending = Sending(wire, self.limits, self._check)
        self._tokenizer: Tokenizer | None = None
        self._session: _Session | None = None
        self._orphans: list[_Session | None] = []
        self._lock = threading.Lock()
        forks.follow(self)

    @property
    @abstractmethod
    def spec(self) -> Spec:
        """How to build this encoder again; it holds no key."""

    @property
    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """What must be equal for two embeddings to compare; asks the server, once.

        The model is told by its name, and by the commit or digest of its weights where the server knows it (TEI,
        Ollama). Where the server is does not matter. A server that changes its model under the same name is not
        seen here: a collection sees it by its canary texts, whenever it is opened for writing.
        """

    def encode_query(self, texts: Sequence[str], /) -> Encoded[E]:
        """Embeddings of queries; see `encode_document`."""
        return self._encode(texts, "query")

    def encode_document(self, texts: Sequence[str], /) -> Encoded[E]:
        """Embeddings of documents.

        It may be called from any thread, also in a notebook or under another running loop, which waits meanwhile.

        Returns
        -------
        Encoded
            ``embeddings`` in the order of ``texts``. ``token_counts`` are those of the whole text with its prompt,
            and -1 where neither a tokenizer nor the server tells.

        Raises
        ------
        EmptyText, InvalidInput
            For what is no text; or if the server refuses one, in its own words. Names the position.
        TruncationError
            If a text is longer than the model reads, where that is refused.
        ServerUnavailable
            If a request got no good answer after the last retry. Names the texts.
        InvalidResponse
            If an answer is not what was asked for: fewer embeddings, another dimension or model, NaN, no JSON.
        ConfigurationError
            For a key, address, model or setting that the server does not take.

        In each case nothing is returned: none of the texts counts as encoded.
        """
        return self._encode(texts, "document")

    async def aencode_query(self, texts: Sequence[str], /) -> Encoded[E]:
        """As `encode_query`, while the caller's loop goes on; cancelling it ends its requests."""
        return await self._aencode(texts, "query")

    async def aencode_document(self, texts: Sequence[str], /) -> Encoded[E]:
        """As `encode_document`, while the caller's loop goes on; cancelling it ends its requests."""
        return await self._aencode(texts, "document")

    def encode_stream(
        self, texts: Iterable[str], /, *, role: Role = "document", batch_size: int = 1024
    ) -> Iterator[Encoded[E]]:
        """Encode any number of texts, ``batch_size`` at a time, in order; three such parts are in memory at once.

        Errors name the position in the whole stream; what was given before stays good.
        """
        _check_stream(texts, role, batch_size)
        return self._stream(iter(texts), role, batch_size)

    def aencode_stream(
        self, texts: Iterable[str], /, *, role: Role = "document", batch_size: int = 1024
    ) -> AsyncIterator[Encoded[E]]:
        """As `encode_stream`, for ``async for``."""
        _check_stream(texts, role, batch_size)
        return self._astream(iter(texts), role, batch_size)

    def close(self) -> None:
        """End what is under way and let go of all connections; the next call makes new ones."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.finaliser.detach()
            session.loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def after_fork(self) -> None:
        """Begin anew in a child: the thread and its connections are the parent's."""
        self._lock = threading.Lock()
        self._orphans.append(self._session)  # not collected, which would close what the parent uses
        self._session = None

    @abstractmethod
    def _check(self, embeddings: E, /) -> None:
        """Refuse embeddings of another dimension than all before."""

    @abstractmethod
    def _joined(self, parts: Sequence[E], /) -> E:
        """The parts one after the other."""

    @abstractmethod
    def _of_texts(self, pieces: E, owners: NDArray[np.int64], /) -> E:
        """Windows' embeddings, made into those of their texts."""

    def _settings(self) -> dict[str, Any]:
        """The part of ``spec`` that is the same for all."""
        reading = asdict(self.reading)
        if self.reading.tokenizer is not None:
            reading["tokenizer"] = str(Path(self.reading.tokenizer).resolve())
        return {
            "api_key_env": self.api_key_env,
            "prompts": {role: p if isinstance(p, str) else dict(p) for role, p in self.prompts.items()},
            "reading": reading,
            "limits": asdict(self.limits),
        }

    def _fingerprint(self, kind: str, dim: int) -> Fingerprint:
        session = self._working()
        identity = _result(session.loop.submit(self._sending.identity(session.client)))
        known = identity.name if identity.revision is None else f"{identity.name}@{identity.revision}"
        how: object = "refused"
        if self.reading.on_truncation != "error":
            windows = {"windows overlap": OVERLAP} if self.reading.on_truncation == "chunk" else "cut"
            how = [windows, self.reading.max_tokens, self._counting(self.reading.tokenizer or "").digest]
        prompts = {role: self.prompts.get(role, "") for role in get_args(Role)}
        fields = {"name": identity.name, "revision": identity.revision, "prompts": prompts, "truncation": how}
        return Fingerprint.make(kind, known, dim, **fields, version=VERSION)

    def _encode(self, texts: Sequence[str], role: Role) -> Encoded[E]:
        job = self._prepared(texts, role)
        return self._finished(job, _result(self._begin(job)))

    async def _aencode(self, texts: Sequence[str], role: Role) -> Encoded[E]:
        job = await asyncio.to_thread(self._prepared, texts, role)
        parts = await asyncio.wrap_future(self._begin(job))
        return await asyncio.to_thread(self._finished, job, parts)

    def _stream(self, texts: Iterator[str], role: Role, size: int) -> Iterator[Encoded[E]]:
        pending = deque[tuple[Job, Future[list[E]]]]()
        start = 0
        try:
            while True:
                while len(pending) < _AHEAD and (some := list(islice(texts, size))):
                    pending.append(self._ahead(some, role, start))
                    start += len(some)
                if not pending:
                    return
                job, future = pending.popleft()
                yield self._finished(job, _result(future))
        finally:
            for _, future in pending:
                future.cancel()

    async def _astream(self, texts: Iterator[str], role: Role, size: int) -> AsyncIterator[Encoded[E]]:
        pending = deque[tuple[Job, Future[list[E]]]]()
        start = 0
        try:
            while True:
                while len(pending) < _AHEAD and (some := list(islice(texts, size))):
                    pending.append(await asyncio.to_thread(self._ahead, some, role, start))
                    start += len(some)
                if not pending:
                    return
                job, future = pending.popleft()
                parts = await asyncio.wrap_future(future)
                yield await asyncio.to_thread(self._finished, job, parts)
        finally:
            for _, future in pending:
                future.cancel()

    def _ahead(self, texts: Sequence[str], role: Role, start: int) -> tuple[Job, Future[list[E]]]:
        """A part of a stream, under way; what is wrong with it is told when its turn comes."""
        try:
            job = self._prepared(texts, role, start)
            return job, self._begin(job)
        except ReperioError as error:
            failed = Future[list[E]]()
            failed.set_exception(error)
            return prepare([], "", reading=self.reading, tokenizer=None, start=start), failed

    def _prepared(self, texts: Sequence[str], role: Role, start: int = 0) -> Job:
        path = self.reading.tokenizer
        tokenizer = None if path is None else self._counting(path)
        return prepare(texts, self.prompts.get(role, ""), reading=self.reading, tokenizer=tokenizer, start=start)

    def _begin(self, job: Job) -> Future[list[E]]:
        session = self._working()
        return session.loop.submit(self._sending.run(job, session.client))

    def _finished(self, job: Job, parts: Sequence[E]) -> Encoded[E]:
        embeddings = self._joined(parts)
        if job.in_windows:
            embeddings = self._of_texts(embeddings, job.owners)
        for name, number in job.tally.items():
            meter.count(name, number)
        meter.count("texts", len(job.counts))
        meter.count("truncated", int(job.truncated.sum()))
        return Encoded(embeddings, job.counts, job.truncated)

    def _counting(self, path: str) -> Tokenizer:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = Tokenizer(path, self.reading.max_tokens)
            return self._tokenizer

    def _working(self) -> _Session:
        with self._lock:
            if self._session is None:
                client = Client(self.url, api_key_env=self.api_key_env, limits=self.limits, transport=self.transport)
                loop = Background(client.close)
                self._session = _Session(client, loop, weakref.finalize(self, loop.stop))
            return self._session


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except CancelledError:
        raise ServerUnavailable("The encoder was closed before the server had answered.", "Call it again.") from None
    except BaseException:  # an interrupt, too, ends the requests
        future.cancel()
        raise


def _checked_url(url: str) -> str:
    fix = "Give where the server is, as 'http://localhost:8000/v1' or 'https://api.example.com/v1'."
    try:
        parts = urlsplit(url)
        _ = parts.port
    except (ValueError, AttributeError) as error:
        raise ConfigurationError(f"url is no address: {error}.", fix) from None
    if parts.username or parts.password or parts.query or parts.fragment:
        problem = "url holds a user, a password or a query, which would be written down with it."
        raise ConfigurationError(problem, "Give the address alone, and the key through api_key_env.")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigurationError(f"url is {url!r}.", fix)
    path = parts.path.rstrip("/")
    if path.endswith(("/embeddings", "/embed", "/embed_sparse")):
        raise ConfigurationError(f"url is {url!r}, which names one endpoint.", "Leave out the last part of its path.")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _checked_prompts(prompts: Prompts | None) -> Prompts:
    for role in prompts or {}:
        if role not in get_args(Role):
            raise ConfigurationError(f"prompts has the role {role!r}.", f"Use {' or '.join(get_args(Role))}.")
    return dict(prompts or {})


def _check_stream(texts: Iterable[str], role: str, batch_size: int) -> None:
    check_batch(texts)
    if role not in get_args(Role):
        raise ConfigurationError(f"role is {role!r}.", f"Use {' or '.join(get_args(Role))}.")
    if batch_size <= 0:
        raise ConfigurationError(f"batch_size is {batch_size}.", "Use 1 or more.")
