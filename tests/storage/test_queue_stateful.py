"""The queue of queries against a model that a person can check by reading.

Each step does the same to both; after each step every query must be, attempt by attempt, what the
model says. A crash is taken literally: the files are copied as they lie, and opened elsewhere.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from storage.database import Database
from storage.errors import StateConflictError
from storage.query_records import Attempt, Delivered, GivenUp, Matched, RetryAt
from tests.fakes import START, FakeClock
from tests.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from storage.query_records import Query, QueryLease

#: Most attempts of one cycle: few, so that they are reached.
CAP: Final = 3
FINAL: Final = ("DELIVERED", "FAILED", "CANCELLED")

milliseconds = st.integers(0, 5)


@dataclass
class Expected:
    """A query as the model has it."""

    number: int
    due_at: int | None
    state: str = "QUEUED"
    attempt: int = 0
    of_cycle: int = 0
    matched: Matched | None = None
    #: Attempt number -> reason of failure.
    attempts: dict[int, str | None] = field(default_factory=dict)
    #: The lease that counts, if there is one.
    holder: QueryLease | None = None


class Queue(RuleBasedStateMachine):
    """Callers, threads that hold leases (some for too long), a clock, and crashes."""

    leases: Bundle[QueryLease] = Bundle("leases")
    queries: Bundle[str] = Bundle("queries")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.lives = 0
        self.clock = FakeClock()
        self.expected: dict[str, Expected] = {}
        self.database = Database.own(self.root / "0")
        self.store = Store(self.database)
        self.store.key()

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.root)

    @initialize(target=queries, count=st.integers(1, 3))
    def begin(self, count: int) -> Any:
        return multiple(*(self.submit(wait=0) for _ in range(count)))

    @rule(target=queries, wait=milliseconds)
    def submit(self, wait: int) -> str:
        # Submitted by a host whose clock is ahead: not due yet.
        due_at = self.clock() + wait
        query = self.store.submit("text", now=due_at)
        self.expected[query.id] = Expected(number=len(self.expected), due_at=due_at)
        return query.id

    @rule(passes=st.integers(1, 20))
    def let_time_pass(self, passes: int) -> None:
        self.clock.now += passes

    @rule(passes=st.integers(1, 5))
    def set_the_clock_back(self, passes: int) -> None:
        self.clock.now = max(START, self.clock.now - passes)

    @rule(target=leases, limit=st.integers(1, 4))
    def lease(self, limit: int) -> Any:
        now = self.clock()
        # First attempts and retries wait in queues of their own; the store takes the one
        # whose head is due first, then the other.
        queues = [
            sorted(
                (query.due_at, query.number, id_)
                for id_, query in self.expected.items()
                if query.due_at is not None and (query.of_cycle > 0) == retries
            )
            for retries in (False, True)
        ]
        in_turn = sorted(filter(None, queues), key=lambda queue: queue[0][0])
        due = [entry for queue in in_turn for entry in queue if entry[0] <= now][:limit]
        leased = self.store.lease(limit=limit, now=now)

        assert [id_ for *_, id_ in due] == [lease.id for lease in leased]
        for lease in leased:
            query = self.expected[lease.id]
            assert query.holder is None
            query.attempt += 1
            query.of_cycle += 1
            query.due_at, query.holder = None, lease
            assert (query.attempt, query.of_cycle, query.matched) == (
                lease.attempt,
                lease.attempt_of_cycle,
                lease.matched,
            )
        return multiple(*leased)

    @rule(lease=leases, word=st.sampled_from(["dog", "cat"]))
    def record_match(self, lease: QueryLease, word: str) -> None:
        query = self.expected[lease.id]
        matched = Matched(lemmas=(word,), match=None, at=self.clock())
        held = self.store.queries.record_match(lease, matched)

        assert held == (query.holder == lease)
        if held:
            query.state, query.matched = "DELIVERING", matched

    @rule(
        lease=leases, verdict=st.sampled_from(["delivered", "retry", "give up"]), wait=milliseconds
    )
    def settle(self, lease: QueryLease, verdict: str, wait: int) -> None:
        query = self.expected[lease.id]
        outcome: Delivered | RetryAt | GivenUp
        if verdict == "delivered":
            outcome = Delivered()
        elif verdict == "retry" and lease.attempt_of_cycle < CAP:  # as the policy decides
            outcome = RetryAt(due_at=self.clock() + wait)
        else:
            outcome = GivenUp(reason="ATTEMPTS_EXHAUSTED", message="It was the last.")
        failure = None if verdict == "delivered" else "TIMEOUT"
        made = Attempt(
            number=lease.attempt, started_at=self.clock(), latency_ms=1, failure_reason=failure
        )
        held = self.store.queries.settle(lease, made, outcome, now=self.clock())

        assert held == (query.holder == lease)
        if not held:
            return
        query.holder = None
        query.attempts[lease.attempt] = failure
        match outcome:
            case Delivered():
                query.state = "DELIVERED"
            case RetryAt():
                query.due_at = outcome.due_at
            case GivenUp():
                query.state = "FAILED"

    @rule(id_=queries)
    def cancel(self, id_: str) -> None:
        query = self.expected[id_]
        refused = _state_that_forbids(lambda: self.store.queries.cancel(id_, now=self.clock()))

        assert refused == (query.state if query.state in ("DELIVERED", "FAILED") else None)
        if refused is None:
            query.state, query.due_at, query.holder = "CANCELLED", None, None

    @rule(id_=queries)
    def redeliver(self, id_: str) -> None:
        query = self.expected[id_]
        refused = _state_that_forbids(lambda: self.store.queries.redeliver(id_, now=self.clock()))

        assert refused == (None if query.state in FINAL else query.state)
        if refused is None:
            query.state = "DELIVERING" if query.matched else "QUEUED"
            query.due_at, query.of_cycle = self.clock(), 0

    @precondition(lambda self: self.lives < 5)
    @rule()
    def crash(self) -> None:
        self.lives += 1
        folder = self.root / f"{self.lives}"
        folder.mkdir()
        for name in ("picback.db", "picback.db-wal"):
            shutil.copyfile(self.database.folder / name, folder / name)
        self.database.close()
        self.database = Database.own(folder)
        self.store = Store(self.database)
        held = [query for query in self.expected.values() if query.holder]
        voided = self.store.queries.void_leases(max_attempts=CAP, now=self.clock())

        assert len(held) == voided
        for query in held:
            query.holder = None
            query.attempts[query.attempt] = "INTERRUPTED"
            if query.of_cycle >= CAP:
                query.state = "FAILED"
            else:
                query.due_at = self.clock()

    @invariant()
    def storage_agrees_with_the_model(self) -> None:
        found = {
            query.id: (
                query.state,
                query.due_at,
                query.matched,
                {attempt.number: attempt.failure_reason for attempt in query.attempts},
                (query.ended_at is not None, query.failure_reason is not None),
            )
            for query in self.store.queries.page(before=None, size=1000, state=None)
        }
        assert {
            id_: (
                query.state,
                query.due_at,
                query.matched,
                query.attempts,
                (query.state in FINAL, query.state == "FAILED"),
            )
            for id_, query in self.expected.items()
        } == found

    @invariant()
    def the_next_due_time_is_the_earliest(self) -> None:
        due = [query.due_at for query in self.expected.values() if query.due_at is not None]
        assert min(due, default=None) == self.store.next_due_at()

    @invariant()
    def no_cycle_has_more_attempts_than_the_cap(self) -> None:
        cycles = self.store.database.read("SELECT max(attempt - cycle_start) FROM query")
        assert (cycles[0][0] or 0) <= CAP

    @invariant()
    def what_is_leased_has_one_holder(self) -> None:
        leased = self.store.database.read("SELECT id FROM query WHERE leased_at IS NOT NULL")
        assert {id_ for id_, query in self.expected.items() if query.holder} == {
            id_ for (id_,) in leased
        }


def _state_that_forbids(change: Callable[[], Query]) -> str | None:
    """Make a change; return the state over which it was refused, if it was."""
    try:
        change()
    except StateConflictError as refused:
        return refused.state
    return None


TestQueue = Queue.TestCase
TestQueue.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
