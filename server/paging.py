"""Page tokens: where the next page begins, sealed so that nobody builds on what is inside."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final

from server.errors import RequestError

_SEAL_BYTES: Final = 12


class Paging:
    """Makes and reads page tokens. *secret* outlives restarts, and so do tokens."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def token(self, position: int, *, of: str) -> str:
        """Return a token for what follows *position*, good only for the same listing *of*."""
        place = position.to_bytes(8)
        return base64.urlsafe_b64encode(place + self._seal(place, of)).decode().rstrip("=")

    def position(self, token: str, *, of: str) -> int | None:
        """Return where the page begins; None for the first page.

        Raises:
            RequestError: PAGE_TOKEN_INVALID.
        """
        if not token:
            return None
        try:
            data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            data = b""
        place, seal = data[:8], data[8:]
        if not hmac.compare_digest(seal, self._seal(place, of)):
            raise RequestError("PAGE_TOKEN_INVALID", "page_token is not one that this listing gave")
        return int.from_bytes(place)

    def _seal(self, place: bytes, of: str) -> bytes:
        return hmac.digest(self._secret, place + of.encode(), hashlib.sha256)[:_SEAL_BYTES]
