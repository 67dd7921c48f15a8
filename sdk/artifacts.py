"""Folders that are whole or absent.

A folder is written beside its final name, every file is fsynced and its SHA-256 kept in ``manifest.json``, which
holds its own as well; then it is renamed and its parent fsynced: a crash at any moment leaves the old state or the
new one, and a byte altered later is noticed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import sqlite3
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import numpy as np

from reperio.errors import CorruptArtifact, DiskFull, NewerFormat, NotFound, ReadOnly, StorageError

FORMAT = 1
"""Version of every folder written here; a reader refuses a higher one."""

MANIFEST = "manifest.json"

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_BROKEN = {errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE}
_UNOPENED = {
    errno.ENFILE: "Close other programs: the system has no more files to give.",
    errno.EMFILE: "Have the program close files, or allow it more (ulimit -n).",
    errno.ENOMEM: "Free some memory.",
}
"""What says nothing of the file itself, and passes."""
_NO_PLACE = {errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP}


@contextmanager
def disk_errors(where: Path) -> Generator[None]:
    """Turn the operating system's and SQLite's refusals into errors that say what to do."""
    try:
        yield
    except StorageError:
        raise
    except (FileExistsError, NotADirectoryError) as error:
        raise _in_the_way(where, error) from error
    except OSError as error:
        # numpy reports a short write without an error number.
        if error.errno in _FULL or (error.errno is None and "written" in str(error)):
            raise _full(where) from error
        if error.errno in _READ_ONLY:
            raise _read_only(where) from error
        if error.errno in _BROKEN:
            raise _broken(where, error.strerror or "no reason given") from error
        if error.errno in _UNOPENED:
            raise _unopened(error.filename or where, error.errno) from error
        if error.errno == errno.ENOTEMPTY:  # another writer's folder, which came first
            raise _in_the_way(where, error) from error
        if error.errno in _NO_PLACE and _on_the_way(where, error.filename):
            raise StorageError(f"{where} cannot be made: {error.strerror}.", "Choose another path.") from error
        raise
    except sqlite3.OperationalError as error:
        text, name = str(error).lower(), getattr(error, "sqlite_errorname", "")
        if "READ" in name and "disk i/o" in text:
            raise _broken(where, name) from error
        if "full" in text or "disk i/o" in text:
            raise _full(where, f" ({error})") from error
        if "readonly" in text or "unable to open" in text:
            raise _read_only(where) from error
        if "locked" in text or "busy" in text:
            raise StorageError(f"{where} is locked by another program.", "Close it and try again.") from error
        raise StorageError(f"{where}: {error}.", "Run `reperio verify` on it.") from error
    except sqlite3.ProgrammingError as error:
        fix = "Open the collection again; read a ranking's hits before it is closed."
        raise StorageError(f"{where} is closed.", fix) from error
    except sqlite3.IntegrityError as error:
        raise StorageError(f"{where} refused a change: {error}.", "Nothing was changed; try again.") from error
    except sqlite3.DatabaseError as error:
        raise CorruptArtifact(f"{where} is not a readable database: {error}.", "Restore it from a backup.") from error


def _in_the_way(where: Path, error: OSError) -> StorageError:
    return StorageError(f"{where} is in the way of a folder: {error.strerror}.", "Choose another path.")


def _on_the_way(where: Path, name: object) -> bool:
    """Whether a name is that of a place, of a folder that it is in, or of a file beside it."""
    return isinstance(name, str) and (where.is_relative_to(name) or where.parent == Path(name).parent)


def _full(where: Path, detail: str = "") -> DiskFull:
    fix = "Free some space and run it again: what was acknowledged before is intact."
    return DiskFull(f"No room left to write {where}{detail}.", fix)


def _read_only(where: Path) -> ReadOnly:
    return ReadOnly(f"{where} cannot be written.", "Open it with mode='r', or make its folder writable.")


def _broken(where: Path, detail: str) -> StorageError:
    fix = "Check the disk and run it again: what was acknowledged before is as it was."
    return StorageError(f"The disk failed at {where}: {detail}.", fix)


def _unopened(where: object, code: int) -> StorageError:
    return StorageError(f"{where} cannot be opened: {os.strerror(code)}.", _UNOPENED[code])


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(values: Mapping[str, Any]) -> str:
    """JSON that holds its own SHA-256; one that is there is replaced."""
    rest = json.loads(json.dumps({name: value for name, value in values.items() if name != "sha256"}))
    return json.dumps({**rest, "sha256": _own(rest)}, indent=1, sort_keys=True)


def unsealed(text: str) -> dict[str, Any]:
    """What `sealed` wrote; raises ValueError if it was altered."""
    try:
        values: dict[str, Any] = json.loads(text)
        wanted = values.pop("sha256")
        own = _own(values)
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is no object with a checksum: {error}") from error
    if wanted != own:
        raise ValueError("its SHA-256 differs")
    return values


def _own(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old text or the new, never a part."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """The same for what is no text."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    with disk_errors(path):
        try:
            temporary.write_bytes(content)
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path | str, kind: str, meta: Mapping[str, Any]) -> Generator[Path]:
    """Give a temporary folder to fill; on a clean exit it becomes ``path``, else it is gone.

    Parameters
    ----------
    path
        Final name; must not exist.
    kind
        What the folder is, checked when it is read.
    meta
        JSON kept in the manifest. It may be filled until the block ends.

    Raises
    ------
    StorageError
        If ``path`` exists, or the disk refuses.
    """
    path = Path(path)
    with disk_errors(path):
        if path.exists():
            raise StorageError(f"{path} exists already.", "Save to a new folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
        temporary.mkdir()
        made, awaited = temporary, _AWAITED.get()
        try:
            if awaited is not None and awaited.path == path:
                awaited.filling = temporary
            yield temporary
            if awaited is not None and awaited.filling in path.parents:
                made = temporary.rename(path)
                awaited.put_off(temporary, path, kind, meta)
                return
            if awaited is not None and awaited.filling == temporary:
                awaited.tell()
            _seal(temporary, kind, meta)
            made = temporary.rename(path)
            sync(path.parent)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise


@dataclass(slots=True)
class _Awaited:
    """A folder that someone waits for to have all its files.

    Attributes
    ----------
    path, then
        What it will be called, and what to do.
    filling
        What it is called until then.
    inner
        Folders inside that are filled and not sealed, innermost first.
    """

    path: Path
    then: Callable[[], None]
    filling: Path | None = None
    inner: list[tuple[Path, str, dict[str, Any]]] = field(default_factory=list[tuple[Path, str, dict[str, Any]]])

    def put_off(self, temporary: Path, path: Path, kind: str, meta: Mapping[str, Any]) -> None:
        """Seal a folder later, which was renamed, and with it those inside."""
        for number, (inner, inner_kind, told) in enumerate(self.inner):
            if temporary in inner.parents:
                self.inner[number] = (path / inner.relative_to(temporary), inner_kind, told)
        self.inner.append((path, kind, dict(meta)))

    def tell(self) -> None:
        """It has all its files; seals those inside, whose names reach the disk with the folder around them."""
        self.filling = None
        self.then()
        for path, kind, meta in self.inner:
            with disk_errors(path):
                _seal(path, kind, meta)


_AWAITED: ContextVar[_Awaited | None] = ContextVar("_AWAITED", default=None)


@contextmanager
def when_filled(path: Path, then: Callable[[], None]) -> Generator[None]:
    """Call ``then`` as soon as a folder of this name, written inside, has all its files.

    What is written may change from then on. That the files are checksummed and reach the disk, which takes most of the
    time, comes after it, for those in folders inside it too. Where nothing of this name is written with `new_folder`,
    it is not called.
    """
    token = _AWAITED.set(_Awaited(path, then))
    try:
        yield
    finally:
        _AWAITED.reset(token)


def _seal(folder: Path, kind: str, meta: Mapping[str, Any]) -> None:
    files: dict[str, dict[str, Any]] = {}
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        if file.suffix == ".npy" and file.stat().st_size != _told(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))  # numpy does not see its last bytes fail
        sync(file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    # A folder inside is an artifact of its own: its manifest vouches for the rest.
    for inner in sorted(p for p in folder.iterdir() if p.is_dir()):
        name = f"{inner.name}/{MANIFEST}"
        files[name] = {"bytes": (inner / MANIFEST).stat().st_size, "sha256": sha256(inner / MANIFEST)}
    manifest = {"format": FORMAT, "kind": kind, "meta": dict(meta), "files": files}
    (folder / MANIFEST).write_text(sealed(manifest), encoding="utf-8")
    sync(folder / MANIFEST)
    sync(folder)


def _told(file: Path) -> int:
    """Bytes that an array's header says its file has."""
    with file.open("rb") as read:
        version = np.lib.format.read_magic(read)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(read)
        return read.tell() + math.prod(shape) * dtype.itemsize


def described(path: Path) -> tuple[str, dict[str, Any]]:
    """The kind and the ``meta`` of a folder that `new_folder` made; its files are not looked at.

    Raises
    ------
    NotFound, NewerFormat, CorruptArtifact
    """
    manifest = _manifest(path)
    return manifest["kind"], dict(manifest["meta"])


def read_folder(path: Path | str, kind: str, *, checksums: bool = True) -> dict[str, Any]:
    """Check a folder that `new_folder` made and return its ``meta``.

    Parameters
    ----------
    checksums
        Whether to read every byte; the manifest, and which files there are and of what size, is checked always.

    Raises
    ------
    NotFound, NewerFormat, CorruptArtifact
    """
    path = Path(path)
    manifest = _manifest(path)
    if manifest["kind"] != kind:
        raise CorruptArtifact(f"{path} holds a {manifest['kind']}, not a {kind}.", "Check the path.")
    files: dict[str, dict[str, Any]] = manifest["files"]
    for name, wanted in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != wanted["bytes"]:
            raise CorruptArtifact(f"{file} is missing or not {wanted['bytes']} bytes long.", "Rebuild or restore it.")
        if checksums and sha256(file) != wanted["sha256"]:
            raise CorruptArtifact(f"{file} was altered: its SHA-256 differs.", "Rebuild or restore it.")
    # Some files are there or not by what an index has learnt: one that was put there would be taken for part of it.
    known = {MANIFEST, *(name.split("/")[0] for name in files)}
    strange = sorted(entry.name for entry in path.iterdir() if entry.name not in known and entry.name[0] != ".")
    if strange:
        raise CorruptArtifact(f"{path} holds {strange[0]}, which was not saved with it.", "Take it away.")
    return dict(manifest["meta"])


@contextmanager
def loading(path: Path, kind: str) -> Generator[None]:
    """Say of whatever a damaged folder leads to that it is damaged; not of a program that may open no more files."""
    try:
        yield
    except (StorageError, NotFound):
        raise
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        code = getattr(error, "errno", None) or _passing(str(error))
        if code in _UNOPENED:
            raise _unopened(getattr(error, "filename", None) or path, code) from error
        reason = f"{error!s:.300}".rstrip(".")
        raise CorruptArtifact(f"{path} is no {kind}: {reason}.", "Rebuild it.") from error


def _passing(problem: str) -> int | None:
    """Libraries tell the system's reason in words only; where a file ended too soon, that of an older call."""
    if "read error" in problem:
        return None
    return next((code for code in _UNOPENED if os.strerror(code) in problem), None)


def _manifest(path: Path) -> dict[str, Any]:
    """What a folder's manifest says, once it is known to be whole."""
    fix = "Rebuild or restore it."
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
        version = json.loads(text)["format"]
        if isinstance(version, int) and version > FORMAT:  # first: what a newer release seals may be another thing
            raise NewerFormat(f"{path} has format {version}; this release reads up to {FORMAT}.", "Upgrade reperio.")
        manifest = unsealed(text)
        sound = version == FORMAT and isinstance(manifest["kind"], str) and isinstance(manifest["meta"], dict)
        if not sound or not all(_names_a_file(name, told) for name, told in manifest["files"].items()):
            raise CorruptArtifact(f"{path / MANIFEST} is no manifest of format {FORMAT}.", fix)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"{path} holds no {MANIFEST}.", "Check the path.") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, IsADirectoryError) as error:
        raise CorruptArtifact(f"{path / MANIFEST} is damaged: {error}.", fix) from error
    except OSError as error:
        if error.errno in _NO_PLACE:
            raise NotFound(f"{path} cannot be there: {error.strerror}.", "Check the path.") from error
        raise
    return manifest


def _names_a_file(name: str, told: object) -> bool:
    """Whether this is a file of the folder itself, or the manifest of one inside, with its size and checksum."""
    parts = name.split("/")
    inside = len(parts) == 1 or (len(parts) == 2 and parts[1] == MANIFEST)
    plain = all(part not in ("", ".", "..") and "\0" not in part and len(os.fsencode(part)) < 256 for part in parts)
    kept = cast("dict[str, object]", told) if isinstance(told, dict) else {}
    return inside and plain and isinstance(kept.get("bytes"), int) and isinstance(kept.get("sha256"), str)
