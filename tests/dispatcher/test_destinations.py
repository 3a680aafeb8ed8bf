"""Whose turn it is at destinations: rotation, limits, breakers. Time is a number, chance is fixed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dispatcher.breaker import FAILURES_IN_A_ROW, MAX_CONCURRENCY
from dispatcher.evidence import MIN_ATTEMPTS
from storage.breakers import Breaker
from tests.dispatcher.turns import (
    GOOD,
    NOW,
    REFUSED,
    TIMEOUT,
    Endless,
    answered,
    proven,
    queue,
)

if TYPE_CHECKING:
    from dispatcher.deliverer import Outcome


def test_a_destination_is_full_while_nothing_more_can_begin_before_something_finishes() -> None:
    endless = Endless()
    assert not endless.known.is_full(1)

    endless.waits(queue(1))
    endless.take(1)
    assert endless.known.is_full(1)

    endless.finish(1)
    assert not endless.known.is_full(1)


def test_a_destination_with_an_open_breaker_is_not_full_for_nothing_may_ever_finish() -> None:
    endless = Endless()
    endless.fail(FAILURES_IN_A_ROW)

    assert not endless.known.is_full(1)


def test_destinations_take_turns_one_by_one() -> None:
    endless = proven(1, 2, 3)
    endless.waits(queue(1), queue(2), queue(3))

    assert {1: 3, 2: 2, 3: 2} == endless.counts(7)


def test_a_destination_that_had_no_turn_for_longest_comes_first() -> None:
    endless = Endless()
    endless.waits(queue(1), queue(2))

    assert {1: 1} == endless.counts(1)
    assert {2: 1} == endless.counts(1)
    endless.waits(queue(3))
    assert {3: 1} == endless.counts(1)


def test_one_destination_never_has_more_than_its_limit_in_flight() -> None:
    endless = proven(1, threads=64)
    endless.waits(queue(1))

    assert {1: MAX_CONCURRENCY} == endless.counts()
    assert {} == endless.counts()


def test_what_is_due_later_has_no_turn_yet() -> None:
    endless = Endless()
    endless.waits(queue(1, due_at=NOW + 1))

    assert {} == endless.counts(1)
    assert NOW + 1 == endless.known.next_turn_at(now=NOW)
    assert {1: 1} == endless.counts(1, now=NOW + 1)


def test_of_a_new_destination_little_is_sent_until_it_answers() -> None:
    endless, rounds = Endless(threads=64), []
    endless.waits(queue(1))
    for _ in range(5):
        turns = endless.counts()[1]
        rounds.append(turns)
        for _ in range(turns):
            endless.finish(1)

    assert [1, 2, 4, 8, 8] == rounds


def test_one_that_is_new_and_fails_has_to_earn_its_turns_slowly() -> None:
    endless, rounds = Endless(threads=64), []
    endless.fail(1)
    for _ in range(4):
        turns = endless.counts()[1]
        rounds.append(turns)
        for _ in range(turns):
            endless.finish(1)

    assert [1, 2, 2, 3] == rounds


def test_turns_that_found_no_query_are_given_back() -> None:
    endless = proven(1)
    endless.waits(queue(1))
    (turn,) = endless.known.take_turns(free=8, now=NOW)

    endless.known.leased(turn, begun=0, next_due_at=NOW, now=NOW)

    assert {1: 8} == endless.counts(8)


def test_a_query_that_comes_while_its_queue_is_leased_from_is_not_forgotten() -> None:
    endless = proven(1)
    endless.waits(queue(1))
    (turn,) = endless.known.take_turns(free=1, now=NOW)
    endless.waits(queue(1))

    endless.known.leased(turn, begun=1, next_due_at=None, now=NOW)

    assert {1: 1} == endless.counts(1)


@pytest.mark.parametrize("outcome", [TIMEOUT, answered(429), answered(503)])
def test_a_destination_that_is_overloaded_gets_half_as_many_at_once(outcome: Outcome) -> None:
    endless = proven(1, threads=64)
    endless.try_one(1, outcome)

    assert {1: MAX_CONCURRENCY // 2} == endless.counts()


def test_the_limit_grows_back_with_every_answer() -> None:
    endless = Endless(threads=64)
    endless.fail(2, TIMEOUT)

    for _ in range(100):
        endless.try_one(1, GOOD)

    assert {1: MAX_CONCURRENCY} == endless.counts()


def test_failures_in_a_row_open_the_breaker_and_nobody_gets_a_turn() -> None:
    endless = Endless()

    assert [] == endless.fail(FAILURES_IN_A_ROW - 1)
    (opened,) = endless.fail(1)

    assert Breaker(destination=1, state="OPEN", probe_at=NOW + 5_000, openings=1) == opened
    assert {} == endless.counts(now=NOW + 4_999)
    assert NOW + 5_000 == endless.known.next_turn_at(now=NOW)


def test_half_of_many_failing_opens_the_breaker_though_never_in_a_row() -> None:
    endless = Endless()
    changes = [
        endless.try_one(1, REFUSED if number % 2 else GOOD) for number in range(MIN_ATTEMPTS)
    ]

    assert [None] * (MIN_ATTEMPTS - 1) == changes[:-1]
    assert changes[-1] is not None


def test_old_failures_do_not_open_the_breaker() -> None:
    endless = Endless()
    for number in range(MIN_ATTEMPTS):
        outcome = REFUSED if number % 2 else GOOD

        assert endless.try_one(1, outcome, now=NOW + number * 61_000) is None


@pytest.mark.parametrize(
    "outcome", [answered(404), answered(302), answered(410), answered(500), answered(502)]
)
def test_an_answer_against_a_query_or_its_url_is_none_against_the_destination(
    outcome: Outcome,
) -> None:
    assert [] == Endless().fail(50, outcome)


def test_an_open_breaker_is_probed_by_one_query_only() -> None:
    endless = Endless()
    endless.fail(FAILURES_IN_A_ROW)

    assert {1: 1} == endless.counts(now=NOW + 5_000)
    assert {} == endless.counts(now=NOW + 5_000)
    assert endless.known.next_turn_at(now=NOW + 5_000) is None


def test_a_probe_that_fails_doubles_the_wait_up_to_five_minutes() -> None:
    endless = Endless()
    endless.fail(FAILURES_IN_A_ROW)
    now, waits = NOW + 5_000, []
    for _ in range(8):
        change = endless.try_one(1, REFUSED, now=now)
        assert change is not None
        waits.append((change.probe_at - now) // 1000)
        now = change.probe_at

    assert [10, 20, 40, 80, 160, 300, 300, 300] == waits


def test_a_probe_that_gets_through_lets_more_and_more_follow_until_all_is_well() -> None:
    endless = Endless(threads=64)
    endless.fail(FAILURES_IN_A_ROW)
    now, cohorts, states = NOW + 5_000, [], []
    for _ in range(5):
        turns = endless.counts(now=now)[1]
        cohorts.append(turns)
        for _ in range(turns):
            change = endless.finish(1, now=now)
            states += [change.state] if change else []

    assert [1, 1, 2, 4, 8] == cohorts
    assert ["RECOVERING", "CLOSED"] == states


def test_a_failure_while_recovering_opens_it_again_for_longer() -> None:
    endless = Endless()
    endless.fail(FAILURES_IN_A_ROW)
    endless.try_one(1, GOOD, now=NOW + 5_000)

    (opened,) = endless.fail(1, now=NOW + 5_000)

    assert ("OPEN", 2) == (opened.state, opened.openings)


def test_a_breaker_outlives_a_restart() -> None:
    endless = Endless()
    breaker = Breaker(destination=1, state="OPEN", probe_at=NOW + 60_000, openings=4)
    endless.known.restore([breaker], now=NOW)
    endless.waits(queue(1))

    assert {} == endless.counts()
    assert {1: 1} == endless.counts(now=NOW + 60_000)


def test_a_breaker_that_was_stored_by_a_clock_that_was_ahead_waits_no_longer_than_any() -> None:
    endless = Endless()
    breaker = Breaker(destination=1, state="OPEN", probe_at=NOW + 86_400_000, openings=1)
    endless.known.restore([breaker], now=NOW)
    endless.waits(queue(1))

    assert endless.known.next_turn_at(now=NOW) == NOW + 360_000


def closed() -> Breaker:
    return Breaker(destination=1, state="CLOSED", probe_at=0, openings=0)


HELD = Breaker(destination=1, state="HELD", probe_at=0, openings=0)


def test_what_an_operator_closed_is_open_to_all_again() -> None:
    endless = Endless()
    endless.fail(FAILURES_IN_A_ROW)

    endless.known.restore([closed()], now=NOW)

    assert {1: 1} == endless.counts()


def test_what_an_operator_holds_gets_no_turn_however_long_until_it_is_closed() -> None:
    endless = Endless()
    endless.waits(queue(1))
    endless.known.restore([HELD], now=NOW)

    assert {} == endless.counts(now=NOW + 10**9)
    assert endless.known.next_turn_at(now=NOW) is None
    endless.waits(queue(2))
    assert {2: 1} == endless.counts()

    endless.known.restore([closed()], now=NOW)

    assert not endless.known.any_held
    assert {1: 1} == endless.counts()


@pytest.mark.parametrize("outcome", [GOOD, TIMEOUT])
def test_what_was_in_flight_when_an_operator_held_it_changes_nothing(outcome: Outcome) -> None:
    endless = proven(1)
    endless.waits(queue(1))
    endless.take(8)
    endless.known.restore([HELD], now=NOW)

    assert [None] * 8 == [endless.finish(1, outcome) for _ in range(8)]
    assert {} == endless.counts(now=NOW + 10**9)


def test_an_attempt_that_was_not_made_teaches_nothing() -> None:
    endless = Endless()
    for _ in range(50):
        assert endless.try_one(1, None) is None
