"""A limit on the memory that bodies under way take together.

The rule a newcomer would break: a body's bytes are counted before they are read from the database,
and given back when the attempt is over, not when they happen to be collected.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class ByteBudget:
    """So many bytes may be held at once; whoever would exceed that waits. Safe to share.

    First come, first served, so that small bodies do not keep a large one waiting for ever. One
    that is larger than the whole budget is held alone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._condition = threading.Condition()
        self._held = 0
        self._waiting: deque[object] = deque()
        self._closed = False

    @contextmanager
    def hold(self, size: int, *, timeout: float | None = None) -> Iterator[bool]:
        """Wait for *size* bytes and hold them while the block runs.

        Yields:
            False if nothing is held, because the budget was closed before there was room, or
            *timeout* seconds passed.
        """
        taken = self._take(size, timeout)
        try:
            yield taken
        finally:
            if taken:
                self._give_back(size)

    def close(self) -> None:
        """Let nobody wait any more; what fits is still given."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def _take(self, size: int, timeout: float | None) -> bool:
        ticket = object()

        def is_my_turn() -> bool:
            is_first = self._waiting[0] is ticket
            return is_first and (self._held == 0 or self._held + size <= self._limit)

        with self._condition:
            self._waiting.append(ticket)
            self._condition.wait_for(lambda: is_my_turn() or self._closed, timeout)
            taken = is_my_turn()
            self._waiting.remove(ticket)
            if taken:
                self._held += size
            self._condition.notify_all()  # the next in the queue may fit, too
        return taken

    def _give_back(self, size: int) -> None:
        with self._condition:
            self._held -= size
            self._condition.notify_all()
