"""Encoding and indexing on a cluster of machines: Ray Data runs it, files that are whole or absent keep it.

Nothing here is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reperio.distributed.building import BuildReport as BuildReport
    from reperio.distributed.building import build as build
    from reperio.distributed.cluster import Workers as Workers
    from reperio.distributed.encoded import EncodedTexts as EncodedTexts
    from reperio.distributed.encoding import EncodeReport as EncodeReport
    from reperio.distributed.encoding import encode as encode
    from reperio.distributed.loading import LoadReport as LoadReport
    from reperio.distributed.loading import load_into as load_into
    from reperio.distributed.sharded import ShardedIndex as ShardedIndex

_EXPORTS = {
    "BuildReport": "reperio.distributed.building",
    "EncodeReport": "reperio.distributed.encoding",
    "EncodedTexts": "reperio.distributed.encoded",
    "LoadReport": "reperio.distributed.loading",
    "ShardedIndex": "reperio.distributed.sharded",
    "Workers": "reperio.distributed.cluster",
    "build": "reperio.distributed.building",
    "encode": "reperio.distributed.encoding",
    "load_into": "reperio.distributed.loading",
}

__all__ = [
    "BuildReport",
    "EncodeReport",
    "EncodedTexts",
    "LoadReport",
    "ShardedIndex",
    "Workers",
    "build",
    "encode",
    "load_into",
]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_EXPORTS[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
