"""An httpx transport that connects to vetted addresses only and keeps one deadline per request.

httpcore's own pool is not used: it looks at every open connection at each request, lets one
receiver's connections take another's place in a common limit, and does not tell whether a
connection was used before, which decides whether a failed request may be sent once more.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpcore
import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dispatcher.deadline import Deadline
    from dispatcher.dialer import Dialer
    from dispatcher.stream import DeadlineStream


@dataclass(slots=True)
class _Connection:
    origin: httpcore.Origin
    stream: DeadlineStream
    http: httpcore.HTTP11Connection
    idle_since: float = 0.0


class GuardedTransport(httpx.BaseTransport):
    """Sends requests over HTTP/1.1 and keeps connections for the next request to the same origin.

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
        """Send *request* and return the answer as soon as its head is there.

        A connection that was kept may have been closed by the receiver at the moment of sending.
        Then, and only if not one byte of an answer came, the same request is sent once more over
        a new connection. The receiver may so get it twice, as it may in any attempt.

        Args:
            request: ``extensions["deadline"]`` is the `Deadline` for all of it, the answer's body
                included.

        Returns:
            An answer that must be closed. Its body is read from the network while iterated.

        Raises:
            ForbiddenCallbackError: As `Dialer.dial`.
            httpx.TransportError: The subclass tells what went wrong.
        """
        deadline: Deadline = request.extensions["deadline"]
        origin = _origin(request.url)
        connection = self._idle.take(origin)
        if connection is not None:
            connection.stream.begin(deadline)
            try:
                return self._exchange(connection, request)
            except (httpx.NetworkError, httpx.RemoteProtocolError):
                if connection.stream.received:
                    raise
        return self._exchange(self._open(origin, deadline), request)

    def close(self) -> None:
        """Close idle connections now, and the others when their answer has been read."""
        self._idle.close()

    def _open(self, origin: httpcore.Origin, deadline: Deadline) -> _Connection:
        scheme, host = origin.scheme.decode("ascii"), origin.host.decode("ascii")
        stream = self._dialer.dial(scheme, host, origin.port, deadline)
        with self._lock:
            self.connections += 1
        return _Connection(origin, stream, httpcore.HTTP11Connection(origin, stream))

    def _exchange(self, connection: _Connection, request: httpx.Request) -> httpx.Response:
        origin = connection.origin
        url = httpcore.URL(
            scheme=origin.scheme, host=origin.host, port=origin.port, target=request.url.raw_path
        )
        with self._lock:
            self.requests += 1
        try:
            answer = connection.http.handle_request(
                httpcore.Request(
                    request.method, url, headers=request.headers.raw, content=request.read()
                )
            )
        except httpcore.RemoteProtocolError as exc:
            raise _translated(exc, connection.stream) from exc
        if not connection.stream.received:  # bytes left over from the answer before
            connection.http.close()
            msg = "an answer before its request"
            raise httpx.RemoteProtocolError(msg)
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_AnswerStream(answer, connection, self._idle),
        )


class _AnswerStream(httpx.SyncByteStream):
    """The body of an answer, as it comes in; closing it frees the connection."""

    def __init__(
        self, answer: httpcore.Response, connection: _Connection, idle: _IdleConnections
    ) -> None:
        self._answer = answer
        self._connection = connection
        self._idle = idle

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._answer.iter_stream()
        except httpcore.RemoteProtocolError as exc:
            raise _translated(exc, self._connection.stream) from exc

    def close(self) -> None:
        self._answer.close()
        self._idle.put(self._connection)


class _IdleConnections:
    """Connections that wait for a next request, the one used last at the end."""

    def __init__(self, *, max_idle: int, keep_idle: float, clock: Callable[[], float]) -> None:
        self._max_idle = max_idle
        self._keep_idle = keep_idle
        self._clock = clock
        self._lock = threading.Lock()
        self._connections: list[_Connection] = []

    def take(self, origin: httpcore.Origin) -> _Connection | None:
        """Return a connection to *origin* that the other side seems to have kept, too."""
        while (connection := self._pop(origin)) is not None:
            # Before a request nothing can come in but the end, or bytes that nobody asked for.
            if not connection.stream.is_readable():
                break
            connection.http.close()
        return connection

    def put(self, connection: _Connection) -> None:
        """Keep *connection* if it can serve another request."""
        if connection.http.is_idle():
            connection.idle_since = self._clock()
            with self._lock:
                self._connections.append(connection)
        self._close_surplus()

    def close(self) -> None:
        """Keep none any more."""
        self._max_idle = 0
        self._close_surplus()

    def _pop(self, origin: httpcore.Origin) -> _Connection | None:
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
            connection.http.close()


def _origin(url: httpx.URL) -> httpcore.Origin:
    # httpx leaves the port out where it is the scheme's own.
    port = url.port or {"http": 80, "https": 443}[url.scheme]
    return httpcore.Origin(url.raw_scheme, url.raw_host, port)


def _translated(exc: httpcore.RemoteProtocolError, stream: DeadlineStream) -> httpx.TransportError:
    """Return httpx's word for *exc*: an answer that breaks off is no breach of the protocol."""
    return (httpx.ReadError if stream.ended else httpx.RemoteProtocolError)(str(exc))
