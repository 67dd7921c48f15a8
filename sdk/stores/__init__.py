"""Where documents and embeddings live: the truth."""

from __future__ import annotations

from reperio.stores.postgres import PostgresStore
from reperio.stores.sqlite import SQLiteStore

__all__ = ["PostgresStore", "SQLiteStore"]
