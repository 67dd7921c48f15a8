"""Contract tests that any component must pass, for those who write their own. Needs pytest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reperio.testing.encoder import EncoderContract as EncoderContract
    from reperio.testing.index import IndexContract as IndexContract
    from reperio.testing.source import SourceContract as SourceContract

_EXPORTS = {
    "EncoderContract": "reperio.testing.encoder",
    "IndexContract": "reperio.testing.index",
    "SourceContract": "reperio.testing.source",
}

__all__ = ["EncoderContract", "IndexContract", "SourceContract"]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_EXPORTS[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
