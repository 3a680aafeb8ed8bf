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


def claim(connection: Connection, request: Request | None, resource_id: str) -> str | None:
    """Record that *request* stores *resource_id*, unless it has stored something before.

    Returns:
        The id of what it stored before; None if it is new, or the caller named no request.

    Raises:
        RequestIdReusedError: Its request_id stored something for a different request.
    """
    if request is None:
        return None
    is_new = connection.execute(
        "INSERT INTO request (key_id, request_id, fingerprint, resource_id) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        (request.key_id, request.request_id, request.fingerprint, resource_id),
    ).rowcount
    if is_new:
        return None
    fingerprint, known = connection.execute(
        "SELECT fingerprint, resource_id FROM request WHERE key_id = ? AND request_id = ?",
        (request.key_id, request.request_id),
    ).fetchall()[0]
    if fingerprint != request.fingerprint:
        msg = f"request_id {request.request_id!r} was used before, for another request"
        raise RequestIdReusedError(msg)
    return str(known)


def forget(connection: Connection, resource_id: str) -> None:
    """Let go of every request that stored *resource_id*, which is being deleted."""
    connection.execute("DELETE FROM request WHERE resource_id = ?", (resource_id,))
