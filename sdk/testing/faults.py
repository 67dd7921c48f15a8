"""A disk that refuses: the n-th thing asked of it, every byte beyond a file's limit, or what no longer fits.

What Python itself writes is refused call by call. Libraries write past Python: for them there is a limit on the
length of files, and, where the program may mount one, a file system of a few pages.
"""

from __future__ import annotations

import builtins
import errno
import gc
import io
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

__all__ = ["RefusingDisk", "file_limit", "leftovers", "open_limit", "small_disk"]


class RefusingDisk:
    """Counts what a program asks of the disk below a folder, and refuses the n-th.

    Opening to write, each write, fsync, rename and mkdir count; where a single refusal is meant, removing does too. A
    write that is refused has written half.

    Parameters
    ----------
    folder
        Calls about files elsewhere are let through.
    refuse
        Which call to refuse, from 0; none where None.
    code
        ``errno.ENOSPC``: from then on everything that takes room is refused, as on a full disk. Any other: once.
    """

    def __init__(self, folder: Path, *, refuse: int | None = None, code: int = errno.ENOSPC) -> None:
        self.calls: list[str] = []
        self._folder = folder.absolute()
        self._refuse, self._code = refuse, code
        self._real: list[tuple[Any, str, Any]] = []

    @property
    def refused(self) -> str | None:
        """What was refused first; None if nothing was."""
        if self._refuse is None or self._refuse >= len(self.calls):
            return None
        return self.calls[self._refuse]

    def __enter__(self) -> Self:
        opener = self._opener(builtins.open)
        for module in (builtins, io):
            self._put(module, "open", opener)
        names = ["rename", "replace", "mkdir"] + ["unlink", "rmdir"] * (self._code != errno.ENOSPC)
        for name in names:
            self._put(os, name, self._counted(name, getattr(os, name)))
        self._put(os, "fsync", self._counted("fsync", os.fsync))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module, name, real in reversed(self._real):
            setattr(module, name, real)

    def _put(self, module: Any, name: str, function: Callable[..., Any]) -> None:
        self._real.append((module, name, getattr(module, name)))
        setattr(module, name, function)

    def ask(self, call: str) -> None:
        """Count a call; raises OSError if it is the one, or the disk has been full since."""
        self.calls.append(call)
        number = len(self.calls) - 1
        if self._refuse is None or number < self._refuse:
            return
        if number == self._refuse or self._code == errno.ENOSPC:
            raise OSError(self._code, os.strerror(self._code), call)

    def _here(self, path: object) -> bool:
        if isinstance(path, int):
            return True
        return Path(cast("str", path)).absolute().is_relative_to(self._folder)

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **settings: Any) -> Any:
            if settings.get("dir_fd") is not None or self._here(path):
                self.ask(f"{name} {path if isinstance(path, int) else Path(path).name}")
            return real(path, *arguments, **settings)

        return call

    def _opener(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(file: Any, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
            if set(mode).isdisjoint("wax+") or isinstance(file, int) or not self._here(file):
                return real(file, mode, *arguments, **settings)
            name = Path(file).name
            self.ask(f"open {name}")
            return _Written(real(file, mode, *arguments, **settings), self, name)

        return call


class _Written:
    """An open file whose writes count."""

    def __init__(self, file: Any, disk: RefusingDisk, name: str) -> None:
        self._file, self._disk, self._name = file, disk, name

    def write(self, data: Any) -> Any:
        try:
            self._disk.ask(f"write {self._name}")
        except OSError:
            self._file.write(data[: len(data) // 2])
            raise
        return self._file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def file_limit(size: int) -> Generator[None]:
    """No file of this process may grow beyond ``size`` bytes: the system refuses, also what libraries write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores the signal; the call fails
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def open_limit(spare: int) -> Generator[None]:
    """This process may open only so many files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)  # the next that there is
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def small_disk(folder: Path, size: int) -> Generator[Callable[[int | None], None]]:
    """Mount a file system in memory; gives a function that leaves it so many bytes free, or all where None.

    Raises
    ------
    PermissionError
        If this program may not mount one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)):
        raise PermissionError(errno.EPERM, "cannot mount a file system", str(folder))

    def leave(free: int | None) -> None:
        usage = shutil.disk_usage(folder)
        wanted = size if free is None else usage.used + free
        if not _mount("-o", f"remount,size={wanted}", str(folder)):
            raise PermissionError(errno.EPERM, "cannot change the size of a file system", str(folder))

    try:
        yield leave
    finally:
        gc.collect()  # an index that nobody has any more may still have its files mapped
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def _mount(*arguments: str) -> bool:
    if os.geteuid() or shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.tmp"))
