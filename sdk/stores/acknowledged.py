"""The last commit that was acknowledged, noted beside a database.

SQLite checks its log when it opens one that a killed process has left, and takes whatever follows a damaged byte for a
commit that never was finished. The note tells that it was.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from zlib import crc32

__all__ = ["Acknowledged"]


class Acknowledged:
    """One line in a file of its own, there while a log may hold what the database does not.

    It is written after the commit is on disk, and not synced: after a loss of power it may be late, never early.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def read(self) -> int:
        """The number; -1 if there is none, or it was altered."""
        try:
            number, sum_ = self.path.read_bytes().split()
        except (OSError, ValueError):
            return -1
        return int(number) if sum_ == _sum(number) else -1

    def write(self, seq: int) -> None:
        """Note a commit, in the place of the one before; where the disk refuses, that one stays."""
        number = b"%020d" % seq
        with suppress(OSError):
            if self._file is None:
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
            os.pwrite(self._file, b"%b %b\n" % (number, _sum(number)), 0)

    def close(self, *, needed: bool) -> None:
        """Let go of the file, and remove it where it is not needed any more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
            if not needed:
                with suppress(OSError):
                    self.path.unlink()


def _sum(number: bytes) -> bytes:
    return b"%08x" % crc32(number)
