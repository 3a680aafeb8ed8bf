"""Leases on queries when the clock, the code, the disk or the receiver is against them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.deliverer import Answered
from dispatcher.local_resources import LocalResourceError
from dispatcher.patience import Patience
from storage.errors import StorageFullError
from storage.queries import Queries
from tests.dispatcher.delivering import BROKEN, Bench
from tests.fakes import START

if TYPE_CHECKING:
    from collections.abc import Callable

    from analysis.lemmas import Term
    from storage.database import Database
    from storage.query_records import Attempt, QueryLease


@pytest.fixture
def bench(database: Database) -> Bench:
    return Bench(database)


def test_nothing_is_sent_after_the_callers_interest_has_ended(bench: Bench) -> None:
    query = bench.store.submit("dog", give_up_after=60_000)
    bench.clock.advance(60)
    bench.work()
    failed = bench.query(query.id)

    assert [] == bench.deliverer.sent
    assert ("FAILED", "DEADLINE_PASSED", ()) == (
        failed.state,
        failed.failure_reason,
        failed.attempts,
    )


def test_a_key_that_has_its_share_uses_no_attempt_and_opens_no_breaker(
    bench: Bench,
) -> None:
    def lack() -> None:
        lacking = "places for look-ups"
        raise LocalResourceError(lacking, only_for_owner=True)

    query = bench.store.submit("dog")
    bench.before_post = lack
    for _ in range(20):
        assert 1 == len(bench.work())
        bench.clock.advance(5)
    waiting = bench.query(query.id)
    assert ("DELIVERING", ()) == (waiting.state, waiting.attempts)
    assert bench.clock() - 5_000 < (waiting.due_at or 0) <= bench.clock()
    assert [] == bench.store.breakers.not_closed()
    assert not bench.shortage.has_lasted(0)

    bench.before_post = lambda: None
    bench.work()
    assert "DELIVERED" == bench.query(query.id).state


def test_no_attempt_is_planned_for_after_the_callers_interest_has_ended(bench: Bench) -> None:
    query = bench.store.submit("dog", give_up_after=60_000)
    bench.deliverer.outcomes = [BROKEN, BROKEN]
    bench.work()
    bench.clock.advance(5)
    bench.work()

    assert 2 == len(bench.deliverer.sent)
    assert ("FAILED", "DEADLINE_PASSED") == (
        bench.query(query.id).state,
        bench.query(query.id).failure_reason,
    )


def test_one_query_in_trouble_does_not_keep_the_others_of_its_batch(bench: Bench) -> None:
    late = bench.store.submit("dog", destination="http://a.test:80", give_up_after=1000)
    crashing = bench.store.submit("dog", destination="http://b.test:80")
    fine = bench.store.submit("dog", destination="http://c.test:80")
    bench.clock.advance(1)
    bench.before_post = crash_once()
    bench.work()

    assert ["FAILED", "DELIVERING", "DELIVERED"] == [
        bench.query(query.id).state for query in (late, crashing, fine)
    ]


def crash_once() -> Callable[[], None]:
    crashes = [RuntimeError("a bug")]

    def crash() -> None:
        if crashes:
            raise crashes.pop()

    return crash


def test_a_deliverer_that_raises_costs_an_attempt_and_not_the_query(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    query = bench.store.submit("dog")
    bench.before_post = crash_once()
    bench.work()
    interrupted = bench.query(query.id)
    bench.clock.advance(5)
    bench.work()

    assert ("DELIVERING", START + 5000) == (interrupted.state, interrupted.due_at)
    assert [(1, "INTERRUPTED")] == [
        (made.number, made.failure_reason) for made in interrupted.attempts
    ]
    assert "DELIVERED" == bench.query(query.id).state
    (crash,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "delivery.crashed" == crash.message
    assert crash.exc_info is not None


def test_a_query_that_crashes_every_time_is_given_up_at_the_cap(bench: Bench) -> None:
    query = bench.store.submit("dog")

    def crash(text: str) -> list[Term]:
        raise RuntimeError(text)

    bench.lemmatizer.terms = crash  # type: ignore[method-assign]
    for wait in (0, 5, 300, 86_400):
        bench.clock.advance(wait)
        bench.work()

    assert ("FAILED", "ATTEMPTS_EXHAUSTED") == (
        bench.query(query.id).state,
        bench.query(query.id).failure_reason,
    )
    assert ["INTERRUPTED"] * 3 == [made.failure_reason for made in bench.query(query.id).attempts]
    assert [] == bench.deliverer.sent


class FullDisk(Queries):
    """Refuses to settle *refusals* times."""

    def __init__(self, database: Database, refusals: int) -> None:
        super().__init__(database)
        self.refusals = refusals
        self.refused = threading.Event()

    def settle(self, *args: Any, **options: Any) -> bool:
        if self.refusals:
            self.refusals -= 1
            self.refused.set()
            msg = "the disk is full"
            raise StorageFullError(msg)
        return super().settle(*args, **options)


class NoRoom(Queries):
    """Has no room for a match *refusals* times, and for an outcome never lacks any."""

    def __init__(self, database: Database, refusals: int) -> None:
        super().__init__(database)
        self.refusals = refusals

    def record_match(self, *args: Any) -> bool:
        if self.refusals:
            self.refusals -= 1
            msg = "the disk is full"
            raise StorageFullError(msg)
        return super().record_match(*args)


def test_a_full_disk_before_the_post_costs_no_attempt(bench: Bench) -> None:
    query = bench.store.submit("dog")
    bench.use(NoRoom(bench.store.database, refusals=20))
    for _ in range(20):
        bench.work()
        bench.clock.advance(1)
    waiting = bench.query(query.id)
    bench.work()

    assert ("QUEUED", bench.clock()) == (waiting.state, waiting.due_at)
    assert ("DELIVERED", 1) == (
        bench.query(query.id).state,
        len(bench.query(query.id).attempts),
    )
    assert 1 == len(bench.deliverer.sent)


class NothingPulledIn(Queries):
    """Has no space to record that a query is due earlier."""

    def pull_in(self, *_: Any, **__: Any) -> None:
        msg = "the disk is full"
        raise StorageFullError(msg)


def test_what_was_leased_is_delivered_though_what_waits_too_long_cannot_be_changed(
    bench: Bench,
) -> None:
    query = bench.store.submit("dog")
    bench.store.submit("dog", now=START + 10**9)  # by a clock that was ahead
    bench.use(NothingPulledIn(bench.store.database))
    bench.work()

    assert "DELIVERED" == bench.query(query.id).state


def test_what_has_no_room_when_we_stop_is_left_to_the_next_start_and_costs_no_attempt(
    bench: Bench,
) -> None:
    bench.store.add_image(bytes(1000), tags={"dog": 5})
    query = bench.store.submit("dog")
    with bench.budget.hold(1_000_000):
        bench.budget.close()
        bench.work()
    waiting = bench.query(query.id)
    (lease,) = bench.store.lease(limit=1)

    assert [] == bench.deliverer.sent
    assert ("DELIVERING", START, ()) == (waiting.state, waiting.due_at, waiting.attempts)
    assert (2, 1) == (lease.attempt, lease.attempt_of_cycle)


def test_nothing_is_sent_after_the_callers_interest_has_ended_in_the_wait_for_room(
    bench: Bench,
) -> None:
    query = bench.store.submit("dog", give_up_after=60_000)
    match = bench.lemmatizer.terms

    def take_long(text: str) -> list[Term]:
        bench.clock.advance(60)
        return match(text)

    bench.lemmatizer.terms = take_long  # type: ignore[method-assign]
    bench.work()

    assert [] == bench.deliverer.sent
    assert "DEADLINE_PASSED" == bench.query(query.id).failure_reason


class Unwritable(Queries):
    """Has a bug: cannot write what one receiver answered."""

    def settle(
        self, lease: QueryLease, attempt: Attempt | None, *args: Any, **options: Any
    ) -> bool:
        if attempt is not None and attempt.excerpt:
            raise UnicodeError(attempt.excerpt)
        return super().settle(lease, attempt, *args, **options)


def test_a_lease_ends_though_its_outcome_crashes_us(bench: Bench) -> None:
    query = bench.store.submit("dog")
    bench.use(Unwritable(bench.store.database))
    bench.deliverer.outcomes = [BROKEN]
    bench.work()

    assert START + 5000 == bench.query(query.id).due_at
    assert ["INTERRUPTED"] == [made.failure_reason for made in bench.query(query.id).attempts]


def test_an_outcome_that_cannot_be_recorded_is_recorded_later_and_sent_once(bench: Bench) -> None:
    query = bench.store.submit("dog")
    bench.use(FullDisk(bench.store.database, refusals=3))
    bench.work()

    assert 1 == len(bench.deliverer.sent)
    assert ("DELIVERED", 1) == (
        bench.query(query.id).state,
        len(bench.query(query.id).attempts),
    )


def test_stopping_ends_the_wait_for_storage_and_leaves_the_query_to_the_next_start(
    bench: Bench,
) -> None:
    query = bench.store.submit("dog")
    bench.queries = full_disk = FullDisk(bench.store.database, refusals=10**9)
    bench.patience = Patience(pause=3600)
    bench.worker = bench.make_worker()
    working = threading.Thread(target=bench.work)
    working.start()
    full_disk.refused.wait()
    bench.patience.stop()
    working.join()
    bench.store.queries.void_leases(max_attempts=3, now=bench.clock())

    assert ("DELIVERING", START) == (bench.query(query.id).state, bench.query(query.id).due_at)
    assert ["INTERRUPTED"] == [made.failure_reason for made in bench.query(query.id).attempts]


@pytest.mark.parametrize(
    ("excerpt", "expected"),
    [
        (b"plain", "plain"),
        ("é\u2028".encode(), "é\u2028"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        # Cut in the middle of a character, as an excerpt of so many bytes may be.
        ("é".encode()[:1], "\ufffd"),
        (b"a\0b\0", "a\ufffdb\ufffd"),
        # Half a surrogate pair, as some encoders write it.
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        (bytes(range(256)) * 4, None),
    ],
)
def test_whatever_a_receiver_answers_can_be_kept(
    bench: Bench, excerpt: bytes, expected: str | None
) -> None:
    query = bench.store.submit("dog")
    bench.deliverer.outcomes = [Answered(status=500, retry_after=None, excerpt=excerpt, gone=False)]
    bench.work()
    (made,) = bench.query(query.id).attempts

    assert "HTTP_STATUS" == made.failure_reason
    assert expected in (made.excerpt, None)
    assert "\0" not in made.excerpt
