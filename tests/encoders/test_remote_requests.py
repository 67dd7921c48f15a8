"""How requests are sent: paced, repeated, several at once, in order, and never left behind.

Most tests run in virtual time: a loop whose clock jumps to the next timer when nothing else is to do.
"""

from __future__ import annotations

import asyncio
import gc
import random
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from email.utils import formatdate
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reperio.encoders import HashEncoder, RemoteEncoder
from reperio.encoders.remote_limits import Limits, Pace
from reperio.errors import EmptyText, InvalidInput, InvalidResponse, ServerUnavailable
from reperio.meter import measure
from reperio.testing.endpoint import EmbeddingsApp, Reply, Request, serving

TEXTS = [f"text {i} on merging" for i in range(40)]
WANTED = HashEncoder(16).encode_document(TEXTS).embeddings


class _Jump(selectors.DefaultSelector):
    """Waits for no timer, only for what other threads or sockets bring."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            return super().select(None)
        ready = super().select(0)
        if not ready:
            self.loop.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop in virtual time."""

    def __init__(self) -> None:
        selector = _Jump()
        selector.loop = self
        self.now = 0.0
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def in_virtual_time(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(work())
    finally:
        loop.close()


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reperio.encoders.remote_loop.asyncio.new_event_loop", VirtualLoop)


class Scripted:
    """An application that answers as it is told, and keeps when it was asked for what."""

    def __init__(self, *faults: Reply | Exception | None, takes: Callable[[Request], float] = lambda _: 0.0) -> None:
        self.app = EmbeddingsApp(HashEncoder(16), model="hashed")
        self.app.before = self._before
        self.times: list[float] = []
        self.most = 0
        self._faults, self._takes, self._now = list(faults), takes, 0

    @property
    def asked(self) -> list[str]:
        return [text for request in self.app.requests for text in request.body["input"]]

    async def _before(self, request: Request) -> Reply | None:
        self.times.append(asyncio.get_running_loop().time())
        fault = self._faults.pop(0) if self._faults else None
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            await asyncio.sleep(self._takes(request))
        finally:
            self._now -= 1
        if isinstance(fault, Exception):
            raise fault
        return fault

    def encoder(self, **limits: Any) -> RemoteEncoder:
        encoder = RemoteEncoder("http://server/v1", "hashed", limits=Limits(**{"batch_texts": 4, **limits}))
        encoder.transport = httpx.ASGITransport(self.app)
        return encoder


# Limits


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=30),
    st.one_of(st.none(), st.integers(1, 30)),
    st.one_of(st.none(), st.integers(50, 1000)),
    st.integers(0, 2**32),
)
def test_in_no_minute_is_more_sent_than_the_limits_allow(
    tokens: list[int], requests: int | None, most: int | None, seed: int
) -> None:
    sent, chance = list[tuple[float, int]](), random.Random(seed)
    pace_limits = Limits(requests_per_minute=requests, tokens_per_minute=most)

    async def work() -> None:
        pace, loop = Pace(pace_limits), asyncio.get_running_loop()

        async def one(size: int) -> None:
            await asyncio.sleep(chance.choice([0, 0, chance.uniform(0, 200)]))
            await pace.pass_on(size)
            sent.append((loop.time(), size))

        await asyncio.gather(*map(one, tokens))

    in_virtual_time(work)
    assert len(sent) == len(tokens)
    for at, size in sent:
        minute = [other for when, other in sent if at - 60 + 1e-6 < when <= at]
        assert requests is None or len(minute) <= requests
        assert most is None or sum(minute) <= most or minute == [size]


def test_as_much_is_sent_as_the_limits_allow() -> None:
    async def work() -> float:
        pace = Pace(Limits(requests_per_minute=60, tokens_per_minute=6000))
        for _ in range(301):
            await pace.pass_on(100)
        return asyncio.get_running_loop().time()

    assert in_virtual_time(work) == pytest.approx(300, abs=1)


