"""The saved states of one index: a folder for each, and ``CURRENT``, which names the one in use.

Each generation is written beside the others and is whole or absent; what is in use changes by a rename.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from reperio.artifacts import new_folder, read_folder, replace_text, sealed, unsealed, when_filled
from reperio.errors import CorruptArtifact, NewerFormat, NotFound
from reperio.protocols import Index, Mappable, Served, Spec
from reperio.registry import resolve

Stamp: TypeAlias = tuple[int, int]
"""Changes whenever ``CURRENT`` does."""


@dataclass(frozen=True, slots=True)
class Current:
    """Which generation is in use, and what a rebuild would build."""

    spec: Spec
    generation: str | None = None
    previous: str | None = None


class Generations:
    """``indexes/<signal>``.

    Parameters
    ----------
    folder
        Made with the first generation.
    declared
        What to build where there is none.
    """

    def __init__(self, folder: Path, declared: Spec) -> None:
        self.folder = folder
        self._declared = declared
        self._being_written: set[str] = set()

    def current(self) -> Current:
        """What ``CURRENT`` says."""
        try:
            data = unsealed((self.folder / "CURRENT").read_text(encoding="utf-8"))
            return Current(data["spec"], data["generation"], data["previous"])
        except FileNotFoundError:
            return Current(self._declared)
        except (ValueError, KeyError, TypeError):  # damaged: the newest generation says what it is itself
            for path in sorted(self._paths(), reverse=True):
                try:
                    return Current(read_folder(path, "generation", checksums=False)["spec"], path.name)
                except (OSError, NotFound):
                    continue
            return Current(self._declared)

    def stamp(self) -> Stamp:
        """Costs no more than looking at the file's times."""
        try:
            found = (self.folder / "CURRENT").stat()
        except FileNotFoundError:
            return (0, 0)
        return (found.st_ino, found.st_mtime_ns)

    def use(self, current: Current) -> Stamp:
        """Write ``CURRENT``."""
        data = {"generation": current.generation, "previous": current.previous, "spec": dict(current.spec)}
        replace_text(self.folder / "CURRENT", sealed(data))
        return self.stamp()

    def write(
        self, index: Index[Any], seq: int, meta: dict[str, Any], filled: Callable[[], None] = lambda: None
    ) -> str:
        """Save an index as a new generation, not yet in use; returns its name.

        ``filled`` is called when the index may be changed again, while its files go to the disk; by most indexes.
        """
        taken = {path.name for path in self._paths()}
        name = next(name for i in range(len(taken) + 1) if (name := f"{seq:012d}-{i}") not in taken)
        self._being_written.add(name)
        try:
            told = {"born": name, **meta, "seq": seq}
            with (
                new_folder(self.folder / name, "generation", told) as folder,
                when_filled(folder / "index", filled),
            ):
                index.save(folder / "index")
        except BaseException:
            self._being_written.discard(name)
            raise
        return name

    def meta(self, name: str, *, checksums: bool = False) -> dict[str, Any]:
        """What a generation says of itself; ``born`` is the first that held the same index."""
        meta = read_folder(self.folder / name, "generation", checksums=checksums)
        return {"born": name, **meta}

    def load(self, name: str, *, mapped: bool = True) -> Index[Any]:
        """The index of a generation; where it may be mapped, it leaves its files on disk.

        None of them ever changes, and one that is removed stays for those who have it mapped. Their checksums are
        then read once a process.
        """
        spec = self.meta(name)["spec"]
        kind: Any = resolve(spec["type"])
        stays = mapped and isinstance(kind, Mappable) and kind.maps(spec)
        return _open(kind, self.folder / name / "index", {"mmap": True} if stays else {})

    def prune(self, *kept: str | None) -> None:
        """Remove all but these, and what a killed writer left."""
        self._being_written.difference_update(name for name in kept if name is not None)
        past = [path for path in self._paths() if path.name not in kept and not self._busy(path)]
        if past:
            self._drop(past, [path for path in self._paths() if path.name in kept or self._busy(path)])
        for path in past:
            remove(path)

    def _busy(self, path: Path) -> bool:
        """Whether it is being written by this object, under its own name or a passing one."""
        return any(path.name == name or path.name.startswith(f".{name}.") for name in self._being_written)

    def abandon(self, name: str) -> None:
        """A generation written, but never used."""
        self._being_written.discard(name)
        with suppress(OSError):
            self._drop([self.folder / name], [path for path in self._paths() if path.name != name])
            shutil.rmtree(self.folder / name)

    def _drop(self, past: Iterable[Path], kept: Iterable[Path]) -> None:
        """Take off their server the rows that no generation names any more; where in doubt, they stay."""
        try:
            named = {index.address for path in kept if (index := self._served(path)) is not None}
        except (OSError, NotFound):
            return
        for path in past:
            with suppress(OSError, NotFound):
                index = self._served(path)
                if index is not None and index.address not in named:
                    index.drop()

    def _served(self, path: Path) -> Served | None:
        """The index of a generation, if its rows are on a server."""
        if path.name.startswith("."):  # not whole yet, or never
            return None
        kind = resolve(read_folder(path, "generation", checksums=False)["spec"]["type"])
        index = kind.open(path / "index") if hasattr(kind, "address") else None
        return index if isinstance(index, Served) else None

    def _paths(self) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from (path for path in sorted(self.folder.iterdir()) if path.is_dir())

    def names(self) -> list[str]:
        """Every whole generation, the oldest first."""
        return [path.name for path in self._paths() if not path.name.startswith(".")]

    def problems(self) -> Iterator[str]:
        """What is wrong on disk; a checkpoint that does not verify costs a rebuild, never data."""
        current = self.current()
        for name in (current.generation, current.previous):
            if name is not None:
                try:
                    self.meta(name, checksums=True)
                    self.load(name, mapped=False)
                except (CorruptArtifact, NewerFormat, NotFound) as error:
                    yield f"indexes/{self.folder.name}: {error.problem}"

    def sizes(self) -> dict[str, int]:
        """Bytes on disk of every whole generation, the oldest first."""
        return {name: _size(self.folder / name) for name in self.names()}

    def size(self) -> int:
        """Bytes on disk, of what is not whole too."""
        return _size(self.folder)


def _size(top: Path) -> int:
    total = 0
    for folder, _, files in os.walk(top):  # which passes over what a writer prunes meanwhile
        for file in files:
            with suppress(FileNotFoundError):
                total += Path(folder, file).stat().st_size
    return total


def remove(past: Path) -> None:
    """Remove a folder that is past; what cannot be removed is told, and harms nothing."""
    try:
        shutil.rmtree(past)
    except FileNotFoundError:  # another was quicker
        pass
    except OSError as error:
        reason = error.strerror or error
        warnings.warn(f"{past} is not used any more, and cannot be removed: {reason}.", stacklevel=2)


def _open(kind: Any, path: Path, how: dict[str, bool]) -> Index[Any]:
    opened: Index[Any] = kind.open(path, **how)
    return opened
