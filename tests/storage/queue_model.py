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
FINAL: Final = ("DELIVERED", "FAILED", "CANCELLED", "UNMATCHED")


@dataclass
class Expected:
    """A query as the model has it."""

    number: int
    destination: int
    due_at: int | None
    key_id: str
    ends_unmatched: bool
    state: str = "QUEUED"
    attempt: int = 0
    of_cycle: int = 0
    matched: Matched | None = None
    #: Attempt number -> reason of failure.
    attempts: dict[int, str | None] = field(default_factory=dict)
    #: The lease that counts, if there is one.
    holder: QueryLease | None = None

    @property
    def queue(self) -> tuple[int, bool]:
        """Where it waits: its destination, and whether among those that failed before."""
        return self.destination, self.of_cycle > 0


class QueueModel:
    """All queries, by id."""

    def __init__(self) -> None:
        self.queries: dict[str, Expected] = {}

    def submitted(
        self, id_: str, *, destination: int, due_at: int, key_id: str, ends_unmatched: bool
    ) -> None:
        self.queries[id_] = Expected(
            number=len(self.queries),
            destination=destination,
            due_at=due_at,
            key_id=key_id,
            ends_unmatched=ends_unmatched,
        )

    def visible(self, id_: str, key_id: str | None) -> bool:
        """Tell whether a query exists for a key; None is for all keys."""
        return key_id in (None, self.queries[id_].key_id)

    def waiting(self) -> set[tuple[int, bool, int]]:
        """Return destination, whether of retries, and earliest due time of all queues."""
        heads: dict[tuple[int, bool], int] = {}
        for query in self.queries.values():
            if query.due_at is not None:
                heads[query.queue] = min(query.due_at, heads.get(query.queue, query.due_at))
        return {(*queue, due_at) for queue, due_at in heads.items()}

    def due(self, turn: Turn, *, now: int) -> list[str]:
        """Return whom a turn lets begin, longest due first."""
        ids = [
            (query.due_at, query.number, id_)
            for id_, query in self.queries.items()
            if query.queue == (turn.destination, turn.retries)
            and query.due_at is not None
            and query.due_at <= now
        ]
        return [id_ for *_, id_ in sorted(ids)[: turn.count]]

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
        query.due_at, query.of_cycle = now, 0

    def died(self, *, now: int) -> int:
        """Let the process die that held the leases; return how many that were."""
        held = [query for query in self.queries.values() if query.holder]
        for query in held:
            query.holder = None
            query.attempts[query.attempt] = "INTERRUPTED"
            if query.of_cycle >= CAP:
                query.state = "FAILED"
            else:
                query.due_at = now
        return len(held)


def queues(found: list[DueQueue]) -> set[tuple[int, bool, int]]:
    """Return what storage says of its queues as `QueueModel.waiting` does."""
    assert len({(queue.destination, queue.retries) for queue in found}) == len(found)
    return {(queue.destination, queue.retries, queue.due_at) for queue in found}
