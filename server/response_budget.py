"""A limit on the memory of responses that are being built or not read yet.

gRPC keeps a response until its client has read it, which may be never, and takes no thread for that. So
a response's bytes are counted before it is built, until gRPC says that the call has ended; a call whose
response is not read in time is cancelled, which gives the memory back.
"""

from __future__ import annotations

import threading
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

from server.errors import RequestError

if TYPE_CHECKING:
    import grpc

    from server.timer import Timeout, Timer

#: A response of at most so many bytes is not counted: gRPC itself keeps more for an open call.
SMALL_BYTES: Final = 1_000
#: From how many bytes on responses are built two at a time: each is in memory three times meanwhile.
_LARGE_BYTES: Final = 1_000_000
_MAX_LARGE_BUILDS: Final = 2
#: In how many seconds a response must be read: some, and so many bytes in each more.
_READ_SECONDS: Final = 15.0
_READ_BYTES_PER_SECOND: Final = 500_000


class _Hold:
    """What one call's response takes."""

    __slots__ = ("is_large_build", "owner", "size_bytes", "timeout")

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.size_bytes = 0
        self.is_large_build = False
        self.timeout: Timeout | None = None


class ResponseBudget:
    """So many bytes of responses at once; a key's share leaves as much again for others. Safe to share.

    A key that holds nothing may take whatever is free, and one response that is larger by itself
    than the limit is sent while there is no other.

    Args:
        limit_bytes: Most bytes of all responses.
        timer: Cancels the calls whose response is not read.
    """

    def __init__(self, limit_bytes: int, *, timer: Timer) -> None:
        self._limit_bytes = limit_bytes
        self._timer = timer
        self._lock = threading.Lock()
        self._holds: dict[grpc.ServicerContext, _Hold] = {}
        self._held_by: Counter[str] = Counter()
        self._large_builds = threading.BoundedSemaphore(_MAX_LARGE_BUILDS)

    @property
    def held_bytes(self) -> int:
        """How many bytes are held now."""
        return self._held_by.total()

    def reserve(self, context: grpc.ServicerContext, owner: str, size_bytes: int) -> None:
        """Hold *size_bytes* for the response of *context*, which is built next, until the call ends.

        Waits while other large responses are built, never for a client. `send` or `abandon` must follow.

        Raises:
            RequestError: OVERLOADED; there is no room.
        """
        hold = self._hold(context, owner, size_bytes)
        if size_bytes > _LARGE_BYTES:
            self._large_builds.acquire()
            with self._lock:
                hold.is_large_build = context in self._holds
            if not hold.is_large_build:  # the call has ended meanwhile
                self._large_builds.release()

    def send(self, context: grpc.ServicerContext, owner: str, size_bytes: int) -> None:
        """Hold what the response has come to, and cancel the call if it is not read in time.

        Raises:
            RequestError: OVERLOADED; there is no room.
        """
        if size_bytes <= SMALL_BYTES and context not in self._holds:
            return
        try:
            hold = self._hold(context, owner, size_bytes)
        finally:
            self.abandon(context)
        hold.timeout = self._timer.add(
            _READ_SECONDS + size_bytes / _READ_BYTES_PER_SECOND, context.cancel
        )
        if context not in self._holds:  # the call has ended meanwhile
            hold.timeout.cancel()

    def abandon(self, context: grpc.ServicerContext) -> None:
        """Let others build: this response is built, or will not be."""
        with self._lock:
            hold = self._holds.get(context)
            if hold is not None:
                self._finish_build(hold)

    def _hold(self, context: grpc.ServicerContext, owner: str, size_bytes: int) -> _Hold:
        with self._lock:
            hold = self._holds.get(context)
            is_new = hold is None
            if hold is None:
                hold = _Hold(owner)
            more = size_bytes - hold.size_bytes
            if more > 0 and not self._fits(owner, more):
                raise RequestError("OVERLOADED", "too many responses have not been read yet")
            hold.size_bytes = size_bytes
            self._holds[context] = hold
            self._held_by[owner] += more
        if is_new and not context.add_callback(partial(self._release, context)):
            self._release(context)  # it has ended
        return hold

    def _finish_build(self, hold: _Hold) -> None:
        if hold.is_large_build:
            hold.is_large_build = False
            self._large_builds.release()

    def _fits(self, owner: str, size_bytes: int) -> bool:
        own = self._held_by[owner]
        others = self._held_by.total() - own
        if not own:
            return not others or others + size_bytes <= self._limit_bytes
        return others + 2 * (own + size_bytes) <= self._limit_bytes

    def _release(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            hold = self._holds.pop(context, None)
            if hold is None:
                return
            self._finish_build(hold)
            self._held_by[hold.owner] -= hold.size_bytes
            if not self._held_by[hold.owner]:
                del self._held_by[hold.owner]
        if hold.timeout is not None:
            hold.timeout.cancel()
