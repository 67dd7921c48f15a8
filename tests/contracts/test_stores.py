"""Every store keeps the contract."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from reperio.protocols import Store
from reperio.stores.postgres import PostgresStore
from reperio.stores.rows import Mode
from reperio.stores.sqlite import SQLiteStore
from reperio.testing.store import StoreContract

_NUMBERS = count()


class TestSQLiteStore(StoreContract):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> Callable[[Mode], Store]:
        return lambda mode: SQLiteStore(tmp_path / "store.sqlite", mode=mode)


class TestPostgresStore(StoreContract):
    @pytest.fixture
    def opened(self, server: str) -> Callable[[Mode], Store]:
        name = f"contract_{next(_NUMBERS)}"
        return lambda mode: PostgresStore(server, collection=name, mode=mode)
