"""Look-ups that hang hurt nobody but those who wait for the same name."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from dispatcher.local_resources import LocalResourceError
from dispatcher.resolver import BoundedResolver, system_resolver

if TYPE_CHECKING:
    from collections.abc import Iterator


class HangingResolver:
    """Hangs for names that begin with "hang" until released; answers at once for others."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.release = threading.Event()

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        if host.startswith("hang"):
            self.release.wait()
        return ["8.8.8.8"]


@pytest.fixture
def hanging() -> Iterator[HangingResolver]:
    resolver = HangingResolver()
    yield resolver
    resolver.release.set()


def test_an_asker_does_not_wait_longer_than_told_and_others_do_not_wait(
    hanging: HangingResolver,
) -> None:
    resolver = BoundedResolver(hanging)

    with pytest.raises(TimeoutError):
        resolver.resolve("hang.example.", 80, timeout=0.01)
    assert ["8.8.8.8"] == resolver.resolve("example.com.", 80, timeout=10)


def test_askers_for_a_name_that_hangs_share_one_look_up(hanging: HangingResolver) -> None:
    resolver = BoundedResolver(hanging, max_lookups=4)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            resolver.resolve("hang.example.", 80, timeout=0.01)

    assert [("hang.example.", 80)] == hanging.asked
    assert ["8.8.8.8"] == resolver.resolve("example.com.", 80, timeout=10)


def test_a_waiting_asker_gets_the_answer_of_a_look_up_that_another_began(
    hanging: HangingResolver,
) -> None:
    resolver = BoundedResolver(hanging)
    with pytest.raises(TimeoutError):
        resolver.resolve("hang.example.", 80, timeout=0.01)
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(resolver.resolve, "hang.example.", 80, timeout=30) for _ in range(3)]
        hanging.release.set()

    assert [["8.8.8.8"]] * 3 == [answer.result() for answer in answers]


def test_look_ups_of_one_owner_that_hang_leave_places_for_every_other(
    hanging: HangingResolver,
) -> None:
    resolver = BoundedResolver(hanging, max_lookups=8)
    for number in range(4):
        with pytest.raises(TimeoutError):
            resolver.resolve(f"hang{number}.example.", 80, timeout=0.01, owner="a")

    with pytest.raises(LocalResourceError, match="places for look-ups: 4") as lack:
        resolver.resolve("hang5.example.", 80, timeout=10, owner="a")
    assert lack.value.only_for_owner
    for owner in ("b", "c"):
        assert ["8.8.8.8"] == resolver.resolve("example.com.", 80, timeout=10, owner=owner)


def test_when_all_places_are_taken_every_owner_lacks_one_and_is_told_at_once(
    hanging: HangingResolver,
) -> None:
    resolver = BoundedResolver(hanging, max_lookups=2)
    for owner in ("a", "b"):
        with pytest.raises(TimeoutError):
            resolver.resolve(f"hang-{owner}.example.", 80, timeout=0.01, owner=owner)

    for owner in ("a", "b", "c"):
        with pytest.raises(LocalResourceError, match="places for look-ups: 2") as lack:
            resolver.resolve("example.com.", 80, timeout=10, owner=owner)
        assert not lack.value.only_for_owner


def test_a_look_up_that_ends_gives_its_place_back_though_its_askers_have_gone(
    hanging: HangingResolver,
) -> None:
    resolver = BoundedResolver(hanging, max_lookups=1)
    with pytest.raises(TimeoutError):
        resolver.resolve("hang.example.", 80, timeout=0.01)
    with pytest.raises(LocalResourceError):
        resolver.resolve("example.com.", 80, timeout=10)
    last = resolver._lookups["hang.example.", 80]
    hanging.release.set()
    last.result(10)

    assert ["8.8.8.8"] == resolver.resolve("example.com.", 80, timeout=10)


def test_an_answered_look_up_makes_room_and_is_not_remembered(hanging: HangingResolver) -> None:
    resolver = BoundedResolver(hanging, max_lookups=1)
    for _ in range(3):
        resolver.resolve("example.com.", 80, timeout=10)

    assert 3 == len(hanging.asked)


def test_failures_are_passed_on() -> None:
    def no_such_name(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, f"{host}:{port}")

    with pytest.raises(socket.gaierror):
        BoundedResolver(no_such_name).resolve("example.com.", 80, timeout=10)
    with pytest.raises(socket.gaierror):
        BoundedResolver(lambda _host, _port: []).resolve("example.com.", 80, timeout=10)


def test_the_system_knows_this_machine() -> None:
    assert "127.0.0.1" in system_resolver("localhost", 80)


def test_the_hosts_file_has_no_say_in_absolute_names() -> None:
    with pytest.raises(socket.gaierror):
        system_resolver("localhost.invalid.", 80)
