"""Opening a connection to a vetted address of a host, and to nothing else.

The rule a newcomer would break: a host is looked up once, all answers are vetted, one of exactly
these is dialled, and the peer is vetted again. Look-up and connecting must not be left to anyone
who would look up a second time (DNS rebinding).
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

from dispatcher.stream import DeadlineStream

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from dispatcher.deadline import Deadline
    from dispatcher.resolver import BoundedResolver
    from dispatcher.url_guard import UrlGuard

#: Addresses of one host that are tried in turn. All answers are vetted, however many.
MAX_DIALLED = 4


class NameLookupError(OSError):
    """The host has no address, or nobody could say."""


def connect_tcp(address: str, port: int, timeout: float) -> socket.socket:
    """Return a socket that is connected to the IP literal *address*.

    Raises:
        OSError: There is none within *timeout* seconds.
    """
    return socket.create_connection((address, port), timeout)


class Dialer:
    """Opens connections. Immutable, safe to share between threads.

    Args:
        guard: Vets addresses.
        resolver: Looks names up.
        ssl_context: Verifies receivers; must check host names.
        connect: As `connect_tcp`.
    """

    def __init__(
        self,
        guard: UrlGuard,
        *,
        resolver: BoundedResolver,
        ssl_context: ssl.SSLContext,
        connect: Callable[[str, int, float], socket.socket] = connect_tcp,
    ) -> None:
        self._guard = guard
        self._resolver = resolver
        self._ssl_context = ssl_context
        self._connect = connect

    def dial(self, scheme: str, host: str, port: int, deadline: Deadline) -> DeadlineStream:
        """Return a stream to *host*, over TLS if *scheme* is ``https``.

        Raises:
            ForbiddenCallbackError: The host, one of its addresses, or the peer, is forbidden.
            OSError: There is no connection; may pass. The subclass tells why: `NameLookupError`,
                `TimeoutError`, `ConnectionRefusedError` or `ssl.SSLError`.
            LocalResourceError: There is no place for a look-up.
        """
        addresses = self._guard.vet(host, port, self._look_up(host, port, deadline))
        sock = self._connect_to_one(addresses[:MAX_DIALLED], port, deadline)
        try:
            self._guard.vet(host, port, [sock.getpeername()[0]])
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if scheme == "https":
                sock.settimeout(deadline.left())  # for the handshake as a whole
                sock = self._ssl_context.wrap_socket(sock, server_hostname=host)
        except BaseException:
            sock.close()
            raise
        return DeadlineStream(sock, deadline)

    def _look_up(self, host: str, port: int, deadline: Deadline) -> list[str]:
        if _is_ip_literal(host):
            return [host]
        # The final dot keeps search domains and the hosts file from having a say, unless the
        # operator allowed this very name, which then means what it means on this machine.
        name = host if self._guard.allows_exactly(host, port) else f"{host}."
        try:
            return self._resolver.resolve(name, port, timeout=deadline.left(), owner=deadline.owner)
        except TimeoutError:
            raise
        except OSError as exc:
            raise NameLookupError(str(exc)) from exc

    def _connect_to_one(self, addresses: list[str], port: int, deadline: Deadline) -> socket.socket:
        """Try each of *addresses*, giving each a fair share of the time that is left."""
        failure: OSError | None = None
        for untried, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                return self._connect(address, port, deadline.left() / untried)
            except OSError as exc:
                failure = exc
        raise failure or NameLookupError("no address")


def _is_ip_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
