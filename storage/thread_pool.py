"""A thread pool whose threads exist before its first task."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor


class StartedPool(ThreadPoolExecutor):
    """A pool of exactly *threads* threads, all of them started by `start`.

    Python's own pool starts a thread when a task comes. Where the system refuses another thread at
    that moment, the task's caller fails, which may be the one thread that serves everything.
    """

    def __init__(self, threads: int, *, name: str) -> None:
        super().__init__(threads, thread_name_prefix=f"picback-{name}")
        self._size = threads

    def start(self) -> None:
        """Start every thread.

        Raises:
            RuntimeError: The system refuses a thread. Those that were started end with `shutdown`.
        """
        all_started = threading.Barrier(self._size + 1)
        try:
            for _ in range(self._size):
                ThreadPoolExecutor.submit(self, all_started.wait)  # a subclass has its own `submit`
            all_started.wait()
        except BaseException:
            all_started.abort()
            raise
