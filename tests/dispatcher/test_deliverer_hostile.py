"""One attempt against receivers that do what no HTTP library would."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

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
from tests.fault_server import (
    FaultServer,
    answering,
    close_one_half,
    drip,
    flood,
    hang,
    reset,
)

if TYPE_CHECKING:
    import socket

    from tests.fault_server import Script

HEAD: Final = b"HTTP/1.1 200 OK\r\n"
CHUNKED: Final = HEAD + b"transfer-encoding: chunked\r\n\r\n"
BLOCK: Final = b"x" * 4096


HOSTILE: Final[dict[str, tuple[Script, str]]] = {
    "hangs before the request": (hang, "TIMEOUT"),
    "hangs after the request": (answering(b"", hang), "TIMEOUT"),
    "hangs inside the head": (answering(HEAD, hang), "TIMEOUT"),
    "drips the status line": (answering(b"", drip(HEAD)), "TIMEOUT"),
    "drips headers": (answering(HEAD, drip(b"x: y\r\n")), "TIMEOUT"),
    "drips a body of known length": (
        answering(HEAD + b"content-length: 999\r\n\r\n", drip(b"x")),
        "TIMEOUT",
    ),
    "drips a body of unknown length": (answering(HEAD + b"\r\n", drip(b"x")), "TIMEOUT"),
    "drips chunks": (answering(CHUNKED, drip(b"1\r\nx\r\n")), "TIMEOUT"),
    "drips informational answers": (
        answering(b"", drip(b"HTTP/1.1 100 Continue\r\n\r\n")),
        "TIMEOUT",
    ),
    "floods informational answers": (
        answering(b"", flood(b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n" * 100)),
        "PROTOCOL_ERROR",
    ),
    "floods headers": (answering(HEAD, flood(b"x: y\r\n" * 100)), "PROTOCOL_ERROR"),
    "one endless header": (answering(HEAD + b"x: ", flood(BLOCK)), "PROTOCOL_ERROR"),
    "one endless line": (answering(b"HTTP/1.1 200 ", flood(BLOCK)), "PROTOCOL_ERROR"),
    "more framing than content": (
        answering(CHUNKED, flood(b"1;" + BLOCK + b"\r\nx\r\n")),
        "PROTOCOL_ERROR",
    ),
    "resets before the answer": (answering(b"", reset), "CONNECTION_FAILED"),
    "resets inside the head": (answering(HEAD, reset), "CONNECTION_FAILED"),
    "closes before the answer": (answering(b""), "CONNECTION_FAILED"),
    "closes inside the head": (answering(HEAD), "CONNECTION_FAILED"),
    "closes inside the body": (
        answering(HEAD + b"content-length: 9\r\n\r\nx"),
        "CONNECTION_FAILED",
    ),
    "closes inside a chunk": (answering(CHUNKED + b"9\r\nx"), "CONNECTION_FAILED"),
    "closes its half without an answer": (answering(b"", close_one_half), "CONNECTION_FAILED"),
    "greets like SSH and waits": (answering(b"SSH-2.0-OpenSSH_9.2\r\n", hang), "PROTOCOL_ERROR"),
    "greets like SMTP and waits": (answering(b"220 mail ESMTP\r\n", hang), "PROTOCOL_ERROR"),
    "speaks TLS": (answering(b"\x15\x03\x01\x00\x02\x02\x16", hang), "PROTOCOL_ERROR"),
    "speaks HTTP/2": (answering(b"\x00\x00\x12\x04" + bytes(20), hang), "PROTOCOL_ERROR"),
    "speaks HTTP/0.9": (answering(b"<html></html>"), "PROTOCOL_ERROR"),
    "upgrades": (
        answering(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", hang),
        "PROTOCOL_ERROR",
    ),
    "has two lengths": (
        answering(HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab"),
        "PROTOCOL_ERROR",
    ),
    "has a negative length": (answering(HEAD + b"content-length: -1\r\n\r\n"), "PROTOCOL_ERROR"),
    "has a bad chunk size": (answering(CHUNKED + b"zz\r\nx\r\n"), "PROTOCOL_ERROR"),
    "has a status of letters": (answering(b"HTTP/1.1 abc OK\r\n\r\n"), "PROTOCOL_ERROR"),
    "has a NUL in a header": (answering(HEAD + b"x: \x00\r\n\r\n"), "PROTOCOL_ERROR"),
}


@pytest.mark.parametrize(("script", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_receiver_costs_one_attempt_and_no_more_than_its_time(
    script: Script, reason: str
) -> None:
    timeout = SOON if reason == "TIMEOUT" else LATE
    with FaultServer(script) as server, deliverer_for(server, timeout=timeout) as deliverer:
        failure = failure_at(deliverer, url_of(server))

    assert reason == failure.reason
    assert "127.0.0.1" not in failure.message
    assert 1 == server.connections


@pytest.mark.parametrize(
    "script",
    [
        answering(HEAD + b"content-length: 9999999999\r\n\r\n", flood(BLOCK)),
        answering(HEAD + b"\r\n", flood(BLOCK)),
        answering(CHUNKED, flood(b"1000\r\n" + BLOCK + b"\r\n")),
    ],
)
def test_an_endless_answer_is_cut_and_counts_by_its_status(script: Script) -> None:
    with FaultServer(script) as server, deliverer_for(server) as deliverer:
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
    def refuse_early(_: FaultServer, connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        while connection.recv(1_000_000):
            continue

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
        outcome = deliverer.deliver(url_of(server), headers=HEADERS, body=BODY)

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
