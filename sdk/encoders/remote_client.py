"""Requests that are paced, repeated where that may help, and refused in plain words where it does not."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from reperio import extras
from reperio.encoders.remote_answers import is_object
from reperio.encoders.remote_limits import Limits, Pace
from reperio.errors import ConfigurationError, InvalidInput, InvalidResponse, ReperioError, ServerUnavailable

__all__ = ["Answer", "Client", "Refused"]

_AGAIN = {408, 409, 425, 429}
_REFUSED = {400, 413, 422}
_FIRST_WAIT, _LONGEST_BACK_OFF = 0.5, 60.0
_RETRIES_OF_A_STRANGER = 2  # what has never answered is most likely another address
_SPENT = ("insufficient_quota", "billing_hard_limit_reached")  # these come as 429, and no wait helps
_SHOWN = 300


class Refused(InvalidInput):
    """The server takes exception to the texts of a request, or to how many they are."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the body as JSON, and the headers."""

    body: Any
    headers: Mapping[str, str]


class Client:
    """Talks to one server; of one event loop.

    Parameters
    ----------
    url
        Where all paths begin.
    api_key_env
        Environment variable that holds the key, read anew for each request; none is sent where None.
    limits
        How much is asked at once, and how long one waits.
    transport
        An ``httpx.AsyncBaseTransport`` in place of the network.
    """

    def __init__(self, url: str, *, api_key_env: str | None, limits: Limits, transport: Any = None) -> None:
        self._httpx = extras.load("httpx", extra="remote")
        self._url = url
        self._key_env = api_key_env
        self._limits = limits
        self._pace = Pace(limits)
        self._places = asyncio.Semaphore(limits.concurrency)
        self._known = False
        self._client = self._httpx.AsyncClient(
            timeout=limits.timeout,
            limits=self._httpx.Limits(max_connections=limits.concurrency),
            transport=transport,
            verify=url.startswith("https:"),  # else the certificates need not be read, which takes longest here
        )

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    def correct(self, estimated: float, counted: int) -> None:
        """Tell how many tokens a request had in truth."""
        self._pace.correct(estimated, counted)

    async def ask(
        self,
        method: Literal["GET", "POST"],
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        tokens: float = 0,
        tally: Counter[str] | None = None,
    ) -> Answer:
        """Send a request until there is an answer.

        Raises
        ------
        Refused
            If the server says that what was sent is at fault (400, 413, 422).
        ConfigurationError
            For the wrong key, address or model: nothing that a retry could mend.
        ServerUnavailable
            If there is no good answer after the last retry.
        InvalidResponse
            If the answer is not JSON.
        """
        tried = 0
        while True:
            if tally is not None:
                tally.update(requests=1, retries=int(tried > 0))
            trouble, wait = await self._try(method, f"{self._url}/{path}", body, tokens)
            if isinstance(trouble, Answer):
                return trouble
            tried += 1
            if tried > (self._limits.retries if self._known else min(self._limits.retries, _RETRIES_OF_A_STRANGER)):
                problem = f"{self._url}/{path} {trouble}, {_times(tried)}."
                raise ServerUnavailable(problem, "Look after the server, or allow more limits.retries.")
            back_off = min(_LONGEST_BACK_OFF, _FIRST_WAIT * 2 ** (tried - 1)) * random.uniform(0.5, 1)
            if wait is not None and wait > self._limits.longest_wait:
                problem = f"{self._url}/{path} {trouble}, and asks to wait for {wait:.0f} seconds."
                raise ServerUnavailable(problem, f"Come back then; limits.longest_wait is {self._limits.longest_wait}.")
            if wait is not None:
                self._pace.hold(wait)  # the others would be turned away as well
            await asyncio.sleep(max(wait or 0.0, back_off))

    async def _try(
        self, method: str, url: str, body: Mapping[str, Any] | None, tokens: float
    ) -> tuple[Answer | str, float | None]:
        """The answer; or what went wrong that may pass, and how long the server asks to wait."""
        httpx = self._httpx
        async with self._places:
            await self._pace.pass_on(tokens)
            try:
                response = await self._client.request(method, url, json=body, headers=self._headers())
            except httpx.TimeoutException as error:
                return f"did not answer in {self._limits.timeout:g} seconds ({type(error).__name__})", None
            except httpx.TransportError as error:
                return f"cannot be reached ({type(error).__name__}: {self._safe(str(error))})", None
            except httpx.DecodingError as error:
                raise InvalidResponse(f"{url} sent what cannot be unpacked.", "Look after the server.") from error
        self._known = True
        if response.is_success:
            return Answer(self._json(response, url), response.headers), None
        said = self._said(response)
        if (response.status_code in _AGAIN or response.status_code >= 500) and not _is_spent(response):
            return f"answered {response.status_code}: {said}", _asked_to_wait(response.headers)
        raise self._refusal(response, url, said)

    def _headers(self) -> dict[str, str]:
        if self._key_env is None:
            return {}
        key = os.environ.get(self._key_env, "")
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            state = "is not set" if not key else "holds white space or letters that no key has"
            raise ConfigurationError(f"The environment variable {self._key_env} {state}.", "Set it to the API key.")
        return {"Authorization": f"Bearer {key}"}

    def _json(self, response: Any, url: str) -> Any:
        try:
            return json.loads(response.content)
        except (ValueError, RecursionError) as error:
            kind = response.headers.get("content-type", "no content type")
            what = f"{len(response.content)} bytes of {kind}" if response.content else "an empty body"
            problem = f"{url} answered {response.status_code} with {what}, which is not JSON."
            raise InvalidResponse(problem, "Check that the url is an embeddings server's.") from error

    def _said(self, response: Any) -> str:
        """The server's own words, short, and without the key."""
        if "html" in response.headers.get("content-type", ""):
            return "an HTML page"
        try:
            text = _message(json.loads(response.content))
        except (ValueError, RecursionError):
            text = str(response.text)
        text = self._safe(" ".join(text.split()).rstrip("."))
        return f"{text[:_SHOWN]}…" if len(text) > _SHOWN else text or "nothing"

    def _safe(self, text: str) -> str:
        key = os.environ.get(self._key_env, "") if self._key_env else ""
        return text.replace(key, "…") if key else text

    def _refusal(self, response: Any, url: str, said: str) -> ReperioError:
        status = response.status_code
        problem = f"{url} answered {status}: {said}."
        if status in _REFUSED:
            return Refused(problem, "Mend what it names.")
        if status in {401, 403}:
            key = "No key was sent" if self._key_env is None else f"It refuses the key in {self._key_env}"
            return ConfigurationError(f"{problem} {key}.", "Set api_key_env to the variable that holds the right key.")
        if response.has_redirect_location:
            where = self._safe(response.headers["location"])
            return ConfigurationError(f"{url} leads to {where}.", "Give that address, if it is the right one.")
        if status in {404, 405}:
            return ConfigurationError(problem, "Check url, api and model.")
        if _is_spent(response):
            return ServerUnavailable(problem, "Look after the account: no wait helps.")
        return ConfigurationError(problem, "Mend what it names.")


def _message(body: Any) -> str:
    """What a server's error says, in the form of OpenAI, TEI, Ollama or FastAPI; the whole of it in any other."""
    if is_object(body):
        found = next((body[name] for name in ("error", "message", "detail") if body.get(name)), None)
        if found is not None:
            return _message(found)
    return body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)


def _is_spent(response: Any) -> bool:
    return response.status_code == 429 and any(word.encode() in response.content for word in _SPENT)


def _asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds, as told in milliseconds, in seconds, or by the clock of the server."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if seconds >= 0:  # and not NaN
            return seconds
    try:
        until = parsedate_to_datetime(headers.get("retry-after", "")).timestamp()
    except (TypeError, ValueError):
        return None
    try:
        now = parsedate_to_datetime(headers.get("date", "")).timestamp()
    except (TypeError, ValueError):
        now = time.time()
    return max(0.0, until - now)


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
