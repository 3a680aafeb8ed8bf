"""Connections are kept, shared, replaced when stale, and given up when old."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from dispatcher.connection import MAX_BODY_BYTES
from tests.descriptors import open_descriptors
from tests.dispatcher.calling import LATE, TLS, answer_from, deliverer_for, failure_at, url_of
from tests.dispatcher.faults import over_tls
from tests.fault_server import FaultServer, read_request, reset
from tests.receiver import Answer, Receiver
from tests.server.waiting import wait_until

if TYPE_CHECKING:
    import socket

    from tests.fault_server import Script


def test_one_connection_serves_one_call_after_the_other() -> None:
    with Receiver() as receiver, deliverer_for(receiver) as deliverer:
        for _ in range(200):
            answer_from(deliverer, receiver.url)

    assert 200 == len(receiver.requests) == deliverer.requests
    assert 1 == receiver.connections == deliverer.connections


def test_threads_share_what_is_idle_and_never_a_connection_in_use() -> None:
    bodies = [str(number).encode() for number in range(200)]
    with (
        Receiver() as receiver,
        deliverer_for(receiver) as deliverer,
        ThreadPoolExecutor(4) as pool,
    ):
        list(pool.map(lambda body: answer_from(deliverer, receiver.url, body=body), bodies))

    assert sorted(bodies) == sorted(request.body for request in receiver.requests)
    assert receiver.connections <= 4


@pytest.mark.parametrize(("size", "connections"), [(MAX_BODY_BYTES, 1), (MAX_BODY_BYTES + 1, 2)])
def test_a_connection_is_kept_only_if_its_answer_was_read_to_the_end(
    size: int, connections: int
) -> None:
    answers = [Answer(200, {}, bytes(size))] * 2
    with Receiver(answers) as receiver, deliverer_for(receiver) as deliverer:
        statuses = [answer_from(deliverer, receiver.url).status for _ in range(2)]

    assert [200, 200] == statuses
    assert connections == receiver.connections


def test_a_connection_that_was_idle_for_long_is_not_used_again() -> None:
    now = 1000.0
    with (
        Receiver() as receiver,
        deliverer_for(receiver, keep_idle=60.0, monotonic=lambda: now) as deliverer,
    ):
        for seconds in (0, 59.9, 60.0, 1):
            now += seconds
            answer_from(deliverer, receiver.url)

    assert 2 == receiver.connections


def test_a_connection_in_steady_use_is_replaced_when_it_is_five_minutes_old() -> None:
    now = 1000.0
    with (
        Receiver() as receiver,
        deliverer_for(receiver, monotonic=lambda: now) as deliverer,
    ):
        for _ in range(61):  # the first at 10 s, the last at 610 s
            now += 10
            answer_from(deliverer, receiver.url)

    assert 3 == receiver.connections


def test_a_connection_that_the_receiver_closed_is_closed_before_its_next_use() -> None:
    before = open_descriptors()
    with Receiver() as receiver, deliverer_for(receiver) as deliverer:
        answer_from(deliverer, receiver.url)
        receiver.drop_connections()
        idle = deliverer._transport._idle
        wait_until(lambda: not idle._connections)

    assert open_descriptors() <= before


def test_looking_for_closed_connections_takes_none_that_is_used() -> None:
    with (
        Receiver() as receiver,
        deliverer_for(receiver) as deliverer,
        ThreadPoolExecutor(4) as pool,
    ):
        calls = [pool.submit(answer_from, deliverer, receiver.url) for _ in range(400)]
        while not all(call.done() for call in calls):
            deliverer._transport._idle.close_unusable()

    assert {200} == {call.result().status for call in calls}
    assert 400 == len(receiver.requests)


def test_no_more_connections_are_kept_than_allowed() -> None:
    with (
        Receiver() as first,
        Receiver() as second,
        deliverer_for(first, second, max_idle_connections=1) as deliverer,
    ):
        for receiver in (first, first, second, second, first):
            answer_from(deliverer, receiver.url)

    assert (2, 1) == (first.connections, second.connections)


def test_after_close_calls_still_work_but_nothing_is_kept() -> None:
    with Receiver() as receiver, deliverer_for(receiver) as deliverer:
        answer_from(deliverer, receiver.url)
        deliverer.close()
        statuses = [answer_from(deliverer, receiver.url).status for _ in range(2)]

    assert [200, 200] == statuses
    assert 3 == receiver.connections


def test_a_receiver_that_says_close_gets_a_new_connection_each_time() -> None:
    answers = [Answer(200, {"connection": "close"})] * 2
    with Receiver(answers) as receiver, deliverer_for(receiver) as deliverer:
        statuses = [answer_from(deliverer, receiver.url).status for _ in range(2)]

    assert [200, 200] == statuses
    assert 2 == receiver.connections


def test_a_connection_that_the_receiver_closed_while_idle_is_no_failure() -> None:
    with Receiver() as receiver, deliverer_for(receiver) as deliverer:
        answer_from(deliverer, receiver.url)
        receiver.drop_connections()
        status = answer_from(deliverer, receiver.url).status

    assert 200 == status
    assert 2 == len(receiver.requests) == deliverer.requests  # noticed before sending


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
NO = b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"


def answering_once_then(ending: Script) -> Script:
    """Answer the first request on a connection, and meet the second with *ending*."""

    def script(server: FaultServer, connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK)
        read_request(connection)
        ending(server, connection)

    return script


@pytest.mark.parametrize("ending", [lambda _, connection: connection.close(), reset])
def test_a_kept_connection_that_ends_just_as_we_send_is_replaced_within_the_attempt(
    ending: Script,
) -> None:
    script = answering_once_then(ending)
    with FaultServer(script) as server, deliverer_for(server) as deliverer:
        statuses = [answer_from(deliverer, url_of(server)).status for _ in range(2)]

    assert [200, 200] == statuses
    assert 2 == server.connections == deliverer.connections


@pytest.mark.parametrize(
    "surplus",
    [
        b"\r\n",
        b"H",
        b"garbage",
        OK,
        OK + OK,
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nx: ",  # makes the next answer's status line a header's value
        b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_bytes_that_came_before_a_request_are_not_its_answer(surplus: bytes, scheme: str) -> None:
    answers = [OK + surplus, NO, NO]

    def script(_: FaultServer, connection: socket.socket) -> None:
        while read_request(connection):
            connection.sendall(answers.pop(0))

    with (
        FaultServer(script if scheme == "http" else over_tls(script)) as server,
        deliverer_for(server, ca_file=TLS / "ca.pem") as deliverer,
    ):
        url = url_of(server, scheme=scheme)
        statuses = [answer_from(deliverer, url).status for _ in range(3)]

    assert [200, 500, 500] == statuses
    assert 2 == server.connections


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (lambda _, connection: connection.sendall(b"HTTP/1.1 2"), "CONNECTION_FAILED"),
        (lambda _, connection: connection.sendall(b"220 smtp\r\n"), "PROTOCOL_ERROR"),
        (lambda server, _: server.closing.wait(), "TIMEOUT"),
    ],
)
def test_a_request_that_may_have_been_taken_is_not_sent_again(ending: Script, reason: str) -> None:
    script = answering_once_then(ending)
    timeout = 1.0 if reason == "TIMEOUT" else LATE  # enough for the first request in any case
    with FaultServer(script) as server, deliverer_for(server, timeout=timeout) as deliverer:
        answer_from(deliverer, url_of(server))
        failure = failure_at(deliverer, url_of(server))

    assert reason == failure.reason
    assert 1 == server.connections


def test_a_new_connection_that_closes_is_a_failure_and_not_tried_again() -> None:
    with (
        FaultServer(lambda _, connection: read_request(connection)) as server,
        deliverer_for(server) as deliverer,
    ):
        failure = failure_at(deliverer, url_of(server))

    assert "CONNECTION_FAILED" == failure.reason
    assert 1 == server.connections
