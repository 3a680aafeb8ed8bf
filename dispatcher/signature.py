"""Standard Webhooks 1.0.0 signatures, scheme ``v1``: HMAC-SHA256 over id, timestamp and body.

The rule a newcomer would break: what is signed is the very bytes that are sent, at the time they
are sent. A signature is made for each attempt and never stored.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets as chance
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: How a secret looks to people: this, then base64. Source: Standard Webhooks.
SECRET_PREFIX = "whsec_"  # noqa: S105 - a prefix, not a secret

#: Bytes of a new secret: the block that SHA-256 puts out, in the middle of what is allowed.
SECRET_BYTES = 32

#: Seconds by which a timestamp may differ from the clock; as the public libraries.
TOLERANCE = 300.0

# Source: Standard Webhooks, "Symmetric".
_MIN_SECRET_BYTES = 24
_MAX_SECRET_BYTES = 64


class SignatureError(Exception):
    """The request does not come from the holder of the secret, or not now."""


def new_secret(rng: Callable[[int], bytes] = chance.token_bytes) -> str:
    """Return a new secret as people see it. *rng* returns so many random bytes."""
    return SECRET_PREFIX + base64.b64encode(rng(SECRET_BYTES)).decode("ascii")


def decode_secret(secret: str) -> bytes:
    """Return the key inside a ``whsec_`` secret; base64 may lack its padding.

    Raises:
        ValueError: It is not one. The message does not tell the secret.
    """
    encoded = secret.removeprefix(SECRET_PREFIX).rstrip("=")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError as exc:  # binascii.Error, or not ASCII
        msg = "a signing secret is whsec_ and base64"
        raise ValueError(msg) from exc
    if not secret.startswith(SECRET_PREFIX) or not (
        _MIN_SECRET_BYTES <= len(key) <= _MAX_SECRET_BYTES
    ):
        msg = f"a signing secret is whsec_ and {_MIN_SECRET_BYTES} to {_MAX_SECRET_BYTES} bytes"
        raise ValueError(msg)
    return key


def sign(
    secrets: Sequence[bytes], *, webhook_id: str, timestamp: int, body: Sequence[bytes]
) -> str:
    """Return the ``webhook-signature`` header: one token for each secret, in their order.

    Args:
        secrets: Decoded keys, the current one first, then those that are being phased out.
        webhook_id: The ``webhook-id`` header.
        timestamp: The ``webhook-timestamp`` header: seconds since the epoch, of this attempt.
        body: Exactly what is sent, in pieces. Not copied.

    Raises:
        ValueError: No secret, or an id that would move the boundary of what is signed.
    """
    if not secrets:
        msg = "signing needs at least one secret"
        raise ValueError(msg)
    if not webhook_id or "." in webhook_id:
        msg = f"a webhook id must not be empty or contain a dot: {webhook_id!r}"
        raise ValueError(msg)
    return " ".join(
        "v1," + base64.b64encode(_mac(key, webhook_id, str(timestamp), body)).decode("ascii")
        for key in secrets
    )


def verify(
    secrets: Sequence[bytes],
    *,
    headers: Mapping[str, str],
    body: bytes,
    now: float,
    tolerance: float = TOLERANCE,
) -> str:
    """Return the id of a request that one of *secrets* signed; for receivers.

    Args:
        secrets: Decoded keys that are accepted.
        headers: Of the request, their names in any case.
        body: Exactly what was received.
        now: Seconds since the epoch.
        tolerance: Seconds by which the timestamp may differ from *now*.

    Raises:
        SignatureError: A header is missing or malformed, the timestamp is too far from *now*, or
            no signature fits.
    """
    found = {name.lower(): value for name, value in headers.items()}
    try:
        webhook_id = found["webhook-id"]
        timestamp = found["webhook-timestamp"]
        tokens = found["webhook-signature"].split(" ")
    except KeyError as exc:
        msg = f"the header {exc} is missing"
        raise SignatureError(msg) from exc
    if not _TIMESTAMP.fullmatch(timestamp):
        msg = "the header 'webhook-timestamp' is not a number of seconds"
        raise SignatureError(msg)
    if abs(int(timestamp) - now) > tolerance:
        msg = f"the timestamp differs from the clock by more than {tolerance:g} s"
        raise SignatureError(msg)
    given = [mac for token in tokens if (mac := _decode_token(token)) is not None]
    expected = [_mac(key, webhook_id, timestamp, [body]) for key in secrets]
    # All pairs, so that time tells nothing.
    fits = [hmac.compare_digest(mac, other) for mac in expected for other in given]
    if not any(fits):
        msg = "no signature fits"
        raise SignatureError(msg)
    return webhook_id


_TIMESTAMP = re.compile(r"[0-9]{1,12}")


def _mac(key: bytes, webhook_id: str, timestamp: str, body: Sequence[bytes]) -> bytes:
    mac = hmac.new(key, f"{webhook_id}.{timestamp}.".encode(), "sha256")
    for piece in body:
        mac.update(piece)
    return mac.digest()


def _decode_token(token: str) -> bytes | None:
    """Return the signature in a ``v1`` token; None for other versions and for garbage."""
    version, _, encoded = token.partition(",")
    if version != "v1":
        return None
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
