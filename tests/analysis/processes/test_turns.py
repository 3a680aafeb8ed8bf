"""Turns: fair between callers, and left at once by who is cancelled."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.images import ProcessUnavailableError, WorkCancelledError
from analysis.processes.turns import Cancellation, Turns
from tests.server.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence


def order_of(callers: Sequence[str]) -> list[str]:
    """Return in which order *callers*, who all wait in this order, get the only turn."""
    turns, order, lock = Turns(1), list[str](), threading.Lock()

    def wait(caller: str) -> None:
        with turns.turn(caller, cancellation=Cancellation(), timeout=60), lock:
            order.append(caller)

    with (
        ThreadPoolExecutor(len(callers) + 1) as threads,
        turns.turn("holder", cancellation=Cancellation(), timeout=60),
    ):
        for number, caller in enumerate(callers, start=1):
            threads.submit(wait, caller)
            wait_until(lambda number=number: number == waiting(turns))  # type: ignore[misc]
    return order


def waiting(turns: Turns) -> int:
    with turns._lock:
        return sum(len(events) for events in turns._waiting.values())


def test_a_caller_with_many_images_does_not_keep_another_from_its_turn() -> None:
    assert list("abcaaa") == order_of("aaaabc")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=8))
def test_between_two_turns_of_a_caller_every_other_that_waits_has_one(callers: list[str]) -> None:
    order = order_of(callers)

    assert sorted(callers) == sorted(order)
    for start, caller in enumerate(order):
        if caller in order[start + 1 :]:
            next_one = order.index(caller, start + 1)
            others = set(order[start + 1 :]) - {caller}
            assert others <= set(order[start + 1 : next_one])


def test_who_waited_too_long_or_was_cancelled_takes_no_turn() -> None:
    turns, cancellation = Turns(1), Cancellation()
    with turns.turn("a", cancellation=Cancellation(), timeout=60):
        with (
            pytest.raises(ProcessUnavailableError, match="too many"),
            turns.turn("b", cancellation=Cancellation(), timeout=0.01),
        ):
            pass
        with ThreadPoolExecutor() as threads:
            future = threads.submit(take, turns, cancellation)
            wait_until(lambda: waiting(turns) == 1)
            cancellation.cancel()
            assert isinstance(future.exception(), WorkCancelledError)

    assert (0, 1) == (waiting(turns), turns._permits)


def test_closing_lets_those_who_wait_go_and_those_who_come() -> None:
    turns = Turns(1)
    with turns.turn("a", cancellation=Cancellation(), timeout=60), ThreadPoolExecutor() as threads:
        future = threads.submit(take, turns, Cancellation())
        wait_until(lambda: waiting(turns) == 1)
        turns.close()
        assert isinstance(future.exception(), WorkCancelledError)

    with pytest.raises(WorkCancelledError):
        take(turns, Cancellation())


def take(turns: Turns, cancellation: Cancellation) -> None:
    with turns.turn("b", cancellation=cancellation, timeout=60):
        pass
