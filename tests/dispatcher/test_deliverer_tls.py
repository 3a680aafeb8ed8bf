"""Receivers must prove their names, and TLS is no way around the deadline."""

from __future__ import annotations

import ssl
import warnings
from typing import TYPE_CHECKING, Final

import pytest

from tests.dispatcher.calling import (
    LATE,
    NAME,
    SOON,
    TLS,
    answer_from,
    deliverer_for,
    failure_at,
    url_of,
)
from tests.fault_server import FaultServer, answering, drip, hang, reset
from tests.receiver import Receiver

if TYPE_CHECKING:
    import socket

    from tests.fault_server import Script

AUTHORITY: Final = str(TLS / "ca.pem")


def server_context(certificate: str = "receiver") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / f"{certificate}.pem")
    return context


def tls_url_of(server: Receiver | FaultServer, *, host: str = NAME) -> str:
    return url_of(server, scheme="https", host=host)


@pytest.mark.parametrize("host", [NAME, "127.0.0.1"])
def test_a_receiver_that_proves_its_name_is_called_over_one_connection(host: str) -> None:
    with (
        Receiver(ssl_context=server_context()) as receiver,
        deliverer_for(receiver, ca_file=AUTHORITY) as deliverer,
    ):
        url = tls_url_of(receiver, host=host)
        statuses = [answer_from(deliverer, url).status for _ in range(5)]

    assert [200] * 5 == statuses
    assert f"{host}:{receiver.port}" == receiver.requests[0].headers["host"]
    assert 1 == receiver.connections


def test_tls_names_the_host_of_the_url_and_not_the_address() -> None:
    context = server_context()
    names: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    with (
        Receiver(ssl_context=context) as receiver,
        deliverer_for(receiver, ca_file=AUTHORITY) as deliverer,
    ):
        answer_from(deliverer, tls_url_of(receiver))

    assert [NAME] == names


@pytest.mark.parametrize(
    ("certificate", "word"),
    [("other", "Hostname mismatch"), ("expired", "expired"), ("self-signed", "self-signed")],
)
def test_a_receiver_that_does_not_prove_its_name_gets_nothing(certificate: str, word: str) -> None:
    with (
        Receiver(ssl_context=server_context(certificate)) as receiver,
        deliverer_for(receiver, ca_file=AUTHORITY) as deliverer,
    ):
        failure = failure_at(deliverer, tls_url_of(receiver))

    assert "TLS_ERROR" == failure.reason
    assert word in failure.message.replace("self signed", "self-signed")  # OpenSSL 1.1
    assert [] == receiver.requests


def test_an_authority_is_trusted_only_if_the_operator_says_so() -> None:
    with (
        Receiver(ssl_context=server_context()) as receiver,
        deliverer_for(receiver) as deliverer,
    ):
        failure = failure_at(deliverer, tls_url_of(receiver))

    assert "TLS_ERROR" == failure.reason


def test_an_obsolete_version_of_tls_is_refused() -> None:
    context = server_context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        Receiver(ssl_context=context) as receiver,
        deliverer_for(receiver, ca_file=AUTHORITY) as deliverer,
    ):
        failure = failure_at(deliverer, tls_url_of(receiver))

    assert "TLS_ERROR" == failure.reason


def test_a_receiver_that_wants_a_client_certificate_is_a_tls_failure() -> None:
    context = server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(AUTHORITY)
    with (
        Receiver(ssl_context=context) as receiver,
        deliverer_for(receiver, ca_file=AUTHORITY) as deliverer,
    ):
        failure = failure_at(deliverer, tls_url_of(receiver))

    assert "TLS_ERROR" == failure.reason
    assert "certificate required" in failure.message


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        (lambda _, connection: connection.sendall(b"HTTP/1.1 400 No\r\n\r\n"), "TLS_ERROR"),
        (hang, "TIMEOUT"),
        # a record of 16 KiB that never gets there
        (drip(b"\x16\x03\x03\x40\x00" + bytes(16384)), "TIMEOUT"),
        (reset, "CONNECTION_FAILED"),
    ],
)
def test_a_handshake_that_fails_or_drags_on_is_a_failure(then: Script, reason: str) -> None:
    def script(server: FaultServer, connection: socket.socket) -> None:
        connection.recv(65536)
        then(server, connection)

    timeout = SOON if reason == "TIMEOUT" else LATE
    with FaultServer(script) as server, deliverer_for(server, timeout=timeout) as deliverer:
        failure = failure_at(deliverer, tls_url_of(server))

    assert reason == failure.reason


def test_a_body_that_drips_over_tls_is_late() -> None:
    def script(server: FaultServer, connection: socket.socket) -> None:
        with server_context().wrap_socket(connection, server_side=True) as tls:
            answering(b"HTTP/1.1 200 OK\r\n\r\n", drip(b"x"))(server, tls)

    with (
        FaultServer(script) as server,
        deliverer_for(server, timeout=SOON, ca_file=AUTHORITY) as deliverer,
    ):
        failure = failure_at(deliverer, tls_url_of(server))

    assert "TIMEOUT" == failure.reason
