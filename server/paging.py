"""Page tokens: where the next page begins, encrypted.

A position counts the queries of all keys, so a token that shows it would tell one key how much
the others submit.
"""

from __future__ import annotations

import base64
import binascii

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from server.errors import RequestError


class Paging:
    """Makes and reads page tokens. *secret* (32 bytes) outlives restarts, and so do tokens."""

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESSIV(secret)  # needs no nonce: the same position, the same token

    def token(self, position: int, *, of: str) -> str:
        """Return a token for what follows *position*, good only for the same listing *of*."""
        sealed = self._cipher.encrypt(position.to_bytes(8), [of.encode()])
        return base64.urlsafe_b64encode(sealed).decode()  # 24 bytes: no padding

    def position(self, token: str, *, of: str) -> int | None:
        """Return where the page begins; None for the first page.

        Raises:
            RequestError: PAGE_TOKEN_INVALID.
        """
        if not token:
            return None
        try:
            sealed = base64.b64decode(token, altchars=b"-_", validate=True)
            return int.from_bytes(self._cipher.decrypt(sealed, [of.encode()]))
        except (binascii.Error, ValueError, InvalidTag):
            message = "page_token is not one that this listing gave"
            raise RequestError("PAGE_TOKEN_INVALID", message) from None
