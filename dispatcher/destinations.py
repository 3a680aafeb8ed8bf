"""Whose turn it is: which destinations may be called now, and how often at once.

A destination is scheme, host and port: what fails together. One that hangs or refuses must
not take the threads of the others, so each has a limit of attempts under way that begins at
one and follows what it can bear, and a circuit breaker that leaves it alone while it is down.
Waiting for a breaker uses up no attempt of any query.

Everything here is in memory; time is passed in. What must outlive a restart (breakers) is
handed out to be saved and taken back at start.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from dispatcher.deliverer import Answered
from storage.breakers import Breaker
from storage.query_records import Turn

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dispatcher.deliverer import Outcome
    from storage.query_records import DueQueue

#: Attempts under way at once to a destination that answers well.
MOST_AT_ONCE: Final = 8
#: The breaker opens after this many failures in a row ...
FAILURES_IN_A_ROW: Final = 5
#: ... or when of at least this many attempts within the window half or more failed.
FEWEST_IN_WINDOW: Final = 20
WINDOW_SECONDS: Final = 60.0
#: First and longest time for which a breaker stays open, in seconds; doubles in between.
OPEN_SECONDS: Final = (5.0, 300.0)
#: Share of all threads that retries leave to first attempts.
KEPT_FOR_FIRST: Final = 0.25


class _Window:
    """Outcomes of the last minute, and how many of them were failures."""

    def __init__(self) -> None:
        self._outcomes: deque[tuple[int, bool]] = deque()
        self._failed = 0

    def note(self, *, ok: bool, now: int) -> None:
        """Add an outcome, and forget those that are too old."""
        self._outcomes.append((now, ok))
        self._failed += not ok
        while self._outcomes[0][0] < now - WINDOW_SECONDS * 1000:
            _, was_ok = self._outcomes.popleft()
            self._failed -= not was_ok

    @property
    def is_bad(self) -> bool:
        """Whether half of enough attempts failed."""
        return len(self._outcomes) >= FEWEST_IN_WINDOW and 2 * self._failed >= len(self._outcomes)


@dataclass(slots=True)
class _Destination:
    limit: float = 1.0
    #: No failure yet, nor the highest limit: nothing is known but good, so far.
    is_new: bool = True
    under_way: int = 0
    last_turn: int = 0
    failures_in_a_row: int = 0
    window: _Window = field(default_factory=_Window)
    state: str = "CLOSED"
    probe_at: int = 0
    openings: int = 0

    def capacity(self, now: int) -> int:
        """Return how many more attempts may begin now."""
        if self.state == "HELD":
            return 0
        if self.state == "OPEN":
            return 1 if now >= self.probe_at and self.under_way == 0 else 0
        return max(0, int(self.limit) - self.under_way)


class Destinations:
    """Gives out turns and learns from outcomes. Safe to use from any thread.

    Args:
        threads: Attempts under way at once, over all destinations.
        rng: Jitter, so that destinations that went down together are not probed together.
    """

    def __init__(self, *, threads: int, rng: random.Random | None = None) -> None:
        self._most_retries = max(1, threads - max(1, round(threads * KEPT_FOR_FIRST)))
        self._rng = rng or random.SystemRandom()
        self._lock = threading.Lock()
        self._destinations: dict[int, _Destination] = {}
        self._retries_under_way = 0
        self._turns = 0

    def restore(self, breakers: Iterable[Breaker]) -> None:
        """Take up breakers that were open when an earlier process ended."""
        with self._lock:
            for breaker in breakers:
                destination = self._of(breaker.destination)
                destination.state = breaker.state
                destination.probe_at = breaker.probe_at
                destination.openings = breaker.openings

    def obey(self, breakers: Iterable[Breaker]) -> None:
        """Take up what an operator did, who changes what is kept and not what is here.

        Every breaker that is not among *breakers* is closed, and one that is HELD there is here.
        """
        kept = {breaker.destination: breaker.state for breaker in breakers}
        with self._lock:
            for id_, destination in self._destinations.items():
                if destination.state != "CLOSED" and id_ not in kept:
                    self._destinations[id_] = _Destination(
                        under_way=destination.under_way, last_turn=destination.last_turn
                    )
            for id_, state in kept.items():
                if state == "HELD":
                    self._of(id_).state = state

    @property
    def any_held(self) -> bool:
        """Whether an operator holds a breaker open: nothing but the operator ends that."""
        with self._lock:
            return any(each.state == "HELD" for each in self._destinations.values())

    def is_full(self, destination: int) -> bool:
        """Tell whether nothing can begin there before something else `finished`."""
        with self._lock:
            known = self._destinations.get(destination)
            return (
                known is not None
                and known.state in ("CLOSED", "RECOVERING")
                and 0 < int(known.limit) <= known.under_way
            )

    def take_turns(self, waiting: Sequence[DueQueue], *, free: int, now: int) -> list[Turn]:
        """Give out at most *free* turns, one at a time to each destination in rotation.

        The turns count as under way until `finished` (or `not_begun`) is told of each.
        """
        due = [queue for queue in waiting if queue.due_at <= now]
        given: dict[tuple[int, bool], int] = {}
        with self._lock:
            while free > 0:
                queue = self._next(due, now)
                if queue is None:
                    break
                self._begin(queue)
                key = (queue.destination, queue.retries)
                given[key] = given.get(key, 0) + 1
                free -= 1
        return [
            Turn(destination=destination, retries=retries, count=count)
            for (destination, retries), count in given.items()
        ]

    def next_turn_at(self, waiting: Sequence[DueQueue], *, now: int) -> int | None:
        """Return when a turn can next be given (milliseconds); None until something finishes."""
        with self._lock:
            times = [
                max(queue.due_at, self._of(queue.destination).probe_at)
                if self._of(queue.destination).state == "OPEN"
                else queue.due_at
                for queue in waiting
                if self._may_begin(queue, max(now, self._of(queue.destination).probe_at))
            ]
        return min(times, default=None)

    def not_begun(self, turn: Turn, *, count: int) -> None:
        """Take back *count* of a turn's attempts, because there were fewer queries than that."""
        with self._lock:
            self._of(turn.destination).under_way -= count
            if turn.retries:
                self._retries_under_way -= count

    def finished(
        self, destination: int, outcome: Outcome | None, *, retry: bool, now: int
    ) -> Breaker | None:
        """Learn from an attempt's *outcome* (None: none was made).

        Returns:
            The breaker, when its state changed and is to be remembered.
        """
        with self._lock:
            known = self._of(destination)
            known.under_way -= 1
            if retry:
                self._retries_under_way -= 1
            if outcome is None or known.state == "HELD":
                return None
            before = (known.state, known.probe_at)
            if is_failure(outcome):
                self._failed(known, outcome, now)
            else:
                _succeeded(known, now)
            if (known.state, known.probe_at) == before:
                return None
            return Breaker(
                destination=destination,
                state=known.state,
                probe_at=known.probe_at,
                openings=known.openings,
            )

    def _next(self, due: Sequence[DueQueue], now: int) -> DueQueue | None:
        candidates = [
            queue
            for queue in due
            if self._of(queue.destination).capacity(now) and self._may_begin(queue, now)
        ]
        # Whoever had a turn longest ago; of its two queues the one that waits longer.
        return min(
            candidates,
            key=lambda queue: (self._of(queue.destination).last_turn, queue.due_at),
            default=None,
        )

    def _may_begin(self, queue: DueQueue, now: int) -> bool:
        if queue.retries and self._retries_under_way >= self._most_retries:
            return False
        return self._of(queue.destination).capacity(now) > 0

    def _begin(self, queue: DueQueue) -> None:
        destination = self._of(queue.destination)
        self._turns += 1
        destination.last_turn = self._turns
        destination.under_way += 1
        if queue.retries:
            self._retries_under_way += 1

    def _failed(self, destination: _Destination, outcome: Outcome, now: int) -> None:
        destination.is_new = False
        if _is_overload(outcome):
            destination.limit = max(1.0, destination.limit / 2)
        destination.failures_in_a_row += 1
        destination.window.note(ok=False, now=now)
        if (
            destination.state != "CLOSED"
            or destination.failures_in_a_row >= FAILURES_IN_A_ROW
            or destination.window.is_bad
        ):
            self._open(destination, now)

    def _open(self, destination: _Destination, now: int) -> None:
        if destination.state == "OPEN" and now < destination.probe_at:
            return  # a straggler from before it opened tells nothing new
        shortest, longest = OPEN_SECONDS
        seconds = min(shortest * 2.0**destination.openings, longest)
        destination.state = "OPEN"
        destination.openings += 1
        destination.probe_at = now + round(1000 * seconds * self._rng.uniform(0.8, 1.2))

    def _of(self, destination: int) -> _Destination:
        return self._destinations.setdefault(destination, _Destination())


