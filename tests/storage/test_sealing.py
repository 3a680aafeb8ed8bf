from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import SealError
from storage.sealing import Sealer
from tests.store import SECRET

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
SEALER = Sealer([KEY])


@given(secret=st.text(), owner=st.text())
def test_what_was_sealed_opens(secret: str, owner: str) -> None:
    stored = SEALER.seal(secret, owner=owner, key=SEALER.current)

    assert secret == SEALER.open(stored, owner=owner, key=SEALER.current)


def test_what_earlier_versions_sealed_opens() -> None:
    """Made once by this code; when it does not open, nobody's database does."""
    stored = bytes.fromhex(SEALED)

    assert "217c3fdd09ce8879" == SEALER.current
    assert SECRET == SEALER.open(stored, owner="key_a", key=SEALER.current)


#: SECRET of key_a under KEY.
SEALED = (
    "2651e1e2fef8c3b014445cf81b9a9344f210f11848a609dbee9a5a68864760260387a45b4746ee7f"
    "31f3f8d72a3ed04407c951a3e285eddf63b60d6ec27d8a3a18aa"
)


def test_a_secret_is_never_sealed_to_the_same_bytes_again() -> None:
    stored = {SEALER.seal(SECRET, owner="key_a", key=SEALER.current) for _ in range(100)}

    assert 100 == len(stored)
    assert not any(SECRET[:8].encode() in each for each in stored)


def test_a_secret_opens_for_its_owner_only() -> None:
    stored = SEALER.seal(SECRET, owner="key_a", key=SEALER.current)

    with pytest.raises(SealError, match="a signing secret of key_b was changed, or is another's"):
        SEALER.open(stored, owner="key_b", key=SEALER.current)


def test_every_changed_bit_and_every_missing_byte_is_told() -> None:
    stored = SEALER.seal(SECRET, owner="key_a", key=SEALER.current)
    changed = [
        stored[:place] + bytes([stored[place] ^ 1 << bit]) + stored[place + 1 :]
        for place in range(len(stored))
        for bit in range(8)
    ]
    cut = [stored[:length] for length in range(len(stored))]

    for damaged in (*changed, *cut, stored + b"\0"):
        with pytest.raises(SealError):
            SEALER.open(damaged, owner="key_a", key=SEALER.current)


def test_the_first_key_seals_and_every_key_opens() -> None:
    stored = SEALER.seal(SECRET, owner="key_a", key=SEALER.current)
    both = Sealer([OTHER_KEY, KEY])

    assert Sealer([OTHER_KEY]).current == both.current != SEALER.current
    assert SECRET == both.open(stored, owner="key_a", key=SEALER.current)


def test_without_keys_secrets_stay_in_clear() -> None:
    sealer = Sealer()

    assert sealer.current is None
    assert SECRET.encode() == sealer.seal(SECRET, owner="key_a", key=None)
    assert SECRET == sealer.open(SECRET.encode(), owner="key_a", key=None)


def test_what_was_in_clear_before_opens_with_keys_at_hand_as_well() -> None:
    assert SECRET == SEALER.open(SECRET.encode(), owner="key_a", key=None)


@pytest.mark.parametrize(
    ("sealer", "told"),
    [
        (Sealer(), "no key is given: name its file by --secrets-key-file"),
        (Sealer([OTHER_KEY]), "which the secrets key file does not hold"),
    ],
)
def test_a_key_that_is_not_at_hand_is_told_by_its_fingerprint(sealer: Sealer, told: str) -> None:
    key = SEALER.current
    stored = SEALER.seal(SECRET, owner="key_a", key=key)

    with pytest.raises(SealError, match=f"encrypted with key {key}, .*{told}"):
        sealer.open(stored, owner="key_a", key=key)
    with pytest.raises(SealError, match=told):
        sealer.seal(SECRET, owner="key_a", key=key)


@pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
def test_a_key_has_256_bits(length: int) -> None:
    with pytest.raises(ValueError, match="a key has 32 bytes"):
        Sealer([KEY, bytes(length)])
