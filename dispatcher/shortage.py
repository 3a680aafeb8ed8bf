"""How long this machine has lacked what callbacks need, and who is told."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.local_resources import LocalResourceError

logger = logging.getLogger(__name__)

#: Seconds between two log lines about one shortage, however many callbacks it holds up.
_LOG_INTERVAL: Final = 60.0
#: Shortest and longest pause of a callback that was held up, in seconds.
_PAUSE: Final = (1.0, 10.0)
#: The same where only the owner's share is used up: at random, so that the many callbacks of one
#: owner do not all return at once.
_OWNER_PAUSE: Final = (1.0, 5.0)


class Shortage:
    """Counts callbacks that a lack of our own held up. Safe to use from several threads.

    A shortage lasts from the first callback that it holds up to the next one that gets through.
    An owner that has its share already is not one: others' callbacks go on, so neither the log nor
    health shows it. *monotonic* is in seconds, *uniform* draws a number between two.
    """

    def __init__(
        self,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._monotonic = monotonic
        self._uniform = uniform
        self._lock = threading.Lock()
        self._since: float | None = None
        self._logged_at = 0.0
        self._held_up = 0

    def hold_up(self, error: LocalResourceError) -> float:
        """Note a callback that was not made; return how long it is to wait, in seconds."""
        if error.only_for_owner:
            return self._uniform(*_OWNER_PAUSE)
        with self._lock:
            now = self._monotonic()
            if self._since is None:
                self._since, self._logged_at, self._held_up = now, now - _LOG_INTERVAL, 0
            self._held_up += 1
            held_up, lasted = self._held_up, now - self._since
            is_news = now - self._logged_at >= _LOG_INTERVAL
            if is_news:
                self._logged_at = now
        if is_news:
            logger.error(
                "delivery.resources_lacking",
                extra={"lacking": error.lacking, "held_up": held_up, "seconds": round(lasted)},
            )
        shortest, longest = _PAUSE
        return min(max(lasted, shortest), longest)  # as long again as it has lasted

    def end(self) -> None:
        """Note a callback that got through."""
        since = self._since
        if since is None:  # nearly always, so without the lock
            return
        with self._lock:
            since, self._since = self._since, None
            held_up = self._held_up
        if since is None:  # another thread was faster
            return
        lasted = self._monotonic() - since
        logger.info(
            "delivery.resources_found", extra={"held_up": held_up, "seconds": round(lasted)}
        )

    def has_lasted(self, seconds: float) -> bool:
        """Return whether callbacks have been held up for *seconds* and none got through."""
        since = self._since
        return since is not None and self._monotonic() - since >= seconds
