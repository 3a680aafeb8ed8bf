"""What becomes due when: a heap with at most a few entries for each thing that waits."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

W = TypeVar("W")

#: Superseded entries that are kept beside as many live ones before the heap is rebuilt.
_SUPERSEDED = 64


class Timers(Generic[W]):
    """The earliest time for each of the things that wait. Times only move forward by `pop`."""

    def __init__(self) -> None:
        self._at: dict[W, int] = {}
        self._heap: list[tuple[int, int, W]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._at)

    def wake(self, waiter: W, at: int) -> None:
        """Let `pop` return *waiter* at *at*, or earlier if that was asked for before."""
        before = self._at.get(waiter)
        if before is not None and before <= at:
            return
        self._at[waiter] = at
        self._number += 1
        heapq.heappush(self._heap, (at, self._number, waiter))
        if len(self._heap) > 2 * len(self._at) + _SUPERSEDED:
            self._heap = [entry for entry in self._heap if self._at.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def next_at(self) -> int | None:
        """Return when `pop` will next return something; None: never."""
        while self._heap and self._at.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)  # superseded by an earlier one
        return self._heap[0][0] if self._heap else None

    def pop(self, now: int) -> W | None:
        """Return one whose time has come, and forget it; None if there is none."""
        at = self.next_at()
        if at is None or at > now:
            return None
        _, _, waiter = heapq.heappop(self._heap)
        del self._at[waiter]
        return waiter
