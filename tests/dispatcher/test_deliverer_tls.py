"""Receivers must prove their names. What they do amid a handshake is in `faults`."""

from __future__ import annotations

import ssl
from typing import Final

import pytest

from tests.dispatcher.calling import (
    NAME,
    TLS,
    answer_from,
    deliverer_for,
    failure_at,
    url_of,
)
from tests.dispatcher.faults import obsolete_context, server_context
from tests.receiver import Receiver

AUTHORITY: Final = TLS / "ca.pem"


def tls_url_of(server: Receiver, *, host: str = NAME) -> str:
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


def test_a_certificate_that_names_its_host_only_as_common_name_is_refused() -> None:
    with (
        Receiver(ssl_context=server_context("common-name")) as receiver,
        deliverer_for(receiver, ca_file=TLS / "common-name.pem") as deliverer,
    ):
        failure = failure_at(deliverer, tls_url_of(receiver))

    assert "TLS_ERROR" == failure.reason
    assert "Hostname mismatch" in failure.message
    assert not failure.message.endswith("..")
    assert [] == receiver.requests


def test_an_authority_is_trusted_only_if_the_operator_says_so() -> None:
    with (
        Receiver(ssl_context=server_context()) as receiver,
        deliverer_for(receiver) as deliverer,
    ):
        failure = failure_at(deliverer, tls_url_of(receiver))

    assert "TLS_ERROR" == failure.reason


def test_an_obsolete_version_of_tls_is_refused() -> None:
    with (
        Receiver(ssl_context=obsolete_context()) as receiver,
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
    assert "accepts only clients with a certificate" in failure.message