def test_tokens_that_were_estimated_too_low_are_made_up_for() -> None:
    async def work() -> float:
        pace = Pace(Limits(tokens_per_minute=600))
        await pace.pass_on(10)
        pace.correct(10, 300)
        await pace.pass_on(10)
        return asyncio.get_running_loop().time()

    assert in_virtual_time(work) == pytest.approx(30)


@pytest.mark.usefixtures("virtual")
def test_requests_a_minute_are_kept_by_an_encoder_whoever_calls_it() -> None:
    server = Scripted(takes=lambda _: 3.0)
    with server.encoder(requests_per_minute=6, concurrency=8) as encoder:
        threads = [threading.Thread(target=encoder.encode_document, args=[TEXTS]) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.times) == 20
    assert np.diff(server.times).min() >= 10 - 1e-6
    assert server.times[-1] == pytest.approx(190, abs=1)


@pytest.mark.usefixtures("virtual")
def test_tokens_a_minute_are_kept_by_what_the_server_counted() -> None:
    server = Scripted()
    with server.encoder(tokens_per_minute=160) as encoder:
        encoder.encode_document(TEXTS)  # 4 words each
        began = server.times[-1]
        server.times.clear()
        encoder.encode_document(TEXTS)
    assert len(server.times) == 10
    for at in server.times:
        assert sum(16 for when in server.times if at - 60 + 1e-6 < when <= at) <= 160
    assert server.times[-1] - began == pytest.approx(60, abs=7)


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize("most", [1, 3, 8])
def test_no_more_requests_are_under_way_than_allowed(most: int) -> None:
    server = Scripted(takes=lambda _: 1.0)
    with server.encoder(concurrency=most) as encoder:
        np.testing.assert_array_equal(encoder.encode_document(TEXTS).embeddings, WANTED)
    assert server.most == most
    assert server.times[-1] == pytest.approx(np.ceil(10 / most) - 1)


@pytest.mark.usefixtures("virtual")
def test_rows_are_in_order_whatever_order_the_answers_come_in() -> None:
    slow = {text: float(40 - i) for i, text in enumerate(TEXTS)}
    server = Scripted(takes=lambda request: slow[request.body["input"][0]])
    with server.encoder(concurrency=10) as encoder:
        np.testing.assert_array_equal(encoder.encode_document(TEXTS).embeddings, WANTED)


# Retries

PASSING = [Reply(status, {"error": "later"}) for status in (408, 409, 425, 429, 500, 502, 503, 504, 529)]
BROKEN = [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("cut off")]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([None, *PASSING, *BROKEN]), max_size=25), st.integers(1, 8), st.integers(1, 16))
def test_a_retry_repeats_no_row_and_loses_none(faults: list[Any], concurrency: int, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reperio.encoders.remote_loop.asyncio.new_event_loop", VirtualLoop)
        server = Scripted(None, *faults)  # one that has never answered is given up sooner
        with server.encoder(concurrency=concurrency, batch_texts=size, retries=30) as encoder:
            encoder.encode_document(["first"])
            found = encoder.encode_document(TEXTS)
    np.testing.assert_array_equal(found.embeddings, WANTED)
    failed = sum(fault is not None for fault in faults)
    assert len(server.times) - 1 >= -(-len(TEXTS) // size)
    assert len(server.times) - 1 <= -(-len(TEXTS) // size) + failed


@pytest.mark.usefixtures("virtual")
def test_the_waits_grow_and_have_some_chance_in_them() -> None:
    gaps = []
    for _ in range(2):
        server = Scripted(None, *[Reply(503, {})] * 9)
        with server.encoder(retries=9) as encoder:
            encoder.encode_query(["first"])
            encoder.encode_query(["second"])
        gaps.append(np.diff(server.times[1:]))
    longest = np.minimum(0.5 * 2 ** np.arange(9), 60)
    for gap in gaps:
        assert (gap <= longest + 1e-6).all()
        assert (gap >= longest / 2 - 1e-6).all()
    assert not np.allclose(*gaps)


@pytest.mark.usefixtures("virtual")
@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "37"}, 37),
        ({"retry-after": "0.75"}, 0.75),
        ({"retry-after-ms": "1500", "retry-after": "37"}, 1.5),
        ({"retry-after": formatdate(1_000_120, usegmt=True), "date": formatdate(1_000_000, usegmt=True)}, 120),
        ({"retry-after": formatdate(1_000_000, usegmt=True)}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "-5"}, 0),
        ({"retry-after": "nan"}, 0),
        ({}, 0),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_says_how_long_to_wait_is_obeyed(headers: dict[str, str], wait: float, status: int) -> None:
    server = Scripted(Reply(status, {"error": "later"}, headers))
    with server.encoder() as encoder:
        encoder.encode_query(["first"])
    assert server.times[1] >= wait
    assert server.times[1] <= max(wait, 0.5) + 1e-6


