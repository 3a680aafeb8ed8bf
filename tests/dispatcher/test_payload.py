"""The body of a callback, as receivers parse it."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher import payload

AT = 1_795_341_600_000  # 2026-11-22T10:00:00Z


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    id: str = "img_1"
    media_type: str = "image/jpeg"
    size_bytes: int = 5
    sha256: str = "ab" * 32
    width: int = 640
    height: int = 480


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    name: str = "dog"
    lemma: str = "dog"
    confidence: int = 980_000


def matched(**changes: Any) -> bytes:
    arguments: dict[str, Any] = {
        "query_id": "qry_1",
        "text": "dogs on a beach",
        "lemmas": ["dog", "beach"],
        "score": 1_930_000,
        "image": Image(),
        "matched_tags": [Tag(), Tag(name="beach", lemma="beach", confidence=950_000)],
        "timestamp_at": AT,
        "content": b"\xff\xd8\x00\xff\xfe",
    }
    return b"".join(payload.matched(**arguments | changes))


def unmatched(**changes: Any) -> bytes:
    arguments: dict[str, Any] = {
        "query_id": "qry_1",
        "text": "xyzzy",
        "lemmas": ["xyzzy"],
        "timestamp_at": AT,
    }
    return b"".join(payload.unmatched(**arguments | changes))


def test_a_match_is_told_byte_for_byte() -> None:
    assert matched() == (
        b'{"type":"query.matched","timestamp":"2026-11-22T10:00:00Z",'
        b'"data":{"query_id":"qry_1","text":"dogs on a beach","lemmas":["dog","beach"],"score":1.93,'
        b'"image":{"id":"img_1","media_type":"image/jpeg","size_bytes":5,"sha256":"'
        + b"ab"
        * 32
        + b'","width":640,"height":480},'
        b'"matched_tags":[{"name":"dog","lemma":"dog","confidence":0.98},'
        b'{"name":"beach","lemma":"beach","confidence":0.95}]},"result":"/9gA//4="}'
    )


def test_no_match_is_told_byte_for_byte() -> None:
    assert unmatched() == (
        b'{"type":"query.unmatched","timestamp":"2026-11-22T10:00:00Z",'
        b'"data":{"query_id":"qry_1","text":"xyzzy","lemmas":["xyzzy"],"score":0,"image":null,'
        b'"matched_tags":[]},"result":null}'
    )


@given(st.text(st.characters(codec="utf-8")), st.binary(max_size=4096))
def test_any_text_and_any_file_arrive_unchanged_and_always_as_the_same_bytes(
    text: str, content: bytes
) -> None:
    body = matched(text=text, lemmas=[text], matched_tags=[Tag(name=text)], content=content)
    parsed = json.loads(body)

    assert ["type", "timestamp", "data", "result"] == list(parsed)
    assert text == parsed["data"]["text"] == parsed["data"]["lemmas"][0]
    assert text == parsed["data"]["matched_tags"][0]["name"]
    assert content == base64.b64decode(parsed["result"], validate=True)
    assert body == matched(text=text, lemmas=[text], matched_tags=[Tag(name=text)], content=content)


@given(st.integers(0, 10**9 * 10**6))
def test_a_score_is_written_as_the_exact_decimal(millionths: int) -> None:
    parsed = json.loads(matched(score=millionths), parse_float=Decimal, parse_int=Decimal)

    assert Decimal(millionths) / 1_000_000 == parsed["data"]["score"]


@pytest.mark.parametrize(
    ("millionths", "text"),
    [
        (0, b"0"),
        (1_000_000, b"1"),
        (1_930_000, b"1.93"),
        (300_000, b"0.3"),  # 0.1 + 0.2 is 0.30000000000000004
        (123_456, b"0.123456"),
    ],
)
def test_a_score_has_as_few_digits_as_possible(millionths: int, text: bytes) -> None:
    assert b'"score":%s,' % text in matched(score=millionths)


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (AT + 7, "2026-11-22T10:00:00.007Z"),
        (AT + 999, "2026-11-22T10:00:00.999Z"),
    ],
)
def test_times_are_utc_with_milliseconds_if_there_are_any(at: int, text: str) -> None:
    assert text == json.loads(unmatched(timestamp_at=at))["timestamp"]
