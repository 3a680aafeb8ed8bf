from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import RequestError
from server.paging import Paging

PAGING = Paging(bytes(32))
POSITIONS = st.integers(0, 2**63 - 1)
LISTINGS = st.sampled_from(
    ["images", "queries:key_1:", "queries:key_1:FAILED", "queries:key_2:FAILED"]
)


@given(position=POSITIONS, listing=LISTINGS)
def test_a_token_leads_back_to_its_position(position: int, listing: str) -> None:
    token = PAGING.token(position, of=listing)

    assert position == PAGING.position(token, of=listing)
    assert token == token.strip("=")
    assert token.isascii()


def test_no_token_is_the_first_page() -> None:
    assert PAGING.position("", of="images") is None


@given(position=POSITIONS, listing=LISTINGS, other=LISTINGS)
def test_a_token_is_good_for_its_listing_only(position: int, listing: str, other: str) -> None:
    token = PAGING.token(position, of=listing)

    if listing != other:
        with pytest.raises(RequestError, match="not one that this listing gave"):
            PAGING.position(token, of=other)


@given(
    token=st.text(min_size=1)
    | st.binary(min_size=1, max_size=40).map(
        lambda data: base64.urlsafe_b64encode(data).decode().rstrip("=")
    )
)
def test_nobody_can_make_one_up(token: str) -> None:
    with pytest.raises(RequestError) as caught:
        PAGING.position(token, of="images")

    assert "PAGE_TOKEN_INVALID" == caught.value.reason


@given(position=POSITIONS, bit=st.integers(0, 24 * 8 - 1))
def test_no_bit_of_a_token_can_be_changed(position: int, bit: int) -> None:
    data = bytearray(base64.urlsafe_b64decode(PAGING.token(position, of="images")))
    data[bit // 8] ^= 1 << bit % 8

    with pytest.raises(RequestError):
        PAGING.position(base64.urlsafe_b64encode(data).decode().rstrip("="), of="images")


@given(position=POSITIONS, cut=st.integers(1, 31))
def test_no_part_of_a_token_is_one(position: int, cut: int) -> None:
    token = PAGING.token(position, of="images")

    for part in (token[:-cut], token[cut:]):
        with pytest.raises(RequestError):
            PAGING.position(part, of="images")


def test_tokens_are_sealed_with_the_servers_secret() -> None:
    token = Paging(bytes(range(32))).token(1, of="images")

    with pytest.raises(RequestError):
        PAGING.position(token, of="images")


@given(position=st.integers(0, 1_000_000))
def test_a_token_does_not_tell_its_position(position: int) -> None:
    """A position counts the queries of all keys: tokens a few queries apart look unrelated."""
    sealed, next_sealed = (
        base64.urlsafe_b64decode(PAGING.token(each, of="queries:key_1:"))
        for each in (position, position + 1)
    )

    assert position.to_bytes(8) not in sealed
    assert not any(
        sealed[start : start + 4] == next_sealed[start : start + 4] for start in range(21)
    )