@pytest.mark.usefixtures("virtual")
def test_while_one_request_is_told_to_wait_no_other_is_sent() -> None:
    server = Scripted(Reply(429, {}, {"retry-after": "100"}), takes=lambda _: 1.0)
    with server.encoder(concurrency=2) as encoder:
        np.testing.assert_array_equal(encoder.encode_document(TEXTS).embeddings, WANTED)
    early = [at for at in server.times if at < 101]
    assert early == [0, 0]  # the second was under way


@pytest.mark.usefixtures("virtual")
def test_a_wait_that_is_too_long_is_an_error_at_once() -> None:
    server = Scripted(Reply(429, {"error": "daily limit"}, {"retry-after": "86400"}))
    with (
        server.encoder() as encoder,
        pytest.raises(ServerUnavailable, match=r"429: daily limit, and asks to wait for 86400 seconds"),
    ):
        encoder.encode_query(["first"])
    assert len(server.times) == 1


@pytest.mark.usefixtures("virtual")
def test_a_quota_that_is_spent_is_an_error_at_once() -> None:
    spent = {"error": {"message": "You exceeded your current quota.", "code": "insufficient_quota"}}
    server = Scripted(*[Reply(429, spent)] * 9)
    with server.encoder() as encoder, pytest.raises(ServerUnavailable, match=r"429: You exceeded .* no wait helps"):
        encoder.encode_query(["first"])
    assert len(server.times) == 1


@pytest.mark.usefixtures("virtual")
def test_a_total_failure_names_the_texts_the_cause_and_how_often_it_was_tried() -> None:
    class Failing(Scripted):
        async def _before(self, request: Request) -> Reply | None:
            bad = "text 17 on merging" in request.body["input"]
            return await super()._before(request) or (Reply(503, {"error": "no memory"}) if bad else None)

    server = Failing()
    with (
        server.encoder(retries=3) as encoder,
        pytest.raises(
            ServerUnavailable,
            match=r"texts\[16\] to texts\[19\] cannot be encoded: .*/v1/embeddings answered 503: no memory, 4 times",
        ),
    ):
        encoder.encode_document(TEXTS)


@pytest.mark.usefixtures("virtual")
def test_a_server_that_has_never_answered_is_given_up_soon() -> None:
    server = Scripted(*[httpx.ConnectError("refused")] * 20)
    with (
        server.encoder(retries=10) as encoder,
        pytest.raises(ServerUnavailable, match=r"cannot be reached \(ConnectError: refused\), 3 times"),
    ):
        encoder.encode_query(["first"])


def test_retries_are_counted(virtual: None) -> None:
    server = Scripted(None, Reply(503, {}), Reply(429, {}))
    encoder = server.encoder(concurrency=1)
    encoder.encode_query(["first"])
    with measure() as counts:
        encoder.encode_document(TEXTS[:8])
    encoder.close()
    assert (counts["requests"], counts["retries"]) == (4, 2)


# Real sockets


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_a_server_that_does_not_answer_is_given_up_after_the_timeout(listener: socket.socket) -> None:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    with (
        RemoteEncoder(url, "hashed", limits=Limits(timeout=0.1, retries=0)) as encoder,
        pytest.raises(ServerUnavailable, match=r"did not answer in 0\.1 seconds \(ReadTimeout\), once"),
    ):
        encoder.encode_query(["first"])


