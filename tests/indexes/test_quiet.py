"""What compiled code prints is kept out of standard output, which is itself again whatever happens."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reperio.errors import DiskFull, StorageError
from reperio.indexes.quiet import quiet
from reperio.testing.faults import open_limit

STEPS = re.compile(rb"step \d+")


def work(*, fails: bool = False) -> None:
    with quiet(STEPS):
        os.write(1, b"step 1\nmine\n")
        if fails:
            raise ValueError("full")


@contextmanager
def nothing_left() -> Generator[None]:
    """Standard output is the same file in the end, and no other is open."""
    before, count = os.fstat(1), len([*Path("/dev/fd").iterdir()])
    yield
    assert os.path.samestat(os.fstat(1), before)
    assert len([*Path("/dev/fd").iterdir()]) == count


class Full(io.StringIO):
    """Cannot be flushed while standard output is a temporary file."""

    def __init__(self) -> None:
        super().__init__()
        self._real = os.fstat(1)

    def flush(self) -> None:
        if not os.path.samestat(os.fstat(1), self._real):
            raise OSError(errno.ENOSPC, "no room")


def test_a_flush_that_finds_no_room_is_told_and_leaves_standard_output_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch, nothing_left():
        patch.setattr(sys, "stdout", Full())
        with pytest.raises(DiskFull):
            work()
        with pytest.raises(ValueError, match="full"):  # goes before it
            work(fails=True)
    assert capfd.readouterr().out == "step 1\nmine\n" * 2


def test_a_standard_output_that_can_only_be_written_to_will_do(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Tee:
        def write(self, text: str) -> int:
            return len(text)

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Tee())
        work()
    assert capfd.readouterr().out == "mine\n"


def test_without_a_folder_for_temporary_files_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with nothing_left(), pytest.raises(StorageError, match="TMPDIR"):
        work()


def test_without_a_file_descriptor_to_spare_nothing_is_begun() -> None:
    tempfile.gettempdir()
    for spare in (0, 1):  # for the temporary file, and then for standard output itself
        with nothing_left(), open_limit(spare), pytest.raises(StorageError, match="ulimit"):
            work()


def test_a_child_forked_meanwhile_prints_where_its_parent_did(capfd: pytest.CaptureFixture[str]) -> None:
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with quiet(STEPS):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=stay)
    thread.start()
    assert inside.wait(60)
    child = os.fork()
    if not child:
        signal.alarm(30)  # its own may not wait for a thread that it does not have
        work()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert capfd.readouterr().out == "mine\n"  # while the parent's own is still kept
    leave.set()
    thread.join()
