"""Signatures that the public libraries accept, and nobody else's."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.signature import SignatureError, decode_secret, new_secret, sign, verify

# The example of the Standard Webhooks libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
HEADERS = {
    "webhook-id": ID,
    "webhook-timestamp": str(TIMESTAMP),
    "webhook-signature": SIGNATURE,
}
KEY = decode_secret(SECRET)


def test_the_published_example_has_the_published_signature() -> None:
    assert SIGNATURE == sign([KEY], webhook_id=ID, timestamp=TIMESTAMP, body=[BODY])
    assert ID == verify([KEY], headers=HEADERS, body=BODY, now=TIMESTAMP)


@given(st.text(), st.binary(min_size=24, max_size=64))
def test_the_public_library_verifies_and_signs_as_we_do(text: str, key: bytes) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    timestamp = int(now.timestamp())
    public = standardwebhooks.Webhook(base64.b64encode(key).decode())
    signature = sign([key], webhook_id=ID, timestamp=timestamp, body=[text.encode()])
    headers = {
        "webhook-id": ID,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature,
    }

    public.verify(text.encode(), headers, json_parse=False)
    assert public.sign(ID, now, text) == signature


def test_during_rotation_each_secret_signs_in_turn_and_any_of_them_verifies() -> None:
    old, new = decode_secret(new_secret()), decode_secret(new_secret())
    signature = sign([new, old], webhook_id=ID, timestamp=TIMESTAMP, body=[BODY])
    headers = HEADERS | {"webhook-signature": signature}

    assert [
        sign([key], webhook_id=ID, timestamp=TIMESTAMP, body=[BODY]) for key in (new, old)
    ] == signature.split(" ")
    for key in (old, new):
        verify([key], headers=headers, body=BODY, now=TIMESTAMP)


def test_a_new_secret_is_32_random_bytes_as_people_see_them() -> None:
    secret = new_secret(lambda size: bytes(range(size)))

    assert "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=" == secret
    assert bytes(range(32)) == decode_secret(secret)
    assert new_secret() != new_secret()


def test_a_secret_may_lack_its_padding() -> None:
    assert bytes(range(32)) == decode_secret("whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8")


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",  # no prefix
        "whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa-_",  # another base64
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS\N{LATIN SMALL LETTER A WITH DIAERESIS}",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa S",
        "whsec_" + base64.b64encode(bytes(23)).decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        "whsec_0123456789abcdef0123456789abcdef0",  # one character too many for base64
    ],
)
def test_what_is_no_secret_is_refused_without_telling_it(secret: str) -> None:
    with pytest.raises(ValueError, match="a signing secret is") as caught:
        decode_secret(secret)

    assert not secret[6:] or secret[6:] not in str(caught.value)


@pytest.mark.parametrize("webhook_id", ["", "qry.1"])
def test_an_id_that_would_move_the_boundary_is_refused(webhook_id: str) -> None:
    with pytest.raises(ValueError, match="webhook id"):
        sign([KEY], webhook_id=webhook_id, timestamp=TIMESTAMP, body=[BODY])


def test_signing_without_a_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one secret"):
        sign([], webhook_id=ID, timestamp=TIMESTAMP, body=[BODY])


@pytest.mark.parametrize("drift", [-300, 300])
def test_a_clock_may_be_five_minutes_off(drift: float) -> None:
    verify([KEY], headers=HEADERS, body=BODY, now=TIMESTAMP + drift)


@pytest.mark.parametrize("drift", [-300.5, 301])
def test_a_request_of_another_time_is_refused(drift: float) -> None:
    with pytest.raises(SignatureError, match="differs from the clock"):
        verify([KEY], headers=HEADERS, body=BODY, now=TIMESTAMP + drift)


@pytest.mark.parametrize("name", HEADERS)
def test_each_header_is_needed(name: str) -> None:
    headers = {other: value for other, value in HEADERS.items() if other != name}

    with pytest.raises(SignatureError, match=name):
        verify([KEY], headers=headers, body=BODY, now=TIMESTAMP)


@pytest.mark.parametrize(
    "change",
    [
        {"webhook-id": "msg_other"},
        {"webhook-timestamp": str(TIMESTAMP + 1)},
        {"webhook-timestamp": "now"},
        {"webhook-timestamp": "-1"},
        {"webhook-timestamp": "１６１４２６５３３０"},  # noqa: RUF001 - digits to int
        {"webhook-timestamp": "9" * 5000},
        {"webhook-signature": ""},
        {"webhook-signature": "v1"},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1,%%%"},
        {"webhook-signature": "v1,ä"},
        {"webhook-signature": SIGNATURE.replace("v1,", "v2,")},
        {"webhook-signature": SIGNATURE.replace("v1,", "")},
        {"webhook-signature": SIGNATURE[:-4]},
        {"webhook-signature": SIGNATURE.replace("g0", "h0")},
    ],
)
def test_a_header_that_was_changed_is_noticed(change: dict[str, str]) -> None:
    with pytest.raises(SignatureError):
        verify([KEY], headers=HEADERS | change, body=BODY, now=TIMESTAMP)


def test_another_body_or_another_key_is_noticed() -> None:
    with pytest.raises(SignatureError, match="no signature fits"):
        verify([KEY], headers=HEADERS, body=BODY + b" ", now=TIMESTAMP)
    with pytest.raises(SignatureError, match="no signature fits"):
        verify([bytes(32)], headers=HEADERS, body=BODY, now=TIMESTAMP)
    with pytest.raises(SignatureError, match="no signature fits"):
        verify([], headers=HEADERS, body=BODY, now=TIMESTAMP)


def test_unknown_versions_and_header_case_are_no_matter() -> None:
    headers = {name.title(): value for name, value in HEADERS.items()}
    headers["Webhook-Signature"] = f"v1a,AAAA {SIGNATURE} v9,!"

    assert ID == verify([KEY], headers=headers, body=BODY, now=TIMESTAMP)
