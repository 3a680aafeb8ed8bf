"""API keys in memory: a call is authenticated without touching the disk.

gRPC asks interceptors on its one serving thread, so a look-up there must not wait for
anything. A thread of the key ring reads the database twice a second instead.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from storage.api_keys import digest
from storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from storage.api_keys import ApiKeys, Grant

logger = logging.getLogger(__name__)

#: How long a key that was created, rotated or revoked beside a running server may go
#: unnoticed, in seconds.
REFRESH_SECONDS: Final = 0.5
#: How often the times of last use are written down, in seconds.
_NOTE_USE_SECONDS: Final = 60.0


class Keyring:
    """Tells what a token entitles to. Safe to use from any thread.

    Args:
        api_keys: Where the keys are stored.
        clock: The time in milliseconds.
        on_revoked: Called after a token has stopped to be valid, which may be a second ago.
    """

    def __init__(
        self,
        api_keys: ApiKeys,
        *,
        clock: Callable[[], int],
        on_revoked: Callable[[], None] = lambda: None,
    ) -> None:
        self._api_keys = api_keys
        self._clock = clock
        self._on_revoked = on_revoked
        self._grants: dict[bytes, Grant] = {}
        self._valid: set[bytes] = set()
        self._used: dict[str, int] = {}
        self._noted: dict[str, int] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="picback-keyring", daemon=True)

    def start(self) -> None:
        """Read the keys, and keep reading them."""
        self.refresh()
        self._thread.start()

    def stop(self) -> None:
        """Write down the times of last use, and read no more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            self._note_use()
        except StorageError as error:  # a full disk must not keep the server from stopping
            logger.warning("keyring.use_not_noted", extra={"error": str(error)})

    def refresh(self) -> None:
        """Read the keys now."""
        self._grants = self._api_keys.grants()
        valid, before = {each for each in self._grants if self._valid_grant(each)}, self._valid
        self._valid = valid
        if before - valid:
            self._on_revoked()

    def look_up(self, token: str) -> Grant | None:
        """Return what *token* entitles to now; None for any token that is no good."""
        grant = self._valid_grant(digest(token))
        if grant is not None:
            self._used[grant.key_id] = self._clock()
        return grant

    def is_valid(self, token: str) -> bool:
        """Tell whether *token* still entitles to anything; that is no use of it."""
        return self._valid_grant(digest(token)) is not None

    def _valid_grant(self, digest_: bytes | None) -> Grant | None:
        grant = self._grants.get(digest_) if digest_ is not None else None
        if grant is None or (grant.expires_at is not None and grant.expires_at <= self._clock()):
            return None
        return grant

    def _run(self) -> None:
        waited = 0.0
        while not self._stopping.wait(REFRESH_SECONDS):
            waited += REFRESH_SECONDS
            try:
                self.refresh()
                if waited >= _NOTE_USE_SECONDS:
                    waited = 0.0
                    self._note_use()
            except StorageError as error:
                logger.warning("keyring.stale", extra={"error": str(error)})

    def _note_use(self) -> None:
        used = dict(self._used)
        news = {key: at for key, at in used.items() if self._noted.get(key) != at}
        if news:
            self._api_keys.note_use(news)
            self._noted = used
