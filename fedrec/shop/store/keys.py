"""Keys of a shop's API: shown once, kept as a hash.

**Guarantee:** who reads the database cannot make a key from it: a secret has 256 random bits of the operating system's,
and what is kept is its SHA-256.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time

from fedrec.errors import ConfigError, DataError
from fedrec.shop.store.database import Database
from fedrec.shop.store.rows import Key, KeyScope, check_id

_KEY = "SELECT id, name, scope, created, revoked, hash FROM keys"


class Keys:
    """The keys in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, shop: str, name: str, scope: KeyScope) -> tuple[Key, str]:
        """A new key, and its secret: the only time that anybody sees it.

        Args:
            shop: whose it is; a part of the secret, by which a server of several shops finds the store.
            name: what it is for.
            scope: what it allows.
        """
        secret = f"fr_{shop}_{secrets.token_hex(32)}"
        key = Key(secrets.token_hex(4), check_id("name", name), scope, time.time())
        with self._database.writing() as transaction:
            transaction.change(
                """INSERT INTO keys (id, name, scope, hash, created) VALUES (:id, :name, :scope, :hash, :created)""",
                id=key.id,
                name=key.name,
                scope=int(scope),
                hash=_hash(secret),
                created=key.created,
            )
        return key, secret

    def of(self, secret: str) -> Key | None:
        """The valid key of a secret; None = there is none."""
        wanted = _hash(secret)
        for *values, found in self._database.read(f"{_KEY} WHERE hash = :hash AND revoked IS NULL", hash=wanted):
            if hmac.compare_digest(bytes(found), wanted):
                return _key(*values)
        return None

    def all(self) -> list[Key]:
        """Valid and revoked ones, the oldest first."""
        return [_key(*values) for *values, _ in self._database.read(f"{_KEY} ORDER BY created, id")]

    def revoke(self, key_id: str) -> None:
        """Make a key invalid for ever.

        Raises:
            ConfigError: no valid key has that id.
        """
        with self._database.writing() as transaction:
            revoke = "UPDATE keys SET revoked = :now WHERE id = :id AND revoked IS NULL"
            if not transaction.change(revoke, now=time.time(), id=key_id):
                raise ConfigError(f"no valid key has the id {key_id!r}; list them with fedrec shop key DIR list")


def read_scope(name: str) -> KeyScope:
    """The scope of that name.

    Raises:
        DataError: there is none.
    """
    try:
        return KeyScope[name.upper()]
    except KeyError as error:
        raise DataError(f"scope {name!r}: give one of {', '.join(one.name.lower() for one in KeyScope)}") from error


def _key(key_id: str, name: str, scope: int, created: float, revoked: float | None) -> Key:
    return Key(key_id, name, KeyScope(scope), created, revoked)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="replace")).digest()
