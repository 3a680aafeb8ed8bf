"""One thread that ends calls whose request does not arrive or whose response is not read."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

#: How late a timeout may be, in seconds.
_TICK_SECONDS: Final = 0.1
#: Most timeouts that expire in one tick; others follow in the next. A client that opens 1,000 silent
#: calls at once would otherwise have them all ended, and open them all again, in the same moment.
_MAX_EXPIRED_PER_TICK: Final = 50


class Timeout:
    """What happens at a time, unless it is cancelled before."""

    __slots__ = ("_on_expired", "_pending", "at")

    def __init__(
        self, on_expired: Callable[[], object], at: float, pending: dict[Timeout, None]
    ) -> None:
        self._on_expired = on_expired
        self._pending = pending
        self.at = at

    def cancel(self) -> None:
        """Forget what was to happen, and everything that it refers to."""
        self._pending.pop(self, None)

    def expire(self) -> None:
        """Do what was to happen."""
        self._on_expired()


class Timer:
    """Runs callbacks that must not block, at most 500 a second. Safe to use from any thread.

    Every call has a timeout, which is nearly always cancelled. So timeouts are kept by their length, in
    the order in which they expire: adding and cancelling one takes a step, and is atomic.
    """

    def __init__(self) -> None:
        self._pending: dict[float, dict[Timeout, None]] = {}
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
        """Call *on_expired* after *seconds*, unless what is returned is cancelled before.

        There should be few different values of *seconds*.
        """
        pending = self._pending.get(seconds)
        if pending is None:
            pending = self._pending.setdefault(seconds, {})
        timeout = Timeout(on_expired, time.monotonic() + seconds, pending)
        pending[timeout] = None
        return timeout

    def count(self, seconds: float) -> int:
        """Return how many timeouts of this length are neither cancelled nor expired."""
        return len(self._pending.get(seconds, ()))

    def _run(self) -> None:
        while not self._stopping.wait(_TICK_SECONDS):
            for run in (*(timeout.expire for timeout in self._expired()), *self._on_tick):
                try:
                    run()
                except Exception:  # one call's timeout must not end all others'
                    logger.exception("timer.callback_failed")

    def _expired(self) -> list[Timeout]:
        """Take the timeouts whose time has come."""
        now = time.monotonic()
        expired: list[Timeout] = []
        for pending in list(self._pending.values()):
            while len(expired) < _MAX_EXPIRED_PER_TICK:
                try:
                    timeout = next(iter(pending), None)
                except RuntimeError:  # a call began or ended between the two steps
                    continue
                if timeout is None or timeout.at > now:
                    break
                if pending.pop(timeout, False) is None:  # not cancelled in this moment
                    expired.append(timeout)
        return expired
