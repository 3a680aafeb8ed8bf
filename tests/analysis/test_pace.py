"""Calls begin at a rate, whoever makes them, and nobody waits in vain."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from analysis.taggers.pace import Pace

FOREVER = 1e9


class PassingClock:
    """A clock that waiting moves, and nothing else."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.waits.append(seconds)
        self.now += seconds


def begin(pace: Pace, clock: PassingClock, pauses: list[float]) -> list[float]:
    """Make a call after each of *pauses*; return when each began."""
    begun = []
    for pause in pauses:
        clock.now += pause
        assert pace.take(timeout=FOREVER) is not None
        begun.append(clock.now)
    return begun


@given(
    st.sampled_from([0.5, 3.0, 10.0]),
    st.integers(1, 5),
    st.lists(st.sampled_from([0.0, 0.01, 0.3, 5.0]), min_size=1, max_size=80),
)
def test_in_no_second_more_calls_begin_than_rate_and_burst(
    rate: float, burst: int, pauses: list[float]
) -> None:
    clock = PassingClock()
    begun = begin(Pace(rate, burst=burst, clock=clock, wait=clock.wait), clock, pauses)

    for start in begun:
        assert sum(start <= at < start + 1 - 1e-6 for at in begun) <= rate + burst


def test_a_burst_begins_at_once_and_the_rest_at_the_rate() -> None:
    clock = PassingClock()
    begin(Pace(8, burst=4, clock=clock, wait=clock.wait), clock, [0.0] * 6)

    assert [0.125, 0.125] == clock.waits


def test_after_a_pause_a_burst_may_begin_again() -> None:
    clock = PassingClock()
    pace = Pace(8, burst=2, clock=clock, wait=clock.wait)
    begin(pace, clock, [0.0] * 5)
    clock.waits.clear()
    begin(pace, clock, [60.0, 0.0])

    assert [] == clock.waits


def test_a_call_that_would_come_too_late_is_refused_and_takes_no_turn() -> None:
    clock = PassingClock()
    pace = Pace(1, burst=1, clock=clock, wait=clock.wait)
    begin(pace, clock, [0.0])

    assert [None] * 3 == [pace.take(timeout=0.5) for _ in range(3)]
    assert 1.0 == pace.take(timeout=1.0)


def test_closing_ends_a_wait_and_refuses_later_calls() -> None:
    pace = Pace(1e-6, burst=1)
    assert pace.take(timeout=FOREVER) is not None
    waited: list[float | None] = []
    waiter = threading.Thread(target=lambda: waited.append(pace.take(timeout=FOREVER)))
    waiter.start()
    pace.close()
    waiter.join(30)

    assert [None] == waited
    assert pace.take(timeout=FOREVER) is None


def test_threads_share_a_rate() -> None:
    pace = Pace(1_000, burst=1)
    with ThreadPoolExecutor(8) as pool:
        waits = list(pool.map(lambda _: pace.take(timeout=FOREVER), range(64)))

    assert None not in waits
    assert pace._next_at - pace._clock() <= 0.001 + 1e-6
