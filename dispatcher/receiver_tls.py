"""How TLS to receivers is set up: whom to trust, and which certificate to show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    import ssl
    from pathlib import Path


class CertificateFileError(Exception):
    """A file with certificates or a key cannot be used; the message names it."""


def receiver_context(
    *,
    ca_file: Path | None = None,
    cert_file: Path | None = None,
    key_file: Path | None = None,
) -> ssl.SSLContext:
    """Return what verifies receivers.

    Args:
        ca_file: Certificates (PEM) to trust beside those of ``certifi``.
        cert_file: The certificate (PEM, with its chain) to show to receivers that ask for one.
        key_file: Its private key (PEM), without a passphrase; None: it is in *cert_file*.

    Raises:
        CertificateFileError: A file cannot be read, or does not hold what it must.
    """
    context = httpx.create_ssl_context(trust_env=False)
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:  # which errors of TLS are, too
            msg = f"callback_ca: {ca_file} holds no certificates that can be read"
            raise CertificateFileError(msg) from error
    if cert_file is not None:
        try:
            # With an empty passphrase OpenSSL fails, where it would ask the terminal for one.
            context.load_cert_chain(cert_file, key_file, password="")
        except OSError as error:
            msg = (
                f"callback_cert, callback_key: {cert_file} must hold a certificate and"
                f" {key_file or 'the same file'} its private key without a passphrase, both PEM"
            )
            raise CertificateFileError(msg) from error
    return context
