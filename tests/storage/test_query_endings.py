"""How queries end, against whoever works on them, and how they begin again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from storage.errors import StateConflictError
from storage.query_records import Delivered, RetryAt, Unmatched
from tests.fakes import START
from tests.storage.querying import (
    GIVEN_UP,
    MATCHED,
    UNMATCHED,
    lease_one,
    settled,
    unmatched,
)
from tests.store import attempt

if TYPE_CHECKING:
    from collections.abc import Callable

    from storage.query_records import GivenUp, Query
    from tests.store import Store


@pytest.mark.parametrize(
    "outcome",
    [Delivered(), RetryAt(due_at=START + 1), GIVEN_UP, Unmatched(matched=UNMATCHED)],
)
def test_who_works_on_a_query_that_is_cancelled_changes_nothing(
    store: Store, outcome: Delivered | RetryAt | GivenUp | Unmatched
) -> None:
    query = store.submit(on_unmatched="END")
    lease = lease_one(store)
    cancelled = store.queries.cancel(query.id, now=START + 1)

    assert ("CANCELLED", START + 1) == (cancelled.state, cancelled.ended_at)
    assert not store.queries.record_match(lease, MATCHED)
    assert not store.queries.settle(lease, attempt(1), outcome, now=START + 2)
    assert cancelled == store.queries.get(query.id)
    assert 0 == store.count("attempt")


def test_a_waiting_query_that_is_cancelled_is_not_leased(store: Store) -> None:
    query = store.submit()
    store.queries.cancel(query.id, now=START)

    assert [] == store.lease(limit=1, now=START)
    assert store.next_due_at() is None


def test_cancelling_again_changes_nothing(store: Store) -> None:
    query = store.submit()
    first = store.queries.cancel(query.id, now=START + 1)

    assert first == store.queries.cancel(query.id, now=START + 2)


@pytest.mark.parametrize(("outcome", "state"), [(Delivered(), "DELIVERED"), (GIVEN_UP, "FAILED")])
def test_a_query_that_ended_cannot_be_cancelled(
    store: Store, outcome: Delivered | GivenUp, state: str
) -> None:
    query = settled(store, outcome)
    with pytest.raises(StateConflictError) as refused:
        store.queries.cancel(query.id, now=START)

    assert state == refused.value.state
    assert query == store.queries.get(query.id)


def test_a_query_that_matches_nothing_can_end_without_an_attempt(store: Store) -> None:
    query = unmatched(store)

    assert ("UNMATCHED", START + 50, UNMATCHED, None, ()) == (
        query.state,
        query.ended_at,
        query.matched,
        query.due_at,
        query.attempts,
    )
    assert query.failure_reason is None
    assert [] == store.queries.waiting()


def test_a_query_that_ended_unmatched_cannot_be_cancelled(store: Store) -> None:
    query = unmatched(store)
    with pytest.raises(StateConflictError) as refused:
        store.queries.cancel(query.id, now=START)

    assert "UNMATCHED" == refused.value.state
    assert query == store.queries.get(query.id)


def test_redelivering_a_query_that_ended_unmatched_matches_it_again(store: Store) -> None:
    ended = unmatched(store)
    again = store.queries.redeliver(ended.id, now=START + 100)
    lease = lease_one(store, now=START + 100)

    assert ("QUEUED", START + 100, None, None) == (
        again.state,
        again.due_at,
        again.ended_at,
        again.matched,
    )
    assert (None, 1, True) == (lease.matched, lease.attempt_of_cycle, lease.ends_unmatched)
    assert store.queries.record_match(lease, MATCHED)
    assert store.queries.settle(lease, attempt(lease.attempt), Delivered(), now=START + 101)
    assert "DELIVERED" == store.queries.get(ended.id).state


def test_a_match_whose_image_is_gone_can_end_unmatched_with_its_attempts_on_record(
    store: Store,
) -> None:
    query = store.submit(on_unmatched="END")
    lease = lease_one(store)
    store.queries.record_match(lease, MATCHED)
    failed = attempt(1, failure="TIMEOUT")
    store.queries.settle(lease, failed, RetryAt(due_at=START + 1), now=START)
    lease = lease_one(store, now=START + 1)
    store.queries.settle(lease, None, Unmatched(matched=UNMATCHED), now=START + 2)
    ended = store.queries.get(query.id)

    assert ("UNMATCHED", UNMATCHED, (failed,)) == (ended.state, ended.matched, ended.attempts)


def test_a_query_under_way_cannot_be_redelivered(store: Store) -> None:
    query = store.submit()

    def refusal() -> str:
        before = store.queries.get(query.id)
        with pytest.raises(StateConflictError) as refused:
            store.queries.redeliver(query.id, now=START + 9)
        assert before == store.queries.get(query.id)
        return refused.value.state

    waiting = refusal()
    lease = lease_one(store)
    leased = refusal()
    store.queries.record_match(lease, UNMATCHED)
    delivering = refusal()

    assert ("QUEUED", "QUEUED", "DELIVERING") == (waiting, leased, delivering)


def cancel(store: Store) -> Query:
    return store.queries.cancel(store.submit().id, now=START)


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (lambda store: settled(store, Delivered()), "DELIVERING"),
        (lambda store: settled(store, GIVEN_UP), "DELIVERING"),
        # It never got as far as matching.
        (lambda store: settled(store, GIVEN_UP, matched=False), "QUEUED"),
        (cancel, "QUEUED"),
    ],
    ids=["delivered", "failed", "failed unmatched", "cancelled"],
)
def test_redelivering_starts_the_schedule_anew_and_goes_on_counting(
    store: Store, end: Callable[[Store], Query], state: str
) -> None:
    ended = end(store)
    again = store.queries.redeliver(ended.id, now=START + 100)

    assert (state, START + 100, None, None, None) == (
        again.state,
        again.due_at,
        again.ended_at,
        again.failure_reason,
        again.failure_message,
    )
    assert (ended.matched, ended.attempts) == (again.matched, again.attempts)
    lease = lease_one(store, now=START + 100)
    assert (len(ended.attempts) + 1, 1) == (lease.attempt, lease.attempt_of_cycle)


def test_a_lease_from_before_a_redelivery_settles_nothing(store: Store) -> None:
    query = store.submit()
    old = lease_one(store)
    store.queries.cancel(query.id, now=START)
    store.queries.redeliver(query.id, now=START)

    assert not store.queries.settle(old, attempt(1), Delivered(), now=START)  # while it waits

    new = lease_one(store)

    assert not store.queries.settle(old, attempt(1), Delivered(), now=START)  # while another works
    assert not store.queries.record_match(old, MATCHED)
    assert store.queries.settle(new, attempt(2), Delivered(), now=START)
    assert [2] == [made.number for made in store.queries.get(query.id).attempts]


def test_giving_up_is_counted_from_submission_and_again_from_redelivery(store: Store) -> None:
    query = store.submit(give_up_after=60_000)
    lease = lease_one(store)
    store.queries.settle(lease, attempt(1), GIVEN_UP, now=START)
    store.queries.redeliver(query.id, now=START + 500)

    assert START + 60_000 == lease.give_up_at
    assert START + 60_500 == lease_one(store, now=START + 500).give_up_at


def test_a_query_without_a_limit_is_never_given_up_by_time(store: Store) -> None:
    store.submit()

    assert lease_one(store).give_up_at is None


def test_leases_of_a_process_that_died_are_due_and_their_attempts_are_on_record(
    store: Store,
) -> None:
    waiting, working = store.submit("waits", now=START + 900), store.submit("works")
    lease = lease_one(store)
    voided = store.queries.void_leases(max_attempts=3, now=START + 250)

    assert 1 == voided
    assert waiting == store.queries.get(waiting.id)
    found = store.queries.get(working.id)
    assert ("QUEUED", START + 250) == (found.state, found.due_at)
    assert [(1, START, 250, 0, "INTERRUPTED")] == [
        (made.number, made.started_at, made.latency_ms, made.http_status, made.failure_reason)
        for made in found.attempts
    ]
    assert not store.queries.settle(lease, attempt(1), Delivered(), now=START)
    assert 0 == store.queries.void_leases(max_attempts=3, now=START + 251)


def test_a_clock_that_went_backwards_makes_no_negative_latency(store: Store) -> None:
    store.submit()
    lease = lease_one(store)
    store.queries.void_leases(max_attempts=3, now=START - 1000)

    assert [0] == [made.latency_ms for made in store.queries.get(lease.id).attempts]


def test_a_query_that_takes_the_server_down_each_time_is_given_up_at_the_cap(
    store: Store,
) -> None:
    query = store.submit()
    states = []
    for _ in range(3):
        lease_one(store)
        store.queries.void_leases(max_attempts=3, now=START)
        states.append(store.queries.get(query.id).state)
    found = store.queries.get(query.id)

    assert ["QUEUED", "QUEUED", "FAILED"] == states
    assert ("ATTEMPTS_EXHAUSTED", START) == (found.failure_reason, found.ended_at)
    assert ["INTERRUPTED"] * 3 == [made.failure_reason for made in found.attempts]


def test_the_cap_counts_from_the_redelivery(store: Store) -> None:
    query = settled(store, GIVEN_UP)
    store.queries.redeliver(query.id, now=START)
    lease_one(store)
    store.queries.void_leases(max_attempts=2, now=START)

    assert "DELIVERING" == store.queries.get(query.id).state

    lease_one(store)
    store.queries.void_leases(max_attempts=2, now=START)

    assert "FAILED" == store.queries.get(query.id).state
