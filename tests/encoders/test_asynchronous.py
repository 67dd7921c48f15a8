"""An event loop stays free while an encoder works."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from reperio import meter
from reperio.embeddings import to_bytes
from reperio.encoders import HashEncoder, HashWeights, aencode_document, aencode_query
from reperio.errors import ConfigurationError, EmptyText
from reperio.types import Encoded

WORDS = [f"text {number} of many" for number in range(20)]


class Slow(HashEncoder):
    """Takes its time, and tells which batches it was given and where."""

    def __init__(self) -> None:
        super().__init__(64)
        self.batches: list[int] = []
        self.threads: set[int] = set()

    def encode_document(self, texts: Sequence[str], /) -> Encoded[Any]:
        self.batches.append(len(texts))
        self.threads.add(threading.get_ident())
        time.sleep(0.05)
        bad = [position for position, text in enumerate(texts) if text == "bad"]
        if bad:
            raise EmptyText(f"texts[{bad[0]}] has no token.", "Drop it.")
        return super().encode_document(texts)


@pytest.mark.parametrize("inner", [HashEncoder(), HashWeights()])
@pytest.mark.parametrize("size", [7, 256])
def test_it_gives_what_the_encoder_gives_and_counts_it(inner: Any, size: int) -> None:
    with meter.measure() as counts:
        for ours, plain in ((aencode_query, inner.encode_query), (aencode_document, inner.encode_document)):
            found, wanted = asyncio.run(ours(inner, WORDS, batch_size=size)), plain(WORDS)
            assert to_bytes(found.embeddings) == to_bytes(wanted.embeddings)
            assert found.token_counts.tolist() == wanted.token_counts.tolist()
    assert counts["texts"] == 4 * len(WORDS)


def test_the_loop_turns_meanwhile() -> None:
    async def both() -> int:
        turns = 0
        task = asyncio.create_task(aencode_document(Slow(), WORDS, batch_size=10))
        while not task.done():
            await asyncio.sleep(0.005)
            turns += 1
        return turns

    assert asyncio.run(both()) >= 5


def test_a_cancelled_task_begins_no_further_batch() -> None:
    encoder = Slow()

    async def cancelled() -> None:
        task = asyncio.create_task(aencode_document(encoder, WORDS, batch_size=2))
        await asyncio.sleep(0.07)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        begun = len(encoder.batches)
        await asyncio.sleep(0.15)
        assert len(encoder.batches) == begun < 10

    asyncio.run(cancelled())
    assert threading.get_ident() not in encoder.threads


def test_an_encoder_that_is_asynchronous_itself_is_awaited() -> None:
    class Remote(HashEncoder):
        async def aencode_query(self, texts: Sequence[str], /) -> Encoded[Any]:
            return Encoded(np.full((len(texts), 2), 7, np.float32), np.ones(1, np.int64), np.zeros(1, np.bool_))

    assert asyncio.run(aencode_query(Remote(), ["a"])).embeddings.tolist() == [[7, 7]]


def test_bad_input_is_named_by_its_position_among_all() -> None:
    for texts in ([*WORDS[:13], " "], [*WORDS[:13], "bad"]):
        with pytest.raises(EmptyText, match=r"texts\[13\]"):
            asyncio.run(aencode_document(Slow(), texts, batch_size=5))
    with pytest.raises(ConfigurationError, match="batch_size is 0"):
        asyncio.run(aencode_query(Slow(), WORDS, batch_size=0))
