"""API keys: who may call, with which scopes, and the secrets that sign their callbacks.

A token is shown once and stored only as its SHA-256 digest: it has 256 random bits, so a
slow hash would protect nothing and would let strangers burn our processor.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from storage.errors import KeyNameTakenError, KeyNotFoundError
from storage.ids import new_id
from storage.sealing import Sealer
from storage.signing_secrets import SigningSecrets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from storage.database import Connection, Database
    from storage.signing_secrets import Sealing

#: What a key may do unless its operator says otherwise.
DEFAULT_SCOPES: Final = ("images.read", "images.write", "queries.read", "queries.write")
#: Widens queries.read and queries.write from a key's own queries to those of every key.
QUERIES_ALL: Final = "queries.all"
#: What a key can be allowed to do.
SCOPES: Final = (*DEFAULT_SCOPES, QUERIES_ALL)
#: How tokens begin, so that people and secret scanners know one when they see it.
TOKEN_PREFIX: Final = "pbk_"  # noqa: S105 - a prefix, no secret


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as operators see it: never with its token or its secrets."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a key's owner is shown once."""

    id: str
    token: str
    signing_secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What one token entitles to, until it expires (None: never)."""

    key_id: str
    scopes: frozenset[str]
    expires_at: int | None


class ApiKeys:
    """The API keys of a database. Safe to use from any thread.

    *sealer* encrypts their signing secrets; without one they are stored in clear.
    """

    def __init__(self, database: Database, *, sealer: Sealer | None = None) -> None:
        self._database = database
        self._secrets = SigningSecrets(database, sealer or Sealer())

    def create(
        self,
        name: str,
        *,
        scopes: Sequence[str],
        signing_secret: str,
        expires_at: int | None,
        now: int,
    ) -> Credentials:
        """Make a key.

        Raises:
            KeyNameTakenError: A key of this name exists and is not revoked.
            SealError: The secret cannot be encrypted as the others are.
        """
        id_, token = new_id("key", now=now), _new_token()

        def operation(connection: Connection) -> None:
            if connection.execute(
                "SELECT 1 FROM api_key WHERE name = ? AND revoked_at IS NULL", (name,)
            ).fetchall():
                msg = f"there is a key named {name!r} already"
                raise KeyNameTakenError(msg)
            connection.execute(
                "INSERT INTO api_key (id, name, scopes, created_at, expires_at) VALUES (?, ?, ?, ?, ?)",
                (id_, name, json.dumps(list(scopes)), now, expires_at),
            )
            self._add_credentials(connection, id_, token, signing_secret, now)

        self._database.write(operation, uses_reserve=True)
        return Credentials(id=id_, token=token, signing_secret=signing_secret)

    def rotate(
        self, name_or_id: str, *, signing_secret: str, overlap: int, now: int
    ) -> Credentials:
        """Give a key a new token and secret; the old ones work *overlap* milliseconds more.

        Raises:
            KeyNotFoundError: There is no such key, or it is revoked.
            SealError: The secret cannot be encrypted as the others are.
        """
        token = _new_token()

        def operation(connection: Connection) -> str:
            id_ = _active_id(connection, name_or_id)
            for table in ("api_token", "signing_secret"):
                connection.execute(
                    f"UPDATE {table} SET expires_at = ?1"
                    " WHERE key_id = ?2 AND (expires_at IS NULL OR expires_at > ?1)",
                    (now + overlap, id_),
                )
            self._add_credentials(connection, id_, token, signing_secret, now)
            return id_

        id_ = self._database.write(operation, uses_reserve=True)
        return Credentials(id=id_, token=token, signing_secret=signing_secret)

    def revoke(self, name_or_id: str, *, now: int) -> ApiKey:
        """End a key. Callbacks of its queries are still signed with its secrets.

        Raises:
            KeyNotFoundError: There is no such key, or it is revoked already.
        """

        def operation(connection: Connection) -> str:
            id_ = _active_id(connection, name_or_id)
            connection.execute("UPDATE api_key SET revoked_at = ? WHERE id = ?", (now, id_))
            return id_

        id_ = self._database.write(operation, uses_reserve=True)
        return next(key for key in self.all() if key.id == id_)

    def all(self) -> list[ApiKey]:
        """Return every key, oldest first."""
        return [
            ApiKey(
                id=id_,
                name=name,
                scopes=tuple(json.loads(scopes)),
                created_at=created_at,
                expires_at=expires_at,
                revoked_at=revoked_at,
                last_used_at=last_used_at,
            )
            for id_, name, scopes, created_at, expires_at, revoked_at, last_used_at in (
                self._database.read(
                    "SELECT id, name, scopes, created_at, expires_at, revoked_at, last_used_at"
                    " FROM api_key ORDER BY created_at, id"
                )
            )
        ]

    def grants(self) -> dict[bytes, Grant]:
        """Return what every token of every live key entitles to: digest -> grant.

        Expiry is for the reader to check: time goes on after the read.
        """
        return {
            bytes(digest): Grant(
                key_id=key_id, scopes=frozenset(json.loads(scopes)), expires_at=expires_at
            )
            for digest, key_id, scopes, expires_at in self._database.read(
                "SELECT digest, key_id, scopes, CASE"
                " WHEN api_token.expires_at IS NULL THEN api_key.expires_at"
                " WHEN api_key.expires_at IS NULL THEN api_token.expires_at"
                " ELSE min(api_token.expires_at, api_key.expires_at) END"
                " FROM api_token JOIN api_key ON api_key.id = key_id WHERE revoked_at IS NULL"
            )
        }

    def signing_secrets(self, key_id: str, *, now: int) -> list[str]:
        """Return the secrets that sign for a key now: the newest first, then unexpired ones.

        Raises:
            SealError: One cannot be decrypted.
        """
        return self._secrets.of(key_id, now=now)

    def seal_secrets(self) -> Sealing:
        """See `SigningSecrets.seal_all`: for the server, before it works."""
        return self._secrets.seal_all()

    def note_use(self, last_used_at: Mapping[str, int]) -> None:
        """Record when keys were last used: key id -> time."""
        rows = [(at, key_id) for key_id, at in last_used_at.items()]
        self._database.write(
            lambda connection: (
                connection.executemany(
                    "UPDATE api_key SET last_used_at = ? WHERE id = ?", rows
                ).rowcount
            ),
            uses_reserve=True,
        )

    def _add_credentials(
        self, connection: Connection, id_: str, token: str, secret: str, now: int
    ) -> None:
        connection.execute(
            "INSERT INTO api_token (digest, key_id, created_at) VALUES (?, ?, ?)",
            (digest(token), id_, now),
        )
        self._secrets.add(connection, secret, key_id=id_, now=now)


def digest(token: str) -> bytes | None:
    """Return the digest under which *token* is looked up; None when it cannot be a token.

    A token ends in a checksum, so a mistyped one is told without asking the database.
    """
    body = token.removeprefix(TOKEN_PREFIX)
    if body == token or len(body) != 51 or not body.isascii() or _checksum(body[:43]) != body[43:]:
        return None
    return hashlib.sha256(token.encode()).digest()


def _new_token() -> str:
    body = secrets.token_urlsafe(32)  # 43 characters
    return f"{TOKEN_PREFIX}{body}{_checksum(body)}"


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def _active_id(connection: Connection, name_or_id: str) -> str:
    rows = connection.execute(
        "SELECT id FROM api_key WHERE ? IN (id, name) AND revoked_at IS NULL", (name_or_id,)
    ).fetchall()
    if not rows:
        msg = f"there is no key {name_or_id!r}, or it is revoked"
        raise KeyNotFoundError(msg)
    return str(rows[0][0])
