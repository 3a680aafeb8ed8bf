"""What is worked on next: due queries of the queues whose turn it is."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from dispatcher.retry import RetryPolicy
from storage.errors import StorageError
from storage.query_records import DueQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dispatcher.deliverer import Outcome
    from dispatcher.destinations import Destinations
    from storage.breakers import Breakers
    from storage.queries import Queries
    from storage.query_records import Leased, QueryLease, Turn, Waiting

logger = logging.getLogger(__name__)

#: How often it is looked whether an operator has closed a breaker that was held, in seconds.
LOOK_SECONDS: Final = 10.0
#: Pairs of destination and key whose queues are read from storage at once.
_WINDOW: Final = 64
#: How often such a window is read again, one after the other, in milliseconds.
_SCAN_PAUSE: Final = 1_000
#: How long first attempts wait at most, in milliseconds: handed back for lack of something of ours.
MAX_FIRST_WAIT: Final = 60_000


class Schedule:
    """Leases queries by turns, and tells destinations what came of them.

    Which queues have anything due is known without a look at storage: it tells what begins to
    wait, and how each queue goes on when something is leased from it. What is stored already is
    read in windows, all of it after the start and then again and again, little by little.

    Safe to use from any thread. *clock* tells the scheduler's time and *wall* the wall clock's
    (None: the same), in milliseconds. *can_match* tells whether texts can be matched: until then no
    first attempt is leased, for it would wait, and count, for nothing. *max_wait* is how long
    retries wait at most, in milliseconds.
    """

    def __init__(
        self,
        *,
        queries: Queries,
        breakers: Breakers,
        destinations: Destinations,
        clock: Callable[[], int],
        wall: Callable[[], int] | None = None,
        can_match: Callable[[], bool] = lambda: True,
        max_wait: int = RetryPolicy().max_wait,
    ) -> None:
        self._queries = queries
        self._breakers = breakers
        self._destinations = destinations
        self._clock = clock
        self._wall = wall or clock
        self._can_match = can_match
        self._max_wait = max_wait
        #: Held while breakers are changed and saved, or what operators did is taken up.
        self._saving = threading.Lock()
        #: The last change by an operator that was taken up.
        self._operator_change = breakers.last_operator_change()
        self._scanning = threading.Lock()
        self._scanned_all = False
        self._scan_after: DueQueue | None = None
        self._scan_at = 0
        queries.subscribe(self._waits)

    def restore(self) -> None:
        """Take up the breakers that an earlier process left open."""
        with self._saving:
            self._operator_change = self._breakers.last_operator_change()
            self._destinations.restore(self._breakers.not_closed(), now=self._clock())

    def is_saturated(self, destination: int) -> bool:
        """Return whether nothing can begin at *destination* before something there ends."""
        return self._destinations.is_full(destination)

    def next_due_at(self) -> int | None:
        """Return when to look next for queries to lease (milliseconds); None when one finishes."""
        now = self._clock()
        self._take_up_operator_changes(now)
        if not self._scanned_all or now >= self._scan_at:
            self._scan(now)
        while (at := self._next_turn_at(now)) is None or at > now:
            if self._scanned_all:
                break
            self._scan(now)
        if self._destinations.any_held:  # nothing else tells when to look again
            look_at = now + round(LOOK_SECONDS * 1000)
            at = look_at if at is None else min(at, look_at)
        return at

    def lease(self, limit: int) -> Sequence[QueryLease]:
        """Lease at most *limit* due queries; `finished` must be told of each."""
        now = self._clock()
        if not self._scanned_all:
            self._scan(now)
        turns = self._destinations.take_turns(free=limit, now=now, first=self._can_match())
        if not turns:
            return []
        leased: Sequence[Leased] = ()
        try:
            leased = self._queries.lease(turns, now=now, wall_now=self._wall())
        finally:
            for number, turn in enumerate(turns):
                self._leased(turn, leased[number] if leased else None, now)
        return [lease for each in leased for lease in each.leases]

    def finished(self, lease: QueryLease, outcome: Outcome | None) -> None:
        """Tell the lease's destination what came of it: an outcome, or None for no attempt."""
        with self._saving:
            changed = self._destinations.finished(lease, outcome, now=self._clock())
            if changed is None:
                return
            try:
                self._breakers.save(changed, seen=self._operator_change)
            except StorageError as error:  # it will change again
                logger.warning("destination.not_saved", extra={"error": str(error)})
        logger.warning(
            "destination.breaker",
            extra={"destination": lease.destination, "state": changed.state, "query": lease.id},
        )

    def _next_turn_at(self, now: int) -> int | None:
        return self._destinations.next_turn_at(now=now, first=self._can_match())

    def _waits(self, waiting: Waiting) -> None:
        self._destinations.waits([waiting.queue], now=self._clock())

    def _leased(self, turn: Turn, leased: Leased | None, now: int) -> None:
        if leased is None:  # storage failed: what is due still is
            self._destinations.leased(turn, begun=0, next_due_at=now, now=now)
            return
        next_due_at = leased.next_due_at
        if next_due_at is not None:
            queue = DueQueue(
                key_id=turn.key_id,
                destination=turn.destination,
                retries=turn.retries,
                due_at=next_due_at,
            )
            next_due_at = self._bounded(queue, now).due_at
        self._destinations.leased(turn, begun=len(leased.leases), next_due_at=next_due_at, now=now)

    def _take_up_operator_changes(self, now: int) -> None:
        if not self._breakers.operator_changes(after=self._operator_change):
            return
        with self._saving:  # only now, for whoever finishes waits here
            changes = self._breakers.operator_changes(after=self._operator_change)
            if changes:
                self._destinations.restore([breaker for _, breaker in changes], now=now)
                self._operator_change = changes[-1][0]

    def _scan(self, now: int) -> None:
        """Read the next window of queues."""
        with self._scanning:
            queues = self._queries.waiting(after=self._scan_after, limit=_WINDOW)
            pairs = {(queue.destination, queue.key_id) for queue in queues}
            if len(pairs) < _WINDOW:
                self._scanned_all, self._scan_after = True, None
            else:
                self._scan_after = queues[-1]
            self._scan_at = now + _SCAN_PAUSE
            self._destinations.waits([self._bounded(each, now) for each in queues], now=now)

    def _bounded(self, queue: DueQueue, now: int) -> DueQueue:
        """Return *queue*, pulled in if it waits longer than any schedule: a clock was set."""
        latest = now + (self._max_wait if queue.retries else MAX_FIRST_WAIT)
        if queue.due_at <= latest:
            return queue
        due_at = latest if queue.retries else now
        try:
            self._queries.pull_in(queue, due_at=due_at)
        except StorageError as error:  # the next scan finds it again; what was leased goes on
            logger.warning("queue.not_pulled_in", extra={"error": str(error)})
            return queue
        logger.warning("queue.pulled_in", extra={"destination": queue.destination})
        return DueQueue(
            key_id=queue.key_id,
            destination=queue.destination,
            retries=queue.retries,
            due_at=due_at,
        )
