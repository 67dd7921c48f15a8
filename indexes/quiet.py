"""Keep a library's progress reports out of a program's standard output."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from reperio.artifacts import disk_errors

__all__ = ["quiet"]

_UNPRINTED = re.compile(r"failed printing to stdout.*\(os error (\d+)\)")

_ONE = threading.Lock()
"""A process has one standard output."""


@contextmanager
def quiet(told: re.Pattern[bytes]) -> Generator[None]:
    """Take lines that ``told`` matches, whole, out of what compiled code writes to standard output.

    The rest, such as what other threads print meanwhile, is passed on in the end; everything is, if an error is
    raised. Standard error is left alone.

    Raises
    ------
    StorageError
        If there is no room on disk for what is printed.
    """
    lines = re.compile(rb"^(?:%b)(?:\r?\n|\Z)" % told.pattern, re.MULTILINE)
    with _ONE:
        _flush()
        try:
            before = os.dup(1)
        except OSError:  # closed: nothing to keep clean
            yield
            return
        with tempfile.TemporaryFile() as kept:
            os.dup2(kept.fileno(), 1)
            failed = True
            try:
                yield
                failed = False
            except BaseException as error:  # of Rust, where what it prints finds no room: no Exception even
                code = _UNPRINTED.search(str(error))
                if code is None:
                    raise
                with disk_errors(Path(tempfile.gettempdir())):
                    raise OSError(int(code[1]), "what a library prints") from error
            finally:
                _flush()
                os.dup2(before, 1)
                os.close(before)
                kept.seek(0)
                written = kept.read()
                with suppress(OSError) if failed else nullcontext():  # that error goes before one of printing
                    _pass_on(written if failed else lines.sub(b"", written))


def _pass_on(lines: bytes) -> None:
    while lines:
        lines = lines[os.write(1, lines) :]


def _flush() -> None:
    stream = sys.stdout
    if stream is not None and not stream.closed:  # there is none in a program without a console
        stream.flush()
