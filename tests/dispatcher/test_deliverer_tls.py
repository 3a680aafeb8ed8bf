"""Receivers must prove their names. What they do amid a handshake is in `faults`."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

import pytest
from cryptography.hazmat.primitives import serialization

from dispatcher.receiver_tls import CertificateFileError, receiver_context
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

if TYPE_CHECKING:
    from pathlib import Path

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


def wanting_a_certificate(certificate: str = "receiver") -> ssl.SSLContext:
    """Return the TLS of a receiver that accepts only clients with a certificate of AUTHORITY."""
    context = server_context(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(AUTHORITY)
    return context


def test_a_receiver_that_wants_a_client_certificate_is_a_tls_failure() -> None:
    with (
        Receiver(ssl_context=wanting_a_certificate()) as receiver,
        deliverer_for(receiver, ca_file=AUTHORITY) as deliverer,
    ):
        failure = failure_at(deliverer, tls_url_of(receiver))

    assert "TLS_ERROR" == failure.reason
    assert "accepts only clients with a certificate" in failure.message


def test_a_receiver_that_wants_a_client_certificate_is_shown_the_operators() -> None:
    with (
        Receiver(ssl_context=wanting_a_certificate()) as receiver,
        deliverer_for(receiver, ca_file=AUTHORITY, cert_file=TLS / "other.pem") as deliverer,
    ):
        statuses = [answer_from(deliverer, tls_url_of(receiver)).status for _ in range(2)]

    assert [200, 200] == statuses


def test_certificate_and_key_may_be_in_files_of_their_own(tmp_path: Path) -> None:
    key, certificate = _parts_of("other.pem", tmp_path)
    with (
        Receiver(ssl_context=wanting_a_certificate()) as receiver,
        deliverer_for(
            receiver, ca_file=AUTHORITY, cert_file=certificate, key_file=key
        ) as deliverer,
    ):
        assert 200 == answer_from(deliverer, tls_url_of(receiver)).status


def test_a_receiver_that_does_not_trust_the_certificate_says_so_in_words_that_help() -> None:
    with (
        Receiver(ssl_context=wanting_a_certificate()) as receiver,
        deliverer_for(receiver, ca_file=AUTHORITY, cert_file=TLS / "self-signed.pem") as deliverer,
    ):
        failure = failure_at(deliverer, tls_url_of(receiver))

    assert "TLS_ERROR" == failure.reason
    assert "the receiver does not trust the certificate that picback shows" in failure.message


def _parts_of(name: str, folder: Path) -> tuple[Path, Path]:
    """Write key and certificate of a file into files of their own."""
    end = "-----END PRIVATE KEY-----\n"
    key, _, certificate = (TLS / name).read_text().partition(end)
    paths = folder / "key.pem", folder / "certificate.pem"
    paths[0].write_text(key + end)
    paths[1].write_text(certificate)
    return paths


def test_files_that_hold_no_certificate_or_another_ones_key_are_refused(tmp_path: Path) -> None:
    key, certificate = _parts_of("other.pem", tmp_path)
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_bytes(
        serialization.load_pem_private_key(key.read_bytes(), None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"a passphrase"),
        )
    )
    foreign = TLS / "receiver.pem"
    cases = ((key, None), (certificate, None), (certificate, foreign), (certificate, encrypted))
    for cert_file, key_file in cases:
        with pytest.raises(CertificateFileError, match="callback_cert, callback_key: "):
            receiver_context(cert_file=cert_file, key_file=key_file)
    with pytest.raises(CertificateFileError, match="holds no certificates"):
        receiver_context(ca_file=key)
