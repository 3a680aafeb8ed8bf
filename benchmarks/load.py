"""A load of calls: so many under way at once, from this process."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

#: Seconds until a load that does not end is given up.
_PATIENCE = 120.0


def calls_per_second(start: Callable[[], grpc.Future[Any]], *, calls: int, in_flight: int) -> float:
    """Make *calls* calls, *in_flight* at once, each begun when another one ends.

    Args:
        start: Begins one call.
        calls: How many to make.
        in_flight: How many are under way at once.

    Raises:
        grpc.RpcError: The first call that failed.
        TimeoutError: They do not end.
    """
    load = _Load(start, calls)
    begun = time.perf_counter()
    for _ in range(min(in_flight, calls)):
        load.next()
    load.wait()
    return calls / (time.perf_counter() - begun)


class _Load:
    """Counts calls down. gRPC tells of their ends on threads of its own."""

    def __init__(self, start: Callable[[], grpc.Future[Any]], calls: int) -> None:
        self._start = start
        self._lock = threading.Lock()
        self._to_begin = calls
        self._to_end = calls
        self._error: BaseException | None = None
        self._done = threading.Event()

    def next(self) -> None:
        with self._lock:
            if self._to_begin == 0:
                return
            self._to_begin -= 1
        self._start().add_done_callback(self._ended)

    def wait(self) -> None:
        if not self._done.wait(_PATIENCE):
            msg = f"{self._to_end} calls have not ended after {_PATIENCE:g} s"
            raise TimeoutError(msg)
        if self._error is not None:
            raise self._error

    def _ended(self, call: grpc.Future[Any]) -> None:
        error = call.exception()
        with self._lock:
            self._to_end -= 1
            if error is not None:
                self._error = self._error or error
                self._to_begin = 0
            finished = self._to_end == 0 or self._error is not None
        if finished:
            self._done.set()
        else:
            self.next()
