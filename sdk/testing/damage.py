"""Ways in which a saved folder can be damaged, by chance or by hand.

A folder is held as ``Files``: what each file holds, by its path below the folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from reperio.artifacts import MANIFEST, sealed

__all__ = ["Files", "damaged", "forged", "held", "resealed"]

Files: TypeAlias = dict[str, bytes]

_STRANGE: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 2**31, 2**32 - 1, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.5, 1e308),
    *(float("nan"), float("inf"), "", "0", "..", "\0", "é☃\u202e\U0001f9ff", "x" * 300, [], {}, [[]], [-1], {"a": []}),
)
"""What a setting is replaced by."""


def held(folder: Path) -> Files:
    """What a folder on disk holds."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def damaged(files: Files, other: Files, rng: random.Random) -> Files:
    """A copy with one accident: bytes altered, lost, moved or taken from ``other``, or settings edited."""
    out = dict(files)
    rng.choice(_ACCIDENTS)(out, other, rng)
    return out


def forged(files: Files, other: Files, rng: random.Random) -> Files:
    """A copy with one array or setting replaced by a strange one, and every checksum made to fit again."""
    out = dict(files)
    name = rng.choice(sorted(out))
    if name.endswith(MANIFEST) or rng.random() < 0.1:
        name = rng.choice([name for name in sorted(out) if name.endswith(".json")])
        _edit(out, name, rng, within="meta" if name.endswith(MANIFEST) else None)
    elif name.endswith(".npy") and rng.random() < 0.8:
        out[name] = _strange_array(out[name], rng)
    else:
        rng.choice(_OF_BYTES)(out, name, rng)
    return resealed(out)


def resealed(files: Mapping[str, bytes]) -> Files:
    """The same files, with the sizes and checksums in every manifest those of the files that are there."""
    out = dict(files)
    for path in sorted((name for name in out if Path(name).name == MANIFEST), key=lambda name: -name.count("/")):
        folder = path[: -len(MANIFEST)]
        try:
            told = json.loads(out[path])
            told["files"] = {
                name[len(folder) :]: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                for name, data in out.items()
                if name.startswith(folder) and name != path and _own(name[len(folder) :])
            }
            out[path] = sealed(told).encode()
        except (ValueError, TypeError, AttributeError, RecursionError):  # no manifest any more
            continue
    return out


def _own(name: str) -> bool:
    return "/" not in name or (name.count("/") == 1 and name.endswith(f"/{MANIFEST}"))


# Accidents


def _flip(out: Files, name: str, rng: random.Random) -> None:
    data = bytearray(out[name])
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    out[name] = bytes(data)


def _overwrite(out: Files, name: str, rng: random.Random) -> None:
    data = out[name]
    start = rng.randrange(len(data) + 1)
    size = rng.randrange(1, 65)
    run = rng.choice((rng.randbytes(size), bytes(size), b"\xff" * size))
    out[name] = (data[:start] + run)[: len(data)] + data[start + size :]


def _cut(out: Files, name: str, rng: random.Random) -> None:
    out[name] = out[name][: rng.randrange(len(out[name]) + 1)]


def _lengthen(out: Files, name: str, rng: random.Random) -> None:
    size = rng.randrange(1, 300)
    out[name] += rng.choice((rng.randbytes(size), bytes(size), out[name][:size]))


def _insert(out: Files, name: str, rng: random.Random) -> None:
    start = rng.randrange(len(out[name]) + 1)
    out[name] = out[name][:start] + rng.randbytes(rng.randrange(1, 9)) + out[name][start:]


