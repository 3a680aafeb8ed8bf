"""One thread that ends calls whose request does not arrive or whose response is not read."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

#: How late a timeout may be, in seconds.
_TICK_SECONDS: Final = 0.1
#: Most timeouts that expire in one tick; others follow in the next. A client that opens 1,000 silent calls
#: at once would otherwise have them all ended, and open them all again, in the same moment.
_MAX_EXPIRED_PER_TICK: Final = 50


class Timeout:
    """What happens at a time, unless it is cancelled before."""

    __slots__ = ("_on_expired",)

    def __init__(self, on_expired: Callable[[], object]) -> None:
        self._on_expired: Callable[[], object] | None = on_expired

    def cancel(self) -> None:
        """Forget what was to happen, and everything that it refers to."""
        self._on_expired = None

    @property
    def is_cancelled(self) -> bool:
        """Whether nothing will happen."""
        return self._on_expired is None

    def expire(self) -> None:
        """Do what was to happen."""
        on_expired, self._on_expired = self._on_expired, None
        if on_expired is not None:
            on_expired()


class Timer:
    """Runs callbacks that must not block, at most 500 a second. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()  # among equal times, the first comes first
        self._timeouts: list[tuple[float, int, Timeout]] = []
        self._on_tick: list[Callable[[], object]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="picback-timer", daemon=True)

    def start(self) -> None:
        """Begin to run callbacks."""
        self._thread.start()

    def stop(self) -> None:
        """Run no more callbacks."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def on_tick(self, run: Callable[[], object]) -> None:
        """Call *run* ten times a second. Before `start` only."""
        self._on_tick.append(run)

    def add(self, seconds: float, on_expired: Callable[[], object]) -> Timeout:
        """Call *on_expired* after *seconds*, unless what is returned is cancelled before."""
        timeout = Timeout(on_expired)
        entry = (time.monotonic() + seconds, next(self._numbers), timeout)
        with self._lock:
            heapq.heappush(self._timeouts, entry)
        return timeout

    def _run(self) -> None:
        while not self._stopping.wait(_TICK_SECONDS):
            for run in (*(timeout.expire for timeout in self._expired()), *self._on_tick):
                try:
                    run()
                except Exception:  # one call's timeout must not end all others'
                    logger.exception("timer.callback_failed")

    def _expired(self) -> list[Timeout]:
        """Take the timeouts whose time has come, and forget those cancelled before them."""
        now = time.monotonic()
        expired: list[Timeout] = []
        with self._lock:
            while self._timeouts and len(expired) < _MAX_EXPIRED_PER_TICK:
                at, _, timeout = self._timeouts[0]
                if not timeout.is_cancelled:
                    if at > now:
                        break
                    expired.append(timeout)
                heapq.heappop(self._timeouts)
        return expired
