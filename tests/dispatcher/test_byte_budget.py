"""Bodies under way stay within the budget, and each gets its turn."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import pytest

from dispatcher.byte_budget import ByteBudget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

LIMIT: Final = 100


class Crowd:
    """Threads that hold bytes until they are told to let go."""

    def __init__(self, pool: ThreadPoolExecutor, budget: ByteBudget) -> None:
        self._pool = pool
        self._budget = budget
        self._changed = threading.Condition()
        self._let_go: set[str] = set()
        self.held: list[str] = []

    def come(self, name: str, size: int) -> Future[bool]:
        """Have somebody wait for *size* bytes, and return when he does."""
        before = len(self._budget._waiting) + len(self.held)
        done = self._pool.submit(self._hold, name, size)
        self.until(lambda: len(self._budget._waiting) + len(self.held) > before)
        return done

    def let_go(self, name: str) -> None:
        with self._changed:
            self._let_go.add(name)
            self._changed.notify_all()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for *condition*; looks again at every change, and often."""
        with self._changed:
            while not condition():
                self._changed.wait(0.01)

    def _hold(self, name: str, size: int) -> bool:
        with self._budget.hold(size) as taken, self._changed:
            if not taken:
                return False
            self.held.append(name)
            self._changed.notify_all()
            self._changed.wait_for(lambda: name in self._let_go)
            self.held.remove(name)
        return True


@pytest.fixture
def budget() -> ByteBudget:
    return ByteBudget(LIMIT)


@pytest.fixture
def crowd(budget: ByteBudget) -> Iterator[Crowd]:
    with ThreadPoolExecutor(8) as pool:
        yield Crowd(pool, budget)


def test_what_fits_is_held_at_once_and_what_does_not_waits(crowd: Crowd) -> None:
    crowd.come("a", 60)
    crowd.come("b", 40)
    waiting = crowd.come("c", 1)
    before = sorted(crowd.held)
    crowd.let_go("a")
    crowd.until(lambda: "c" in crowd.held)
    after = sorted(crowd.held)
    crowd.let_go("b")
    crowd.let_go("c")

    assert ["a", "b"] == before
    assert ["b", "c"] == after
    assert waiting.result()


def test_a_small_one_does_not_overtake_a_large_one(crowd: Crowd) -> None:
    crowd.come("small", 10)
    crowd.come("large", 95)
    crowd.come("late", 1)
    before = list(crowd.held)
    crowd.let_go("small")
    crowd.until(lambda: "large" in crowd.held)
    crowd.until(lambda: "late" in crowd.held)
    crowd.let_go("large")
    crowd.let_go("late")

    assert ["small"] == before


def test_one_that_is_larger_than_the_budget_is_held_alone(crowd: Crowd) -> None:
    crowd.come("small", 1)
    crowd.come("giant", LIMIT + 1)
    crowd.come("next", 1)
    before = list(crowd.held)
    crowd.let_go("small")
    crowd.until(lambda: "giant" in crowd.held)
    alone = list(crowd.held)
    crowd.let_go("giant")
    crowd.until(lambda: "next" in crowd.held)
    crowd.let_go("next")

    assert ["small"] == before
    assert ["giant"] == alone


def test_closing_ends_the_wait_and_still_gives_what_fits(crowd: Crowd, budget: ByteBudget) -> None:
    crowd.come("a", LIMIT)
    waiting = [crowd.come("b", 1), crowd.come("c", 1)]
    budget.close()

    assert [False, False] == [each.result() for each in waiting]

    crowd.let_go("a")
    crowd.until(lambda: not crowd.held)
    with budget.hold(LIMIT) as taken:
        assert taken


def test_what_is_held_is_given_back_when_the_attempt_crashes(budget: ByteBudget) -> None:
    with pytest.raises(RuntimeError), budget.hold(LIMIT):
        raise RuntimeError
    with budget.hold(LIMIT) as taken:
        assert taken
