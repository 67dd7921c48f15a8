"""Arrays and settings as a saved folder holds them, looked at before they are believed.

Checksums tell that a folder is what was written. These tell that it is what an index can be: compiled code reads where
an offset says, and NumPy makes an array as large as a header says.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from reperio.artifacts import described, loading, read_folder
from reperio.errors import ConfigurationError
from reperio.indexes.verified import read_verified
from reperio.registry import registered, resolve

__all__ = [
    "Mapped",
    "arguments",
    "ascends",
    "finite",
    "offsets_of",
    "once_each",
    "read_array",
    "reading",
    "whole",
    "within",
]

Dtypes: TypeAlias = type[np.generic] | tuple[type[np.generic], ...]
Mapped: TypeAlias = Literal["r", "c"] | None

_OPTIONAL = {"centroids", "dims", "train_size"}
_COUNTS = {*_OPTIONAL, "batch", "degree", "oversample", "seal_at", "seed"}

_PART = 1 << 20
"""Values looked at together: what a check takes beside the array."""


@contextmanager
def reading(
    cls: type[Any], path: Path | str, kind: str, *, verify: bool = True, once: bool = False
) -> Generator[tuple[Path, dict[str, Any]]]:
    """Check a folder that an index wrote, with `read_verified`, and give it and its ``meta`` to be read with `loading`.

    Raises
    ------
    ConfigurationError
        If another class wrote it, which is named.
    NotFound, NewerFormat, CorruptArtifact
    """
    folder = Path(path)
    found, meta = described(folder)
    spec = meta.get("spec")
    told = cast("dict[str, object]", spec) if isinstance(spec, dict) else {}
    saved = told.get("type") if found != "generation" else None  # which tells its index's
    if isinstance(saved, str) and not _same(cls, saved):
        read_folder(folder, found, checksums=verify)  # a manifest that came from elsewhere is damage
        raise ConfigurationError(f"{folder} was saved by {saved}, not by {cls.__name__}.", f"Use {saved}.open.")
    meta = read_verified(folder, kind, verify=verify, once=once)
    with loading(folder, cls.__name__):
        yield folder, meta


def _same(cls: type[Any], saved: str) -> bool:
    """Whether a class is the one of this name, or inherits what it calls itself."""
    return cls.__name__ == saved or (saved in registered() and getattr(resolve(saved), "spec", None) is cls.spec)


def whole(meta: Mapping[str, Any], name: str, *, least: int = 0) -> int:
    """A whole number among settings; raises KeyError or ValueError if there is none."""
    value = meta[name]
    if type(value) is not int or not least <= value < 1 << 63:
        raise ValueError(f"{name} is {value!r:.50}")
    return value


def arguments(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What an index is built with, from the ``spec`` among its settings; sizes and seeds must be whole numbers."""
    told = {name: value for name, value in meta["spec"].items() if name != "type"}
    for name in _COUNTS & told.keys():
        if told[name] is not None or name not in _OPTIONAL:
            whole(told, name)
    return told


def read_array(
    path: Path, dtypes: Dtypes | None = None, shape: tuple[int | None, ...] | None = None, *, mapped: Mapped = None
) -> Any:
    """An array as ``np.save`` wrote it, read into memory or mapped.

    Parameters
    ----------
    dtypes
        What it may hold; anything plain if not given.
    shape
        What it must have; None where any size will do.
    mapped
        ``"r"``, or ``"c"`` for a private copy of what is written to.

    Raises
    ------
    ValueError
        If it is another array, or not whole; a bool that is neither 0 nor 1.
    """
    with path.open("rb") as file:
        found, fortran, dtype = _header(file)
        if not (_is_one_of(dtype, dtypes) and _fits(found, shape)):
            raise ValueError(f"{path.name} holds {dtype} {found}, not {shape}")
        start, size = file.tell(), prod(found)
        if path.stat().st_size != start + size * dtype.itemsize:
            raise ValueError(f"{path.name} is too short or too long for {dtype} {found}")
        order: Literal["F", "C"] = "F" if fortran else "C"
        if mapped is not None:
            out: NDArray[Any] = np.asarray(np.memmap(path, dtype, mapped, start, found, order))
        else:
            out = np.fromfile(file, dtype, size).reshape(found, order=order)
    if dtype == np.bool_ and not within(out.view(np.uint8), 0, 2):
        raise ValueError(f"{path.name} holds bytes that are no marks")
    return out


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        if npy.read_magic(file) != (1, 0):
            raise ValueError("its version is not 1.0")
        shape, fortran, dtype = npy.read_array_header_1_0(file)
    except Exception as error:  # whatever Python's own parser makes of it
        raise ValueError(f"{Path(file.name).name} is no array: {error!s:.100}") from error
    if min(shape, default=0) < 0:
        raise ValueError(f"{Path(file.name).name} has shape {shape}")
    return shape, fortran, dtype


def _is_one_of(dtype: np.dtype[Any], dtypes: Dtypes | None) -> bool:
    if dtypes is None:
        return dtype.kind in "biuf" and dtype.isnative
    return dtype in [np.dtype(one) for one in (dtypes if isinstance(dtypes, tuple) else (dtypes,))]


def _fits(found: tuple[int, ...], shape: tuple[int | None, ...] | None) -> bool:
    if shape is None:
        return True
    return len(found) == len(shape) and all(b is None or a == b for a, b in zip(found, shape, strict=True))


# Checks in linear time, that take little room


def within(values: NDArray[Any], low: float, high: float) -> bool:
    """Whether all are at least ``low``, and below ``high``; false of NaN."""
    return not values.size or bool(low <= values.min() and values.max() < high)


def finite(values: NDArray[Any]) -> bool:
    """Whether none is NaN or infinite."""
    return within(values, -np.finfo(np.float64).max, np.inf)


def ascends(values: NDArray[Any], starts: NDArray[np.int64] | None = None) -> bool:
    """Whether each is above the one before, but for those at ``starts``, which ascend or stay."""
    for first in range(1, len(values), _PART):
        last = min(first + _PART, len(values))
        falls = first + np.flatnonzero(values[first:last] <= values[first - 1 : last - 1])
        if len(falls) and (starts is None or not _among(falls, starts)):
            return False
    return True


def _among(values: NDArray[np.int64], ascending: NDArray[np.int64]) -> bool:
    at = np.searchsorted(ascending, values).clip(max=len(ascending) - 1)
    return bool((ascending[at] == values).all())


def offsets_of(values: NDArray[np.int64], total: int, *, filled: bool = False) -> bool:
    """Whether these are where lists begin, one after the other, and where the last ends; none empty if ``filled``."""
    if not len(values) or values[0] != 0 or values[-1] != total:
        return False
    falls = np.less_equal if filled else np.less
    return not any(
        falls(values[first : first + _PART], values[first - 1 : first + _PART - 1][: len(values) - first]).any()
        for first in range(1, len(values), _PART)
    )


def once_each(parts: Sequence[NDArray[np.int64]]) -> None:
    """Raise ValueError if a key of one part, ascending, is in another."""
    if len(parts) > 1:
        keys = np.sort(np.concatenate(parts), kind="stable")
        if (keys[1:] == keys[:-1]).any():
            raise ValueError(f"row {keys[1:][keys[1:] == keys[:-1]][0]} is there twice")
