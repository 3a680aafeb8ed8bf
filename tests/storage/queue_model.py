"""The queue of queries as a person would keep it on paper: what `storage.queries` must agree with.

Nothing here is clever; that is what makes it worth comparing with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from storage.query_records import Delivered, GivenUp, NotMade, RetryAt, Unmatched

if TYPE_CHECKING:
    from storage.query_records import DueQueue, Matched, QueryLease, Settlement, Turn

#: Most attempts of one cycle: few, so that they are reached.
CAP: Final = 3
#: Milliseconds that a schedule takes: few as well.
LIFETIME: Final = 40
FINAL: Final = ("DELIVERED", "FAILED", "CANCELLED", "UNMATCHED")


@dataclass
class Expected:
    """A query as the model has it."""

    number: int
    destination: int
    key_id: str
    due_at: int | None
    ends_unmatched: bool
    #: When it ends at the latest, and why.
    end_at: int
    end_reason: str
    give_up_after: int | None
    state: str = "QUEUED"
    reason: str | None = None
    attempt: int = 0
    of_cycle: int = 0
    matched: Matched | None = None
    #: Attempt number -> reason of failure.
    attempts: dict[int, str | None] = field(default_factory=dict)
    #: The lease that counts, if there is one.
    holder: QueryLease | None = None

    @property
    def queue(self) -> tuple[int, str, bool]:
        """Where it waits: its destination, key, and whether among those that failed before."""
        return self.destination, self.key_id, self.of_cycle > 0

    def begin_cycle(self, now: int) -> None:
        """Let the schedule begin: the query ends with it, or when its caller gives it up."""
        self.end_at, self.end_reason = now + LIFETIME, "SCHEDULE_EXPIRED"
        if self.give_up_after is not None and self.give_up_after <= LIFETIME:
            self.end_at, self.end_reason = now + self.give_up_after, "DEADLINE_PASSED"


class QueueModel:
    """All queries, by id."""

    def __init__(self) -> None:
        self.queries: dict[str, Expected] = {}

    def submitted(
        self,
        id_: str,
        *,
        destination: int,
        key_id: str,
        give_up_after: int | None,
        due_at: int,
        ends_unmatched: bool,
    ) -> None:
        query = self.queries[id_] = Expected(
            number=len(self.queries),
            destination=destination,
            key_id=key_id,
            due_at=due_at,
            ends_unmatched=ends_unmatched,
            end_at=0,
            end_reason="",
            give_up_after=give_up_after,
        )
        query.begin_cycle(due_at)

    def visible(self, id_: str, key_id: str | None) -> bool:
        """Tell whether a query exists for a key; None is for all keys."""
        return key_id in (None, self.queries[id_].key_id)

    def expired(self, *, now: int) -> int:
        """Let what waits past its end end; return how many that are."""
        late = [
            query
            for query in self.queries.values()
            if query.due_at is not None and query.end_at <= now
        ]
        for query in late:
            query.state, query.due_at, query.reason = "FAILED", None, query.end_reason
        return len(late)

    def next_end_at(self) -> int | None:
        """Return when the first query that waits ends."""
        waiting = [each for each in self.queries.values() if each.due_at is not None]
        return min((query.end_at for query in waiting), default=None)

    def waiting(self) -> set[tuple[int, str, bool, int]]:
        """Return destination, key, whether of retries, and earliest due time of all queues."""
        heads: dict[tuple[int, str, bool], int] = {}
        for query in self.queries.values():
            if query.due_at is not None:
                heads[query.queue] = min(query.due_at, heads.get(query.queue, query.due_at))
        return {(*queue, due_at) for queue, due_at in heads.items()}

    def due(self, turn: Turn, *, now: int) -> list[str]:
        """Return whom a turn lets begin, longest due first."""
        ids = [
            (query.due_at, query.number, id_)
            for id_, query in self.queries.items()
            if query.queue == (turn.destination, turn.key_id, turn.retries)
            and query.due_at is not None
            and query.due_at <= now
        ]
        return [id_ for *_, id_ in sorted(ids)[: turn.count]]

    def next_due_at(self, turn: Turn) -> int | None:
        """Return when the first query is due that still waits in a turn's queue."""
        times = [
            query.due_at
            for query in self.queries.values()
            if query.queue == (turn.destination, turn.key_id, turn.retries)
            and query.due_at is not None
        ]
        return min(times, default=None)

    def leased(self, lease: QueryLease) -> None:
        query = self.queries[lease.id]
        assert query.holder is None
        query.attempt += 1
        query.of_cycle += 1
        query.due_at, query.holder = None, lease
        assert (
            query.destination,
            query.attempt,
            query.of_cycle,
            query.matched,
            query.ends_unmatched,
        ) == (
            lease.destination,
            lease.attempt,
            lease.attempt_of_cycle,
            lease.matched,
            lease.ends_unmatched,
        )

    def settled(self, lease: QueryLease, outcome: Settlement) -> None:
        query = self.queries[lease.id]
        query.holder = None
        match outcome:
            case Delivered():
                query.state, query.attempts[lease.attempt] = "DELIVERED", None
            case GivenUp():
                query.state, query.attempts[lease.attempt] = "FAILED", "TIMEOUT"
                query.reason = outcome.reason
            case RetryAt():
                query.due_at, query.attempts[lease.attempt] = outcome.due_at, "TIMEOUT"
            case NotMade():
                query.due_at = outcome.due_at
                query.of_cycle -= 1
            case Unmatched():
                query.state, query.matched = "UNMATCHED", outcome.matched

    def cancelled(self, id_: str) -> None:
        query = self.queries[id_]
        query.state, query.due_at, query.holder = "CANCELLED", None, None

    def redelivered(self, id_: str, *, now: int) -> None:
        query = self.queries[id_]
        if query.state == "UNMATCHED":
            query.matched = None
        query.state = "DELIVERING" if query.matched else "QUEUED"
        query.due_at, query.of_cycle, query.reason = now, 0, None
        query.begin_cycle(now)

    def died(self, *, now: int) -> int:
        """Let the process die that held the leases; return how many that were."""
        held = [query for query in self.queries.values() if query.holder]
        for query in held:
            query.holder = None
            query.attempts[query.attempt] = "INTERRUPTED"
            if query.of_cycle >= CAP:
                query.state, query.reason = "FAILED", "ATTEMPTS_EXHAUSTED"
            else:
                query.due_at = now
        return len(held)


def queues(found: list[DueQueue]) -> set[tuple[int, str, bool, int]]:
    """Return what storage says of its queues as `QueueModel.waiting` does."""
    names = {(queue.destination, queue.key_id, queue.retries) for queue in found}
    assert len(names) == len(found)
    return {(queue.destination, queue.key_id, queue.retries, queue.due_at) for queue in found}
