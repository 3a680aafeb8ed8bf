"""What this machine lacked for a callback: descriptors, ports, memory, threads.

The rule a newcomer would break: such a lack says nothing about the receiver, so it is neither an
outcome of an attempt nor evidence against the destination. It is raised as `LocalResourceError`,
which is no OSError, so that no handler of network errors takes it for one.
"""

from __future__ import annotations

import errno
import socket
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: What is lacking, by the error number of any call on a socket.
LACKING: Final[Mapping[int, str]] = {
    errno.EMFILE: "file descriptors of this process",
    errno.ENFILE: "file descriptors of this system",
    errno.ENOBUFS: "socket buffers",
    errno.ENOMEM: "memory",
    errno.EAGAIN: "entries of the routing cache",  # connect(2); timeouts are TimeoutError here
    errno.EADDRNOTAVAIL: "local ports",
}
#: What CPython says when the system starts no thread; it has no exception of its own for that.
_NO_THREAD: Final = "can't start new thread"


class LocalResourceError(Exception):
    """This machine lacks what a callback needs; trying again helps once it is there.

    Attributes:
        lacking: What is lacking, a noun phrase for logs.
        held_by_connections: Whether closing idle connections gives some of it back.
        only_for_owner: Whether others still get some: the owner that asked has its share already.
    """

    def __init__(
        self, lacking: str, *, held_by_connections: bool = False, only_for_owner: bool = False
    ) -> None:
        super().__init__(f"not enough {lacking}")
        self.lacking = lacking
        self.held_by_connections = held_by_connections
        self.only_for_owner = only_for_owner


@contextmanager
def local_resources() -> Iterator[None]:
    """Turn errors of the block that are about resources of ours into LocalResourceError."""
    try:
        yield
    except MemoryError as error:
        raise LocalResourceError(LACKING[errno.ENOMEM]) from error
    except RuntimeError as error:
        if str(error) == _NO_THREAD:
            lacking = "threads"
            raise LocalResourceError(lacking) from error
        raise
    except OSError as error:
        lack = lack_of(error)
        if lack is not None:
            raise lack from error
        raise


def lack_of(error: OSError) -> LocalResourceError | None:
    """Return what *error* says that this machine lacks, None if it is not about that."""
    if isinstance(error, socket.gaierror):  # its numbers are not the system's
        lacking = LACKING[errno.ENOMEM] if error.errno == socket.EAI_MEMORY else None
    elif isinstance(error, ssl.SSLError):  # nor are these
        lacking = None
    else:
        lacking = LACKING.get(error.errno or 0)
    return None if lacking is None else LocalResourceError(lacking, held_by_connections=True)


def has_route(address: str, port: int) -> bool:
    """Return whether this machine has an address of its own to reach the IP literal *address* from.

    EADDRNOTAVAIL from connect(2) is either: no such address, as on a machine without IPv6, or no
    free port on it. A UDP socket has ports of its own and sends nothing when it is connected.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))
    except OSError:
        return False
    return True
