"""Timing two ways of doing one thing, in turns, so that a noisy machine disturbs both alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from reperio.encoders import CachedEncoder
from reperio.protocols import Encoder

E = TypeVar("E")


def in_turns(
    ways: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 7,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call, by way: one warm-up, then ``repeats`` rounds in which every way has its turn.

    With ``clock=time.process_time`` they are seconds of all cores together, which neighbours disturb less. The order
    of the ways is turned round each time, so that none always follows the same other.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for work in ways.values():
        work()
    for round_ in range(repeats):
        names = list(ways) if round_ % 2 == 0 else list(ways)[::-1]
        for name in names:
            start = clock()
            for _ in range(calls):
                ways[name]()
            times[name].append((clock() - start) / calls)
    return times


def both(
    ways: Mapping[str, Callable[[], object]], *, repeats: int = 7, per: float = 1
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Milliseconds of each round, divided by ``per``: on the clock, and of all cores together."""
    cores: dict[str, list[float]] = {way: [] for way in ways}

    def counted(way: str) -> Callable[[], None]:
        def call() -> None:
            start = time.process_time()
            ways[way]()
            cores[way].append((time.process_time() - start) * 1e3 / per)

        return call

    clock = in_turns({way: counted(way) for way in ways}, repeats=repeats)
    walls = {way: [seconds * 1e3 / per for seconds in clock[way]] for way in ways}
    return walls, {way: found[1:] for way, found in cores.items()}  # without the warm-up


@contextmanager
def one_core() -> Iterator[None]:
    """Everything on one core: threads beside each other cost more CPU time than one, where cores share caches."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def spread(times: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def paired(a: list[float], b: list[float]) -> dict[str, float]:
    """Median and range of a / b, round by round."""
    return spread([x / y for x, y in zip(a, b, strict=True)])


def versions() -> dict[str, str]:
    """Of Python and of every package that a figure depends on."""
    out = {"python": platform.python_version()}
    names = "reperio numpy scipy torch transformers sentence-transformers openvino onnxruntime faiss-cpu faiss-gpu "
    names += "usearch hnswlib "
    names += "bm25s rank-bm25 tantivy pyseismic-lsr numba pymilvus milvus-lite qdrant-client ray ir-measures"
    for name in names.split():
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def table(rows: list[Mapping[str, Any]]) -> None:
    """Print rows under their keys."""
    names = list(rows[0])
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    for line in [names, *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), flush=True)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cached(encoder: Encoder[E]) -> Encoder[E]:
    """The encoder, its embeddings kept in the file that REPERIO_CACHE names, so that a run can be made again soon."""
    path = os.environ.get("REPERIO_CACHE")
    return encoder if path is None else CachedEncoder(encoder, path)
