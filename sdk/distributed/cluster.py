"""The cluster that a job runs on: Ray, connected or started, and a job on it as steps from table to table."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from reperio.errors import ConfigurationError, ReperioError, StorageError
from reperio.extras import load

Step: TypeAlias = Callable[[Any], Any]
"""Arrow table → Arrow table; in another process, so it can be pickled."""

READER = 0.5
"""Cores of a reader while nothing else runs: it waits for the disk, or for a database. Beside workers it is given none:
workers on every core, as after a machine was lost, would keep it from reading, and wait for what it reads for ever."""


@dataclass(frozen=True, slots=True)
class Workers:
    """What a job may take of the cluster.

    Attributes
    ----------
    count
        Processes. None for as many as there is room for.
    cpus, gpus
        Of each.

    Raises
    ------
    ConfigurationError
        If one of them is out of range.
    """

    count: int | None = None
    cpus: float = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ConfigurationError(f"count is {self.count}.", "Use 1 worker or more, or None.")
        if self.cpus < 0 or self.gpus < 0 or not self.cpus + self.gpus:
            raise ConfigurationError(f"cpus is {self.cpus} and gpus {self.gpus}.", "Give a worker some of one.")

    def fit(self, ray: Any) -> int:
        """How many there will be.

        Raises
        ------
        ConfigurationError
            If the cluster has no room for them.
        """
        have = ray.cluster_resources()
        cpus, gpus = float(have.get("CPU", 0)), float(have.get("GPU", 0))
        rooms = [cpus / self.cpus] if self.cpus else []
        rooms += [gpus / self.gpus] if self.gpus else []
        room = int(min(rooms))
        if room < (self.count or 1):
            wanted = f"{self.count or 1} workers of {self.cpus:g} CPUs and {self.gpus:g} GPUs"
            problem = f"The cluster has {cpus:g} CPUs and {gpus:g} GPUs; {wanted} do not fit."
            raise ConfigurationError(problem, "Ask for less, or wait until its machines are there.")
        return self.count or room


@contextmanager
def cluster() -> Generator[Any]:
    """The cluster that this process, or ``RAY_ADDRESS``, is connected to; else one on this machine, while it is needed.

    Raises
    ------
    MissingDependency
        If Ray is not installed.
    """
    ray = load("ray", extra="ray")
    load("ray.data", extra="ray")
    mine = not ray.is_initialized()
    if mine:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def tables(ray: Any, items: Sequence[Mapping[str, Any]], *steps: Mapping[str, Any]) -> Iterator[Any]:
    """Run steps over items, each in a process of its own choosing, and give the tables of the last as they come.

    A step is what ``map_batches`` of Ray Data takes: ``fn`` and its settings. An item is lost with its machine
    and then done again, so a step may run twice for one item.

    Raises
    ------
    ReperioError
        What a step raised.
    StorageError
        If the cluster gave up.
    """
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with _quiet(), ray.data.DataContext.current(context), errors(ray):
        dataset = ray.data.from_items(list(items), override_num_blocks=len(items))
        for step in steps:
            dataset = dataset.map_batches(**step, batch_size=1, batch_format="pyarrow")
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


@contextmanager
def errors(ray: Any) -> Generator[None]:
    """Raise what went wrong in another process as it was raised there."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ReperioError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is not None:
            raise cause from None
        first = str(error).strip().splitlines()[-1]
        raise StorageError(f"The job stopped: {first}.", "Run it again: what is done is kept.") from error


@contextmanager
def _quiet() -> Generator[None]:
    """Ray Data tells its plan and each step on the terminal; the job has a bar of its own."""
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
