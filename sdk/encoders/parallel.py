"""One encoder in several processes, or on several devices."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

from tqdm import tqdm

from reperio import forks, meter
from reperio.encoders.texts import check_batch, check_texts, elsewhere
from reperio.encoders.worker import Gone, decoded, receive, refused, send
from reperio.errors import ConfigurationError, FingerprintMismatch, InvalidInput, ReperioError
from reperio.protocols import Encoder, Spec
from reperio.types import Encoded, Fingerprint

__all__ = ["ParallelEncoder"]

E = TypeVar("E")

Role: TypeAlias = Literal["query", "document"]

PATIENCE = 10.0
"""Seconds that a worker has to end by itself when it is no longer wanted."""


class ParallelEncoder(Generic[E]):
    """Encodes in several processes, each with a copy of the encoder; the order of the texts is kept.

    Workers are started at the first use, from the encoder's ``spec``: here, nothing of it is loaded. They are
    programs of their own, so neither a notebook nor a script needs ``if __name__ == "__main__":``, and nothing is
    pickled. A worker that dies is seen: its batch is given once more to another, and a new one takes its place; if
    that one dies too, an error names it. They end with `close`, with a ``with`` block, or with the program, however
    that ends.

    Several workers on one CPU share its cores: each has its part of the threads. That pays for encoders that use one
    core at a time; one that fills all cores by itself, as `DenseEncoder` on long batches, gains little.

    Parameters
    ----------
    encoder
        Any with a ``spec``.
    workers
        How many processes; one a device where devices are given, else one a core.
    devices
        As torch names them, dealt out in turn: the setting ``device`` of the encoder in each worker, or of the models
        and encoders that it is made of.
    batch_size
        Texts that a worker is given at a time. At most two batches a worker are under way in `encode_stream`.
    threads
        Of each worker, for BLAS, OpenMP and tokenizers; its part of the cores where None.
    progress
        Whether to show a bar; where None, on a terminal when there is more than one batch for each worker.

    Raises
    ------
    ConfigurationError
        For a number below 1, or devices for an encoder that has no such setting.
    UnsupportedOperation
        For an encoder that has no specification.

    Examples
    --------
    >>> from reperio.encoders import HashEncoder
    >>> with ParallelEncoder(HashEncoder(), workers=2, batch_size=2) as encoder:
    ...     encoder.encode_document(["merge", "sort", "split"]).embeddings.shape
    (3, 256)
    """

    def __init__(
        self,
        encoder: Encoder[E],
        *,
        workers: int | None = None,
        devices: Sequence[str] | None = None,
        batch_size: int = 256,
        threads: int | None = None,
        progress: bool | None = None,
    ) -> None:
        cores = _cores()
        for name, number in (("workers", workers), ("batch_size", batch_size), ("threads", threads)):
            if number is not None and number < 1:
                raise ConfigurationError(f"{name} is {number}.", "Use 1 or more.")
        self.encoder = encoder
        self.devices = None if devices is None else list(devices)
        self.workers = workers
        self.batch_size = batch_size
        self.threads = threads
        self.progress = progress
        self._specs = _specs(encoder.spec, self.devices)
        self._count = workers or (len(self._specs) if self.devices else cores)
        self._environment: dict[str, str] = dict.fromkeys(_THREADS, str(threads or max(1, cores // self._count)))
        self._lock = threading.Lock()
        self._crew: _Crew | None = None
        self._fingerprint: Fingerprint | None = None
        forks.follow(self)

    def after_fork(self) -> None:
        """In a child: the workers are the parent's."""
        self._lock = threading.Lock()
        if self._crew is not None:
            self._crew.forget()
            self._crew = None

    @property
    def spec(self) -> Spec:
        """How to build this encoder again."""
        return {
            "type": "ParallelEncoder",
            "encoder": dict(self.encoder.spec),
            "workers": self.workers,
            "devices": self.devices,
            "batch_size": self.batch_size,
            "threads": self.threads,
            "progress": self.progress,
        }

    @property
    def fingerprint(self) -> Fingerprint:
        """The encoder's own, as the workers tell it; starts them."""
        return self._started().fingerprint

    @property
    def weights_below(self) -> int | None:
        """As the encoder says, where it does."""
        return getattr(self.encoder, "weights_below", None)

    @property
    def terms(self) -> Callable[[str], Any] | None:
        """As the encoder says, where it does."""
        return getattr(self.encoder, "terms", None)

    def encode_query(self, texts: Sequence[str], /) -> Encoded[E]:
        """Embeddings of queries; see `encode_document`."""
        return self._encode(texts, "query")

    def encode_document(self, texts: Sequence[str], /) -> Encoded[E]:
        """Embeddings of documents, in the order of the texts.

        Raises
        ------
        InvalidInput
            Whatever the encoder refuses, with the position among all texts.
        ReperioError
            If two workers died over one batch, or one failed; names it.
        """
        return self._encode(texts, "document")

    def encode_stream(self, texts: Iterable[str], /, *, role: Role = "document") -> Iterator[Encoded[E]]:
        """Encode any number of texts, a batch at a time and in order; memory is bounded by two batches a worker."""
        check_batch(texts)
        if role not in ("query", "document"):
            raise ConfigurationError(f"role is {role!r}.", "Use 'query' or 'document'.")
        return self._answers(_batches(iter(texts), self.batch_size), role)

    def close(self) -> None:
        """End the workers; they are started again at the next use. Safe to call twice."""
        with self._lock:
            if self._crew is not None:
                self._crew.end()
                self._crew = None

    def __enter__(self) -> ParallelEncoder[E]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _encode(self, texts: Sequence[str], role: Role) -> Encoded[E]:
        checked = check_texts(texts)
        fingerprint = self.fingerprint
        many = len(checked) > self._count * self.batch_size
        hide = not many if self.progress is None else not self.progress
        parts: list[Encoded[E]] = []
        with tqdm(total=len(checked), unit="text", desc="encoding", disable=hide or None) as bar:
            for part in self._answers(_batches(iter(checked), self.batch_size), role):
                parts.append(part)
                bar.update(len(part.token_counts))
        return cast("Encoded[E]", Encoded.joined(parts, fingerprint.kind, dim=fingerprint.dim))

    def _answers(self, batches: Iterator[tuple[int, list[str]]], role: Role) -> Iterator[Encoded[E]]:
        crew = self._started()
        waiting: deque[Future[_Answer]] = deque()
        try:
            while True:
                for start, some in islice(batches, 2 * self._count - len(waiting)):
                    waiting.append(crew.threads.submit(crew.ask, role, some, start))
                if not waiting:
                    return
                told, encoded = waiting.popleft().result()
                for name, amount in told["counts"].items():
                    meter.count(name, amount)
                for message in told["warnings"]:
                    warnings.warn(message, stacklevel=4)
                yield encoded
        finally:
            for future in waiting:
                future.cancel()

    def _started(self) -> _Crew:
        with self._lock:
            if self._crew is None:
                crew = _Crew(self._specs, self._count, self._environment)
                if self._fingerprint is not None and self._fingerprint != crew.fingerprint:
                    crew.end()
                    differ = "; ".join(crew.fingerprint.differences(self._fingerprint))
                    raise FingerprintMismatch(f"The encoder is another than before: {differ}.", "Restore its files.")
                self._fingerprint, self._crew = crew.fingerprint, crew
                weakref.finalize(self, crew.end)
            return self._crew


