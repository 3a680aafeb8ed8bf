"""Storage is asked again until it does not refuse, where giving up would lose a lease.

A lease ends only by being settled: one that is dropped over a full disk would keep its work from
everybody until the next start.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Patience:
    """Tries what storage refuses again, every *pause* seconds. Safe to use from several threads.

    A thread that waits here leases nothing new, which is right while storage refuses. It waits
    however long that is, also for what will never pass, such as a damaged file: an operator sees
    that by `has_waited`, and a restart takes up the leases. *monotonic* is in seconds.
    """

    def __init__(
        self, pause: float = 1.0, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._pause = pause
        self._monotonic = monotonic
        self._stopping = threading.Event()
        #: When each thread that waits was first refused.
        self._refused_at: dict[int, float] = {}

    def stop(self) -> None:
        """Try once, and no longer wait, from now on: the next start takes up lost leases."""
        self._stopping.set()

    def has_waited(self, seconds: float) -> bool:
        """Tell whether somebody has been refused for *seconds* and still is."""
        before = self._monotonic() - seconds
        # A copy, which other threads do not change while it is looked through.
        return any(refused_at <= before for refused_at in tuple(self._refused_at.values()))

    def insist(self, operation: Callable[[], T], *, on: str) -> T | None:
        """Return what *operation* returns as soon as it raises no StorageError.

        Args:
            operation: What to do; another exception of its own is raised.
            on: The id of what is worked on, for the log.

        Returns:
            None only after `stop`, when storage still refused.
        """
        try:
            while True:
                try:
                    return operation()
                except StorageError as error:
                    # Not a bug, so no traceback.
                    logger.error("storage.refused", extra={"on": on, "error": str(error)})  # noqa: TRY400
                self._refused_at.setdefault(threading.get_ident(), self._monotonic())
                if self._stopping.wait(self._pause):
                    return None
        finally:
            self._refused_at.pop(threading.get_ident(), None)
