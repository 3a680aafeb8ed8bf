"""An httpx transport that connects to vetted addresses only and keeps one deadline per request.

httpx's own transport is not used: its pool looks at every open connection at each request, lets
one receiver's connections take another's place in a common limit, decides by itself which address
to dial and when to send a request once more, and takes twice the processor time.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import h11
import httpx

from dispatcher.connection import Connection, Origin
from dispatcher.local_resources import LocalResourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dispatcher.callback_url import Target
    from dispatcher.deadline import Deadline
    from dispatcher.dialer import Dialer
    from dispatcher.stream import DeadlineStream


class GuardedTransport(httpx.BaseTransport):
    """Sends requests and keeps connections for the next request to the same origin.

    Redirects, cookies and proxies are no business of a transport, and nothing here adds them.
    Safe to share between threads.

    Args:
        dialer: Opens connections.
        max_idle: Connections kept open while idle, over all origins; the oldest goes first.
        keep_idle: How long one is kept, in seconds.
        clock: Monotonic, in seconds; only for *keep_idle*.

    Attributes:
        requests: Requests sent so far.
        connections: Connections opened so far; the rest of the requests reused one.
    """

    def __init__(
        self,
        dialer: Dialer,
        *,
        max_idle: int,
        keep_idle: float,
        clock: Callable[[], float],
    ) -> None:
        self._dialer = dialer
        self._idle = _IdleConnections(max_idle=max_idle, keep_idle=keep_idle, clock=clock)
        self._lock = threading.Lock()
        self.requests = 0
        self.connections = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request* and return the answer, of a long body the beginning.

        A connection that was kept may have been closed by the receiver at the moment of sending.
        Then, and only if not one byte of an answer came, the same request is sent once more over
        a new connection. The receiver may so get it twice, as it may in any attempt.

        Args:
            request: With its content's length in the headers. ``extensions["target"]`` is what the
                guard has made of the URL, and alone says where it goes: two parsers that read a
                URL differently are how a guard is passed by. ``extensions["deadline"]`` is for all
                of it, to the end of the answer.

        Raises:
            ForbiddenCallbackError: As `Dialer.dial`.
            LocalResourceError: As `Dialer.dial`, also with all idle connections closed.
            h11.RemoteProtocolError: What came is not HTTP.
            OSError: No answer came, or no whole one; the subclass tells what went wrong.
        """
        target: Target = request.extensions["target"]
        deadline: Deadline = request.extensions["deadline"]
        head = h11.Request(method=request.method, target=target.target, headers=request.headers.raw)
        body = [*request.stream]  # type: ignore[misc] # it is not an asynchronous one
        connection = self._idle.take(_origin(target))
        if connection is not None:
            try:
                return self._exchange(connection, head, body, deadline)
            except (h11.RemoteProtocolError, OSError) as exc:
                if connection.received or isinstance(exc, TimeoutError):
                    raise
        return self._exchange(self._open(target, deadline), head, body, deadline)

    def close(self) -> None:
        """Close idle connections now, and the others when their answer has been read."""
        self._idle.close()

    def _open(self, target: Target, deadline: Deadline) -> Connection:
        stream = self._dial(target, deadline)
        with self._lock:
            self.connections += 1
        return Connection(_origin(target), stream)

    def _dial(self, target: Target, deadline: Deadline) -> DeadlineStream:
        while True:
            try:
                return self._dialer.dial(target.scheme, target.host, target.port, deadline)
            except LocalResourceError as lack:
                if not lack.held_by_connections or not self._idle.close_half():
                    raise

    def _exchange(
        self,
        connection: Connection,
        request: h11.Request,
        body: Sequence[bytes],
        deadline: Deadline,
    ) -> httpx.Response:
        with self._lock:
            self.requests += 1
        try:
            answer = connection.exchange(request, body, deadline)
        except BaseException:
            connection.close()
            raise
        self._idle.put(connection)
        return answer


def _origin(target: Target) -> Origin:
    return Origin(target.scheme, target.host, target.port)


class _IdleConnections:
    """Connections that wait for a next request, the one used last at the end."""

    def __init__(self, *, max_idle: int, keep_idle: float, clock: Callable[[], float]) -> None:
        self._max_idle = max_idle
        self._keep_idle = keep_idle
        self._clock = clock
        self._lock = threading.Lock()
        self._connections: list[Connection] = []

    def take(self, origin: Origin) -> Connection | None:
        """Return a connection to *origin* that the other side seems to have kept, too."""
        while (connection := self._pop(origin)) is not None:
            if connection.is_usable():
                break
            connection.close()
        return connection

    def put(self, connection: Connection) -> None:
        """Keep *connection* if it can serve another request, else close it."""
        if connection.is_done():
            connection.idle_since = self._clock()
            with self._lock:
                self._connections.append(connection)
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

    def _pop(self, origin: Origin) -> Connection | None:
        # The one used last, so that those above the need grow old and go.
        self._close_surplus()
        with self._lock:
            for index in range(len(self._connections) - 1, -1, -1):
                if self._connections[index].origin == origin:
                    return self._connections.pop(index)
        return None

    def _close_surplus(self) -> None:
        oldest_allowed = self._clock() - self._keep_idle
        surplus = []
        with self._lock:
            while self._connections and (
                len(self._connections) > self._max_idle
                or self._connections[0].idle_since <= oldest_allowed
            ):
                surplus.append(self._connections.pop(0))
        for connection in surplus:
            connection.close()
