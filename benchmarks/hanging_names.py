"""``picback`` on a machine whose name servers do not answer for names that begin with ``hang``.

``python -m benchmarks.hanging_names serve ...``: in place of the system's resolver for these names.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from server.cli import main

#: Seconds after which the system's resolver gives up, with two name servers; see resolv.conf(5).
_GIVES_UP_AFTER = 20.0

_getaddrinfo = socket.getaddrinfo


def _look_up(host: Any, *arguments: Any, **options: Any) -> Any:
    if bytes(host if isinstance(host, bytes) else str(host).encode()).startswith(b"hang"):
        time.sleep(_GIVES_UP_AFTER)
        raise socket.gaierror(socket.EAI_AGAIN, "no name server answers")
    return _getaddrinfo(host, *arguments, **options)


if __name__ == "__main__":
    socket.getaddrinfo = _look_up
    main()
