"""Looking host names up, with the time limit that ``getaddrinfo`` lacks.

The C library's look-up cannot be interrupted: with name servers that do not answer it takes
half a minute, with a broken one for ever. So each runs on a thread that the asker can abandon.
"""

from __future__ import annotations

import socket
import threading
from concurrent.futures import Future
from ipaddress import ip_address
from typing import TYPE_CHECKING

from dispatcher.local_resources import LocalResourceError, local_resources
from dispatcher.shares import Shares

if TYPE_CHECKING:
    from dispatcher.url_guard import Resolver

#: Look-ups in flight at most, each of a different name. A name whose servers hang costs one of
#: them however many callbacks wait for it; glibc gives up after 30 s (resolv.conf(5): 5 s, 2
#: attempts, 3 servers). If all are taken, look-ups wait; what needs none goes on.
MAX_LOOKUPS = 64
#: One owner may take as many as are left free: half of all, and another one still finds some.
_OWNER_RATIO = 1.0


def system_resolver(host: str, port: int) -> list[str]:
    """Return all addresses of *host*, in the order that the system prefers (RFC 6724).

    Raises:
        OSError: As `url_guard.Resolver`.
    """
    # Bytes, because for text Python would first apply its own, older IDNA.
    answers = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in answers))


def is_ip_literal(host: str) -> bool:
    """Return whether *host* is an IP address, so that there is nothing to look up."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class BoundedResolver:
    """Asks a resolver on other threads, and waits no longer than it is told.

    Askers for the same name at the same time share one look-up. Safe to share between threads.
    """

    def __init__(
        self, resolver: Resolver = system_resolver, *, max_lookups: int = MAX_LOOKUPS
    ) -> None:
        self._resolver = resolver
        self._places = Shares(max_lookups, ratio=_OWNER_RATIO)
        self._lock = threading.Lock()
        self._lookups: dict[tuple[str, int], Future[list[str]]] = {}

    def resolve(self, host: str, port: int, *, timeout: float, owner: str = "") -> list[str]:
        """Return all addresses of *host*, at least one.

        A look-up that outlives its askers counts as *owner*'s until it ends.

        Raises:
            TimeoutError: No answer within *timeout* seconds.
            LocalResourceError: *owner* or all owners have too many look-ups in flight, or no
                thread can be started; a retry helps.
            OSError: No address, or no answer; may pass.
        """
        addresses = self._look_up(host, port, owner).result(timeout)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        return addresses

    def _look_up(self, host: str, port: int, owner: str) -> Future[list[str]]:
        with self._lock:
            future = self._lookups.get((host, port))
            if future is None:
                if not self._places.allows(owner):
                    lacking = f"places for look-ups: {len(self._lookups)} are in flight"
                    raise LocalResourceError(lacking, only_for_owner=self._places.free > 0)
                future = Future()
                # A daemon, so that a look-up that hangs does not hold up the end of the process.
                thread = threading.Thread(
                    target=self._run,
                    args=(host, port, owner, future),
                    name="picback-dns",
                    daemon=True,
                )
                with local_resources():
                    thread.start()
                self._places.take(owner)
                self._lookups[host, port] = future
        return future

    def _run(self, host: str, port: int, owner: str, future: Future[list[str]]) -> None:
        try:
            addresses = self._resolver(host, port)
        except BaseException as exc:  # noqa: BLE001 - handed to the askers, who raise it
            self._forget(host, port, owner)
            future.set_exception(exc)
        else:
            self._forget(host, port, owner)
            future.set_result(addresses)

    def _forget(self, host: str, port: int, owner: str) -> None:
        # Before the askers are told, so that whoever asks next begins a new look-up.
        with self._lock:
            del self._lookups[host, port]
            self._places.give_back(owner)
