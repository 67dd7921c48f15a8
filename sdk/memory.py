"""What this process has in memory, as far as the operating system tells it: Linux does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["Mapped", "mapped", "resident", "within"]


class Mapped(NamedTuple):
    """Bytes of files that are mapped, and how many of them are in memory now."""

    size: int
    resident: int


def resident() -> int | None:
    """Bytes of memory that the process takes up; None where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def mapped() -> Mapping[str, Mapped] | None:
    """Every file that the process has mapped, a removed one too, by its path; None where the system does not tell."""
    out = dict[str, Mapped]()
    try:
        lines = Path("/proc/self/smaps").read_bytes().splitlines()
    except OSError:
        return None
    path = ""
    for line in lines:
        name, *rest = line.split(maxsplit=5)
        if not name.endswith(b":"):  # begins a mapping: addresses, rights, offset, device, inode, path
            path = os.fsdecode(rest[4]) if len(rest) == 5 else ""
        elif path.startswith("/") and name in (b"Size:", b"Rss:"):
            size, held = out.get(path, Mapped(0, 0))
            more = int(rest[0]) * 1024
            out[path] = Mapped(size + more, held) if name == b"Size:" else Mapped(size, held + more)
    return out


def within(folder: Path, files: Mapping[str, Mapped]) -> Mapped:
    """All of these files that are, or were, in a folder."""
    inside = [found for path, found in files.items() if path.startswith(f"{folder.resolve()}{os.sep}")]
    return Mapped(sum(found.size for found in inside), sum(found.resident for found in inside))
