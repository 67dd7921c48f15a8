"""How much is asked of a server, and how fast."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, fields
from typing import ClassVar

from reperio.errors import ConfigurationError

__all__ = ["Limits", "Pace"]

_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server is asked for at once and in a minute, and how long it is waited for.

    Attributes
    ----------
    requests_per_minute, tokens_per_minute
        What the server's owner allows; no limit where None. In no minute are more requests begun, retries among
        them; tokens are counted where a tokenizer is given, else estimated from the counts that came back.
    concurrency
        Most requests under way at once, whoever calls the encoder.
    retries
        How often a request is sent again after an answer of 408, 409, 425, 429 or 5xx, or none at all. The waits
        between grow from half a second to a minute, each with some chance in it, and last as long as the server
        asks for.
    timeout
        Seconds without a sign of life after which a request counts as not answered.
    longest_wait
        Most seconds that a server may ask to wait; where it asks for more, the call fails at once.
    batch_texts, batch_chars
        Most texts in one request, and most characters, prompts among them. A longer text goes alone.

    Raises
    ------
    ConfigurationError
        For a number out of range.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where it is built from a specification

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    concurrency: int = 4
    retries: int = 6
    timeout: float = 60.0
    longest_wait: float = 300.0
    batch_texts: int = 32
    batch_chars: int = 100_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name in {"retries", "longest_wait"} else None
            if value is None and field.default is None:
                continue
            whole = isinstance(field.default, int)
            if not isinstance(value, int) and (whole or not isinstance(value, float)):
                kind = "a whole number" if whole else "a number"
                raise ConfigurationError(f"limits.{field.name} is {value!r}.", f"Give {kind}.")
            if not (value > 0 or value == least):
                fix = "Use 0 or more." if least == 0 else "Use more than 0."
                raise ConfigurationError(f"limits.{field.name} is {value}.", fix)


class Pace:
    """Lets requests pass one after the other, as fast as the limits allow; of one event loop."""

    def __init__(self, limits: Limits) -> None:
        allowed = (limits.requests_per_minute, limits.tokens_per_minute)
        self._requests, self._tokens = (None if limit is None else _Budget(limit) for limit in allowed)
        self._held = float("-inf")
        self._gate = asyncio.Lock()

    async def pass_on(self, tokens: float) -> None:
        """Return when a request of so many tokens may be sent: it counts from now on."""
        loop = asyncio.get_running_loop()
        async with self._gate:  # whoever is first goes first
            while True:
                now = loop.time()
                at = max(now, self._held)
                if self._requests is not None:
                    at = self._requests.earliest(at, 1)
                if self._tokens is not None:
                    at = self._tokens.earliest(at, tokens)
                if at <= now:
                    break
                await asyncio.sleep(at - now)
            if self._requests is not None:
                self._requests.spend(now, 1)
            if self._tokens is not None:
                self._tokens.spend(now, tokens)

    def correct(self, estimated: float, counted: int) -> None:
        """Tell how many tokens a request had in truth."""
        if self._tokens is not None and counted > estimated:
            self._tokens.spend(asyncio.get_running_loop().time(), counted - estimated)

    def hold(self, seconds: float) -> None:
        """Send nothing more for so long."""
        self._held = max(self._held, asyncio.get_running_loop().time() + seconds)


class _Budget:
    """An amount for each minute, spent evenly: never more in any minute, save one request that alone is more."""

    def __init__(self, per_minute: float) -> None:
        self._limit = per_minute
        self._spent = deque[tuple[float, float]]()
        self._sum = 0.0
        self._free = float("-inf")

    def earliest(self, now: float, amount: float) -> float:
        """When so much may be spent, if nothing else is until then."""
        at = max(now, self._free)
        total = self._sum
        for when, spent in self._spent:
            if when + _MINUTE > at:
                if total + amount <= self._limit:
                    break
                at = when + _MINUTE
            total -= spent
        return at

    def spend(self, now: float, amount: float) -> None:
        while self._spent and self._spent[0][0] + _MINUTE <= now:
            self._sum -= self._spent.popleft()[1]
        self._spent.append((now, amount))
        self._sum += amount
        # Even steps, since some servers count by the second.
        self._free = max(now, self._free) + amount * _MINUTE / self._limit
