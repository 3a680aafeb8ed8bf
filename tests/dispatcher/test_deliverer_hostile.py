"""One attempt against receivers that do what no HTTP library would."""

from __future__ import annotations

import ssl
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.deliverer import Answered
from tests.dispatcher.calling import (
    BODY,
    HEADERS,
    LATE,
    SOON,
    answer_from,
    deliverer_for,
    failure_at,
    url_of,
)
from tests.dispatcher.faults import (
    CHUNKED,
    ENOUGH,
    FAULTS,
    HEAD,
    amid_the_request,
    over_tls,
    swallow,
)
from tests.dispatcher.measuring import attempts
from tests.fault_server import FaultServer, answering, hang

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from tests.dispatcher.faults import Fault
    from tests.dispatcher.measuring import Measured

#: What an attempt may take beyond what it must, in seconds after its deadline, and in bytes.
MOST_SECONDS: Final = 1.0
MOST_MEMORY: Final = 20_000_000
#: What the system takes in of a request while the receiver does nothing; the rest has to wait.
RECEIVE_BUFFER: Final = 65_536


@pytest.fixture(scope="module")
def attempt() -> Iterator[Callable[..., Measured]]:
    with attempts() as attempt:
        yield attempt


@pytest.fixture(scope="module")
def peace(attempt: Callable[..., Measured]) -> dict[str, Measured]:
    """What an attempt takes if the receiver means well, by scheme."""
    measured = {}
    for scheme, script in (
        ("http", answering(HEAD + ENOUGH)),
        ("https", over_tls(answering(HEAD + ENOUGH))),
    ):
        with FaultServer(script, receive_buffer=RECEIVE_BUFFER) as server:
            measured[scheme] = attempt(scheme=scheme, port=server.port, timeout=LATE)
    return measured


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_hostile_receiver_costs_one_attempt_its_time_and_little_memory(
    fault: Fault, attempt: Callable[..., Measured], peace: dict[str, Measured]
) -> None:
    timeout = SOON if fault.outcome == "TIMEOUT" else LATE
    with FaultServer(fault.script, receive_buffer=RECEIVE_BUFFER) as server:
        made = attempt(
            scheme=fault.scheme,
            host=fault.host,
            port=server.port,
            timeout=timeout,
            resolver=fault.resolver,
        )

    assert "200" == peace[fault.scheme].outcome
    assert fault.outcome == made.outcome
    assert "127.0.0.1" not in made.message
    assert fault.connections == server.connections
    assert made.seconds <= timeout + MOST_SECONDS
    assert made.memory <= peace[fault.scheme].memory + MOST_MEMORY


def test_our_own_kind_of_server_gets_no_callback_to_work_on(
    attempt: Callable[..., Measured],
) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    made = attempt(port=port, timeout=LATE)
    server.stop(None).wait()

    assert "PROTOCOL_ERROR" == made.outcome


@pytest.mark.parametrize("name", ["a body of 10 GB", "a body without end", "chunks without end"])
def test_an_endless_answer_is_cut_and_counts_by_its_status(name: str) -> None:
    with FaultServer(FAULTS[name].script) as server, deliverer_for(server) as deliverer:
        answer = answer_from(deliverer, url_of(server))

    assert 200 == answer.status
    assert b"x" * 1024 == answer.excerpt


def test_a_receiver_that_reads_too_slowly_is_left_in_the_middle() -> None:
    body = bytes(30_000_000)  # more than the socket buffers of both sides
    taken = []

    def script(server: FaultServer, connection: socket.socket) -> None:
        while (data := connection.recv(300_000)) and not server.closing.wait(0.02):
            taken.append(len(data))

    with FaultServer(script) as server, deliverer_for(server, timeout=SOON) as deliverer:
        failure = failure_at(deliverer, url_of(server), body=body)

    assert "TIMEOUT" == failure.reason
    assert sum(taken) < len(body) / 2  # 300 kB each 20 ms: the whole would take 2 s


def test_an_answer_that_comes_before_the_body_was_read_is_heard() -> None:
    refuse_early = amid_the_request(b"HTTP/1.1 413 Too Large\r\n" + ENOUGH, swallow)
    with FaultServer(refuse_early) as server, deliverer_for(server) as deliverer:
        answer = answer_from(deliverer, url_of(server), body=bytes(5_000_000))

    assert 413 == answer.status


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=200).map(HEAD.__add__),
        st.binary(max_size=200).map(CHUNKED.__add__),
        st.text(st.characters(codec="latin-1"), max_size=40).map(
            lambda text: HEAD + b"retry-after: " + text.encode("latin-1") + b"\r\n\r\n"
        ),
    )
)
def test_no_answer_whatever_raises(data: bytes) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loading authorities takes the most time
    with (
        FaultServer(answering(data)) as server,
        deliverer_for(server, ssl_context=context) as deliverer,
    ):
        outcome = deliverer.deliver(url_of(server), headers=HEADERS, body=[BODY])

    assert isinstance(outcome, Answered) or outcome.reason in {
        "PROTOCOL_ERROR",
        "CONNECTION_FAILED",
    }


def test_nobody_listening_is_told_apart() -> None:
    server = FaultServer(hang)
    with server:
        pass

    with deliverer_for(server) as deliverer:
        failure = failure_at(deliverer, f"http://127.0.0.1:{server.port}/")

    assert "CONNECTION_REFUSED" == failure.reason
