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
from dispatcher.idle_connections import IdleConnections
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
        max_age: How long one is kept since it was opened, in seconds.
        clock: Monotonic, in seconds; only for *keep_idle* and *max_age*.

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
        max_age: float,
        clock: Callable[[], float],
    ) -> None:
        self._dialer = dialer
        self._clock = clock
        self._idle = IdleConnections(
            max_idle=max_idle, keep_idle=keep_idle, max_age=max_age, clock=clock
        )
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
        return Connection(_origin(target), stream, opened_at=self._clock())

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
