"""Connections that wait for a next request to the same origin."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatcher.connection import Connection, Origin

#: Seconds between two looks for connections that the other side has closed, while there are any.
_LOOK_SECONDS: Final = 1.0


class IdleConnections:
    """Keeps connections, the one used last at the end. Safe to share between threads.

    Those that the other side closed, or that are idle for too long, are closed within a second,
    by a thread that sleeps while there are none.

    Args:
        max_idle: Most connections; the oldest goes first.
        keep_idle: How long one is kept without use, in seconds.
        max_age: How long one is kept since it was opened, in seconds: it follows no change of DNS.
        clock: Monotonic, in seconds.
    """

    def __init__(
        self, *, max_idle: int, keep_idle: float, max_age: float, clock: Callable[[], float]
    ) -> None:
        self._max_idle = max_idle
        self._keep_idle = keep_idle
        self._max_age = max_age
        self._clock = clock
        self._lock = threading.Lock()
        self._connections: list[Connection] = []
        self._any = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="picback-idle", daemon=True)
        self._thread.start()

    def take(self, origin: Origin) -> Connection | None:
        """Return a connection to *origin* that the other side seems to have kept, too."""
        while (connection := self._pop(origin)) is not None:
            if self._clock() - connection.opened_at < self._max_age and connection.is_usable():
                break
            connection.close()
        return connection

    def put(self, connection: Connection) -> None:
        """Keep *connection* if it can serve another request, else close it."""
        now = self._clock()
        if connection.is_done() and now - connection.opened_at < self._max_age:
            connection.idle_since = now
            with self._lock:
                self._connections.append(connection)
            self._any.set()
        else:
            connection.close()
        self._close_surplus()

    def close_half(self) -> bool:
        """Close the half that was used longest ago; return whether there was any."""
        with self._lock:
            count = (len(self._connections) + 1) // 2
            surplus, self._connections = self._connections[:count], self._connections[count:]
        for connection in surplus:
            connection.close()
        return bool(surplus)

    def close(self) -> None:
        """Keep none any more."""
        self._max_idle = 0
        self._close_surplus()
        self._closing.set()
        self._any.set()

    def close_unusable(self) -> None:
        """Close those that the other side closed, and those that were kept for too long."""
        with self._lock:
            looked_at = list(self._connections)
        # Not while the lock is held. One that is taken meanwhile is not ours to close.
        ended = {id(each) for each in looked_at if not each.is_usable()}
        now = self._clock()
        with self._lock:
            unusable = [
                each
                for each in self._connections
                if id(each) in ended or now - each.opened_at >= self._max_age
            ]
            for each in unusable:
                self._connections.remove(each)
        for each in unusable:
            each.close()
        self._close_surplus()

    def _run(self) -> None:
        while True:
            self._any.wait()
            if self._closing.wait(_LOOK_SECONDS):
                return
            self.close_unusable()
            with self._lock:
                if not self._connections and not self._closing.is_set():
                    self._any.clear()

    def _pop(self, origin: Origin) -> Connection | None:
        # The one used last, so that those above the need grow old and go.
        self._close_surplus()
        with self._lock:
            for index in range(len(self._connections) - 1, -1, -1):
                if self._connections[index].origin == origin:
                    return self._connections.pop(index)
        return None

    def _close_surplus(self) -> None:
        now = self._clock()
        surplus = []
        with self._lock:
            while self._connections and (
                len(self._connections) > self._max_idle
                or self._connections[0].idle_since <= now - self._keep_idle
            ):
                surplus.append(self._connections.pop(0))
        for connection in surplus:
            connection.close()