def is_failure(outcome: Outcome) -> bool:
    """Tell whether *outcome* speaks against the destination, rather than this one query."""
    if isinstance(outcome, Answered):
        return outcome.status >= 500 or outcome.status == 429
    return outcome.reason not in ("ADDRESS_FORBIDDEN", "CALLBACK_URL_INVALID", "INTERRUPTED")


def _is_overload(outcome: Outcome) -> bool:
    if isinstance(outcome, Answered):
        return outcome.status in (429, 503)
    return outcome.reason == "TIMEOUT"


def _succeeded(destination: _Destination, now: int) -> None:
    destination.failures_in_a_row = 0
    destination.window.note(ok=True, now=now)
    if destination.state == "OPEN":
        # The probe got through: one at a time at first, then more with every answer.
        destination.state, destination.limit = "RECOVERING", 1.0
        return
    # Where nothing bad is known, or no longer, each answer lets one more in beside it: 1, 2, 4, 8
    # as rounds go. One that was overloaded gets one more a round.
    is_fast = destination.is_new or destination.state == "RECOVERING"
    destination.limit = min(
        float(MOST_AT_ONCE), destination.limit + (1 if is_fast else 1 / destination.limit)
    )
    if destination.limit < MOST_AT_ONCE:
        return
    destination.is_new = False
    if destination.state == "RECOVERING":
        destination.state, destination.openings = "CLOSED", 0
        destination.window = _Window()
