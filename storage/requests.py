"""Idempotency: which request_id of which key stored what. Used inside others' transactions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage.errors import RequestIdReusedError

if TYPE_CHECKING:
    from storage.database import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A caller's own name for one request, and what was in it."""

    key_id: str
    request_id: str
    #: A digest of everything that makes the request what it is.
    fingerprint: bytes


def find(connection: Connection, request: Request | None) -> str | None:
    """Return the id of what *request* stored before, if it did.

    Raises:
        RequestIdReusedError: Its request_id stored something for a different request.
    """
    if request is None:
        return None
    rows = connection.execute(
        "SELECT fingerprint, resource_id FROM request WHERE key_id = ? AND request_id = ?",
        (request.key_id, request.request_id),
    ).fetchall()
    if not rows:
        return None
    fingerprint, resource_id = rows[0]
    if fingerprint != request.fingerprint:
        msg = f"request_id {request.request_id!r} was used before, for another request"
        raise RequestIdReusedError(msg)
    return str(resource_id)


def remember(connection: Connection, request: Request | None, resource_id: str) -> None:
    """Record that *request* stored *resource_id*."""
    if request is not None:
        connection.execute(
            "INSERT INTO request (key_id, request_id, fingerprint, resource_id) VALUES (?, ?, ?, ?)",
            (request.key_id, request.request_id, request.fingerprint, resource_id),
        )


def forget(connection: Connection, resource_id: str) -> None:
    """Let go of every request that stored *resource_id*, which is being deleted."""
    connection.execute("DELETE FROM request WHERE resource_id = ?", (resource_id,))
