"""Threads that run Python keep to one core. What cores do is invented; threads are real."""

from __future__ import annotations

import random
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from server import home_core
from server.home_core import HomeCore, Usage, allowed_cores, read_usage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

ALLOWED = frozenset({1, 2, 3})


class Machine:
    """Four cores that are as busy as the test says, and what was sent where."""

    def __init__(self) -> None:
        self.busy = dict.fromkeys(range(4), 0)
        self.ticks = 0
        self.ours = 0
        self.sent: dict[int, frozenset[int]] = {}

    def usage(self) -> Usage:
        return Usage(
            cores={core: (busy, self.ticks) for core, busy in self.busy.items()}, ours=self.ours
        )

    def send(self, thread: int, cores: Collection[int]) -> None:
        self.sent[thread] = frozenset(cores)

    def pass_time(self, *, ours: int = 0, **busy: int) -> None:
        """Let 100 ticks pass; *busy*: core -> of these, busy ones, as ``core1=50``."""
        self.ticks += 100
        self.ours += ours
        for core, ticks in busy.items():
            self.busy[int(core.removeprefix("core"))] += ticks

    def home(self, core: int | None = None, allowed: frozenset[int] = ALLOWED) -> HomeCore:
        return HomeCore(
            core, allowed=allowed, usage=self.usage, send=self.send, rng=random.Random(0)
        )

    def where(self, thread: threading.Thread) -> frozenset[int]:
        assert thread.native_id is not None
        return self.sent[thread.native_id]


@pytest.fixture
def machine() -> Machine:
    return Machine()


@contextmanager
def running(name: str) -> Iterator[threading.Thread]:
    """Run a thread of this name while the block runs."""
    leave, entered = threading.Event(), threading.Event()

    def run() -> None:
        entered.set()
        leave.wait(60)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    assert entered.wait(60)
    try:
        yield thread
    finally:
        leave.set()
        thread.join()


@pytest.fixture
def writer() -> Iterator[threading.Thread]:
    """A thread that belongs home."""
    with running("picback-writer") as thread:
        yield thread


def test_the_calmest_core_that_is_allowed_becomes_home(
    machine: Machine, writer: threading.Thread
) -> None:
    home = machine.home()
    machine.pass_time(core0=0, core1=40, core2=10, core3=70)
    home.gather()

    assert {2} == machine.where(writer)


def test_threads_that_do_without_pythons_lock_may_go_anywhere(
    machine: Machine, writer: threading.Thread
) -> None:
    home = machine.home(core=3)
    with running("picback-index_0") as merging, running("Thread-7 (_serve)") as serving:
        home.gather()

        assert ALLOWED == machine.where(merging)
        assert ALLOWED == machine.where(threading.main_thread())
        assert {3} == machine.where(serving)
    assert {3} == machine.where(writer)


@pytest.mark.parametrize(
    ("ours", "busy", "expected"),
    [
        pytest.param(90, {"core1": 100, "core2": 50}, 1, id="ours alone: stay"),
        pytest.param(40, {"core1": 100, "core2": 20, "core3": 50}, 2, id="disturbed: move"),
        pytest.param(40, {"core1": 100, "core2": 50, "core3": 60}, 1, id="no calmer one: stay"),
    ],
)
def test_home_moves_only_when_others_want_its_core_and_another_is_calmer(
    machine: Machine, writer: threading.Thread, ours: int, busy: dict[str, int], expected: int
) -> None:
    home = machine.home()
    machine.pass_time(core1=5, core2=50, core3=50)
    home.gather()
    assert {1} == machine.where(writer)

    machine.pass_time(ours=ours, **busy)
    home.gather()
    assert {expected} == machine.where(writer)


def test_a_core_that_was_asked_for_stays_home_however_busy(
    machine: Machine, writer: threading.Thread
) -> None:
    home = machine.home(core=1)
    machine.pass_time(core1=100)
    home.gather()

    assert {1} == machine.where(writer)


@pytest.mark.parametrize("allowed", [frozenset[int](), frozenset({1})])
def test_without_a_choice_nobody_is_sent_anywhere(
    machine: Machine, allowed: frozenset[int]
) -> None:
    home = machine.home(allowed=allowed)
    machine.pass_time()
    home.gather()

    assert {} == machine.sent


def test_without_knowing_what_cores_do_nobody_is_sent_anywhere(machine: Machine) -> None:
    def refuse() -> Usage:
        raise FileNotFoundError

    home = HomeCore(None, allowed=ALLOWED, usage=refuse, send=machine.send)
    home.gather()

    assert {} == machine.sent


def test_when_a_core_is_taken_away_threads_are_left_alone_from_then_on(machine: Machine) -> None:
    sent: list[int] = []

    def refuse(thread: int, _cores: Collection[int]) -> None:
        sent.append(thread)
        raise OSError(22, "Invalid argument")

    home = HomeCore(1, allowed=ALLOWED, usage=machine.usage, send=refuse)
    home.gather()
    home.gather()

    assert 1 == len(sent)


def test_a_thread_that_ends_meanwhile_is_no_trouble(machine: Machine) -> None:
    asked: list[int] = []

    def all_gone(thread: int, _cores: Collection[int]) -> None:
        asked.append(thread)
        raise ProcessLookupError

    HomeCore(1, allowed=ALLOWED, usage=machine.usage, send=all_gone).gather()

    assert len(asked) == len(home_core._threads())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what cores do")
def test_what_the_system_tells_covers_the_cores_that_we_may_use() -> None:
    usage = read_usage()

    assert allowed_cores() <= usage.cores.keys()
    assert all(0 <= busy <= all_ for busy, all_ in usage.cores.values())
    assert 0 <= usage.ours
