"""Host names that lead nowhere, inside, or not in time."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.dispatcher.calling import NAME, SOON, answer_from, deliverer_for, failure_at, url_of
from tests.receiver import Receiver

if TYPE_CHECKING:
    from dispatcher.url_guard import Resolver


def no_such_name(host: str, port: int) -> list[str]:
    raise socket.gaierror(socket.EAI_NONAME, f"no {host}:{port}")


def servers_fail(host: str, port: int) -> list[str]:
    raise socket.gaierror(socket.EAI_AGAIN, f"no answer for {host}:{port}")


def no_addresses(host: str, port: int) -> list[str]:
    del host, port
    return []


@pytest.mark.parametrize("resolver", [no_such_name, servers_fail, no_addresses])
def test_a_name_without_an_address_is_a_failure(resolver: Resolver) -> None:
    with deliverer_for(resolver=resolver) as deliverer:
        assert "DNS_ERROR" == failure_at(deliverer, "https://example.com/").reason


def test_a_resolver_that_hangs_costs_no_more_than_its_time() -> None:
    released = threading.Event()

    def resolver(host: str, port: int) -> list[str]:
        released.wait()
        return no_such_name(host, port)

    with deliverer_for(resolver=resolver, timeout=SOON) as deliverer:
        failures = [failure_at(deliverer, "https://example.com/") for _ in range(2)]
        released.set()

    assert ["TIMEOUT", "TIMEOUT"] == [failure.reason for failure in failures]


@pytest.mark.parametrize(
    "answers",
    [
        ["127.0.0.1"],
        ["::1"],
        ["64:ff9b::7f00:1"],
        ["::ffff:127.0.0.1"],
        ["169.254.169.254"],  # where an alias of metadata.google.internal leads
        ["8.8.8.8", "127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        ["8.8.8.8"] * 500 + ["127.0.0.1"],
    ],
)
def test_a_public_name_that_leads_inside_is_final_and_dials_nothing(answers: list[str]) -> None:
    with (
        Receiver() as receiver,
        deliverer_for(receiver, resolver=lambda _host, _port: answers) as deliverer,
    ):
        failure = failure_at(deliverer, url_of(receiver, host="example.com"))

    assert "ADDRESS_FORBIDDEN" == failure.reason
    assert not any(address in failure.message for address in answers)
    assert 0 == receiver.connections


def test_the_next_address_is_tried_when_nobody_listens_at_one() -> None:
    answers = ["127.0.0.2", "127.0.0.1"]  # a receiver listens at the second one only
    with (
        Receiver() as receiver,
        deliverer_for(receiver, resolver=lambda _host, _port: answers) as deliverer,
    ):
        answer = answer_from(deliverer, url_of(receiver, host=NAME))

    assert 200 == answer.status
