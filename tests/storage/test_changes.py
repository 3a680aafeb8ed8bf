from __future__ import annotations

import threading

from storage.changes import Changes


def test_a_change_wakes_those_who_watch_it_and_nobody_else() -> None:
    changes = Changes()
    with changes.watch("a") as one, changes.watch("a") as two, changes.watch("b") as other:
        changes.publish("a")

        assert (True, True, False) == (one.is_set(), two.is_set(), other.is_set())


def test_a_change_before_the_watch_is_not_told() -> None:
    changes = Changes()
    changes.publish("a")
    with changes.watch("a") as event:
        assert not event.is_set()


def test_everybody_can_be_woken() -> None:
    changes = Changes()
    with changes.watch("a") as one, changes.watch("b") as two:
        changes.wake_all()

        assert (True, True) == (one.is_set(), two.is_set())


def test_those_who_left_are_forgotten() -> None:
    changes = Changes()
    with changes.watch("a") as first:
        with changes.watch("a") as second:
            pass
        changes.publish("a")

        assert (True, False) == (first.is_set(), second.is_set())
    assert {} == changes._watchers


def test_watching_and_publishing_from_many_threads_loses_nobody() -> None:
    changes = Changes()
    woken = []

    def watch(number: int) -> None:
        for round_ in range(200):
            with changes.watch(f"{number}/{round_ % 3}") as event:
                changes.publish(f"{number}/{round_ % 3}")
                woken.append(event.is_set())

    threads = [threading.Thread(target=watch, args=(number % 2,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [True] * 1200 == woken
    assert {} == changes._watchers
