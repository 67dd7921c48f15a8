"""Keep a library's progress reports out of a program's standard output."""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

from reperio.artifacts import disk_errors
from reperio.errors import StorageError

__all__ = ["quiet"]

_UNPRINTED = re.compile(r"failed printing to stdout.*\(os error (\d+)\)")

_one = threading.Lock()
"""A process has one standard output."""

_before: int | None = None
"""Standard output itself, while it is led elsewhere."""


@contextmanager
def quiet(told: re.Pattern[bytes]) -> Generator[None]:
    """Take lines that ``told`` matches, whole, out of what compiled code writes to standard output.

    The rest, such as what other threads print meanwhile, is passed on in the end; everything is, if an error is
    raised. Standard error is left alone. A process forked meanwhile has its standard output back at once; a program
    started meanwhile, whose output nobody took, has not: what it writes after the end is lost.

    Raises
    ------
    StorageError
        If there is no room on disk for what is printed, or no folder to keep it in.
    """
    global _before
    lines = re.compile(rb"^(?:%b)(?:\r?\n|\Z)" % told.pattern, re.MULTILINE)
    with _one, _temporary() as kept:
        _flush()
        before, folder, failed = _standard_output(), Path(tempfile.gettempdir()), True
        if before is None:  # nothing to keep clean
            yield
            return
        _before = before
        try:
            os.dup2(kept.fileno(), 1)
            yield
            with disk_errors(folder):
                _flush()
            failed = False
        except BaseException as error:  # of Rust, where what it prints finds no room: no Exception even
            code = _UNPRINTED.search(str(error))
            if code is None:
                raise
            with disk_errors(folder):
                raise OSError(int(code[1]), "what a library prints") from error
        finally:
            try:
                if failed:
                    with suppress(Exception):  # that error goes before one of printing
                        _flush()
            finally:
                _restore(before)
            kept.seek(0)
            written = kept.read()
            with suppress(OSError) if failed else nullcontext():
                _pass_on(written if failed else lines.sub(b"", written))


def _temporary() -> IO[bytes]:
    try:
        with disk_errors(Path(tempfile.gettempdir())):
            return tempfile.TemporaryFile()
    except FileNotFoundError as error:
        raise StorageError(f"What a library prints cannot be kept: {error}.", "Set TMPDIR to a folder.") from error


def _standard_output() -> int | None:
    """Another descriptor of it; None if it is closed."""
    try:
        with disk_errors(Path("standard output")):
            return os.dup(1)
    except OSError as error:
        if error.errno == errno.EBADF:
            return None
        raise


def _restore(before: int) -> None:
    global _before
    os.dup2(before, 1)
    _before = None
    os.close(before)


def _pass_on(lines: bytes) -> None:
    while lines:
        lines = lines[os.write(1, lines) :]


def _flush() -> None:
    stream = sys.stdout  # none in a program without a console, or the program's own, which may be able to do little
    flush = getattr(stream, "flush", None)
    if flush is not None and not getattr(stream, "closed", False):
        flush()


def _after_fork() -> None:
    """The thread that would put standard output back, and let go of the lock, is not in the child."""
    global _one, _before
    _one = threading.Lock()
    if _before is not None:
        os.dup2(_before, 1)
        _before = None  # and left open, for a thread that forks in the midst of it and goes on to its end


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
