"""What is worked on next: due queries of destinations whose turn it is."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final

from storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dispatcher.deliverer import Outcome
    from dispatcher.destinations import Destinations
    from storage.breakers import Breakers
    from storage.queries import Queries
    from storage.query_records import DueQueue, QueryLease

logger = logging.getLogger(__name__)

#: How often it is looked whether an operator has closed a breaker that was held, in seconds.
LOOK_SECONDS: Final = 10.0


class Schedule:
    """Leases queries by turns, and tells destinations what came of them.

    Safe to use from any thread. *clock* tells the wall-clock time in milliseconds. *can_match*
    tells whether texts can be matched: until then no first attempt is leased, for it would
    wait, and count, for nothing.
    """

    def __init__(
        self,
        *,
        queries: Queries,
        breakers: Breakers,
        destinations: Destinations,
        clock: Callable[[], int],
        can_match: Callable[[], bool] = lambda: True,
    ) -> None:
        self._queries = queries
        self._breakers = breakers
        self._destinations = destinations
        self._clock = clock
        self._can_match = can_match
        #: Held while a breaker is changed and saved: to a look at what is saved, one that has
        #: just opened would otherwise seem closed by an operator.
        self._saving = threading.Lock()
        #: What `next_due_at` saw, for the `lease` that follows.
        self._seen: Sequence[DueQueue] | None = None

    def restore(self) -> None:
        """Take up the breakers that an earlier process left open."""
        self._destinations.restore(self._breakers.not_closed())

    def is_in_vain(self, destination: int) -> bool:
        """Tell whether to look for a query to *destination* is in vain until one finishes."""
        return self._destinations.is_full(destination)

    def next_due_at(self) -> int | None:
        """Return when to look next for queries to lease (milliseconds); None when one finishes."""
        with self._saving:
            self._destinations.obey(self._breakers.not_closed())
        now = self._clock()
        self._seen = self._waiting()
        times = [self._destinations.next_turn_at(self._seen, now=now)]
        if self._destinations.any_held:
            times.append(now + round(LOOK_SECONDS * 1000))  # nothing else tells when to look again
        return min((at for at in times if at is not None), default=None)

    def lease(self, limit: int) -> Sequence[QueryLease]:
        """Lease at most *limit* due queries; `finished` must be told of each."""
        now = self._clock()
        seen, self._seen = self._seen, None  # a moment old at most: who leases has just looked
        turns = self._destinations.take_turns(
            self._waiting() if seen is None else seen, free=limit, now=now
        )
        leased: Counter[tuple[int, bool]] = Counter()
        try:
            leases = self._queries.lease(turns, now=now)
            leased.update((lease.destination, lease.is_retry) for lease in leases)
        finally:
            for turn in turns:
                missing = turn.count - leased[turn.destination, turn.retries]
                self._destinations.not_begun(turn, count=missing)
        return leases

    def finished(self, lease: QueryLease, outcome: Outcome | None) -> None:
        """Tell the lease's destination what came of it: an outcome, or None for no attempt."""
        with self._saving:
            changed = self._destinations.finished(
                lease.destination, outcome, retry=lease.is_retry, now=self._clock()
            )
            if changed is None:
                return
            try:
                self._breakers.save(changed)
            except StorageError as error:  # it will change again
                logger.warning("destination.not_saved", extra={"error": str(error)})
        logger.warning(
            "destination.breaker",
            extra={"destination": lease.destination, "state": changed.state, "query": lease.id},
        )

    def _waiting(self) -> Sequence[DueQueue]:
        can_match = self._can_match()
        return [queue for queue in self._queries.waiting() if queue.retries or can_match]
