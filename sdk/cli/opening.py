"""A collection for one command: what is in its way is answered with commands, where the library names arguments."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from reperio.collection import Collection
from reperio.errors import NotFound, ReadOnly, WriterBusy


@contextmanager
def reading(folder: Path) -> Generator[Collection]:
    """The collection of a folder, to be read.

    Raises
    ------
    NotFound
        If there is none; says which command makes it.
    """
    try:
        opened = Collection.open(folder, mode="r")
    except NotFound as error:
        raise NotFound(error.problem, f"Check the path, or make it: reperio index {folder} SOURCE") from error
    with opened:
        yield opened


@contextmanager
def writing() -> Generator[None]:
    """Around what writes a collection.

    Raises
    ------
    ReadOnly, WriterBusy
        Says what to do, which is not to open it in another way.
    """
    try:
        yield
    except WriterBusy as error:
        raise WriterBusy(error.problem, "Wait until it is done, or stop it there.") from error
    except ReadOnly as error:
        raise ReadOnly(error.problem, "Make its folder writable, or choose another.") from error
