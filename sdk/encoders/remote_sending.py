"""A job as requests: several at once, each answer in its place, all or nothing."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

from reperio.encoders.remote_client import Client, Refused
from reperio.encoders.remote_job import UNKNOWN, Job, too_long
from reperio.encoders.remote_limits import Limits
from reperio.encoders.remote_wire import Identity, Wire
from reperio.errors import InvalidInput, InvalidResponse, ServerUnavailable, TruncationError

__all__ = ["Sending"]

E = TypeVar("E")

_TOKENS_PER_CHARACTER = 0.5  # until answers tell; more than Latin scripts have
_TOO_LONG = re.compile(r"token|context length|too long", re.IGNORECASE)


class Sending(Generic[E]):
    """Sends jobs, and learns from the answers how large a request may be and how many tokens it has.

    Parameters
    ----------
    wire
        The form of requests and answers.
    limits
        How much is asked at once.
    check
        Refuses embeddings of another dimension.
    """

    def __init__(self, wire: Wire[E], limits: Limits, check: Callable[[E], None]) -> None:
        self._wire, self._limits, self._check = wire, limits, check
        self._most = limits.batch_texts
        self._seen = Counter[str]()
        self._identity: Identity | None = None

    async def identity(self, client: Client) -> Identity:
        """Which model answers; asked once."""
        if self._identity is None:
            self._identity = await self._wire.identify(client)
        return self._identity

    async def run(self, job: Job, client: Client) -> list[E]:
        """Embeddings of all pieces, in parts, in their order.

        Raises
        ------
        ReperioError
            Of the first request that failed for good; the others are given up.
        """
        parts = self._parts(job, await self.identity(client))
        out: list[list[E]] = [[] for _ in parts]
        waiting = iter(enumerate(parts))

        async def work() -> None:
            for number, (low, high) in waiting:
                out[number] = await self._part(job, client, low, high)

        try:
            async with asyncio.TaskGroup() as group:
                # Twice as many as may be under way at once: some wait for their next try.
                for _ in range(min(len(parts), 2 * self._limits.concurrency)):
                    group.create_task(work())
        except ExceptionGroup as several:
            first = several.exceptions[0]
            raise first from first.__cause__
        return [embeddings for part in out for embeddings in part]

    def _parts(self, job: Job, identity: Identity) -> list[tuple[int, int]]:
        """Where each request begins and ends."""
        most, room = min(self._most, identity.batch_texts or self._most), float(self._limits.batch_chars)
        if self._limits.tokens_per_minute is not None:
            room = min(room, self._limits.tokens_per_minute / self._rate())
        cuts, chars = [0], 0
        for i, piece in enumerate(job.pieces):
            if i > cuts[-1] and (i - cuts[-1] >= most or chars + len(piece) > room):
                cuts.append(i)
                chars = 0
            chars += len(piece)
        ends = [*cuts[1:], len(job.pieces)]
        return [(low, high) for low, high in zip(cuts, ends, strict=True) if low < high]

    async def _part(self, job: Job, client: Client, low: int, high: int) -> list[E]:
        """Embeddings of some pieces; of half as many at a time where the server refuses so many."""
        try:
            return [await self._asked(job, client, low, high)]
        except (ServerUnavailable, InvalidResponse) as error:
            problem = f"{job.where(low, high)} cannot be encoded: {error.problem}"
            raise type(error)(problem, error.fix) from error.__cause__
        except Refused as error:
            if high - low == 1:
                kind = TruncationError if _TOO_LONG.search(error.problem) else InvalidInput
                raise kind(f"{job.where(low, high)} is refused: {error.problem}", error.fix) from None
        middle = (low + high) // 2
        first = await self._part(job, client, low, middle)
        second = await self._part(job, client, middle, high)
        self._most = min(self._most, high - middle)  # each half is fine, so both were too many
        return first + second

    async def _asked(self, job: Job, client: Client, low: int, high: int) -> E:
        texts = job.pieces[low:high]
        if self._wire.counts and (job.counts[job.owners[low:high]] == UNKNOWN).any():
            await self._count(job, client, low, high)
        known = job.tokens(low, high)
        expected = self._rate() * sum(map(len, texts)) if known is None else float(known)
        body = self._wire.body(texts, job.fields)
        try:
            answer = await client.ask("POST", self._wire.path, body, tokens=expected, tally=job.tally)
        except Refused as refused:
            if not self._wire.gives_way(refused, body):
                raise
            return await self._asked(job, client, low, high)
        batch = self._wire.read(answer, len(texts))
        self._check(batch.embeddings)
        tokens = known if batch.tokens is None else batch.tokens
        if tokens is not None:
            job.tally["tokens"] += tokens
            self._seen.update(tokens=tokens, characters=sum(map(len, texts)))
            client.correct(expected, tokens)
        return batch.embeddings

    async def _count(self, job: Job, client: Client, low: int, high: int) -> None:
        """Have the server count, and refuse here what it would refuse, but by its position."""
        counts = np.array(await self._wire.count(client, job.pieces[low:high], job.fields), dtype=np.int64)
        limit = (await self.identity(client)).max_tokens
        over = np.flatnonzero(counts > (limit or np.inf))
        if len(over):
            raise too_long(job.start + low + int(over[0]), int(counts[over[0]]), limit)
        job.counts[low:high] = counts

    def _rate(self) -> float:
        """Tokens a character, as far as is known."""
        seen = self._seen
        return seen["tokens"] / seen["characters"] if seen["tokens"] else _TOKENS_PER_CHARACTER
