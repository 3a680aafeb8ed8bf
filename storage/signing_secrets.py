"""The secrets that sign callbacks, encrypted when there is a key to do it with.

All rows are encrypted with one and the same key, or none is: the server sees to that when it
starts (`SigningSecrets.seal_all`). A command beside it therefore follows what it finds in the
database; the rule a newcomer would break is to encrypt with one's own newest key instead, which
the running server may not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage.errors import SealError

if TYPE_CHECKING:
    from storage.database import Connection, Database
    from storage.sealing import Sealer


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealing:
    """What came of encrypting all secrets anew."""

    #: How many were in clear, or encrypted with another key.
    changed: int
    #: Whether what they were before is gone from the files; it stays in the write-ahead log
    #: while another process reads the database.
    wiped: bool


class SigningSecrets:
    """The signing secrets of a database. Safe to use from any thread."""

    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    def add(self, connection: Connection, secret: str, *, key_id: str, now: int) -> None:
        """Store a secret of an API key, as part of the caller's transaction.

        Raises:
            SealError: The others are encrypted with a key that is not at hand; or there is a
                key, but the others are in clear.
        """
        rows = connection.execute("SELECT sealed_with FROM signing_secret LIMIT 1").fetchall()
        key = rows[0][0] if rows else self._sealer.current
        if key is None and self._sealer.current is not None:
            msg = (
                "signing secrets are in clear: start picback serve with the secrets key file first"
            )
            raise SealError(msg)
        connection.execute(
            "INSERT INTO signing_secret (key_id, secret, sealed_with, created_at)"
            " VALUES (?, ?, ?, ?)",
            (key_id, self._sealer.seal(secret, owner=key_id, key=key), key, now),
        )

    def of(self, key_id: str, *, now: int) -> list[str]:
        """Return the secrets that sign for an API key now: the newest first.

        Raises:
            SealError: One cannot be decrypted.
        """
        return [
            self._sealer.open(secret, owner=key_id, key=key)
            for secret, key in self._database.read(
                "SELECT secret, sealed_with FROM signing_secret"
                " WHERE key_id = ? AND (expires_at IS NULL OR expires_at > ?) ORDER BY id DESC",
                (key_id, now),
            )
        ]

    def seal_all(self) -> Sealing:
        """Decrypt every secret, and encrypt all with the current key unless they are.

        For the one server of the data folder, before it works: whatever cannot be decrypted is
        told now and not at a delivery.

        Raises:
            SealError: A secret cannot be decrypted; nothing was changed.
        """
        changed = self._database.write(self._seal_all, uses_reserve=True)
        if self._sealer.current is None:
            return Sealing(changed=0, wiped=True)
        # Each time: a process that was killed here has left the log as it was.
        return Sealing(changed=changed, wiped=self._database.truncate_log())

    def _seal_all(self, connection: Connection) -> int:
        seal, key = self._sealer.seal, self._sealer.current
        rows = connection.execute(
            "SELECT id, key_id, secret, sealed_with, created_at, expires_at FROM signing_secret"
        ).fetchall()
        opened = [
            (id_, owner, self._sealer.open(secret, owner=owner, key=old), created, expires)
            for id_, owner, secret, old, created, expires in rows
        ]
        changed = len([row for row in rows if row[3] != key])
        if changed:
            _empty_without_trace(connection)
            connection.executemany(
                "INSERT INTO signing_secret"
                " (id, key_id, secret, sealed_with, created_at, expires_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (id_, owner, seal(secret, owner=owner, key=key), key, created, expires)
                    for id_, owner, secret, created, expires in opened
                ],
            )
        return changed


def _empty_without_trace(connection: Connection) -> None:
    """Make the table anew: to change or delete rows leaves older copies between the others."""
    made_by = connection.execute(
        "SELECT sql FROM sqlite_schema WHERE tbl_name = 'signing_secret' AND sql IS NOT NULL"
    ).fetchall()
    connection.execute("PRAGMA secure_delete=ON").fetchall()
    try:
        connection.execute("DROP TABLE signing_secret")
    finally:
        connection.execute("PRAGMA secure_delete=OFF").fetchall()
    for (sql,) in made_by:
        connection.execute(sql)
    # Pages that the table gave up earlier were not wiped: they leave the file.
    connection.execute("PRAGMA incremental_vacuum").fetchall()
