"""What one key queues or calls costs another key at most its share; and what turns cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher import destinations
from dispatcher.breaker import FAILURES_IN_A_ROW, MAX_CONCURRENCY
from dispatcher.destinations import UNPROVEN_EVERY, Destinations
from dispatcher.rotation import Rotation, Turns
from dispatcher.shares import Shares
from dispatcher.timers import Timers
from storage.query_records import url_mark
from tests.dispatcher.turns import (
    GOOD,
    NOW,
    REFUSED,
    TIMEOUT,
    Endless,
    answered,
    lease,
    proven,
    queue,
)

if TYPE_CHECKING:
    from dispatcher.deliverer import Outcome

THREADS = 64


def test_turns_go_round_keys_first_however_many_destinations_one_has() -> None:
    endless = proven(*range(1, 101), threads=THREADS)
    endless.waits(*(queue(each, key="many") for each in range(1, 100)), queue(100, key="few"))

    assert {"many": 7, "few": 7} == endless.keys(14)


def test_keys_take_turns_inside_a_destination() -> None:
    endless = proven(1, threads=THREADS)
    endless.waits(queue(1, key="a"))
    assert {"a": MAX_CONCURRENCY} == endless.keys()
    endless.waits(queue(1, key="b"))

    for _ in range(3):
        endless.finish(1, key="a")
        assert {"b": 1} == endless.keys()
        endless.finish(1, key="a")
        assert {"a": 1} == endless.keys()


def test_a_key_whose_destinations_all_hang_leaves_threads_for_every_other() -> None:
    endless = Endless(THREADS)
    endless.waits(*(queue(each, key="hangs") for each in range(1, 10_001)))
    held = endless.keys()["hangs"]
    assert held <= THREADS * 3 // 4

    for number, key in enumerate(("b", "c", "d"), 1):
        endless.waits(queue(20_000 + number, key=key))
        assert {key: 1} == endless.keys()
    for number in range(1, held + 1):
        endless.finish(number, TIMEOUT, key="hangs")

    assert endless.keys()["hangs"] <= THREADS // 8


def test_destinations_that_answer_get_the_threads_back_that_others_lost_by_hanging() -> None:
    endless = Endless(THREADS)
    endless.waits(*(queue(each) for each in range(1, 1_001)))
    begun = list(endless.counts())
    assert THREADS // 2 < len(begun)
    for destination in begun:
        endless.finish(destination, TIMEOUT)
    sizes = []
    for _ in range(20):
        turns = endless.counts()
        sizes.append(sum(turns.values()))
        for destination, count in turns.items():
            for _ in range(count):
                endless.finish(destination, GOOD)

    assert sizes[0] <= THREADS // 8
    assert THREADS // 2 < max(sizes)


def test_a_key_whose_proven_destinations_begin_to_hang_leaves_threads_for_another() -> None:
    endless = proven(*range(1, 31), threads=THREADS)
    endless.waits(*(queue(each, key="hangs") for each in range(1, 30)))
    assert endless.keys()["hangs"] < THREADS
    endless.waits(queue(30, key="b"))

    assert {"b": 1} == endless.keys(1)


def test_destinations_that_refuse_take_few_turns_from_those_that_answer() -> None:
    endless = proven(*range(1, 21), threads=THREADS)
    endless.waits(*(queue(each) for each in range(1, 10_021)))
    turns: Counter[bool] = Counter()
    for _ in range(50 * UNPROVEN_EVERY):
        (destination,) = endless.counts(1)
        turns[destination <= 20] += 1
        endless.finish(destination, GOOD if destination <= 20 else REFUSED)

    assert 50 == turns[False]


def test_many_new_destinations_do_not_keep_one_of_the_same_key_from_its_turns() -> None:
    endless = Endless(THREADS)
    endless.waits(queue(1))
    assert {1: 1} == endless.counts(1)
    endless.finish(1, REFUSED)
    for number in range(2, 50):
        endless.waits(queue(number))  # always one more that never had a turn
        found = endless.counts(1)
        endless.finish(next(iter(found)), REFUSED)
        if found == {1: 1}:
            break

    assert number <= 4


def test_retries_leave_a_quarter_of_the_threads_to_first_attempts() -> None:
    endless = proven(*range(20), threads=16)
    endless.waits(*(queue(each, retries=True) for each in range(19)))

    assert 12 == sum(endless.counts().values())
    endless.waits(queue(19))
    assert {19: 1} == endless.counts(1)


def test_until_texts_can_be_matched_only_retries_have_turns() -> None:
    endless = Endless()
    endless.waits(queue(1), queue(2, retries=True))
    (turn,) = endless.known.take_turns(free=16, now=NOW, first=False)

    assert 2 == turn.destination
    assert endless.known.next_turn_at(now=NOW, first=False) is None


@pytest.mark.parametrize("outcome", [answered(429), answered(503), TIMEOUT, REFUSED])
def test_what_speaks_against_the_host_opens_its_breaker_for_every_key(outcome: Outcome) -> None:
    endless = Endless()
    assert 1 == len(endless.fail(FAILURES_IN_A_ROW, outcome))
    endless.waits(queue(1, key="b"))

    assert {} == endless.keys()


def test_a_timeout_that_a_query_s_own_deadline_caused_does_not_speak_against_the_host() -> None:
    assert [] == Endless().fail(50, replace(TIMEOUT, cut_short=True))


def test_a_broken_path_does_not_keep_a_recovering_host_from_being_probed_by_it() -> None:
    endless = Endless()
    endless.fail(FAILURES_IN_A_ROW)
    change = endless.try_one(1, answered(500), now=NOW + 5_000)

    assert change is not None  # there is a host, and it speaks HTTP
    assert "RECOVERING" == change.state


def test_a_probe_goes_to_a_key_that_has_not_failed() -> None:
    endless = Endless()
    endless.fail(FAILURES_IN_A_ROW)
    endless.waits(queue(1, key="b"))
    assert {} == endless.keys()

    assert {"b": 1} == endless.keys(now=NOW + 5_000)


def test_a_probe_avoids_urls_that_failed() -> None:
    endless = Endless()
    for number in range(FAILURES_IN_A_ROW):
        endless.waits(queue(1))
        endless.take(1)
        endless.finish(1, TIMEOUT, url=f"http://r.test/{number % 2}")
    (turn,) = endless.take(now=NOW + 5_000)

    assert {url_mark("a", "http://r.test/0"), url_mark("a", "http://r.test/1")} <= turn.avoid
    assert url_mark("a", "http://r.test/2") not in turn.avoid
    assert url_mark("b", "http://r.test/1") not in turn.avoid


def test_destinations_for_which_nothing_waits_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(destinations, "MAX_IDLE_DESTINATIONS", 5)
    endless = proven(*range(100))

    assert 5 == len(endless.known)


@given(st.integers(1, 100), st.floats(0.5, 10), st.lists(st.sampled_from("abcdef")))
def test_an_owner_without_a_place_gets_one_and_none_gets_more_than_its_ratio(
    places: int, ratio: float, owners: list[str]
) -> None:
    shares, taken = Shares(places, ratio=ratio), Counter[str]()
    for owner in owners:
        free = places - taken.total()
        assert free == shares.free
        allowed = shares.allows(owner)
        assert allowed == (free > 0 and (not taken[owner] or taken[owner] < ratio * free))
        if allowed:
            shares.take(owner)
            taken[owner] += 1
        else:
            for each, count in taken.items():
                shares.give_back(each, count)
            taken.clear()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50), st.booleans())))
def test_a_timer_rings_at_the_earliest_time_that_was_asked_for_and_once(
    steps: list[tuple[int, int, bool]],
) -> None:
    timers: Timers[int] = Timers()
    expected: dict[int, int] = {}
    for waiter, at, ring in steps:
        timers.wake(waiter, at)
        expected[waiter] = min(at, expected.get(waiter, at))
        assert min(expected.values()) == timers.next_at()
        while ring and (rung := timers.pop(at)) is not None:
            assert expected.pop(rung) <= at
        assert not ring or all(each > at for each in expected.values())
    assert len(expected) == len(timers)


def test_superseded_times_do_not_pile_up() -> None:
    timers: Timers[int] = Timers()
    timers.wake(1, 10**6)
    for at in range(10**4):
        timers.wake(2, at)
        timers.pop(at)
        timers.wake(3, 10**5 - at)

    assert len(timers._heap) < 200


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), max_size=30))
def test_every_flow_has_a_turn_within_a_round_of_twice_as_many(
    flows: list[tuple[str, int]],
) -> None:
    turns = Turns()
    rotation: Rotation[tuple[str, int]] = Rotation(turns)
    for flow in flows:
        rotation.add(flow[0], flow, was_served=False)
    last: dict[tuple[str, int], int] = {}
    for _ in range(len(flows) * 6):
        key = next(rotation.keys_in_turn())
        served = rotation.first(key)
        assert served is not None
        turns.count(key)
        rotation.served(key, served)
        rotation.passed(key)
        last[served] = turns.number
    keys = {key for key, _ in flows}
    most = max((len({n for k, n in flows if k == key}) for key in keys), default=0)

    assert set(flows) == set(last)
    assert all(turns.number - at < 2 * most * len(keys) for at in last.values())


class Counting(Destinations):
    """Counts how many flows are looked at."""

    looks = 0

    def _next_of(self, **options: bool | int) -> object:  # type: ignore[override]
        self.looks += 1
        return super()._next_of(**options)  # type: ignore[arg-type]

    def _place(self, *arguments: object) -> None:
        self.looks += 1
        super()._place(*arguments)  # type: ignore[arg-type]

    def _park(self, *arguments: object) -> None:
        self.looks += 1
        super()._park(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [20, 20_000])
def test_the_cost_of_a_turn_does_not_grow_with_the_number_of_destinations(count: int) -> None:
    known = Counting(threads=THREADS)
    known.waits((queue(each) for each in range(count)), now=NOW)
    known.waits((queue(each, retries=True, due_at=NOW + 10**6) for each in range(count)), now=NOW)
    known.looks = turns = 0
    for _ in range(100):
        known.next_turn_at(now=NOW)
        for turn in known.take_turns(free=1, now=NOW):
            turns += 1
            known.leased(turn, begun=1, next_due_at=NOW, now=NOW)
            known.finished(lease(turn.destination), GOOD, now=NOW)

    assert 100 == turns
    assert known.looks <= 20 * turns


OUTCOMES = st.sampled_from([GOOD, REFUSED, TIMEOUT, answered(503), answered(500), None])


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.integers(1, 4),
            st.booleans(),
            st.integers(0, 10_000),
            OUTCOMES,
        ),
        max_size=200,
    )
)
def test_no_limit_is_ever_exceeded_and_nobody_is_forgotten(
    steps: list[tuple[str, int, bool, int, Outcome | None]],
) -> None:
    threads = 16
    endless, now = Endless(threads), NOW
    in_flight: list[tuple[str, int, bool]] = []
    everything = [
        queue(each, key=key, retries=retries)
        for key in "ab"
        for each in range(1, 5)
        for retries in (False, True)
    ]
    endless.waits(*everything)
    for key, destination, retries, later, outcome in steps:
        now += later
        for turn in endless.take(threads - len(in_flight), now=now):
            in_flight += [(turn.key_id, turn.destination, turn.retries)] * turn.count

        assert len(in_flight) <= threads
        assert sum(retry for *_, retry in in_flight) <= threads * 3 // 4
        for each in range(1, 5):
            assert sum(busy == each for _, busy, _ in in_flight) <= MAX_CONCURRENCY
        if (key, destination, retries) in in_flight:
            in_flight.remove((key, destination, retries))
            endless.finish(destination, outcome, key=key, retry=retries, now=now)
    for key, busy, retry in in_flight:
        endless.finish(busy, GOOD, key=key, retry=retry, now=now)

    # However it went, every queue gets a turn again within the longest wait.
    served: set[tuple[str, int, bool]] = set()
    for _ in range(100):
        now += 400_000
        for turn in endless.take(threads, now=now):
            served.add((turn.key_id, turn.destination, turn.retries))
            for _ in range(turn.count):
                endless.finish(turn.destination, GOOD, key=turn.key_id, retry=turn.retries, now=now)
    assert {(each.key_id, each.destination, each.retries) for each in everything} == served
