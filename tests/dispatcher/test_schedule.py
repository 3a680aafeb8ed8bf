"""What is leased next, over a real database: turns of destinations, and breakers that are kept."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import pytest

from dispatcher.breaker import FAILURES_IN_A_ROW, MAX_CONCURRENCY
from dispatcher.deliverer import Answered, Failed
from dispatcher.destinations import Destinations
from dispatcher.schedule import LOOK_SECONDS, Schedule
from storage.breakers import Breakers
from storage.query_records import Delivered, RetryAt
from tests.fakes import START, FakeClock
from tests.store import DESTINATION, attempt

if TYPE_CHECKING:
    from storage.breakers import Breaker
    from storage.query_records import QueryLease
    from tests.store import Store

REFUSED = Failed(reason="CONNECTION_REFUSED", message="Nobody listens.")
GOOD = Answered(status=204, retry_after=None, excerpt=b"", gone=False)


class Bench:
    """A schedule over a store, and a clock to move."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.clock = FakeClock()
        self.breakers: Breakers = store.breakers
        self.schedule = self.make()

    def make(self) -> Schedule:
        """Return a schedule as a new process would have it."""
        schedule = Schedule(
            queries=self.store.queries,
            breakers=self.breakers,
            destinations=Destinations(threads=16, rng=random.Random(0)),
            clock=self.clock,
        )
        schedule.restore()
        return schedule

    def prove(self, *names: str) -> None:
        """Let destinations answer so well that each may have the most at once."""
        for _ in range(MAX_CONCURRENCY):
            for name in names:
                self.store.submit(destination=name)
            for lease in self.schedule.lease(16):
                self.store.queries.settle(
                    lease, attempt(lease.attempt), Delivered(), now=self.clock()
                )
                self.schedule.finished(lease, GOOD)

    def fail(self, times: int = FAILURES_IN_A_ROW) -> None:
        """Let that many attempts fail, one after the other."""
        for _ in range(times):
            (lease,) = self.schedule.lease(1)
            self.settle(lease)
            self.schedule.finished(lease, REFUSED)

    def settle(self, lease: QueryLease, *, later: int = 0) -> None:
        """Make a leased query due again."""
        self.store.queries.settle(
            lease, attempt(lease.attempt), RetryAt(due_at=self.clock() + later), now=self.clock()
        )


@pytest.fixture
def bench(store: Store) -> Bench:
    return Bench(store)


def test_destinations_share_the_threads_whoever_waited_first(bench: Bench) -> None:
    bench.prove("http://many.test:80", "http://few.test:80")
    for _ in range(20):
        bench.store.submit(destination="http://many.test:80")
    few = [bench.store.submit(destination="http://few.test:80").id for _ in range(3)]

    leases = bench.schedule.lease(6)

    assert set(few) <= {lease.id for lease in leases}
    assert 6 == len(leases)


def test_turns_beyond_what_waits_are_given_back(bench: Bench) -> None:
    bench.prove(DESTINATION)
    bench.store.submit()
    assert 1 == len(bench.schedule.lease(MAX_CONCURRENCY))

    for _ in range(20):
        bench.store.submit()

    assert MAX_CONCURRENCY - 1 == len(bench.schedule.lease(16))


def test_nothing_waits_means_no_next_time(bench: Bench) -> None:
    assert bench.schedule.next_due_at() is None
    assert [] == bench.schedule.lease(1)


def test_while_nothing_can_be_matched_only_what_was_tried_before_has_turns(bench: Bench) -> None:
    ready = False
    schedule = Schedule(
        queries=bench.store.queries,
        breakers=bench.breakers,
        destinations=Destinations(threads=16),
        can_match=lambda: ready,
        clock=bench.clock,
    )
    tried = bench.store.submit(destination="http://a.test:80")
    (lease,) = bench.schedule.lease(1)
    bench.settle(lease, later=7)
    new = bench.store.submit(destination="http://b.test:80")

    assert START + 7 == schedule.next_due_at()
    assert [] == schedule.lease(16)
    bench.clock.now += 7
    assert [tried.id] == [lease.id for lease in schedule.lease(16)]
    ready = True
    assert [new.id] == [lease.id for lease in schedule.lease(16)]


