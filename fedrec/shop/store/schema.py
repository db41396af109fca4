"""The tables of a shop's store, and how older ones become these.

Migrations are numbered, plain SQL and never changed again: a new store runs them all, an older one those that it
lacks, in one transaction.
"""

from __future__ import annotations

import time

from fedrec.errors import StoreError

# The only words that the two databases spell differently.
_TYPES = {
    "sqlite": {"rising": "INTEGER PRIMARY KEY AUTOINCREMENT", "bytes": "BLOB", "real": "REAL", "text": "TEXT"},
    "postgresql": {
        "rising": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        "bytes": "BYTEA",
        "real": "DOUBLE PRECISION",
        "text": 'TEXT COLLATE "C"',
    },
}
_MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (
        """CREATE TABLE events (sequence {rising}, event_id {text} NOT NULL, shopper {text} NOT NULL,
        item {text} NOT NULL, kind {text} NOT NULL, value {real}, timestamp {real} NOT NULL, list_id {text})""",
        "CREATE UNIQUE INDEX events_by_id ON events (event_id)",
        "CREATE INDEX events_by_shopper ON events (shopper, timestamp, sequence)",
        """CREATE TABLE items (key {text} PRIMARY KEY, sequence BIGINT NOT NULL, title {text} NOT NULL,
        category {text} NOT NULL, price {real}, stock BIGINT, is_hidden SMALLINT NOT NULL,
        is_deleted SMALLINT NOT NULL, created {real} NOT NULL)""",
        "CREATE INDEX items_by_change ON items (sequence)",
        "CREATE TABLE facts (name {text} PRIMARY KEY, number BIGINT NOT NULL, secret {bytes})",
        "CREATE TABLE tombstones (shopper_hash {bytes} PRIMARY KEY, erased_at {real} NOT NULL)",
        "INSERT INTO facts (name, number) VALUES ('generation', 0)",
    ),
    2: (
        """CREATE TABLE keys (id {text} PRIMARY KEY, name {text} NOT NULL, scope SMALLINT NOT NULL,
        hash {bytes} NOT NULL UNIQUE, created {real} NOT NULL, revoked {real})""",
        """CREATE TABLE impressions (list_id {text} PRIMARY KEY, shopper {text}, list {text} NOT NULL,
        version {text} NOT NULL, arm {text} NOT NULL, timestamp {real} NOT NULL)""",
        "CREATE INDEX impressions_by_shopper ON impressions (shopper) WHERE shopper IS NOT NULL",
        "CREATE INDEX impressions_by_time ON impressions (timestamp)",
        "CREATE INDEX events_by_list ON events (list_id) WHERE list_id IS NOT NULL",
    ),
    3: ("ALTER TABLE impressions ADD COLUMN items {text}",),
}
CURRENT_VERSION = max(_MIGRATIONS)
VERSION_TABLE = "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, at {real} NOT NULL)"


def statements_since(version: int, dialect: str) -> list[str]:
    """SQL that takes a store of a version to the current one; 0 = an empty database.

    Raises:
        StoreError: the store was written by a newer fedrec.
    """
    if version > CURRENT_VERSION:
        raise StoreError(
            f"the store has schema {version}, this fedrec knows {CURRENT_VERSION} at most; install a newer fedrec, "
            "or restore a backup made before the upgrade"
        )
    words = _TYPES[dialect]
    statements = [VERSION_TABLE]
    for number in range(version + 1, CURRENT_VERSION + 1):
        statements += _MIGRATIONS[number]
        statements.append(f"INSERT INTO schema_version (version, at) VALUES ({number}, {time.time()})")
    return [statement.format_map(words) for statement in statements]