_Answer = tuple[dict[str, Any], Encoded[Any]]

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _specs(spec: Spec, devices: Sequence[str] | None) -> list[Spec]:
    """What each worker in turn builds."""
    if devices is None:
        return [spec]
    if not devices:
        raise ConfigurationError("devices is empty.", "Name at least one, or leave it out.")
    placed = [cast("Spec", _placed(spec, device)) for device in devices]
    if placed[0] == _placed(spec, None):
        raise ConfigurationError(f"{spec['type']} has no setting device.", "Give `workers` in place of `devices`.")
    return placed


def _placed(part: object, device: str | None) -> object:
    """A specification with this device for each component of it that has such a setting."""
    if isinstance(part, list):
        return [_placed(one, device) for one in cast("list[object]", part)]
    if not isinstance(part, Mapping):
        return part
    spec = {name: _placed(value, device) for name, value in cast("Mapping[str, object]", part).items()}
    return {**spec, "device": device} if "type" in spec and "device" in spec else spec


def _batches(texts: Iterator[str], size: int) -> Iterator[tuple[int, list[str]]]:
    start = 0
    while some := list(islice(texts, size)):
        yield start, check_texts(some, start=start)
        start += len(some)


class _Worker:
    """A process with an encoder."""

    def __init__(self, number: int, spec: Spec, environment: Mapping[str, str]) -> None:
        self.number = number
        path = os.pathsep.join(part or str(Path.cwd()) for part in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "reperio.encoders.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for this process, which then ends it
        )
        self._to, self._from = cast("Any", self._process.stdin), cast("Any", self._process.stdout)
        self._spec = spec
        self._busy = threading.Lock()

    def greet(self) -> Fingerprint:
        """Wait until it has built the encoder."""
        told, _ = self._exchange({"spec": dict(self._spec)}, [])
        kept = told["fingerprint"]
        fields = tuple((str(name), str(value)) for name, value in kept["fields"])
        return Fingerprint(kept["kind"], kept["model"], kept["dim"], fields)

    def ask(self, role: Role, texts: Sequence[str], start: int) -> tuple[dict[str, Any], list[bytes]]:
        """What it makes of texts, the first of which stands at ``start`` among all."""
        try:
            return self._exchange({"role": role}, [text.encode() for text in texts])
        except InvalidInput as error:
            raise elsewhere(error, range(start, start + len(texts))) from None

    def _exchange(self, told: Mapping[str, Any], blobs: Sequence[bytes]) -> tuple[dict[str, Any], list[bytes]]:
        with self._busy:
            try:
                send(self._to, told, blobs)
                answer, rows = receive(self._from)
            except Gone:
                raise _Died(self._died()) from None
        if "error" in answer:
            raise refused(answer, str(self))
        return answer, rows

    def _died(self) -> str:
        self._reap()
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return f"{self} {how}"

    def end(self) -> None:
        """End it: at once where it is at work, which is for nobody any more."""
        if self._busy.acquire(blocking=False):
            try:
                self._reap()
            finally:
                self._busy.release()
        else:  # whoever waits for its answer sees it die
            self._process.kill()
            self._process.wait()

    def _reap(self) -> None:
        for pipe in (self._to, self._from):
            with suppress(OSError):  # what was not sent yet has nobody to go to
                pipe.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __str__(self) -> str:
        return f"Worker {self.number} (process {self._process.pid})"


