"""Who makes a call: set by the interceptor, known to the handler and to what runs before it."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from server.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes the call that this thread answers; key_id is empty for a stranger."""

    key_id: str
    request_id: str
    #: What the key may do.
    scopes: frozenset[str] = frozenset()
    #: Whether the key is still good; a stream may outlive it.
    has_valid_key: Callable[[], bool] = field(default=lambda: True, repr=False, compare=False)

    def check_key(self) -> None:
        """Let a call with a valid key go on.

        Raises:
            RequestError: API_KEY_INVALID; it was revoked, or has expired.
        """
        if not self.has_valid_key():
            raise RequestError("API_KEY_INVALID", "the API key is not valid any more")


#: Set while a handler runs; how a handler knows its caller.
CALLER: Final[contextvars.ContextVar[Caller]] = contextvars.ContextVar("picback_caller")
