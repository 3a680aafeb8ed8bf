"""Queries end when their time has come, wherever they wait."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from dispatcher.deadlines import DeadlineSweeper
from dispatcher.deliverer import Failed
from dispatcher.retry import RetryPolicy
from storage.query_records import NotMade
from tests.dispatcher.delivering import BROKEN, Bench
from tests.fakes import START
from tests.store import attempt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storage.database import Database
    from storage.query_records import Query
    from tests.store import Store

LIFETIME = RetryPolicy().lifetime
#: Long enough for a busy machine; only a failing test waits for it.
PATIENCE = 60.0


@pytest.fixture
def bench(database: Database) -> Bench:
    return Bench(database)


def sweeper(bench: Bench) -> DeadlineSweeper:
    return DeadlineSweeper(
        queries=bench.queries,
        lifetime=LIFETIME,
        clock=bench.clock,
        wall=lambda: bench.clock() + bench.step,
    )


@contextmanager
def sweeping(bench: Bench) -> Iterator[DeadlineSweeper]:
    started = sweeper(bench)
    started.start()
    try:
        yield started
    finally:
        started.stop()


def wait_for_end(store: Store, query: Query) -> Query:
    """Wait as WatchQuery does."""
    with store.queries.changes.watch(query.id) as changed:
        while (found := store.queries.get(query.id)).ended_at is None:
            assert changed.wait(PATIENCE)
            changed.clear()
    return found


def test_whatever_a_query_waits_for_it_is_given_up_on_time(bench: Bench) -> None:
    store = bench.store
    behind = [store.submit(destination="http://busy.test:80") for _ in range(500)]
    waiting = [
        store.submit(destination=name, give_up_after=5_000)
        for name in ("http://busy.test:80", "http://held.test:80", "http://open.test:80")
    ]
    assert store.breakers.hold("http://held.test:80")
    ends = sweeper(bench)

    bench.clock.advance(4.999)
    assert 0.001 == ends.sweep()
    bench.clock.advance(0.001)
    assert 0 == ends.sweep()
    assert ends.sweep() > 0

    for query in waiting:
        found = store.queries.get(query.id)
        assert ("FAILED", "DEADLINE_PASSED", START + 5_000) == (
            found.state,
            found.failure_reason,
            found.ended_at,
        )
    assert {"QUEUED"} == {store.queries.get(query.id).state for query in behind}


def test_a_backlog_behind_a_dead_receiver_ends_when_the_schedule_does(bench: Bench) -> None:
    store = bench.store
    count = 10_000
    for _ in range(count):
        store.submit(destination="http://dead.test:80")
    bench.deliverer.outcomes = [Failed(reason="CONNECTION_REFUSED", message="refused")]
    bench.work()
    bench.clock.now = START + LIFETIME - 1
    ends = sweeper(bench)
    assert ends.sweep() > 0
    assert 0 == ended(store)

    bench.clock.now += 1
    while not ends.sweep():
        pass

    assert count == ended(store)
    first = store.page(before=2, size=1, state=None)[0]
    assert ("SCHEDULE_EXPIRED", 1) == (first.failure_reason, len(first.attempts))


def ended(store: Store) -> int:
    return int(
        store.database.read(
            "SELECT count(*) FROM query WHERE state = 'FAILED'"
            " AND failure_reason = 'SCHEDULE_EXPIRED'"
        )[0][0]
    )


def test_a_redelivered_query_has_a_whole_schedule_again(bench: Bench) -> None:
    query = bench.store.submit()
    bench.clock.now += LIFETIME
    ends = sweeper(bench)
    ends.sweep()
    bench.queries.redeliver(query.id, now=bench.clock())
    bench.clock.now += LIFETIME - 1

    assert 0.001 == ends.sweep()
    assert "QUEUED" == bench.query(query.id).state


def test_a_query_that_comes_while_the_sweeper_sleeps_is_ended_on_time(bench: Bench) -> None:
    with sweeping(bench):
        query = bench.store.submit(give_up_after=1_000, now=START - 1_000)

        assert "DEADLINE_PASSED" == wait_for_end(bench.store, query).failure_reason


def test_a_query_that_is_handed_back_after_its_time_is_ended_at_once(bench: Bench) -> None:
    query = bench.store.submit(give_up_after=1_000)
    (lease,) = bench.schedule.lease(1)
    bench.clock.advance(2)
    with sweeping(bench):
        bench.queries.settle(lease, None, NotMade(due_at=bench.clock() + 60_000), now=bench.clock())

        assert "DEADLINE_PASSED" == wait_for_end(bench.store, query).failure_reason


def test_a_query_that_is_being_attempted_is_not_ended_under_its_thread(bench: Bench) -> None:
    bench.store.submit(give_up_after=1_000)
    (lease,) = bench.schedule.lease(1)
    bench.clock.advance(2)
    ends = sweeper(bench)

    assert ends.sweep() > 0
    assert not ends.is_late(grace=0)
    assert bench.queries.settle(lease, attempt(1), NotMade(due_at=0), now=bench.clock())
    assert ends.is_late(grace=0.5)


def test_an_attempt_has_no_more_time_than_its_query(bench: Bench) -> None:
    bench.store.submit(give_up_after=5_000)
    bench.deliverer.outcomes = [BROKEN]
    bench.work()

    assert [(bench.store.key(), 5.0)] == bench.deliverer.asked_by


def test_the_end_of_a_query_is_the_wall_clock_s(bench: Bench) -> None:
    query = bench.store.submit(give_up_after=5_000)
    bench.clock.advance(5)
    bench.step = 3_600_000
    sweeper(bench).sweep()

    assert START + 5_000 + 3_600_000 == bench.query(query.id).ended_at


def test_the_sweeper_outlives_storage_that_refuses(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.deadlines._STORAGE_PAUSE", 0.001)
    failed = threading.Event()
    expire = bench.queries.deadlines.expire

    def refuse_once(**options: int) -> int:
        if not failed.is_set():
            failed.set()
            raise OSError
        return expire(**options)

    monkeypatch.setattr(bench.queries.deadlines, "expire", refuse_once)
    query = bench.store.submit(give_up_after=1_000, now=START - 1_000)
    with sweeping(bench):
        assert "DEADLINE_PASSED" == wait_for_end(bench.store, query).failure_reason
