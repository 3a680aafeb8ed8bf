"""Which requests may be received now.

A request is received without a thread, into memory: up to the largest message for each. So at most a number
of requests are received at once, an owner (an API key, or a connection without one) has a share of that
number, and the others wait unread, in HTTP/2's flow control. Owners take turns.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from server.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from server.grpc_internals import UnreadCall
    from server.timer import Timeout, Timer

#: A request of at most so many bytes gives its slot back when it has arrived; a larger one when its call ends.
_SMALL_BYTES: Final = 64_000


class _Request:
    """A request that is waited for. Lets go of its call when that is no longer needed here.

    gRPC counts a call's stream as open for as long as anything refers to the call.
    """

    __slots__ = ("call", "owner", "start", "started_at", "timeout")

    timeout: Timeout

    def __init__(
        self, call: UnreadCall, owner: str, start: Callable[[UnreadCall], Future[Any]]
    ) -> None:
        self.call: UnreadCall | None = call
        self.owner = owner
        self.start = start
        #: When it got its slot; None while it waits for one.
        self.started_at: float | None = None

    def let_go(self) -> UnreadCall | None:
        """Return the call, for the last time."""
        call, self.call = self.call, None
        self.timeout.cancel()
        return call


class RequestReader:
    """Receives requests, and ends the calls whose request does not arrive in time. Safe to share.

    Args:
        slots: Most requests received at once.
        share: Most of one owner's.
        timeout_seconds: How long after the call's beginning its request must have arrived.
        yield_seconds: A request that has not arrived after so long is given up when an owner waits
            that holds fewer slots.
        until_end: Whether a request holds its slot until its call ends, whatever its size.
        timer: Runs the timeouts.
        refuse: Ends a call with an error.
    """

    def __init__(
        self,
        *,
        slots: int,
        share: int,
        timeout_seconds: float,
        yield_seconds: float,
        timer: Timer,
        refuse: Callable[[UnreadCall, RequestError], None],
        until_end: bool = False,
    ) -> None:
        self._slots = slots
        self._share = share
        self._timeout_seconds = timeout_seconds
        self._yield_seconds = yield_seconds
        self._until_end = until_end
        self._timer = timer
        self._refuse = refuse
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[_Request]] = OrderedDict()  # whose turn it is first
        self._receiving: dict[_Request, None] = {}  # the oldest first
        self._held: dict[str, int] = {}
        self._held_by_all = 0
        timer.on_tick(self._make_room)

    def add(self, call: UnreadCall, owner: str, start: Callable[[UnreadCall], Future[Any]]) -> None:
        """Receive *call*'s request when its turn comes; then *start* it, on gRPC's serving thread."""
        request = _Request(call, owner, start)
        request.timeout = self._timer.add(self._timeout_seconds, partial(self._expire, request))
        following: _Request | None = request
        with self._lock:
            if owner not in self._waiting and self._has_room(owner):
                self._take_slot(request)
            else:
                self._enqueue(request)
                following = self._next_in_turn()
        self._receive(following)
        if request.started_at is None:
            if not call.on_done(request.let_go):
                request.let_go()
            self._make_room()

    def _has_room(self, owner: str) -> bool:
        held = self._held.get(owner, 0)
        # The last quarter is for owners who hold none, so that one who comes finds a slot free.
        slots = self._slots - self._slots // 4 if held else self._slots
        return self._held_by_all < slots and held < self._share

    def _take_slot(self, request: _Request) -> None:
        self._held[request.owner] = self._held.get(request.owner, 0) + 1
        self._held_by_all += 1
        self._receiving[request] = None
        request.started_at = time.monotonic()

    def _enqueue(self, request: _Request) -> None:
        queue = self._waiting.get(request.owner)
        if queue is not None:
            queue.append(request)
            return
        self._waiting[request.owner] = deque((request,))
        # An owner who has come just now goes first: a probe does not wait for a thousand others.
        self._waiting.move_to_end(request.owner, last=False)

    def _receive(self, request: _Request | None) -> None:
        """Receive *request*, which holds a slot, and what else there is room for then."""
        while request is not None:
            call = request.call
            if call is None or not call.receive(partial(self._received, request)):
                request.let_go()  # its call has ended
                request = self._give_slot_back(request)
            elif self._waiting:
                with self._lock:
                    request = self._next_in_turn()
            else:
                return

    def _received(self, request: _Request, there: bool) -> None:  # noqa: FBT001 - a callback
        """Hand over a request that has arrived, and receive another when it holds no slot any more."""
        call = request.let_go()
        if there and call is not None:
            future = request.start(call)
            if self._until_end or call.size_bytes > _SMALL_BYTES:
                with self._lock:
                    del self._receiving[request]
                future.add_done_callback(lambda _: self._receive(self._give_slot_back(request)))
                return
        self._receive(self._give_slot_back(request))

    def _give_slot_back(self, request: _Request) -> _Request | None:
        """Free *request*'s slot; return the request that has it now."""
        with self._lock:
            self._receiving.pop(request, None)
            self._held_by_all -= 1
            held = self._held.pop(request.owner) - 1
            if held:
                self._held[request.owner] = held
            return self._next_in_turn()

    def _next_in_turn(self) -> _Request | None:
        """Give a slot to the request whose turn it is, if there is room for it."""
        if not self._waiting:
            return None
        for owner in list(self._waiting):
            queue = self._waiting[owner]
            while queue and queue[0].call is None:  # it has ended
                queue.popleft()
            if queue and not self._has_room(owner):
                continue
            request = queue.popleft() if queue else None
            if queue:
                self._waiting.move_to_end(owner)
            else:
                del self._waiting[owner]
            if request is not None:
                self._take_slot(request)
                return request
        return None

    def _expire(self, request: _Request) -> None:
        """End a call whose request has not arrived in time."""
        call = request.let_go()
        if call is None:
            return
        received_since = request.started_at
        if received_since is None or time.monotonic() - received_since < self._timeout_seconds / 2:
            # It waited for others, most of the time.
            error = RequestError("OVERLOADED", "too many requests are waited for")
        else:
            seconds = f"{self._timeout_seconds:g} s"
            error = RequestError(
                "REQUEST_TIMEOUT",
                f"the request did not arrive within {seconds} (--request-timeout)",
            )
        self._refuse(call, error)

    def _make_room(self) -> None:
        """End a call that has had a slot for long, if an owner who holds fewer waits for one."""
        if not self._waiting:
            return
        with self._lock:
            request = self._find_one_to_end()
            call = None if request is None else request.let_go()
        if call is not None:
            self._refuse(
                call, RequestError("OVERLOADED", "others wait, and the request did not arrive")
            )

    def _find_one_to_end(self) -> _Request | None:
        if self._held_by_all < self._slots:
            return None  # those who wait have their share
        held = [self._held.get(owner, 0) for owner in self._waiting]
        fewest = min((each for each in held if each < self._share), default=self._share)
        until = time.monotonic() - self._yield_seconds
        for request in self._receiving:
            if request.started_at is None or request.started_at > until:
                return None
            if request.call is not None and self._held[request.owner] > fewest:
                return request
        return None
