"""Opening a connection to a vetted address of a host, and to nothing else.

The rule a newcomer would break: a host is looked up once, all answers are vetted, only exactly
these are dialled, and the peer is vetted again (behind a proxy, which is asked for these addresses
only, there is no peer to see). Look-up and connecting must not be left to anyone
who would look up a second time (DNS rebinding).
"""

from __future__ import annotations

import socket
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from dispatcher.happy_eyeballs import Race, begin_tcp, interleaved, wait_for_any
from dispatcher.local_resources import local_resources
from dispatcher.resolver import is_ip_literal
from dispatcher.stream import DeadlineStream

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from dispatcher.deadline import Deadline
    from dispatcher.happy_eyeballs import Begin, Wait
    from dispatcher.proxy_tunnel import ProxyTunnel
    from dispatcher.resolver import BoundedResolver
    from dispatcher.url_guard import UrlGuard

#: Hosts of which it is remembered which of their addresses worked.
_MAX_REMEMBERED: Final = 4096


class NameLookupError(OSError):
    """The host has no address, or nobody could say."""


class Dialer:
    """Opens connections. Safe to share between threads.

    It remembers which of a host's addresses worked, and tries that one first while DNS has it.

    Args:
        guard: Vets addresses.
        resolver: Looks names up.
        ssl_context: Verifies receivers; must check host names.
        begin: As `begin_tcp`.
        wait: As `wait_for_any`.
        tunnel: Connects through a proxy; None: directly.
    """

    def __init__(
        self,
        guard: UrlGuard,
        *,
        resolver: BoundedResolver,
        ssl_context: ssl.SSLContext,
        begin: Begin = begin_tcp,
        wait: Wait = wait_for_any,
        tunnel: ProxyTunnel | None = None,
    ) -> None:
        self._guard = guard
        self._resolver = resolver
        self._ssl_context = ssl_context
        self._begin = begin
        self._wait = wait
        self._tunnel = tunnel
        self._worked = _Remembered()

    def dial(self, scheme: str, host: str, port: int, deadline: Deadline) -> DeadlineStream:
        """Return a stream to *host*, over TLS if *scheme* is ``https``.

        Raises:
            ForbiddenCallbackError: The host, one of its addresses, or the peer, is forbidden.
            LocalResourceError: This machine lacks what a connection needs, there is no place for a
                look-up, or the proxy fails.
            OSError: There is no connection; may pass. The subclass tells why: `NameLookupError`,
                `TimeoutError`, `ConnectionRefusedError` or `ssl.SSLError`.
        """
        addresses = self._guard.vet(host, port, self._look_up(host, port, deadline))
        sock = self._connect_to_any(host, port, addresses, deadline)
        try:
            if self._tunnel is None:
                self._guard.vet(host, port, [sock.getpeername()[0]])
            with local_resources():
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if scheme == "https":
                    sock.settimeout(deadline.left())  # for the handshake as a whole
                    sock = self._ssl_context.wrap_socket(sock, server_hostname=host)
        except BaseException:
            sock.close()
            raise
        return DeadlineStream(sock, deadline)

    def _look_up(self, host: str, port: int, deadline: Deadline) -> list[str]:
        if is_ip_literal(host):
            return [host]
        # The final dot keeps search domains and the hosts file from having a say, unless the
        # operator allowed this very name, which then means what it means on this machine.
        name = host if self._guard.allows_exactly(host, port) else f"{host}."
        try:
            with local_resources():
                return self._resolver.resolve(
                    name, port, timeout=deadline.left(), owner=deadline.owner
                )
        except TimeoutError:
            raise
        except OSError as exc:
            raise NameLookupError(str(exc)) from exc

    def _connect_to_any(
        self, host: str, port: int, addresses: Sequence[str], deadline: Deadline
    ) -> socket.socket:
        if not addresses:
            msg = "no address"
            raise NameLookupError(msg)
        if len(addresses) == 1:
            return self._connect(addresses, port, deadline)[1]
        worked = self._worked.get((host, port))
        ordered = sorted(interleaved(addresses), key=lambda each: each != worked)
        address, sock = self._connect(ordered, port, deadline)
        self._worked.put((host, port), address)
        return sock

    def _connect(
        self, addresses: Sequence[str], port: int, deadline: Deadline
    ) -> tuple[str, socket.socket]:
        if self._tunnel is not None:
            return self._tunnel.connect(addresses, port, deadline)
        return Race(port, deadline, begin=self._begin, wait=self._wait).run(addresses)


class _Remembered:
    """Which address of a host worked last, for the hosts that were asked for last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._addresses: OrderedDict[tuple[str, int], str] = OrderedDict()

    def get(self, place: tuple[str, int]) -> str | None:
        with self._lock:
            return self._addresses.get(place)

    def put(self, place: tuple[str, int], address: str) -> None:
        with self._lock:
            self._addresses[place] = address
            self._addresses.move_to_end(place)
            if len(self._addresses) > _MAX_REMEMBERED:
                self._addresses.popitem(last=False)
