"""The lane with work that lies in memory: when it leases, how much, and how it stops."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from dispatcher.lane import Lane
from storage.errors import StorageBusyError
from tests.fakes import START, FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Long enough for a busy machine; only a failing test waits for it.
PATIENCE = 60.0


class Work:
    """Work that is due at times, and a diary of who looked, leased and did it."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.condition = threading.Condition()
        self.waiting: list[tuple[int, str]] = []
        self.looks = 0
        self.limits: list[int] = []
        self.batches: list[list[str]] = []
        #: Exceptions that storage is to raise, and what processing does besides the diary.
        self.look_fails: list[Exception] = []
        self.lease_fails: list[Exception] = []
        self.during: Callable[[str], None] = lambda _: None

    def add(self, name: str, *, due_in: int = 0) -> None:
        """Add work that is due so many milliseconds from now."""
        with self.condition:
            self.waiting.append((self.clock() + due_in, name))

    def next_due_at(self) -> int | None:
        with self.condition:
            self.looks += 1
            self.condition.notify_all()
            if self.look_fails:
                raise self.look_fails.pop()
            return min((due_at for due_at, _ in self.waiting), default=None)

    def lease(self, limit: int) -> list[str]:
        with self.condition:
            if self.lease_fails:
                raise self.lease_fails.pop()
            self.limits.append(limit)
            due = [item for item in self.waiting if item[0] <= self.clock()][:limit]
            self.waiting = [item for item in self.waiting if item not in due]
            return [name for _, name in due]

    def process(self, leases: Sequence[str]) -> None:
        with self.condition:
            self.batches.append(list(leases))
            self.condition.notify_all()
        for name in leases:
            self.during(name)

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Wait until *happened*, which is asked after each look and each start of work."""
        with self.condition:
            assert self.condition.wait_for(happened, PATIENCE)

    def done(self) -> list[str]:
        with self.condition:
            return [name for batch in self.batches for name in batch]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def work(clock: FakeClock) -> Work:
    return Work(clock)


@pytest.fixture
def make(work: Work, clock: FakeClock) -> Iterator[Callable[..., Lane[str]]]:
    """Make lanes over *work*; they are drained at the end."""
    lanes: list[Lane[str]] = []

    def make(threads: int = 1, batch_size: int = 1) -> Lane[str]:
        lanes.append(
            Lane(
                "test",
                threads=threads,
                lease=work.lease,
                next_due_at=work.next_due_at,
                process=work.process,
                clock=clock,
                batch_size=batch_size,
                storage_pause=0.0,
            )
        )
        return lanes[-1]

    yield make
    for lane in lanes:
        lane.drain()


def look_again(lane: Lane[str], work: Work) -> None:
    """Return when the lane has looked for work once more, and acted on what it saw."""
    for _ in range(2):  # the second look comes after what followed from the first
        seen = work.looks
        lane.wake()
        work.wait_for(lambda seen=seen: work.looks > seen)  # type: ignore[misc]


def test_work_that_waits_at_the_start_is_done(work: Work, make: Callable[..., Lane[str]]) -> None:
    for name in "abc":
        work.add(name)
    make().start()
    work.wait_for(lambda: len(work.batches) == 3)

    assert [["a"], ["b"], ["c"]] == work.batches


def test_a_sleeping_lane_wakes_at_once(work: Work, make: Callable[..., Lane[str]]) -> None:
    lane = make()
    lane.start()
    work.wait_for(lambda: work.looks == 1)  # nothing is due, ever
    work.add("a")
    lane.wake()
    work.wait_for(lambda: work.batches == [["a"]])

    assert ["a"] == work.done()


def test_a_lane_without_work_rests(work: Work, make: Callable[..., Lane[str]]) -> None:
    lane = make()
    work.add("a")
    lane.start()
    work.wait_for(lambda: work.batches == [["a"]])
    look_again(lane, work)
    looks = work.looks
    with work.condition:
        looked = work.condition.wait_for(lambda: work.looks > looks + 1, timeout=0.1)

    assert not looked


def test_a_wake_while_the_lane_looks_elsewhere_is_not_lost(
    work: Work, make: Callable[..., Lane[str]]
) -> None:
    lane = make()
    look = work.next_due_at

    def look_and_be_woken() -> int | None:
        due_at = look()
        if work.looks == 1:  # new work, just after the look
            work.add("a")
            lane.wake()
        return due_at

    lane._next_due_at = look_and_be_woken
    lane.start()
    work.wait_for(lambda: work.batches == [["a"]])

    assert ["a"] == work.done()


def test_work_is_not_leased_before_it_is_due(
    work: Work, clock: FakeClock, make: Callable[..., Lane[str]]
) -> None:
    lane = make()
    work.add("later", due_in=5000)
    lane.start()
    look_again(lane, work)
    clock.advance(4.999)
    look_again(lane, work)

    assert [] == work.limits

    clock.advance(0.001)
    lane.wake()
    work.wait_for(lambda: work.batches == [["later"]])

    assert [1] == work.limits


def test_a_due_time_is_kept_without_being_woken(
    work: Work, clock: FakeClock, make: Callable[..., Lane[str]]
) -> None:
    lane = make()
    # So short a sleep that the wall clock need not be waited for.
    work.add("soon", due_in=1)

    def look_and_let_time_pass() -> int | None:
        due_at = work.next_due_at()
        if work.looks == 2:
            clock.advance(0.001)
        return due_at

    lane._next_due_at = look_and_let_time_pass
    lane.start()
    work.wait_for(lambda: work.batches == [["soon"]])

    assert work.looks >= 2


def test_work_that_becomes_due_through_other_work_is_noticed(
    work: Work, make: Callable[..., Lane[str]]
) -> None:
    lane = make(threads=2)
    asleep = threading.Event()

    def settle(name: str) -> None:
        if name == "first":
            asleep.wait(PATIENCE)
            work.add("retry")

    work.during = settle
    work.add("far away", due_in=3_600_000)
    work.add("first")
    lane.start()
    work.wait_for(lambda: work.batches == [["first"]])
    look_again(lane, work)  # it now sleeps until "far away"
    asleep.set()
    work.wait_for(lambda: len(work.batches) == 2)

    assert ["first", "retry"] == work.done()


def test_no_more_is_leased_than_free_threads_will_start_on(
    work: Work, make: Callable[..., Lane[str]]
) -> None:
    release = {name: threading.Event() for name in "abcdefg"}
    work.during = lambda name: assert_set(release[name])
    for name in "abc":
        work.add(name)
    lane = make(threads=2, batch_size=3)
    lane.start()
    work.wait_for(lambda: len(work.batches) == 1)
    for name in "defg":
        work.add(name)
    lane.wake()
    work.wait_for(lambda: len(work.batches) == 2)

    # Both threads are busy, so "g" stays with storage.
    assert [6, 3] == work.limits
    assert [["a", "b", "c"], ["d", "e", "f"]] == work.batches
    assert ["g"] == [name for _, name in work.waiting]

    for name in "abc":
        release[name].set()
    work.wait_for(lambda: len(work.batches) == 3)

    assert [6, 3, 3] == work.limits
    for event in release.values():
        event.set()


def assert_set(event: threading.Event) -> None:
    assert event.wait(PATIENCE)


def test_one_lease_of_many_is_spread_over_the_threads(
    work: Work, make: Callable[..., Lane[str]]
) -> None:
    together = threading.Barrier(3)
    work.during = lambda _: (together.wait(PATIENCE), None)[1]
    for name in "abc":
        work.add(name)
    make(threads=3).start()
    work.wait_for(lambda: len(work.batches) == 3)

    assert [3] == work.limits
    assert {("a",), ("b",), ("c",)} == {tuple(batch) for batch in work.batches}


def test_storage_that_refuses_does_not_end_the_lane(
    work: Work, make: Callable[..., Lane[str]], caplog: pytest.LogCaptureFixture
) -> None:
    work.look_fails = [StorageBusyError("look")] * 2
    work.lease_fails = [StorageBusyError("lease")] * 2
    work.add("a")
    make().start()
    work.wait_for(lambda: work.batches == [["a"]])

    assert ["lane.storage_failed"] * 4 == [record.message for record in caplog.records]


def test_work_that_crashes_is_logged_and_the_thread_is_free_again(
    work: Work, make: Callable[..., Lane[str]], caplog: pytest.LogCaptureFixture
) -> None:
    def crash(name: str) -> None:
        if name == "bad":
            raise RuntimeError(name)

    work.during = crash
    work.add("bad")
    work.add("good")
    make().start()
    work.wait_for(lambda: work.batches == [["bad"], ["good"]])

    assert [("lane.work_crashed", "ERROR")] == [
        (record.message, record.levelname) for record in caplog.records
    ]


def test_draining_waits_for_what_is_under_way_and_leases_no_more(
    work: Work, make: Callable[..., Lane[str]]
) -> None:
    release, drained = threading.Event(), threading.Event()
    work.during = lambda _: assert_set(release)
    lane = make(threads=2)
    work.add("under way")
    lane.start()
    work.wait_for(lambda: len(work.batches) == 1)
    look_again(lane, work)

    def drain() -> None:
        lane.drain()
        drained.set()

    draining = threading.Thread(target=drain)
    draining.start()
    with lane._condition:
        assert lane._condition.wait_for(lambda: lane._stopping, PATIENCE)
    work.add("too late")
    lane.wake()
    lane._thread.join(PATIENCE)

    assert not drained.wait(0.1)

    release.set()
    draining.join(PATIENCE)

    assert drained.is_set()
    assert ["under way"] == work.done()


def test_stopping_only_says_so(work: Work, make: Callable[..., Lane[str]]) -> None:
    lane = make()
    lane.start()
    work.wait_for(lambda: work.looks == 1)
    lane.stop()
    lane._thread.join(PATIENCE)
    work.add("too late")
    lane.wake()

    assert not lane._thread.is_alive()
    assert [] == work.limits


def test_a_lane_that_was_never_started_can_be_drained(make: Callable[..., Lane[str]]) -> None:
    lane = make()
    lane.drain()
    lane.drain()

    assert not lane._thread.is_alive()


def test_a_full_lane_can_be_drained(work: Work, make: Callable[..., Lane[str]]) -> None:
    release = threading.Event()
    work.during = lambda _: assert_set(release)
    lane = make(threads=1)
    work.add("a")
    work.add("b")
    lane.start()
    work.wait_for(lambda: len(work.batches) == 1)
    lane.stop()
    release.set()
    lane.drain()

    assert ["a"] == work.done()


def test_the_clock_is_read_anew_at_least_every_minute() -> None:
    # A clock that somebody sets forward while the lane sleeps is noticed that late.
    slept: list[float | None] = []
    lane: Lane[str] = Lane(
        "test",
        threads=1,
        lease=lambda _: [],
        next_due_at=lambda: START + 86_400_000,
        process=lambda _: None,
        clock=lambda: START,
    )

    def sleep(seconds: float | None) -> None:
        slept.append(seconds)
        lane.stop()

    lane._sleep = sleep  # type: ignore[method-assign]
    lane.start()
    lane._thread.join(PATIENCE)
    lane.drain()

    assert [60.0] == slept


def test_work_long_due_though_a_thread_is_free_means_stuck(
    work: Work, clock: FakeClock, make: Callable[..., Lane[str]]
) -> None:
    lane = make()  # and never started: nobody will ever lease
    assert not lane.is_stuck(grace=90)

    work.add("a", due_in=1_000)
    clock.advance(91)
    assert not lane.is_stuck(grace=90)

    clock.advance(0.001)
    assert lane.is_stuck(grace=90)


def test_a_lane_whose_threads_are_all_busy_is_not_stuck(
    work: Work, clock: FakeClock, make: Callable[..., Lane[str]]
) -> None:
    lane, go_on = make(), threading.Event()
    work.during = lambda _: assert_set(go_on)
    work.add("a")
    lane.start()
    work.wait_for(lambda: work.batches == [["a"]])
    work.add("b")
    clock.advance(3_600)

    assert not lane.is_stuck(grace=90)
    go_on.set()


def test_a_long_queue_that_moves_is_not_stuck(
    work: Work, clock: FakeClock, make: Callable[..., Lane[str]]
) -> None:
    lane = make()
    work.add("a")
    clock.advance(3_600)
    lane.start()
    work.wait_for(lambda: work.batches == [["a"]])
    look_again(lane, work)
    lane.drain()
    work.add("b", due_in=-3_600_000)  # as old as the one that was just begun

    assert not lane.is_stuck(grace=90)
    clock.advance(91)
    assert lane.is_stuck(grace=90)
