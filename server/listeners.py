"""What gRPC has no option for: that a connection is accepted only when its client has spoken.

gRPC's and TLS's clients speak first. A client that connects and says nothing would hold one of
this process's descriptors until the handshake is timed out; many would hold all that are for
callers. Put off by the kernel, it holds none, and nobody waits for it.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

#: How long the kernel keeps a silent connection to itself, in seconds; then it is accepted, and
#: gRPC's handshake timeout ends it.
_DEFER_SECONDS: Final = 600
_FOLDER: Final = Path("/proc/self/fd")


def defer_accept(port: int) -> None:
    """Let the kernel hold back silent connections to *port*, which this process listens on.

    Does nothing where the system cannot do that (it is Linux's alone).
    """
    if not hasattr(socket, "TCP_DEFER_ACCEPT"):
        return
    for entry in _FOLDER.iterdir():
        with suppress(OSError), _duplicate(int(entry.name)) as found:
            if _listens_on(found, port):
                # A sandbox's kernel may not know it, which is an OSError as well.
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFER_SECONDS)


def _duplicate(descriptor: int) -> socket.socket:
    """Return a duplicate of a socket; raise OSError if there is none, or none any more."""
    duplicate = os.dup(descriptor)
    try:
        return socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise


def _listens_on(found: socket.socket, port: int) -> bool:
    return (
        found.family in (socket.AF_INET, socket.AF_INET6)
        and found.type == socket.SOCK_STREAM
        and bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        and found.getsockname()[1] == port
    )
