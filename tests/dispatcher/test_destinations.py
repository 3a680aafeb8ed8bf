"""Whose turn it is: rotation, limits, breakers. Time is a number and chance is fixed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.deliverer import Answered, Failed
from dispatcher.destinations import (
    FAILURES_IN_A_ROW,
    FEWEST_IN_WINDOW,
    MOST_AT_ONCE,
    Destinations,
)
from storage.breakers import Breaker
from storage.query_records import DueQueue

if TYPE_CHECKING:
    from dispatcher.deliverer import Outcome
    from storage.query_records import Turn

NOW = 1_000_000


def answered(status: int) -> Answered:
    return Answered(status=status, retry_after=None, excerpt=b"", gone=False)


GOOD = answered(204)
REFUSED = Failed(reason="CONNECTION_REFUSED", message="")
TIMEOUT = Failed(reason="TIMEOUT", message="")


class NoJitter(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def destinations(threads: int = 16) -> Destinations:
    return Destinations(threads=threads, rng=NoJitter())


def proven(*ids: int, threads: int = 16) -> Destinations:
    """Return destinations that have answered so well that each may have the most at once."""
    known = destinations(threads)
    for destination in ids:
        for _ in range(MOST_AT_ONCE):
            known.take_turns([first(destination)], free=1, now=NOW)
            known.finished(destination, GOOD, retry=False, now=NOW)
    return known


def first(destination: int, due_at: int = 0) -> DueQueue:
    return DueQueue(destination=destination, retries=False, due_at=due_at)


def test_a_destination_is_full_while_nothing_more_can_begin_before_something_finishes() -> None:
    known = destinations()
    assert not known.is_full(1)

    known.take_turns([first(1)], free=1, now=NOW)
    assert known.is_full(1)

    known.finished(1, GOOD, retry=False, now=NOW)
    assert not known.is_full(1)


def test_a_destination_with_an_open_breaker_is_not_full_for_nothing_may_ever_finish() -> None:
    known = destinations()
    for _ in range(FAILURES_IN_A_ROW):
        known.take_turns([first(1)], free=1, now=NOW)
        known.finished(1, REFUSED, retry=False, now=NOW)

    assert not known.is_full(1)


def again(destination: int, due_at: int = 0) -> DueQueue:
    return DueQueue(destination=destination, retries=True, due_at=due_at)


def counts(turns: list[Turn]) -> dict[int, int]:
    found: dict[int, int] = {}
    for turn in turns:
        found[turn.destination] = found.get(turn.destination, 0) + turn.count
    return found


def fail(
    known: Destinations, times: int, outcome: Outcome = REFUSED, at: int = NOW
) -> list[Breaker]:
    changes = []
    for _ in range(times):
        known.take_turns([first(1)], free=1, now=at)
        changes.append(known.finished(1, outcome, retry=False, now=at))
    return [change for change in changes if change is not None]


def test_destinations_take_turns_one_by_one() -> None:
    turns = proven(1, 2, 3).take_turns([first(1), first(2), first(3)], free=7, now=NOW)

    assert {1: 3, 2: 2, 3: 2} == counts(turns)


def test_whoever_had_no_turn_for_longest_comes_first() -> None:
    known = destinations()

    assert {1: 1} == counts(known.take_turns([first(1), first(2)], free=1, now=NOW))
    assert {2: 1} == counts(known.take_turns([first(1), first(2)], free=1, now=NOW))
    assert {3: 1} == counts(known.take_turns([first(1), first(2), first(3)], free=1, now=NOW))


def test_one_destination_never_has_more_than_its_limit_under_way() -> None:
    known = proven(1, threads=64)

    assert {1: MOST_AT_ONCE} == counts(known.take_turns([first(1)], free=64, now=NOW))
    assert [] == known.take_turns([first(1)], free=64, now=NOW)


def test_what_is_due_later_has_no_turn_yet() -> None:
    known = destinations()

    assert [] == known.take_turns([first(1, due_at=NOW + 1)], free=1, now=NOW)
    assert NOW + 1 == known.next_turn_at([first(1, due_at=NOW + 1)], now=NOW)


def test_of_one_that_is_new_nobody_knows_whether_it_answers_so_it_gets_few_at_first() -> None:
    known, rounds = destinations(threads=64), []
    for _ in range(5):
        turns = counts(known.take_turns([first(1)], free=64, now=NOW))[1]
        rounds.append(turns)
        for _ in range(turns):
            known.finished(1, GOOD, retry=False, now=NOW)

    assert [1, 2, 4, 8, 8] == rounds


def test_one_that_is_new_and_fails_has_to_earn_its_turns_slowly() -> None:
    known = destinations(threads=64)
    fail(known, 1)
    rounds = []
    for _ in range(4):
        turns = counts(known.take_turns([first(1)], free=64, now=NOW))[1]
        rounds.append(turns)
        for _ in range(turns):
            known.finished(1, GOOD, retry=False, now=NOW)

    assert [1, 2, 2, 3] == rounds


def test_turns_that_found_no_query_are_given_back() -> None:
    known = proven(1)
    (turn,) = known.take_turns([first(1)], free=8, now=NOW)

    known.not_begun(turn, count=8)

    assert {1: 8} == counts(known.take_turns([first(1)], free=8, now=NOW))


def test_retries_leave_a_quarter_of_the_threads_to_first_attempts() -> None:
    known = destinations(threads=16)
    everywhere = [again(destination) for destination in range(16)]

    assert 12 == sum(counts(known.take_turns(everywhere, free=16, now=NOW)).values())
    assert {99: 1} == counts(known.take_turns([*everywhere, first(99)], free=1, now=NOW))


@pytest.mark.parametrize("outcome", [TIMEOUT, answered(429), answered(503)])
def test_a_destination_that_is_overloaded_gets_half_as_many_at_once(outcome: Outcome) -> None:
    known = proven(1, threads=64)
    known.take_turns([first(1)], free=1, now=NOW)

    known.finished(1, outcome, retry=False, now=NOW)

    assert {1: MOST_AT_ONCE // 2} == counts(known.take_turns([first(1)], free=64, now=NOW))


def test_the_limit_grows_back_with_every_answer() -> None:
    known = destinations(threads=64)
    fail(known, 2, TIMEOUT)

    for _ in range(100):
        known.take_turns([first(1)], free=1, now=NOW)
        known.finished(1, GOOD, retry=False, now=NOW)

    assert {1: MOST_AT_ONCE} == counts(known.take_turns([first(1)], free=64, now=NOW))


def test_failures_in_a_row_open_the_breaker_and_nobody_gets_a_turn() -> None:
    known = destinations()

    assert [] == fail(known, FAILURES_IN_A_ROW - 1)
    (opened,) = fail(known, 1)

    assert Breaker(destination=1, state="OPEN", probe_at=NOW + 5_000, openings=1) == opened
    assert [] == known.take_turns([first(1)], free=16, now=NOW + 4_999)
    assert NOW + 5_000 == known.next_turn_at([first(1)], now=NOW)


def test_half_of_many_failing_opens_the_breaker_though_never_in_a_row() -> None:
    known = destinations()
    changes = []
    for attempt in range(FEWEST_IN_WINDOW):
        outcome = REFUSED if attempt % 2 else GOOD
        known.take_turns([first(1)], free=1, now=NOW)
        changes.append(known.finished(1, outcome, retry=False, now=NOW))

    assert [None] * (FEWEST_IN_WINDOW - 1) == changes[:-1]
    assert changes[-1] is not None


def test_old_failures_do_not_open_the_breaker() -> None:
    known = destinations()
    for attempt in range(FEWEST_IN_WINDOW):
        known.take_turns([first(1)], free=1, now=NOW)
        outcome = REFUSED if attempt % 2 else GOOD
        change = known.finished(1, outcome, retry=False, now=NOW + attempt * 61_000)

        assert change is None


@pytest.mark.parametrize("outcome", [answered(404), answered(302), answered(410)])
def test_an_answer_against_one_query_is_none_against_the_destination(outcome: Outcome) -> None:
    assert [] == fail(destinations(), 50, outcome)


def test_an_open_breaker_is_probed_by_one_query_only() -> None:
    known = destinations()
    fail(known, FAILURES_IN_A_ROW)

    assert {1: 1} == counts(known.take_turns([first(1)], free=16, now=NOW + 5_000))
    assert [] == known.take_turns([first(1)], free=16, now=NOW + 5_000)
    assert known.next_turn_at([first(1)], now=NOW + 5_000) is None


def test_a_probe_that_fails_doubles_the_wait_up_to_five_minutes() -> None:
    known = destinations()
    fail(known, FAILURES_IN_A_ROW)
    now, waits = NOW + 5_000, []
    for _ in range(8):
        known.take_turns([first(1)], free=1, now=now)
        change = known.finished(1, REFUSED, retry=False, now=now)
        assert change is not None
        waits.append((change.probe_at - now) // 1000)
        now = change.probe_at

    assert [10, 20, 40, 80, 160, 300, 300, 300] == waits


def test_a_probe_that_gets_through_lets_more_and_more_follow_until_all_is_well() -> None:
    known = destinations(threads=64)
    fail(known, FAILURES_IN_A_ROW)
    now, cohorts, states = NOW + 5_000, [], []
    for _ in range(5):
        turns = counts(known.take_turns([first(1)], free=64, now=now))[1]
        cohorts.append(turns)
        for _ in range(turns):
            change = known.finished(1, GOOD, retry=False, now=now)
            states += [change.state] if change else []

    assert [1, 1, 2, 4, 8] == cohorts
    assert ["RECOVERING", "CLOSED"] == states


def test_a_failure_while_recovering_opens_it_again_for_longer() -> None:
    known = destinations()
    fail(known, FAILURES_IN_A_ROW)
    known.take_turns([first(1)], free=1, now=NOW + 5_000)
    known.finished(1, GOOD, retry=False, now=NOW + 5_000)

    (opened,) = fail(known, 1, at=NOW + 5_000)

    assert ("OPEN", 2) == (opened.state, opened.openings)


def test_a_breaker_outlives_a_restart() -> None:
    known = destinations()
    known.restore([Breaker(destination=1, state="OPEN", probe_at=NOW + 60_000, openings=4)])

    assert [] == known.take_turns([first(1)], free=16, now=NOW)
    assert {1: 1} == counts(known.take_turns([first(1)], free=16, now=NOW + 60_000))


def test_what_an_operator_closed_is_open_to_all_again() -> None:
    known = destinations()
    fail(known, FAILURES_IN_A_ROW)

    known.obey([])

    assert {1: 1} == counts(known.take_turns([first(1)], free=16, now=NOW))


HELD = Breaker(destination=1, state="HELD", probe_at=0, openings=0)


def test_what_an_operator_holds_gets_no_turn_however_long_until_it_is_closed() -> None:
    known = destinations()
    known.obey([HELD])

    assert [] == known.take_turns([first(1)], free=16, now=NOW + 10**9)
    assert known.next_turn_at([first(1)], now=NOW) is None
    assert {2: 1} == counts(known.take_turns([first(1), first(2)], free=16, now=NOW))

    known.obey([])

    assert not known.any_held
    assert {1: 1} == counts(known.take_turns([first(1)], free=16, now=NOW))


@pytest.mark.parametrize("outcome", [GOOD, TIMEOUT])
def test_what_was_under_way_when_an_operator_held_it_changes_nothing(outcome: Outcome) -> None:
    known = proven(1)
    known.take_turns([first(1)], free=8, now=NOW)
    known.obey([HELD])

    assert [None] * 8 == [known.finished(1, outcome, retry=False, now=NOW) for _ in range(8)]
    assert [] == known.take_turns([first(1)], free=16, now=NOW + 10**9)


def test_an_attempt_that_was_not_made_teaches_nothing() -> None:
    known = destinations()
    for _ in range(50):
        known.take_turns([first(1)], free=1, now=NOW)

        assert known.finished(1, None, retry=False, now=NOW) is None


OUTCOMES = st.sampled_from([GOOD, REFUSED, TIMEOUT, answered(503), answered(404), None])


@given(
    steps=st.lists(
        st.tuples(st.integers(1, 4), st.booleans(), st.integers(0, 10_000), OUTCOMES), max_size=200
    )
)
def test_no_limit_is_ever_exceeded_and_nobody_is_forgotten(
    steps: list[tuple[int, bool, int, Outcome | None]],
) -> None:
    threads = 16
    known, now = destinations(threads), NOW
    under_way: list[tuple[int, bool]] = []
    waiting = [make(destination) for destination in range(1, 5) for make in (first, again)]
    for destination, retries, later, outcome in steps:
        now += later
        for turn in known.take_turns(waiting, free=threads - len(under_way), now=now):
            under_way += [(turn.destination, turn.retries)] * turn.count

        assert len(under_way) <= threads
        assert sum(retry for _, retry in under_way) <= threads * 3 // 4
        for each in range(1, 5):
            assert sum(busy == each for busy, _ in under_way) <= MOST_AT_ONCE
        if (destination, retries) in under_way:
            under_way.remove((destination, retries))
            known.finished(destination, outcome, retry=retries, now=now)
    for busy, retry in under_way:
        known.finished(busy, GOOD, retry=retry, now=now)

    # However it went, every destination gets a turn again within the longest wait.
    turns = known.take_turns([first(each) for each in range(1, 5)], free=16, now=now + 400_000)
    assert {1, 2, 3, 4} == set(counts(turns))