class _Died(Exception):
    """A worker did."""


class _Crew:
    """The workers, and those of them that have nothing to do."""

    def __init__(self, specs: Sequence[Spec], count: int, environment: Mapping[str, str]) -> None:
        self._specs, self._environment = specs, environment
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all: dict[int, _Worker] = {}
        self._owner = os.getpid()
        self.threads = ThreadPoolExecutor(count, thread_name_prefix="reperio-worker")
        try:
            for number in range(count):
                self._all[number] = self._hired(number)
            found = [self._ready(worker) for worker in self._all.values()]
        except BaseException:
            self.end()
            raise
        self.fingerprint = found[0]
        for number, fingerprint in enumerate(found):
            if fingerprint != found[0]:
                self.end()
                differ = "; ".join(fingerprint.differences(found[0]))
                raise FingerprintMismatch(f"Worker {number} has another encoder than worker 0: {differ}.", "")
            self._idle.put(self._all[number])

    def _hired(self, number: int) -> _Worker:
        return _Worker(number, self._specs[number % len(self._specs)], self._environment)

    @staticmethod
    def _ready(worker: _Worker) -> Fingerprint:
        try:
            return worker.greet()
        except _Died as died:
            raise ReperioError(f"{died}, before it had its encoder.", _FIX) from None

    def ask(self, role: Role, texts: Sequence[str], start: int) -> _Answer:
        """What a worker makes of a batch; where it dies, what the next does."""
        how: list[str] = []
        for _ in range(2):
            worker = self._idle.get()
            try:
                told, rows = worker.ask(role, texts, start)
                return told, decoded(told, rows, dim=self.fingerprint.dim)
            except _Died as died:
                how.append(str(died))
                if self._owner != os.getpid():
                    raise ReperioError("The encoder was closed while it encoded.", "Close it afterwards.") from None
                worker = self._all[worker.number] = self._hired(worker.number)
                if self._ready(worker) != self.fingerprint:
                    raise FingerprintMismatch(f"{worker} has another encoder.", "Restore the model's files.") from None
            finally:
                self._idle.put(worker)
        where = f"texts[{start}] to texts[{start + len(texts) - 1}]"
        raise ReperioError(f"{'; '.join(how)}: both over {where}.", _FIX)

    def forget(self) -> None:
        """In a child process: these are another's."""
        self._owner = -1

    def end(self) -> None:
        """End all workers. Safe to call twice."""
        if self._owner != os.getpid():
            return
        self._owner = -1
        self.threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._all.values():
            worker.end()


_FIX = "It may lack memory: use fewer workers or a smaller batch_size, or encode these texts alone to see."
