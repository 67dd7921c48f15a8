"""Read a folder's checksums once, however often it is opened."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, TypeAlias

from reperio.artifacts import read_folder

__all__ = ["forget", "known", "read_verified"]

Stamp: TypeAlias = tuple[tuple[str, int, int, int, int], ...]
"""Name, inode, size and times of change of each file: equal as long as no program has written to one."""

_SEEN: OrderedDict[Stamp, None] = OrderedDict()
_KEPT = 1024


def read_verified(path: Path, kind: str, *, verify: bool = True, once: bool = False) -> dict[str, Any]:
    """Check a folder that `new_folder` made and return its ``meta``.

    Sizes are checked always.

    Parameters
    ----------
    verify
        Whether to check the checksums, which takes about a second for each gigabyte.
    once
        Whether to check them only the first time that this process opens the files, and again after a program has
        written to any of them. A disk that alters bytes by itself is then noticed once a process, not each time.

    Raises
    ------
    NotFound, NewerFormat, CorruptArtifact
    """
    if not verify:
        return read_folder(path, kind, checksums=False)
    stamp = _stamp(path)
    known = once and stamp in _SEEN
    meta = read_folder(path, kind, checksums=not known)
    _SEEN[stamp] = None
    while len(_SEEN) > _KEPT:
        _SEEN.popitem(last=False)
    return meta


def known(path: Path) -> bool:
    """Whether this process has checked these files, and no program has written to one since."""
    return _stamp(path) in _SEEN


def forget(path: Path) -> None:
    """Have these files checked again: they are what was saved, and not what can be opened."""
    _SEEN.pop(_stamp(path), None)


def _stamp(path: Path) -> Stamp:
    if not os.path.isdir(path):  # noqa: PTH112  # Path.is_dir raises where no folder can be
        return ()
    found = [(str(file), file.stat()) for file in sorted(path.rglob("*")) if file.is_file()]
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found)