def test_a_server_that_dies_while_it_answers_is_asked_again(listener: socket.socket) -> None:
    def answer(whole: bool) -> None:
        connection = listener.accept()[0]
        with connection:
            connection.recv(65536)
            body = b'{"model": "hashed", "data": [{"index": 0, "embedding": [1, 2]}]}'
            head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            connection.sendall(head + (body if whole else body[:20]))

    serve = threading.Thread(target=lambda: [answer(False), answer(False), answer(True)])
    serve.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    with RemoteEncoder(url, "hashed") as encoder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("reperio.encoders.remote_client._FIRST_WAIT", 0.01)
        assert encoder.encode_query(["first"]).embeddings.tolist() == [[1, 2]]
    serve.join()


def _sockets() -> int:
    return sum(c.type == socket.SOCK_STREAM for c in psutil.Process().net_connections(kind="tcp"))


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "reperio-remote"]


def _soon(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 5
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)
    return holds()


def test_connections_are_kept_between_calls_and_none_is_left_after() -> None:
    gc.collect()
    assert _soon(lambda: not _threads())
    before = _sockets()
    with serving(EmbeddingsApp(HashEncoder(16), model="hashed")) as url:
        with RemoteEncoder(f"{url}/v1", "hashed", limits=Limits(batch_texts=4)) as encoder:
            for _ in range(5):
                encoder.encode_document(TEXTS)
            assert len(_threads()) == 1
            held = [c for c in psutil.Process().net_connections(kind="tcp") if c.raddr and c.raddr[1] == _port(url)]
            assert 1 <= len(held) <= 4
        assert not _threads()
        assert encoder.encode_query(["again"]).embeddings.shape == (1, 16)  # closed is not broken
        del encoder  # and forgotten is closed
        gc.collect()
        assert _soon(lambda: not _threads())
    assert _soon(lambda: _sockets() <= before)


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def test_an_error_leaves_no_request_under_way() -> None:
    server = Scripted(None, Reply(200, b"broken"), takes=lambda r: 0.0 if r.body["input"][0] == TEXTS[0] else 60.0)
    with server.encoder(concurrency=8) as encoder:
        encoder.encode_document(TEXTS[:1])
        with pytest.raises(InvalidResponse):
            encoder.encode_document(TEXTS)
        assert _soon(lambda: server._now == 0)


# From notebooks, loops and threads


def test_it_works_where_a_loop_is_running() -> None:
    server = Scripted()

    async def notebook() -> Any:
        return encoder.encode_document(TEXTS).embeddings

    with server.encoder() as encoder:
        np.testing.assert_array_equal(asyncio.run(notebook()), WANTED)


def test_it_is_asynchronous_in_any_number_of_loops() -> None:
    server = Scripted()

    async def both() -> Any:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        found = await asyncio.gather(encoder.aencode_document(TEXTS), encoder.aencode_query(TEXTS[:3]))
        ticking.cancel()
        assert ticks > 10  # this loop went on meanwhile
        return found

    with server.encoder() as encoder:
        for _ in range(2):
            documents, queries = asyncio.run(both())
            np.testing.assert_array_equal(documents.embeddings, WANTED)
            np.testing.assert_array_equal(queries.embeddings, WANTED[:3])
        assert len(_threads()) >= 1


def test_cancelling_ends_the_requests() -> None:
    server = Scripted(takes=lambda _: 60.0)

    async def given_up() -> None:
        task = asyncio.create_task(encoder.aencode_document(TEXTS))
        while server._now < 4:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with server.encoder() as encoder:
        asyncio.run(given_up())
        assert _soon(lambda: server._now == 0)
        server._takes = lambda _: 0.0
        np.testing.assert_array_equal(encoder.encode_document(TEXTS).embeddings, WANTED)


