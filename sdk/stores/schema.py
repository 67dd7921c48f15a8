"""The tables of a collection in SQLite."""

from __future__ import annotations

FORMAT = 1
"""Version of the tables, kept in ``PRAGMA user_version``."""

APPLICATION_ID = 0x52455045  # "REPE"

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE signals (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, config TEXT NOT NULL);
CREATE TABLE documents (
    row INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice, also after compaction
    id TEXT NOT NULL,
    text TEXT NOT NULL,
    metadata TEXT NOT NULL,
    provenance TEXT,
    text_hash BLOB NOT NULL,
    digest BLOB NOT NULL,
    seal INTEGER NOT NULL,  -- of the digest, the row and the commit: a page that was altered may give one for another
    added INTEGER NOT NULL,
    removed INTEGER
);
CREATE UNIQUE INDEX live ON documents (id) WHERE removed IS NULL;
CREATE INDEX by_text ON documents (text_hash);
CREATE INDEX by_added ON documents (added);
CREATE INDEX by_removed ON documents (removed) WHERE removed IS NOT NULL;
CREATE TABLE embeddings (
    key INTEGER PRIMARY KEY,  -- row * 64 + signal number: rows of one document lie together, in order of arrival
    value BLOB NOT NULL,
    tokens INTEGER,  -- NULL where the caller gave the vector
    truncated INTEGER NOT NULL DEFAULT 0,
    seal INTEGER NOT NULL  -- of the key and the value
);
CREATE TABLE fields (name TEXT NOT NULL, kind TEXT NOT NULL, PRIMARY KEY (name, kind)) WITHOUT ROWID;
"""
