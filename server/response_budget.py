"""A limit on the memory of responses that are being built or not read yet.

gRPC keeps a response until its client has read it, which may be never, and takes no thread for that. So
a response is counted before it is built, until gRPC says that the call has ended; a call whose response
is not read in time is cancelled, which gives the memory back.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Final

from server.errors import RequestError

if TYPE_CHECKING:
    import grpc

    from server.timer import Timeout, Timer

#: What an unread response takes: gRPC has it twice, and what building it took stays in the allocator's
#: pools, for responses that are smaller than `allocator.LARGE_BYTES`. Measured: 2 to 3 times its size ...
_COPIES: Final = 3
#: ... and for its call. Measured: 34 MB for 1,000 calls with responses of 3 KB.
_CALL_BYTES: Final = 32_000
#: Responses of at most so many bytes are only timed, while no more than so many calls wait to be read: to
#: count one costs 6 % of a SubmitQuery.
_SMALL_BYTES: Final = 4_000
_MAX_UNCOUNTED: Final = 1_000
#: From how many bytes on responses are built two at a time, because each is in memory once more meanwhile.
_LARGE_BYTES: Final = 1_000_000
_MAX_LARGE_BUILDS: Final = 2
#: In how many seconds a response must be read, and as many again for each so many bytes.
_READ_SECONDS: Final = 15.0
_READ_BYTES: Final = 8_000_000


class _Hold:
    """What one call's response takes."""

    __slots__ = ("is_large_build", "owner", "size_bytes", "timeout")

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.size_bytes = 0
        self.is_large_build = False
        self.timeout: Timeout | None = None


class ResponseBudget:
    """So many bytes of unread responses at once. Safe to share between threads.

    A key's share leaves as much again for others; one that holds nothing may take whatever is free,
    and a response that is larger by itself than the limit is sent while there is no other. What
    callers without a key get is small, is not counted, and must be read in time like the rest.

    Args:
        limit_bytes: Most bytes of memory that all responses take.
        timer: Cancels the calls whose response is not read.
    """

    def __init__(self, limit_bytes: int, *, timer: Timer) -> None:
        self._limit_bytes = limit_bytes
        self._timer = timer
        self._lock = threading.Lock()
        self._holds: dict[grpc.ServicerContext, _Hold] = {}
        self._held_by: dict[str, int] = {}
        self._held_bytes = 0
        self._large_builds = threading.BoundedSemaphore(_MAX_LARGE_BUILDS)

    @property
    def held_bytes(self) -> int:
        """How many bytes are held now."""
        return self._held_bytes

    def reserve(self, context: grpc.ServicerContext, key_id: str, size_bytes: int) -> None:
        """Hold memory for a response of *size_bytes*, which is built next, until the call ends.

        Waits while other large responses are built, never for a client. `send` or `abandon` must follow.

        Raises:
            RequestError: OVERLOADED; there is no room.
        """
        hold = self._hold(context, key_id, size_bytes)
        if size_bytes > _LARGE_BYTES:
            self._large_builds.acquire()
            with self._lock:
                hold.is_large_build = context in self._holds
            if not hold.is_large_build:  # the call has ended meanwhile
                self._large_builds.release()

    def send(self, context: grpc.ServicerContext, key_id: str, size_bytes: int) -> None:
        """Hold what the response has come to, and cancel the call if it is not read in time.

        Raises:
            RequestError: OVERLOADED; there is no room.
        """
        if (
            size_bytes <= _SMALL_BYTES
            and self._timer.count(_READ_SECONDS) < _MAX_UNCOUNTED
            and context not in self._holds
        ):
            timeout = self._timer.add(_READ_SECONDS, context.cancel)
            if not context.add_callback(timeout.cancel):  # the call has ended
                timeout.cancel()
            return
        try:
            hold = self._hold(context, key_id, size_bytes)
        finally:
            self.abandon(context)
        seconds = _READ_SECONDS * (1 + size_bytes // _READ_BYTES)
        timeout = self._timer.add(seconds, context.cancel)
        hold.timeout = timeout
        if context not in self._holds:  # the call has ended meanwhile
            timeout.cancel()

    def abandon(self, context: grpc.ServicerContext) -> None:
        """Let others build: this response is built, or will not be."""
        hold = self._holds.get(context)
        if hold is not None and hold.is_large_build:
            with self._lock:
                self._finish_build(hold)

    def _hold(self, context: grpc.ServicerContext, key_id: str, size_bytes: int) -> _Hold:
        with self._lock:
            hold = self._holds.get(context)
            is_new = hold is None
            if hold is None:
                hold = _Hold(key_id)
            if key_id:
                self._resize(hold, _CALL_BYTES + _COPIES * size_bytes)
            self._holds[context] = hold
        if is_new and not context.add_callback(partial(self._release, context)):
            self._release(context)  # it has ended
        return hold

    def _resize(self, hold: _Hold, size_bytes: int) -> None:
        more = size_bytes - hold.size_bytes
        own = self._held_by.get(hold.owner, 0)
        if more > 0 and not self._fits(own, more):
            raise RequestError("OVERLOADED", "too many responses have not been read yet")
        hold.size_bytes = size_bytes
        self._held_bytes += more
        self._held_by[hold.owner] = own + more

    def _fits(self, own: int, more: int) -> bool:
        others = self._held_bytes - own
        if not own:
            return not others or others + more <= self._limit_bytes
        return others + 2 * (own + more) <= self._limit_bytes

    def _finish_build(self, hold: _Hold) -> None:
        if hold.is_large_build:
            hold.is_large_build = False
            self._large_builds.release()

    def _release(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            hold = self._holds.pop(context, None)
            if hold is None:
                return
            self._finish_build(hold)
            self._held_bytes -= hold.size_bytes
            left = self._held_by.get(hold.owner, 0) - hold.size_bytes
            if left:
                self._held_by[hold.owner] = left
            else:
                self._held_by.pop(hold.owner, None)
        if hold.timeout is not None:
            hold.timeout.cancel()
