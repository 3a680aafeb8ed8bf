"""Ends the process when a thread has died that it cannot do without.

A server whose gRPC thread is dead accepts connections and responds to nothing. What was accepted is on
disk, so the process ends at once, as by SIGKILL, for a supervisor to start it again.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from server import grpc_internals

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

#: The exit code; EX_SOFTWARE of sysexits.h.
EXIT_CODE: Final = 70
#: Beginnings of the names of threads that end when their work is done.
_SHORT_LIVED: Final = ("picback-dns", "picback-index")


class ThreadMonitor:
    """Remembers picback's threads and gRPC's serving thread, all of which run as long as the server."""

    def __init__(self) -> None:
        self._threads = grpc_internals.serving_threads() + [
            thread
            for thread in threading.enumerate()
            if thread.name.startswith("picback-") and not thread.name.startswith(_SHORT_LIVED)
        ]

    def check(self) -> None:
        """End the process if one of them has ended."""
        dead = [thread.name for thread in self._threads if not thread.is_alive()]
        if dead:
            logger.error("server.thread_died", extra={"threads": ", ".join(dead)})
            end_process()


@contextmanager
def ending_on_failure() -> Iterator[None]:
    """End the process if the block raises: other threads would keep it running without its main one."""
    try:
        yield
    except Exception:
        logger.exception("server.main_thread_failed")
        end_process()


def end_process() -> None:
    """End the process at once; errors are in its log already."""
    os._exit(EXIT_CODE)
