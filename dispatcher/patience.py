"""Storage is asked again until it does not refuse, where giving up would lose a lease.

A lease ends only by being settled: one that is dropped over a full disk would keep its work from
everybody until the next start.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, TypeVar

from storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Patience:
    """Tries what storage refuses again, every *pause* seconds. Safe to use from several threads.

    A thread that waits here leases nothing new, which is right while storage refuses.
    """

    def __init__(self, pause: float = 1.0) -> None:
        self._pause = pause
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Try once, and no longer wait, from now on: the next start takes up lost leases."""
        self._stopping.set()

    def insist(self, operation: Callable[[], T], *, on: str) -> T | None:
        """Return what *operation* returns as soon as it raises no StorageError.

        Args:
            operation: What to do; another exception of its own is raised.
            on: The id of what is worked on, for the log.

        Returns:
            None only after `stop`, when storage still refused.
        """
        while True:
            try:
                return operation()
            except StorageError as error:
                # Not a bug, so no traceback.
                logger.error("storage.refused", extra={"on": on, "error": str(error)})  # noqa: TRY400
            if self._stopping.wait(self._pause):
                return None
