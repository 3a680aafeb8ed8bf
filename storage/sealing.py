"""Encrypts signing secrets, so that a stolen copy of the data folder does not give them away.

AES-256-GCM, in the implementation of `cryptography`. The rule a newcomer would break: a secret
is sealed for its owner, and opens for nobody else, so that a row which somebody moved to
another API key is told and not signed with.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from storage.errors import SealError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Bytes of a key: AES-256.
KEY_BYTES: Final = 32
#: Random, and never used twice with one key: safe for 2^32 secrets. Source: NIST SP 800-38D, 8.3.
_NONCE_BYTES: Final = 12


class Sealer:
    """Encrypts with the first of its keys, and decrypts with any of them.

    Without keys it leaves secrets in clear. Keys are told apart by fingerprints, which say
    nothing about them and may be logged. Safe to use from any thread.

    Raises:
        ValueError: A key has not `KEY_BYTES` bytes.
    """

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        if any(len(key) != KEY_BYTES for key in keys):
            msg = f"a key has {KEY_BYTES} bytes"
            raise ValueError(msg)
        self._ciphers = {_fingerprint(key): AESGCM(key) for key in keys}

    @property
    def current(self) -> str | None:
        """The fingerprint of the key that encrypts; None: secrets stay in clear."""
        return next(iter(self._ciphers), None)

    def seal(self, secret: str, *, owner: str, key: str | None) -> bytes:
        """Return *secret* as it is to be stored: encrypted with *key*, in clear for None.

        Raises:
            SealError: There is no such key here.
        """
        if key is None:
            return secret.encode()
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher(key).encrypt(nonce, secret.encode(), _context(owner))

    def open(self, stored: bytes, *, owner: str, key: str | None) -> str:
        """Return the secret that `seal` made *stored* of, for the same owner and key.

        Raises:
            SealError: There is no such key here, or *stored* was changed, or made for another
                owner. Trying again does not help.
        """
        if key is None:
            return stored.decode()
        nonce, encrypted = stored[:_NONCE_BYTES], stored[_NONCE_BYTES:]
        cipher = self._cipher(key)
        try:
            return cipher.decrypt(nonce, encrypted, _context(owner)).decode()
        except (InvalidTag, ValueError) as error:  # ValueError: too short for a nonce
            msg = f"a signing secret of {owner} was changed, or is another's: it does not decrypt"
            raise SealError(msg) from error

    def _cipher(self, key: str) -> AESGCM:
        try:
            return self._ciphers[key]
        except KeyError:
            remedy = (
                "which the secrets key file does not hold"
                if self._ciphers
                else "but no key is given: name its file by --secrets-key-file"
            )
            msg = f"signing secrets are encrypted with key {key}, {remedy}"
            raise SealError(msg) from None


def _fingerprint(key: bytes) -> str:
    return hashlib.sha256(b"picback secrets key\0" + key).hexdigest()[:16]


def _context(owner: str) -> bytes:
    return b"picback signing secret\0" + owner.encode()