def test_while_a_breaker_is_open_no_attempt_of_any_query_is_used_up(bench: Bench) -> None:
    query = bench.store.submit()
    bench.fail()
    used = len(bench.store.queries.get(query.id).attempts)

    assert [] == bench.schedule.lease(16)
    assert used == len(bench.store.queries.get(query.id).attempts)
    due_at = bench.schedule.next_due_at()
    assert due_at is not None
    assert due_at > bench.clock()


def test_an_open_breaker_outlives_the_process(bench: Bench) -> None:
    bench.store.submit()
    bench.fail()

    assert [] == bench.make().lease(16)


def test_what_an_operator_closes_beside_the_server_is_due_at_once(bench: Bench) -> None:
    bench.store.submit(destination="http://down.test:80")
    bench.fail()
    assert bench.breakers.close("http://down.test:80")

    assert START == bench.schedule.next_due_at()
    assert 1 == len(bench.schedule.lease(16))


def test_what_an_operator_opens_beside_the_server_waits_without_using_up_attempts(
    bench: Bench,
) -> None:
    held = bench.store.submit(destination="http://held.test:80")
    (lease,) = bench.schedule.lease(1)
    assert bench.breakers.hold("http://held.test:80")
    look_at = bench.schedule.next_due_at()
    bench.settle(lease)
    bench.schedule.finished(lease, GOOD)
    bench.clock.advance(86_400)

    assert START + LOOK_SECONDS * 1000 == look_at
    assert [] == bench.schedule.lease(16)
    assert [] == bench.make().lease(16)
    assert ["HELD"] == [each.state for each in bench.breakers.not_closed()]
    assert bench.breakers.close("http://held.test:80")
    assert START == bench.schedule.next_due_at()
    assert [held.id] == [lease.id for lease in bench.schedule.lease(16)]


def test_an_outcome_that_opens_a_breaker_does_not_undo_what_an_operator_did_just_then(
    bench: Bench,
) -> None:
    bench.store.submit(destination="http://down.test:80")
    bench.fail(FAILURES_IN_A_ROW - 1)
    (lease,) = bench.schedule.lease(1)
    assert bench.breakers.hold("http://down.test:80")

    bench.schedule.finished(lease, REFUSED)

    assert ["HELD"] == [each.state for each in bench.breakers.not_closed()]


def test_a_breaker_that_is_just_being_saved_does_not_seem_closed_by_an_operator(
    store: Store,
) -> None:
    saving, looked = threading.Event(), threading.Event()

    class SlowBreakers(Breakers):
        def save(self, breaker: Breaker, *, seen: int | None = None) -> None:
            saving.set()
            looked.wait(0.2)  # long enough for a look that does not wait its turn
            super().save(breaker, seen=seen)

    bench = Bench(store)
    bench.breakers = SlowBreakers(store.database)
    bench.schedule = bench.make()
    store.submit()
    bench.fail(FAILURES_IN_A_ROW - 1)
    (lease,) = bench.schedule.lease(1)
    bench.settle(lease)
    opening = threading.Thread(target=bench.schedule.finished, args=(lease, REFUSED))
    opening.start()
    assert saving.wait(10)

    bench.schedule.next_due_at()
    looked.set()
    opening.join()

    assert [] == bench.schedule.lease(16)


def test_a_destination_that_answers_is_closed_for_the_next_process_too(bench: Bench) -> None:
    bench.store.submit()
    bench.fail()
    for _ in range(20):
        bench.clock.advance(400)
        for lease in bench.schedule.lease(16):
            bench.settle(lease)
            bench.schedule.finished(lease, GOOD)

    assert [] == bench.breakers.not_closed()
