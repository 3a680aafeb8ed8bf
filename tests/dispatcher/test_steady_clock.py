"""The scheduler's time passes as real time does, whatever is done to the wall clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dispatcher.steady_clock import ClockRecord, SteadyClock, boot_id, elapsed_time
from tests.fakes import START

if TYPE_CHECKING:
    from collections.abc import Callable

HOUR = 3_600_000
DAY = 24 * HOUR
STEPS = [HOUR, -HOUR, DAY, -DAY]


class Machine:
    """A computer: real time passes, its wall clock can be set, it can boot again."""

    def __init__(self) -> None:
        self.real = 0
        self.booted_at = -5_000
        self.boot = "boot 0"
        self.wall_is_ahead = 0

    def wall(self) -> int:
        return START + self.real + self.wall_is_ahead

    def elapsed(self) -> int:
        return self.real - self.booted_at

    def clock(self, record: ClockRecord | None = None, *, newest: int = 0) -> SteadyClock:
        return SteadyClock(
            wall=self.wall, elapsed=self.elapsed, boot=self.boot, record=record, newest=newest
        )

    def reboot(self) -> None:
        self.boot += "'"
        self.booted_at = self.real


def test_it_begins_with_the_wall_clock_s_time() -> None:
    assert START == Machine().clock()()


@pytest.mark.parametrize("step", STEPS)
def test_a_wall_clock_that_is_set_changes_nothing_but_is_noticed(step: int) -> None:
    machine = Machine()
    clock = machine.clock()
    machine.real += 60_000
    assert not clock.notice_step()
    machine.wall_is_ahead = step

    assert START + 60_000 == clock()
    assert clock.notice_step()
    assert not clock.notice_step()
    assert machine.wall() + 5_000 == clock.wall_time(clock() + 5_000)


@pytest.mark.parametrize("step", STEPS)
def test_it_goes_on_through_a_restart_of_the_process_though_the_wall_clock_is_set_meanwhile(
    step: int,
) -> None:
    machine = Machine()
    record = ClockRecord.load(machine.clock().record().dump())
    machine.real += 10_000
    machine.wall_is_ahead = step

    assert START + 10_000 == machine.clock(record)()


@pytest.mark.parametrize("step", STEPS)
def test_a_step_before_a_reboot_is_remembered(step: int) -> None:
    machine = Machine()
    clock = machine.clock()
    machine.wall_is_ahead = step
    clock.notice_step()
    record = clock.record()
    machine.reboot()
    machine.real += 10_000

    assert START + 10_000 == machine.clock(record)()


def test_after_a_reboot_it_does_not_go_back_behind_what_is_known_to_have_passed() -> None:
    machine = Machine()
    record = machine.clock().record()
    machine.reboot()
    machine.wall_is_ahead = -DAY

    assert START == machine.clock(record)()
    assert START + 7 == machine.clock(record, newest=START + 7)()
    assert START + 7 == machine.clock(None, newest=START + 7)()


def test_where_boots_cannot_be_told_apart_the_wall_clock_is_asked() -> None:
    machine = Machine()
    machine.boot = ""
    record = machine.clock().record()
    machine.real += 10_000
    machine.booted_at = machine.real

    assert START + 10_000 == machine.clock(record)()


def test_elapsed_time_passes_and_this_boot_has_one_name() -> None:
    before = elapsed_time()

    assert elapsed_time() >= before
    assert boot_id() == boot_id()


class Steps(RuleBasedStateMachine):
    """Whatever happens within a boot, the clock shows how much real time has passed."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine()
        self.clock: Callable[[], int] = self.machine.clock()

    @rule(step=st.sampled_from(STEPS))
    def set_the_wall_clock(self, step: int) -> None:
        self.machine.wall_is_ahead += step

    @rule(passes=st.integers(0, DAY))
    def let_time_pass(self, passes: int) -> None:
        self.machine.real += passes

    @rule()
    def notice(self) -> None:
        assert isinstance(self.clock, SteadyClock)
        self.clock.notice_step()

    @rule()
    def restart(self) -> None:
        assert isinstance(self.clock, SteadyClock)
        self.clock = self.machine.clock(ClockRecord.load(self.clock.record().dump()))

    @invariant()
    def real_time_is_shown(self) -> None:
        assert START + self.machine.real == self.clock()


TestSteps = Steps.TestCase
