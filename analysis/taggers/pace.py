"""A limit on calls per second that callers wait for, instead of running into one elsewhere."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Pace:
    """Lets calls begin at a rate, a few at once after a pause. Safe to share between threads.

    In any second at most *rate* + *burst* calls begin.

    Args:
        rate: Calls per second, above 0.
        burst: Calls that may begin at once after a pause, at least 1.
        clock: Seconds, monotonic.
        wait: Waits for so many seconds, by default no longer than until `close`.
    """

    def __init__(
        self,
        rate: float,
        *,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._interval = 1 / rate
        self._tolerance = (burst - 1) / rate
        self._clock = clock
        self._closed = threading.Event()
        self._wait = wait or self._closed.wait
        self._lock = threading.Lock()
        #: When the next call would begin if none came early.
        self._next_at = clock()

    def take(self, *, timeout: float) -> float | None:
        """Wait for a call's turn; return how many seconds that took.

        Args:
            timeout: Seconds. A call whose turn comes later is refused at once, and takes none.

        Returns:
            None if the call must not begin: its turn comes too late, or `close` was called, which
            ends the wait.
        """
        with self._lock:
            now = self._clock()
            turn = max(now, self._next_at - self._tolerance)
            if turn - now > timeout:
                return None
            self._next_at = max(turn, self._next_at) + self._interval
        if turn > now:
            self._wait(turn - now)
        return None if self._closed.is_set() else turn - now

    def close(self) -> None:
        """End all waits, and begin no call."""
        self._closed.set()
