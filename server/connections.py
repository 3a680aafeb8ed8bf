"""What gRPC has no option for: silent connections, and those of one peer beyond its share.

gRPC bounds connections in total and times their handshakes out. That alone would let one peer hold
all that are for callers: by connections on which it says nothing, or opens HTTP/2 and then makes no
call. So the kernel keeps the first kind to itself, which costs no descriptor, and of the second kind
those are closed that have said least, of the peers that have most, before there is no room left.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
from collections import defaultdict
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

logger = logging.getLogger(__name__)

#: How long the kernel keeps a silent connection to itself, in seconds; then it is accepted, and
#: gRPC's handshake timeout ends it. gRPC's and TLS's clients speak first.
_DEFER_SECONDS: Final = 600
#: How often connections are counted, and how long one must have been silent to be closed, in
#: seconds: longer than a caller needs for its first call, and than round trips take.
_LOOK_SECONDS: Final = 1.0
_SILENT_SECONDS: Final = 2.0
#: The share of connections that is kept when there are more.
_KEPT: Final = 0.75
_FOLDER: Final = Path("/proc/self/fd")
#: Where Linux's tcp_info has the milliseconds since data came in, and the bytes that did so far.
_LAST_DATA: Final = struct.Struct("=52xI")
_RECEIVED: Final = struct.Struct("=128xQ")


def defer_accept(port: int) -> None:
    """Let the kernel hold back silent connections to *port*, which this process listens on.

    Does nothing where the system cannot do that (it is Linux's alone).
    """
    if not hasattr(socket, "TCP_DEFER_ACCEPT"):
        return
    for _, found in _sockets(port):
        if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            with suppress(OSError):  # a sandbox's kernel may not know it
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFER_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What is known of a caller's connection.

    Attributes:
        descriptor: Its number in this process.
        address: Of the other side: the peer's host first, then its port.
        received: Bytes that came in so far.
        silent: Seconds since some did.
    """

    descriptor: int
    address: tuple[Any, ...]
    received: int
    silent: float


class ConnectionGuard:
    """Keeps room for callers, from `start` until `stop`. Linux's alone; elsewhere it does nothing.

    Args:
        port: What this process listens on.
        most: Connections that gRPC accepts.
    """

    def __init__(self, port: int, *, most: int) -> None:
        self._port = port
        self._keep = int(most * _KEPT)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="picback-connections", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        if _FOLDER.exists():
            self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            try:
                self._trim()
            except OSError as error:  # no descriptor is left to look with, this time
                logger.warning("connections.not_counted", extra={"error": str(error)})

    def _trim(self) -> None:
        if len(os.listdir(_FOLDER)) <= self._keep:  # noqa: PTH208 - names alone, and many
            return
        looks = (_look_at(number, each) for number, each in _sockets(self._port))
        closed = surplus(filter(None, looks), keep=self._keep)
        for connection in closed:
            # By now the number may be another's: what has its address is closed, and nothing else.
            with suppress(OSError), _borrowed(connection.descriptor) as again:
                if again.getpeername() == connection.address:
                    again.shutdown(socket.SHUT_RDWR)
        if closed:
            logger.warning(
                "connections.closed", extra={"count": len(closed), "peer": closed[0].address[0]}
            )


def surplus(connections: Iterable[Connection], *, keep: int) -> Sequence[Connection]:
    """Return which of *connections* to close so that *keep* are left, or all if they are silent.

    Peers lose what they have more than others, and of theirs what said least and last.
    """
    by_peer: dict[str, list[Connection]] = defaultdict(list)
    for connection in connections:
        by_peer[connection.address[0]].append(connection)
    ranked: list[tuple[int, Connection]] = []
    for group in by_peer.values():
        group.sort(key=lambda each: (-each.received, each.silent))
        ranked += enumerate(group)
    ranked.sort(key=lambda pair: (-pair[0], pair[1].received))
    most = max(0, len(ranked) - keep)
    return [each for _, each in ranked if each.silent >= _SILENT_SECONDS][:most]


def _look_at(number: int, found: socket.socket) -> Connection | None:
    """Return what is known of an accepted connection; None for a socket that listens."""
    try:
        address = found.getpeername()
        info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except OSError:
        return None
    return Connection(
        descriptor=number,
        address=address,
        received=_RECEIVED.unpack_from(info)[0],
        silent=_LAST_DATA.unpack_from(info)[0] / 1000,
    )


def _sockets(port: int) -> Iterator[tuple[int, socket.socket]]:
    """Yield descriptor and object of each TCP socket of this process at *port*."""
    for entry in _FOLDER.iterdir():
        number = int(entry.name)
        with suppress(OSError), _borrowed(number) as found:
            is_tcp = found.type == socket.SOCK_STREAM and found.family in (
                socket.AF_INET,
                socket.AF_INET6,
            )
            if is_tcp and found.getsockname()[1] == port:
                yield number, found


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Yield another part's socket; raise OSError if *descriptor* is none, or none any more.

    It is neither closed nor duplicated: to close a duplicate of what has meanwhile become a file of
    SQLite's would drop the locks on it. Nor may its timeout be touched: gRPC's sockets never block.
    """
    found = socket.socket(fileno=descriptor)
    try:
        yield found
    finally:
        found.detach()
