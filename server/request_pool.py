"""Thread pools for calls: a call takes a thread only when its request has arrived.

gRPC's sync server gives a call its thread when the call begins, and the thread waits for the request. So
calls that send none take all threads.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final

from server.grpc_internals import UnreadCall
from storage.thread_pool import StartedPool

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from server.request_reader import RequestReader

logger = logging.getLogger(__name__)

#: Refusals that may wait, beyond which a call is ended without a status ...
_MAX_REFUSALS: Final = 2_000
#: ... from how many on they are spread out, and how far apart they then are, in seconds: a client
#: that opens a call again as soon as it was refused takes no more than a share of the time.
_MANY_REFUSALS: Final = 50
_PAUSE_SECONDS: Final = 0.004


class RequestPool(StartedPool):
    """Threads for calls whose requests *reader* receives.

    Args:
        threads: How many calls may be handled at once.
        name: Of the threads.
        reader: Receives the requests; None where gRPC's threads have to, see `grpc_internals`.
    """

    def __init__(self, threads: int, *, name: str, reader: RequestReader | None) -> None:
        super().__init__(threads, name=name)
        self._reader = reader

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Take a call from gRPC; anything else as every pool does. Must not raise for a call."""
        call = None if self._reader is None else UnreadCall.of((function, *args))
        if call is None or self._reader is None:
            return super().submit(function, *args, **kwargs)
        self._reader.add(call, call.caller.key_id or call.peer, self._start)
        return None

    def _start(self, call: UnreadCall) -> Future[Any]:
        return StartedPool.submit(self, *call.task())


class RefusalPool(StartedPool):
    """One thread for calls that are refused unread, which anyone can make as many of as they like."""

    def __init__(self, *, name: str) -> None:
        super().__init__(1, name=name)
        self._waiting = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Take a refusal from gRPC."""
        with self._lock:
            self._waiting += 1
            too_many = self._waiting > _MAX_REFUSALS
        call = UnreadCall.of((function, *args)) if too_many else None
        if call is not None:
            self._count_down()
            call.cancel()
            return None
        return super().submit(self._run, function, *args, **kwargs)

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """End the thread."""
        self._closing.set()
        super().shutdown(*args, **kwargs)

    def _run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        finally:
            if self._count_down() >= _MANY_REFUSALS:
                self._closing.wait(_PAUSE_SECONDS)

    def _count_down(self) -> int:
        with self._lock:
            self._waiting -= 1
            return self._waiting
