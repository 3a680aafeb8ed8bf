"""Whose turn it is: a bounded number at once, and callers that wait take turns."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from analysis.images import ProcessUnavailableError, WorkCancelledError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Cancellation:
    """Reports to work that no caller waits for it any more. Thread safe; stays cancelled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._hook: Callable[[], None] | None = None

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._is_cancelled

    def cancel(self) -> None:
        """End the waiting or the work, whichever is going on."""
        with self._lock:
            self._is_cancelled = True
            if self._hook is not None:
                self._hook()

    @contextmanager
    def calling(self, hook: Callable[[], None]) -> Iterator[None]:
        """Let `cancel` call *hook*, which must not block, while the block runs.

        Raises:
            WorkCancelledError: It was cancelled before.
        """
        with self._lock:
            if self._is_cancelled:
                msg = "the call was cancelled"
                raise WorkCancelledError(msg)
            self._hook = hook
        try:
            yield
        finally:
            with self._lock:
                self._hook = None


class Turns:
    """A semaphore that is fair between callers, however many threads each of them has.

    Args:
        permits: How many may hold a turn at once.
    """

    def __init__(self, permits: int) -> None:
        self._permits = permits
        self._lock = threading.Lock()
        self._is_closed = False
        #: Caller -> its waiting threads, first come first; the callers in the order of their turns.
        self._waiting: OrderedDict[str, deque[threading.Event]] = OrderedDict()

    @contextmanager
    def turn(self, caller: str, *, cancellation: Cancellation, timeout: float) -> Iterator[None]:
        """Hold a turn while the block runs; wait for it at most *timeout* seconds.

        Raises:
            WorkCancelledError: It was cancelled, or all was closed.
            ProcessUnavailableError: It took longer.
        """
        event = threading.Event()
        with cancellation.calling(event.set):
            self._enqueue(caller, event)
            came = event.wait(timeout)
        if self._withdraw(caller, event):
            if came:
                msg = "the call was cancelled"
                raise WorkCancelledError(msg)
            msg = "too many images wait to be decoded"
            raise ProcessUnavailableError(msg)
        try:
            if cancellation.is_cancelled or self._is_closed:
                msg = "the call was cancelled"
                raise WorkCancelledError(msg)
            yield
        finally:
            self._pass_on()

    def close(self) -> None:
        """Let everyone who waits go, without a turn."""
        with self._lock:
            self._is_closed = True
            waiting = [event for events in self._waiting.values() for event in events]
        for event in waiting:
            event.set()

    def _enqueue(self, caller: str, event: threading.Event) -> None:
        with self._lock:
            if self._permits > 0:
                self._permits -= 1
                event.set()
            else:
                self._waiting.setdefault(caller, deque()).append(event)
                if self._is_closed:
                    event.set()

    def _withdraw(self, caller: str, event: threading.Event) -> bool:
        """Stop waiting; return whether the turn had not come."""
        with self._lock:
            events = self._waiting.get(caller)
            if events is None or event not in events:
                return False
            events.remove(event)
            if not events:
                del self._waiting[caller]
            return True

    def _pass_on(self) -> None:
        with self._lock:
            if not self._waiting:
                self._permits += 1
                return
            caller, events = next(iter(self._waiting.items()))
            event = events.popleft()
            if events:
                self._waiting.move_to_end(caller)
            else:
                del self._waiting[caller]
            event.set()


def seconds_until(deadline: float) -> float:
    """Return how long it is until *deadline* on the monotonic clock, at least 0."""
    return max(0.0, deadline - time.monotonic())
