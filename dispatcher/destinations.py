"""Whose turn it is: which queues may begin an attempt now, and how many.

Turns go to API keys first, then to each key's destinations, so that nothing that one key queues or
calls delays another key by more than its share. A queue that cannot have a turn (its destination is
full, or its breaker open) is parked at its destination until that changes, and one that is due
later waits for a timer: giving out a turn takes a time that does not depend on how many wait.

Everything here is in memory; time is passed in. What must outlive a restart (breakers) is handed
out to be saved and taken back at start. When queues are due is a hint, never later than the truth,
which is in storage.
"""

from __future__ import annotations

import random
import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

from dispatcher.breaker import CircuitBreaker
from dispatcher.deliverer import Answered
from dispatcher.rotation import Rotation, Turns
from dispatcher.shares import Shares
from dispatcher.timers import Timers
from storage.query_records import Turn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dispatcher.deliverer import Outcome
    from storage.breakers import Breaker
    from storage.query_records import DueQueue, QueryLease

#: Share of all threads that retries leave to first attempts.
FIRST_ATTEMPT_SHARE: Final = 0.25
#: Of all threads, what one API key may take at most: this many times those that are free.
KEY_RATIO: Final = 7.0
#: Share of all threads for destinations that are not proven, at least and at most: each of them that
#: lets an attempt time out halves it, each that answers adds a thread. It begins with the most.
UNPROVEN_SHARE: Final = (0.125, 0.75)
#: While queues of proven destinations wait, one turn in so many goes to another one.
UNPROVEN_EVERY: Final = 16
#: Destinations that are remembered though nothing waits for them.
MAX_IDLE_DESTINATIONS: Final = 10_000
#: How many parked queues are looked through for one whose key has not failed.
_PROBE_CANDIDATES: Final = 16
#: Queues let out of the park beyond the room there is: the key of another may have no place.
_SPARE: Final = 3


@dataclass(slots=True, eq=False)
class _Flow:
    """What one key has queued for one destination, first attempts or retries."""

    key_id: str
    destination: _Destination
    retries: bool
    #: None while it is being leased from, or when nothing is known to wait.
    due_at: int | None = None
    #: Where it waits for a turn: None if it has none to wait for, or is parked.
    rotation: Rotation[_Flow] | None = None
    #: Turns whose leases have not come yet.
    leasing: int = 0
    was_served: bool = False


@dataclass(slots=True, eq=False)
class _Destination(CircuitBreaker):
    flows: dict[tuple[str, bool], _Flow] = field(default_factory=dict)
    parked: OrderedDict[_Flow, None] = field(default_factory=OrderedDict)
    #: Attempts in flight that began when it was not proven, by key.
    unproven: dict[str, int] = field(default_factory=dict)


