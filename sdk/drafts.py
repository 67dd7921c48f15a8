"""A collection that is written under another name until it is whole, then put in its place at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from reperio.artifacts import disk_errors, sync
from reperio.errors import ConfigurationError
from reperio.opening import Place, place
from reperio.postgres import is_url, split_collection

if TYPE_CHECKING:
    from reperio.stores.postgres import PostgresStore

SUFFIX = "migrating"
"""What the name of a draft ends with."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An unfinished collection, open for writing.

    Attributes
    ----------
    place
        Where it is.
    location
        Where it is to be, without a password.
    put
        Closes it and gives it its name: it is there whole, or not at all.
    """

    place: Place
    location: str
    put: Callable[[], None]


def draft(target: Path | str, cache: Path | str | None) -> Draft:
    """Begin a collection that is to be at ``target``, or go on with one.

    Raises
    ------
    ConfigurationError
        If something else is there.
    WriterBusy
        If another process is at it.
    """
    return _in_database(str(target), cache) if is_url(target) else _in_folder(Path(target))


def _in_folder(target: Path) -> Draft:
    folder = Path(os.path.realpath(target))  # a folder cannot be put in the place of a link to one
    if folder.is_mount():
        problem = f"{target} is where a file system is mounted, and nothing can be put in its place."
        raise ConfigurationError(problem, "Choose a folder inside it.")
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
        raise ConfigurationError(f"{target} is there, and is no collection.", "Choose another target, or delete it.")
    unfinished = folder.with_name(f".{folder.name}.{SUFFIX}")
    opened = place(unfinished, mode="rw", collection=None, cache=None)

    def put() -> None:
        opened.release()
        with disk_errors(folder):
            unfinished.rename(folder)
            sync(folder.parent)

    return Draft(opened, str(folder), put)


def _in_database(target: str, cache: Path | str | None) -> Draft:
    from reperio.stores.postgres_schema import check_name

    address, name = split_collection(target)
    if name is None:
        raise ConfigurationError("The target names no collection.", "Write postgresql://…#name.")
    # A name has 63 characters; that two long ones share a draft is seen by where it comes from.
    opened = place(address, mode="rw", collection=f"{check_name(name)[:53]}-{SUFFIX}", cache=cache)
    store = cast("PostgresStore", opened.store)

    def put() -> None:
        store.rename(name)
        opened.release()

    return Draft(opened, store.at(name), put)
