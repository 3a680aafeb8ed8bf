"""Whose turn it is, whatever happens: a schedule over a real queue, a clock, operators, restarts.

One of the destinations always answers; it must always be served. The others answer as chance has it.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dispatcher.breaker import MAX_CONCURRENCY
from dispatcher.deliverer import Answered, Failed
from dispatcher.destinations import Destinations
from dispatcher.schedule import Schedule
from storage.database import Database
from storage.query_records import Delivered, NotMade, RetryAt
from tests.fakes import FakeClock
from tests.store import Store, attempt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.deliverer import Outcome
    from storage.breakers import Breaker
    from storage.query_records import QueryLease, Settlement

THREADS: Final = 12
#: Name -> the number that storage gives it.
DESTINATIONS: Final = {"http://fine.test:80": 1, "http://a.test:80": 2, "http://b.test:80": 3}
FINE: Final = 1
MOODY: Final = sorted(set(DESTINATIONS) - {"http://fine.test:80"})

GOOD = Answered(status=204, retry_after=None, excerpt=b"", gone=False)
BUSY = Answered(status=503, retry_after=None, excerpt=b"", gone=False)
TIMEOUT = Failed(reason="TIMEOUT", message="")


class Turns(RuleBasedStateMachine):
    """Callers submit, threads lease and finish, operators meddle, the process restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = FakeClock()
        self.store = Store(Database.own(self.folder))
        self.under_way: list[QueryLease] = []
        self.begun = 0
        self.schedule = self.make_schedule()
        for name in DESTINATIONS:
            self.submit(name, count=1)

    def make_schedule(self) -> Schedule:
        schedule = Schedule(
            queries=self.store.queries,
            breakers=self.store.breakers,
            destinations=Destinations(threads=THREADS, rng=random.Random(0)),
            clock=self.clock,
        )
        schedule.restore()
        return schedule

    def teardown(self) -> None:
        try:
            self.all_is_delivered_in_the_end()
        finally:
            self.store.database.close()
            shutil.rmtree(self.folder)

    @property
    def breakers(self) -> dict[int, Breaker]:
        return {breaker.destination: breaker for breaker in self.store.breakers.not_closed()}

    @rule(name=st.sampled_from(sorted(DESTINATIONS)), count=st.integers(1, 12))
    def submit(self, name: str, count: int) -> None:
        for _ in range(count):
            self.store.submit(destination=name, now=self.clock())

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 60.0, 400.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: len(self.under_way) < THREADS)
    @rule(data=st.data())
    def lease(self, data: st.DataObject) -> None:
        free = THREADS - len(self.under_way)
        wanted = data.draw(st.one_of(st.just(free), st.integers(1, free)))
        look_at, before = self.schedule.next_due_at(), self.breakers
        busy = Counter(lease.destination for lease in self.under_way)
        leases = self.schedule.lease(wanted)
        given = Counter(lease.destination for lease in leases)
        self.under_way += leases
        self.begun += len(leases)

        # The lane neither sleeps while there is work, nor looks again and again for nothing.
        assert bool(leases) == (look_at is not None and look_at <= self.clock())
        for destination, breaker in before.items():
            if breaker.state == "HELD":
                assert 0 == given[destination]
            if breaker.state == "OPEN":
                may_probe = breaker.probe_at <= self.clock() and not busy[destination]
                assert given[destination] <= may_probe
        if wanted >= len(DESTINATIONS) and not busy[FINE] and FINE not in before:
            assert given[FINE] >= self.waits_for_a_first_attempt(FINE, before=leases)

    @precondition(lambda self: self.under_way)
    @rule(
        which=st.integers(0, THREADS),
        outcome=st.sampled_from([GOOD, GOOD, BUSY, TIMEOUT, TIMEOUT, None]),
    )
    def finish(self, which: int, outcome: Outcome | None) -> None:
        lease = self.under_way.pop(which % len(self.under_way))
        if lease.destination == FINE:
            outcome = GOOD
        self.settle(lease, outcome)

    @rule(name=st.sampled_from(MOODY))
    def an_operator_holds(self, name: str) -> None:
        assert self.store.breakers.hold(name)

    @rule(name=st.sampled_from(sorted(DESTINATIONS)))
    def an_operator_closes(self, name: str) -> None:
        assert self.store.breakers.close(name)
        self.schedule.next_due_at()

        assert DESTINATIONS[name] not in self.breakers

    @rule()
    def restart(self) -> None:
        self.under_way = []
        self.store.queries.void_leases(max_attempts=1_000_000, now=self.clock())
        self.schedule = self.make_schedule()

    @invariant()
    def nobody_has_more_than_the_most_at_once(self) -> None:
        under_way = Counter(lease.destination for lease in self.under_way)
        assert len(self.under_way) <= THREADS
        assert max(under_way.values(), default=0) <= MAX_CONCURRENCY
        assert sum(lease.is_retry for lease in self.under_way) <= THREADS * 3 // 4

    @invariant()
    def a_look_is_saturated_only_where_something_will_finish_and_nothing_could_begin(self) -> None:
        under_way = Counter(lease.destination for lease in self.under_way)
        closed = {id_ for id_ in DESTINATIONS.values() if id_ not in self.breakers}
        for destination in DESTINATIONS.values():
            if self.schedule.is_saturated(destination):
                assert under_way[destination] > 0
            elif destination in closed:
                assert under_way[destination] < MAX_CONCURRENCY

    @invariant()
    def only_a_lease_uses_up_an_attempt(self) -> None:
        assert self.begun == self.store.database.read("SELECT sum(attempt) FROM query")[0][0]

    def waits_for_a_first_attempt(self, destination: int, *, before: Sequence[QueryLease]) -> bool:
        """Tell whether one waited before *before* were leased."""
        leased = any(lease.destination == destination and not lease.is_retry for lease in before)
        return leased or any(
            queue.destination == destination and not queue.retries and queue.due_at <= self.clock()
            for queue in self.store.queries.waiting()
        )

    def settle(self, lease: QueryLease, outcome: Outcome | None) -> None:
        settlement: Settlement = RetryAt(due_at=self.clock() + 5_000)
        if outcome is None:
            settlement = NotMade(due_at=self.clock())
        elif outcome == GOOD:
            settlement = Delivered()
        made = None if outcome is None else attempt(lease.attempt)
        assert self.store.queries.settle(lease, made, settlement, now=self.clock())
        self.schedule.finished(lease, outcome)

    def all_is_delivered_in_the_end(self) -> None:
        """Let every receiver answer and every breaker that is held be closed."""
        for destination, breaker in self.breakers.items():
            if breaker.state == "HELD":
                (name,) = (name for name, id_ in DESTINATIONS.items() if id_ == destination)
                self.store.breakers.close(name)
        for lease in self.under_way:
            self.settle(lease, GOOD)
        while (look_at := self.schedule.next_due_at()) is not None:
            self.clock.now = max(self.clock(), look_at)
            leases = self.schedule.lease(THREADS)
            assert leases
            for lease in leases:
                self.settle(lease, GOOD)

        states = self.store.database.read("SELECT DISTINCT state FROM query")
        assert [("DELIVERED",)] == states
        assert {} == {
            id_: breaker for id_, breaker in self.breakers.items() if breaker.state == "OPEN"
        }


TestTurns = Turns.TestCase
TestTurns.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