class Destinations:
    """Gives out turns and learns from outcomes. Safe to use from any thread.

    Args:
        threads: Attempts in flight at most, over all destinations.
        rng: Jitter, so that destinations that went down together are not probed together.
    """

    def __init__(self, *, threads: int, rng: random.Random | None = None) -> None:
        self._max_retries = max(1, threads - max(1, round(threads * FIRST_ATTEMPT_SHARE)))
        self._rng = rng or random.SystemRandom()
        self._lock = threading.Lock()
        self._destinations: dict[int, _Destination] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._held = 0
        self._retries_in_flight = 0
        self._shares = Shares(threads, ratio=KEY_RATIO)
        self._min_unproven, self._max_unproven = (
            max(1, round(threads * share)) for share in UNPROVEN_SHARE
        )
        self._unproven = Shares(self._max_unproven, ratio=KEY_RATIO)
        self._turns = Turns()
        #: By whether destinations are proven and whether queries are retries.
        self._rotations: dict[tuple[bool, bool], Rotation[_Flow]] = {
            (proven, retries): Rotation(self._turns)
            for proven in (True, False)
            for retries in (False, True)
        }
        #: Turns of proven destinations since the last one of another.
        self._proven_in_a_row = 0
        #: Keys whose last turn was a retry's.
        self._retried: set[str] = set()
        self._timers: Timers[_Flow | _Destination] = Timers()

    def restore(self, breakers: Iterable[Breaker], *, now: int) -> None:
        """Take up breakers as they are stored: at start, or when an operator changed them."""
        with self._lock:
            for breaker in breakers:
                destination = self._of(breaker.destination)
                self._held += (breaker.state == "HELD") - (destination.state == "HELD")
                destination.take_up(breaker, now=now)
                self._resort(destination, now)
                self._unpark(destination, now)
                self._forget_if_idle(destination)

    @property
    def any_held(self) -> bool:
        """Whether an operator holds a breaker open: nothing but the operator ends that."""
        with self._lock:
            return self._held > 0

    def __len__(self) -> int:
        """Return how many destinations are remembered."""
        with self._lock:
            return len(self._destinations)

    def is_full(self, destination: int) -> bool:
        """Return whether nothing can begin there before something else `finished`."""
        with self._lock:
            known = self._destinations.get(destination)
            return (
                known is not None
                and known.state in ("CLOSED", "RECOVERING")
                and 0 < int(known.limit) <= known.in_flight
            )

    def waits(self, queues: Iterable[DueQueue], *, now: int) -> None:
        """Note that queries wait in *queues*, due then or later."""
        with self._lock:
            for queue in queues:
                self._waits(queue.key_id, queue.destination, queue.retries, queue.due_at, now)

    def take_turns(self, *, free: int, now: int, first: bool = True) -> list[Turn]:
        """Give out at most *free* turns.

        They count as in flight until `leased` says how many began, and `finished` that each of
        these has ended. *first*: whether first attempts may have turns.
        """
        given: Counter[_Flow] = Counter()
        with self._lock:
            self._advance(now)
            while free > sum(given.values()):
                flow = self._next(now, first=first)
                if flow is None:
                    break
                self._begin(flow)
                given[flow] += 1
            for flow, count in given.items():
                flow.leasing += count
                flow.due_at = None
                self._place(flow, now)
            return [
                Turn(
                    key_id=flow.key_id,
                    destination=flow.destination.id,
                    retries=flow.retries,
                    count=count,
                    avoid=_avoided(flow.destination),
                )
                for flow, count in given.items()
            ]

    def leased(self, turn: Turn, *, begun: int, next_due_at: int | None, now: int) -> None:
        """Note how many of a turn's attempts began, and when the queue's next query is due."""
        with self._lock:
            destination = self._of(turn.destination)
            flow = destination.flows[turn.key_id, turn.retries]
            flow.leasing -= turn.count
            for _ in range(turn.count - begun):
                self._end(destination, turn.key_id, retry=turn.retries)
            if next_due_at is not None:
                self._waits(turn.key_id, turn.destination, turn.retries, next_due_at, now)
            else:
                self._place(flow, now)
            self._unpark(destination, now)
            self._forget_if_idle(destination)

    def next_turn_at(self, *, now: int, first: bool = True) -> int | None:
        """Return since or until when a turn can be given (milliseconds); None: not by time."""
        with self._lock:
            self._advance(now)
            flow = self._next(now, first=first)
            if flow is None:
                return self._timers.next_at()
            due_at = now if flow.due_at is None else flow.due_at
            return max(due_at, flow.destination.probe_at) if _is_open(flow) else due_at

    def finished(self, lease: QueryLease, outcome: Outcome | None, *, now: int) -> Breaker | None:
        """Learn from an attempt's *outcome* (None: none was made).

        Args:
            lease: What was attempted.
            outcome: What came of it.
            now: When it ended.

        Returns:
            The breaker, when its state changed and is to be remembered.
        """
        with self._lock:
            destination = self._of(lease.destination)
            was_proven, changed = destination.is_proven, None
            if self._end(destination, lease.key_id, retry=lease.is_retry):
                self._adapt_unproven_share(outcome)
            if outcome is not None:
                changed = destination.learn(
                    outcome,
                    key_id=lease.key_id,
                    url=lease.callback_url,
                    now=now,
                    rng=self._rng,
                )
            if destination.is_proven and not was_proven:
                for key_id, count in destination.unproven.items():
                    self._unproven.give_back(key_id, count)
                destination.unproven.clear()
            if destination.is_proven != was_proven:
                self._resort(destination, now)
            self._unpark(destination, now)
            self._forget_if_idle(destination)
            return changed

    def _waits(self, key_id: str, id_: int, retries: bool, due_at: int, now: int) -> None:  # noqa: FBT001
        destination = self._of(id_)
        flow = destination.flows.get((key_id, retries))
        if flow is None:
            self._idle.pop(id_, None)
            flow = destination.flows[key_id, retries] = _Flow(key_id, destination, retries)
        if flow.due_at is None or due_at < flow.due_at:
            flow.due_at = due_at
            self._place(flow, now)

    def _advance(self, now: int) -> None:
        while (waiter := self._timers.pop(now)) is not None:
            if isinstance(waiter, _Flow):
                self._place(waiter, now)
            else:
                self._unpark(waiter, now)

    def _place(self, flow: _Flow, now: int) -> None:
        """Put *flow* where it belongs by when it is due."""
        destination = flow.destination
        if flow.due_at is not None and flow.due_at <= now:
            rotation = self._rotations[destination.is_proven, flow.retries]
            if flow.rotation is not rotation and flow not in destination.parked:
                self._leave(flow)
                flow.rotation = rotation
                rotation.add(flow.key_id, flow, was_served=flow.was_served)
            return
        self._leave(flow)
        if flow.due_at is not None:
            self._timers.wake(flow, flow.due_at)
        elif not flow.leasing and destination.flows.get((flow.key_id, flow.retries)) is flow:
            del destination.flows[flow.key_id, flow.retries]

    def _leave(self, flow: _Flow) -> None:
        if flow.rotation is not None:
            flow.rotation.discard(flow.key_id, flow)
            flow.rotation = None
        else:
            flow.destination.parked.pop(flow, None)

    def _resort(self, destination: _Destination, now: int) -> None:
        """Move the destination's flows to the rotations for what it has become."""
        for flow in destination.flows.values():
            if flow.rotation is not None:
                self._place(flow, now)

    def _unpark(self, destination: _Destination, now: int) -> None:
        """Let parked flows wait for turns again, as far as there is room for attempts."""
        if not destination.parked:
            return
        room = destination.capacity(now)
        if room == 0:
            if destination.state == "OPEN" and destination.probe_at > now:
                self._timers.wake(destination, destination.probe_at)
            return
        flows = list(islice(destination.parked, max(room + _SPARE, _PROBE_CANDIDATES)))
        if destination.state == "OPEN":
            flows.sort(key=lambda flow: destination.failed_lately(flow.key_id))  # stable
            room = 1
        for flow in flows[: room + _SPARE]:
            del destination.parked[flow]
            self._place(flow, now)

    def _next(self, now: int, *, first: bool) -> _Flow | None:
        """Return the flow whose turn it is, None if there is none."""
        groups = (True, False) if self._proven_in_a_row < UNPROVEN_EVERY - 1 else (False, True)
        for proven in groups:
            retry, new = (
                self._next_of(proven=proven, retries=True, now=now),
                self._next_of(proven=proven, retries=False, now=now) if first else None,
            )
            if retry is None or new is None:
                flow = retry or new
            elif retry.key_id == new.key_id:
                flow = new if retry.key_id in self._retried else retry
            else:
                flow = min(retry, new, key=lambda flow: self._turns.last(flow.key_id))
            if flow is not None:
                return flow
        return None

    def _next_of(self, *, proven: bool, retries: bool, now: int) -> _Flow | None:
        if retries and self._retries_in_flight >= self._max_retries:
            return None
        if not proven and self._unproven.free <= 0:
            return None
        rotation = self._rotations[proven, retries]
        for key_id in rotation.keys_in_turn():
            if not self._shares.allows(key_id):
                continue
            if not proven and not self._unproven.allows(key_id):
                continue
            while (flow := rotation.first(key_id)) is not None:
                if flow.destination.capacity(now):
                    return flow
                self._park(flow, now)
        return None

    def _park(self, flow: _Flow, now: int) -> None:
        self._leave(flow)
        destination = flow.destination
        destination.parked[flow] = None
        if destination.state == "OPEN" and destination.probe_at > now:
            self._timers.wake(destination, destination.probe_at)

    def _begin(self, flow: _Flow) -> None:
        destination, key_id = flow.destination, flow.key_id
        destination.in_flight += 1
        self._shares.take(key_id)
        if destination.is_proven:
            self._proven_in_a_row += 1
        else:
            self._proven_in_a_row = 0
            self._unproven.take(key_id)
            destination.unproven[key_id] = destination.unproven.get(key_id, 0) + 1
        self._retries_in_flight += flow.retries
        (self._retried.add if flow.retries else self._retried.discard)(key_id)
        flow.was_served = True
        self._turns.count(key_id)
        if flow.rotation is not None:
            flow.rotation.served(key_id, flow)
        for rotation in self._rotations.values():
            rotation.passed(key_id)

    def _end(self, destination: _Destination, key_id: str, *, retry: bool) -> bool:
        """Count an attempt as ended; return whether it counted as of an unproven destination."""
        destination.in_flight -= 1
        self._shares.give_back(key_id)
        self._retries_in_flight -= retry
        if key_id not in destination.unproven:
            return False
        self._unproven.give_back(key_id)
        destination.unproven[key_id] -= 1
        if not destination.unproven[key_id]:
            del destination.unproven[key_id]
        return True

    def _adapt_unproven_share(self, outcome: Outcome | None) -> None:
        if isinstance(outcome, Answered):
            self._unproven.places = min(self._max_unproven, self._unproven.places + 1)
        elif outcome is not None and outcome.reason == "TIMEOUT":
            self._unproven.places = max(self._min_unproven, self._unproven.places // 2)

    def _forget_if_idle(self, destination: _Destination) -> None:
        """Remember only so many destinations for which nothing waits."""
        if destination.flows or destination.in_flight or destination.state != "CLOSED":
            self._idle.pop(destination.id, None)
            return
        self._idle[destination.id] = None
        self._idle.move_to_end(destination.id)
        while len(self._idle) > MAX_IDLE_DESTINATIONS:
            oldest, _ = self._idle.popitem(last=False)
            del self._destinations[oldest]

    def _of(self, id_: int) -> _Destination:
        known = self._destinations.get(id_)
        if known is None:
            known = self._destinations[id_] = _Destination(id_)
        return known


def _is_open(flow: _Flow) -> bool:
    return flow.destination.state == "OPEN"


def _avoided(destination: _Destination) -> frozenset[int]:
    """Return which URLs a probe should not call, if there are others."""
    if destination.state != "OPEN" or destination.marks is None:
        return frozenset()
    return destination.marks.urls()
