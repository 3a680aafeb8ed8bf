"""Ends queries that wait when their time has come, wherever in which queue they are.

A query that is being attempted ends with its attempt, which its deadline cuts short.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from storage.queries import Queries
    from storage.query_records import Waiting

logger = logging.getLogger(__name__)

#: Queries that one transaction ends: few milliseconds for whoever else wants to write.
_BATCH: Final = 200
#: Longest sleep, in seconds. A schedule takes longer, so it begins and ends with a look between.
_MAX_SLEEP: Final = 600.0
#: How long to wait after storage refused, in seconds.
_STORAGE_PAUSE: Final = 1.0


class DeadlineSweeper:
    """A thread that sleeps until the next query must end, and ends it.

    *lifetime* is how long a schedule takes, in milliseconds; *clock* the scheduler's and *wall*
    the wall clock, in milliseconds.
    """

    def __init__(
        self,
        *,
        queries: Queries,
        lifetime: int,
        clock: Callable[[], int],
        wall: Callable[[], int],
    ) -> None:
        self._deadlines = queries.deadlines
        self._lifetime = lifetime
        self._clock = clock
        self._wall = wall
        self._condition = threading.Condition()
        self._stopping = False
        #: When it wakes by itself; None while it is awake.
        self._wakes_at: int | None = None
        self._woken = False
        self._thread = threading.Thread(target=self._run, name="picback-deadlines", daemon=True)
        queries.subscribe(self._waits)

    def start(self) -> None:
        """Begin to end queries."""
        self._thread.start()

    def stop(self) -> None:
        """End no more, and return when what was begun is done."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def is_late(self, *, grace: float) -> bool:
        """Return whether a query waits *grace* seconds past its end.

        Raises:
            StorageError: That cannot be found out.
        """
        at = self._deadlines.next_at(lifetime=self._lifetime)
        return at is not None and at + grace * 1000 < self._clock()

    def sweep(self) -> float:
        """End what waits past its time; return how many seconds to sleep, 0: there may be more."""
        now = self._clock()
        ended = self._deadlines.expire(
            now=now, lifetime=self._lifetime, wall_now=self._wall(), limit=_BATCH
        )
        if ended:
            logger.info("queries.expired", extra={"count": ended})
            return 0.0
        at = self._deadlines.next_at(lifetime=self._lifetime)
        if at is None:
            return _MAX_SLEEP
        return min(max(0.0, (at - self._clock()) / 1000), _MAX_SLEEP)

    def _waits(self, waiting: Waiting) -> None:
        if waiting.give_up_at is None:
            return
        with self._condition:
            if self._wakes_at is None or waiting.give_up_at < self._wakes_at:
                self._woken = True
                self._condition.notify_all()

    def _run(self) -> None:
        while not self._stopping:
            with self._condition:
                self._woken = False  # what comes from here on is looked at again
                self._wakes_at = None
            try:
                seconds = self.sweep()
            except Exception:  # the thread outlives a full disk
                logger.exception("queries.not_expired")
                seconds = _STORAGE_PAUSE
            with self._condition:
                self._wakes_at = self._clock() + round(1000 * seconds)
                self._condition.wait_for(lambda: self._woken or self._stopping, seconds)