def test_an_interrupt_ends_the_requests() -> None:
    server = Scripted(takes=lambda _: 60.0)

    def interrupt() -> None:
        assert _soon(lambda: server._now == 4)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    with server.encoder() as encoder:
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            encoder.encode_document(TEXTS)
        interrupter.join()
        assert _soon(lambda: server._now == 0)


def test_closing_ends_what_another_thread_waits_for() -> None:
    server = Scripted(takes=lambda _: 60.0)
    encoder = server.encoder()
    told = list[BaseException]()

    def wait() -> None:
        try:
            encoder.encode_document(TEXTS)
        except BaseException as error:
            told.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert _soon(lambda: server._now == 4)
    encoder.close()
    waiting.join(5)
    assert [str(error) for error in told] == ["The encoder was closed before the server had answered. Call it again."]


# Streams


def test_a_stream_of_any_length_is_read_as_it_is_used() -> None:
    server, read = Scripted(), 0

    def texts() -> Iterator[str]:
        nonlocal read
        for i in range(100_000):
            read += 1
            yield f"text {i} on merging"

    with server.encoder() as encoder:
        parts = encoder.encode_stream(texts(), batch_size=10)
        first, second = next(parts), next(parts)
        assert read <= 40
        np.testing.assert_array_equal(np.concatenate([first.embeddings, second.embeddings]), WANTED[:20])
        parts.close()  # type: ignore[attr-defined]


def test_a_stream_has_more_than_one_part_under_way() -> None:
    server = Scripted(takes=lambda _: 0.05)
    with server.encoder(concurrency=4) as encoder:
        found = list(encoder.encode_stream(TEXTS, batch_size=4))
    np.testing.assert_array_equal(np.concatenate([part.embeddings for part in found]), WANTED)
    assert server.most >= 2


def test_a_stream_gives_what_is_good_before_it_tells_what_is_not() -> None:
    server = Scripted()
    texts = [*TEXTS[:25], " ", *TEXTS[25:]]
    with server.encoder() as encoder:
        parts = encoder.encode_stream(texts, batch_size=5)
        assert sum(len(next(parts).embeddings) for _ in range(5)) == 25
        with pytest.raises(EmptyText, match=r"texts\[25\]"):
            next(parts)


def test_an_asynchronous_stream_gives_the_same() -> None:
    server = Scripted()

    async def read() -> list[Any]:
        return [part.embeddings async for part in encoder.aencode_stream(iter(TEXTS), role="query", batch_size=7)]

    async def leave() -> None:
        async for _ in encoder.aencode_stream(iter(TEXTS), batch_size=4):
            break

    with server.encoder() as encoder:
        np.testing.assert_array_equal(np.concatenate(asyncio.run(read())), WANTED)
        asyncio.run(leave())
        with pytest.raises(InvalidInput, match="batch"):
            encoder.aencode_stream("a bare text")
        with pytest.raises(InvalidInput, match="role is 'both'"):
            encoder.encode_stream(TEXTS, role="both")  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="batch_size is 0"):
            encoder.encode_stream(TEXTS, batch_size=0)


# Processes

_FORKED = """
import os, sys
from reperio.encoders import HashEncoder, RemoteEncoder
assert "httpx" not in sys.modules
from reperio.testing.endpoint import EmbeddingsApp, serving
with serving(EmbeddingsApp(HashEncoder(16), model="hashed")) as url:
    encoder = RemoteEncoder(f"{url}/v1", "hashed")
    before = encoder.encode_query(["merge"]).embeddings
    child = os.fork()
    if child == 0:
        same = (encoder.encode_query(["merge"]).embeddings == before).all()
        os._exit(0 if same else 9)
    assert os.waitpid(child, 0)[1] == 0
    assert (encoder.encode_query(["merge"]).embeddings == before).all()
print("done")
"""


@pytest.mark.skipif(not hasattr(sys, "platform") or sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_has_connections_of_its_own_and_a_program_ends_without_a_word() -> None:
    done = subprocess.run([sys.executable, "-c", _FORKED], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
