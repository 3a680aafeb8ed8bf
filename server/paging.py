"""Pages of lists: how much fits on one, and tokens that say where the next begins.

A token is encrypted: a position counts the queries of all keys, so one that can be read would tell
one key how much the others submit.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Final, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from server.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message

MessageT = TypeVar("MessageT", bound="Message")

#: Most bytes of a page's entries, unless the first alone has more. gRPC clients accept messages of
#: 4 MiB. Source: grpc.io, GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH.
MAX_PAGE_BYTES: Final = 3_000_000
#: What an entry takes besides its own bytes: its tag and length.
_ENTRY_OVERHEAD_BYTES: Final = 6


class Paging:
    """Makes and reads page tokens. *secret* (32 bytes) outlives restarts, and so do tokens."""

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESSIV(secret)  # needs no nonce: the same position, the same token

    def token(self, position: int, *, of: str) -> str:
        """Return a token for what follows *position*, good only for the same listing *of*."""
        sealed = self._cipher.encrypt(position.to_bytes(8), [of.encode()])
        return base64.urlsafe_b64encode(sealed).decode()  # 24 bytes: no padding

    def next_token(self, position: int | None, *, of: str) -> str:
        """Return `token` for *position*; empty if there is no next page."""
        return "" if position is None else self.token(position, of=of)

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


def fill_page(entries: Iterable[tuple[int, MessageT]]) -> tuple[list[MessageT], int | None]:
    """Return as many of *entries*, pairs of position and message, as fit on one page.

    Entries are consumed one by one: what does not fit is not made, but for one.

    Returns:
        The messages, and the position of the last of them; None if all fit.
    """
    page: list[MessageT] = []
    last, size_bytes = 0, 0
    for position, message in entries:
        size_bytes += message.ByteSize() + _ENTRY_OVERHEAD_BYTES
        if page and size_bytes > MAX_PAGE_BYTES:
            return page, last
        page.append(message)
        last = position
    return page, None
