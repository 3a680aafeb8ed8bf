"""A lane: one kind of work, taken from storage by leases and done by a few threads.

It never polls: it sleeps until it is woken, a thread becomes free, or the next piece of
work is due. It leases only what a free thread will start on at once, because a lease
that waits in a queue is a promise that nobody is keeping.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from storage.thread_pool import StartedPool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

L = TypeVar("L")

#: Longest sleep before a due time, in seconds: due times are wall-clock, and the wall
#: clock can be set while we sleep.
_LONGEST_SLEEP: Final = 60.0


class Lane(Generic[L]):
    """Leases work and hands it to threads, until drained.

    *lease* is asked for at most as many pieces as free threads can take. *process* must
    not raise; if it does, that is logged and the lane goes on. *storage_pause* is how long
    to wait after storage refused to lease, in seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        threads: int,
        lease: Callable[[int], Sequence[L]],
        next_due_at: Callable[[], int | None],
        process: Callable[[Sequence[L]], None],
        clock: Callable[[], int],
        batch_size: int = 1,
        storage_pause: float = 1.0,
    ) -> None:
        self._name = name
        self._threads = threads
        self._lease = lease
        self._next_due_at = next_due_at
        self._process = process
        self._clock = clock
        self._batch_size = batch_size
        self._storage_pause = storage_pause
        self._condition = threading.Condition()
        self._woken = False
        self._stopping = False
        self._busy = 0
        self._begun_at = 0
        self._pool = StartedPool(threads, name=name)
        self._thread = threading.Thread(target=self._run, name=f"picback-{name}", daemon=True)

    def start(self) -> None:
        """Begin to work.

        Raises:
            RuntimeError: The system refuses a thread.
        """
        self._pool.start()
        self._thread.start()

    def wake(self) -> None:
        """Look for due work now. A hint that may come from any thread at any time."""
        with self._condition:
            self._woken = True
            self._condition.notify_all()

    def stop(self) -> None:
        """Lease no more; work under way goes on."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()

    def is_stuck(self, *, grace: float) -> bool:
        """Tell whether work is due, a thread is free, and none was begun in *grace* seconds.

        That must never be; an operator who is told can restart what cannot help itself. A
        long queue is not stuck while it moves.

        Raises:
            StorageError: Nobody can say, which is no better.
        """
        with self._condition:
            if self._busy >= self._threads:
                return False
            begun_at = self._begun_at
        due_at = self._next_due_at()
        return due_at is not None and max(due_at, begun_at) + grace * 1000 < self._clock()

    def drain(self) -> None:
        """Lease no more, and return when all work under way has ended."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown(wait=True)

    def _run(self) -> None:
        while (free := self._wait_for_a_thread()) > 0:
            try:
                due_at = self._next_due_at()
                if due_at is None:
                    self._sleep(None)
                elif (wait := (due_at - self._clock()) / 1000) > 0:
                    self._sleep(min(wait, _LONGEST_SLEEP))
                else:
                    leases = self._lease(free * self._batch_size)
                    for start in range(0, len(leases), self._batch_size):
                        self._hand_over(leases[start : start + self._batch_size])
            except Exception:  # the lane outlives a full disk
                logger.exception("lane.storage_failed", extra={"lane": self._name})
                self._sleep(self._storage_pause)

    def _wait_for_a_thread(self) -> int:
        """Return how many threads are free, at least one; 0 when draining."""
        with self._condition:
            while self._busy >= self._threads and not self._stopping:
                self._condition.wait()
            # Whatever woke us until now is answered by the look at storage that follows.
            self._woken = False
            return 0 if self._stopping else self._threads - self._busy

    def _hand_over(self, leases: Sequence[L]) -> None:
        with self._condition:
            self._busy += 1
            self._begun_at = self._clock()
        self._pool.submit(self._work, leases)

    def _work(self, leases: Sequence[L]) -> None:
        try:
            self._process(leases)
        except Exception:
            logger.exception("lane.work_crashed", extra={"lane": self._name})
        finally:
            with self._condition:
                self._busy -= 1
                self._woken = True  # what was settled may be due again
                self._condition.notify_all()

    def _sleep(self, seconds: float | None) -> None:
        """Sleep until woken or draining, at most *seconds* (None: no limit)."""
        with self._condition:
            self._condition.wait_for(lambda: self._woken or self._stopping, seconds)
