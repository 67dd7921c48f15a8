"""Counting while stages run: what a stage counts, whoever is measuring adds up.

>>> with measure() as counts:
...     count("tokens", 3)
...     count("tokens", 4)
>>> counts["tokens"]
7
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

_meters: ContextVar[tuple[Counter[str], ...]] = ContextVar("reperio_meters", default=())


def count(name: str, amount: int = 1) -> None:
    """Add ``amount`` to ``name`` in every meter that is running; free where none is."""
    for meter in _meters.get():
        meter[name] += amount


@contextmanager
def measure() -> Generator[Counter[str]]:
    """Collect what is counted inside the block, also in threads that carry the context on."""
    meter: Counter[str] = Counter()
    token = _meters.set((*_meters.get(), meter))
    try:
        yield meter
    finally:
        _meters.reset(token)
