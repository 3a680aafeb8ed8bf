from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from analysis.combining import Combiner

if TYPE_CHECKING:
    from collections.abc import Sequence


def test_a_lone_call_is_a_batch_of_its_own() -> None:
    batches: list[Sequence[int]] = []

    def double(numbers: Sequence[int]) -> list[int]:
        batches.append(numbers)
        return [2 * number for number in numbers]

    combiner = Combiner(double, lock=threading.Lock())

    assert [combiner(1), combiner(2)] == [2, 4]
    assert batches == [[1], [2]]


def test_all_who_wait_are_served_in_one_batch_each_with_its_own_answer() -> None:
    batches: list[Sequence[int]] = []
    first_is_in, all_wait = threading.Event(), threading.Event()

    def double(numbers: Sequence[int]) -> list[int]:
        batches.append(sorted(numbers))
        first_is_in.set()
        all_wait.wait()
        return [2 * number for number in numbers]

    combiner = Combiner(double, lock=threading.Lock())
    with ThreadPoolExecutor(11) as pool:
        first = pool.submit(combiner, 0)
        first_is_in.wait()
        others = [pool.submit(combiner, number) for number in range(1, 11)]
        while len(combiner._calls) < len(others):  # nothing else tells that they wait
            pass
        all_wait.set()
        answers = [future.result() for future in [first, *others]]

    assert answers == [2 * number for number in range(11)]
    assert batches == [[0], list(range(1, 11))]


def test_more_than_fit_in_a_batch_are_served_in_several() -> None:
    lock = threading.Lock()
    sizes: list[int] = []

    def same(numbers: Sequence[int]) -> Sequence[int]:
        sizes.append(len(numbers))
        return numbers

    combiner = Combiner(same, lock=lock)
    with ThreadPoolExecutor(100) as pool:
        with lock:
            futures = [pool.submit(combiner, number) for number in range(100)]
            while len(combiner._calls) < len(futures):
                pass
        answers = [future.result() for future in futures]

    assert answers == list(range(100))
    assert sizes == [64, 36]


def test_an_argument_that_cannot_be_served_spoils_nobody_elses_answer() -> None:
    lock = threading.Lock()

    def invert(numbers: Sequence[int]) -> list[float]:
        return [1 / number for number in numbers]

    combiner = Combiner(invert, lock=lock)
    with ThreadPoolExecutor(3) as pool:
        with lock:
            futures = [pool.submit(combiner, number) for number in (1, 0, 2)]
            while len(combiner._calls) < len(futures):
                pass

        assert futures[0].result() == 1
        assert futures[2].result() == 0.5
        with pytest.raises(ZeroDivisionError):
            futures[1].result()
