"""Several processes give what one gives; one that dies is seen."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from reperio import meter
from reperio.embeddings import to_bytes
from reperio.encoders import (
    BM25Encoder,
    CachedEncoder,
    DecoderEncoder,
    DenseSum,
    HashEncoder,
    HashWeights,
    HashWords,
    ParallelEncoder,
    SparseSum,
)
from reperio.encoders.worker import Gone, receive, send
from reperio.errors import ConfigurationError, EmptyText, NotFound, ReperioError
from reperio.registry import build
from reperio.testing.encoder import TEXTS, EncoderContract

WORDS = [f"text {number} of many" for number in range(101)]


@pytest.fixture(scope="module")
def shared() -> Iterator[ParallelEncoder[Any]]:
    with ParallelEncoder(HashEncoder(1024), workers=2, batch_size=3) as encoder:
        yield encoder


class TestParallelEncoder(EncoderContract):
    tolerance = 0.0

    @pytest.fixture
    def encoder(self, shared: ParallelEncoder[Any]) -> ParallelEncoder[Any]:
        return shared


def workers(of: int | None = None) -> list[psutil.Process]:
    children = psutil.Process(of).children()
    return [child for child in children if "reperio.encoders.worker" in " ".join(child.cmdline())]


@pytest.fixture
def two(shared: ParallelEncoder[Any]) -> Iterator[tuple[ParallelEncoder[Any], list[psutil.Process]]]:
    shared.encode_query(["start"])
    assert shared._crew is not None
    both = [psutil.Process(worker._process.pid) for worker in shared._crew._all.values()]
    yield shared, both
    for process in both:
        with suppress(psutil.NoSuchProcess):  # one that a test that failed left stopped would stop all tests
            process.resume()


def in_a_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except ReperioError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def sends(process: psutil.Process) -> None:
    """Until something has been written to a stopped worker, or is about to be."""
    time.sleep(0.2)
    process.kill()


@pytest.mark.parametrize("inner", [SparseSum({"weights": HashWeights(), "words": BM25Encoder()}), HashWords()])
def test_every_kind_comes_back_to_the_bit_and_in_order(inner: Any) -> None:
    texts = [*TEXTS, *WORDS]
    with ParallelEncoder(inner, workers=1, batch_size=7) as encoder, meter.measure() as counts:
        found = encoder.encode_document(texts)
    with meter.measure() as counted:
        wanted = inner.encode_document(texts)
    assert to_bytes(found.embeddings) == to_bytes(wanted.embeddings)
    assert found.token_counts.tolist() == wanted.token_counts.tolist()
    assert counts == counted  # the workers' are counted here


def test_a_stream_is_read_no_further_than_two_batches_a_worker(shared: ParallelEncoder[Any]) -> None:
    read = 0

    def source() -> Iterator[str]:
        nonlocal read
        for text in WORDS:
            read += 1
            yield text

    stream = shared.encode_stream(source(), role="query")
    first = next(stream)
    assert read <= 2 * 2 * 3 + 3
    rest = [part.embeddings for part in stream]
    assert len(first.embeddings) + sum(map(len, rest)) == len(WORDS)


def test_an_error_names_the_position_among_all_texts(tmp_path: Path, shared: ParallelEncoder[Any]) -> None:
    with pytest.raises(EmptyText, match=r"texts\[77\]"):
        shared.encode_document([*WORDS[:77], " "])
    texts = iter([*WORDS[:77], " "])
    with pytest.raises(EmptyText, match=r"texts\[77\]"):
        list(shared.encode_stream(texts))
    assert len(shared.encode_document(WORDS).embeddings) == len(WORDS)


def test_a_dead_worker_is_replaced_and_its_batch_given_to_another(
    two: tuple[ParallelEncoder[Any], list[psutil.Process]],
) -> None:
    encoder, (first, second) = two
    first.suspend()
    thread, found = in_a_thread(lambda: encoder.encode_document(WORDS))
    sends(first)
    thread.join(30)
    assert to_bytes(found[0].embeddings) == to_bytes(HashEncoder(1024).encode_document(WORDS).embeddings)
    assert second.is_running()
    assert len(set(workers())) >= 2


def test_a_batch_that_kills_two_workers_is_an_error_that_names_them_and_it(
    two: tuple[ParallelEncoder[Any], list[psutil.Process]],
) -> None:
    encoder, both = two
    for process in both:
        process.suspend()
    thread, found = in_a_thread(lambda: encoder.encode_document(WORDS[:3]))
    for process in both:
        sends(process)
    thread.join(30)
    assert isinstance(found[0], ReperioError)
    for process in both:
        assert f"(process {process.pid}) was killed by SIGKILL" in str(found[0])
    assert "texts[0] to texts[2]" in str(found[0])
    assert len(encoder.encode_document(WORDS).embeddings) == len(WORDS)  # others have taken their places


SCRIPT = """
import sys
from reperio.encoders import HashEncoder, ParallelEncoder
encoder = ParallelEncoder(HashEncoder(64), workers=1, batch_size=10)
print(encoder.encode_document([f"text {n}" for n in range(50)]).embeddings.shape, flush=True)
if len(sys.argv) > 1:
    sys.stdin.read()