def _exchange(out: Files, name: str, rng: random.Random) -> None:
    data, size = out[name], rng.choice((1, 8, 64))
    if len(data) >= 2 * size:
        a, b = sorted(rng.sample(range(len(data) // size), 2))
        a, b = a * size, b * size
        out[name] = data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


_OF_BYTES: tuple[Callable[[Files, str, random.Random], None], ...] = (
    *(_flip, _flip, _flip, _overwrite, _overwrite, _cut, _lengthen, _insert, _exchange),
)


def _bytes(out: Files, other: Files, rng: random.Random) -> None:
    rng.choice(_OF_BYTES)(out, rng.choice(sorted(out)), rng)


def _delete(out: Files, other: Files, rng: random.Random) -> None:
    del out[rng.choice(sorted(out))]


def _rename(out: Files, other: Files, rng: random.Random) -> None:
    name = rng.choice(sorted(out))
    out[rng.choice([*sorted(other), name + "~", name[:-1]])] = out.pop(name)


def _trade(out: Files, other: Files, rng: random.Random) -> None:
    a, b = rng.choice(sorted(out)), rng.choice(sorted(out))
    out[a], out[b] = out[b], out[a]


def _old(out: Files, other: Files, rng: random.Random) -> None:
    """Some files of another time."""
    for name in rng.sample(sorted(other), rng.choice((1, 1, 2, len(other) - 1))):
        out[name] = other[name]


def _stranger(out: Files, other: Files, rng: random.Random) -> None:
    name = rng.choice(["given.npy", "cuts.npy", "links.npy", "learned-0.npy", "index.faiss", "1-ids.npy", "x.ivfdata"])
    out[name] = other[rng.choice(sorted(other))]


def _settings(out: Files, other: Files, rng: random.Random) -> None:
    _edit(out, rng.choice([name for name in sorted(out) if name.endswith(("json", "CURRENT"))]), rng)


_ACCIDENTS: tuple[Callable[[Files, Files, random.Random], None], ...] = (
    *(_bytes, _bytes, _bytes, _bytes, _delete, _rename, _trade, _old, _stranger, _settings, _settings),
)


# Settings


def _edit(out: Files, name: str, rng: random.Random, *, within: str | None = None) -> None:
    """Change one value of a JSON file, its name, or whether it is there."""
    if rng.random() < 0.03:
        out[name] = rng.choice((b"[" * 5000, b'{"a":' * 5000, b"\xff\xfe", b"null", b"", b"{}", b"[]", b"9" * 5000))
        return
    tree = json.loads(out[name])
    if within is not None and rng.random() < 0.05:
        tree[within] = rng.choice(_STRANGE)
    else:
        places = list(_places(tree if within is None else tree[within]))
        if places:
            _change(*rng.choice(places), rng)
    out[name] = json.dumps(tree, indent=rng.choice((None, 1))).encode("utf-8", "surrogatepass")


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every place in a tree of JSON: what holds it, and its key or number there."""
    kind = type(cast("object", tree))
    steps: Iterable[tuple[Any, Any]] = tree.items() if kind is dict else enumerate[Any](tree) if kind is list else ()
    return [place for key, value in steps for place in ((tree, key), *_places(value))]


def _change(holder: Any, key: Any, rng: random.Random) -> None:
    value, kind = holder[key], rng.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(cast("object", holder), dict):
        holder[rng.choice((str(key) + "x", "dim", "spec", "type"))] = holder.pop(key)
    elif kind == 2 and isinstance(value, (int, float)):
        holder[key] = rng.choice((value + 1, value - 1, -value, value * 2, str(value), float(value)))
    elif kind == 3 and isinstance(value, str) and value:
        at = rng.randrange(len(value))
        holder[key] = value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :]
    else:
        holder[key] = rng.choice(_STRANGE)


# Arrays


def _strange_array(data: bytes, rng: random.Random) -> bytes:
    """An array of another shape, order or dtype, or with values that it cannot have."""
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return data
    if rng.random() < 0.15:
        return _strange_header(data, rng)
    kind = rng.randrange(10)
    if kind == 0:
        dtypes = ("i1", "u1", "i4", "u4", "i8", "u8", ">i8", "f2", "f4", "f8", "?", "c8", "U2", "S3", "V4", "M8[s]")
        array = np.zeros(array.shape, rng.choice(dtypes))
    elif kind == 1:
        array = array[: rng.randrange(len(array) + 1)] if array.ndim else array[None]
    elif kind == 2:
        array = np.concatenate([array, array[-1:]]) if array.ndim else array
    elif kind == 3:
        array = rng.choice((array[None], array.reshape(-1), array[..., None], np.asfortranarray(array), array[:0]))
    elif kind == 4:
        array = array[::-1]
    elif array.size:
        array = array.copy()
        flat = array.reshape(-1)
        for _ in range(rng.choice((1, 1, 3))):
            at, to = rng.randrange(len(flat)), rng.randrange(len(flat))
            strange = (flat[to], *_values(array.dtype, flat[at]))
            flat[at] = rng.choice(strange)
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _values(dtype: np.dtype[Any], value: Any) -> list[Any]:
    """Values at the edges of a dtype, and next to one."""
    if dtype.kind == "f":
        return [np.nan, np.inf, -np.inf, -value, 0, np.finfo(dtype).max]
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        near = [v for v in (int(value) + 1, int(value) - 1, -1, 1 << 31, 1 << 40) if info.min <= v <= info.max]
        return [info.min, info.max, 0, *near]
    return [not value] if dtype.kind == "b" else [value]


def _strange_header(data: bytes, rng: random.Random) -> bytes:
    """Another word in the header of an ``.npy`` file."""
    swaps = (
        *(
            (b"(", rng.choice((b"(-", b"(9", b"(99999999999,"))),
            (b"False", b"True "),
            (b"<i8", b"<u8"),
            (b"<f4", b"<i4"),
        ),
        *((b"|b1", b"|u1"), (b"|b1", b"|O "), (b"<i8", b"|O8"), (b"shape", b"shapf"), (b"}", b"]"), (b"'", b'"')),
        *((b"\x93NUMPY\x01", rng.choice((b"\x93NUMPY\x02", b"\x93NUMPY\x09"))), (b"}", b"," * 9), (b"(", b"(" * 60)),
    )
    old, new = rng.choice(swaps)
    at = data.find(old)
    if at < 0:
        return data
    end = data.find(b"\n")
    changed = data[:at] + new + data[at + len(old) : end].rstrip()
    return changed.ljust(end)[:end] + data[end:] if len(changed) <= end else changed + data[end:]
