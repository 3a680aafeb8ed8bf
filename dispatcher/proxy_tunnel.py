"""Connections to receivers through the operator's egress proxy, by HTTP CONNECT.

Invariant: the proxy is asked for an IP literal that the guard has vetted, never for a name, which
the proxy would look up itself.

What the proxy does wrong is the operator's to correct: it is a `ProxyError`, no outcome of an
attempt. What it says of the receiver is one: see `_ABOUT_THE_RECEIVER`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h11

from dispatcher.callback_url import CallbackUrlError, parse_url
from dispatcher.deadline import Deadline
from dispatcher.happy_eyeballs import Race, begin_tcp, interleaved, wait_for_any
from dispatcher.local_resources import LocalResourceError, local_resources
from dispatcher.resolver import is_ip_literal
from dispatcher.stream import DeadlineStream

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from dispatcher.happy_eyeballs import Begin, Wait
    from dispatcher.resolver import BoundedResolver

#: Statuses with which common proxies say that they did not reach the address, or do not allow it.
_ABOUT_THE_RECEIVER: Final = frozenset({403, 502, 503, 504})
#: Bytes of the head of the proxy's response.
_MAX_HEAD_BYTES: Final = 64 * 1024


class ProxyError(LocalResourceError):
    """The egress proxy does not do its part; trying again helps once it does."""

    def __init__(self, problem: str) -> None:
        super().__init__("egress proxy")
        self.args = (f"the egress proxy fails: {problem}",)
        self.lacking = f"egress proxy: {problem}"


class ReceiverUnreachableError(OSError):
    """The egress proxy did not connect to the receiver."""


def parse_proxy(url: str) -> tuple[str, int]:
    """Return host and port of a proxy.

    Raises:
        ValueError: *url* is not plainly ``http://HOST:PORT``.
    """
    try:
        target = parse_url(url)
    except CallbackUrlError:
        target = None
    if target is None or target.scheme != "http" or target.target != "/":
        msg = f"must be http://HOST:PORT, not {url!r}"
        raise ValueError(msg)
    return target.host, target.port


class ProxyTunnel:
    """Connects to receivers through one proxy. Safe to share between threads.

    Args:
        host: The proxy's, a name or an IP literal. No guard vets it: the operator named it.
        port: The proxy's.
        resolver: Looks the name up.
        begin: As `begin_tcp`.
        wait: As `wait_for_any`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        resolver: BoundedResolver,
        begin: Begin = begin_tcp,
        wait: Wait = wait_for_any,
    ) -> None:
        self._host = host
        self._port = port
        self._resolver = resolver
        self._begin = begin
        self._wait = wait

    def connect(
        self, addresses: Sequence[str], port: int, deadline: Deadline
    ) -> tuple[str, socket.socket]:
        """Return the first of *addresses* that the proxy connects to, and the socket.

        Args:
            addresses: Vetted IP literals, at least one, in the order to try them. Each has an
                equal share of the time that is left.
            port: The receiver's.
            deadline: For all of it.

        Raises:
            ProxyError: The proxy cannot be reached, or breaks the protocol, or rejects picback.
            LocalResourceError: This machine lacks what a connection needs.
            TimeoutError: The proxy took the request and did not respond in time: it waits for the
                receiver.
            ReceiverUnreachableError: The proxy says that it did not connect.
        """
        failure: OSError | None = None
        for index, address in enumerate(addresses):
            share = deadline.left() / (len(addresses) - index)
            until = Deadline(deadline.clock() + share, deadline.clock)
            sock = self._reach(until)
            try:
                self._ask(sock, address, port, until)
            except (TimeoutError, ReceiverUnreachableError) as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
            else:
                return address, sock
        assert failure is not None  # noqa: S101 - there was an address, and it did not connect
        raise failure

    def _reach(self, deadline: Deadline) -> socket.socket:
        """Return a connection to the proxy."""
        try:
            with local_resources():
                race = Race(self._port, deadline, begin=self._begin, wait=self._wait)
                return race.run(interleaved(self._look_up(deadline)))[1]
        except OSError as error:
            problem = f"it cannot be reached ({type(error).__name__})"
            raise ProxyError(problem) from error

    def _look_up(self, deadline: Deadline) -> Sequence[str]:
        if is_ip_literal(self._host):
            return [self._host]
        return self._resolver.resolve(self._host, self._port, timeout=deadline.left())

    def _ask(self, sock: socket.socket, address: str, port: int, deadline: Deadline) -> None:
        """Let the proxy connect *sock* to the receiver."""
        authority = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
        request = h11.Request(method="CONNECT", target=authority, headers=[("host", authority)])
        head = (http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b"")
        stream = DeadlineStream(sock, deadline)
        try:
            with local_resources():
                stream.write([head])
                response = _response(http, stream)
        except TimeoutError:
            raise
        except (OSError, h11.RemoteProtocolError) as error:
            problem = f"its connection or its response breaks off ({type(error).__name__})"
            raise ProxyError(problem) from error
        status = response.status_code
        if status in _ABOUT_THE_RECEIVER:
            msg = f"the egress proxy responded {status}"
            raise ReceiverUnreachableError(msg)
        if not 200 <= status < 300:
            problem = f"it responded {status}"
            raise ProxyError(problem)
        if http.trailing_data[0]:
            problem = "it sent bytes of its own into the tunnel"
            raise ProxyError(problem)


def _response(http: h11.Connection, stream: DeadlineStream) -> h11.Response:
    received = 0
    while not isinstance(event := http.next_event(), h11.Response):
        if event is h11.NEED_DATA:
            data = stream.read()
            received += len(data)
            if not data or received > _MAX_HEAD_BYTES:
                msg = "no response"
                raise ConnectionResetError(msg)
            http.receive_data(data)
        elif not isinstance(event, h11.InformationalResponse):
            msg = "no response"
            raise ConnectionResetError(msg)
    return event