"""


def test_a_script_needs_no_guard_and_leaves_no_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    killed = subprocess.Popen([sys.executable, script, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("(50, 64)\n", "", 0)
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"(50, 64)\n"
    left = workers(killed.pid)
    assert len(left) == 1
    killed.kill()
    killed.communicate()
    assert psutil.wait_procs(left, timeout=10)[1] == []


def test_cores_are_shared_out_among_the_workers(two: tuple[ParallelEncoder[Any], list[psutil.Process]]) -> None:
    cores = len(os.sched_getaffinity(0))
    assert {process.environ()["OMP_NUM_THREADS"] for process in two[1]} == {str(max(1, cores // 2))}


def test_devices_need_an_encoder_that_has_one() -> None:
    with pytest.raises(ConfigurationError, match="HashEncoder has no setting device"):
        ParallelEncoder(HashEncoder(), devices=["cuda:0"])
    with pytest.raises(ConfigurationError, match="workers is 0"):
        ParallelEncoder(HashEncoder(), workers=0)
    with pytest.raises(ConfigurationError, match="role is 'other'"):
        ParallelEncoder(HashEncoder(), workers=1).encode_stream([], role="other")  # type: ignore[arg-type]


def test_a_device_is_set_wherever_the_encoder_has_one_within(plain_llama: Path) -> None:
    inner = DecoderEncoder(plain_llama, max_tokens=512)
    both = DenseSum({"words": HashEncoder(), "model": inner, "again": inner})
    placed = [_devices(spec) for spec in ParallelEncoder(both, devices=["cuda:0", "cuda:1"])._specs]
    assert placed == [["cuda:0"] * 2, ["cuda:1"] * 2]
    assert _devices(both.spec) == [None, None]
    for spec in ParallelEncoder(inner, devices=["cpu", "cpu"])._specs:  # built here: a worker is slow to load torch
        built = build(spec)
        assert built.model.device == "cpu"
        assert built.fingerprint == inner.fingerprint


def _devices(spec: Any) -> list[str | None]:
    within = [device for part in spec.values() if isinstance(part, dict) for device in _devices(part)]
    return [spec["device"], *within] if "device" in spec else within


class Elsewhere(HashEncoder):
    """Says that it is another encoder than it is."""

    given: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        return self.given


@pytest.mark.parametrize(
    ("spec", "error", "named"),
    [
        ({"type": "NoSuchEncoder"}, ConfigurationError, "No component is named 'NoSuchEncoder'"),
        ({"type": "DenseEncoder", "model": "/nowhere/at/all"}, NotFound, "/nowhere/at/all"),
    ],
)
def test_an_encoder_that_a_worker_cannot_build_is_told_as_it_would_be_here(
    spec: dict[str, Any], error: type[Exception], named: str
) -> None:
    encoder = Elsewhere()
    encoder.given = spec
    before = workers()
    with pytest.raises(error, match=named):
        ParallelEncoder(encoder, workers=1).encode_query(["a"])
    assert workers() == before


def test_a_cache_in_front_asks_workers_only_for_what_is_new(tmp_path: Path, shared: ParallelEncoder[Any]) -> None:
    cached = CachedEncoder(shared, tmp_path / "cache.db")
    cached.encode_document(WORDS[:20])
    with meter.measure() as counts:
        found = cached.encode_document(WORDS[:30])
    assert counts["texts"] == 10
    assert to_bytes(found.embeddings) == to_bytes(HashEncoder(1024).encode_document(WORDS[:30]).embeddings)


def test_a_message_cut_short_is_an_end_and_not_an_answer(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    with whole.open("wb") as pipe:
        send(pipe, {"tokens": [1]}, [b"abc", b"", b"de"])
    raw = whole.read_bytes()
    for length in range(len(raw) + 1):
        whole.write_bytes(raw[:length])
        with whole.open("rb") as pipe:
            if length == len(raw):
                assert receive(pipe) == ({"tokens": [1], "lengths": [3, 0, 2]}, [b"abc", b"", b"de"])
            else:
                with pytest.raises(Gone):
                    receive(pipe)


def test_closing_ends_every_worker_also_one_at_work(two: tuple[ParallelEncoder[Any], list[psutil.Process]]) -> None:
    encoder, both = two
    both[0].suspend()
    thread, found = in_a_thread(lambda: encoder.encode_document(WORDS))
    time.sleep(0.2)
    encoder.close()
    thread.join(30)
    assert "closed" in str(found[0])
    assert not any(process.is_running() for process in both)
